"""Finished training runs as a table, one row per run, and what quantisation costs each of them.

The columns, of a CSV file with a header or of JSON lines:

    run_id            unique text
    seed              int; initial weights and order of the data
    num_parameters    N, non-embedding parameters (a count, not millions)
    num_tokens        D, training tokens (a count)
    precision         text, such as bf16, w4a4, w4a16, w16a4 or w4a4_fc2a8
    group_size        G, elements that share a scale; empty for an unquantised baseline
    loss              final loss, nats per token
    delta             instead of `loss`, for a quantised run of which only the error is known
    baseline_run_id   optional; the baseline of a quantised run, where it is not the one of the same
                      num_parameters, num_tokens and seed

Imports no torch.
"""

import csv
import difflib
import io
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic_write

COLUMNS = (
    "run_id",
    "seed",
    "num_parameters",
    "num_tokens",
    "precision",
    "group_size",
    "loss",
    "delta",
    "baseline_run_id",
)
_REQUIRED = COLUMNS[:6]
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Run:
    """One row of the table (the module's docstring says what the columns mean).

    Attributes:
        where: `file:line` that the row was read from, for messages.
    """

    run_id: str
    seed: int
    num_parameters: float
    num_tokens: float
    precision: str
    group_size: float | None = None
    loss: float | None = None
    delta: float | None = None
    baseline_run_id: str | None = None
    where: str = field(default="", compare=False, repr=False)

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is quantised."""
        return self.group_size is None

    @property
    def pair_key(self) -> tuple[float, float, int]:
        """What a quantised run and its baseline have in common."""
        return (self.num_parameters, self.num_tokens, self.seed)


# Reading


def read_runs(sources: Sequence[str | Path], metric: str = "val/loss") -> list[Run]:
    """Reads run tables and run directories.

    Args:
        sources: CSV files (`.csv`), JSON lines (`.jsonl`), run directories, or folders of them at
            any depth. Of a run directory, `metrics.json` is read; one without a finished `fit` is
            left out with a warning.
        metric: The loss of a run directory: a name in the `fit` section of its `metrics.json`.

    Returns:
        The runs in reading order.

    Raises:
        ValueError: A source does not exist or holds no run, a row is not as the columns demand, or
            two rows have the same run_id. The message names file and line.
    """
    runs = [run for source in sources for run in _read_source(Path(source), metric)]
    seen: dict[str, Run] = {}
    for run in runs:
        other = seen.setdefault(run.run_id, run)
        if other is not run:
            raise ValueError(
                f"{run.where}: run_id '{run.run_id}' is that of {other.where} too: "
                "give each run an id of its own"
            )
    return runs


def _read_source(source: Path, metric: str) -> list[Run]:
    if source.is_dir():
        return _read_folder(source, metric)
    if not source.is_file():
        raise ValueError(f"no file and no folder '{source}': give a run table or run directories")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if source.suffix not in readers:
        raise ValueError(f"{source}: expected a run table (.csv, .jsonl) or a folder of runs")
    runs = [_parse_row(row, where) for where, row in readers[source.suffix](source)]
    if not runs:
        raise ValueError(f"{source}: has no runs: expected one row per run below the header")
    return runs


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`file:line`, row) of each row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(reader.fieldnames or (), f"{path}:1")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: the row has not as many fields as the header")
            yield where, row


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`file:line`, object) of each line that is not blank."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected one JSON object per line, found {line[:40]}")
        _check_columns({"group_size": None, **row}, where)
        yield where, row


def _check_columns(columns: Iterable[str], where: str) -> None:
    found = set(columns)
    missing = [name for name in _REQUIRED if name not in found]
    missing += [] if {"loss", "delta"} & found else ["loss (or delta)"]
    if missing:
        raise ValueError(
            f"{where}: no column {', '.join(missing)}: a run table has {', '.join(_REQUIRED)}, loss"
        )


def _parse_row(row: Mapping[str, Any], where: str) -> Run:
    """Checks one row, and turns its fields into numbers."""
    texts = {name: str(row[name]).strip() for name in COLUMNS if row.get(name) is not None}
    for name in ("run_id", "precision"):
        if not texts.get(name):
            raise ValueError(f"{where}: {name} is empty: every run needs one")
    run = Run(
        run_id=texts["run_id"],
        seed=int(_number(texts, "seed", where, whole=True)),
        num_parameters=_number(texts, "num_parameters", where, least=1),
        num_tokens=_number(texts, "num_tokens", where, least=1),
        precision=texts["precision"],
        group_size=_optional(texts, "group_size", where, least=2, whole=True),
        loss=_optional(texts, "loss", where),
        delta=_optional(texts, "delta", where),
        baseline_run_id=texts.get("baseline_run_id") or None,
        where=where,
    )
    if run.is_baseline and (run.loss is None or run.delta is not None or run.baseline_run_id):
        raise ValueError(
            f"{where}: baseline '{run.run_id}' (group_size is empty) needs a loss, and neither "
            "delta nor baseline_run_id"
        )
    if (run.loss is None) == (run.delta is None):
        raise ValueError(f"{where}: run '{run.run_id}' needs either a loss or a delta")
    return run


def _optional(
    texts: Mapping[str, str], name: str, where: str, least: float = -math.inf, whole: bool = False
) -> float | None:
    return _number(texts, name, where, least, whole) if texts.get(name) else None


def _number(
    texts: Mapping[str, str], name: str, where: str, least: float = -math.inf, whole: bool = False
) -> float:
    """One field as a finite number of at least `least`."""
    text = texts.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number >= least and not (whole and number % 1):
        return number
    kind = "whole number" if whole else "finite number"
    bound = f" of at least {least:g}" if math.isfinite(least) else ""
    raise ValueError(
        f"{where}: {name} is '{text}': expected a {kind}{bound}; "
        "correct the row or leave the run out"
    )


def _read_folder(folder: Path, metric: str) -> list[Run]:
    """The runs whose `metrics.json` lies in `folder` or below it."""
    runs = []
    unfinished = []
    for path in sorted(folder.rglob("metrics.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: no JSON: {error}") from error
        if "fit" in content:
            runs.append(_parse_row(_row_of_run(path, content, metric), str(path)))
        else:
            unfinished.append(str(path.parent))
    if unfinished:
        others = f" and {len(unfinished) - 1} more" if len(unfinished) > 1 else ""
        warnings.warn(
            f"left out, for want of a finished `fit`: {unfinished[0]}{others}", stacklevel=4
        )
    if not runs:
        raise ValueError(f"{folder}: no run directory in it has a metrics.json of a finished `fit`")
    return runs


def _row_of_run(path: Path, content: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The row that a run's `metrics.json` amounts to."""
    fit, run = content["fit"], content.get("run", {})
    if metric not in fit:
        near = difflib.get_close_matches(metric, fit, cutoff=0.3) or list(fit)
        raise ValueError(f"{path}: no fit.{metric}: give --metric one of {', '.join(near)}")
    missing = [
        name
        for name in ("num_parameters_non_embedding", "tokens_seen", "seed")
        if run.get(name) is None
    ]
    if missing:
        raise ValueError(
            f"{path}: no run.{', run.'.join(missing)}: the law needs language-model runs of "
            "`tenfold fit` with a seed"
        )
    quantization = run.get("quantization") or {}
    return {
        "run_id": path.parent.as_posix(),
        "seed": run["seed"],
        "num_parameters": run["num_parameters_non_embedding"],
        "num_tokens": run["tokens_seen"],
        "precision": quantization.get("precision", run.get("precision", "unquantized")),
        "group_size": quantization.get("group_size"),
        "loss": fit[metric],
    }


