"""What a training run counts on the way: tokens, losses between logging steps, speed, curves.

What is counted need not be tokens: a module that trains on clouds or images counts those.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainingProgress:
    """Counts tokens, averages losses between logging steps, measures speed, keeps loss curves.

    Between logging steps nothing waits for the device. Counts and curves survive a checkpoint
    (`state_dict` is plain types); speed is that of the running process.

    Args:
        num_losses: Values that `step` receives each time.
        max_points: Points kept per curve; a longer curve is thinned to half, its last point kept.
        unit: What is counted, for the figure.
        loss_unit: What the loss is measured in, for the figure.
    """

    def __init__(
        self,
        num_losses: int = 1,
        max_points: int = 4096,
        unit: str = "tokens",
        loss_unit: str = "nats / token",
    ) -> None:
        self.tokens = 0
        self.curves: dict[str, list[list[float]]] = {"train": [], "val": []}
        self.max_points = max_points
        self.unit, self.loss_unit = unit, loss_unit
        self._sums = torch.zeros(num_losses + 1)  # of losses and of steps since the last average
        self._epoch_sums = torch.zeros(2)  # of the first loss and of steps in this epoch
        self._mark: tuple[float, int] | None = None  # time and tokens when speed was last taken
        self._paused_at = 0.0
        self._timed_tokens, self._timed_seconds = 0, 0.0

    def step(self, losses: Tensor, num_tokens: int) -> None:
        """Adds one batch: its losses (num_losses,), left on their device, and its tokens."""
        if self._mark is None:
            self._mark = (time.perf_counter(), self.tokens)
        self.tokens += num_tokens
        sums = torch.cat((losses.detach(), losses.new_ones(1)))
        self._sums = self._sums.to(sums) + sums
        self._epoch_sums = self._epoch_sums.to(sums) + sums[[0, -1]]

    def mean_losses(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> list[float]:
        """Returns the mean losses of the batches since the last call and adds a curve point.

        Args:
            reduce: Averages a tensor over devices.
        """
        sums = reduce(self._sums)
        means: list[float] = (sums[:-1] / sums[-1]).tolist()
        self._sums = torch.zeros_like(self._sums)
        self.add_point("train", means[0])
        return means

    def epoch_mean_loss(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> float:
        """Returns the mean of the first loss since the last call, for schedules that follow it.

        Args:
            reduce: Averages a tensor over devices.
        """
        total, num_steps = reduce(self._epoch_sums).tolist()
        self._epoch_sums = torch.zeros_like(self._epoch_sums)
        return float(total / num_steps)

    def add_point(self, curve: str, loss: float) -> None:
        """Adds the loss at the current number of tokens to a curve."""
        points = self.curves[curve]
        points.append([self.tokens, loss])
        if len(points) > self.max_points:
            del points[-2::-2]

    def tokens_per_second(self) -> float:
        """Returns the speed since the last call; call it where the device was waited for."""
        assert self._mark is not None
        now = time.perf_counter()
        tokens, seconds = self.tokens - self._mark[1], now - self._mark[0]
        self._mark = (now, self.tokens)
        self._timed_tokens += tokens
        self._timed_seconds += seconds
        return tokens / seconds

    def mean_tokens_per_second(self) -> float | None:
        """Returns the speed over all calls of `tokens_per_second`, None before the first."""
        return self._timed_tokens / self._timed_seconds if self._timed_seconds else None

    def pause(self) -> None:
        """Stops the clock, for validation."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Lets the clock run on."""
        if self._mark is not None:
            self._mark = (self._mark[0] + time.perf_counter() - self._paused_at, self._mark[1])

    def state_dict(self) -> dict[str, Any]:
        """Returns counts and curves in plain types."""
        curves = deepcopy(self.curves)
        return {
            "tokens": self.tokens,
            "curves": curves,
            "sums": self._sums.tolist(),
            "epoch_sums": self._epoch_sums.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.tokens = state["tokens"]
        self.curves = deepcopy(state["curves"])
        self._sums = torch.tensor(state["sums"])
        self._epoch_sums = torch.tensor(state.get("epoch_sums", [0.0, 0.0]))

    def figure(self) -> "Figure":
        """Draws training and validation loss against tokens."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot(xscale="log")
        axes.set(xlabel=f"{self.unit} seen", ylabel=f"loss ({self.loss_unit})")
        for name, label, style in (("train", "training", "-"), ("val", "validation", "o-")):
            if points := self.curves[name]:
                text = f"{label}, last {points[-1][1]:.3f}"
                axes.plot(*zip(*points, strict=True), style, markersize=4, label=text)
        axes.grid(which="both", alpha=0.3)
        axes.legend()
        return figure


class ProgressModule(LightningModule, ABC):
    """A LightningModule that counts what it trains on: in checkpoints, with a clock for training.

    Attributes:
        progress: Set by the module that derives from it.
    """

    progress: TrainingProgress

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of one batch, which `progress` has counted."""

    def is_logging_step(self, batch_idx: int) -> bool:
        """Whether the optimizer steps after this batch and the trainer logs that step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # set at run time
        accumulated = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        is_step = accumulated or self.trainer.is_last_batch
        return every > 0 and is_step and (self.trainer.global_step + 1) % every == 0

    def on_validation_start(self) -> None:
        """Stops the clock of training."""
        self.progress.pause()

    def on_validation_end(self) -> None:
        """Lets the clock of training run on."""
        self.progress.resume()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores counts and loss curves."""
        checkpoint["training_progress"] = self.progress.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them; a checkpoint without them (merged, converted) starts at zero."""
        if "training_progress" in checkpoint:
            self.progress.load_state_dict(checkpoint["training_progress"])
