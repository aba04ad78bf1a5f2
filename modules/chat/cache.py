"""A cache of answers that survives kills and fits any number of processes.

What an answer depends on is its key: a request whose answer a process has read is never sent again.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..record_store import RecordStore
from .backend import ChatBackend, Keep
from .limits import rank_and_world_size
from .messages import ChatRequest, ChatResponse, sha256_of

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
        store: RecordStore | None = vars(self).get("_store")
        if store is None or store.process != os.getpid():
            rank, _ = rank_and_world_size()
            store = self._store = RecordStore(self.cache_dir, rank)
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
                response = read_response(found)
                yield from ((index, response) for index in indices)
        if not missing:
            return
        asked = [places[key][0] for key in missing]
        kept: set[int] = set()

        def put(place: int, response: ChatResponse) -> None:
            if not response.error and place not in kept:
                store.put(_record(missing[place], digests[asked[place]], response))
                kept.add(place)

        try:
            for place, response in self.backend.answer([requests[i] for i in asked], put):
                put(place, response)
                yield from ((index, response) for index in places[missing[place]])
        finally:
            store.sync()


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
