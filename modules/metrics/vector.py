"""How alike two vector images are: in pixels, and in structure.

Pixels hide structure: a path drawn twice shows nowhere, and two rectangles a little off score worse
than a blot. So paths are counted, matched and taken away one by one. All lengths are in units of a
view box of 24; both images are drawn by the one renderer of this package, black on white.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    structural_similarity_index_measure,
)
from torchvision.transforms.functional import to_pil_image

from ..encoders import Encoder
from ..svg import Document, Shape, normalized, render
from ..svg.outline import flattened
from ..svg.rendering import document_coverage
from .questions import QuestionMetric

Points = NDArray[np.float64]
LpipsNetwork = Literal["alex", "squeeze", "vgg"]

VIEW_BOX = 24.0
NUM_POINTS = 100  # of a path that are compared
MATCH_DISTANCE = 1.0  # chamfer distance below which two paths are the same one
OPEN_GAP = 1.0  # between the ends of an outline that is not whole
CHORD_TOLERANCE = 0.01
# A border drawn twice is up to 0.25 darker, half a pixel being covered twice: that is no change.
SAME_PIXEL, REDUNDANT_SHARE = 0.3, 0.001
INK = 0.5  # luminance below which a pixel is ink


@dataclass(frozen=True)
class IconComparison:
    """A predicted icon beside the true one, as counts that add up over icons.

    Attributes:
        mse: Mean squared error of pixels in [0, 1].
        ssim: Structural similarity, 11 x 11 Gaussian window of sigma 1.5.
        ink_iou: Pixels that are ink in both, of those that are in one; 1 where neither has any.
        num_paths: Predicted paths.
        num_true: True paths.
        num_matched: Pairs of paths, each in one, nearer than `MATCH_DISTANCE`.
        chamfer: Mean distance of the pairs that are nearest in all, matched or not; NaN without.
        num_redundant: Predicted paths without which less than 0.1 % of the pixels change, by more
            than 0.3 in luminance.
        num_closed: True paths that are closed.
        num_incomplete: Those whose nearest predicted path, each taken once, is missing or open.
        num_open: Those that have one, and it is open: its ends are further than a unit apart.
        order: Kendall's tau of the order of matched paths; NaN with fewer than two.
        num_commands: Segments of the predicted paths.
        blank_mse: What an empty prediction would have as `mse`.
    """

    mse: float
    ssim: float
    ink_iou: float
    num_paths: int
    num_true: int
    num_matched: int
    chamfer: float
    num_redundant: int
    num_closed: int
    num_incomplete: int
    num_open: int
    order: float
    num_commands: int
    blank_mse: float

    @property
    def count_error(self) -> int:
        """By how many paths the number is wrong."""
        return abs(self.num_paths - self.num_true)

    @property
    def f1(self) -> float:
        """F1 of matched paths; 1 where there are none on both sides."""
        total = self.num_paths + self.num_true
        return 2 * self.num_matched / total if total else 1.0


def compare_icons(predicted: Document, true: Document, size: int = 96) -> IconComparison:
    """Compares two icons.

    Args:
        predicted: Each shape is a path.
        true: Likewise.
        size: Side of the square in which they are drawn, in pixels, at least 11.
    """
    predicted, true = normalized(predicted, VIEW_BOX), normalized(true, VIEW_BOX)
    layers = _layers(predicted, size)
    image, goal = _drawn(layers), _drawn(_layers(true, size))
    shapes, goals = list(predicted.shapes()), list(true.shapes())
    distances = chamfer_distances(shapes, goals)
    rows, columns = linear_sum_assignment(distances)
    near = distances[rows, columns] < MATCH_DISTANCE
    order = float("nan")
    if near.sum() > 1:
        order = float(kendalltau(rows[near], columns[near]).statistic)
    of_true = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    closed = [place for place, shape in enumerate(goals) if _gap(shape) == 0]
    num_open = sum(p in of_true and _gap(shapes[of_true[p]]) > OPEN_GAP for p in closed)
    inked, goal_inked = image < INK, goal < INK
    union = float((inked | goal_inked).sum())
    return IconComparison(
        mse=float((image - goal).square().mean()),
        ssim=_ssim(image, goal),
        ink_iou=float((inked & goal_inked).sum()) / union if union else 1.0,
        num_paths=len(shapes),
        num_true=len(goals),
        num_matched=int(near.sum()),
        chamfer=float(distances[rows, columns].mean()) if len(rows) else float("nan"),
        num_redundant=_num_redundant(layers, image),
        num_closed=len(closed),
        num_incomplete=num_open + sum(p not in of_true for p in closed),
        num_open=num_open,
        order=order,
        num_commands=sum(len(path.segments) for shape in shapes for path in shape.subpaths),
        blank_mse=float((1 - goal).square().mean()),
    )


def _ssim(image: Tensor, goal: Tensor) -> float:
    pair = image[None, None], goal[None, None]
    found = structural_similarity_index_measure(*pair, data_range=1.0, kernel_size=11, sigma=1.5)
    assert isinstance(found, Tensor)
    return found.item()


def _lpips(images_B3SS: Tensor, others_B3SS: Tensor, network: LpipsNetwork) -> Tensor:
    try:
        found = learned_perceptual_image_patch_similarity(
            images_B3SS, others_B3SS, net_type=network, reduction="none", normalize=True
        )
    except OSError as error:
        raise ValueError(
            f"lpips: torchvision's weights of {network} are not there and do not load ({error})"
        ) from error
    return found.flatten().double()


def chamfer_distances(shapes: Sequence[Shape], others: Sequence[Shape]) -> Points:
    """Returns the chamfer distance of each pair of paths, (n, m).

    That is, for points along the outlines, the mean distance to the nearest of the other path,
    added up over both directions (DeepSVG). What a stroke is wide does not count.
    """
    found = np.zeros((len(shapes), len(others)))
    points = [path_points(shape) for shape in others]
    for row, shape in enumerate(shapes):
        own = path_points(shape)
        for column, other in enumerate(points):
            distances = cdist(own, other)
            found[row, column] = distances.min(axis=1).mean() + distances.min(axis=0).mean()
    return found


def path_points(shape: Shape, number: int = NUM_POINTS) -> Points:
    """Returns points along all subpaths of a path, as far apart as each other, (number, 2)."""
    starts, ends = [], []
    for subpath in shape.subpaths:
        points, _ = flattened(subpath, CHORD_TOLERANCE)
        if subpath.closed or len(points) == 1:
            points = np.concatenate([points, points[:1]])
        starts.append(points[:-1])
        ends.append(points[1:])
    start, end = np.concatenate(starts), np.concatenate(ends)
    lengths = np.hypot(*(end - start).T)
    passed = np.concatenate([[0.0], lengths.cumsum()])
    along = np.linspace(0, passed[-1], number)
    chord = np.clip(np.searchsorted(passed, along, side="right") - 1, 0, len(lengths) - 1)
    share = (along - passed[chord]) / np.maximum(lengths[chord], 1e-12)
    found: Points = start[chord] + share.clip(0, 1)[:, None] * (end - start)[chord]
    return found


def _gap(shape: Shape) -> float:
    """Returns the largest distance of an open subpath's ends; 0 where all are closed or filled."""
    if shape.fill is not None:
        return 0.0
    ends = [
        (subpath, subpath.segments[-1])
        for subpath in shape.subpaths
        if subpath.segments and not subpath.closed
    ]
    return max((math.dist((one.x, one.y), (end.x, end.y)) for one, end in ends), default=0.0)


