"""A cache of answers that survives kills and fits any number of processes.

A folder holds one append-only file of JSON lines per process, named by rank. Every process reads
all of them, so that a run may go on with more or fewer, and appends to its own. What an answer
depends on is its key: a request whose answer a process has read is never sent again.
"""

import contextlib
import fcntl
import io
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .backend import ChatBackend, Keep
from .limits import rank_and_world_size
from .messages import ChatRequest, ChatResponse, sha256_of
from .records import RecordIndex

# What a crash of the machine may cost; one of the process costs nothing.
SYNC_SECONDS = 5.0
REFRESH_SECONDS = 10.0
_FIELDS = [field.name for field in fields(ChatResponse) if field.name not in ("cached", "error")]


class CachedBackend(ChatBackend):
    """Asks a backend only what has not been answered before.

    An answer depends on the backend's identity and on the request: messages, pixels, settings,
    `attempt`. Responses with an error are not kept. Requests that are equal are asked once.

    Args:
        backend: What to ask.
        cache_dir: Folder of the answers; any number of processes, runs and models may share it.
    """

    def __init__(self, backend: ChatBackend, cache_dir: str | Path) -> None:
        self.backend = backend
        self.cache_dir = Path(cache_dir)

    @property
    def supports_images(self) -> bool:
        """That of the backend."""
        return self.backend.supports_images

    @property
    def supports_scoring(self) -> bool:
        """That of the backend."""
        return self.backend.supports_scoring

    @property
    def identity(self) -> dict[str, Any]:
        """That of the backend."""
        return self.backend.identity

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        store: _AnswerStore | None = vars(self).get("_store")
        if store is None or store.process != os.getpid():
            rank, _ = rank_and_world_size()
            store = self._store = _AnswerStore(self.cache_dir, rank)
        identity = sha256_of(self.identity)
        digests = [request.digest for request in requests]
        places: dict[str, list[int]] = {}
        for index, digest in enumerate(digests):
            places.setdefault(sha256_of([identity, digest]), []).append(index)

        missing = []
        for key, indices in places.items():
            found = store.get(key)
            if found is None:
                missing.append(key)
            else:
                yield from ((index, found) for index in indices)
        if not missing:
            return
        asked = [places[key][0] for key in missing]
        kept: set[int] = set()

        def put(place: int, response: ChatResponse) -> None:
            if not response.error and place not in kept:
                store.put(missing[place], digests[asked[place]], response)
                kept.add(place)

        try:
            for place, response in self.backend.answer([requests[i] for i in asked], put):
                put(place, response)
                yield from ((index, response) for index in places[missing[place]])
        finally:
            store.sync()


class _AnswerStore:
    """The answers of all processes, and the file to which this one adds its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.process = os.getpid()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._file = _open_shard(folder, rank)
        path = Path(self._file.name)
        self._name = path.name
        if not _ends_well(path):
            self._file.write(b"\n")  # after the torn line of a process that was killed
        self._index = RecordIndex(folder, "key")
        self._synced = time.monotonic()
        self._refresh()

    def _refresh(self) -> None:
        self._index.refresh()
        self._refreshed = time.monotonic()

    def get(self, key: str) -> ChatResponse | None:
        with self._lock:
            record = self._index.find(key)
            if record is None and time.monotonic() - self._refreshed > REFRESH_SECONDS:
                self._refresh()
                record = self._index.find(key)
        return None if record is None else read_response(record)

    def put(self, key: str, request: str, response: ChatResponse) -> None:
        line = json.dumps(_record(key, request, response)).encode() + b"\n"
        with self._lock:
            self._append(line)
            self._index.add(self._name, key, len(line))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Makes answers last through a crash of the machine."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _append(self, line: bytes) -> None:
        size = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self._file.name}: the disk is full")
        except OSError:
            self._file.truncate(size)
            raise


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


def _record(key: str, request: str, response: ChatResponse) -> dict[str, Any]:
    record: dict[str, Any] = {"key": key, "request": request}
    record |= {name: getattr(response, name) for name in _FIELDS}
    record["scores"] = [score if math.isfinite(score) else None for score in response.scores]
    return {**record, "seconds": round(response.seconds, 4), "time": round(time.time(), 3)}


def read_response(record: dict[str, Any], text_field: str = "text") -> ChatResponse:
    """Returns the response that a record holds; what it does not say is left at its default.

    Raises:
        KeyError: It has no text.
    """
    known = {name: record[name] for name in _FIELDS if name in record}
    scores = tuple(-math.inf if score is None else score for score in known.pop("scores", ()))
    return ChatResponse(**{**known, "text": record[text_field]}, scores=scores, cached=True)
