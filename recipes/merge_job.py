"""What `tenfold merge` does once its inputs are known: says it, and writes the result whole.

Imports torch only when it writes.
"""

import errno
import json
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..modules.merge_weights import MergeScheme

if TYPE_CHECKING:
    from torch import Tensor

    from ..modules.checkpoint_files import Checkpoint
    from ..modules.checkpoint_merge import MergedTensor, MergePlan

PROVENANCE_FILE = "merge.json"
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class MergeJob:
    """A merge that has been checked, ready to run.

    Attributes:
        out: File or folder to write; its suffix says which format.
        checkpoints: Oldest first.
        weights: One for each.
        scheme: Where the weights come from.
        plan: What becomes of each tensor.
        dtype: What was asked for, for messages.
        optimizer_state: What a .ckpt gets.
        lora_mode: How adapters are merged.
        max_shard_size: Largest file in a folder, bytes.
        buffers: Where running statistics come from.
        dropped: What cutting adapters back to their rank has cost, by pair of factors.
    """

    out: Path
    checkpoints: "Sequence[Checkpoint]"
    weights: Sequence[float]
    scheme: MergeScheme
    plan: "MergePlan"
    dtype: str
    optimizer_state: Literal["reset", "latest", "average"] | None
    lora_mode: str | None
    max_shard_size: int
    buffers: str
    dropped: dict[str, float] = field(default_factory=dict)

    @property
    def format(self) -> Literal["ckpt", "safetensors", "folder"]:
        """What is written."""
        if self.out.suffix == ".ckpt":
            return "ckpt"
        return "safetensors" if self.out.suffix == ".safetensors" else "folder"

    @property
    def tensors(self) -> "Mapping[str, MergedTensor]":
        """What is read, merged and written: in a .ckpt what is tied only once."""
        if self.format != "ckpt":
            return self.plan.tensors
        once = {n: t for n, t in self.plan.tensors.items() if n not in self.plan.aliases}
        return {**once, **self.plan.optimizer_tensors}

    @property
    def bytes_to_read(self) -> int:
        """Of all inputs together."""
        return sum(source.num_bytes for t in self.tensors.values() for source in t.sources)

    @property
    def bytes_to_write(self) -> int:
        """Of merged tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def notes(job: MergeJob) -> Iterator[str]:
    """What a user should know before the merge."""
    yield from dict.fromkeys(note for c in job.checkpoints for note in c.notes)
    newest = job.plan.newest
    if "running statistics" in newest or (job.buffers == "average" and _has_statistics(job)):
        yield (
            "running statistics of BatchNorm belong to unmerged weights: recalibrate them with a "
            "pass over training data"
        )
    if job.lora_mode == "factors":
        yield "A and B are averaged apart, which is not the average of B A"
    if job.format == "ckpt" and not job.checkpoints[-1].has_optimizer_state:
        yield "the newest checkpoint has weights only, so training cannot go on from the merged one"
    if job.format == "folder" and job.checkpoints[-1].format not in (
        "Hugging Face folder",
        "PEFT adapter",
    ):
        yield "no input has a config.json: add the model's to load the folder with transformers"


def remarks(job: MergeJob) -> Iterator[str]:
    """What is known only after the merge."""
    if job.dropped:
        worst = max(job.dropped, key=lambda name: job.dropped[name])
        mean = sum(job.dropped.values()) / len(job.dropped)
        yield (
            f"cutting back to the same rank dropped up to {job.dropped[worst]:.2%} of B A "
            f"({worst}), {mean:.2%} on average"
        )


def _has_statistics(job: MergeJob) -> bool:
    from ..modules.checkpoint_merge import RUNNING_STATISTICS

    return any(RUNNING_STATISTICS.search(name) for name in job.plan.tensors)


def describe(job: MergeJob) -> str:
    """The plan as lines of text."""
    steps = ["?" if c.step is None else str(c.step) for c in job.checkpoints]
    width = max(len("step"), *map(len, steps))
    lines = [f"merge of {len(steps)} checkpoints, {job.scheme.name}, into {job.out}"]
    lines.append(f"  {'step':>{width}}  {'weight':>8}  checkpoint")
    for step, weight, checkpoint in zip(steps, job.weights, job.checkpoints, strict=True):
        lines.append(f"  {step:>{width}}  {weight:>8.4f}  {checkpoint.path} ({checkpoint.format})")
    averaged, copied = job.plan.num_averaged, len(job.plan.tensors) - job.plan.num_averaged
    lines.append(f"  tensors: {averaged} averaged, {copied} from the newest checkpoint")
    for reason, names in job.plan.newest.items():
        lines.append(f"    {reason}: {len(names)}, such as {names[0]}")
    if job.format == "ckpt":
        lines.append(f"  all else from {job.checkpoints[-1].path}")
        lines.append(f"  optimizer state: {job.optimizer_state}")
    reads, writes = size_text(job.bytes_to_read), size_text(job.bytes_to_write)
    lines.append(f"  reads {reads}, writes {writes}; sums in fp32 or wider; dtype {job.dtype}")
    return "\n".join(lines)


def size_text(num_bytes: float) -> str:
    """1234567 as `1.23 MB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} GB"


def refuse_lack_of_space(job: MergeJob) -> None:
    """Looks at what is free before anything is written.

    Raises:
        ValueError: It is not enough.
    """
    folder = next(parent for parent in job.out.absolute().parents if parent.is_dir())
    copies = 2 if job.format == "ckpt" else 1  # see write_lightning
    needed = copies * job.bytes_to_write
    if job.format == "ckpt":
        needed += sum(t.num_bytes for t in job.checkpoints[-1].optimizer_tensors.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder} has {size_text(free)} free, and {size_text(needed)} are needed")


def _provenance(job: MergeJob) -> dict[str, Any]:
    """Where the result comes from, in plain types."""
    from ..modules.checkpoint_files import fingerprint

    return {
        "tool": f"tenfold {__version__}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "scheme": job.scheme.name,
        "dtype": job.dtype,
        "optimizer_state": job.optimizer_state,
        "lora_mode": job.lora_mode,
        "inputs": [
            {
                "path": str(checkpoint.path),
                "step": checkpoint.step,
                "weight": weight,
                "bytes": sum(file.stat().st_size for file in checkpoint.files),
                "sha256_of_ends": fingerprint(checkpoint.files),
            }
            for checkpoint, weight in zip(job.checkpoints, job.weights, strict=True)
        ],
    }


def write(job: MergeJob) -> None:
    """Does the merge.

    Args:
        job: What.

    Raises:
        ValueError: An input is damaged or holds NaN, or the disk is full. Nothing is left behind.
    """
    from ..modules.checkpoint_files import (
        ShardedWriting,
        copy_companions,
        write_lightning,
        write_safetensors,
        write_safetensors_folder,
        writing_order,
    )
    from ..modules.files import atomic_folder, atomic_write, write_json

    newest, tensors = job.checkpoints[-1], job.tensors
    provenance = _provenance(job)
    with _one_line_for_full_disk(job.out), _progress(job.bytes_to_read) as advance:
        if job.format == "folder":
            stem = "adapter_model" if newest.format == "PEFT adapter" else "model"
            writing = ShardedWriting.plan(tensors, job.max_shard_size, stem)
            blocks = _blocks(job, [tensors[name] for name in writing.order], advance)
            with closing(blocks), atomic_folder(job.out) as folder:
                write_safetensors_folder(folder, tensors, writing, blocks, stem)
                if newest.path.is_dir():
                    copy_companions(newest.path, folder)
                write_json(folder / PROVENANCE_FILE, provenance)
            return
        names = writing_order(tensors)
        specs = {name: tensors[name] for name in names}
        blocks = _blocks(job, list(specs.values()), advance)
        with closing(blocks), atomic_write(job.out) as file:
            if job.format == "safetensors":
                metadata = {"format": "pt", "merge_provenance": json.dumps(provenance)}
                if newest.step is not None:
                    metadata["step"] = str(newest.step)
                write_safetensors(file, specs, blocks, metadata)
            else:
                assert job.optimizer_state is not None
                write_lightning(
                    file,
                    specs,
                    blocks,
                    like=newest.path,
                    aliases=job.plan.aliases,
                    optimizer_state=job.optimizer_state,
                    provenance=provenance,
                    scratch_folder=job.out.absolute().parent,
                )


def _blocks(
    job: MergeJob, tensors: "Sequence[MergedTensor]", advance: Callable[[int], None]
) -> "Generator[Tensor, None, None]":
    from ..modules.adapter_merge import merge_products
    from ..modules.checkpoint_merge import merge_blocks

    if job.lora_mode == "delta":
        return merge_products(tensors, job.dropped, advance)
    return merge_blocks(tensors, advance)


@contextmanager
def _one_line_for_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save fails once more when it closes what it could not write, with a RuntimeError.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None or cause.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise ValueError(f"cannot write {out}: {cause.strerror}; nothing is left of it") from error


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line now and then; yields what takes bytes done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("merge", total=total)
            yield lambda num_bytes: progress.advance(task, num_bytes)
        return
    started = printed = time.monotonic()
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done, printed
        done += num_bytes
        now = time.monotonic()
        if now - printed >= _SECONDS_BETWEEN_LINES:
            printed = now
            left = (now - started) / done * (total - done)
            print(f"{size_text(done)} of {size_text(total)}, {left:.0f} s left", file=sys.stderr)

    yield advance
