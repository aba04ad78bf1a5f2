"""While the rate is constant: what would the model score after a decay?

By laws of the loss curve (`modules.annealing_law`), and by the merged models of `CheckpointMerging`
where that callback stands before this one.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..modules.annealing_law import LAWS, Array, HypotheticalDecay, LawName, LRHistory
from ..modules.annealing_law.curve import LossCurve, write_curve
from ..modules.annealing_law.figure import MergedLoss, draw_annealing
from ..modules.annealing_law.forecasting import Forecast, RunFit, fit_run, forecast, has_probe_decay
from ..modules.annealing_law.prior import AnnealingPrior, fit_prior
from ..modules.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS_FILE = "annealing_prediction.csv"
PRIOR_FILE = "annealing_law.json"
PLANNED = "planned"
SAME_RATE = 0.02  # of the peak: how far two decays may differ and still be the same
SAME_LENGTH = 0.05
_COLUMNS = ("step", "law", "decay", "status", "first_step", "last_step", "loss", "low", "high")


class AnnealingPrediction(Callback):
    """Predicts the loss after decays that the run has not done, each time with an interval.

    Logged as `anneal_pred/<law>/<decay>` with `/low` and `/high` (90 %), and written to
    `annealing_prediction.csv` in the run directory, with the figure `annealing_prediction`. The
    decay that the run's own schedule is going to do is predicted under the name "planned". A merged
    model, if `CheckpointMerging` makes any, predicts as `anneal_pred/merged/<scheme>` a decay that
    began when its window did, not one that begins now.

    When the run's own decay begins, predictions end; after it, those of the same decay are compared
    with the loss: `/error` in nats and `/error_of_drop` as a fraction of the drop since its begin.

    The laws need a prior: what annealing does to a model cannot be seen at a constant rate. Any run
    with a decay leaves one, `annealing_law.json`; `tenfold anneal-predict --fit-prior` makes a
    better one of several. Also written: `loss_curve.csv` and `lr_history.json`, for
    `tenfold anneal-predict --curve RUN_DIR`. Training is not changed.

    Not for a rate that falls from the begin (cosine), and not for data seen many times over: the
    loss is no power law then.

    Args:
        monitor: The validation loss.
        laws: Which laws to ask.
        hypothetical: Decays that the run might begin now; None: 1-sqrt to 0 over a fifth of the
            run, decay included.
        planned: Whether to predict the decay of the run's own schedule (a `LambdaLR`, such as
            `WarmupStableDecay`) as well.
        prior_path: Laws of a smaller model or an earlier run, with this run's peak rate, batch size
            and data.
        min_points: Validations, after twice the warm-up, before the first prediction.
        fit_every_n_val: Validations between predictions. One takes about a second per law.
        use_merging: Whether to report what merged models predict.
        lr_group: Parameter group whose learning rate counts.

    Raises:
        ValueError: The settings are wrong, the prior is none, or the monitored loss is not logged.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        laws: Sequence[LawName] = ("relaxation", "mpl", "tissue"),
        hypothetical: list[HypotheticalDecay] | None = None,
        planned: bool = True,
        prior_path: str | None = None,
        min_points: int = 20,
        fit_every_n_val: int = 5,
        use_merging: bool = True,
        lr_group: int = 0,
    ) -> None:
        for name, value, least in (
            ("min_points", min_points, 4),
            ("fit_every_n_val", fit_every_n_val, 1),
            ("lr_group", lr_group, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if unknown := [law for law in laws if law not in LAWS]:
            raise ValueError(f"laws: {', '.join(unknown)}: there are {', '.join(LAWS)}")
        if hypothetical is None:
            hypothetical = [HypotheticalDecay(decay_ratio=0.2)]
        labels = [decay.label for decay in hypothetical]
        if len({*labels, PLANNED}) <= len(labels):
            raise ValueError(f"hypothetical: names must differ and not be 'planned', got {labels}")
        self.monitor = monitor
        self.laws = tuple(laws)
        self.hypothetical = tuple(hypothetical)
        self.planned = planned
        self.prior_path = prior_path
        self.prior: AnnealingPrior | None = None
        self.min_points = min_points
        self.fit_every_n_val = fit_every_n_val
        self.use_merging = use_merging
        self.lr_group = lr_group
        self.history = LRHistory()
        self.points: list[tuple[int, float, float]] = []  # step, rate, loss
        self.predictions: list[dict[str, Any]] = []  # rows of the table, all of them
        self.merged: list[MergedLoss] = []
        self.comparisons: list[dict[str, Any]] = []
        self._forecasts: list[Forecast] = []  # the latest
        self._fits: list[RunFit] = []
        self._logged: set[str] = set()
        self._num_validations = 0
        self._num_merged = 0
        self._rate = math.nan
        self._schedule: Array | None = None

    # Recording

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the prior, which only training needs."""
        if stage == "fit" and self.prior_path is not None:
            self.prior = AnnealingPrior.read(self.prior_path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the run's schedule ahead."""
        groups = len(trainer.optimizers[0].param_groups)
        if self.lr_group >= groups:
            raise ValueError(f"lr_group: {self.lr_group}, but the optimizer has {groups} groups")
        self._schedule = self._read_schedule(trainer) if self.planned else None
        self._num_merged = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Notes the rate that this step uses."""
        self._rate = float(optimizer.param_groups[self.lr_group]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Records the rate, once for each optimizer step."""
        missing = trainer.global_step - len(self.history)
        if missing > 1:
            rank_zero_warn(
                f"AnnealingPrediction has not seen the first {missing - 1} steps of this run: "
                "their learning rate is taken to be the one now"
            )
        for _ in range(missing):
            self.history.append(self._rate)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the loss, and predicts when it is time."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not self.history:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"monitor: '{self.monitor}' is not logged; there are "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        step = len(self.history) - 1
        loss = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        if not (math.isfinite(loss) and loss > 0):
            return
        # A resumed run may repeat the validation of its checkpoint.
        self.points = [point for point in self.points if point[0] < step]
        self.predictions = [row for row in self.predictions if row["step"] < step]
        self.points.append((step, self.history.values[-1], loss))
        self._num_validations += 1
        merged = self._read_merged(trainer) if self.use_merging else {}
        self._log(trainer, merged)
        curve = self.curve()
        if self._num_validations % self.fit_every_n_val:
            return
        if not _is_decaying(curve):
            if trainer.is_global_zero:
                self._predict(curve)
            self._fits, self._forecasts = trainer.strategy.broadcast((self._fits, self._forecasts))
            self.predictions += [_row(curve, f) for f in self._forecasts if f.loss is not None]
            logged = self._metrics()
            for name in self._logged - logged.keys():  # refused this time
                trainer.callback_metrics.pop(name, None)
            self._logged = set(logged)
            self._log(trainer, logged)
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir))

    def curve(self) -> LossCurve:
        """The run so far."""
        steps, _, losses = zip(*self.points, strict=True) if self.points else ((), (), ())
        return LossCurve(
            "this run",
            self.history.rates(),
            np.array(steps, np.int64),
            np.array(losses, np.float64),
        )

    # Predicting

    def _predict(self, curve: LossCurve) -> None:
        futures = {
            decay.label: decay.rates(len(curve.rates), float(curve.rates[-1]))
            for decay in self.hypothetical
        }
        if self._schedule is not None and len(self._schedule) > len(curve.rates):
            ahead = self._schedule[len(curve.rates) :]
            if ahead[-1] < (1 - SAME_RATE) * curve.rates[-1]:
                futures[PLANNED] = ahead
        self._fits = [
            fit_run(law, curve, self.prior, min_points=self.min_points) for law in self.laws
        ]
        self._forecasts = [
            forecast(fit, curve, name, future, self.prior)
            for fit in self._fits
            for name, future in futures.items()
        ]

    def _read_schedule(self, trainer: Trainer) -> Array | None:
        """The rates of the whole run, where its schedule is a function of the step."""
        total = trainer.estimated_stepping_batches
        configs = trainer.lr_scheduler_configs
        if len(configs) != 1 or not math.isfinite(total):
            return None
        config = configs[0]
        scheduler = config.scheduler
        if (config.interval, config.frequency) != ("step", 1) or not isinstance(
            scheduler, LambdaLR
        ):
            return None
        base = scheduler.base_lrs[self.lr_group]
        curve = scheduler.lr_lambdas[self.lr_group]
        return np.array([float(base) * curve(step) for step in range(int(total))])

    def _read_merged(self, trainer: Trainer) -> dict[str, float]:
        """The merged losses that are new since the last validation."""
        owners = [c for c in trainer.callbacks if hasattr(c, "evaluations")]  # type: ignore[attr-defined]
        evaluations = [entry for owner in owners for entry in owner.evaluations]
        new = [
            MergedLoss(
                str(entry["scheme"]),
                int(entry["step"]) - 1,
                int(entry["step"]) - int(entry["duration_steps"]),
                float(entry["metrics"][self.monitor]),
            )
            for entry in evaluations[self._num_merged :]
            if self.monitor in entry["metrics"]
        ]
        self._num_merged = len(evaluations)
        last = self.merged[-1].step if self.merged else -1
        new = [point for point in new if point.step > last]  # a resume has shown the older ones
        self.merged += new
        return {f"anneal_pred/merged/{point.scheme}": point.loss for point in new}

    def _metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for prediction in self._forecasts:
            name = f"anneal_pred/{prediction.law_name}/{prediction.decay}"
            values = {"": prediction.loss, "/low": prediction.low, "/high": prediction.high}
            found |= {name + end: value for end, value in values.items() if value is not None}
        return found

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step=trainer.global_step)

    # After the decay

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the predictions with what the decay gave, and leaves a prior."""
        if not self.points:
            return
        curve = self.curve()
        self.comparisons = self._compare(curve)
        for found in self.comparisons:
            name = f"anneal_pred/{found['law']}/{found['decay']}"
            errors = {key: found[key] for key in ("error", "error_of_drop")}
            self._log(trainer, {f"{name}/{key}": value for key, value in errors.items()})
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        self._write(run_dir)
        for line in self.report():
            rank_zero_info(line)
        if has_probe_decay(curve.settled()):
            fit_prior([curve], self.laws).write(run_dir / PRIOR_FILE)
        elif curve.is_annealed:
            rank_zero_info(f"{PRIOR_FILE}: not written, too few losses were measured in the decay")

    def _compare(self, curve: LossCurve) -> list[dict[str, Any]]:
        """The last prediction by each law of the decay that the run then did, and what came."""
        start, end = curve.decay_start, len(curve.rates) - 1
        before = curve.losses[curve.steps < start]
        if start > end or not len(before) or curve.steps[-1] < end:
            return []
        actual = float(curve.losses[-1])
        drop = float(before[-1]) - actual
        done = curve.rates[start - 1 : -1]  # the first step of a decay has the peak rate still
        same = {
            decay.label
            for decay in self.hypothetical
            if _is_same_decay(decay.rates(start - 1, float(done[0])), done)
        }
        found = {}
        for row in self.predictions:
            is_planned = row["decay"] == PLANNED and row["last_step"] == end
            # One that began now is no prediction of the real one unless that began soon after.
            is_near = row["decay"] in same and row["step"] == self.predictions[-1]["step"]
            if is_planned or is_near:
                error = row["loss"] - actual
                found[row["law"], row["decay"]] = {
                    **{key: row[key] for key in ("law", "decay", "step", "loss")},
                    "actual": actual,
                    "error": error,
                    "error_of_drop": error / drop if drop else math.nan,
                }
        return list(found.values())

    def report(self) -> list[str]:
        """The predictions in words: against what came, or the latest."""
        compared = {(found["law"], found["decay"]) for found in self.comparisons}
        lines = [
            f"anneal_pred/{found['law']}/{found['decay']}: {found['loss']:.4f} predicted at step "
            f"{found['step']}, {found['actual']:.4f} came: off by {found['error']:+.4f}, "
            f"{found['error_of_drop']:+.0%} of the drop"
            for found in self.comparisons
        ]
        for found in self._forecasts:
            if (found.law_name, found.decay) in compared:
                continue
            name = f"anneal_pred/{found.law_name}/{found.decay}"
            if found.loss is None:
                lines.append(f"{name}: {found.status}")
            else:
                lines.append(
                    f"{name}: {found.loss:.4f} ({found.low:.4f} to {found.high:.4f}) after steps "
                    f"{found.first_step} to {found.last_step}"
                )
        return lines

    # What a run leaves behind

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes what there is."""
        if trainer.is_global_zero and self.points:
            self._write(Path(trainer.default_root_dir))

    def _write(self, run_dir: Path) -> None:
        write_curve(run_dir, self.points, self.history)
        with atomic_write(run_dir / PREDICTIONS_FILE, "w") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.predictions)
            writer.writerows(_merged_row(point) for point in self.merged)

    def state_dict(self) -> dict[str, Any]:
        """Returns the history and the predictions, in plain types."""
        return {
            "history": {"values": self.history.values, "lengths": self.history.lengths},
            "points": [list(point) for point in self.points],
            "predictions": self.predictions,
            "merged": [asdict(point) for point in self.merged],
            "forecasts": [
                asdict(f) | {"path": None if f.path is None else f.path.tolist()}
                for f in self._forecasts
            ],
            "num_validations": self._num_validations,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.history = LRHistory(**state_dict["history"])
        self.points = [(int(s), float(r), float(v)) for s, r, v in state_dict["points"]]
        self.predictions = list(state_dict["predictions"])
        self.merged = [MergedLoss(**point) for point in state_dict["merged"]]
        self._forecasts = [
            Forecast(**{**f, "path": None if f["path"] is None else np.array(f["path"])})
            for f in state_dict["forecasts"]
        ]
        self._num_validations = int(state_dict["num_validations"])

    def run_info(self) -> dict[str, Any]:
        """Returns statuses, parameters and residuals of the fits, for `metrics.json`."""
        fits = {
            fit.law_name: {"status": fit.status}
            | (
                {"residual_std": fit.fit.residual_std, "r2": fit.fit.r2} | fit.fit.law.to_dict()
                if fit.fit is not None
                else {}
            )
            for fit in self._fits
        }
        decays = [{k: v for k, v in asdict(f).items() if k != "path"} for f in self._forecasts]
        return {
            "annealing_prediction": {
                "fits": fits,
                "decays": decays,
                "merged": [asdict(point) for point in self.merged[-1:]],
                "comparisons": self.comparisons,
            }
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns losses, merged losses and predicted decays, once there are losses."""
        if not self.points:
            return {}
        split = self._forecasts[0].first_step if self._forecasts else None
        figure = draw_annealing(self.curve(), self._forecasts, self.merged, split)
        return {"annealing_prediction": figure}


def _is_decaying(curve: LossCurve) -> bool:
    return curve.decay_start < len(curve.rates)


def _is_same_decay(expected: Array, actual: Array) -> bool:
    """Whether two decays have about the same length and rates."""
    if abs(len(expected) - len(actual)) > max(1, SAME_LENGTH * len(actual)):
        return False
    place = np.linspace(0, 1, 50)
    resampled = [np.interp(place, np.linspace(0, 1, len(r)), r) for r in (expected, actual)]
    return bool(np.all(np.abs(resampled[0] - resampled[1]) <= SAME_RATE * expected[0]))


def _row(curve: LossCurve, found: Forecast) -> dict[str, Any]:
    values = {name: getattr(found, name) for name in _COLUMNS[2:]}
    return {"step": int(curve.steps[-1]), "law": found.law_name, **values}


def _merged_row(point: MergedLoss) -> dict[str, Any]:
    return {
        "step": point.step,
        "law": "merged",
        "decay": point.scheme,
        "status": "ok",
        "first_step": point.decay_start,
        "last_step": point.step,
        "loss": point.loss,
    }
