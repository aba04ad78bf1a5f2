"""The last N snapshots of a run's weights: on disk, in memory, or in the run's own checkpoints.

Where every process holds all weights the first one keeps them; where they are sharded each keeps
its shard.
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..modules.files import atomic_path, write_json
from ..modules.weight_averaging import COMPILED_PREFIX

FORMAT = 1
Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class Snapshot:
    """One entry of the ring.

    Args:
        step: Optimizer steps done.
        lr: Learning rate of the last of them.
        lr_area: Sum of the learning rates of all steps.
        tokens: Tokens seen, where the module counts them.
    """

    step: int
    lr: float
    lr_area: float
    tokens: int | None = None


class Storage(Protocol):
    """Where the tensors of snapshots are."""

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Stores copies of tensors."""

    def open(self, step: int) -> Any:
        """A context that yields a function from a name to a tensor."""

    def problem(self, step: int) -> str | None:
        """What is wrong with a snapshot that should be there, None if nothing."""

    def remove(self, keep: set[int]) -> None:
        """Deletes all snapshots but those of the given steps."""


class DiskStorage:
    """One safetensors file per snapshot and process: `step_00000120/rank_00000.safetensors`.

    Args:
        folder: Folder of the ring.
        rank: This process, where each keeps its shard; else 0.
        dtype: Floating tensors are stored in this dtype; None keeps theirs.
    """

    def __init__(self, folder: Path, rank: int, dtype: torch.dtype | None) -> None:
        self.folder = folder
        self.rank = rank
        self.dtype = dtype

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes a snapshot, which a crash leaves either complete or absent."""
        stored = {name: _stored(t, self.dtype).contiguous() for name, t in tensors.items()}
        with atomic_path(self._path(step)) as temporary:
            save_file(stored, temporary, metadata={"format": "pt", "step": str(step)})

    @contextmanager
    def open(self, step: int) -> Iterator[Reader]:
        """Maps a snapshot's file."""
        with safe_open(self._path(step), framework="pt") as file:
            yield file.get_tensor

    def problem(self, step: int) -> str | None:
        """Checks that the file is there and as long as its header says."""
        path = self._path(step)
        try:
            with safe_open(path, framework="pt"):
                return None
        except FileNotFoundError:
            return f"{path} is missing"
        except (OSError, SafetensorError) as error:
            return f"{path} is damaged: {error}"

    def remove(self, keep: set[int]) -> None:
        """Deletes this process's files of other snapshots, and folders that become empty."""
        for path in self.folder.glob(f"step_*/{self._name()}"):
            if int(path.parent.name.removeprefix("step_")) not in keep:
                path.unlink(missing_ok=True)
                if not any(path.parent.iterdir()):
                    shutil.rmtree(path.parent, ignore_errors=True)

    def _name(self) -> str:
        return f"rank_{self.rank:05d}.safetensors"

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}" / self._name()


class MemoryStorage:
    """Copies in the memory of the host.

    Args:
        dtype: Floating tensors are stored in this dtype; None keeps theirs.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.snapshots: dict[int, dict[str, Tensor]] = {}

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Copies the tensors; `clone`, since `cpu` of a CPU tensor is the tensor itself."""
        self.snapshots[step] = {
            name: stored.clone() if (stored := _stored(tensor, self.dtype)) is tensor else stored
            for name, tensor in tensors.items()
        }

    @contextmanager
    def open(self, step: int) -> Iterator[Reader]:
        """Gives the copies."""
        yield self.snapshots[step].__getitem__

    def problem(self, step: int) -> str | None:
        """Memory is lost when a process ends."""
        return None if step in self.snapshots else f"snapshot {step} was in memory"

    def remove(self, keep: set[int]) -> None:
        """Forgets other snapshots."""
        self.snapshots = {step: t for step, t in self.snapshots.items() if step in keep}


