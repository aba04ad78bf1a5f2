"""From rows to numbers: means with intervals, and beside each what chance would give."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..metrics.questions import QuestionMetric
from .rows import Row

NUM_RESAMPLES = 2000
AT_A_TIME = 200  # resamples, so that memory stays small
# Columns of what is kept of a question under a name.
UNIT, SIZE, GROUP, VALUE, CHANCE = range(5)
Array = np.ndarray[Any, np.dtype[np.float64]]


class Score(NamedTuple):
    """A mean over units.

    Args:
        value: The mean, in [0, 1].
        n: Units it is over.
        stderr: Of the mean if units were independent: sqrt(p (1 - p) / n) for a share.
        low: Where the 95 % interval begins: a bootstrap that draws whole groups, since what shares
            images or a statement is not independent.
        high: Where it ends.
        chance: What choosing by chance would give; NaN where there is no such thing.
    """

    value: float
    n: int
    stderr: float
    low: float
    high: float
    chance: float


class ReasoningScores(QuestionMetric):
    """Scores of rows, each question counted once on any number of ranks.

    `compute` returns a `Score` for each `<set>/<count>`, such as `winogavil/5_6/jaccard`, for each
    `<set>/<category>=<value>/<count>`, and for each set the shares `parse_fail_rate`, `error_rate`
    and `warning_rate`. What could not be parsed or was not answered is wrong, and in these.
    """

    def __init__(self) -> None:
        super().__init__(num_values=5)

    def update(self, rows: Sequence[Row]) -> None:
        """Adds rows, see `rows`."""
        names: list[str] = []
        ids: list[str] = []
        values: list[list[float]] = []
        for row in rows:
            chance = math.nan if row["chance"] is None else float(row["chance"])
            group = _number(row["group"])
            for name, unit, size, value, expected in _counted(row, chance):
                names.append(name)
                ids.append(row["id"])
                values.append([_number(unit), float(size), group, value, expected])
        self.add(names, ids, torch.tensor(values, dtype=torch.float64))

    def compute(self) -> dict[str, Score]:
        """Returns the scores."""
        return {
            name: score
            for name, rows in self.rows().items()
            if (score := _score(rows.cpu().numpy())) is not None
        }


def logged(scores: Mapping[str, Score]) -> dict[str, float]:
    """Returns what a run logs of scores: `<name>`, `<name>_chance`, `_low`, `_high`, `_n`.

    Not the breakdowns, of which there may be hundreds: they are in `scores.json`.
    """
    found: dict[str, float] = {}
    for name, score in scores.items():
        if "=" in name:
            continue
        found[name] = score.value
        if not name.endswith("_rate"):
            parts = score._asdict() | {"n": float(score.n)}
            found |= {f"{name}_{part}": parts[part] for part in ("chance", "low", "high", "n")}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _counted(row: Row, chance: float) -> Iterable[tuple[str, str, int, float, float]]:
    """Yields what a row counts in: name, unit, its size, value and chance."""
    prefixes = [row["set"]]
    prefixes += [f"{row['set']}/{name}={value}" for name, value in row["categories"].items()]
    for prefix in prefixes:
        for count in row["counts"]:
            name = f"{prefix}/{count['name']}"
            yield name, count["unit"], count["size"], row["value"], chance
        if row["metric"] == "jaccard" and prefix == row["set"]:
            is_exact = float(set(row["parsed"]) == set(row["answers"]))
            expected = 1 / math.comb(len(row["options"]), len(row["answers"]))
            yield f"{prefix}/exact", row["id"], 1, is_exact, expected
    rates = {
        "parse_fail_rate": row["status"] == "failed",
        "error_rate": row["status"] == "error",
        "warning_rate": bool(row["warnings"]),
    }
    for name, share in rates.items():
        yield f"{row['set']}/{name}", row["id"], 1, float(share), math.nan


def _score(rows: Array) -> Score | None:
    """Scores what is kept under one name, (n, 5); None if no unit is complete."""
    _, first, unit = np.unique(rows[:, UNIT], return_index=True, return_inverse=True)
    present = np.bincount(unit)
    complete = present == rows[first, SIZE]
    if not complete.any():
        return None
    product, chance = (np.ones(len(first)), np.ones(len(first)))
    np.multiply.at(product, unit, rows[:, VALUE])
    np.multiply.at(chance, unit, rows[:, CHANCE])
    values, groups = product[complete], rows[first, GROUP][complete]
    low, high = _interval(values, groups)
    return Score(
        value=float(values.mean()),
        n=len(values),
        stderr=float(values.std() / math.sqrt(len(values))),
        low=low,
        high=high,
        chance=float(chance[complete].mean()),
    )


def _interval(values: Array, groups: Array) -> tuple[float, float]:
    """The middle 95 % of means over groups that are drawn with replacement."""
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(0, NUM_RESAMPLES, AT_A_TIME):
        drawn = generator.integers(len(sums), size=(AT_A_TIME, len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _number(text: str) -> float:
    """A number that stands for a text: 48 bits of its hash, exact in float64."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
