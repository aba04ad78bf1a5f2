"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a name beside `path`; the file written there replaces it when the block ends well.

    A reader, or a process that starts after a crash, sees the old file or the new one, never a
    part of it: the data reach the disk before the name does.

    Args:
        path: The file to write. Missing parent folders are created.

    Yields:
        The temporary name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` as `atomic_path` does.

    Args:
        path: The file to write. Missing parent folders are created.
        mode: "wb" for bytes, "w" for UTF-8 text.

    Yields:
        The open temporary file.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a new folder that replaces `folder` when the block ends without an error.

    Args:
        folder: The folder to write. Missing parent folders are created.

    Yields:
        The temporary folder.
    """
    folder = Path(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{x}") for x in ("tmp", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def sha256_of_folder(folder: Path) -> str:
    """SHA-256 of the files in a folder and below, of their names and content, not of its own name.

    Hidden files and folders are left out. Takes about 1 s per GB.
    """
    whole = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")):
        path = folder / name
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            with path.open("rb") as file:
                whole.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable (POSIX needs the folder itself to be synced)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, allow_nan=True)
        file.write("\n")