class CheckpointStorage:
    """The run's own `step_00000120.ckpt` files, which it writes and deletes itself.

    Args:
        folder: Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are there."""
        names = (path.stem.removeprefix("step_") for path in self.folder.glob("step_*.ckpt"))
        return sorted(int(name) for name in names if name.isdecimal())

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Nothing: the run writes checkpoints."""

    @contextmanager
    def open(self, step: int) -> Iterator[Reader]:
        """Maps a checkpoint's weights."""
        path = self._path(step)
        weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        plain = {name.replace(COMPILED_PREFIX, ""): tensor for name, tensor in weights.items()}
        yield plain.__getitem__

    def problem(self, step: int) -> str | None:
        """Checks that the archive is complete."""
        path = self._path(step)
        return None if zipfile.is_zipfile(path) else f"{path} is missing or damaged"

    def remove(self, keep: set[int]) -> None:
        """Nothing: the run deletes checkpoints."""

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.ckpt"


class SnapshotRing:
    """The newest `size` snapshots, oldest first.

    A snapshot that left the ring stays on disk as long as one of the last two checkpoints refers to
    it, so that a run resumed from either has its ring as it was.

    Args:
        storage: Where the tensors are.
        size: Snapshots kept.
        writes: Whether this process stores tensors.
    """

    def __init__(self, storage: Storage, size: int, writes: bool) -> None:
        self.storage = storage
        self.size = size
        self.writes = writes
        self.entries: list[Snapshot] = []
        self._names: list[str] = []
        self._checkpointed: list[set[int]] = []

    def push(self, snapshot: Snapshot, tensors: Mapping[str, Tensor]) -> None:
        """Adds a snapshot; the oldest leaves a full ring.

        Snapshots of other tensors than these (a phase of training unfroze some) are dropped.
        """
        if self.entries and sorted(tensors) != self._names:
            rank_zero_warn(
                f"merging: other weights are trained since step {snapshot.step}; the snapshots "
                "before it are dropped"
            )
            self.clear()
        self._names = sorted(tensors)
        if self.writes:
            self.storage.write(snapshot.step, tensors)
        self.entries = [*self.entries, snapshot][-self.size :]
        self._remove_unused()

    def clear(self) -> None:
        """Forgets all snapshots."""
        self.entries = []
        self._remove_unused()

    @contextmanager
    def open(self, entries: list[Snapshot]) -> Iterator[list[Reader]]:
        """Opens snapshots for reading, oldest first; none where this process has none."""
        with ExitStack() as stack:
            steps = [entry.step for entry in entries if self.writes]
            yield [stack.enter_context(self.storage.open(step)) for step in steps]

    def write_manifest(self, path: Path, **more: Any) -> None:
        """Writes the entries, for people and for `tenfold merge`."""
        entries = [asdict(entry) for entry in self.entries]
        write_json(path, {"format": FORMAT, **more, "entries": entries})

    def state_dict(self) -> dict[str, Any]:
        """Returns the entries, and makes sure that a checkpoint finds their files."""
        self._checkpointed = [*self._checkpointed, {e.step for e in self.entries}][-2:]
        return {"entries": [asdict(entry) for entry in self.entries], "names": self._names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the entries, whose tensors may be gone: see `problems`."""
        self.entries = [Snapshot(**entry) for entry in state["entries"]]
        self._names = state["names"]
        self._checkpointed = [{entry.step for entry in self.entries}]

    def problems(self) -> dict[int, str]:
        """Snapshots that this process cannot read: step -> why."""
        found = {e.step: self.storage.problem(e.step) for e in self.entries if self.writes}
        return {step: problem for step, problem in found.items() if problem}

    def drop(self, problems: dict[int, str]) -> None:
        """Goes on without some snapshots, and says so."""
        if problems:
            rank_zero_warn(
                f"merging: {len(problems)} of {len(self.entries)} snapshots are lost, the ring "
                f"goes on with the others ({next(iter(problems.values()))})"
            )
        self.entries = [entry for entry in self.entries if entry.step not in problems]

    def _remove_unused(self) -> None:
        if self.writes:
            self.storage.remove({entry.step for entry in self.entries}.union(*self._checkpointed))


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor on the CPU in the dtype of the storage."""
    return tensor.to("cpu", dtype if tensor.is_floating_point() else None)
