"""What `torch.save` writes, opened without reading tensors and without running anything in it."""

import io
import mmap
import struct
import warnings
import zipfile
from collections.abc import MutableMapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from .stored import Piece, StoredTensor

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record: lengths of its name and extra field


def load_headers(source: Path | IO[bytes], path: Path) -> Any:
    """Loads what `torch.save` wrote, with tensors that have everything but data.

    Args:
        source: The file, or one open at such a content.
        path: For messages.

    Raises:
        ValueError: It is damaged, or holds more than tensors and plain types.
    """
    # Here, because it takes a second to import. Semi-public: PyTorch's own tutorial on reading
    # storages from disk uses it so. Under this mode, loading reads no data and leaves each
    # storage's position in `_checkpoint_offset`; test_checkpoint_merge_files.py notices when that
    # moves.
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with zipfile.ZipFile(source) as archive:
            (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            archive.read(pickled)  # compares its checksum
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: it is incomplete, or torch.save did not write it"
        ) from error
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with FakeTensorMode():
            return torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects, which could run code when loaded: only tensors and "
            "plain types are accepted"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def load_mapped(path: Path) -> Any:
    """Loads what `torch.save` wrote, with tensors that are maps of the file: never write to them.

    Unlike `torch.load(mmap=True)`, whose private maps the kernel refuses to make of a file that is
    larger than the memory.

    Raises:
        ValueError: As `load_headers`.
    """
    storages: dict[int, Tensor] = {}

    def materialize(value: Any) -> Any:
        if isinstance(value, Tensor):
            start = value.untyped_storage()._checkpoint_offset
            assert start is not None
            if start not in storages:
                count = value.untyped_storage().nbytes()
                storages[start] = map_bytes(mapped, start, count)
            storage = storages[start].untyped_storage()
            place = int(value.storage_offset()), tuple(value.shape), tuple(value.stride())
            return torch.empty(0, dtype=value.dtype).set_(storage, *place)
        if isinstance(value, MutableMapping):
            for key, inner in value.items():
                value[key] = materialize(inner)
        elif isinstance(value, list):
            value[:] = [materialize(inner) for inner in value]
        elif type(value) is tuple:
            return tuple(materialize(inner) for inner in value)
        return value

    content = load_headers(path, path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return materialize(content)


def map_bytes(mapped: mmap.mmap, start: int, count: int) -> Tensor:
    """A range of a mapped file as a tensor of bytes, with a storage of its own."""
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start)


def read_checksums(source: Path | IO[bytes]) -> dict[int, tuple[int, int]]:
    """Position of the data of each record in a zip archive -> its size and CRC-32."""
    found = {}
    with zipfile.ZipFile(source) as archive:
        file = archive.fp
        assert file is not None
        for record in archive.infolist():
            file.seek(record.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            position = record.header_offset + _LOCAL_HEADER.size + sum(lengths)
            found[position] = (record.file_size, record.CRC)
    return found


def locate(
    tensor: Tensor,
    name: str,
    path: Path,
    checksums: dict[int, tuple[int, int]],
    offset: int = 0,
) -> StoredTensor:
    """Where a tensor from `load_headers` lies.

    Args:
        tensor: The tensor without data.
        name: Its name, for messages.
        path: The file.
        checksums: Those of the archive, from `read_checksums`.
        offset: Where in the file the archive begins.

    Raises:
        ValueError: It is sparse, quantised or otherwise no plain array.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj():
        raise ValueError(f"{path}: '{name}' is no plain array of numbers ({tensor.layout})")
    start = tensor.untyped_storage()._checkpoint_offset
    assert start is not None
    position = start + int(tensor.storage_offset()) * tensor.element_size()
    shape = tuple(tensor.shape)
    size, crc32 = checksums.get(start, (-1, 0))
    is_whole = tensor.is_contiguous() and size == tensor.nbytes
    piece = Piece(path, offset + position, (0,) * len(shape), shape, crc32 if is_whole else None)
    stride = None if tensor.is_contiguous() else tuple(tensor.stride())
    return StoredTensor(tensor.dtype, shape, (piece,), stride)


class FileSection(io.RawIOBase):
    """A range of bytes of an open file, as a file of its own.

    Args:
        file: Open for reading.
        start: First byte.
        size: How many.
    """

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position in the section."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position in the section."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads what fits, 0 bytes at the end."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._position)]
        self._file.seek(self._start + self._position)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
