"""Checkpoints that a sharded run wrote as a folder (torch.distributed.checkpoint, DCP).

Lightning's FSDP and ModelParallel strategies write them: `.metadata`, `__RANK_I.distcp`, `meta.pt`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from .lightning import run_settings
from .metadata import read_metadata
from .pickled import FileSection, load_headers, locate, read_checksums
from .stored import Checkpoint, Piece, StoredTensor, plain_names, step_in_name

_MODEL_KEYS = ("state_dict.", "model.")  # of ModelParallelStrategy, of FSDPStrategy


def read_distributed(folder: Path) -> Checkpoint:
    """Opens a sharded checkpoint, without a process group.

    Raises:
        ValueError: It is damaged, incomplete, compressed, or would run code when unpickled.
    """
    metadata = read_metadata(folder)
    keys = metadata.state_dict_metadata
    prefix = next((p for p in _MODEL_KEYS if any(key.startswith(p) for key in keys)), None)
    if prefix is None:
        raise ValueError(
            f"{folder} has no `state_dict` and no `model`: Lightning's sharded strategies write one"
        )
    stored = {
        key: entry
        for key, entry in keys.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    tensors = _locate_tensors(folder, metadata.storage_data, stored)
    names = plain_names([key.removeprefix(prefix) for key in stored], folder)
    others: Mapping[str, Any] = {}
    if (folder / "meta.pt").is_file():
        others = load_headers(folder / "meta.pt", folder / "meta.pt")
    return Checkpoint(
        folder,
        "sharded checkpoint",
        tuple(sorted({piece.file for tensor in tensors.values() for piece in tensor.pieces})),
        {names[key.removeprefix(prefix)]: tensor for key, tensor in tensors.items()},
        step=others.get("global_step", step_in_name(folder)),
        settings=run_settings(others.get("hyper_parameters") or {}),
    )


def _locate_tensors(
    folder: Path,
    storage: Mapping[MetadataIndex, Any],
    stored: Mapping[str, TensorStorageMetadata],
) -> dict[str, StoredTensor]:
    open_files: dict[str, IO[bytes]] = {}
    tensors = {}
    try:
        for key, entry in stored.items():
            pieces = []
            strides: list[tuple[int, ...] | None] = []
            for chunk in entry.chunks:
                info = storage.get(MetadataIndex(key, chunk.offsets))
                if info is None:
                    raise ValueError(f"{folder} is damaged: nothing says where '{key}' is")
                path = folder / Path(info.relative_path).name
                if getattr(info, "transform_descriptors", None):
                    raise ValueError(f"{path} is compressed: write it without transforms")
                if not path.is_file():
                    raise ValueError(f"{folder} is incomplete: {path.name} is missing")
                if path.name not in open_files:
                    open_files[path.name] = path.open("rb")
                found = _locate_chunk(open_files[path.name], info.offset, info.length, key, path)
                if found.shape != tuple(chunk.sizes):
                    raise ValueError(f"{path} is damaged: '{key}' has the shape {found.shape}")
                (piece,) = found.pieces
                sizes = tuple(chunk.sizes)
                pieces.append(Piece(path, piece.position, tuple(chunk.offsets), sizes, piece.crc32))
                strides.append(found.stride)
            if len(pieces) > 1 and any(stride is not None for stride in strides):
                raise ValueError(f"{folder}: '{key}' is sharded and not row-major")
            dtype = entry.properties.dtype
            tensors[key] = StoredTensor(dtype, tuple(entry.size), tuple(pieces), strides[0])
    finally:
        for file in open_files.values():
            file.close()
    return tensors


def _locate_chunk(file: IO[bytes], start: int, size: int, key: str, path: Path) -> StoredTensor:
    """One saved chunk: a small archive of its own inside the file."""
    section = FileSection(file, start, size)
    tensor = load_headers(section, path)  # type: ignore[arg-type]
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path} is damaged: '{key}' is no tensor")
    checksums = read_checksums(section)  # type: ignore[arg-type]
    return locate(tensor, key, path, checksums, offset=start)
