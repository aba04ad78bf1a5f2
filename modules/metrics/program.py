"""How far a program is from the one that made a picture: by pixels, by text, by layers.

What is compared are facts (`ProgramFacts`), made by one renderer; programs are canonical, or exact
matches mean nothing.

Shapes: H rows and W columns of pictures, L layers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.text import edit_distance

Matrix = NDArray[np.float64]

TOLERANCE, SHARE = (
    8 / 255,
    0.995,
)  # of an execution match: error of a channel, share of pixels
GOAL_SIGMA, GOAL_SHARE = 0.1, 0.99  # of Tree Diffusion's goal
MATCHED_IOU = 0.5  # least overlap of two layers that are taken for the same
MAX_LAYERS = 8  # layers from which on pictures are counted together

NAMES = (
    *(
        "mse",
        "ssim",
        "exec_match",
        "goal_reached",
        "exact_match",
        "line_edit",
        "length_ratio",
    ),
    *("layer_count", "layer_iou", "visible_iou", "mode", "order", "color", "opacity"),
    *("valid_unmasked", "blank_mse", "blank_exec_match"),
)


class ProgramFacts(NamedTuple):
    """What is compared of a program.

    Attributes:
        image: (3, H, W) in [0, 1].
        lines: The canonical text, by line.
        covered: What each layer covers, hidden parts included, (L, H, W) in [0, 1].
        visible: What of it is not hidden by opaque layers of mode normal.
        colors: Of the layers.
        modes: Of the layers; that of the lowest does not count.
        opacities: Of the layers.
        cell: Pixels of a cell, for overlaps.
    """

    image: Tensor
    lines: Sequence[str]
    covered: Tensor
    visible: Tensor
    colors: Sequence[int]
    modes: Sequence[str]
    opacities: Sequence[float]
    cell: float


def exec_match(image: Tensor, target: Tensor) -> bool:
    """Whether 99.5 % of the pixels are right within 8 / 255 in each channel."""
    wrong = (image - target).abs().amax(dim=0) > TOLERANCE
    return bool(wrong.float().mean() <= 1 - SHARE)


def goal_reached(image: Tensor, target: Tensor) -> bool:
    """Whether Tree Diffusion (arXiv 2405.20519) would stop its search here.

    That is, the mean log-density of the differences under a Gaussian of sigma 0.1 is above 0.99 of
    its maximum.
    """
    highest = -math.log(GOAL_SIGMA * math.sqrt(2 * math.pi))
    mean = highest - float((image - target).square().mean()) / (2 * GOAL_SIGMA**2)
    return mean > GOAL_SHARE * highest


def compare_programs(found: ProgramFacts, target: ProgramFacts) -> dict[str, float]:
    """Returns the numbers of `NAMES` that this pair has.

    `mode`, `order` and `opacity` count pairs of layers of the target that overlap by at least a
    cell and whose counterparts were found (intersection over union of 0.5 or more): whether they
    are blended alike; for pairs that are blended by normal 1 if in the same order, else -1
    (Kendall's tau); whether both have the right opacities. `color` counts layers that were found.
    """
    white = torch.ones_like(target.image)
    values = {
        "mse": float((found.image - target.image).square().mean()),
        "ssim": float(_ssim(found.image, target.image)),
        "exec_match": float(exec_match(found.image, target.image)),
        "goal_reached": float(goal_reached(found.image, target.image)),
        "exact_match": float(list(found.lines) == list(target.lines)),
        "line_edit": line_edit(found.lines, target.lines),
        "length_ratio": len(found.lines) / len(target.lines),
        "layer_count": float(len(found.colors) == len(target.colors)),
        "visible_iou": _mean_iou(_ious(found.visible, target.visible)),
        "blank_mse": float((white - target.image).square().mean()),
        "blank_exec_match": float(exec_match(white, target.image)),
    }
    ious = _ious(found.covered, target.covered)
    values["layer_iou"] = _mean_iou(ious)
    pairs = {t: f for f, t in _matching(ious) if ious[f, t] >= MATCHED_IOU}
    if pairs:
        values["color"] = _mean(found.colors[f] == target.colors[t] for t, f in pairs.items())
    known = [
        (low, high)
        for low, high in combinations(range(len(target.colors)), 2)
        if low in pairs and high in pairs and _overlap(target, low, high) >= 1
    ]
    if known:
        above = {pair: max(pairs[pair[0]], pairs[pair[1]]) for pair in known}
        values["mode"] = _mean(found.modes[above[pair]] == target.modes[pair[1]] for pair in known)
        values["opacity"] = _mean(
            found.opacities[pairs[place]] == target.opacities[place]
            for pair in known
            for place in pair
        )
    ordered = [pair for pair in known if target.modes[pair[1]] == "normal"]
    if ordered:
        values["order"] = 2 * _mean(pairs[low] < pairs[high] for low, high in ordered) - 1
    return values


class ProgramScores(Metric):
    """Means of what `compare_programs` returns, over all programs and by the number of layers.

    `compute` returns by name of `NAMES` the mean over programs that have the number, and `psnr` in
    dB; with `/<n>_layers` after the name those of targets with so many layers. float64.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("sums", "counts"):
            empty = torch.zeros(MAX_LAYERS, len(NAMES), dtype=torch.float64)
            self.add_state(name, empty, dist_reduce_fx="sum")

    def update(self, values: Sequence[Mapping[str, float]], num_layers: Sequence[int]) -> None:
        """Adds programs.

        Args:
            values: Of each.
            num_layers: Of each target, 1 or more.
        """
        for row, number in zip(values, num_layers, strict=True):
            group = min(number, MAX_LAYERS) - 1
            for name, value in row.items():
                place = NAMES.index(name)
                self.sums[group, place] += value
                self.counts[group, place] += 1

    def compute(self) -> dict[str, Tensor]:
        """Returns the means."""
        found = {}
        groups = [("", slice(None))]
        used = self.counts[:, 0].nonzero().flatten().tolist()
        if len(used) > 1:
            groups += [(f"/{group + 1}_layers", slice(group, group + 1)) for group in used]
        for suffix, rows in groups:
            sums, counts = self.sums[rows].sum(dim=0), self.counts[rows].sum(dim=0)
            for place, name in enumerate(NAMES):
                if counts[place]:
                    found[f"{name}{suffix}"] = sums[place] / counts[place]
            if counts[0]:
                mse = sums[0] / counts[0]
                found[f"psnr{suffix}"] = -10 * mse.clamp(min=1e-10).log10()
        return found


class TokenScores(Metric):
    """Cross-entropy of tokens, and the share of right ones, over all and by kind.

    `compute` returns `loss` in nats, `token_accuracy`, and `token_accuracy_<kind>` of kinds that
    occurred; float64.

    Args:
        kinds: Names of the kinds, by number.
    """

    full_state_update = False
    loss: Tensor
    right: Tensor
    counts: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        for name, shape in (
            ("loss", ()),
            ("right", (len(kinds),)),
            ("counts", (len(kinds),)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, right: Tensor, kind: Tensor) -> None:
        """Adds tokens.

        Args:
            loss: Of each, in nats, (n,).
            right: Whether each was the likeliest, (n,) bool.
            kind: Number of the kind of each, (n,) int64.
        """
        self.loss += loss.double().sum()
        self.right.index_add_(0, kind, right.double())
        self.counts.index_add_(0, kind, torch.ones_like(right, dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Returns the means."""
        total = self.counts.sum().clamp(min=1)
        found = {"loss": self.loss / total, "token_accuracy": self.right.sum() / total}
        for place, name in enumerate(self.kinds):
            if self.counts[place]:
                found[f"token_accuracy_{name}"] = self.right[place] / self.counts[place]
        return found


def line_edit(lines: Sequence[str], target: Sequence[str]) -> float:
    """Returns the Levenshtein distance over lines, divided by the greater number of them."""
    letters: dict[str, str] = {}
    texts = [
        "".join(letters.setdefault(line, chr(0x4E00 + len(letters))) for line in each)
        for each in (lines, target)
    ]
    distance = float(edit_distance([texts[0]], [texts[1]], reduction="sum"))
    return distance / max(len(lines), len(target))


def _ssim(image: Tensor, target: Tensor) -> Tensor:
    value = structural_similarity_index_measure(
        image[None].double(), target[None].double(), data_range=1.0
    )
    assert isinstance(value, Tensor)
    return value


def _ious(found_LHW: Tensor, target_LHW: Tensor) -> Matrix:
    """Returns intersection over union of all pairs, (found layers, target layers)."""
    a, b = found_LHW.flatten(1).double(), target_LHW.flatten(1).double()
    both = a @ b.T
    either = a.square().sum(1)[:, None] + b.square().sum(1) - both
    ious: Matrix = (both / either.clamp(min=1e-9)).numpy()
    return ious


def _matching(ious: Matrix) -> list[tuple[int, int]]:
    """Returns the pairs of layers whose overlaps are the greatest in sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(ious, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _mean_iou(ious: Matrix) -> float:
    """Returns the mean over layers; one without a counterpart counts 0."""
    return float(sum(ious[pair] for pair in _matching(ious)) / max(ious.shape))


def _overlap(facts: ProgramFacts, a: int, b: int) -> float:
    """Returns what two layers share, in cells."""
    return float((facts.covered[a] * facts.covered[b]).sum()) / facts.cell**2


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)
