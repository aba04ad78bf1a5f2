"""What a checkpoint is, whatever its format: named tensors, each in byte ranges of files."""

import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SAMPLE_BYTES = 1 << 20
_STEP_IN_NAME = re.compile(r"(?:step|checkpoint)[=_-]?(\d+)")


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, row-major and without gaps in a file.

    Attributes:
        file: Where.
        position: Its first byte.
        offsets: Index of its first element in the tensor.
        sizes: Its shape.
        crc32: Checksum of its bytes, where the format has one.
    """

    file: Path
    position: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its data."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of its data."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(TensorSpec):
    """A tensor on disk.

    Attributes:
        pieces: Blocks that cover it.
        stride: Steps between its elements, in elements, of the one piece of a tensor that is not
            row-major; None: row-major.
    """

    pieces: tuple[Piece, ...] = ()
    stride: tuple[int, ...] | None = None

    @property
    def unit(self) -> int:
        """Ranges of elements to read start and stop at multiples of this.

        1 where each piece is one range of elements, the size of a row where pieces divide rows,
        and the size of the tensor where it is not row-major.
        """
        if self.stride is not None:
            return max(self.num_elements, 1)
        if all(piece.sizes[1:] == self.shape[1:] for piece in self.pieces):
            return 1
        return math.prod(self.shape[1:])

    def read(self, start: int, stop: int, target: Tensor) -> None:
        """Reads elements [start, stop), counted in row-major order.

        Args:
            start: First element, a multiple of `unit`.
            stop: Behind the last, a multiple of `unit` or the tensor's end.
            target: Bytes to fill, uint8, of shape (bytes of stop - start elements,).

        Raises:
            ValueError: A file has become shorter than its header says.
        """
        if self.stride is not None:
            self._read_strided(target)
        elif self.unit == 1:
            self._read_ranges(start, stop, target)
        else:
            self._read_rows(start // self.unit, stop // self.unit, target)

    def check(
        self, start: int, stop: int, data: Tensor, running: MutableMapping[Piece, int]
    ) -> None:
        """Compares what was read with the checksums that the format has.

        Args:
            start: As in `read`; the calls for one tensor must be in order.
            stop: As in `read`.
            data: What was read.
            running: Checksums of what has been read of each piece so far.

        Raises:
            ValueError: A checksum differs.
        """
        if self.unit != 1:
            return
        for piece, low, high in self._ranges(start, stop):
            if piece.crc32 is None:
                continue
            part = data[(low - start) * self.dtype.itemsize : (high - start) * self.dtype.itemsize]
            crc32 = zlib.crc32(as_bytes(part), running.pop(piece, 0))
            if high < self._end(piece):
                running[piece] = crc32
            elif crc32 != piece.crc32:
                raise ValueError(f"{piece.file} is damaged: a checksum differs")

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
        """The part [low, high) of [start, stop) that each piece holds, where `unit` is 1."""
        for piece in self.pieces:
            end = self._end(piece)
            low, high = max(start, end - math.prod(piece.sizes)), min(stop, end)
            if low < high:
                yield piece, low, high

    def _end(self, piece: Piece) -> int:
        """The element behind the last of a piece, where `unit` is 1."""
        row = math.prod(self.shape[1:])
        return (piece.offsets[0] * row if piece.offsets else 0) + math.prod(piece.sizes)

    def _read_ranges(self, start: int, stop: int, target: Tensor) -> None:
        size = self.dtype.itemsize
        for piece, low, high in self._ranges(start, stop):
            first = self._end(piece) - math.prod(piece.sizes)
            part = target[(low - start) * size : (high - start) * size]
            _read_into(piece.file, piece.position + (low - first) * size, part)

    def _read_rows(self, start: int, stop: int, target: Tensor) -> None:
        rows = target.view(self.dtype).view(stop - start, *self.shape[1:])
        for piece in self.pieces:
            low = max(start, piece.offsets[0])
            high = min(stop, piece.offsets[0] + piece.sizes[0])
            if low < high:
                part = torch.empty((high - low, *piece.sizes[1:]), dtype=self.dtype)
                row_bytes = math.prod(piece.sizes[1:]) * self.dtype.itemsize
                position = piece.position + (low - piece.offsets[0]) * row_bytes
                _read_into(piece.file, position, part.view(-1).view(torch.uint8))
                columns = zip(piece.offsets[1:], piece.sizes[1:], strict=True)
                inner = tuple(slice(first, first + size) for first, size in columns)
                rows[(slice(low - start, high - start), *inner)] = part

    def _read_strided(self, target: Tensor) -> None:
        (piece,) = self.pieces
        assert self.stride is not None
        extent = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        block = torch.empty(extent, dtype=self.dtype)
        _read_into(piece.file, piece.position, block.view(torch.uint8))
        strided = block.as_strided(self.shape, self.stride)
        target.view(self.dtype).view(self.shape).copy_(strided)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which the headers have been read.

    Attributes:
        path: File or folder.
        format: Its format, in words.
        files: The files that hold its tensors.
        tensors: The model's, by name without what wrappers add (see `plain_name`).
        step: Optimizer steps taken, where known.
        settings: What tells runs apart: hyperparameters, or the configuration of a model.
        optimizer_tensors: Those of the optimizers' states, by a dotted path.
        has_optimizer_state: Whether training can go on from it.
        notes: What a user should know of it, one line each.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer_tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    has_optimizer_state: bool = False
    notes: tuple[str, ...] = ()


def plain_names(names: Sequence[str], path: Path) -> dict[str, str]:
    """Names without the marks of wrappers: `_orig_mod.` (torch.compile), `module.` (DDP).

    The latter only where every name begins with it.

    Args:
        names: As stored.
        path: Where, for the message.

    Returns:
        Name as stored -> plain name.

    Raises:
        ValueError: Two names become one.
    """
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    if all(name.startswith("module.") for name in plain.values()):
        plain = {name: other.removeprefix("module.") for name, other in plain.items()}
    if len(set(plain.values())) < len(plain):
        seen: dict[str, str] = {}
        for name, other in plain.items():
            if other in seen:
                raise ValueError(f"{path}: '{seen[other]}' and '{name}' are one tensor's name")
            seen[other] = name
    return plain


def step_in_name(path: Path) -> int | None:
    """The step that a file's or folder's name gives: `step_00000120`, `checkpoint-120`."""
    found = _STEP_IN_NAME.findall(path.name)
    return int(found[-1]) if found else None


def fingerprint(files: Sequence[Path]) -> str:
    """A cheap identity of files: SHA-256 of sizes, first and last megabytes.

    These hold the headers of every format and, in a zip archive, the checksum of every tensor.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def as_bytes(data: Tensor) -> memoryview:
    """The memory of a contiguous tensor, without a copy."""
    return memoryview(data.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _read_into(path: Path, position: int, target: Tensor) -> None:
    """Fills `target` (uint8) with the bytes from `position` on."""
    view = as_bytes(target)
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        while view:
            count = file.readinto(view)
            if count == 0:
                raise ValueError(f"{path} is damaged: it ends before its header says")
            view = view[count:]
