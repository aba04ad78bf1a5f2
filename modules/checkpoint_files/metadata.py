"""`.metadata` of a sharded checkpoint: a pickle, read without running what it names."""

import gc
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

METADATA = ".metadata"

# These are all that DCP puts into one.
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}


class ForeignObjectError(ValueError):
    """A checkpoint holds something that it has no business with."""


class _MetadataUnpickler(pickle.Unpickler):
    """Builds DCP's own classes and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Finds a class of DCP's or a dtype."""
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise ForeignObjectError(f"{module}.{name}")


def read_metadata(folder: Path) -> Metadata:
    """Reads what a sharded checkpoint says of its tensors, and runs nothing that it names.

    Raises:
        ForeignObjectError: It names what torch does not write there.
        ValueError: It is missing or damaged.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file, _paused_collection():
            metadata = _MetadataUnpickler(file).load()
    except ForeignObjectError as error:
        raise ForeignObjectError(
            f"{path} names {error}, which is no part of a checkpoint and could run code: refused"
        ) from error
    except Exception as error:  # whatever bytes that are no pickle make pickle raise
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise ValueError(f"{path} describes no checkpoint")
    return metadata


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage among objects that are being made.

    There is an object per tensor and rank, a million for a thousand ranks: looking through them
    again and again takes several times as long as making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
