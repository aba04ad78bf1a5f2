"""Weights of checkpoints in a merge, and the learning-rate decay that each of them emulates.

A merge of k + 1 checkpoints with weights c_0 ... c_k, oldest first, is the run replayed from the
oldest with the updates of interval i (from checkpoint i - 1 to i) multiplied by w_i = c_i + ... +
c_k: a decay 1 >= w_1 >= ... >= w_k >= 0. The two are the same thing in two notations
(`decay_to_weights`, `weights_to_decay`), exactly so for the recorded updates.

Sources: SMA, WMA, EMA "Model Merging in Pre-training" (arXiv 2505.12082, eq. 3-5); the dictionary
"Decay-Free Learning Rate Schedule via Checkpoint Merging" (WSM, arXiv 2507.17634, theorem 3.1); QAM
"Quadratic-Accurate Checkpoint Merging" (eq. 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, fsum, pi, sqrt
from typing import Literal, get_args

Scheme = Literal["sma", "wma", "ema", "wsm", "qam", "custom"]
DecayShape = Literal["linear", "cosine", "1-sqrt", "square", "exp"]
DECAY_SHAPES: tuple[DecayShape, ...] = get_args(DecayShape)
SUM_TOLERANCE = 1e-6  # of weights that a user wrote with a few digits


@dataclass(frozen=True)
class MergeScheme:
    """How the checkpoints of one run are weighted.

    Args:
        scheme: "sma": all alike. "wma": 1, 2, ..., N, the newest most. "ema": exponential moving
            average, started at the oldest. "wsm": emulates `decay_shape` (1-sqrt weights the
            *oldest* most: it emulates a rate that falls at once). "qam": the same with a correction
            that is exact where the loss is quadratic. "custom": `custom_weights`.
        decay_shape: Decay that "wsm" and "qam" emulate over the merged steps.
        ema_alpha: Weight of the newest in "ema", above 0, at most 1.
        min_lr_ratio: Last rate of the emulated decay as a fraction of the peak, from 0 to 1.
        custom_weights: Weights of "custom", oldest first: not negative, of sum 1.
        allow_unnormalized: Lets `custom_weights` be negative or sum to something else.

    Raises:
        ValueError: A value is out of range, or does not belong to the scheme.
    """

    scheme: Scheme = "sma"
    decay_shape: DecayShape = "linear"
    ema_alpha: float = 0.2
    min_lr_ratio: float = 0.0
    custom_weights: list[float] | None = None
    allow_unnormalized: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise ValueError(f"scheme: {self.scheme!r} is none of {', '.join(get_args(Scheme))}")
        if self.decay_shape not in DECAY_SHAPES:
            raise ValueError(
                f"decay_shape: {self.decay_shape!r} is none of {', '.join(DECAY_SHAPES)}"
            )
        if not 0 < self.ema_alpha <= 1:
            raise ValueError(f"ema_alpha: {self.ema_alpha} is not above 0 and at most 1")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio: {self.min_lr_ratio} is not from 0 to 1")
        if (self.scheme == "custom") != (self.custom_weights is not None):
            raise ValueError("custom_weights belong to scheme 'custom', which needs them")
        if self.custom_weights is not None and not self.allow_unnormalized:
            total = fsum(self.custom_weights)
            if min(self.custom_weights, default=0) < 0 or abs(total - 1) > SUM_TOLERANCE:
                raise ValueError(
                    f"custom_weights: {self.custom_weights} must not be negative and must sum to 1 "
                    f"(here {total:g}); set allow_unnormalized if that is meant"
                )

    @property
    def name(self) -> str:
        """A short name that tells schemes apart, such as `wsm_cosine_0.1`, for metrics."""
        parts: list[str] = [self.scheme]
        if self.scheme in ("wsm", "qam"):
            parts.append(self.decay_shape)
            parts += [f"{self.min_lr_ratio:g}"] if self.min_lr_ratio else []
        elif self.scheme == "ema":
            parts.append(f"{self.ema_alpha:g}")
        return "_".join(parts)

    def weights(self, num_checkpoints: int, lr_areas: Sequence[float] | None = None) -> list[float]:
        """The weight of every checkpoint, oldest first.

        Args:
            num_checkpoints: How many there are, at least 1.
            lr_areas: Cumulative learning rate at each, oldest first and increasing, where they are
                not evenly spaced: "wsm" and "qam" then read their decay there. Any origin and unit;
                the other schemes do not use it.

        Returns:
            `num_checkpoints` numbers of sum 1 (unless custom ones are allowed another).

        Raises:
            ValueError: The numbers do not fit together.
        """
        if num_checkpoints < 1:
            raise ValueError(f"a merge needs at least 1 checkpoint, got {num_checkpoints}")
        last = num_checkpoints - 1
        if self.custom_weights is not None:
            if len(self.custom_weights) != num_checkpoints:
                raise ValueError(
                    f"custom_weights: {len(self.custom_weights)} weights, but {num_checkpoints} "
                    "checkpoints"
                )
            return list(self.custom_weights)
        if self.scheme == "sma":
            return [1 / num_checkpoints] * num_checkpoints
        if self.scheme == "wma":
            total = num_checkpoints * (num_checkpoints + 1) / 2
            return [i / total for i in range(1, num_checkpoints + 1)]
        if self.scheme == "ema":
            # By the recursion A_1 = M_1, A_i = alpha M_i + (1 - alpha) A_(i-1): the closed form
            # that the paper prints for all i does not sum to 1.
            keep = 1 - self.ema_alpha
            newer = [self.ema_alpha * keep ** (last - i) for i in range(1, num_checkpoints)]
            return [keep**last, *newer]
        floor = self.min_lr_ratio
        decay = [
            floor + (1 - floor) * decay_fraction(self.decay_shape, t)
            for t in _decay_positions(num_checkpoints, lr_areas)
        ]
        return decay_to_weights(decay) if self.scheme == "wsm" else qam_weights(decay)


def decay_fraction(shape: DecayShape, t: float) -> float:
    """How much of the peak rate is left at the fraction `t` of a decay to 0.

    Args:
        shape: Shape of the decay.
        t: 0 (begin) to 1 (end).

    Returns:
        1 (for "exp" 0.9) at the begin, 0 at the end.
    """
    curves: dict[DecayShape, float] = {
        "linear": 1 - t,
        "cosine": (1 + cos(pi * t)) / 2,
        "1-sqrt": 1 - sqrt(t),
        "square": 1 - t * t,
        "exp": 1 - 0.1 ** (1 - t),  # from 0.9: WSM, figure 2, whose weights are those of an EMA
    }
    return curves[shape]


def decay_to_weights(decay: Sequence[float]) -> list[float]:
    """Merge weights c_0 ... c_k that emulate a decay (WSM, theorem 3.1).

    Args:
        decay: w_1 ... w_k, the fraction of the recorded learning rate in each interval between
            checkpoints: 1 >= w_1 >= ... >= w_k >= 0.

    Returns:
        k + 1 weights, oldest first, none negative, of sum 1.

    Raises:
        ValueError: The decay rises or leaves [0, 1].
    """
    path = [1.0, *decay, 0.0]
    if any(before < after for before, after in pairwise(path)):
        raise ValueError(f"a decay must fall from 1 to 0 without rising, got {list(decay)}")
    return [before - after for before, after in pairwise(path)]


def weights_to_decay(weights: Sequence[float]) -> list[float]:
    """The decay w_1 ... w_k that a merge with weights c_0 ... c_k emulates: their tail sums.

    Args:
        weights: Merge weights, oldest first.

    Returns:
        One number fewer: the fraction of the recorded learning rate in each interval.
    """
    return [fsum(weights[i:]) for i in range(1, len(weights))]


def qam_weights(decay: Sequence[float]) -> list[float]:
    """Merge weights that emulate a decay exactly where the loss is quadratic (QAM, eq. 7).

    The probabilities of a sum of independent events, of which the i-th happens with probability
    w_i: the same mean as `decay_to_weights`, with less variance.

    Args:
        decay: w_1 ... w_k, each in [0, 1].

    Returns:
        k + 1 weights, oldest first, none negative, of sum 1.

    Raises:
        ValueError: A value leaves [0, 1].
    """
    if any(not 0 <= w <= 1 for w in decay):
        raise ValueError(f"a decay lies between 0 and 1, got {list(decay)}")
    weights = [1.0]
    for w in decay:
        stays, moves = [*weights, 0.0], [0.0, *weights]
        weights = [(1 - w) * a + w * b for a, b in zip(stays, moves, strict=True)]
    return weights


def _decay_positions(num_checkpoints: int, lr_areas: Sequence[float] | None) -> list[float]:
    """Where in the emulated decay each interval between checkpoints lies, from 0 to 1."""
    num_intervals = num_checkpoints - 1
    if lr_areas is None or num_intervals == 0:
        return [i / num_checkpoints for i in range(1, num_checkpoints)]
    if len(lr_areas) != num_checkpoints or any(a >= b for a, b in pairwise(lr_areas)):
        raise ValueError(
            f"lr_areas: {num_checkpoints} increasing numbers are needed, got {list(lr_areas)}"
        )
    areas = [area - lr_areas[0] for area in lr_areas[1:]]
    end = areas[-1] * num_checkpoints / num_intervals  # one mean interval beyond the newest
    return [area / end for area in areas]
