"""Weighted averages of checkpoints, tensor by tensor, in memory that grows with neither.

`plan_merge` compares headers and decides for each tensor what becomes of it; `merge_blocks` then
reads, averages and yields the result in blocks of a few megabytes, in fp32 (double precision in its
own), cast once at the end.

The average is computed as newest + sum_i w_i (checkpoint_i - newest). So what is the same in all
checkpoints, as a frozen parameter is, comes out bit for bit, and rounding errors are those of the
differences.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .checkpoint_files import Checkpoint, Piece, StoredTensor, TensorSpec

Buffers = Literal["last", "average"]

# A state dict does not tell buffers from parameters, so names have to: statistics of BatchNorm,
# and ranges that observers of quantised networks have seen.
RUNNING_STATISTICS = re.compile(r"(^|\.)running_(mean|var)$")
OBSERVED_RANGE = re.compile(r"(^|\.)(activation_post_process|\w*observer\w*)\.\w+$")
PACKED_CODES = re.compile(r"(^|\.)(qweight|qzeros|\w*_packed|\w*_codes|codes)$")

BLOCK_BYTES = 2 << 20  # of one checkpoint; so that what is worked on stays in the caches
_READERS = 4
_BYTES_AHEAD = 32 << 20


@dataclass(frozen=True)
class MergedTensor(TensorSpec):
    """What becomes of one tensor; `dtype` is the one that is written.

    Attributes:
        name: Its plain name.
        sources: The tensor in each checkpoint that has a part in it, oldest first.
        weights: Their weights; one of 1 for a tensor that is taken as it is.
        origins: Names of the checkpoints, for messages.
    """

    name: str
    sources: tuple[StoredTensor, ...]
    weights: tuple[float, ...]
    origins: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        """Whether it is floating or complex; all else is copied byte for byte."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True)
class MergePlan:
    """What a merge does.

    Attributes:
        tensors: Each tensor of the model, by plain name.
        optimizer_tensors: Likewise of the optimizers, by dotted path; only where averaged.
        num_averaged: How many of the model's are averaged.
        newest: Names of those that are taken from the newest checkpoint, by reason.
        aliases: Names of tensors that are the same data as another -> that one's name.
    """

    tensors: Mapping[str, MergedTensor]
    optimizer_tensors: Mapping[str, MergedTensor]
    num_averaged: int
    newest: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str]


def plan_merge(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    *,
    dtype: torch.dtype | None = None,
    buffers: Buffers = "last",
    optimizer_state: bool = False,
) -> MergePlan:
    """Compares the headers of checkpoints, and decides what becomes of each tensor.

    Args:
        checkpoints: Oldest first, at least two.
        weights: One for each.
        dtype: Of the floating tensors written; None: as they are.
        buffers: Whether running statistics are the newest checkpoint's or averaged.
        optimizer_state: Whether the optimizers' states are averaged too.

    Raises:
        ValueError: Names, shapes or dtypes differ, or a tensor holds quantised codes.
    """
    _refuse_differences(checkpoints, [checkpoint.tensors for checkpoint in checkpoints])
    _refuse_codes(checkpoints[-1])
    origins = tuple(str(checkpoint.path) for checkpoint in checkpoints)
    newest: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[StoredTensor, ...], str] = {}
    tensors = {}
    for name, last in checkpoints[-1].tensors.items():
        sources = tuple(checkpoint.tensors[name] for checkpoint in checkpoints)
        if (other := first_name.setdefault(sources, name)) != name:
            aliases[name] = other
        written = dtype if dtype is not None and last.dtype.is_floating_point else last.dtype
        merged = MergedTensor(written, last.shape, name, sources, tuple(weights), origins)
        reason = _reason_for_newest(name, last.dtype, buffers)
        if reason is not None:
            newest.setdefault(reason, []).append(name)
            merged = replace(merged, sources=sources[-1:], weights=(1.0,), origins=origins[-1:])
        tensors[name] = merged
    return MergePlan(
        tensors,
        _plan_optimizer(checkpoints, weights, origins) if optimizer_state else {},
        sum(len(tensor.sources) > 1 for tensor in tensors.values()),
        {reason: tuple(names) for reason, names in newest.items()},
        aliases,
    )


