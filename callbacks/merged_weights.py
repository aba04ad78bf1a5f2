"""Merged weights in a live module for a while, and as files."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor

from ..modules.files import atomic_folder, atomic_path, write_json
from ..modules.merge_weights import MergeScheme
from ..modules.weight_averaging import (
    Trajectory,
    WeightSwap,
    buffer_names,
    mergeable_tensors,
    weighted_sum,
)
from .snapshot_ring import Snapshot, SnapshotRing

SaveFormat = Literal["lightning", "safetensors", "hf"]
SUFFIXES: dict[SaveFormat, str] = {"lightning": ".ckpt", "safetensors": ".safetensors", "hf": ""}


@dataclass
class Merge:
    """One merge of snapshots, and the module that it goes into.

    Args:
        scheme: How snapshots are weighted.
        entries: The snapshots, oldest first.
        names: What is merged; all else stays the module's own.
        swap: Puts it into the module, of which it holds all tensors.
        average_buffers: Whether floating buffers are merged, or the newest snapshot's.
    """

    scheme: MergeScheme
    entries: list[Snapshot]
    names: Collection[str]
    swap: WeightSwap
    average_buffers: bool = False
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> list[float]:
        """Weights of the snapshots; unevenly spaced ones by the learning rate between them."""
        areas = [entry.lr_area for entry in self.entries]
        is_known = all(before < after for before, after in pairwise(areas))
        return self.scheme.weights(len(self.entries), areas if is_known else None)

    def description(self) -> dict[str, Any]:
        """What was merged, in plain types; `duration_steps` is N V, what the merge emulates."""
        steps = [entry.step for entry in self.entries]
        apart = (steps[-1] - steps[0]) / max(len(steps) - 1, 1)
        return {
            "scheme": self.scheme.name,
            "steps": steps,
            "weights": self.weights,
            "first_step": steps[0],
            "last_step": steps[-1],
            "duration_steps": round(apart * len(steps)),
        }

    def put(self, trainer: Trainer, ring: SnapshotRing) -> None:
        """Merges the snapshots into the module; all processes take part."""
        self.swap.put(lambda: self._tensors(trainer, ring))

    def _tensors(self, trainer: Trainer, ring: SnapshotRing) -> Iterator[tuple[str, Tensor]]:
        """Names and merged values, one tensor in memory at a time."""
        buffers = buffer_names(self.swap.module)
        weights, trajectory = self.weights, Trajectory(len(self.entries))
        is_sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        with ring.open(self.entries) as readers:
            for name in self.names:
                own = self.swap.tensors[name]
                value = torch.empty_like(own)
                is_averaged = own.is_floating_point() or own.is_complex()
                if name in buffers and not (is_averaged and self.average_buffers):
                    if readers:
                        value.copy_(readers[-1](name))
                elif readers:
                    merged = weighted_sum([partial(read, name) for read in readers], weights)
                    value.copy_(merged)
                    if name not in buffers:
                        trajectory.add((read(name) for read in readers), merged)
                if trainer.world_size > 1 and not is_sharded:
                    dist.broadcast(value, 0)
                yield name, value
        if is_sharded:
            sums = trajectory.sums.to(trainer.strategy.root_device)
            trajectory.sums = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        self.statistics = trainer.strategy.broadcast(trajectory.statistics())


@contextmanager
def lend(merge: Merge, trainer: Trainer, ring: SnapshotRing) -> Iterator[None]:
    """Puts a merge into the live module; the module's own weights are back after the block.

    A checkpoint that is asked for meanwhile, as by a cluster's signal, gets the module's own
    weights, which stay in from then on.
    """
    save_checkpoint = trainer.save_checkpoint

    def save_own_weights(*args: Any, **kwargs: Any) -> None:
        merge.swap.restore()
        save_checkpoint(*args, **kwargs)

    trainer.__dict__["save_checkpoint"] = save_own_weights
    try:
        merge.put(trainer, ring)
        yield
    finally:
        merge.swap.restore()
        # Only now: had restoring been interrupted, the next checkpoint would finish it.
        del trainer.__dict__["save_checkpoint"]


def save_merge(
    merge: Merge, trainer: Trainer, module: LightningModule, path: Path, save_format: SaveFormat
) -> None:
    """Writes the weights that are in a module now, with what they were merged from.

    Args:
        merge: The merge that is in.
        trainer: The trainer.
        module: The module.
        path: File, or with "hf" folder, to write.
        save_format: "lightning", "safetensors" or "hf".
    """
    provenance = {"scheme": asdict(merge.scheme), **merge.description()}
    if save_format == "lightning":
        own_hook = module.on_save_checkpoint

        def with_provenance(checkpoint: dict[str, Any]) -> None:
            own_hook(checkpoint)
            checkpoint["merge_provenance"] = provenance

        module.__dict__["on_save_checkpoint"] = with_provenance
        try:  # by the class: what `lend` put into the instance takes the merge out first
            type(trainer).save_checkpoint(trainer, path, weights_only=True)
        finally:
            del module.__dict__["on_save_checkpoint"]
    elif trainer.is_global_zero and save_format == "safetensors":
        tensors = mergeable_tensors(module, include_frozen=True)
        with atomic_path(path) as temporary:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata={"format": "pt", "merge_provenance": json.dumps(provenance)},
            )
    elif trainer.is_global_zero:
        with atomic_folder(path) as temporary:
            module.network.save_pretrained(temporary)  # type: ignore[operator, union-attr]
            write_json(temporary / "merge.json", provenance)
