"""Answers from files: for tests, for metrics again without a model, for answers got elsewhere."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..record_store import RecordIndex
from .backend import ChatBackend, Keep
from .cache import read_response
from .messages import ChatRequest, ChatResponse


class ReplayBackend(ChatBackend):
    """Looks answers up in JSON lines: a cache folder, or a file that came from anywhere.

    Args:
        path: A file of JSON lines, or a folder of `.jsonl` files, with the answers of one model.
        key_field: Where a record says what it answers: "request", as caches write it, is the
            digest of the request; any other field is compared with the request's `id`.
        text_field: Where a record has the answer.
        on_miss: What a request without a record gets: "error" ends the run, "skip" is a response
            with an `error`.

    Raises:
        ValueError: There is no such file or folder.
    """

    supports_images = True
    supports_scoring = True

    def __init__(
        self,
        path: str | Path,
        key_field: str = "request",
        text_field: str = "text",
        on_miss: Literal["error", "skip"] = "error",
    ) -> None:
        self.path = Path(path)
        self.key_field = key_field
        self.text_field = text_field
        self.on_miss = on_miss
        if not self.path.exists():
            raise ValueError(f"path of ReplayBackend: there is no {self.path}")

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {"backend": "replay", "path": str(self.path)}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        index: RecordIndex | None = vars(self).get("_index")
        if index is None:
            folder, pattern = self.path, "*.jsonl"
            if self.path.is_file():
                folder, pattern = self.path.parent, glob.escape(self.path.name)
            index = self._index = RecordIndex(folder, self.key_field, pattern)
            index.refresh()
        for place, request in enumerate(requests):
            record = index.find(request.digest if self.key_field == "request" else request.id)
            yield place, self._response(request, record)

    def _response(self, request: ChatRequest, record: dict[str, Any] | None) -> ChatResponse:
        if record is not None and self.text_field not in record:
            fields = ", ".join(record)
            raise ValueError(f"{self.path}: no field {self.text_field!r} in a record with {fields}")
        response = None if record is None else read_response(record, self.text_field)
        if response is not None and (response.scores or not request.choices):
            return response
        problem = f"{self.path}: no answer to request {request.id or request.digest}"
        if self.on_miss == "error":
            raise ValueError(f"{problem} (on_miss: skip goes on without)")
        return ChatResponse("", finish_reason="error", error=problem)
