"""Images with texts in Parquet files and in tar files of webdataset, by number, in any order.

A shuffle of shards and a buffer could not be resumed exactly and gives ranks different numbers of
batches; so records are found by number. Parquet, of which single rows cannot be read fast, is
copied once into memory-mapped Arrow files by `datasets`; tar files stay where they are and get an
index.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...modules.files import atomic_write

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


@dataclass(frozen=True)
class PairRecord:
    """One image with what belongs to it, not yet decoded.

    Args:
        where: File and row, or member, for messages.
        image: The encoded file; None where it is missing.
        fields: All else that was asked for: texts, lists of texts, numbers, None.
    """

    where: str
    image: bytes | None
    fields: dict[str, Any]


class PairSource(Protocol):
    """Records by number; may be sent to worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PairRecord:
        """Reads a record."""
        ...

    def column(self, name: str) -> list[Any]:
        """Returns one field of all records, without their images."""
        ...


def find_shards(root: Path, patterns: str | Sequence[str]) -> list[Path]:
    """Finds Parquet or tar files.

    Args:
        root: What relative patterns are relative to.
        patterns: Folders, files or glob patterns. Of folders, `*.parquet` or `*.tar`, without names
            that begin with "." or "_".

    Returns:
        Paths in the order of the patterns, sorted within each.

    Raises:
        ValueError: A pattern finds nothing, or the files are of both kinds.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = root / pattern
        if path.is_dir():
            paths = sorted([*path.glob("*.parquet"), *path.glob("*.tar")])
        elif path.is_file():
            paths = [path]
        else:
            # pathlib has no glob of an absolute pattern.
            at = path.absolute()
            paths = sorted(Path(at.anchor).glob(str(at.relative_to(at.anchor))))
        paths = [path for path in paths if path.name[0] not in "._" and path.is_file()]
        if not paths:
            raise ValueError(f"data: no *.parquet and no *.tar at {path}")
        found += paths
    kinds = {path.suffix for path in found}
    if len(kinds) > 1 or not kinds <= {".parquet", ".tar"}:
        raise ValueError(
            f"data: files ending in {', '.join(sorted(kinds))}, expected .parquet or .tar, of one "
            "kind (decompress .tar.gz: single members cannot be found in it)"
        )
    return found


def open_source(
    paths: Sequence[Path], image_key: str, fields: Sequence[str], cache: Path
) -> PairSource:
    """Opens shards, after the first time from what that left in the cache.

    Args:
        paths: From `find_shards`.
        image_key: Column of the image; tar files have it under the suffixes of image files.
        fields: Names of the other columns; in tar files of suffixes (`txt`), or of keys inside of
            `.json` members (`json.text2`).
        cache: Folder for what is made.

    Raises:
        ValueError: A file is damaged, or lacks a column.
    """
    if paths[0].suffix == ".parquet":
        return ParquetSource(paths, image_key, fields, cache)
    return TarSource(paths, fields, cache)


class ParquetSource:
    """Rows of Parquet files, copied into Arrow files that are mapped into memory.

    Args:
        paths: Files with the same columns.
        image_key: A column of bytes, or of `datasets` images.
        fields: Other columns.
        cache: Folder for the copies; as large as the columns themselves.

    Raises:
        ValueError: A file is damaged, or lacks a column.
    """

    def __init__(
        self, paths: Sequence[Path], image_key: str, fields: Sequence[str], cache: Path
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Dataset, Image
        from datasets.exceptions import DatasetGenerationError

        self.paths, self.image_key, self.fields = list(paths), image_key, list(fields)
        rows = []
        for path in paths:
            try:
                head = pq.ParquetFile(path)
            except (OSError, pa.ArrowInvalid) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"data: {path} cannot be read: {reason}") from error
            names = head.schema_arrow.names
            for name in (image_key, *fields):
                if name not in names:
                    hint = ""
                    if "raw_image_url" in names:
                        hint = (
                            "; it has addresses of images, not the images: fetch them first "
                            "(recipes/realsyn/README.md)"
                        )
                    raise ValueError(f"data: {path} has no column {name!r} but {names}{hint}")
            rows.append(head.metadata.num_rows)
        self._ends = np.cumsum(rows)
        columns = list(dict.fromkeys([image_key, *fields]))
        try:
            table = Dataset.from_parquet(
                [str(path) for path in paths], cache_dir=str(cache), columns=columns
            )
        except (DatasetGenerationError, OSError, pa.ArrowInvalid) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"data: {paths[0].parent} cannot be read: {reason}") from error
        if isinstance(table.features[image_key], Image):
            table = table.cast_column(image_key, Image(decode=False))
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> PairRecord:
        """Reads a row."""
        row = self._table[int(index)]
        image = row.pop(self.image_key)
        if isinstance(image, Mapping):  # of `datasets` images
            image = image["bytes"]
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return PairRecord(f"{self.paths[shard]}, row {index - first}", image, row)

    def column(self, name: str) -> list[Any]:
        """Returns one column."""
        values: list[Any] = self._table.select_columns([name])[:][name]
        return values


class TarSource:
    """Samples of uncompressed tar files: members in a row whose names differ by suffix only.

    Args:
        paths: Files as `img2dataset` and `webdataset.ShardWriter` write them.
        fields: Suffixes such as `txt`, or `json.KEY`.
        cache: Folder for an index, 16 bytes per sample.

    Raises:
        ValueError: A file is damaged.
    """

    def __init__(self, paths: Sequence[Path], fields: Sequence[str], cache: Path) -> None:
        self.paths, self.fields = list(paths), list(fields)
        spans = [_tar_index(path, cache) for path in self.paths]
        self._ends = np.cumsum([len(span) for span in spans])
        self._spans = np.concatenate(spans)
        self._files: dict[int, int] = {}  # descriptors, of this process
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> PairRecord:
        """Reads the members of a sample at once."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        begin, size = self._spans[index].tolist()
        if self._process != os.getpid():  # a forked worker: a file of its own
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
        members: dict[str, bytes] = {}
        name = ""
        with tarfile.open(fileobj=io.BytesIO(os.pread(self._files[shard], size, begin))) as file:
            for member in file:
                name, suffix = _split_name(member.name)
                content = file.extractfile(member)
                if content is not None:
                    members[suffix.lower()] = content.read()
        image = next((members[s] for s in IMAGE_SUFFIXES if s in members), None)
        fields = {field: _tar_field(members, field) for field in self.fields}
        return PairRecord(f"{self.paths[shard]}, sample {name}", image, fields)

    def column(self, name: str) -> list[Any]:
        """Reads all samples for one field."""
        return [self[index].fields[name] for index in range(len(self))]


