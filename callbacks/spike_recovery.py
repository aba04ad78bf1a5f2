"""Out of a loss spike: back to the mean of the last good snapshots, and on past the bad data."""

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from ..modules.merge_weights import MergeScheme
from ..modules.weight_averaging import local_tensor
from .checkpoint_merging import CheckpointMerging

OptimizerState = list[dict[str, Any]]  # one entry per parameter, in the optimizer's order


class SpikeRecovery(SpikeDetection):
    """Notices a loss spike, goes back to merged snapshots from before it, and goes on.

    "Model Merging in Pre-training" (arXiv 2505.12082, section 4.5): a run that diverged went on
    along its course from the merge of three checkpoints before the collapse. Here without a
    restart: weights and optimizer state go back, the data and the schedule go on, so that the batch
    that set off the spike is not seen again in this epoch. Needs `CheckpointMerging` before it in
    the list of callbacks, whose ring holds the snapshots.

    A spike is what Lightning's `SpikeDetection` takes for one: a batch's loss is not finite, or it
    is above the last one and above the mean of the last `window` by at least `atol` and `rtol`
    times that mean. Looking at every loss waits for the device once per batch. Recoveries are in
    `metrics.json` under `run.spike_recoveries`.

    Args:
        num_checkpoints: Snapshots that are merged, with equal weights.
        distrusted_steps: Snapshots this few steps before the spike or less may already be spoilt,
            and are dropped.
        optimizer_state: "latest": as it was at the newest of the merged snapshots (kept in host
            memory for the newest two; after a resume it is reset instead until there is one).
            "reset": empty. "keep": as it is.
        max_recoveries: Recoveries after which the run stops at the next spike.
        window: Losses in the running mean.
        warmup: Batches of an epoch that are not looked at.
        rtol: Relative excess over the mean that is a spike; None: any.
        atol: Absolute excess; None: any.

    Raises:
        ValueError: `CheckpointMerging` is missing, or an argument is out of range.
        RuntimeError: There is nothing to go back to, or too many recoveries.
    """

    def __init__(
        self,
        num_checkpoints: int = 3,
        distrusted_steps: int = 10,
        optimizer_state: Literal["latest", "reset", "keep"] = "latest",
        max_recoveries: int = 5,
        window: int = 20,
        warmup: int = 0,
        rtol: float | None = 0.5,
        atol: float | None = None,
    ) -> None:
        if min(num_checkpoints, distrusted_steps, max_recoveries) < 1:
            raise ValueError(
                "num_checkpoints, distrusted_steps and max_recoveries must be 1 or more, got "
                f"{num_checkpoints}, {distrusted_steps} and {max_recoveries}"
            )
        super().__init__(window=window, warmup=warmup, rtol=rtol, atol=atol)
        self.running_mean.persistent(True)
        self.num_checkpoints = num_checkpoints
        self.distrusted_steps = distrusted_steps
        self.optimizer_state = optimizer_state
        self.max_recoveries = max_recoveries
        self.recoveries: list[dict[str, Any]] = []
        self._states: dict[int, list[OptimizerState]] = {}  # step of a snapshot -> optimizers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the ring."""
        _find_merging(trainer)
        self.running_mean.to(trainer.strategy.root_device)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the optimizer state of a new snapshot; looks at the loss."""
        entries = _find_merging(trainer).ring.entries
        if self.optimizer_state == "latest" and entries:
            newest = entries[-1].step
            if newest == trainer.global_step and newest not in self._states:
                self._states[newest] = [_copy_state(o) for o in trainer.optimizers]
                for step in sorted(self._states)[:-2]:
                    del self._states[step]
        self._loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _handle_spike(self, fabric: Any, batch_idx: int) -> None:
        # Private: where Lightning would end training; tests/callbacks/test_spike_recovery.py
        # notices when it moves. `fabric` is the trainer.
        trainer: Trainer = fabric
        module, step = trainer.lightning_module, trainer.global_step
        merging = _find_merging(trainer)
        merging.refresh(trainer)
        mean = float(self.running_mean.compute())
        spike = f"loss spike at step {step} ({self._loss:.4g}, mean of the last ones {mean:.4g})"
        good = [e for e in merging.ring.entries if e.step <= step - self.distrusted_steps]
        if len(self.recoveries) >= self.max_recoveries:
            raise RuntimeError(f"{spike} after {self.max_recoveries} recoveries: lower the rate")
        if not good:
            raise RuntimeError(
                f"{spike}, and no snapshot at least {self.distrusted_steps} steps older: take them "
                "earlier or closer (CheckpointMerging)"
            )
        entries = good[-self.num_checkpoints :]
        merge = replace(merging.merge(module, MergeScheme("sma")), entries=entries)
        merge.put(trainer, merging.ring)
        merging.ring.entries = good
        restored = self._restore_optimizers(trainer, entries[-1].step)
        for parameter in module.parameters():
            parameter.grad = None  # what the spoilt weights have accumulated
        steps = [entry.step for entry in entries]
        self.recoveries.append(
            {"step": step, "loss": self._loss, "mean": mean, "merged_steps": steps}
        )
        rank_zero_warn(
            f"{spike}: the weights are now the mean of the snapshots of steps "
            f"{', '.join(map(str, steps))}, optimizer state: {restored}; the data of steps "
            f"{steps[-1] + 1} to {step} are not seen again"
        )

    def _restore_optimizers(self, trainer: Trainer, step: int) -> str:
        """Puts the optimizer state back; returns what was done, in words."""
        if self.optimizer_state == "keep":
            return "kept"
        states = self._states.get(step)
        for index, optimizer in enumerate(trainer.optimizers):
            if states is None:
                optimizer.state.clear()
            else:
                _load_state(optimizer, states[index])
        self._states = {s: state for s, state in self._states.items() if s <= step}
        return "reset" if states is None else f"that of step {step}"

    def state_dict(self) -> dict[str, Any]:
        """Returns the recoveries and the losses in the window, in plain types."""
        running = self.running_mean
        return {
            "recoveries": self.recoveries,
            "last_val": float(self.last_val),
            "window": {name: value.cpu() for name, value in running.state_dict().items()},
            "num_seen": running._num_vals_seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them, where Lightning's own method fails."""
        self.recoveries = state_dict["recoveries"]
        self.last_val = state_dict["last_val"]
        self.running_mean.load_state_dict(state_dict["window"])
        self.running_mean._num_vals_seen = state_dict["num_seen"]

    def run_info(self) -> dict[str, Any]:
        """Returns every recovery, for `metrics.json`."""
        return {"spike_recoveries": self.recoveries}