def merge_blocks(
    tensors: Iterable[MergedTensor], progress: Callable[[int], None] = lambda num_bytes: None
) -> Generator[Tensor, None, None]:
    """Reads and averages tensors.

    Args:
        tensors: What, in the order wanted.
        progress: Called with bytes read, now and then.

    Yields:
        The merged data in row-major order, in one-dimensional blocks, none across two tensors. Each
        is overwritten after the next one.

    Raises:
        ValueError: A number is not finite, a file is damaged, or the dtype written is too narrow.
    """
    checksums: dict[Piece, int] = {}
    memory = _Memory()
    with closing(_read_ahead(_plan_reads(tensors))) as reads:
        for read, raw in reads:
            tensor, source = read.tensor, read.tensor.sources[read.source]
            source.check(read.start, read.stop, raw, checksums)
            progress(read.num_bytes)
            if not tensor.is_number:
                yield raw.view(tensor.dtype)
                continue
            precision = torch.promote_types(source.dtype, torch.float32)
            count = read.stop - read.start
            newest, merged, difference = (
                memory.take(slot, precision, count) for slot in ("newest", "merged", "difference")
            )
            if read.is_first:
                newest.copy_(raw.view(source.dtype))
                total = math.fsum(tensor.weights)
                # A scheme's weights sum to 1 but for rounding, which must not scale anything.
                is_normalized = math.isclose(total, 1, abs_tol=1e-9)
                torch.mul(newest, 1.0 if is_normalized else total, out=merged)
            else:
                difference.copy_(raw.view(source.dtype)).sub_(newest)
                merged.add_(difference, alpha=tensor.weights[read.source])
            if read.is_last:
                written = memory.take("written", tensor.dtype, count).copy_(merged)
                if not _is_finite(written):
                    raise ValueError(_explain_not_finite(read, merged))
                yield written


class _Memory:
    """Tensors to work in, allocated once: new memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, slot: str, dtype: torch.dtype, count: int) -> Tensor:
        """The `count` first elements of a slot's tensor."""
        tensor = self._tensors.get((slot, dtype))
        if tensor is None or len(tensor) < count:
            self._tensors[slot, dtype] = tensor = torch.empty(count, dtype=dtype)
        return tensor[:count]


class _Read(NamedTuple):
    """Elements [start, stop) of one source of a tensor."""

    tensor: MergedTensor
    source: int
    start: int
    stop: int
    is_first: bool
    is_last: bool

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * self.tensor.sources[self.source].dtype.itemsize


