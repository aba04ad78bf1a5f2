"""From a run table to fitted scaling laws, and how far each of them can be trusted.

`analyze_runs` does everything; its parts serve a notebook.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from .run_table import BaselineTable, DeltaTable, Run, pair_runs
from .scaling_law import (
    Array,
    Chinchilla,
    DeltaLaw,
    FittedRange,
    QATErrorLaw,
    ScalingLaw,
    decomposition_coefficient,
    error_ratio,
)
from .scaling_law_fit import (
    Residual,
    drop_non_positive,
    fit_chinchilla,
    fit_epm_law,
    fit_error_law,
)

MIN_CLUSTERS = 6
"""Fewer cannot establish a sign at 95 %, even if all agree: 2 / 2^5 > 0.05 (the sign test)."""

_MIN_FITTED = 0.9


class Table(Protocol):
    """What a bootstrap draws from."""

    def __len__(self) -> int:
        """Number of runs."""
        ...

    def select(self, index: NDArray[Any]) -> Self:
        """The rows of an index or a mask."""
        ...

    @property
    def clusters(self) -> NDArray[np.int64]:
        """Equal for runs that are drawn together."""
        ...


TableT = TypeVar("TableT", bound=Table)


# Errors of prediction


def relative_error(predicted: Array, observed: Array) -> float:
    """Mean of |predicted - observed| / observed over the observed > 0; NaN when there are none."""
    is_positive = observed > 0
    if not is_positive.any():
        return float("nan")
    return float(np.mean(np.abs(predicted[is_positive] / observed[is_positive] - 1)))


def error_on(law: DeltaLaw, table: DeltaTable) -> float:
    """Relative error of a law on the cells (N, D, G) of a table, each the mean over its seeds.

    Raises:
        ValueError: The law cannot predict one of them.
    """
    means = table.mean_over_seeds()
    predicted = law.delta(means.num_parameters, means.num_tokens, means.group_size)
    return relative_error(predicted, means.delta)


def leave_one_out_error(fit: Callable[[DeltaTable], DeltaLaw], table: DeltaTable) -> float:
    """Relative error of the predictions for each cell (N, D, G) by a fit on all the others.

    Args:
        fit: Fits a law.
        table: All runs. The seeds of a cell are left out together: one would give away the other.

    Raises:
        ValueError: The rest of the runs does not allow a fit or a prediction.
    """
    cells = table.cells
    means = table.mean_over_seeds()
    predicted = np.empty(len(means))
    with _dropping_quietly():
        for cell in range(len(means)):
            law = fit(table.select(cells != cell))
            point = (means.num_parameters[cell], means.num_tokens[cell], means.group_size[cell])
            predicted[cell] = law.delta(*point)
    return relative_error(predicted, means.delta)


@contextmanager
def _dropping_quietly() -> Iterator[None]:
    """Runs with delta <= 0 have been named in the fit on all runs; not again in each part."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# Errors of constants


def bootstrap(
    fit: Callable[[TableT], Any], table: TableT, num_resamples: int = 1000, seed: int = 0
) -> Array | None:
    """Constants of fits on resampled runs.

    Runs that share a baseline share its noise, so they are drawn together: the unit is one
    (N, D, seed) with all its group sizes. Draws that cannot be fitted, such as those of one model
    size, are left out.

    Args:
        fit: Fits a law, a dataclass of numbers.
        table: The runs.
        num_resamples: Number of draws.
        seed: Of the draws.

    Returns:
        (num_fitted, num_constants); None where the runs are too few for an interval: fewer than
        `MIN_CLUSTERS` units, or more than a tenth of the draws cannot be fitted.
    """
    rng = np.random.default_rng(seed)
    clusters = table.clusters
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    if len(members) < MIN_CLUSTERS:
        return None
    found = []
    for _ in range(num_resamples):
        drawn = rng.integers(0, len(members), len(members))
        resampled = table.select(np.concatenate([members[index] for index in drawn]))
        with _dropping_quietly(), suppress(ValueError):
            found.append(astuple(fit(resampled)))
    if not found or len(found) < _MIN_FITTED * num_resamples:
        return None
    return np.array(found, dtype=np.float64)


@dataclass(frozen=True)
class NoiseFloor:
    """How much the error differs between seeds.

    Attributes:
        sigma: Standard deviation of delta over the seeds of a cell (N, D, G), pooled, nats.
        num_cells: Number of cells.
        num_below: Those whose mean delta is less than 2 sigma.
    """

    sigma: float
    num_cells: int
    num_below: int

    @classmethod
    def of(cls, table: DeltaTable) -> "NoiseFloor | None":
        """The noise of these runs; None when no cell has two seeds."""
        cells = table.cells
        counts = np.bincount(cells)
        if counts.max(initial=0) < 2:
            return None
        means = np.bincount(cells, weights=table.delta) / counts
        squares = np.sum((table.delta - means[cells]) ** 2)
        sigma = float(np.sqrt(squares / np.sum(counts - 1)))
        return cls(sigma, len(counts), int(np.sum(means < 2 * sigma)))

    @property
    def hides_delta(self) -> bool:
        """Whether delta is below 2 sigma in half of the cells: too many to speak of exponents."""
        return 2 * self.num_below >= self.num_cells


