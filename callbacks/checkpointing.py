"""Checkpoints that survive a kill.

They are whole or absent on disk, verifiable, and saved only where a run can go on bit for bit.
"""

import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..modules.files import atomic_write
from ..modules.weight_averaging import local_tensor
from .late_flags import LateFlags
from .sharded_checkpoint import (
    REST,
    are_shards_whole,
    duplicate,
    is_sharded,
    put_in_place,
    remove,
)
from .stop_signals import STOP_SIGNALS

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


def is_intact(path: Path) -> bool:
    """Whether a checkpoint can be trusted.

    A file is a whole zip archive, and the checksums in it (CRC-32, one per stored tensor, written
    by `torch.save`) all match. Of a folder of shards no file is missing or cut short.

    Raises:
        ValueError: A folder of shards holds more than tensors and plain types.
    """
    if path.is_dir():
        with _no_python_objects(path):
            return are_shards_whole(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
        return False


def newest_intact_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in `folder` to go on from, or None.

    `last.ckpt` comes first, then the others by time. Damaged files are named in a warning.
    """
    names = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    names.sort(key=lambda path: path.name != LAST)
    for path in names:
        if is_intact(path):
            return path
        rank_zero_warn(
            f"{path} is damaged (incomplete, or a checksum differs): trying an older one"
        )
    return None


def require_intact(path: Path) -> None:
    """Refuses a damaged checkpoint.

    Raises:
        ValueError: It is damaged; the message names the newest intact one beside it.
    """
    if not is_intact(path):
        other = newest_intact_checkpoint(path.parent)
        hint = f"the newest intact one is {other}" if other else "no other one is intact"
        raise ValueError(f"{path} is damaged (incomplete, or a checksum differs): {hint}")


def read_hyperparameters(path: Path) -> dict[str, Any]:
    """The hyperparameters stored in a checkpoint, whose tensors stay on disk.

    Raises:
        ValueError: The checkpoint holds more than tensors and plain types.
    """
    file = path / REST if is_sharded(path) else path
    with _no_python_objects(path):
        checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    hyperparameters: dict[str, Any] = checkpoint.get("hyper_parameters", {})
    return hyperparameters


@contextmanager
def _no_python_objects(path: str | Path) -> Iterator[None]:
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects, which could run code when loaded: only tensors and "
            "plain types are accepted"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes whole checkpoints and loads intact ones.

    A checkpoint is written under a temporary name, synced to disk and renamed. One that is damaged
    is refused, naming the newest intact one beside it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves `checkpoint` at `path`, which a crash leaves either as it was or complete."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        with atomic_write(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Loads a checkpoint after verifying its checksums.

        Raises:
            ValueError: The file is damaged, or holds more than tensors and plain types; or it is a
                folder of shards, and this run is not sharded.
        """
        if is_sharded(Path(path)):
            raise ValueError(
                f"{path} is a folder of shards: go on with --config overlays/fsdp, or put it in "
                f"one file, `tenfold merge {path} --out one.safetensors`, for --init_from"
            )
        require_intact(Path(path))
        with _no_python_objects(path):
            checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return checkpoint


class RunCheckpoint(Checkpoint):
    """Keeps `checkpoints/` of the run directory.

    - `last.ckpt`: the newest state. `previous.ckpt`: the one before, should `last.ckpt` be damaged.
    - `step_00000120.ckpt`: the best `save_top_k` by `monitor`.

    Saves after every validation, every `every_n_train_steps` steps, and when training ends. Where
    a validation is due after a step, the state is saved after that validation and not before it:
    so a resumed run neither repeats nor loses one. The first Ctrl-C, and a signal of a cluster
    (SIGTERM, SIGUSR1), finish the step, save and stop; a second Ctrl-C stops at once. Several
    processes agree on it one step later.

    Weights that are not finite are never saved: training stops, and what was saved before stays.
    A loss that is not finite stops it only where the weights are not either, one step later.

    Args:
        monitor: Logged metric that ranks checkpoints, such as `val/loss`. None keeps no best ones.
        mode: Whether a lower ("min") or a higher ("max") value is better.
        save_top_k: How many of the best to keep.
        every_n_train_steps: Optimizer steps between saves besides those after validation.

    Raises:
        ValueError: An argument is out of range; while training: the weights are not finite, or the
            monitored metric is not logged.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
    ) -> None:
        if save_top_k < 0:
            raise ValueError(f"save_top_k must be 0 or more, got {save_top_k}")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be 1 or more, got {every_n_train_steps}")
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_n_train_steps = every_n_train_steps
        self.best: dict[str, float] = {}
        self._last_saved_step = -1
        self._began_to_catch = False
        self._flags = LateFlags()
        self._stop_agreed = False
        self._is_to_stop = False
        self._unlogged: dict[str, float] = {}

    @property
    def best_checkpoint(self) -> str | None:
        """File name of the best checkpoint, None before the first validation or without monitor."""
        return min(self.best, key=lambda name: self._rank(self.best[name]), default=None)

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoints so far, and the values of this step that are yet to be logged."""
        return {"best": dict(self.best), "unlogged": dict(self._unlogged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best = dict(state_dict["best"])
        self._unlogged = dict(state_dict.get("unlogged", {}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C and the signals of a cluster."""
        self._began_to_catch = STOP_SIGNALS.catch(rank_zero_info)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes them over again: here and in `on_train_start` Lightning has them."""
        # Lightning's handler of SIGTERM waits for all ranks inside the handler, for ever where the
        # signal has reached one of them only, and ends training without a checkpoint.
        STOP_SIGNALS.catch(rank_zero_info)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mends a resume at an epoch's end; sets aside what is damaged; forgets what is gone."""
        STOP_SIGNALS.catch(rank_zero_info)
        self._flags, self._stop_agreed, self._is_to_stop = LateFlags(), False, False
        _leave_finished_epoch(trainer)
        folder = _folder(trainer)
        last = folder / LAST
        if trainer.is_global_zero:
            for unfinished in folder.glob(".*.tmp"):  # of a process that was killed
                remove(unfinished)
            if last.exists() and not is_intact(last):
                last.rename(folder / f"{LAST}.damaged")  # or it would become `previous.ckpt`
        self.best = {name: value for name, value in self.best.items() if (folder / name).exists()}
        if self._unlogged:  # a kill may have come between the checkpoint and the log of its step
            for logger in trainer.loggers:
                logger.log_metrics(dict(self._unlogged), step=trainer.global_step - 1)
                logger.save()
            self._unlogged = {}
        self._last_saved_step = trainer.global_step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back, if it took them."""
        if self._began_to_catch:
            STOP_SIGNALS.release()
            self._began_to_catch = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back: Lightning calls no `teardown` then."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops if asked to: at the end of the batch its values were not yet logged."""
        if self._is_to_stop:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when it is time and the state is one that Lightning resumes exactly.

        Not inside an accumulation, whose gradients are not stored; not before a validation that
        is due now; not on the last batch of an epoch, after whose resume Lightning's epoch
        counters are off by one. The hooks below take these cases.
        """
        self._ask_ranks(trainer, outputs)
        if not (_is_accumulating(trainer) or _validation_follows(trainer) or trainer.is_last_batch):
            self._unlogged = _values_to_log(trainer)
            self._save_if_due(trainer)
            self._unlogged = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves when it was time on the last batch; stops if asked to."""
        self._save_if_due(trainer)
        if self._is_to_stop:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, and ranks the state by the monitored metric."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._save(trainer, value=self._monitored(trainer))
        # Saving has made the ranks wait for each other: here they may ask at once.
        caught = trainer.strategy.reduce_boolean_decision(_is_caught(), all=False)
        if caught and not _is_accumulating(trainer):
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what no other hook has saved, as after a time limit without validation."""
        if trainer.global_step != self._last_saved_step:
            self._save(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        stop = _is_caught() if trainer.world_size == 1 else self._stop_agreed
        is_time = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
        if step != self._last_saved_step and (is_time or stop or _is_last_step(trainer)):
            self._save(trainer)
        self._is_to_stop = stop

    def _ask_ranks(self, trainer: Trainer, outputs: Any) -> None:
        """Learns whether the step before brought a signal, or a loss that is not finite."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        device = trainer.strategy.root_device
        flags = torch.full((2,), int(_is_caught()), dtype=torch.uint8, device=device)
        flags[1] = 0 if loss is None else ~torch.isfinite(loss.detach()).all()
        self._stop_agreed, is_suspicious = self._flags.exchange(flags)
        if is_suspicious:
            self._require_finite_weights(trainer)

    def _require_finite_weights(self, trainer: Trainer) -> None:
        is_finite = _are_finite(trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            last = _folder(trainer) / LAST
            way_out = "a lower learning rate or --trainer.gradient_clip_val=1"
            raise ValueError(
                f"the weights are not finite at step {trainer.global_step}: training stopped; "
                + (f"go on from {last} with {way_out}" if last.exists() else f"try {way_out}")
            )

    def _save(self, trainer: Trainer, value: float | None = None) -> None:
        self._require_finite_weights(trainer)
        folder, name = _folder(trainer), f"step_{trainer.global_step:08d}.ckpt"
        before = set(self.best)
        if value is not None:
            candidates = {**self.best, name: value}
            ranked = sorted(candidates, key=lambda other: self._rank(candidates[other]))
            self.best = {other: candidates[other] for other in ranked[: self.save_top_k]}
        # Inside an accumulation the weights are good to keep and the state is not to go on from.
        names = [] if _is_accumulating(trainer) else [LAST]
        names += [name] if value is not None and name in self.best else []
        if names:
            write = _write_shards if _saves_shards(trainer) else _write_file
            write(trainer, folder / names[0])
        if trainer.is_global_zero:
            for target in names[1:]:
                _duplicate(folder / names[0], folder / target)
            for other in before - set(self.best):
                remove(folder / other)
        if LAST in names:
            self._last_saved_step = trainer.global_step

    def _rank(self, value: float) -> float:
        if math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value

    def _monitored(self, trainer: Trainer) -> float | None:
        if self.monitor is None:
            return None
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(
                f"checkpoint.monitor: '{self.monitor}' is not logged; logged: {logged}"
            )
        return float(trainer.callback_metrics[self.monitor])


def _is_caught() -> bool:
    return STOP_SIGNALS.caught is not None


def _are_finite(parameters: Iterable[Tensor]) -> bool:
    checks = [torch.isfinite(local_tensor(parameter)).all() for parameter in parameters]
    return all(bool(check) for check in checks)  # read after all have been launched


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _write_file(trainer: Trainer, target: Path) -> None:
    if trainer.is_global_zero and target.name == LAST and target.exists():
        _duplicate(target, target.with_name(PREVIOUS))
    trainer.save_checkpoint(target, weights_only=False)


def _write_shards(trainer: Trainer, target: Path) -> None:
    """Lets all processes write into a temporary folder, and renames it when it is complete."""
    temporary = target.with_name(f".{target.name}.tmp")
    if trainer.is_global_zero:
        remove(temporary)
    trainer.strategy.barrier("shards")
    try:
        trainer.save_checkpoint(temporary, weights_only=False)
    except CheckpointException as error:  # no Exception, and of all ranks: one of theirs will do
        raise next(iter(error.failures.values()))[0] from error
    if trainer.is_global_zero:
        put_in_place(temporary, target, target.with_name(PREVIOUS) if target.name == LAST else None)
    trainer.strategy.barrier("shards")


def _saves_shards(trainer: Trainer) -> bool:
    # Private, because a strategy does not say what it writes; a test notices when it moves.
    return bool(getattr(trainer.strategy, "_save_distributed_checkpoint", False))


def _duplicate(source: Path, target: Path) -> None:
    """Makes `target` another name of `source` (a copy where there are no hard links)."""
    if source.is_dir():
        duplicate(source, target)
        return
    if target.exists() and target.samefile(source):  # to rename one to the other does nothing
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)


def _is_accumulating(trainer: Trainer) -> bool:
    # Private, like the next one, because Lightning tells callbacks neither whether this batch made
    # an optimizer step nor whether validation comes next; tests/callbacks/test_checkpointing.py
    # notices when they move.
    return trainer.fit_loop._should_accumulate()


def _values_to_log(trainer: Trainer) -> dict[str, float]:
    # Private: Lightning logs a step after all hooks in which it could be saved; a test kills there.
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def _validation_follows(trainer: Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return loop._should_check_val_fx(fetcher)


def _leave_finished_epoch(trainer: Trainer) -> None:
    """Lets a run that was saved at the end of an epoch begin the next one.

    With `max_steps`, Lightning 2.6 restarts such a run inside the finished epoch: it counts the
    next epoch's first batch to it and then drops the others.
    """
    loop = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress.current
    epochs = loop.epoch_progress
    # Typed as a base class, which has only `ready` and `completed`.
    current, total = cast(_ProcessedTracker, epochs.current), cast(_ProcessedTracker, epochs.total)
    is_finished = current.processed == epochs.current.ready > 0
    if loop.epoch_loop.restarting and is_finished and batches.ready >= trainer.num_training_batches:
        if total.completed < total.processed:
            epochs.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False


def _is_last_step(trainer: Trainer) -> bool:
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    max_epochs = trainer.max_epochs
    return (
        trainer.is_last_batch
        and max_epochs is not None
        and 0 <= max_epochs <= trainer.current_epoch + 1
    )
