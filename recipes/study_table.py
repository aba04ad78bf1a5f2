"""What a study has measured: the numbers of its table and their statistics. Imports no torch.

A unit is what is repeated within a row: a run (one per value of `over`), or a record of
`records.jsonl`. Rows are compared unit by unit. Axes that are neither `rows` nor `over` split the
table into groups, which are never mixed. A row that is a formula combines runs of one repetition.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .arguments import render
from .errors import nearest
from .study_file import RECORDS, ROW, Axis, Stage, Study, Table
from .study_formula import Formula
from .study_plan import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEED = "seed_everything"
MIN_BOOTSTRAP = 10
_NUM_RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean difference.

    Attributes:
        low: Lower end; None where the data allow no interval.
        high: Upper end.
        p: Two-sided p value of "no difference"; None where it is undefined.
        method: How it was found, or why there is none.
    """

    low: float | None
    high: float | None
    p: float | None
    method: str


@dataclass(frozen=True)
class Difference:
    """A row minus the reference row, over the units that both have.

    Of a row that is a difference or a ratio by itself, minus zero.

    Attributes:
        n: The number of these units.
        mean: Over the units.
        interval: Of the mean.
        points: Mean per repetition, as in `Line`.
    """

    n: int
    mean: float
    interval: Interval
    points: dict[str, float]


@dataclass(frozen=True)
class Line:
    """One number of the table.

    Attributes:
        metric: As the study names it; the formula of a row that is one.
        group: Values on the axes that are neither rows nor over, empty when there are none.
        row: What is compared.
        n: Units with a value: runs, or records.
        num_runs: Runs with a value; repetitions, where the row is a formula.
        num_planned: Runs or repetitions that should have one.
        mean: Over units; None when there are none.
        sd: Over units, with n - 1; None for fewer than two.
        points: Mean per repetition: over value, or seed for records.
        difference: To the reference row; None for that row, or where no unit is shared.
    """

    metric: str
    group: str
    row: str
    n: int
    num_runs: int
    num_planned: int
    mean: float | None
    sd: float | None
    points: dict[str, float]
    difference: Difference | None


# Statistics


def paired_t(differences: Sequence[float]) -> Interval:
    """The paired t interval and test (Student): right for a few seeds of about normal differences.

    Args:
        differences: One per pair, at least two.
    """
    from scipy import stats

    if _is_constant(differences):
        return _constant(differences[0], "paired t")
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Interval(float(low), float(high), float(test.pvalue), "paired t")


def clustered_bootstrap(differences: Sequence[float], clusters: Sequence[str]) -> Interval:
    """A bootstrap interval (BCa) and a sign-flip test that keep together what belongs together.

    Whole clusters are drawn with replacement, and whole clusters change their sign. Deterministic.

    Args:
        differences: One per pair.
        clusters: The cluster of each; at least two distinct ones.
    """
    import numpy as np
    from scipy import stats

    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(differences, dtype=float)).astype(np.float64)
    sizes = np.bincount(index).astype(np.float64)
    kind = "" if len(names) == len(differences) else f" over {len(names)} groups"
    few = "" if len(names) >= MIN_BOOTSTRAP else ", too few: expect it too narrow"
    method = f"bootstrap{kind}{few}"
    if _is_constant(sums / sizes):
        return _constant(float(sums[0] / sizes[0]), method)

    def mean(
        sums: "NDArray[np.float64]", sizes: "NDArray[np.float64]", axis: int
    ) -> "NDArray[np.float64]":
        total: NDArray[np.float64] = sums.sum(axis=axis) / sizes.sum(axis=axis)
        return total

    found = stats.bootstrap(
        (sums, sizes),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=_NUM_RESAMPLES,
        batch=max(1, 2_000_000 // len(names)),
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), _sign_flip(sums), method)