@dataclass(frozen=True)
class _Layers:
    """Coverage (N, H, W) of fills and strokes, their luminance (N,), and whose they are (N,)."""

    covered: Tensor
    shade: list[float]
    owner: list[int]


def _layers(document: Document, size: int) -> _Layers:
    covered = document_coverage(document, (size, size), samples=4)
    shade: list[float] = []
    owner: list[int] = []
    for place, shape in enumerate(document.shapes()):
        for paint in (shape.fill, shape.stroke):
            if paint:
                shade.append(sum(paint.color) / 3)
                covered[len(owner)] *= paint.opacity * shape.opacity
                owner.append(place)
    return _Layers(covered, shade, owner)


def _drawn(layers: _Layers, without: int | None = None) -> Tensor:
    """Returns the luminance (H, W) of layers on white, without those of one shape."""
    image = torch.ones(layers.covered.shape[1:])
    for covered, shade, owner in zip(layers.covered, layers.shade, layers.owner, strict=True):
        if owner != without:
            image = torch.lerp(image, torch.full_like(image, shade), covered)
    return image


def _num_redundant(layers: _Layers, image: Tensor) -> int:
    return sum(
        int(((_drawn(layers, place) - image).abs() > SAME_PIXEL).double().mean() < REDUNDANT_SHARE)
        for place in sorted(set(layers.owner))
    )


FIELDS = (
    *("mse", "ssim", "ink_iou", "num_paths", "num_true", "num_matched", "chamfer", "num_redundant"),
    *("num_closed", "num_incomplete", "num_open", "order", "num_commands", "count_error"),
    "blank_mse",
)
MEANS = ("mse", "ssim", "ink_iou", "chamfer", "blank_mse")