def _tar_field(members: Mapping[str, bytes], field: str) -> Any:
    suffix, _, key = field.partition(".")
    if suffix not in members:
        return None
    text = members[suffix].decode("utf-8", errors="replace")
    if not key:
        return text
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content.get(key) if isinstance(content, dict) else None


def _split_name(name: str) -> tuple[str, str]:
    """Webdataset's rule: the suffix begins at the first dot of the file's own name."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix


def _tar_index(path: Path, cache: Path) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Where samples lie in a tar file, first byte and number of bytes, (N, 2)."""
    stat = path.stat()
    key = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    index = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not index.exists():
        spans: list[list[int]] = []
        try:
            with tarfile.open(path, "r:") as file:
                _find_spans(file, spans)
        except (tarfile.TarError, OSError) as error:
            if len(spans) < 2:
                raise ValueError(f"data: {path} cannot be read: {error}") from error
            log.warning("%s is cut off: its last sample is left out", path)
            spans.pop()
        with atomic_write(index) as write:
            np.save(write, np.array(spans, np.int64).reshape(-1, 2))
    loaded: np.ndarray[Any, np.dtype[np.int64]] = np.load(index)
    return loaded


def _find_spans(file: tarfile.TarFile, spans: list[list[int]]) -> None:
    """Appends first byte and number of bytes of each sample of a tar file."""
    last = None
    for member in file:
        if member.isfile():
            name, _ = _split_name(member.name)
            if name != last:
                spans.append([member.offset, 0])
                last = name
            end = member.offset_data + -(-member.size // 512) * 512
            spans[-1][1] = end - spans[-1][0]