def _plan_reads(tensors: Iterable[MergedTensor]) -> Iterator[_Read]:
    """All reads in the order in which they are used: of each block the newest source first."""
    for tensor in tensors:
        unit = max(source.unit for source in tensor.sources)
        block = BLOCK_BYTES // tensor.sources[-1].dtype.itemsize
        step = max(block // unit, 1) * unit
        newest = len(tensor.sources) - 1
        order = (newest, *range(newest))
        for start in range(0, tensor.num_elements, step):
            stop = min(start + step, tensor.num_elements)
            for source in order:
                is_first, is_last = source == order[0], source == order[-1]
                yield _Read(tensor, source, start, stop, is_first, is_last)


def _read_ahead(reads: Iterator[_Read]) -> Generator[tuple[_Read, Tensor], None, None]:
    """Reads in threads what is needed next, in bounded memory.

    Yields:
        Each read in order with its bytes (uint8), which are overwritten after the next one.
    """
    pending: deque[tuple[_Read, Tensor, Future[None]]] = deque()
    free: list[Tensor] = []
    num_bytes = 0
    waiting = next(reads, None)
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
    try:
        while waiting is not None or pending:
            while waiting is not None and (
                not pending or num_bytes + waiting.num_bytes <= _BYTES_AHEAD
            ):
                source = waiting.tensor.sources[waiting.source]
                fits = free and len(free[-1]) >= waiting.num_bytes
                size = max(waiting.num_bytes, BLOCK_BYTES)
                buffer = free.pop() if fits else torch.empty(size, dtype=torch.uint8)
                target = buffer[: waiting.num_bytes]
                future = pool.submit(source.read, waiting.start, waiting.stop, target)
                pending.append((waiting, buffer, future))
                num_bytes += waiting.num_bytes
                waiting = next(reads, None)
            read, buffer, future = pending.popleft()
            future.result()
            yield read, buffer[: read.num_bytes]
            num_bytes -= read.num_bytes
            if len(buffer) == BLOCK_BYTES:
                free.append(buffer)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_finite(values: Tensor) -> bool:
    # By the extremes, which carry NaN on: many times faster than isfinite.
    real = torch.view_as_real(values) if values.is_complex() else values
    low, high = torch.aminmax(real)
    return math.isfinite(low) and math.isfinite(high)


def _explain_not_finite(read: _Read, merged: Tensor) -> str:
    tensor = read.tensor
    if _is_finite(merged):
        return f"'{tensor.name}' does not fit into {tensor.dtype}: choose --dtype same or float32"
    for source, origin in zip(tensor.sources, tensor.origins, strict=True):
        raw = torch.empty((read.stop - read.start) * source.dtype.itemsize, dtype=torch.uint8)
        source.read(read.start, read.stop, raw)
        if not _is_finite(raw.view(source.dtype)):
            return f"{origin}: '{tensor.name}' holds NaN or infinity: merge without that checkpoint"
    return f"'{tensor.name}' overflows with these weights"


def _reason_for_newest(name: str, dtype: torch.dtype, buffers: Buffers) -> str | None:
    """Why a tensor is not averaged, None where it is."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return "integers and masks"
    if OBSERVED_RANGE.search(name):
        return "ranges seen by observers"
    if RUNNING_STATISTICS.search(name) and buffers == "last":
        return "running statistics"
    return None


def _plan_optimizer(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float], origins: tuple[str, ...]
) -> dict[str, MergedTensor]:
    """The floating tensors of the optimizers' states but for step counters."""
    states = [checkpoint.optimizer_tensors for checkpoint in checkpoints]
    _refuse_differences(checkpoints, states)
    return {
        name: MergedTensor(
            last.dtype,
            last.shape,
            name,
            tuple(state[name] for state in states),
            tuple(weights),
            origins,
        )
        for name, last in states[-1].items()
        if last.dtype.is_floating_point and not name.endswith(".step")
    }


def _refuse_differences(
    checkpoints: Sequence[Checkpoint], stored: Sequence[Mapping[str, StoredTensor]]
) -> None:
    """Raises a ValueError that says where another checkpoint's tensors differ from the newest's."""
    newest = checkpoints[-1].path
    for checkpoint, tensors in zip(checkpoints[:-1], stored[:-1], strict=True):
        path = checkpoint.path
        if missing := sorted(stored[-1].keys() - tensors.keys()):
            raise ValueError(f"{path} lacks {_examples(missing)}, which {newest} has")
        if added := sorted(tensors.keys() - stored[-1].keys()):
            raise ValueError(f"{path} has {_examples(added)}, which {newest} lacks")
        for name, last in stored[-1].items():
            other = tensors[name]
            if other.shape != last.shape:
                raise ValueError(
                    f"'{name}' has the shape {other.shape} in {path}, {last.shape} in {newest}"
                )
            if other.dtype != last.dtype:
                raise ValueError(
                    f"'{name}' is {_dtype_name(other.dtype)} in {path}, "
                    f"{_dtype_name(last.dtype)} in {newest}"
                )


def _refuse_codes(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        is_narrow = tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool
        is_integer = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
        if (is_narrow and (len(tensor.shape) > 1 or not is_integer)) or (
            is_integer and PACKED_CODES.search(name)
        ):
            raise ValueError(
                f"{checkpoint.path}: '{name}' ({_dtype_name(tensor.dtype)}) holds quantised codes, "
                "which have no average: merge the checkpoints in full precision, then quantise"
            )


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
