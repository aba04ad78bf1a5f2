"""Asking chat models many questions at a time, and again where an answer was of no use."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..chat import CachedBackend, ChatBackend, ChatRequest, ReplayBackend
from .parsing import Parsed

Reader = Callable[[str], Parsed]
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Reply:
    """What a model said, and what was read in it.

    Args:
        text: What it said last.
        parsed: What was read; its status is "error" where nothing was said.
        error: Why there is no answer; empty if there is one.
        attempts: How often it was asked.
        tokens: Read and written, over all attempts.
        seconds: From request to answer, over all attempts.
        model: The model's name as its server reports it.
    """

    text: str
    parsed: Parsed
    error: str = ""
    attempts: int = 1
    tokens: int = 0
    seconds: float = 0.0
    model: str = ""


def ask_all(
    backend: ChatBackend,
    requests: Sequence[ChatRequest],
    readers: Sequence[Reader] | Reader | None = None,
    max_attempts: int = 1,
) -> list[Reply]:
    """Asks all requests together; those that were answered unreadably are asked again.

    Args:
        backend: Who answers.
        requests: What is asked.
        readers: Reads the answers: one for each request, or one for all. None: any text will do.
        max_attempts: How often a request may be asked. With temperature 0 a model repeats itself,
            unless it is asked otherwise: give requests a temperature to ask more than once.

    Returns:
        A reply to each request, in their order.
    """
    if readers is None or callable(readers):
        readers = [readers or _anything] * len(requests)
    replies: list[Reply | None] = [None] * len(requests)
    open_places = list(range(len(requests)))
    for attempt in range(max_attempts):
        again = [replace(requests[place], attempt=attempt) for place in open_places]
        for place, response in zip(open_places, backend.generate(again), strict=True):
            before = replies[place]
            parsed = Parsed(status="error") if response.error else readers[place](response.text)
            replies[place] = Reply(
                text=response.text,
                parsed=parsed,
                error=response.error,
                attempts=attempt + 1,
                tokens=response.prompt_tokens
                + response.completion_tokens
                + (before.tokens if before else 0),
                seconds=round(response.seconds + (before.seconds if before else 0.0), 4),
                model=response.model,
            )
        open_places = [
            place
            for place, reply in enumerate(replies)
            if reply is not None and reply.parsed.status == "failed"
        ]
        if not open_places:
            break
    return [reply for reply in replies if reply is not None]


def ask_letters(
    backend: ChatBackend, requests: Sequence[ChatRequest], numbers: Sequence[int]
) -> list[Reply]:
    """Chooses by the probability of letters: no answer has to be parsed.

    Args:
        backend: One that scores choices.
        requests: With the letters as `choices`.
        numbers: How many letters each wants; the most probable ones are named, the first first.

    Returns:
        A reply to each request, with a text such as "Answer: B, D".
    """
    replies = []
    for request, number, response in zip(
        requests, numbers, backend.generate(requests), strict=True
    ):
        order = sorted(range(len(response.scores)), key=lambda place: -response.scores[place])
        chosen = order[:number]
        named = ", ".join(request.choices[place] for place in chosen)
        replies.append(
            Reply(
                text="" if response.error else f"Answer: {named}",
                parsed=Parsed(status="error") if response.error else Parsed(tuple(chosen)),
                error=response.error,
                tokens=response.prompt_tokens + response.completion_tokens,
                seconds=round(response.seconds, 4),
                model=response.model,
            )
        )
    return replies


def keep_answers(backend: ChatBackend, folder: Path) -> ChatBackend:
    """Returns a backend that asks nothing twice, also after a kill: answers go to a folder.

    One that keeps its answers elsewhere, or reads them from files, stays as it is.
    """
    if isinstance(backend, CachedBackend | ReplayBackend):
        return backend
    return CachedBackend(backend, folder)


def fill(template: str, **fields: str) -> str:
    """Puts texts into `{name}` of a template, in one pass: a text may hold braces itself.

    Raises:
        ValueError: The template names a field that there is not.
    """

    def field(found: re.Match[str]) -> str:
        if found[1] not in fields:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(f"prompt: there is no field {found[0]}, only {known}")
        return fields[found[1]]

    return FIELD.sub(field, template)


def template_hash(templates: Mapping[str, str]) -> str:
    """SHA-256 of templates by name, as 64 hexadecimal digits: results name what was asked."""
    whole = "\0".join(f"{name}\0{text}" for name, text in sorted(templates.items()))
    return hashlib.sha256(whole.encode()).hexdigest()


def _anything(text: str) -> Parsed:
    return Parsed() if text.strip() else Parsed(status="failed")