def _is_constant(values: "Sequence[float] | NDArray[np.float64]") -> bool:
    """But for rounding: the statistics of such numbers are those of the rounding."""
    return bool(max(values) - min(values) <= 1e-12 * max(map(abs, values)))


def _constant(value: float, method: str) -> Interval:
    """All differences are the same number: no spread, and no test but for zero."""
    return Interval(value, value, 1.0 if value == 0 else None, method)


def _sign_flip(sums: "NDArray[np.float64]") -> float:
    """Two-sided p value: how often random signs of the clusters give a sum as far from zero."""
    import numpy as np

    rng = np.random.default_rng(0)
    bound = abs(sums.sum()) * (1 - 1e-12)
    hits = 0
    for chunk in np.array_split(np.arange(_NUM_RESAMPLES), 1 + len(sums) // 100):
        signs = rng.integers(0, 2, (len(chunk), len(sums)), dtype=np.int8) * 2.0 - 1
        hits += int((np.abs(signs @ sums) >= bound).sum())
    return (1 + hits) / (1 + _NUM_RESAMPLES)


# Collecting


@dataclass(frozen=True)
class _Value:
    """A number that a run has measured; record and cluster are empty where the run is the unit."""

    row: str
    record: str
    cluster: str
    number: float


@dataclass(frozen=True)
class _Unit:
    repetition: str
    record: str


@dataclass
class _Cell:
    """The units of one row in one group."""

    values: dict[_Unit, float] = field(default_factory=dict)
    clusters: dict[_Unit, str] = field(default_factory=dict)
    num_runs: int = 0
    num_planned: int = 0

    def add(self, repetition: str, values: Sequence[_Value]) -> None:
        """Adds what one run has measured."""
        for value in values:
            unit = _Unit(repetition, value.record)
            if unit in self.values:
                raise ValueError(
                    f"table: repetition {repetition} of row '{value.row}' has record id "
                    f"'{value.record}' twice: ids must differ within a row of records.jsonl"
                )
            self.values[unit] = value.number
            self.clusters[unit] = value.cluster or repetition
        self.num_runs += bool(values)


def collect_lines(study: Study, table: Table, runs: Sequence[Run]) -> list[Line]:
    """Reads what the runs have measured and compares it.

    Args:
        study: The study.
        table: Its table.
        runs: All its runs; unfinished ones count as planned, and nothing stands in for them.

    Raises:
        ValueError: A metric or the reference row is nowhere, though every run has finished.
    """
    if table.formulas:
        return list(_formula_lines(study, table, runs))
    return [line for metric in table.metrics for line in _metric_lines(metric, study, table, runs)]


def metric_matches(metric: str, name: str) -> re.Match[str] | None:
    """Whether a logged name is what the study calls `metric`; group 1 is the row of a `<row>`."""
    pattern = re.escape(metric.rpartition(":")[2]).replace(re.escape(ROW), "([^/]+)")
    return re.fullmatch(pattern, name)


def _metric_lines(metric: str, study: Study, table: Table, runs: Sequence[Run]) -> Iterator[Line]:
    stage, values = _find_metric(metric, study, table, runs)
    groups = _cells(
        study.axes[stage.name], table, [run for run in runs if run.stage is stage], values
    )
    rows = dict.fromkeys(row for cells in groups.values() for row in cells)
    if table.against is not None and rows and table.against not in rows:
        hint = nearest(table.against, rows)
        raise ValueError(f"table.against: '{table.against}' is no row of {metric}: {hint}")
    for group, cells in groups.items():
        for row, cell in cells.items():
            reference = cells.get(table.against) if table.against not in (None, row) else None
            yield _line(metric, group, row, cell, reference, table)


_Measured = dict[str, dict[str, float]]  # variant -> name -> number, of one repetition


def _formula_lines(study: Study, table: Table, runs: Sequence[Run]) -> Iterator[Line]:
    own = [run for run in runs if f"{run.stage.name}.variant" == table.rows]
    measured = {run: _numbers(run) for run in own}
    if all(run.finished for run in runs):
        _check_operands(table, measured)
    groups: dict[str, dict[str, _Measured]] = {}
    for run in own:
        group = _group(run, study.axes[run.stage.name], {table.rows, table.over})
        repetition = render(run.coordinates[table.over]) if table.over else "all"
        variants = groups.setdefault(group, {}).setdefault(repetition, {})
        variants[run.coordinates[table.rows]] = measured[run]
    for group, repetitions in groups.items():
        cells = {row: _formula_cell(row, f, repetitions) for row, f in table.formulas.items()}
        for row, cell in cells.items():
            formula = table.formulas[row]
            if formula.is_operand:
                reference = cells.get(table.against) if table.against not in (None, row) else None
            else:
                reference = _Cell(dict.fromkeys(cell.values, 0.0))
            yield _line(formula.text, group, row, cell, reference, table)


def _check_operands(table: Table, measured: dict[Run, dict[str, float]]) -> None:
    for row, formula in table.formulas.items():
        for operand in formula.operands:
            runs = [run for run in measured if run.coordinates[table.rows] == operand.variant]
            names = dict.fromkeys(name for run in runs for name in measured[run])
            if operand.metric not in names:
                raise ValueError(
                    f"table.rows: '{row}': no run of '{operand.variant}' has measured "
                    f"'{operand.metric}': {nearest(operand.metric, names)}"
                )


def _formula_cell(row: str, formula: Formula, repetitions: dict[str, _Measured]) -> _Cell:
    """The value of each repetition in which every operand was measured."""
    cell = _Cell(num_planned=len(repetitions))
    for repetition, measured in repetitions.items():
        if all(operand.metric in measured[operand.variant] for operand in formula.operands):
            numbers = {
                operand: measured[operand.variant][operand.metric] for operand in formula.operands
            }
            cell.add(repetition, [_Value(row, "", "", formula.evaluate(numbers))])
    return cell


def _line(
    metric: str, group: str, row: str, cell: _Cell, reference: _Cell | None, table: Table
) -> Line:
    numbers = list(cell.values.values())
    return Line(
        metric=metric,
        group=group,
        row=row,
        n=len(numbers),
        num_runs=cell.num_runs,
        num_planned=cell.num_planned,
        mean=_mean(numbers) if numbers else None,
        sd=_sd(numbers) if len(numbers) > 1 else None,
        points=_points(cell.values),
        difference=_compare(cell, reference, table) if reference else None,
    )


def _find_metric(
    metric: str, study: Study, table: Table, runs: Sequence[Run]
) -> tuple[Stage, dict[Run, list[_Value]]]:
    """The last stage that has the metric (or the one named by `stage:metric`), and its values."""
    prefix = metric.rpartition(":")[0]
    stages = [stage for stage in study.stages if table.axes <= set(study.axes[stage.name])]
    stages = [stage for stage in reversed(stages) if prefix in ("", stage.name)]
    finished = [run for run in runs if run.finished]
    for stage in stages:
        own = [run for run in finished if run.stage is stage]
        values = {run: list(_values(run, metric, table)) for run in own}
        if any(values.values()):
            return stage, values
    if len(finished) == len(runs):
        own = [run for run in runs if run.stage in stages]
        hint = nearest(
            metric.rpartition(":")[2], dict.fromkeys(n for r in own for n in _names(r, table))
        )
        raise ValueError(f"table.metrics: no run has measured '{metric}': {hint}")
    return stages[0], {}


def _cells(
    axes: dict[str, Axis], table: Table, runs: Sequence[Run], values: dict[Run, list[_Value]]
) -> dict[str, dict[str, _Cell]]:
    """Group -> row -> units, in the order of the runs."""
    pooled = SEED if table.rows != SEED else None
    repeated = pooled if table.over == RECORDS else table.over
    groups: dict[str, dict[str, _Cell]] = {}
    members: dict[str, list[Run]] = {}
    for run in runs:
        group = _group(run, axes, {table.rows, repeated})
        members.setdefault(group, []).append(run)
        cells = groups.setdefault(group, {})
        rows = [value.row for value in values.get(run, [])]
        for row in rows if table.rows == ROW else [render(run.coordinates[table.rows])]:
            cells.setdefault(row, _Cell())
    for group, cells in groups.items():
        for run in members[group]:
            repetition = render(run.coordinates.get(repeated, "all")) if repeated else "all"
            for row, cell in cells.items():
                if table.rows == ROW or render(run.coordinates[table.rows]) == row:
                    cell.num_planned += 1
                    cell.add(repetition, [v for v in values.get(run, []) if v.row == row])
    return groups


def _group(run: Run, axes: dict[str, Axis], without: set[str | None]) -> str:
    """The values on the other axes, in words."""
    return ", ".join(
        str(value) if axes[name].is_variant else f"{axes[name].word}={render(value)}"
        for name, value in run.coordinates.items()
        if name not in without
    )


def _values(run: Run, metric: str, table: Table) -> Iterator[_Value]:
    """What a finished run has measured under this name."""
    own = None if table.rows == ROW else render(run.coordinates[table.rows])
    if table.over == RECORDS:
        name = metric.rpartition(":")[2]
        for record in _records(run):
            if isinstance(record.get(name), int | float):
                row = str(record.get("row", "")) if own is None else own
                key = str(record["id"])
                yield _Value(row, key, str(record.get("group", key)), float(record[name]))
        return
    for name, number in _numbers(run).items():
        if match := metric_matches(metric, name):
            yield _Value(match[1] if own is None else own, "", "", number)


def _numbers(run: Run) -> dict[str, float]:
    """What a run has measured, by name; empty until it has finished."""
    return {name: float(x) for name, x in run.measured().items() if isinstance(x, int | float)}


def _names(run: Run, table: Table) -> list[str]:
    """What a finished run has measured at all."""
    if table.over != RECORDS:
        return list(run.measured())
    return [name for record in _records(run)[:1] for name in record]


def _records(run: Run) -> list[dict[str, Any]]:
    path = run.run_dir / "records.jsonl"
    if not path.is_file():
        return []
    records = []
    for number, text in enumerate(path.read_text(encoding="utf-8").strip().split("\n"), start=1):
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(record, dict) or "id" not in record:
            raise ValueError(f"{path}:{number}: a record needs an id, found {text[:80]}")
        records.append(record)
    return records


def _compare(cell: _Cell, against: _Cell, table: Table) -> Difference | None:
    """Pairs the units that both rows have."""
    pairs = {
        unit: number - against.values[unit]
        for unit, number in cell.values.items()
        if unit in against.values
    }
    if not pairs:
        return None
    numbers = list(pairs.values())
    clusters = [cell.clusters[unit] for unit in pairs]
    if not all(map(math.isfinite, numbers)):
        interval = Interval(None, None, None, "not finite: no interval")
    elif len(set(clusters)) < 2:
        interval = Interval(None, None, None, f"n = {len(set(clusters))}: no interval")
    elif table.over != RECORDS and len(numbers) < MIN_BOOTSTRAP:
        interval = paired_t(numbers)
    else:
        interval = clustered_bootstrap(numbers, clusters)
    return Difference(len(numbers), _mean(numbers), interval, _points(pairs))


def _points(values: dict[_Unit, float]) -> dict[str, float]:
    """The mean of each repetition."""
    found: dict[str, list[float]] = {}
    for unit, number in values.items():
        found.setdefault(unit.repetition, []).append(number)
    return {repetition: _mean(numbers) for repetition, numbers in found.items()}


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _sd(numbers: Sequence[float]) -> float:
    mean = _mean(numbers)
    return math.sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))
