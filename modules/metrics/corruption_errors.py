"""Error rates under corruptions, as ModelNet40-C and PointCloud-C define them.

ModelNet40-C (Sun et al. 2022): ER_c is the mean over severities of the error rates on corruption c,
ER_cor the plain mean over corruptions. PointCloud-C (Ren et al. 2022): errors relative to DGCNN's.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean

import torch
from torch import Tensor
from torchmetrics import Metric

from ..corruption_names import (
    CLEAN,
    MODELNET40_C,
    MODELNET40_C_NAMES,
    POINTCLOUD_C,
    SEVERITIES,
)

NAMES = (CLEAN, *MODELNET40_C_NAMES, *POINTCLOUD_C)
DGCNN_ACCURACIES = {
    CLEAN: 0.926,
    "scale": 0.906,
    "jitter": 0.684,
    "rotate": 0.785,
    "dropout_global": 0.752,
    "dropout_local": 0.793,
    "add_global": 0.705,
    "add_local": 0.725,
}
Rates = Mapping[tuple[str, int], float]


class CorruptionErrorRates(Metric):
    """Counts errors per corruption and severity, and takes the means of the benchmarks.

    The counts are sums of int64, so that the result does not depend on how samples are split into
    batches or over processes, as long as each is counted once.

    `compute` returns what `summarize_error_rates` does, as float64 scalars; with `num_classes` also
    the same with `macro_er` for `er`: 1 minus the mean over classes of the recall, classes without
    a sample left out.

    Args:
        num_classes: K, for the means over classes; None leaves them out.
    """

    full_state_update = False
    wrong: Tensor
    total: Tensor

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        self.num_classes = num_classes
        # Without classes all samples are counted as of class 0.
        shape = (len(NAMES), 1 + len(SEVERITIES), num_classes or 1)
        self.add_state("wrong", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, corruption: str, severity: int) -> None:
        """Counts a batch.

        Args:
            predictions: Predicted classes, (B,), integers.
            labels: True classes, (B,), int64.
            corruption: One of the names of the two benchmarks, or "clean".
            severity: 1 to 5; 0 for "clean".

        Raises:
            ValueError: Shapes that differ or are not (B,), logits in place of classes, a corruption
                or severity that there is not, a label outside of 0 .. K - 1.
        """
        if predictions.shape != labels.shape or labels.ndim != 1:
            raise ValueError(
                "predictions and labels must both have the shape (B,), got "
                f"{tuple(predictions.shape)} and {tuple(labels.shape)}: take argmax of logits"
            )
        if predictions.is_floating_point():
            raise ValueError(f"predictions must be classes, got {predictions.dtype}")
        check_cell(corruption, severity)
        if self.num_classes is None:
            classes = torch.zeros_like(labels)
        else:
            classes = labels
            if labels.numel() and (labels.min() < 0 or labels.max() >= self.num_classes):
                raise ValueError(
                    f"labels must be in 0 .. {self.num_classes - 1}, got {labels.min()} .. "
                    f"{labels.max()}"
                )
        row = NAMES.index(corruption)
        self.total[row, severity].index_add_(0, classes, torch.ones_like(labels))
        self.wrong[row, severity].index_add_(0, classes, (predictions != labels).long())

    def compute(self) -> dict[str, Tensor]:
        """Returns the error rates of all that was seen; see `summarize_error_rates`."""
        micro = self.wrong.sum(-1).double() / self.total.sum(-1)
        found = summarize_error_rates(self._rates(micro))
        if self.num_classes is not None:
            macro = (self.wrong.double() / self.total).nanmean(dim=-1)
            found |= summarize_error_rates(self._rates(macro), "macro_er", relative=False)
        return {
            name: self.wrong.new_tensor(rate, dtype=torch.float64) for name, rate in found.items()
        }

    def _rates(self, rates: Tensor) -> dict[tuple[str, int], float]:
        """The cells that have a sample."""
        seen = self.total.sum(-1).nonzero().tolist()
        values = rates.tolist()
        return {(NAMES[row], severity): values[row][severity] for row, severity in seen}


def summarize_error_rates(
    rates: Rates, prefix: str = "er", relative: bool = True
) -> dict[str, float]:
    """Takes the means of the two benchmarks over a table of error rates.

    A name says what its mean is over. `er_cor`, `er_density`, `er_noise` and `er_transformation`
    are the benchmark's: over 15, or 5 and 5 and 5, corruptions and the severities 1 to 5. Where
    corruptions are missing, their number is added: `er_cor_13` and `er_density_3` without occlusion
    and LiDAR. Where severities are missing, they are: `er_cor_13_s135`, `er/gaussian_s135`. Only
    corruptions that have all severities that any of the benchmark has are part of such a mean.

    Args:
        rates: Error rate in [0, 1] (or percent) for each (corruption, severity); ("clean", 0).
        prefix: First part of the names.
        relative: Whether to add `mce` and `rmce`, which take rates in [0, 1].

    Returns:
        `er/<corruption>/<severity>` for each cell, `er/<corruption>`, the means above, `er_clean`;
        `mce` once all 7 corruptions of PointCloud-C have all levels, `rmce` if clean clouds were
        seen as well.

    Raises:
        ValueError: A corruption or severity that there is not.
    """
    for corruption, severity in rates:
        check_cell(corruption, severity)
    found: dict[str, float] = {}
    if (CLEAN, 0) in rates:
        found[f"{prefix}_clean"] = rates[CLEAN, 0]
    for corruption in NAMES[1:]:
        cells = {s: rates[corruption, s] for s in SEVERITIES if (corruption, s) in rates}
        for severity, rate in cells.items():
            found[f"{prefix}/{corruption}/{severity}"] = rate
        if cells:
            found[f"{prefix}/{corruption}{_severity_suffix(cells)}"] = fmean(cells.values())

    severities = {s for c, s in rates if c in MODELNET40_C_NAMES}
    suffix = _severity_suffix(severities)
    for group, names in {**MODELNET40_C, "cor": MODELNET40_C_NAMES}.items():
        whole = [c for c in names if severities and all((c, s) in rates for s in severities)]
        if whole:
            count = "" if len(whole) == len(names) else f"_{len(whole)}"
            mean = fmean(found[f"{prefix}/{c}{suffix}"] for c in whole)
            found[f"{prefix}_{group}{count}{suffix}"] = mean

    if relative and all((c, s) in rates for c in POINTCLOUD_C for s in SEVERITIES):
        accuracies = {c: 1 - found[f"{prefix}/{c}"] for c in POINTCLOUD_C}
        found["mce"] = mean_corruption_error(accuracies)
        if (CLEAN, 0) in rates:
            clean = 1 - rates[CLEAN, 0]
            found["rmce"] = relative_mean_corruption_error({CLEAN: clean, **accuracies})
    return found


def mean_corruption_error(accuracies: Mapping[str, float]) -> float:
    """Takes mCE of PointCloud-C: errors as multiples of DGCNN's, averaged over the 7 corruptions.

    As in the benchmark's own code, accuracies and ratios are rounded to 3 decimals first.

    Args:
        accuracies: Overall accuracy in [0, 1] for each corruption, the mean of its 5 levels.
    """
    errors = {c: 1 - round(accuracies[c], 3) for c in POINTCLOUD_C}
    return fmean(round(errors[c] / (1 - DGCNN_ACCURACIES[c]), 3) for c in POINTCLOUD_C)


def relative_mean_corruption_error(accuracies: Mapping[str, float]) -> float:
    """Takes RmCE of PointCloud-C: losses against clean clouds as multiples of DGCNN's, averaged.

    Args:
        accuracies: As for `mean_corruption_error`, and that on "clean" clouds.
    """
    ours = {c: round(accuracies[c], 3) for c in (CLEAN, *POINTCLOUD_C)}
    losses = {c: ours[CLEAN] - ours[c] for c in POINTCLOUD_C}
    theirs = {c: DGCNN_ACCURACIES[CLEAN] - DGCNN_ACCURACIES[c] for c in POINTCLOUD_C}
    return fmean(round(losses[c] / theirs[c], 3) for c in POINTCLOUD_C)


def check_cell(corruption: str, severity: int) -> None:
    """Refuses a corruption or severity that there is not.

    Raises:
        ValueError: With what there is.
    """
    if corruption not in NAMES:
        raise ValueError(f"unknown corruption '{corruption}': there are {', '.join(NAMES)}")
    allowed = (0,) if corruption == CLEAN else SEVERITIES
    if severity not in allowed:
        numbers = ", ".join(map(str, allowed))
        raise ValueError(f"severity of {corruption} must be one of {numbers}, got {severity}")


def _severity_suffix(severities: Iterable[int]) -> str:
    """Nothing for all five, else `_s` and the severities."""
    ordered = tuple(sorted(severities))
    return "" if ordered == SEVERITIES else "_s" + "".join(map(str, ordered))