class SpikeInjection(Callback):
    """Sets off a loss spike, to try out before it is needed how a run recovers.

    After all other callbacks in the list, so that they see the learning rate of the schedule.

    Args:
        step: Optimizer steps before the spike.
        num_steps: Optimizer steps at the raised rate.
        lr_factor: How many times the schedule's rate that is.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, step: int, num_steps: int = 3, lr_factor: float = 50.0) -> None:
        if step < 0 or num_steps < 1 or lr_factor <= 0:
            raise ValueError(
                "step must be 0 or more, num_steps 1 or more, lr_factor above 0; got "
                f"{step}, {num_steps} and {lr_factor}"
            )
        self.steps = range(step, step + num_steps)
        self.lr_factor = lr_factor
        self._rates: list[tuple[dict[str, Any], Any]] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Raises the rate."""
        if trainer.global_step in self.steps:
            self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
            for group, rate in self._rates:
                group["lr"] = rate * self.lr_factor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Puts the rate back where no schedule has set the next one."""
        for group, rate in self._rates:
            if group["lr"] == rate * self.lr_factor:
                group["lr"] = rate
        self._rates = []


def _find_merging(trainer: Trainer) -> CheckpointMerging:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set at run time
    merging = next((c for c in callbacks if isinstance(c, CheckpointMerging)), None)
    if merging is None:
        raise ValueError("SpikeRecovery needs CheckpointMerging before it, for its snapshots")
    return merging


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copy_state(optimizer: Optimizer) -> OptimizerState:
    """Copies the state of every parameter to the CPU; of a sharded one the local part."""

    def copy(tensor: Tensor) -> Tensor:
        return local_tensor(tensor).to("cpu", copy=True)

    states = [dict(optimizer.state.get(parameter, {})) for parameter in _parameters(optimizer)]
    copied: OptimizerState = tree_map_only(Tensor, copy, states)
    return copied


def _load_state(optimizer: Optimizer, states: OptimizerState) -> None:
    """Copies back what `_copy_state` returned, in place."""
    with torch.no_grad():
        for parameter, state in zip(_parameters(optimizer), states, strict=True):
            if not state:
                optimizer.state.pop(parameter, None)
                continue
            live = optimizer.state[parameter]
            for name, value in state.items():
                if isinstance(value, Tensor):
                    local_tensor(live[name]).copy_(value)
                else:
                    live[name] = value