class IconMetrics(QuestionMetric):
    """Means over icons; each counts once, on any number of ranks.

    `compute` returns, float64: `mse`, `ssim`, `ink_iou`, `chamfer`, `order` and `blank_mse` as
    means over icons; `empty`, the share of icons without a path; `count_accuracy`, that of icons
    with as many paths as the true one, `count_error`, by how many they differ; `matched_precision`,
    `matched_recall`, `matched_f1` of all paths together; `redundant_paths` as a share of predicted
    paths, `incomplete_shapes` and `open_shapes` of closed true ones; `num_paths` per icon and
    `num_commands` per path. With `encoders` also their scores: (1 + cosine) / 2 of the embeddings
    of both pictures, under the encoder's name; with `lpips` their LPIPS.

    Args:
        size: Side of the pictures that are compared, in pixels.
        encoders: Image encoders by name, as of DINOv2 (`dino`) or CLIP (`clip`); with weights only.
        lpips: Network whose LPIPS is `lpips`, of torchvision's weights, which must be there or be
            loaded; None: none.
    """

    def __init__(
        self,
        size: int = 96,
        encoders: Mapping[str, Encoder] | None = None,
        lpips: LpipsNetwork | None = None,
    ) -> None:
        self.encoders = dict(encoders or {})
        self.scores = [*self.encoders, *(["lpips"] if lpips else [])]
        super().__init__(num_values=len(FIELDS) + len(self.scores))
        self.size, self.lpips = size, lpips

    def update(
        self,
        ids: Sequence[str],
        compared: Sequence[IconComparison],
        similarities: Tensor | None = None,
    ) -> None:
        """Adds icons.

        Args:
            ids: Names of the icons; one that comes again does not count again.
            compared: What `compare_icons` says of each.
            similarities: (B, scores), what `similarities` returns; needed with scores.
        """
        values = torch.tensor(
            [[float(getattr(one, name)) for name in FIELDS] for one in compared],
            dtype=torch.float64,
        ).reshape(len(compared), len(FIELDS))
        if similarities is not None:
            values = torch.cat([values, similarities.double().cpu()], dim=1)
        self.add(["icons"] * len(compared), ids, values)

    def similarities(self, predicted: Sequence[Document], true: Sequence[Document]) -> Tensor:
        """Returns what each encoder, in [0, 1], and LPIPS say of each pair of icons, (B, scores).

        Raises:
            ValueError: The weights of LPIPS are not there and cannot be loaded.
        """
        if not self.scores:
            return torch.empty(len(predicted), 0)
        images = render([*predicted, *true], (self.size, self.size))
        pictures = [to_pil_image(image) for image in images]
        columns = []
        for encoder in self.encoders.values():
            embedded = encoder.encode_images(pictures).double()
            one, other = embedded[: len(predicted)], embedded[len(predicted) :]
            columns.append((1 + torch.cosine_similarity(one, other, dim=1)) / 2)
        if self.lpips is not None:
            columns.append(_lpips(images[: len(predicted)], images[len(predicted) :], self.lpips))
        return torch.stack(columns, dim=1)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means; nothing without an icon."""
        rows = self.rows().get("icons")
        if rows is None:
            return {}
        value = {name: rows[:, place] for place, name in enumerate(FIELDS)}
        total = {name: column.sum() for name, column in value.items()}

        def share(part: str, whole: str) -> Tensor:
            return total[part] / total[whole].clamp(min=1)

        means = {name: value[name].nanmean() for name in MEANS}
        places = enumerate(self.scores, start=len(FIELDS))
        return {
            **means,
            "order": value["order"].nanmean(),
            "empty": (value["num_paths"] == 0).double().mean(),
            "count_accuracy": (value["count_error"] == 0).double().mean(),
            "count_error": value["count_error"].mean(),
            "matched_precision": share("num_matched", "num_paths"),
            "matched_recall": share("num_matched", "num_true"),
            "matched_f1": 2
            * total["num_matched"]
            / (total["num_paths"] + total["num_true"]).clamp(min=1),
            "redundant_paths": share("num_redundant", "num_paths"),
            "incomplete_shapes": share("num_incomplete", "num_closed"),
            "open_shapes": share("num_open", "num_closed"),
            "num_paths": value["num_paths"].mean(),
            "num_commands": share("num_commands", "num_paths"),
            **{name: rows[:, place].mean() for place, name in places},
        }