# Writing


def write_runs(path: str | Path, runs: Sequence[Run]) -> None:
    """Writes the table as CSV, atomically; `read_runs` gives the same runs back."""
    optional = [name for name in COLUMNS[6:] if any(getattr(run, name) is not None for run in runs)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_REQUIRED, *optional])
    for run in runs:
        writer.writerow([_field(getattr(run, name)) for name in [*_REQUIRED, *optional]])
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def _field(value: Any) -> Any:
    """Whole numbers without the point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Pairing


def pair_runs(runs: Sequence[Run]) -> list[Run]:
    """Gives each quantised run its error: delta = its loss - the loss of its baseline.

    Seed and order of the data are the same in both, so that most of their noise cancels.

    Args:
        runs: Quantised runs and baselines, in any order.

    Returns:
        The quantised runs, with `delta`, and `baseline_run_id` unless the table held the delta.

    Raises:
        ValueError: A run has no baseline, more than one, or names one that is not there.
    """
    baselines = {run.run_id: run for run in runs if run.is_baseline}
    by_key: dict[tuple[float, float, int], list[Run]] = {}
    for run in baselines.values():
        by_key.setdefault(run.pair_key, []).append(run)
    paired = []
    for run in runs:
        if run.is_baseline:
            continue
        if run.delta is not None:
            paired.append(run)
            continue
        baseline = _find_baseline(run, baselines, by_key)
        assert run.loss is not None
        assert baseline.loss is not None
        delta = run.loss - baseline.loss
        paired.append(replace(run, delta=delta, baseline_run_id=baseline.run_id))
    return paired


def _find_baseline(
    run: Run,
    baselines: Mapping[str, Run],
    by_key: Mapping[tuple[float, float, int], Sequence[Run]],
) -> Run:
    if run.baseline_run_id is not None:
        if run.baseline_run_id not in baselines:
            raise ValueError(
                f"{run.where}: baseline_run_id '{run.baseline_run_id}' of run '{run.run_id}' is no "
                "baseline of this table: name a run with an empty group_size"
            )
        return baselines[run.baseline_run_id]
    found = by_key.get(run.pair_key, ())
    if len(found) == 1:
        return found[0]
    same = (
        f"num_parameters={run.num_parameters:.10g}, num_tokens={run.num_tokens:.10g}, "
        f"seed={run.seed}"
    )
    if not found:
        raise ValueError(
            f"{run.where}: run '{run.run_id}' has no baseline of {same}: add that run (with an "
            "empty group_size), or name another in baseline_run_id"
        )
    raise ValueError(
        f"{run.where}: run '{run.run_id}' has several baselines of {same}: "
        f"{', '.join(other.run_id for other in found)}: name one in baseline_run_id"
    )


# Choosing


def parse_comparisons(text: str) -> Callable[[Run], bool]:
    """Reads a filter such as `num_parameters>=9e8` or `num_tokens>1e10, precision==w4a4`.

    Args:
        text: Comparisons of a column with a value, separated by commas.

    Returns:
        Whether all of them hold for a run. One with an empty field holds for no run.

    Raises:
        ValueError: It is no comparison of a column that can be compared.
    """
    tests = [_parse_comparison(part.strip()) for part in text.split(",")]
    return lambda run: all(test(run) for test in tests)


def _parse_comparison(text: str) -> Callable[[Run], bool]:
    match = re.fullmatch(r"(\w+)\s*(>=|<=|==|!=|>|<)\s*(\S+)", text)
    if match is None:
        raise ValueError(f"'{text}' is no comparison: write it as 'num_parameters>=9e8'")
    column, symbol, value = match.groups()
    texts = ("run_id", "precision", "baseline_run_id")
    if column not in COLUMNS:
        raise ValueError(f"'{text}': no column '{column}': there are {', '.join(COLUMNS)}")
    expected: str | float = value
    if column not in texts:
        try:
            expected = float(value)
        except ValueError:
            raise ValueError(f"'{text}': {column} is compared with a number") from None
    elif symbol not in ("==", "!="):
        raise ValueError(f"'{text}': {column} is text: compare it with == or !=")
    compare = _COMPARISONS[symbol]

    def holds(run: Run) -> bool:
        found = getattr(run, column)
        return found is not None and compare(found, expected)

    return holds


# Columns


@dataclass(frozen=True)
class BaselineTable:
    """Unquantised runs as columns, each of shape (num_runs,)."""

    num_parameters: NDArray[np.float64]
    num_tokens: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> "BaselineTable":
        """The baselines among `runs`."""
        rows = [(run.num_parameters, run.num_tokens, run.loss) for run in runs if run.is_baseline]
        n, d, loss = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return cls(n, d, loss)

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, index: NDArray[Any]) -> "BaselineTable":
        """The rows of an index or a mask."""
        return BaselineTable(self.num_parameters[index], self.num_tokens[index], self.loss[index])

    @property
    def clusters(self) -> NDArray[np.int64]:
        """What a bootstrap draws together: each run is on its own."""
        return np.arange(len(self))


@dataclass(frozen=True)
class DeltaTable:
    """Quantised runs of one precision as columns, each of shape (num_runs,).

    Attributes:
        num_parameters: N.
        num_tokens: D.
        group_size: G.
        delta: Loss minus that of the baseline, nats.
        clusters: int64, equal for runs that share a baseline and so its noise.
    """

    num_parameters: NDArray[np.float64]
    num_tokens: NDArray[np.float64]
    group_size: NDArray[np.float64]
    delta: NDArray[np.float64]
    clusters: NDArray[np.int64]

    @classmethod
    def of(cls, paired: Iterable[Run]) -> "DeltaTable":
        """Columns of what `pair_runs` returns."""
        runs = list(paired)
        rows = [(run.num_parameters, run.num_tokens, run.group_size, run.delta) for run in runs]
        names = [run.baseline_run_id or repr(run.pair_key) for run in runs]
        number = {name: index for index, name in enumerate(dict.fromkeys(names))}
        n, d, g, delta = np.array(rows, dtype=np.float64).reshape(-1, 4).T
        return cls(n, d, g, delta, np.array([number[name] for name in names], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.delta)

    def select(self, index: NDArray[Any]) -> "DeltaTable":
        """The rows of an index or a mask."""
        return DeltaTable(
            self.num_parameters[index],
            self.num_tokens[index],
            self.group_size[index],
            self.delta[index],
            self.clusters[index],
        )

    @property
    def cells(self) -> NDArray[np.int64]:
        """Shape (num_runs,): equal for runs that differ in their seed only, 0 to num_cells - 1."""
        points = np.stack([self.num_parameters, self.num_tokens, self.group_size], axis=1)
        return np.unique(points, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def mean_over_seeds(self) -> "DeltaTable":
        """One row per cell."""
        cells = self.cells
        first = np.unique(cells, return_index=True)[1]
        mean = np.bincount(cells, weights=self.delta) / np.bincount(cells)
        return replace(self.select(first), delta=mean)