@dataclass(frozen=True)
class Constant:
    """One constant of a law with what the data say about it.

    Attributes:
        name: Such as `gamma_n`.
        value: Of the law that predicts, with no exponent below 0.
        unconstrained: Of the fit that lets the data decide the sign.
        low: Lower end of the 95 % bootstrap interval of the unconstrained fit; None without one.
        high: Upper end.
        sign: Of an exponent: "+" or "-" when established, else "not established: ..." with the
            reason. Empty for other constants, which are positive by definition.
    """

    name: str
    value: float
    unconstrained: float
    low: float | None
    high: float | None
    sign: str


def _constants(
    law: QATErrorLaw | Chinchilla,
    unconstrained: QATErrorLaw | Chinchilla,
    samples: Array | None,
    noise: NoiseFloor | None = None,
) -> Iterator[Constant]:
    """Puts constants together with their intervals and whether their signs are established."""
    free = asdict(unconstrained)
    for index, (name, value) in enumerate(asdict(law).items()):
        low = high = None
        if samples is not None:
            low, high = np.percentile(samples[:, index], [2.5, 97.5]).tolist()
        sign = _sign(low, high, noise) if name.startswith("gamma") else ""
        yield Constant(name, value, free[name], low, high, sign)


def _sign(low: float | None, high: float | None, noise: NoiseFloor | None) -> str:
    if noise is not None and noise.hides_delta:
        return f"not established: delta < 2 sigma in {noise.num_below} of {noise.num_cells} cells"
    if low is None or high is None:
        return "not established: no interval"
    if low > 0:
        return "+"
    return "-" if high < 0 else "not established: the interval includes 0"


# Everything


@dataclass(frozen=True)
class LawError:
    """How well one law describes the runs of a precision.

    Attributes:
        law: Which law.
        inputs: What it depends on.
        num_constants: How many constants were fitted.
        in_sample: Relative error on the cells it was fitted on.
        out_of_sample: On the hold-out, or without one by leave-one-out; None where the law cannot
            predict these runs.
    """

    law: str
    inputs: str
    num_constants: int
    in_sample: float
    out_of_sample: float | None


@dataclass(frozen=True)
class PrecisionAnalysis:
    """The law of one precision.

    Attributes:
        law: The fitted law, for predictions.
        constants: Its constants with intervals.
        errors: It and the laws it is compared with.
        noise: Noise floor; None when no cell has two seeds.
        fitted: The runs of the fit.
        held_out: The runs of the hold-out.
        num_clusters: Number of baselines that the runs of the fit share.
    """

    law: ScalingLaw
    constants: tuple[Constant, ...]
    errors: tuple[LawError, ...]
    noise: NoiseFloor | None
    fitted: DeltaTable
    held_out: DeltaTable
    num_clusters: int


@dataclass(frozen=True)
class Decomposition:
    """Weight and activation error beside the error of both, each of shape (num_cells,).

    Attributes:
        group_size: G of each (N, D, G) at which all three have been measured.
        w4a4: Error with weights and activations quantised, nats, mean over seeds.
        w4a16: Weights only.
        w16a4: Activations only.
    """

    group_size: Array
    w4a4: Array
    w4a16: Array
    w16a4: Array

    @classmethod
    def of(cls, tables: Mapping[str, DeltaTable]) -> "Decomposition | None":
        """Of precision -> runs; None where the three have no cell in common."""
        cells = []
        for precision in ("w4a4", "w4a16", "w16a4"):
            if precision not in tables:
                return None
            mean = tables[precision].mean_over_seeds()
            keys = zip(mean.num_parameters, mean.num_tokens, mean.group_size, strict=True)
            cells.append(dict(zip(keys, mean.delta, strict=True)))
        common = sorted(set(cells[0]).intersection(*cells[1:]))
        if not common:
            return None
        deltas = [np.array([of_cell[key] for key in common]) for of_cell in cells]
        return cls(np.array([group_size for *_, group_size in common]), *deltas)

    @property
    def coefficient(self) -> float:
        """The k of delta_W4A4 = k (delta_W4A16 + delta_W16A4)."""
        return decomposition_coefficient(self.w4a4, self.w4a16, self.w16a4)

    @property
    def ratio(self) -> Array:
        """R = delta_W16A4 / delta_W4A16 of each cell."""
        return error_ratio(self.w16a4, self.w4a16)


