"""A dense loss on image features: what lies in each patch?

Answers of one word say little about a picture; a label for every patch says a lot, as detection
data does. A small model that would take hours to see from answers alone does so in a minute.

Shapes: N images, O objects, T tasks, G patches per side, P = G * G, F image features in all.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
MIN_COVER = 0.2  # share of a patch from which on an object counts


class PatchHead(nn.Module):
    """Linear classifiers on image features, one for each task.

    The first task has a class 0 for patches without an object; the others ignore those, so that
    the many empty patches do not drown what the few can teach.

    Args:
        in_features: Width of the features.
        num_classes: Classes of each task, without that of empty patches.

    Raises:
        ValueError: There is no task, or one without a class.
    """

    def __init__(self, in_features: int, num_classes: list[int]) -> None:
        super().__init__()
        if min(num_classes, default=0) < 1:
            raise ValueError(f"patch_classes: {num_classes}, expected numbers of at least 1")
        self.num_classes = list(num_classes)
        self.classifier = nn.Linear(in_features, sum(num_classes) + len(num_classes))

    def forward(self, features_FC: Tensor) -> list[Tensor]:
        """Returns the logits of each task, (F, classes + 1)."""
        sizes = [number + 1 for number in self.num_classes]
        return [*self.classifier(features_FC.float()).split(sizes, dim=-1)]

    def loss(self, features_FC: Tensor, boxes_NO4: Tensor, labels_NOT: Tensor) -> Tensor:
        """Returns the sum over tasks of the mean cross-entropy, in nats.

        Args:
            features_FC: Features of all images in order, as many for each, in rows of the picture.
            boxes_NO4: Left, top, right, bottom as shares of the picture; empty boxes are none.
            labels_NOT: int64, from 1; anything for empty boxes.

        Raises:
            ValueError: The features do not form a square grid on each image, the tasks are not
                those of the head, or a label is beyond its classes.
        """
        side = grid_side(len(features_FC), len(boxes_NO4))
        if labels_NOT.shape[-1] != len(self.num_classes):
            raise ValueError(
                f"box_labels: {labels_NOT.shape[-1]} tasks, but model.init_args.patch_classes "
                f"{self.num_classes} has {len(self.num_classes)}"
            )
        targets_NPT = patch_labels(boxes_NO4, labels_NOT, side).flatten(1, 2)
        losses = []
        for task, logits_FK in enumerate(self(features_FC)):
            target_F = targets_NPT[..., task].flatten()
            if task > 0:
                target_F = torch.where(target_F > 0, target_F, IGNORED)
            number = self.num_classes[task]
            if target_F.max() > number:
                raise ValueError(
                    f"box_labels: {int(target_F.max())} in task {task}, but "
                    f"model.init_args.patch_classes says {number} classes"
                )
            total = F.cross_entropy(logits_FK, target_F, ignore_index=IGNORED, reduction="sum")
            losses.append(total / (target_F != IGNORED).sum().clamp(min=1))
        return torch.stack(losses).sum()


def grid_side(num_features: int, num_images: int) -> int:
    """Returns G.

    Raises:
        ValueError: The features are not G * G for each image.
    """
    side = math.isqrt(num_features // max(num_images, 1))
    if side * side * num_images != num_features:
        raise ValueError(
            f"patch loss: {num_features} features of {num_images} images form no square grid each; "
            "use square images that are not split, or phases without patch_weight"
        )
    return side


def patch_labels(boxes_NO4: Tensor, labels_NOT: Tensor, side: int) -> Tensor:
    """Returns the labels of the object that covers most of each patch, (N, G, G, T) int64.

    0 where no object covers `MIN_COVER` of the patch. Which of two equals wins is the first.
    """
    edges = torch.arange(side, device=boxes_NO4.device)

    def covered(low_NO: Tensor, high_NO: Tensor) -> Tensor:
        """Returns the share of each interval of the axis that is covered, (N, O, G)."""
        low, high = (side * edge[..., None] for edge in (low_NO, high_NO))
        return (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp(min=0)

    left, top, right, bottom = boxes_NO4.unbind(-1)
    cover_NOGG = covered(top, bottom)[..., :, None] * covered(left, right)[..., None, :]
    most_NGG, which_NGG = cover_NOGG.max(dim=1)
    N, _, T = labels_NOT.shape
    index = which_NGG.view(N, -1, 1).expand(-1, -1, T)
    chosen = labels_NOT.gather(1, index).view(N, side, side, T)
    return torch.where((most_NGG >= MIN_COVER)[..., None], chosen, 0)
