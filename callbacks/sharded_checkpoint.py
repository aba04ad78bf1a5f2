"""Sharded checkpoints, as torch.distributed.checkpoint writes them: checked before they are loaded.

A sharded checkpoint is a folder: `.metadata`, a pickle that says which tensor lies where; one
`.distcp` file per process; `meta.pt`, what Lightning keeps besides weights and optimizer. torch
unpickles `.metadata`, and whatever in the shards is not a tensor, without a restriction: a folder
from a stranger could run code. Here only the classes that torch writes are let through.
"""

import io
import os
import shutil
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from ..modules.checkpoint_files.metadata import METADATA, ForeignObjectError, read_metadata

REST = "meta.pt"  # Lightning's name


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder of shards."""
    return path.is_dir() and (path / METADATA).is_file()


def are_shards_whole(folder: Path) -> bool:
    """Whether every tensor lies within its file, and all besides tensors is plain.

    Sizes are compared, and the few objects besides tensors read; the checksums of the tensors are
    verified by torch as it loads them.

    Raises:
        ForeignObjectError: It names what is no part of a checkpoint, or files outside of itself.
        pickle.UnpicklingError: There are Python objects that could run code when loaded.
    """
    try:
        metadata = read_metadata(folder)
    except ForeignObjectError:
        raise
    except ValueError:
        return False
    try:
        sizes: dict[str, int] = {}
        for index, place in metadata.storage_data.items():
            name = place.relative_path
            if name not in sizes:  # once per file: of a thousand ranks there are a million places
                if Path(name).name != name:
                    raise ForeignObjectError(f"{folder} reads from outside of itself: {name}")
                sizes[name] = (folder / name).stat().st_size
            if place.offset + place.length > sizes[name]:
                return False
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with (folder / name).open("rb") as file:
                    file.seek(place.offset)
                    content = io.BytesIO(file.read(place.length))
                torch.load(content, weights_only=True)
        torch.load(folder / REST, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, KeyError):
        return False
    return True


def put_in_place(temporary: Path, target: Path, previous: Path | None) -> None:
    """Gives a complete folder its name; one of that name becomes `previous`, or is deleted.

    Whenever this is interrupted, one of the two names is a complete checkpoint.

    Args:
        temporary: The folder.
        target: Its name.
        previous: What becomes of the folder that has this name; None deletes it.
    """
    with (temporary / REST).open("rb") as file:
        os.fsync(file.fileno())  # the shards are synced by torch
    if target.exists():
        if previous is not None:
            remove(previous)
            target.rename(previous)
        else:
            remove(target)
    temporary.rename(target)


def duplicate(source: Path, target: Path) -> None:
    """Makes a folder of hard links (copies where there are none) under another name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    remove(temporary)
    shutil.copytree(source, temporary, copy_function=_link)
    remove(target)
    temporary.rename(target)


def remove(path: Path) -> None:
    """Deletes a checkpoint, whether a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