@dataclass(frozen=True)
class Analysis:
    """What a run table says.

    Attributes:
        precisions: Precision -> its law.
        problems: What could not be fitted ("chinchilla" or a precision) -> why.
        chinchilla: Law of the unquantised runs; None when there are too few.
        chinchilla_constants: Its constants with intervals.
        decomposition: None unless w4a4, w4a16 and w16a4 share a cell.
    """

    precisions: dict[str, PrecisionAnalysis]
    problems: dict[str, str]
    chinchilla: Chinchilla | None
    chinchilla_constants: tuple[Constant, ...]
    decomposition: Decomposition | None


def analyze_runs(
    runs: Sequence[Run],
    *,
    is_held_out: Callable[[Run], bool] = lambda run: False,
    tied: bool = True,
    residual: Residual = "log",
    num_resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Fits every law that the runs allow.

    Args:
        runs: Quantised runs and their baselines.
        is_held_out: Which runs only test the fits.
        tied: Impose alpha = beta in the Chinchilla law.
        residual: As for `fit_error_law`.
        num_resamples: Draws of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: A quantised run has no baseline, or there is no run to fit.
    """
    paired = pair_runs(runs)
    if not paired:
        raise ValueError("no quantised run in the table: none has a group_size")
    baselines = BaselineTable.of(run for run in runs if not is_held_out(run))
    resample = partial(bootstrap, num_resamples=num_resamples, seed=seed)
    problems: dict[str, str] = {}
    chinchilla: Chinchilla | None = None
    chinchilla_constants: tuple[Constant, ...] = ()
    try:
        chinchilla = fit_chinchilla(baselines, tied=tied)
    except ValueError as error:
        problems["chinchilla"] = str(error)
    else:
        near = partial(fit_chinchilla, tied=tied, start=chinchilla)
        chinchilla_constants = tuple(_constants(chinchilla, chinchilla, resample(near, baselines)))
    tables = {}
    precisions = {}
    for precision in dict.fromkeys(run.precision for run in paired):
        own = [run for run in paired if run.precision == precision]
        tables[precision] = DeltaTable.of(own)
        fitted = DeltaTable.of(run for run in own if not is_held_out(run))
        held_out = DeltaTable.of(run for run in own if is_held_out(run))
        try:
            precisions[precision] = _analyze_precision(
                precision, fitted, held_out, chinchilla, residual, resample
            )
        except ValueError as error:
            problems[precision] = str(error)
    return Analysis(
        precisions, problems, chinchilla, chinchilla_constants, Decomposition.of(tables)
    )


def _analyze_precision(
    precision: str,
    fitted: DeltaTable,
    held_out: DeltaTable,
    chinchilla: Chinchilla | None,
    residual: Residual,
    resample: Callable[..., Array | None],
) -> PrecisionAnalysis:
    noise = NoiseFloor.of(fitted)
    usable = fitted if residual == "raw" else drop_non_positive(fitted, precision)
    fit = partial(fit_error_law, residual=residual)
    error, unconstrained = fit(usable), fit(usable, positive=False)
    samples = resample(partial(fit, positive=False), fitted)
    fitted_range = FittedRange.of(usable.num_parameters, usable.num_tokens, usable.group_size)
    return PrecisionAnalysis(
        law=ScalingLaw(error, fitted_range, chinchilla, _log_covariance(samples)),
        constants=tuple(_constants(error, unconstrained, samples, noise)),
        errors=tuple(_compare_laws(fitted, held_out, chinchilla, residual)),
        noise=noise,
        fitted=fitted,
        held_out=held_out,
        num_clusters=len(np.unique(fitted.clusters)),
    )


def _log_covariance(samples: Array | None) -> tuple[tuple[float, ...], ...] | None:
    """Covariance of (log k, gamma_n, gamma_d, gamma_g)."""
    if samples is None:
        return None
    constants = np.column_stack([np.log(samples[:, 0]), samples[:, 1:]])
    return tuple(tuple(row) for row in np.cov(constants, rowvar=False).tolist())


def _compare_laws(
    table: DeltaTable, held_out: DeltaTable, chinchilla: Chinchilla | None, residual: Residual
) -> Iterator[LawError]:
    """The law beside those it is an advance on."""
    fits: list[tuple[str, str, int, Callable[[DeltaTable], DeltaLaw]]] = [
        ("QAT error law", "N, D, G", 4, partial(fit_error_law, residual=residual)),
        ("without tokens", "N, G", 3, partial(fit_error_law, with_tokens=False, residual=residual)),
    ]
    if chinchilla is not None:
        epm = partial(fit_epm_law, chinchilla=chinchilla, residual=residual)
        fits.append(("EPM per group size", "N", len(np.unique(table.group_size)), epm))
    for name, inputs, num_constants, fit in fits:
        with _dropping_quietly():
            law = fit(table)
        try:
            out = error_on(law, held_out) if len(held_out) else leave_one_out_error(fit, table)
        except ValueError:
            out = None
        yield LawError(name, inputs, num_constants, error_on(law, table), out)
