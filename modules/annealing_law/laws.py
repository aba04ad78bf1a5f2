"""Laws of the loss under a changing learning rate, and the schedules that they are asked about.

All laws are L(s) = L0 + A P(s)^-alpha - B R(s): P is the progress that the rates up to step s
made, R the response to the drops of the rate among them. At a constant rate R says nothing, so its
constants come from runs that were annealed (`prior`); L0, A and alpha are the run's own.

Steps count optimizer steps from 0; the loss at step s is that after the step which used the rate
eta_s. Everything is numpy float64.

Sources: "Scaling Law with Learning Rate Annealing" (Tissue et al., arXiv 2408.11029) and "A
Multi-Power Law for Loss Curve Prediction" (Luo et al., arXiv 2503.12811).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from ..merge_weights import DECAY_SHAPES, DecayShape, decay_fraction

Array = NDArray[np.float64]
Steps = NDArray[np.int64]
LawName = Literal["relaxation", "mpl", "tissue"]
LAW_NAMES: tuple[LawName, ...] = get_args(LawName)

MAX_PIECES = 512  # of which a quarter for the warm-up
LOWEST_RATE = 1e-10  # eta^-gamma of the multi-power law is infinite at 0


# Schedules


@dataclass
class LRHistory:
    """The learning rate of every optimizer step, run-length encoded.

    Args:
        values: Rates in the order of their use.
        lengths: For how many steps each was used.
    """

    values: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def append(self, rate: float) -> None:
        """Adds a step."""
        if self.values and self.values[-1] == rate:
            self.lengths[-1] += 1
        else:
            self.values.append(rate)
            self.lengths.append(1)

    def __len__(self) -> int:
        return sum(self.lengths)

    def rates(self) -> Array:
        """The rate of every step."""
        return np.repeat(np.array(self.values, np.float64), self.lengths)

    @classmethod
    def of(cls, rates: Iterable[float]) -> "LRHistory":
        """Encodes the rates of all steps."""
        history = cls()
        for rate in rates:
            history.append(float(rate))
        return history


@dataclass(frozen=True)
class HypotheticalDecay:
    """A decay that the run might begin now.

    Args:
        name: Names it in metrics, tables and figures; None makes one such as "1-sqrt_20%".
        decay_ratio: Length as a fraction of the whole run, decay included, as `decay` of
            `WarmupStableDecay`; above 0, below 1. Give this or `decay_steps`.
        decay_steps: Length in optimizer steps.
        shape: Shape of the decay.
        min_ratio: Last rate as a fraction of the rate now, from 0 to below 1.

    Raises:
        ValueError: A value is out of range.
    """

    name: str | None = None
    decay_ratio: float | None = None
    decay_steps: int | None = None
    shape: DecayShape = "1-sqrt"
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if (self.decay_ratio is None) == (self.decay_steps is None):
            raise ValueError("a hypothetical decay needs either decay_ratio or decay_steps")
        if self.decay_ratio is not None and not 0 < self.decay_ratio < 1:
            raise ValueError(f"decay_ratio: {self.decay_ratio} is not between 0 and 1")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps: {self.decay_steps} is not at least 1")
        if self.shape not in DECAY_SHAPES:
            raise ValueError(f"shape: {self.shape!r} is none of {', '.join(DECAY_SHAPES)}")
        if not 0 <= self.min_ratio < 1:
            raise ValueError(f"min_ratio: {self.min_ratio} is not from 0 to below 1")

    @property
    def label(self) -> str:
        """`name`, or a name made of shape, length and floor."""
        if self.name is not None:
            return self.name
        length = f"{self.decay_ratio:.0%}" if self.decay_ratio else f"{self.decay_steps}steps"
        floor = f"_to_{self.min_ratio:g}" if self.min_ratio else ""
        return f"{self.shape}_{length}{floor}"

    def rates(self, num_steps: int, rate: float) -> Array:
        """The rates of the decay.

        Args:
            num_steps: Steps of the run so far.
            rate: The rate now.

        Returns:
            (decay steps,), beginning with `rate` itself, as the schedules of training do.
        """
        length = self.decay_steps
        if length is None:
            assert self.decay_ratio is not None
            length = max(1, round(num_steps * self.decay_ratio / (1 - self.decay_ratio)))
        left = np.array([decay_fraction(self.shape, i / length) for i in range(length)])
        return rate * (self.min_ratio + (1 - self.min_ratio) * left)


def warmup_steps(rates: Array) -> int:
    """Steps before the rate is first at its highest."""
    return int(np.argmax(rates)) if len(rates) else 0


def decay_start(rates: Array, tolerance: float = 1e-3) -> int:
    """The step after which the rate never is at its peak again: where the constant phase ends.

    Args:
        rates: The rate of every step.
        tolerance: Relative distance from the peak that still counts as the peak.

    Returns:
        The number of steps before the last decay; `len(rates)` when the rate has not fallen.
    """
    at_peak = np.flatnonzero(rates >= rates.max() * (1 - tolerance))
    return int(at_peak[-1]) + 1


# Laws


class Exposure(NamedTuple):
    """What a law reads from a schedule at n steps of interest; k pieces of changing rate.

    Attributes:
        progress: (n,) P.
        drops: (k,) by how much the rate falls in each piece.
        rates: (k,) the rate after it.
        areas: (n, k) sum of the rates since the piece, 0 before it.
    """

    progress: Array
    drops: Array
    rates: Array
    areas: Array


@dataclass(frozen=True)
class AnnealingLaw(ABC):
    """L(s) = L0 + A P(s)^-alpha - B R(s); the loss in nats.

    Attributes:
        NAME: In files and metrics.
        CONVENTION: What the constants refer to; constants of another one mean something else.
        STARTS: Starts of a fit: values of the constants of R.
        GAIN_EXPONENT: A run's B is the prior's times (prior's loss / run's loss) to this power,
            both at constant rate after as many steps.
        EXPONENT_SPREAD: Standard deviation of what that power may be.
    """

    L0: float
    A: float
    alpha: float
    B: float

    NAME: ClassVar[LawName]
    CONVENTION: ClassVar[str]
    STARTS: ClassVar[tuple[dict[str, float], ...]]
    # The published forms carry B over as it is; no one power suits all decays there, 0 to 3 fit.
    GAIN_EXPONENT: ClassVar[float] = 0.0
    EXPONENT_SPREAD: ClassVar[float] = 2.0

    @classmethod
    @abstractmethod
    def expose(cls, rates: Array, steps: Steps) -> Exposure:
        """Reads the schedule.

        Args:
            rates: (T,) rate of every step.
            steps: (n,) integer steps below T.
        """

    @classmethod
    @abstractmethod
    def respond(cls, exposure: Exposure, shape: dict[str, float]) -> Array:
        """R at the steps of `exposure`, of shape (n,), for constants as in `STARTS`."""

    @property
    def shape(self) -> dict[str, float]:
        """The constants of R."""
        return {name: getattr(self, name) for name in self.STARTS[0]}

    def predict(self, rates: Array, steps: Steps) -> Array:
        """The loss after `steps`, of their shape.

        Args:
            rates: (T,) rate of every step, warm-up included.
            steps: (n,) integer steps, from 0 to T - 1.

        Raises:
            ValueError: A step is outside the schedule.
        """
        steps = np.asarray(steps, np.int64)
        if len(steps) and not 0 <= steps.min() <= steps.max() < len(rates):
            raise ValueError(
                f"steps {steps.min()} to {steps.max()} are not all within the {len(rates)} steps "
                "of the schedule"
            )
        return self.evaluate(self.expose(rates, steps))

    def evaluate(self, exposure: Exposure) -> Array:
        """The loss at the steps of an exposure."""
        response = self.respond(exposure, self.shape)
        return np.asarray(self.at_constant_rate(exposure) - self.B * response)

    def at_constant_rate(self, exposure: Exposure) -> Array:
        """L0 + A P^-alpha at the steps of an exposure."""
        return np.asarray(self.L0 + self.A * exposure.progress**-self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"law": self.NAME, "convention": self.CONVENTION, "parameters": asdict(self)}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "AnnealingLaw":
        """The inverse of `to_dict`.

        Raises:
            ValueError: There is no such law, or it has another convention or other constants.
        """
        law = LAWS.get(content.get("law", ""))
        if law is None:
            raise ValueError(f"law: {content.get('law')!r} is none of {', '.join(LAWS)}")
        if content.get("convention") != law.CONVENTION:
            raise ValueError(
                f"{law.NAME}: fitted with the convention {content.get('convention')!r}, but these "
                f"constants are for {law.CONVENTION!r}: fit it again"
            )
        parameters = content.get("parameters", {})
        names = [entry.name for entry in fields(law)]
        if set(parameters) != set(names):
            raise ValueError(f"{law.NAME}: expected the parameters {', '.join(names)}")
        return law(**{name: float(parameters[name]) for name in names})


@dataclass(frozen=True)
class RelaxationLaw(AnnealingLaw):
    """Progress by the square root of the rate; noise that relaxes to each new rate.

    P = sum of peak sqrt(eta / peak): with decoupled weight decay the weights turn by an angle of
    about sqrt(2 eta wd) per step in equilibrium (Kosson et al., arXiv 2305.17212), so a low rate
    gets further than its share. R = sum over the drops of (drop / peak) (1 - (1 + C S)^-beta), S
    being the sum of the rates since: exact for the noise of SGD on a quadratic whose curvatures,
    weighted by their noise, have a gamma distribution of shape beta. It is the multi-power law
    without gamma, and with one constant less it predicts left-out curves better (see
    `recipes/model_merging/results/annealing_law.md`, which also has the evidence for the exponent).
    The warm-up adds progress and nothing else.
    """

    C: float
    beta: float

    NAME = "relaxation"
    CONVENTION = "sqrt-progress; warm-up adds progress only; drops relative to the peak"
    STARTS = ({"C": 100.0, "beta": 1.5}, {"C": 400.0, "beta": 0.4})
    GAIN_EXPONENT = 2.0
    EXPONENT_SPREAD = 0.3
    PROGRESS_POWER: ClassVar[float] = 0.5

    @classmethod
    def expose(cls, rates: Array, steps: Steps) -> Exposure:
        """Reads the schedule."""
        peak, warmup = rates.max(), warmup_steps(rates)
        progress = peak * np.cumsum((rates / peak) ** cls.PROGRESS_POWER)
        drops, after, areas = _pieces(rates, steps, warmup, with_warmup=False)
        return Exposure(progress[steps], drops / peak, after, areas)

    @classmethod
    def respond(cls, exposure: Exposure, shape: dict[str, float]) -> Array:
        """R at the steps of `exposure`."""
        return _power_response(shape["C"] * exposure.areas, shape["beta"]) @ exposure.drops


@dataclass(frozen=True)
class MultiPowerLaw(AnnealingLaw):
    """The multi-power law (Luo et al.), with the conventions of its authors' code.

    P is the sum of all rates; R = sum over all changes of drop (1 - (1 + C eta^-gamma S)^-beta),
    the rises of the warm-up included, which have a negative drop.
    """

    C: float
    beta: float
    gamma: float

    NAME = "mpl"
    CONVENTION = "warm-up included in the sums, its rises as negative drops"
    STARTS = (
        {"C": 2.0, "beta": 0.6, "gamma": 0.6},
        {"C": 0.2, "beta": 1.5, "gamma": 0.6},
        {"C": 30.0, "beta": 0.5, "gamma": 0.3},
    )

    @classmethod
    def expose(cls, rates: Array, steps: Steps) -> Exposure:
        """Reads the schedule."""
        pieces = _pieces(rates, steps, warmup_steps(rates), with_warmup=True)
        return Exposure(np.cumsum(rates)[steps], *pieces)

    @classmethod
    def respond(cls, exposure: Exposure, shape: dict[str, float]) -> Array:
        """R at the steps of `exposure`."""
        speed = shape["C"] * exposure.rates ** -shape["gamma"]
        return _power_response(speed * exposure.areas, shape["beta"]) @ exposure.drops


@dataclass(frozen=True)
class TissueLaw(AnnealingLaw):
    """The momentum law (Tissue et al., equation 1); its constant C is `B` here.

    P = S1, the sum of the rates, those of the warm-up counted at the peak. R = S2 = sum of m_i with
    m_i = lambda m_(i-1) + eta_(i-1) - eta_i and lambda = 0.999. It falls for ever at rate 0, so it
    is for realistic decays only.
    """

    NAME = "tissue"
    CONVENTION = "warm-up counted at the peak rate; lambda 0.999"
    STARTS = ({},)
    MOMENTUM: ClassVar[float] = 0.999

    @classmethod
    def expose(cls, rates: Array, steps: Steps) -> Exposure:
        """Reads the schedule; the response is ready there, as one piece."""
        rates = rates.copy()
        rates[: warmup_steps(rates)] = rates.max()
        drops = -np.diff(rates, prepend=rates[0])
        momentum = signal.lfilter([1.0], [1.0, -cls.MOMENTUM], drops)
        response = np.cumsum(momentum)[steps]
        return Exposure(np.cumsum(rates)[steps], np.ones(1), np.ones(1), response[:, None])

    @classmethod
    def respond(cls, exposure: Exposure, shape: dict[str, float]) -> Array:
        """R at the steps of `exposure`."""
        return exposure.areas @ exposure.drops


LAWS: dict[str, type[AnnealingLaw]] = {
    law.NAME: law for law in (RelaxationLaw, MultiPowerLaw, TissueLaw)
}


def _power_response(x: Array, beta: float) -> Array:
    """1 - (1 + x)^-beta, exact for small x."""
    return np.asarray(-np.expm1(-beta * np.log1p(x)))


def _pieces(
    rates: Array, steps: Steps, warmup: int, *, with_warmup: bool
) -> tuple[Array, Array, Array]:
    """Drops, rates and areas of the changes of rate, neighbours taken together to `MAX_PIECES`.

    Only steps with a change cost anything, and a decay of a million steps no more than 384 pieces.
    """
    areas = np.cumsum(rates)
    drops = -np.diff(rates, prepend=rates[0])
    changes = np.flatnonzero(drops).astype(np.int64)
    split = partial(_split, changes)
    groups = split(warmup + 1, len(rates), MAX_PIECES * 3 // 4)
    if with_warmup:
        groups = split(0, warmup + 1, MAX_PIECES // 4) + groups
    if not groups:
        return np.zeros(0), np.zeros(0), np.zeros((len(steps), 0))
    weights = [np.abs(drops[group]) / np.abs(drops[group]).sum() for group in groups]
    pairs = list(zip(weights, groups, strict=True))
    total = np.array([drops[group].sum() for group in groups])
    log_rates = np.log(np.maximum(rates, LOWEST_RATE))
    after = np.exp([weight @ log_rates[group] for weight, group in pairs])
    before = np.array([weight @ areas[group - 1] for weight, group in pairs])
    first = np.array([group[0] for group in groups])
    since = np.maximum(areas[steps][:, None] - before, 0.0)
    return total, after, np.where(steps[:, None] >= first, since, 0.0)


def _split(changes: Steps, first: int, end: int, num_groups: int) -> list[Steps]:
    """The changes from `first` to before `end`, in at most so many groups of neighbours."""
    chosen = changes[(changes >= first) & (changes < end)]
    return np.array_split(chosen, min(num_groups, len(chosen))) if len(chosen) else []
