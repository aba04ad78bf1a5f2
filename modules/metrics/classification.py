"""The score that each image-classification benchmark is reported by."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

ScoreName = Literal["accuracy", "mean_per_class", "roc_auc"]
IGNORED = -100  # label of an image that could not be read


class ClassificationScore(Metric):
    """Accuracy, mean accuracy per class, or area under the ROC curve, of logits.

    Images without a label (-100) are left out, and of the mean classes without images.

    Args:
        name: "accuracy", "mean_per_class", or "roc_auc" (of the second of two classes).
        num_classes: C.
        sync_on_compute: Whether images of all processes count; all of them compute then.

    Raises:
        ValueError: "roc_auc" of other than two classes.
    """

    full_state_update = False
    num_right: Tensor
    num_images: Tensor

    def __init__(self, name: ScoreName, num_classes: int, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        if name == "roc_auc" and num_classes != 2:
            raise ValueError(f"metric: roc_auc is for 2 classes, there are {num_classes}")
        self.name = name
        # Not torchmetrics' macro average: a class that is predicted but has no image would count.
        for state in ("num_right", "num_images"):
            self.add_state(state, default=torch.zeros(num_classes), dist_reduce_fx="sum")
        self.curve = BinaryAUROC(sync_on_compute=sync_on_compute)

    def update(self, logits_BC: Tensor, label_B: Tensor) -> None:
        """Adds a batch: logits and labels from 0."""
        known_B = label_B != IGNORED
        logits_BC, label_B = logits_BC[known_B].float(), label_B[known_B]
        if self.name == "roc_auc":
            self.curve.update(logits_BC.softmax(dim=1)[:, 1], label_B)
            return
        right_B = logits_BC.argmax(dim=1) == label_B
        self.num_right.index_add_(0, label_B, right_B.float())
        self.num_images.index_add_(0, label_B, torch.ones_like(right_B, dtype=torch.float32))

    def compute(self) -> Tensor:
        """Returns the score, in [0, 1]."""
        if self.name == "roc_auc":
            area: Tensor = self.curve.compute()
            return area
        if self.name == "accuracy":
            return self.num_right.sum() / self.num_images.sum()
        occurs = self.num_images > 0
        return (self.num_right[occurs] / self.num_images[occurs]).mean()

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.curve.reset()


def score_of(name: ScoreName, logits_BC: Tensor, label_B: Tensor) -> float:
    """Returns a score of all images at once, in [0, 1]; one process may ask alone."""
    metric = ClassificationScore(name, logits_BC.shape[1], sync_on_compute=False)
    metric.update(torch.as_tensor(logits_BC), torch.as_tensor(label_B))
    return float(metric.compute())
