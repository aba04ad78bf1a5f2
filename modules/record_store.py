"""JSON-lines files as a table that any number of processes fill, and that survives kills.

A folder holds one append-only file per process, named by rank. Every process reads all of them, so
that a run may go on with more or fewer, and appends to its own.
"""

import contextlib
import fcntl
import io
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROWS_AT_A_TIME = 10_000
# What a crash of the machine may cost; one of the process costs nothing.
SYNC_SECONDS = 5.0
REFRESH_SECONDS = 10.0


class RecordStore:
    """The records of all processes, and the file to which this one adds its own.

    Args:
        folder: Of the files; created if missing.
        rank: Of this process.
        key: Field of a record that is its key.
    """

    def __init__(self, folder: Path, rank: int, key: str = "key") -> None:
        self.process = os.getpid()
        folder.mkdir(parents=True, exist_ok=True)
        self.key = key
        self._lock = threading.RLock()
        self._file = _open_shard(folder, rank)
        path = Path(self._file.name)
        self._name = path.name
        if not _ends_well(path):
            self._file.write(b"\n")  # after the torn line of a process that was killed
        self._index = RecordIndex(folder, key)
        self._synced = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have added since."""
        self._index.refresh()
        self._refreshed = time.monotonic()

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the record of a key, None if no process has one."""
        with self._lock:
            record = self._index.find(key)
            if record is None and time.monotonic() - self._refreshed > REFRESH_SECONDS:
                self.refresh()
                record = self._index.find(key)
        return record

    def put(self, record: Mapping[str, Any]) -> None:
        """Appends a record."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            self._append(line)
            self._index.add(self._name, str(record[self.key]), len(line))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Makes records last through a crash of the machine."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes this process's file."""
        with self._lock:
            self.sync()
            self._file.close()

    def _append(self, line: bytes) -> None:
        size = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self._file.name}: the disk is full")
        except OSError:
            self._file.truncate(size)
            raise


class RecordIndex:
    """Finds records by key in JSON-lines files of one folder, of which others may be writing some.

    The files are all there is: each process reads them anew (about 15 s per million records of
    1 kB) into a database of keys and places that goes with it. The database is a temporary file,
    so that memory does not grow with the number of records.

    Of several records with one key the first that was read counts. A line that is no record -
    torn when its machine went down - is counted and skipped; one without an end waits for it.

    Args:
        folder: Where the files are.
        key: Field of a record that is its key; a line without it is no record.
        pattern: Which files of the folder to read.
    """

    def __init__(self, folder: Path, key: str, pattern: str = "*.jsonl") -> None:
        self.folder, self.key, self.pattern = folder, key, pattern
        # Never committed: what is temporary needs neither a journal nor the disk's word.
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE records (key TEXT PRIMARY KEY, file TEXT, begin INTEGER, size INTEGER) "
            "WITHOUT ROWID"
        )
        self._num_read: dict[str, int] = {}  # bytes, by file

    def refresh(self) -> None:
        """Reads what has been added to the files since."""
        for path in sorted(self.folder.glob(self.pattern)):
            if path.stat().st_size > self._num_read.get(path.name, 0):
                self._read(path)

    def add(self, name: str, key: str, size: int) -> None:
        """Notes a record of `size` bytes that was appended to a file read up to there."""
        begin = self._num_read.get(name, 0)
        self._insert([(key, name, begin, size)])
        self._num_read[name] = begin + size

    def find(self, key: str) -> dict[str, Any] | None:
        """Returns the record of `key`, None if there is none."""
        query = "SELECT file, begin, size FROM records WHERE key = ?"
        row = self._database.execute(query, (key,)).fetchone()
        if row is None:
            return None
        name, begin, size = row
        with (self.folder / name).open("rb") as file:
            file.seek(begin)
            return _parse(file.read(size))

    def _read(self, path: Path) -> None:
        begin = self._num_read.get(path.name, 0)
        rows: list[tuple[str, str, int, int]] = []
        damaged: list[int] = []
        for line in _whole_lines(path, begin):
            record = _parse(line)
            if record is not None and self.key in record:
                rows.append((str(record[self.key]), path.name, begin, len(line)))
            elif line.strip():
                damaged.append(begin)
            begin += len(line)
            if len(rows) == ROWS_AT_A_TIME:
                self._insert(rows)
                rows = []
        self._insert(rows)
        self._num_read[path.name] = begin
        if damaged:
            log.warning(
                "%s: skipped %d damaged lines, the first at byte %d", path, len(damaged), damaged[0]
            )

    def _insert(self, rows: list[tuple[str, str, int, int]]) -> None:
        self._database.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", rows)


def _whole_lines(path: Path, begin: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # of the JSON, or of its UTF-8
        return None
    return record if isinstance(record, dict) else None


def _open_shard(folder: Path, rank: int) -> io.FileIO:
    """Opens a file of this rank's that no living process holds, and locks it."""
    for number in range(1000):
        name = f"rank-{rank:05d}" + (f"-{number}" if number else "")
        file = (folder / f"{name}.jsonl").open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        except OSError:  # a file system without locks
            file.close()
            break
        else:
            return file
    return (folder / f"rank-{rank:05d}-{uuid.uuid4().hex}.jsonl").open("ab", buffering=0)


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file, contextlib.suppress(OSError):
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
    return True  # empty
