"""Documents from text, JSON lines, Parquet, `datasets` and the Python standard library.

Readers yield a `str` for a document and a `ValueError` for a record that cannot be one, so that
whoever reads decides whether to go on without it.
"""

import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".zst")


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Lists the files that paths, folders (with all below) and glob patterns name.

    Args:
        patterns: Paths; `~`, `*`, `**`, `?` and `[...]` are understood. Names that begin with a dot
            are left out unless named themselves.

    Returns:
        The files, sorted, each once.

    Raises:
        ValueError: A pattern names no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        # Unlike `Path.glob`, `glob.glob` leaves out hidden files.
        names = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207
        files = [file for name in names for file in _files_below(Path(name))]
        if not files:
            raise ValueError(
                f"no file at {pattern!r} (expected a file, a folder with files, or a glob pattern "
                "of .txt, .md, .py or other text, .jsonl, .jsonl.gz, .jsonl.zst or .parquet)"
            )
        found.update(files)
    return sorted(found)


def _files_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return files


def standard_library_files() -> list[Path]:
    """Lists the sources of the running Python's standard library, sorted, without its tests.

    About 11 MB of text that is always at hand. Installed packages and files that the build of this
    Python generated are left out.
    """
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    generated = ("config-", "_sysconfigdata", "_sysconfig_vars")
    files = []
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = [n for n in folders if n not in left_out and not n.startswith(generated)]
        sources = [n for n in names if n.endswith(".py") and not n.startswith(generated)]
        files += [Path(folder, name) for name in sources]
    return sorted(files)


def read_files(
    paths: Sequence[Path], text_key: str, separator: str | None
) -> Iterator[str | ValueError]:
    """Reads documents: a row of Parquet, a line of JSON lines, else a file or a part of it.

    Args:
        paths: Files; `.gz` and `.zst` are decompressed.
        text_key: Name of the text in a row or line.
        separator: What divides the documents of a text file; None makes a file one document.

    Yields:
        The text of a document, or what is wrong with a record.

    Raises:
        ValueError: A file cannot be read at all, has no such column, or needs `zstandard`.
    """
    for path in paths:
        suffixes = [s.lower() for s in path.suffixes if s.lower() not in COMPRESSED]
        suffix = suffixes[-1] if suffixes else ""
        if suffix == ".parquet":
            yield from _read_parquet(path, text_key)
            continue
        with _open(path) as stream:
            if suffix in JSON_LINES:
                yield from _read_json_lines(stream, path, text_key)
            else:
                yield from _read_text(stream, path, separator)


def read_dataset(
    name: str, config: str | None, split: str, text_key: str
) -> Iterator[str | ValueError]:
    """Reads the rows of a dataset through `datasets`.

    Args:
        name: Hub name, folder or file that `load_dataset` takes, or a folder of `save_to_disk`.
        config: Configuration of the dataset, if it has several.
        split: Its split; slices such as "train[:1%]" are understood.
        text_key: Name of the column.

    Yields:
        The text of a document, or what is wrong with a row.

    Raises:
        ValueError: The dataset cannot be loaded or has no such column.
    """
    import datasets

    try:
        if (Path(name) / "state.json").exists():
            rows = datasets.load_from_disk(name)
        elif (Path(name) / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(name)[split]
        else:
            rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot load dataset {name!r}, config {config!r}, split {split!r}: {reason}"
        ) from error
    _check_column(text_key, rows.column_names, f"dataset {name!r}")
    for number, row in enumerate(rows.select_columns([text_key])):
        yield _text_of(row, text_key, f"dataset {name!r}, row {number}")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                yield cast(IO[bytes], stream)
        elif path.suffix.lower() == ".zst":
            with path.open("rb") as raw, _decompress_zstandard(raw) as stream:
                yield stream
        else:
            with path.open("rb") as stream:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


@contextmanager
def _decompress_zstandard(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{raw.name} needs the package zstandard: pip install tenfold[text]"
        ) from error
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        yield io.BufferedReader(reader)
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error


def _read_text(stream: IO[bytes], path: Path, separator: str | None) -> Iterator[str | ValueError]:
    try:
        if separator is None:
            yield stream.read().decode("utf-8")
            return
        rest = ""
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        while block := text.read(1 << 20):
            *documents, rest = (rest + block).split(separator)
            yield from documents
        yield rest
    except UnicodeDecodeError as error:
        yield ValueError(f"{path}: not UTF-8 text ({error.reason})")


def _read_json_lines(stream: IO[bytes], path: Path, text_key: str) -> Iterator[str | ValueError]:
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield ValueError(f"{path}:{number}: not a line of JSON ({error})")
        else:
            yield _text_of(record, text_key, f"{path}:{number}")


def _read_parquet(path: Path, text_key: str) -> Iterator[str | ValueError]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(text_key, file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
                for row in batch.to_pylist():
                    yield _text_of(row, text_key, f"{path}, row {number}")
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _check_column(text_key: str, columns: Sequence[str], where: str) -> None:
    if text_key not in columns:
        raise ValueError(f"{where} has no column {text_key!r} (columns: {', '.join(columns)})")


def _text_of(record: Any, text_key: str, where: str) -> str | ValueError:
    if not isinstance(record, dict) or text_key not in record:
        found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        return ValueError(f"{where}: no key {text_key!r} (found: {found})")
    text = record[text_key]
    if not isinstance(text, str):
        return ValueError(f"{where}: {text_key!r} is no text but {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ValueError(f"{where}: {text_key!r} is not Unicode text ({error.reason})")
    return text
