"""Fits the laws to loss curves.

L0, A and B enter a law linearly. For given exponents they are solved for, by weighted least squares
without negative coefficients, the weights being those of the Huber loss; so a search is left over
one to four numbers (variable projection), which is fast, and ends in the same place every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from .curve import LossCurve
from .laws import AnnealingLaw, Array, Exposure

HUBER_THRESHOLD = 1e-3
"""Of the relative residual, as in both papers (there of log losses, the same to first order)."""

MAX_POINTS = 256  # of a curve, when many curves are fitted
_ALPHA_BOUNDS = (0.03, 2.0)
_SHAPE_BOUNDS = (1e-3, 1e5)
_REWEIGHTINGS = 15
_MAX_CORRELATION = 0.9
_LOWEST_NOISE = 1e-5  # relative; of noiseless curves


@dataclass(frozen=True)
class LawFit:
    """A law and how well it describes what it was fitted to.

    Attributes:
        law: The law.
        r2: 1 - squared residuals / variance, over all points.
        residual_std: Of one loss, nats.
        cost: Sum of the Huber losses of the relative residuals.
        num_points: Losses fitted to.
    """

    law: AnnealingLaw
    r2: float
    residual_std: float
    cost: float
    num_points: int


@dataclass(frozen=True)
class AlphaPrior:
    """What is known of alpha before the fit: log-normal around `value`.

    Without it the long end of a short constant prefix is anyone's guess: from 8000 steps the loss
    at 16000 is missed by up to 0.03 nats, with it by 0.004 (100M and 400M public curves).

    Args:
        value: Alpha of an earlier run of the same family.
        spread: Standard deviation of log alpha.
    """

    value: float
    spread: float = 0.1


def fit_law(
    law: type[AnnealingLaw], curves: Sequence[LossCurve], start: AnnealingLaw | None = None
) -> LawFit:
    """Fits all constants of a law to curves of one model, every curve counting alike.

    Args:
        law: Which law.
        curves: At least one with a falling rate. Their begins should be cut off (`settled`).
        start: Search from here only: for data like those of an earlier fit.

    Raises:
        ValueError: There are fewer points than constants, or the rate is constant everywhere.
    """
    thinned = [_thin(curve) for curve in curves]
    exposures = [law.expose(curve.rates, curve.steps) for curve in thinned]
    losses = np.concatenate([curve.losses for curve in thinned])
    num_constants = 4 + len(law.STARTS[0])
    if len(losses) <= num_constants:
        raise ValueError(f"{len(losses)} points for the {num_constants} constants of {law.NAME}")
    if not any(curve.is_annealed for curve in curves):
        raise ValueError(f"{law.NAME}: the learning rate falls in no curve")
    mean = len(losses) / len(curves)
    weights = np.concatenate([np.full(len(c), mean / len(c)) for c in thinned if len(c)])
    names = list(law.STARTS[0])

    def solve(theta: Array) -> tuple[Array, float]:
        alpha, *values = np.exp(theta)
        shape = dict(zip(names, values, strict=True))
        parts = [_columns(law, exposure, alpha, shape) for exposure in exposures]
        return _solve(np.concatenate(parts), losses, weights)

    starts = [[0.5, *values.values()] for values in law.STARTS]
    if start is not None:
        starts = [[start.alpha, *start.shape.values()]]
    searches = [_minimize(lambda theta: solve(theta)[1], np.log(values)) for values in starts]
    found = min(searches, key=lambda search: float(search.fun))
    (L0, A, B), cost = solve(found.x)
    alpha, *values = np.exp(found.x).tolist()
    shape = dict(zip(names, values, strict=True))
    fitted = law(L0=float(L0), A=float(A), alpha=alpha, B=float(B), **shape)
    predicted = np.concatenate([fitted.predict(curve.rates, curve.steps) for curve in thinned])
    return _judge(fitted, losses, predicted, cost)


def fit_progress(
    annealed: AnnealingLaw, curve: LossCurve, alpha_prior: AlphaPrior | None = None
) -> LawFit:
    """Fits L0, A and alpha, B R being known: what a constant rate can teach.

    Args:
        annealed: A law whose B and constants of R are taken over.
        curve: The run's losses, its begin cut off.
        alpha_prior: What is known of alpha.

    Raises:
        ValueError: There are fewer than 4 points.
    """
    if len(curve) < 4:
        raise ValueError(f"{curve.name}: {len(curve)} losses for 3 constants")
    return _ProgressFit(annealed, curve, alpha_prior).fit(curve.losses)


def resample_progress(
    fit: LawFit,
    curve: LossCurve,
    alpha_prior: AlphaPrior | None,
    num_samples: int,
    generator: np.random.Generator,
) -> list[AnnealingLaw]:
    """Laws that the same run might have given: a block bootstrap of the residuals.

    The centre of the prior of alpha is drawn anew each time, so that the spread of the laws is that
    of what data and prior together leave open.

    Args:
        fit: By `fit_progress` of the same curve and prior.
        curve: The run's losses.
        alpha_prior: What is known of alpha.
        num_samples: Number of laws.
        generator: Source of randomness.
    """
    fitted = fit.law.predict(curve.rates, curve.steps)
    residuals = curve.losses - fitted
    residuals = residuals - residuals.mean()
    length = max(1, round(_inflation(residuals)))
    problem = _ProgressFit(fit.law, curve, alpha_prior)
    problem.fit(curve.losses)  # so that all resamples share its variance
    laws = []
    for _ in range(num_samples):
        starts = generator.integers(len(curve), size=-(-len(curve) // length))
        index = (starts[:, None] + np.arange(length)).reshape(-1)[: len(curve)] % len(curve)
        if alpha_prior is not None:
            centre = alpha_prior.value * np.exp(alpha_prior.spread * generator.normal())
            problem.alpha_prior = AlphaPrior(centre, alpha_prior.spread)
        laws.append(problem.fit(fitted + residuals[index]).law)
    return laws


class _ProgressFit:
    """The one-dimensional search for alpha; kept, since resamples share all but the losses."""

    def __init__(
        self, annealed: AnnealingLaw, curve: LossCurve, alpha_prior: AlphaPrior | None
    ) -> None:
        self.annealed = annealed
        self.alpha_prior = alpha_prior
        self.variance: float | None = None  # of the residuals, relative; by the first fit
        exposure = annealed.expose(curve.rates, curve.steps)
        self.progress = exposure.progress
        self.gain = annealed.B * annealed.respond(exposure, annealed.shape)

    def fit(self, losses: Array) -> LawFit:
        if self.alpha_prior is None:
            return self._search(losses, 0.0)
        if self.variance is None:
            residuals = 1 - self._predict(self._search(losses, 0.0).law) / losses
            spread = max(1.4826 * float(np.median(np.abs(residuals))), _LOWEST_NOISE)
            self.variance = spread**2 * _inflation(residuals)
        return self._search(losses, self.variance)

    def _search(self, losses: Array, variance: float) -> LawFit:
        """With the prior of alpha against residuals of that variance; 0: without."""

        def penalized(log_alpha: float) -> float:
            cost = self._solve(np.exp(log_alpha), losses)[1]
            if not variance or self.alpha_prior is None:
                return cost
            distance = (log_alpha - np.log(self.alpha_prior.value)) / self.alpha_prior.spread
            return float(cost + variance * distance**2 / 2)

        bounds = tuple(np.log(_ALPHA_BOUNDS))
        found = optimize.minimize_scalar(
            penalized, bounds=bounds, method="bounded", options={"xatol": 1e-4}
        )
        alpha = float(np.exp(found.x))
        (L0, A), cost = self._solve(alpha, losses)
        law = self.annealed
        fitted = type(law)(L0=float(L0), A=float(A), alpha=alpha, B=law.B, **law.shape)
        return _judge(fitted, losses, self._predict(fitted), cost)

    def _solve(self, alpha: float, losses: Array) -> tuple[Array, float]:
        columns = np.stack([np.ones_like(self.progress), self.progress**-alpha], axis=1)
        return _solve(columns, losses, np.ones_like(losses), self.gain)

    def _predict(self, law: AnnealingLaw) -> Array:
        return np.asarray(law.L0 + law.A * self.progress**-law.alpha - self.gain)


def _columns(
    law: type[AnnealingLaw], exposure: Exposure, alpha: float, shape: dict[str, float]
) -> Array:
    """(n, 3): what L0, A and B are multiplied with."""
    response = law.respond(exposure, shape)
    return np.stack([np.ones_like(response), exposure.progress**-alpha, -response], axis=1)


def _solve(
    columns: Array, losses: Array, weights: Array, gain: Array | float = 0.0
) -> tuple[Array, float]:
    """The coefficients, none negative, that minimise the Huber loss of the relative residuals.

    Args:
        columns: (n, k).
        losses: (n,), what `columns @ coefficients - gain` should be.
        weights: (n,).
        gain: (n,) or 0.

    Returns:
        (k,) coefficients and the weighted sum of the Huber losses.
    """
    scaled = columns / losses[:, None]
    target = (losses + gain) / losses
    trust = np.ones_like(losses)
    coefficients: Array = np.zeros(columns.shape[1])
    for _ in range(_REWEIGHTINGS):
        root = np.sqrt(weights * trust)
        left, right = scaled * root[:, None], target * root
        previous = coefficients
        coefficients = np.asarray(np.linalg.lstsq(left, right, rcond=None)[0], np.float64)
        if np.any(coefficients < 0):
            coefficients = optimize.nnls(left, right)[0]
        size = np.abs(scaled @ coefficients - target)
        trust = HUBER_THRESHOLD / np.maximum(size, HUBER_THRESHOLD)
        if np.allclose(coefficients, previous, rtol=1e-9, atol=0):
            break
    quadratic = np.minimum(size, HUBER_THRESHOLD)
    return coefficients, float(weights @ (quadratic * (size - quadratic / 2)))


def _minimize(objective: Callable[[Array], float], start: Array) -> optimize.OptimizeResult:
    """Nelder and Mead: the kinks of the weights do not disturb it, and the dimensions are few."""
    count = len(start)
    corners = np.concatenate([start[None], start + 0.3 * np.eye(count)])
    bounds = [tuple(np.log(_ALPHA_BOUNDS)), *[tuple(np.log(_SHAPE_BOUNDS))] * (count - 1)]
    return optimize.minimize(
        objective,
        start,
        method="Nelder-Mead",
        bounds=bounds,
        options={
            "initial_simplex": corners,
            "maxfev": 150 * count,
            "xatol": 1e-3,
            "fatol": 1e-10,
        },
    )


def _judge(law: AnnealingLaw, losses: Array, predicted: Array, cost: float) -> LawFit:
    residuals = losses - predicted
    total = float(np.sum((losses - losses.mean()) ** 2))
    r2 = 1 - float(np.sum(residuals**2)) / total if total > 0 else 0.0
    return LawFit(law, r2, float(residuals.std()), cost, len(losses))


def _inflation(residuals: Array) -> float:
    """How many neighbouring residuals are worth one independent one (of an AR(1) process)."""
    if len(residuals) < 3 or not residuals.any():
        return 1.0
    correlation = float(residuals[1:] @ residuals[:-1] / (residuals @ residuals))
    correlation = min(max(correlation, 0.0), _MAX_CORRELATION)
    return (1 + correlation) / (1 - correlation)


def _thin(curve: LossCurve) -> LossCurve:
    """At most `MAX_POINTS` of the points, evenly, the last among them."""
    if len(curve) <= MAX_POINTS:
        return curve
    index = np.linspace(0, len(curve) - 1, MAX_POINTS).round().astype(np.int64)
    return curve.points(index)
