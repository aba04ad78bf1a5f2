"""Merging a run's own checkpoints while it trains: a preview of the annealed model, for free.

"Model Merging in Pre-training" (PMA, arXiv 2505.12082): at a constant learning rate the mean of
snapshots taken some distance apart is about as good as the model after a decay.
"""

import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from ..modules.merge_weights import DecayShape, MergeScheme, Scheme
from ..modules.weight_averaging import WeightSwap, mergeable_tensors
from .checkpointing import RunCheckpoint
from .merged_weights import SUFFIXES, Merge, SaveFormat, lend, save_merge
from .second_validation import batch_norms, isolated, recalibrate_batch_norm, validate_again
from .snapshot_ring import (
    CheckpointStorage,
    DiskStorage,
    MemoryStorage,
    Snapshot,
    SnapshotRing,
    Storage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
FOLDER = "merging"
LARGE_WINDOW = 0.3  # of a run: the merge then lags behind (PMA, section 4.3)
StorageDtype = Literal["float32", "bfloat16", "float16"]
EVALUATED = ("scheme", "first_step", "last_step", "duration_steps")
# Attributes that a checkpoint carries.
STATE = (
    *("evaluations", "_counts", "_lr", "_lr_area", "_reference_lr"),
    *("_has_stopped", "_num_validations", "_merged_steps", "_saved"),
)


@dataclass(frozen=True)
class ComparedScheme(MergeScheme):
    """A scheme that is evaluated beside the first, from the same ring.

    Args:
        last: Merge only the newest so many snapshots; None: all.
    """

    last: int | None = None

    @property
    def name(self) -> str:
        """The scheme's name, and how many snapshots where not all."""
        return super().name + (f"_last{self.last}" if self.last else "")


class CheckpointMerging(Callback):
    """Keeps the last N snapshots of the weights, merges them, and evaluates the merge.

    After a validation the merged weights go into the module, the validation data pass a second
    time, and the module gets its own weights back bit for bit. Training is not changed: neither
    weights nor optimizer, random numbers, metrics or BatchNorm statistics. Results are logged as
    `merged/val/loss`, and `merged/<scheme>/val/loss` for `compare_schemes`. The merge of N
    snapshots V steps apart is about the model that a decay begun N V steps ago would have given by
    now. Also logged: `merging/drift_ratio` and `merging/update_cosine` (1 and positive: the weights
    drift and a merge lags; small and negative: they bounce and it gains), `merging/norm_ratio`.

    Not for a falling learning rate: merging inside a decay gains nothing once the rate is low, and
    snapshots of different rates do not belong together.

    With one process or DDP the first process keeps whole snapshots; with ModelParallelStrategy
    (FSDP2) each keeps and merges its shards.

    Args:
        every_n_train_steps: Optimizer steps between snapshots. Give exactly one of these three.
        every_n_tokens: Tokens between snapshots, for modules that count `tokens_seen`.
        every_n_epochs: Epochs between snapshots.
        num_checkpoints: Snapshots that are merged, N.
        min_checkpoints: Snapshots from which on a smaller ring is merged.
        scheme: How they are weighted; see `MergeScheme`.
        decay_shape: Decay that "wsm" and "qam" emulate.
        ema_alpha: Weight of the newest in "ema".
        min_lr_ratio: End of the emulated decay as a fraction of the peak.
        custom_weights: Weights of "custom", oldest first.
        start_step: Optimizer steps before the first snapshot: the warm-up.
        stable_only: Whether to watch the learning rate (of the first parameter group).
        lr_rtol: Relative change of it that counts.
        on_lr_change: What to do then, when it falls. "stop": keep the ring, take no more snapshots.
            "clear": begin anew. "ignore": go on. When it rises, as in a warm-up, the ring begins
            anew unless "ignore".
        storage: "disk": `merging/ring/` in the run directory. "cpu": host memory. "checkpoints":
            the run's own `checkpoints/step_*.ckpt`, of which `checkpoint.save_top_k` keeps enough;
            the settings above about when snapshots are taken then have no meaning.
        storage_dtype: "float32", "bfloat16" or "float16" for the ring; None keeps the weights'
            own. Sums are in float32 always.
        dirpath: Folder of ring and merged files; None: `merging/` in the run directory.
        include: Regular expressions, searched for in the names of parameters and buffers: what is
            merged; None: all. What is not merged stays as it is in the module.
        exclude: The same: what is not.
        buffers: "last": floating buffers are those of the newest snapshot. "average": merged too.
            Integer buffers are always the newest's.
        bn_update: "auto": BatchNorm statistics of the merge are taken anew from training batches.
        bn_num_batches: Batches for that.
        evaluate: Whether to evaluate merges.
        evaluate_every_n_val: Validations between evaluations.
        metric_prefix: Goes before the names of the metrics.
        save_merged: "none", "last" (the newest merge) or "all" (the merge of every evaluation) in
            `merging/` of the run directory.
        save_format: "lightning": for `--ckpt_path` and `--init_from`. "safetensors": the state
            dict. "hf": a folder by `save_pretrained`, for modules whose `network` has it.
        filename: Name in which `{step}` is the optimizer step.
        swap_on_train_end: Whether the module in memory has merged weights after `fit`; checkpoints
            have not.
        save_ring_in_checkpoint: With storage "cpu": whether checkpoints hold the ring, N times the
            weights.
        compare_schemes: More schemes to evaluate from the same ring, one validation pass each.

    Raises:
        ValueError: The settings contradict each other or the trainer.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        every_n_tokens: int | None = None,
        every_n_epochs: int | None = None,
        num_checkpoints: int = 10,
        min_checkpoints: int = 2,
        scheme: Scheme = "sma",
        decay_shape: DecayShape = "linear",
        ema_alpha: float = 0.2,
        min_lr_ratio: float = 0.0,
        custom_weights: list[float] | None = None,
        start_step: int = 0,
        stable_only: bool = True,
        lr_rtol: float = 1e-3,
        on_lr_change: Literal["stop", "clear", "ignore"] = "stop",
        storage: Literal["disk", "cpu", "checkpoints"] = "disk",
        storage_dtype: StorageDtype | None = None,
        dirpath: str | None = None,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        buffers: Literal["last", "average"] = "last",
        bn_update: Literal["auto", "none"] = "auto",
        bn_num_batches: int = 100,
        evaluate: bool = True,
        evaluate_every_n_val: int = 1,
        metric_prefix: str = "merged/",
        save_merged: Literal["none", "last", "all"] = "none",
        save_format: SaveFormat = "lightning",
        filename: str = "merged_{step:08d}",
        swap_on_train_end: bool = False,
        save_ring_in_checkpoint: bool = False,
        compare_schemes: Sequence[ComparedScheme] = (),
    ) -> None:
        self.intervals = {
            "every_n_train_steps": every_n_train_steps,
            "every_n_tokens": every_n_tokens,
            "every_n_epochs": every_n_epochs,
        }
        self.scheme = MergeScheme(scheme, decay_shape, ema_alpha, min_lr_ratio, custom_weights)
        self.num_checkpoints = num_checkpoints
        self.min_checkpoints = num_checkpoints if custom_weights else min_checkpoints
        self.start_step = start_step
        self.stable_only = stable_only
        self.lr_rtol = lr_rtol
        self.on_lr_change = on_lr_change
        self.storage = storage
        self.storage_dtype = getattr(torch, storage_dtype) if storage_dtype else None
        self.dirpath = dirpath
        self.include = include
        self.exclude = exclude or []
        self.buffers = buffers
        self.bn_update = bn_update
        self.bn_num_batches = bn_num_batches
        self.evaluate = evaluate
        self.evaluate_every_n_val = evaluate_every_n_val
        self.metric_prefix = metric_prefix
        self.save_merged = save_merged
        self.save_format = save_format
        self.filename = filename
        self.swap_on_train_end = swap_on_train_end
        self.save_ring_in_checkpoint = save_ring_in_checkpoint
        self.compare_schemes = tuple(compare_schemes)
        self._check()
        self.evaluations: list[dict[str, Any]] = []
        self.ring: SnapshotRing  # from `setup` on
        self._is_sharded = False
        self._counts = {"step": 0, "tokens": 0, "epoch": 0}  # at the last optimizer step
        self._lr = self._lr_area = 0.0
        self._reference_lr: float | None = None
        self._has_stopped = False
        self._num_validations = 0
        self._merged_steps: list[int] = []  # of the snapshots in the last merge
        self._saved: str | None = None  # file of the last merge
        # BatchNorm layers whose statistics training updates; known from the first step on.
        self._trained_norms: set[str] | None = None

    def _check(self) -> None:
        given = {name: n for name, n in self.intervals.items() if n is not None}
        if self.storage == "checkpoints":
            if given:
                raise ValueError(
                    f"storage: checkpoints takes no snapshots: drop {', '.join(given)}"
                )
        elif len(given) != 1 or min(given.values()) < 1:
            raise ValueError(f"give exactly one of {', '.join(self.intervals)}, at least 1")
        if not 2 <= self.min_checkpoints <= self.num_checkpoints:
            raise ValueError(
                f"2 <= min_checkpoints <= num_checkpoints must hold, got {self.min_checkpoints} "
                f"and {self.num_checkpoints}"
            )
        if self.scheme.custom_weights is not None:
            self.scheme.weights(self.num_checkpoints)  # refuses another number of them
        for name in ("evaluate_every_n_val", "bn_num_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.save_ring_in_checkpoint and self.storage != "cpu":
            raise ValueError("save_ring_in_checkpoint is for storage: cpu; a ring on disk stays")
        names = [self.scheme.name, *(scheme.name for scheme in self.compare_schemes)]
        if len(set(names)) < len(names):
            raise ValueError(f"compare_schemes: each scheme once, got {', '.join(names)}")
        self.filename.format(step=0)

    # Taking snapshots

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the ring, in the run directory."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise ValueError(
                f"CheckpointMerging cannot look into {type(trainer.strategy).__name__}: use "
                "ModelParallelStrategy (overlays/fsdp), ddp or one device"
            )
        self._is_sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if self._is_sharded and (self.storage == "checkpoints" or self.save_ring_in_checkpoint):
            raise ValueError(
                "with ModelParallelStrategy snapshots are shards: use storage: disk, or cpu "
                "without save_ring_in_checkpoint"
            )
        rank = trainer.global_rank if self._is_sharded else 0
        writes = self._is_sharded or trainer.is_global_zero
        self.ring = SnapshotRing(self._make_storage(trainer, rank), self.num_checkpoints, writes)

    def _make_storage(self, trainer: Trainer, rank: int) -> Storage:
        if self.storage == "cpu":
            return MemoryStorage(self.storage_dtype)
        run_dir = Path(trainer.default_root_dir)
        if self.storage == "disk":
            return DiskStorage(self._folder(trainer) / "ring", rank, self.storage_dtype)
        keeper = trainer.checkpoint_callback
        if not isinstance(keeper, RunCheckpoint) or keeper.monitor is None:
            raise ValueError("storage: checkpoints needs checkpoint.monitor, which keeps any")
        if keeper.save_top_k < self.num_checkpoints:
            raise ValueError(
                f"storage: checkpoints merges {self.num_checkpoints} checkpoints, but "
                f"checkpoint.save_top_k is {keeper.save_top_k}: raise it to keep all of them"
            )
        return CheckpointStorage(run_dir / "checkpoints")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / FOLDER

    def tensors(self, module: LightningModule) -> dict[str, Tensor]:
        """The live tensors of a module that are merged, by name.

        Raises:
            ValueError: `include` and `exclude` leave none.
        """

        def is_chosen(name: str) -> bool:
            is_included = self.include is None or any(re.search(p, name) for p in self.include)
            return is_included and not any(re.search(p, name) for p in self.exclude)

        tensors = {n: t for n, t in mergeable_tensors(module).items() if is_chosen(n)}
        if not tensors:
            raise ValueError(f"include {self.include}, exclude {self.exclude}: nothing is merged")
        return tensors

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets all processes agree on what is in the ring."""
        if self.intervals["every_n_tokens"] and not hasattr(pl_module, "tokens_seen"):
            raise ValueError(
                f"every_n_tokens: {type(pl_module).__name__} does not count `tokens_seen`; use "
                "every_n_train_steps"
            )
        saves_folder = self.save_merged != "none" and self.save_format == "hf"
        if saves_folder and not hasattr(getattr(pl_module, "network", None), "save_pretrained"):
            raise ValueError(
                f"save_format: hf: {type(pl_module).__name__} has no `network` of transformers; "
                "use lightning or safetensors"
            )
        self.tensors(pl_module)  # refuses patterns that leave none
        self.refresh(trainer)
        self._counts["step"] = trainer.global_step
        every, total = self.intervals["every_n_train_steps"], trainer.estimated_stepping_batches
        if every and every * self.num_checkpoints > LARGE_WINDOW * total:
            rank_zero_warn(
                f"merging: {self.num_checkpoints} snapshots {every} steps apart span "
                f"{every * self.num_checkpoints / total:.0%} of the run; early in training so wide "
                "a merge lags behind the newest weights"
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Notes the learning rate of the step."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Takes a snapshot when it is time."""
        step = trainer.global_step
        if step == self._counts["step"]:  # within an accumulation
            return
        self._lr_area += self._lr
        # The last batch of an epoch counts as its end, whose validation comes before other hooks.
        counts = {
            "step": step,
            "tokens": int(getattr(pl_module, "tokens_seen", 0)),
            "epoch": trainer.current_epoch + int(trainer.is_last_batch),
        }
        units = zip(counts, self.intervals.values(), strict=True)
        is_due = any(every and counts[c] // every > self._counts[c] // every for c, every in units)
        self._counts = counts
        if is_due or self._trained_norms is None:
            norms = batch_norms(pl_module)
            self._trained_norms = {name for name, norm in norms.items() if norm.training}
        if is_due and step >= self.start_step and self._is_stable(step):
            self._push(trainer, pl_module)

    def _is_stable(self, step: int) -> bool:
        """Whether the learning rate lets a snapshot into the ring; applies `on_lr_change`."""
        if not self.stable_only or self._has_stopped:
            return not self._has_stopped
        reference, self._reference_lr = self._reference_lr, self._lr
        if reference is None or abs(self._lr - reference) <= self.lr_rtol * reference:
            self._reference_lr = reference or self._lr
            return True
        if self.on_lr_change == "ignore":
            return True
        if self._lr < reference and self.on_lr_change == "stop":
            self._has_stopped = True
            rank_zero_info(
                f"merging: the learning rate falls at step {step}; the ring keeps its "
                f"{len(self.ring.entries)} snapshots (on_lr_change: stop)"
            )
            return False
        self.ring.clear()
        return True

    def _push(self, trainer: Trainer, module: LightningModule) -> None:
        step, tokens = self._counts["step"], self._counts["tokens"]
        snapshot = Snapshot(step, self._lr, self._lr_area, tokens or None)
        self.ring.push(snapshot, self.tensors(module))
        if trainer.is_global_zero and self.storage == "disk":
            self.ring.write_manifest(
                self._folder(trainer) / "ring.json",
                world_size=trainer.world_size if self._is_sharded else 1,
                scheme=asdict(self.scheme),
            )

    # Evaluating merges

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the merge, if the ring has changed since the last time."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._num_validations += 1
        if self._num_validations % self.evaluate_every_n_val:
            return
        self.refresh(trainer)
        steps = [entry.step for entry in self.ring.entries]
        if len(steps) < self.min_checkpoints or steps == self._merged_steps:
            return
        self._merged_steps = steps
        if self.evaluate:
            self._evaluate_all(trainer, pl_module)
        elif self.save_merged != "none":
            merge = self.merge(pl_module)
            with lend(merge, trainer, self.ring):
                self._save(merge, trainer, pl_module)

    def merge(self, module: LightningModule, scheme: MergeScheme | None = None) -> Merge:
        """A merge of the ring for `lend`; by default as the callback is set to."""
        scheme = scheme or self.scheme
        num = getattr(scheme, "last", None) or self.num_checkpoints
        names, swap = self.tensors(module).keys(), WeightSwap(module, mergeable_tensors(module))
        return Merge(scheme, self.ring.entries[-num:], names, swap, self.buffers == "average")

    def _evaluate_all(self, trainer: Trainer, module: LightningModule) -> None:
        started = time.monotonic()
        live = {name: float(value) for name, value in trainer.callback_metrics.items()}
        logged: dict[str, float] = {}
        for scheme in (self.scheme, *self.compare_schemes):
            if (getattr(scheme, "last", None) or 0) > len(self.ring.entries):
                continue
            merge, is_first = self.merge(module, scheme), scheme is self.scheme
            with lend(merge, trainer, self.ring):
                try:
                    metrics = self._validate(merge, trainer, module)
                except _RestoredError:
                    rank_zero_info(
                        "merging: evaluation given up, a checkpoint was wanted meanwhile"
                    )
                    return
                if is_first and self.save_merged != "none" and merge.swap.own is not None:
                    self._save(merge, trainer, module)
            spans = merge.description()
            self.evaluations.append(
                {
                    "step": trainer.global_step,
                    **{key: spans[key] for key in EVALUATED},
                    "metrics": metrics,
                    "live": {name: live[name] for name in metrics if name in live},
                }
            )
            prefix = self.metric_prefix + ("" if is_first else f"{scheme.name}/")
            logged |= {prefix + name: value for name, value in metrics.items()}
            if is_first:
                logged |= {f"merging/{name}": value for name, value in merge.statistics.items()}
        logged["merging/seconds"] = time.monotonic() - started
        trainer.callback_metrics.update({name: torch.tensor(v) for name, v in logged.items()})
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)

    def _validate(
        self, merge: Merge, trainer: Trainer, module: LightningModule
    ) -> dict[str, float]:
        """The metrics of the weights that are in now."""

        def stop_if_restored() -> None:
            if merge.swap.own is None:
                raise _RestoredError

        with isolated(trainer, module) as results:
            trained = self._trained_norms or set()
            norms = [norm for name, norm in batch_norms(module).items() if name in trained]
            if norms and self.bn_update == "auto":
                recalibrate_batch_norm(
                    trainer, module, norms, self.bn_num_batches, stop_if_restored
                )
            values = validate_again(trainer, module, results, stop_if_restored)
        return {name: float(value) for name, value in values.items()}

    def refresh(self, trainer: Trainer) -> None:
        """Leaves in the ring what all processes can read; all take part."""
        if isinstance(self.ring.storage, CheckpointStorage):
            steps = self.ring.storage.steps() if trainer.is_global_zero else []
            steps = [step for step in steps if self.start_step <= step <= trainer.global_step]
            self.ring.entries = [
                Snapshot(step, math.nan, math.nan)
                for step in trainer.strategy.broadcast(steps)[-self.num_checkpoints :]
            ]
        lost = self.ring.problems()
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(parts, lost)
            lost = {step: problem for part in parts for step, problem in part.items()}
        self.ring.drop(lost)

    def _save(self, merge: Merge, trainer: Trainer, module: LightningModule) -> None:
        name = self.filename.format(step=trainer.global_step) + SUFFIXES[self.save_format]
        path = self._folder(trainer) / name
        save_merge(merge, trainer, module, path, self.save_format)
        previous, self._saved = self._saved, path.name
        is_last_only = self.save_merged == "last" and trainer.is_global_zero
        if is_last_only and previous is not None and previous != path.name:
            _delete(path.with_name(previous))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves merged weights in the module in memory, if asked to."""
        if self.swap_on_train_end:
            self.refresh(trainer)
            if len(self.ring.entries) >= self.min_checkpoints:
                self.merge(pl_module).put(trainer, self.ring)

    # What a run leaves behind

    def state_dict(self) -> dict[str, Any]:
        """Returns the ring's entries, the results and the counters, in plain types."""
        state: dict[str, Any] = {name: getattr(self, name) for name in STATE}
        if isinstance(self.ring.storage, MemoryStorage) and self.save_ring_in_checkpoint:
            state["tensors"] = self.ring.storage.snapshots
        return {"format": FORMAT, "ring": self.ring.state_dict(), **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them; snapshots that are gone are named in a warning."""
        for name in STATE:
            setattr(self, name, state_dict[name])
        if not hasattr(self, "ring"):
            return  # an evaluation alone: nothing is taken and nothing merged
        if isinstance(self.ring.storage, MemoryStorage):
            self.ring.storage.snapshots = state_dict.get("tensors", {})
        self.ring.load_state_dict(state_dict["ring"])

    def run_info(self) -> dict[str, Any]:
        """Returns what was merged, for `metrics.json`."""
        own = [e for e in self.evaluations if e["scheme"] == self.scheme.name]
        last = {"steps": self._merged_steps, **own[-1]} if own else {}
        return {"merging": {**asdict(self.scheme), "name": self.scheme.name, "last": last}}

    def figures(self) -> dict[str, "Figure"]:
        """Returns the live and the merged metric against steps, once there is any."""
        return {"merging": merging_figure(self.evaluations)} if self.evaluations else {}


class _RestoredError(Exception):
    """The module's own weights came back in the middle of an evaluation."""


def merging_figure(evaluations: list[dict[str, Any]]) -> "Figure":
    """Draws the first metric with `loss` in its name, else the first: live and of every merge."""
    from matplotlib.figure import Figure

    names = list(evaluations[0]["metrics"])
    metric = next((name for name in names if "loss" in name), names[0])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel=metric)
    live = {e["step"]: e["live"][metric] for e in evaluations if metric in e["live"]}
    axes.plot(list(live), list(live.values()), "o-", color="0.4", markersize=4, label="live")
    for scheme in dict.fromkeys(e["scheme"] for e in evaluations):
        points = [(e["step"], e["metrics"][metric]) for e in evaluations if e["scheme"] == scheme]
        label = f"merged: {scheme}, last {points[-1][1]:.4g}"
        axes.plot(*zip(*points, strict=True), ".-", label=label)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
