"""JSON-lines files as a table: where the record of a key stands, kept in a small database.

The files are the truth: the database holds keys and places only, and is made again from the files
where it does not fit them. So memory does not grow with the number of records.
"""

import json
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, name TEXT UNIQUE, num_bytes INTEGER
);
CREATE TABLE IF NOT EXISTS records (
    key TEXT PRIMARY KEY, file INTEGER, begin INTEGER, num_bytes INTEGER
) WITHOUT ROWID;
"""
ROWS_AT_A_TIME = 10_000


@dataclass
class _File:
    """A file by its number in the database, and how many of its bytes are indexed."""

    number: int
    num_bytes: int = 0


class RecordIndex:
    """Finds records by key in JSON-lines files of one folder, of which others may be writing some.

    Of several records with one key the first that was indexed counts. A line that is no record -
    torn when its writer was killed - is named and skipped; one without an end waits for it.

    Args:
        folder: Where the files are.
        key: Field of a record that is its key; records without it are damaged.
        database: File that keeps the index, which no other process may have open. None makes one
            that goes with this object.
        pattern: Which files of the folder to read.
    """

    def __init__(
        self, folder: Path, key: str, database: Path | None = None, pattern: str = "*.jsonl"
    ) -> None:
        self.folder, self.key, self.pattern = folder, key, pattern
        try:
            self._open(database)
        except sqlite3.DatabaseError as error:
            assert database is not None
            log.warning("%s: %s; it is made again", database, error)
            database.unlink()
            self._open(database)

    def _open(self, database: Path | None) -> None:
        # "" is a temporary file. Without locks, which some network file systems lack.
        where = "" if database is None else f"{database.absolute().as_uri()}?nolock=1"
        self._database = sqlite3.connect(where, uri=bool(where), check_same_thread=False)
        self._database.executescript(SCHEMA)
        rows = self._database.execute("SELECT name, number, num_bytes FROM files")
        self._files = {name: _File(number, num_bytes) for name, number, num_bytes in rows}

    def refresh(self) -> None:
        """Indexes what has been added to the files since."""
        for path in sorted(self.folder.glob(self.pattern)):
            size = path.stat().st_size
            file = self._file(path.name)
            if size < file.num_bytes:  # a machine went down with what it had not synced
                self._forget(file)
            if size > file.num_bytes:
                self._index(path, file)
        self.commit()

    def add(self, name: str, key: str, num_bytes: int) -> None:
        """Indexes a record of `num_bytes` that was appended to a file indexed up to there."""
        file = self._file(name)
        self._insert([(key, file.number, file.num_bytes, num_bytes)])
        file.num_bytes += num_bytes

    def find(self, key: str) -> dict[str, Any] | None:
        """Returns the record of `key`, None if there is none."""
        query = "SELECT name, begin, r.num_bytes FROM records r JOIN files ON file = number"
        row = self._database.execute(f"{query} WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        name, begin, num_bytes = row
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(begin)
                record = _parse(file.read(num_bytes))
        except FileNotFoundError:
            record = None
        if record is not None and str(record.get(self.key)) == key:
            return record
        log.warning("%s is not the file that was indexed; it is indexed again", self.folder / name)
        self._forget(self._file(name))
        self.refresh()
        return self.find(key)

    def commit(self) -> None:
        """Saves the index."""
        rows = [(file.num_bytes, file.number) for file in self._files.values()]
        self._database.executemany("UPDATE files SET num_bytes = ? WHERE number = ?", rows)
        self._database.commit()

    def _file(self, name: str) -> _File:
        if name not in self._files:
            row = self._database.execute(
                "INSERT INTO files (name, num_bytes) VALUES (?, 0)", (name,)
            )
            assert row.lastrowid is not None
            self._files[name] = _File(row.lastrowid)
        return self._files[name]

    def _forget(self, file: _File) -> None:
        self._database.execute("DELETE FROM records WHERE file = ?", (file.number,))
        file.num_bytes = 0

    def _index(self, path: Path, file: _File) -> None:
        rows: list[tuple[str, int, int, int]] = []
        for line in _whole_lines(path, file.num_bytes):
            record = _parse(line)
            if record is not None and self.key in record:
                rows.append((str(record[self.key]), file.number, file.num_bytes, len(line)))
            elif line.strip():
                log.warning("%s: the line at byte %d is damaged, skipped", path, file.num_bytes)
            file.num_bytes += len(line)
            if len(rows) == ROWS_AT_A_TIME:
                self._insert(rows)
                rows = []
        self._insert(rows)

    def _insert(self, rows: list[tuple[str, int, int, int]]) -> None:
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
