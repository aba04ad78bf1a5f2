"""Progress for logs: where no terminal shows a bar, a line now and then."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor


class ProgressLines(Callback):
    """Prints step, logged values and the time left: after a validation, and every few seconds.

    Args:
        every_seconds: Least time between two lines outside validation, in seconds.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._started = self._printed = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Prints when it is time."""
        if time.monotonic() - self._printed >= self.every_seconds:
            self._print(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the new values."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._print(trainer)

    @rank_zero_only
    def _print(self, trainer: Trainer) -> None:
        self._printed = time.monotonic()
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        done = step - self._first_step
        values = [f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items()]
        if done and total != float("inf"):
            left = (self._printed - self._started) / done * (total - step)
            values.append(f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")
        print(f"step {step}/{total:g}  {'  '.join(values)}", flush=True)
