"""Fits the laws of `scaling_law` to runs; `scaling_law_analysis` says how far to trust the fits.

The error law is linear in its logarithm, log delta = log k + gamma_d log D + gamma_g log log2 G
- gamma_n log N, so least squares gives the start and the Huber loss on log residuals is convex:
L-BFGS finds its one minimum. The columns are brought to mean 0 and scale 1 first: log N of 18 and
log log2 G of 2 would not do with one step size.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import optimize

from .run_table import BaselineTable, DeltaTable
from .scaling_law import Array, Chinchilla, EPMLaw, QATErrorLaw

HUBER_THRESHOLD = 1e-3
"""Of log residuals; Hoffmann et al. 2022 use it for losses."""

Residual = Literal["log", "raw"]
_NUM_ROUGH, _NUM_POLISHED = 30, 8
_VARIABLES = ("num_parameters", "group_size", "num_tokens")


# The error of quantisation


def drop_non_positive(table: DeltaTable, name: str = "the table") -> DeltaTable:
    """The runs with delta > 0, whose logarithm exists; warns about the others.

    Noise can make delta negative in small runs. To leave them out biases the law upwards: when
    there are many, fit the raw delta.
    """
    is_positive = table.delta > 0
    if not is_positive.all():
        warnings.warn(
            f"{name}: {np.sum(~is_positive)} of {len(table)} runs have delta <= 0 and no logarithm:"
            " left out of this fit; a fit on the raw delta keeps them",
            stacklevel=2,
        )
    return table.select(is_positive)


def fit_error_law(
    table: DeltaTable,
    *,
    with_tokens: bool = True,
    positive: bool = True,
    residual: Residual = "log",
) -> QATErrorLaw:
    """Fits equation (5).

    Args:
        table: Runs of one precision.
        with_tokens: False fits the law without D (gamma_d = 0), for comparison.
        positive: Keep every exponent at or above 0, as the paper demands: for predictions. Without
            it the data decide, which shows whether they establish the signs. The fits are the same
            law wherever the data agree with the paper.
        residual: "log": Huber loss on log residuals, for errors in proportion to delta; runs with
            delta <= 0 are dropped with a warning. "raw": least squares on delta itself, for errors
            of one size; keeps all runs.

    Raises:
        ValueError: The runs cannot tell the exponents apart: a quantity has one value only, or two
            vary together.
    """
    table = table if residual == "raw" else drop_non_positive(table)
    features = _error_law_features(table, with_tokens)
    mean = features.mean(axis=0)
    scale = features.std(axis=0)
    design = np.column_stack([np.ones(len(table)), (features - mean) / scale])
    solve = _fit_positive_slopes if positive else _fit_log_linear
    level, *slopes = solve(design, np.zeros(len(table)), table.delta, residual)[0]
    exponents = np.array(slopes) / scale
    gamma_n, gamma_g, *gamma_d = exponents.tolist()
    return QATErrorLaw(
        k=float(np.exp(level - mean @ exponents)),
        gamma_n=gamma_n,
        gamma_d=gamma_d[0] if with_tokens else 0.0,
        gamma_g=gamma_g,
    )


def fit_epm_law(table: DeltaTable, chinchilla: Chinchilla, *, residual: Residual = "log") -> EPMLaw:
    """Fits equation (3): one constant for each group size, against the same Chinchilla law.

    Args:
        table: Runs of one precision.
        chinchilla: Loss of the unquantised model.
        residual: As for `fit_error_law`.
    """
    table = table if residual == "raw" else drop_non_positive(table)
    sizes = np.unique(table.group_size)
    # delta = c A / N^alpha with c = eff^-alpha - 1: a constant per group size in the logarithm.
    design = (table.group_size[:, None] == sizes).astype(np.float64)
    offset = np.log(chinchilla.A) - chinchilla.alpha * np.log(table.num_parameters)
    log_c, _ = _fit_log_linear(design, offset, table.delta, residual)
    multipliers = (1 + np.exp(log_c)) ** (-1 / chinchilla.alpha)
    return EPMLaw(chinchilla, dict(zip(sizes.tolist(), multipliers.tolist(), strict=True)))


def _error_law_features(table: DeltaTable, with_tokens: bool) -> Array:
    """Columns -log N, log log2 G and, when asked for, log D.

    Raises:
        ValueError: They do not determine the exponents.
    """
    names = _VARIABLES if with_tokens else _VARIABLES[:2]
    if np.any(table.group_size <= 1):
        raise ValueError(
            "group_size 1: the law is 0 there and has no logarithm; leave such runs out"
        )
    for name in names:
        values = np.unique(getattr(table, name))
        if len(values) < 2:
            found = f"one value ({values[0]:g})" if len(values) else "no value"
            raise ValueError(
                f"{name} has {found} in the {len(table)} runs to fit: its exponent needs runs of "
                "at least two"
            )
    columns = [-np.log(table.num_parameters), np.log(np.log2(table.group_size))]
    features = np.stack([*columns, np.log(table.num_tokens)][: len(names)], axis=1)
    if np.linalg.matrix_rank(features - features.mean(axis=0), rtol=1e-9) < len(names):
        raise ValueError(
            f"{', '.join(names)} vary together in the {len(table)} runs to fit (as with one "
            "num_tokens / num_parameters for all): add runs in which one of them differs alone"
        )
    return features


def _fit_positive_slopes(
    design: Array, offset: Array, delta: Array, residual: Residual
) -> tuple[Array, float]:
    """As `_fit_log_linear`, with every coefficient but the first at 0 or above.

    Such an optimum is the free optimum over the columns whose coefficient is not 0: so of the
    feasible ones among the free fits on all subsets of the columns, it is the best. Exact, unlike
    L-BFGS-B, which stops early where a bound meets the kinks of the loss.
    """
    num_columns = design.shape[1]
    free, loss = _fit_log_linear(design, offset, delta, residual)
    if np.all(free[1:] >= 0):
        return free, loss
    found = []
    for count in range(num_columns - 1):
        for slopes in itertools.combinations(range(1, num_columns), count):
            columns = [0, *slopes]
            theta = np.zeros(num_columns)
            theta[columns], loss = _fit_log_linear(design[:, columns], offset, delta, residual)
            if np.all(theta[1:] >= 0):
                found.append((theta, loss))
    return min(found, key=lambda pair: pair[1])


def _fit_log_linear(
    design: Array, offset: Array, delta: Array, residual: Residual
) -> tuple[Array, float]:
    """The theta of log delta = offset + design theta, and the loss that it leaves.

    Args:
        design: (num_runs, num_columns), of full rank and about unit scale.
        offset: (num_runs,).
        delta: (num_runs,), positive for log residuals.
        residual: What is made small.
    """
    if residual == "raw":
        return _exponential_regression(design, offset, delta)
    return _huber_regression(design, np.log(delta) - offset)


def _huber_regression(x: Array, y: Array) -> tuple[Array, float]:
    """Minimises the mean Huber loss of y - x theta, convex in theta."""

    def objective(theta: Array) -> tuple[float, Array]:
        loss, slope = _huber(y - x @ theta)
        return float(loss.mean()), -(slope @ x) / len(y)

    start = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float64)
    theta = _minimize(objective, start)
    return theta, objective(theta)[0]


def _exponential_regression(x: Array, offset: Array, y: Array) -> tuple[Array, float]:
    """Minimises the squares of y - exp(offset + x theta) by Levenberg-Marquardt."""
    if y.mean() <= 0:
        raise ValueError(
            f"delta is {y.mean():.2g} in the mean of {len(y)} runs: no error to fit a law to"
        )
    unit = float(np.abs(y).max())

    def predict(theta: Array) -> Array:
        return np.asarray(np.exp(np.clip(offset + x @ theta, -700, 700)) / unit)

    def residuals(theta: Array) -> Array:
        return np.asarray(predict(theta) - y / unit)

    def jacobian(theta: Array) -> Array:
        return np.asarray(predict(theta)[:, None] * x)

    is_positive = y > 0
    start = np.linalg.lstsq(x[is_positive], np.log(y[is_positive]) - offset[is_positive])[0]
    found = optimize.least_squares(
        residuals, start, jacobian, method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    return np.asarray(found.x), float(found.cost)


def _huber(residuals: Array) -> tuple[Array, Array]:
    """Huber loss over its threshold, and its derivative: about |r|, and sign(r)."""
    slope = np.clip(residuals / HUBER_THRESHOLD, -1, 1)
    return slope * (residuals - slope * HUBER_THRESHOLD / 2), slope


def _minimize(
    objective: Callable[[Array], tuple[float, Array]],
    start: Array,
    *,
    ftol: float = 1e-14,
    maxiter: int = 2000,
) -> Array:
    """L-BFGS with a gradient; the default tolerances stop too early on a loss of kinks."""
    found = optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": ftol, "gtol": 1e-9, "maxiter": maxiter, "maxls": 50},
    )
    return np.asarray(found.x)


# The loss without quantisation


def fit_chinchilla(
    table: BaselineTable, *, tied: bool = True, start: Chinchilla | None = None
) -> Chinchilla:
    """Fits equation (1) as Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) do.

    Huber loss of 1e-3 between the logarithms of predicted and observed loss, the prediction being
    logsumexp(a - alpha log N, b - beta log D, e); L-BFGS from a grid of starts, as there are local
    minima.

    Args:
        table: Unquantised runs.
        tied: Impose alpha = beta, as the paper of the QAT law does.
        start: Start here, and not from the grid: for data like those of an earlier fit.

    Raises:
        ValueError: There are fewer points (N, D) than constants, or one N or D only.
    """
    points = np.unique(np.stack([table.num_parameters, table.num_tokens], axis=1), axis=0)
    num_constants = 4 if tied else 5
    sizes = [len(np.unique(column)) for column in points.T]
    if len(points) < num_constants or min(sizes) < 2:
        raise ValueError(
            f"the Chinchilla law has {num_constants} constants: it needs unquantised runs at that "
            f"many points (num_parameters, num_tokens), not all of one size or length; found "
            f"{len(points)} points of {sizes[0]} sizes and {sizes[1]} lengths"
        )
    objective = _ChinchillaObjective(table, tied)
    if start is not None:
        return objective.law(_minimize(objective, objective.theta(start)))
    starts = objective.grid()  # a few steps from each, and all from the best
    rough = [_minimize(objective, theta, ftol=1e-6, maxiter=_NUM_ROUGH) for theta in starts]
    values = np.array([objective(theta)[0] for theta in rough])
    best = [_minimize(objective, rough[index]) for index in np.argsort(values)[:_NUM_POLISHED]]
    return objective.law(min(best, key=lambda theta: objective(theta)[0]))


class _ChinchillaObjective:
    """Mean Huber loss and its gradient, over theta = (a, alpha, b, beta, e) around the mean run.

    There, a is the logarithm of A / N^alpha at the geometric mean of N, so that a and alpha are
    nearly independent; likewise b.
    """

    def __init__(self, table: BaselineTable, tied: bool) -> None:
        self.tied = tied
        self.mean_n = float(np.log(table.num_parameters).mean())
        self.mean_d = float(np.log(table.num_tokens).mean())
        self.n = np.log(table.num_parameters) - self.mean_n
        self.d = np.log(table.num_tokens) - self.mean_d
        self.log_loss = np.log(table.loss)

    def __call__(self, theta: Array) -> tuple[float, Array]:
        a, alpha, b, beta, e = self._split(theta)
        terms = np.stack([a - alpha * self.n, b - beta * self.d, np.full(len(self.n), e)])
        highest = terms.max(axis=0)
        weights = np.exp(terms - highest)
        total = weights.sum(axis=0)
        weights /= total
        loss, slope = _huber(highest + np.log(total) - self.log_loss)
        in_n, in_d, in_e = weights * slope / len(self.n)
        of_n, of_d = -(in_n @ self.n), -(in_d @ self.d)
        if self.tied:
            gradient = np.array([in_n.sum(), of_n + of_d, in_d.sum(), in_e.sum()])
        else:
            gradient = np.array([in_n.sum(), of_n, in_d.sum(), of_d, in_e.sum()])
        return float(loss.mean()), gradient

    def _split(self, theta: Array) -> tuple[float, ...]:
        values: tuple[float, ...] = tuple(theta.tolist())
        if self.tied:
            a, alpha, b, e = values
            return a, alpha, b, alpha, e
        return values

    def grid(self) -> list[Array]:
        """The starts of Hoffmann et al., alpha and beta being one where they are tied."""
        exponents = (0.0, 0.5, 1.0, 1.5, 2.0)
        return [
            self._theta(a, alpha, b, beta, e)
            for a in range(0, 30, 5)
            for b in range(0, 30, 5)
            for e in (-1.0, -0.5, 0.0, 0.5, 1.0)
            for alpha in exponents
            for beta in ([alpha] if self.tied else exponents)
        ]

    def theta(self, law: Chinchilla) -> Array:
        """Where a law stands."""
        return self._theta(np.log(law.A), law.alpha, np.log(law.B), law.beta, np.log(law.E))

    def _theta(self, a: float, alpha: float, b: float, beta: float, e: float) -> Array:
        a, b = a - alpha * self.mean_n, b - beta * self.mean_d
        return np.array([a, alpha, b, e] if self.tied else [a, alpha, b, beta, e])

    def law(self, theta: Array) -> Chinchilla:
        """The law that stands at `theta`."""
        a, alpha, b, beta, e = self._split(theta)
        return Chinchilla(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * self.mean_n)),
            alpha=alpha,
            B=float(np.exp(b + beta * self.mean_d)),
            beta=beta,
        )
