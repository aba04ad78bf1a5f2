"""Loss curves with the learning rate of every step: in memory, as CSV, and in a run directory."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_write
from .laws import Array, LRHistory, Steps, decay_start, warmup_steps

CURVE_FILE = "loss_curve.csv"
HISTORY_FILE = "lr_history.json"
_COLUMNS = ("step", "lr", "loss")


@dataclass(frozen=True)
class LossCurve:
    """Losses of a run, and the rate of every optimizer step.

    Args:
        name: For messages and tables.
        rates: (T,) learning rate of every step, from step 0.
        steps: (n,) integer steps after which the loss was measured, increasing, below T.
        losses: (n,) positive losses, nats.

    Raises:
        ValueError: The points are not increasing, outside the schedule, or without a positive loss.
    """

    name: str
    rates: Array
    steps: Steps
    losses: Array

    def __post_init__(self) -> None:
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"{self.name}: the steps are not increasing")
        if len(self.steps) and not 0 <= self.steps[0] <= self.steps[-1] < len(self.rates):
            raise ValueError(
                f"{self.name}: losses at steps {self.steps[0]} to {self.steps[-1]}, but learning "
                f"rates for steps 0 to {len(self.rates) - 1}"
            )
        if not np.all(np.isfinite(self.losses) & (self.losses > 0)):
            raise ValueError(f"{self.name}: a loss is not a positive number")

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return warmup_steps(self.rates)

    @property
    def decay_start(self) -> int:
        """Steps before the rate falls for good."""
        return decay_start(self.rates)

    @property
    def is_annealed(self) -> bool:
        """Whether the rate falls anywhere after the warm-up."""
        return bool(np.any(np.diff(self.rates[self.warmup :]) < 0))

    def points(self, chosen: Steps | NDArray[np.bool_] | slice) -> "LossCurve":
        """The curve with some of its points, under the same schedule."""
        return LossCurve(self.name, self.rates, self.steps[chosen], self.losses[chosen])

    def until(self, step: int) -> "LossCurve":
        """What was known after `step` optimizer steps."""
        known = self.steps < step
        return LossCurve(self.name, self.rates[:step], self.steps[known], self.losses[known])

    def settled(self) -> "LossCurve":
        """The curve without its begin, where the loss does not follow a power law yet.

        That is twice the warm-up, and the first tenth of the steps.
        """
        return self.points(self.steps >= max(2 * self.warmup, len(self.rates) // 10))

    def digest(self) -> str:
        """A hash of the rates and the losses."""
        found = hashlib.sha256()
        for values in (self.rates, self.steps.astype(np.int64), self.losses):
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()[:16]


def read_curve(path: str | Path, warmup: int | None = None) -> LossCurve:
    """Reads a run directory, or a CSV with the columns step, lr and loss.

    A run directory has the rate of every step. A CSV has it at the logged steps: between them it is
    interpolated, after a linear warm-up from 0 (`numpy.linspace(0, lr, warmup)`).

    Args:
        path: The run directory, or the file. Of several values of a column `split`, "val" is read.
        warmup: Steps of the warm-up of a CSV; None: up to the first logged step, if that is not 0.

    Raises:
        ValueError: There is no such file, or it is no such table.
    """
    path = Path(path)
    if path.is_dir():
        history = path / HISTORY_FILE
        if not history.exists():
            raise ValueError(
                f"{path}: no {HISTORY_FILE} there; a run writes it with the callback "
                "AnnealingPrediction (--config overlays/anneal_prediction)"
            )
        steps, _, losses = _read_table(path / CURVE_FILE)
        rates = LRHistory(**json.loads(history.read_text(encoding="utf-8"))).rates()
        return LossCurve(str(path), rates, steps, losses)
    steps, logged, losses = _read_table(path)
    rates = np.interp(np.arange(steps[-1] + 1), steps, logged)
    length = int(steps[0]) if warmup is None else warmup
    if length > steps[-1]:
        raise ValueError(f"--warmup {length}: {path} ends at step {steps[-1]}")
    rates[:length] = np.linspace(0.0, logged[0], length)
    return LossCurve(path.stem, rates, steps, losses)


def write_curve(
    run_dir: Path, points: Sequence[tuple[int, float, float]], history: LRHistory
) -> None:
    """Writes `loss_curve.csv` and `lr_history.json`, each whole or not at all.

    Args:
        run_dir: The run directory.
        points: (step, rate, validation loss), in order.
        history: The rate of every step.
    """
    with atomic_write(run_dir / CURVE_FILE, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, "split"])
        writer.writerows([*point, "val"] for point in points)
    with atomic_write(run_dir / HISTORY_FILE, "w") as file:
        json.dump({"values": history.values, "lengths": history.lengths}, file)


def _read_table(path: Path) -> tuple[Steps, Array, Array]:
    if not path.is_file():
        raise ValueError(f"no file and no run directory '{path}'")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected step,lr,loss")
        rows = [row for row in reader if row.get("split", "val") == "val"]
    if not rows:
        raise ValueError(f"{path}: no losses in it")
    try:
        steps, rates, losses = (np.array([float(row[name]) for row in rows]) for name in _COLUMNS)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a value is no number ({error})") from error
    return steps.astype(np.int64), rates, losses
