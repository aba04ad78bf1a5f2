"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, transformers, OpenAI.

Requests run in one event loop in a thread of its own, which starts at first use: callers are plain
functions. As many workers as may be in flight take requests one after the other, so that a million
of them make no million tasks.
"""

import asyncio
import importlib.util
import itertools
import logging
import math
import os
import queue
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from .backend import ChatBackend, Keep
from .limits import RateLimit, backoff, rank_and_world_size, retry_after
from .messages import ChatRequest, ChatResponse
from .openai_wire import MalformedAnswerError, UnscoredAnswerError, read_completion, request_body

log = logging.getLogger(__name__)

RETRIED = {408, 409, 425, 429}  # and 5xx: what another try may change
HOPELESS = {401, 404}  # wrong key, wrong address or model: no request will get past it
FEWEST_ERRORS = 10
WARN_EVERY_SECONDS = 30.0
# Shorter keys are placeholders such as "none" or "EMPTY", and words of honest answers.
SHORTEST_SECRET = 12
TOKENS_PER_IMAGE = 500  # a guess, corrected by what the server counts

Answers = queue.SimpleQueue[tuple[int, ChatResponse] | Exception | None]


def check_server(base_url: str, what: str) -> None:
    """Checks what any client of a server needs before it is asked.

    Args:
        base_url: Of the server.
        what: Asks; for messages.

    Raises:
        ImportError: openai is not installed.
        ValueError: The address is none, or has room for a secret.
    """
    if importlib.util.find_spec("openai") is None:
        raise ImportError(f"{what} need the package openai: pip install 'tenfold[chat]'")
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or "@" in address.netloc or address.query:
        # The address is not repeated: a password may be in it.
        raise ValueError(
            "base_url must be http(s)://host:port/v1 without user, password or query: the key "
            "comes from the environment variable that api_key_env names"
        )


class OpenAIChatBackend(ChatBackend):
    """Asks a server that speaks OpenAI's chat completions.

    Connection errors, answers that break off or are no JSON, and the statuses 408, 409, 425, 429
    and 5xx are tried again, after the time that the server names or one that doubles. What
    remains unanswered gets a response with an `error`.

    The address is not part of the identity - servers move between ports and nodes -, so two
    servers under one model name need a `version`.

    With choices a request takes one token and reads the server's log-probabilities: a choice of
    several tokens is known by its first alone, which has to differ from the others', as letters do.

    Args:
        base_url: Where the server is, such as http://localhost:8000/v1. No secrets in it.
        model: The model's name on this server.
        version: Tells models of the same name apart, such as a revision or a quantisation.
        api_key_env: Environment variable with the key; the key itself is never stored. A server
            that needs none does not need the variable.
        max_concurrency: Requests in flight, per process.
        timeout: Seconds that one try may take.
        retry_seconds: From this long after a request's first try on it is not tried again.
        requests_per_minute: Limit for all processes together; each takes its share.
        tokens_per_minute: The same for tokens read and written.
        max_error_rate: The run ends when more than this share of the requests - and more than 10 -
            found no answer.
        image_format: How images travel: "png" without loss, "jpeg" (quality 95) smaller.
        max_image_side: Larger images are shrunk to this many pixels on their longer side.
        top_logprobs: How many tokens to ask for with choices; servers allow 5 to 20.
        length_field: What the server calls the length of an answer; OpenAI's reasoning models
            take "max_completion_tokens" only.
        extra_body: Anything else that this server takes in a request.

    Raises:
        ValueError: `base_url` holds a password or a query, or a number is out of range.
        ImportError: openai is not installed.
    """

    supports_images = True
    supports_scoring = True

    def __init__(
        self,
        base_url: str,
        model: str,
        version: str = "",
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 64,
        timeout: float = 600.0,
        retry_seconds: float = 600.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_error_rate: float = 0.05,
        image_format: Literal["png", "jpeg"] = "png",
        max_image_side: int | None = None,
        top_logprobs: int = 20,
        length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        check_server(base_url, "chat servers")
        self.base_url = base_url
        self.model = model
        self.version = version
        self.api_key_env = api_key_env
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.retry_seconds = retry_seconds
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.max_error_rate = max_error_rate
        self.image_format = image_format
        self.max_image_side = max_image_side
        self.top_logprobs = top_logprobs
        self.length_field = length_field
        self.extra_body = extra_body or {}
        positive = "max_concurrency timeout requests_per_minute tokens_per_minute max_image_side"
        for name in positive.split():
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be more than 0, got {value}")

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {
            "backend": "openai",
            "model": self.model,
            "version": self.version,
            "images": [self.image_format, self.max_image_side],
            "extra_body": self.extra_body,
        }

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        session: _Session | None = vars(self).get("_session")
        if session is None or session.process != os.getpid():  # threads do not survive a fork
            session = self._session = _Session(self)
        answers: Answers = queue.SimpleQueue()
        work = session.answer_all(requests, self, answers, keep)
        run = asyncio.run_coroutine_threadsafe(work, session.loop)
        try:
            while (item := answers.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            run.cancel()


@dataclass(frozen=True)
class _Failure:
    """A try that brought no answer: why, whether another may, and when the server wants it."""

    reason: str
    final: bool = False
    delay: float | None = None


class _Session:
    """The event loop of one process, its client, and what all requests share.

    It does not refer to the backend, so that it ends with it.
    """

    def __init__(self, backend: OpenAIChatBackend) -> None:
        from openai import AsyncOpenAI

        self.process = os.getpid()
        self.key = os.environ.get(backend.api_key_env, "")
        _, world_size = rank_and_world_size()
        limits = (backend.requests_per_minute, backend.tokens_per_minute)
        self.requests, self.tokens = (RateLimit(n and n / world_size) for n in limits)
        self.not_before = self.warned = -math.inf
        self.num_answered = self.num_failed = 0
        self.client = AsyncOpenAI(
            base_url=backend.base_url,
            api_key=self.key or "none",
            timeout=backend.timeout,
            max_retries=0,
        )
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._run_loop, daemon=True, name="chat requests").start()
        weakref.finalize(backend, self._close)

    def _run_loop(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def _close(self) -> None:
        if self.process == os.getpid():
            closing = asyncio.run_coroutine_threadsafe(self.client.close(), self.loop)
            closing.add_done_callback(lambda _: self.loop.call_soon_threadsafe(self.loop.stop))

    async def answer_all(
        self,
        requests: Sequence[ChatRequest],
        settings: OpenAIChatBackend,
        answers: Answers,
        keep: Keep | None,
    ) -> None:
        """Keeps and puts the answer to each request, then None; or what ended the work early."""
        remaining = iter(enumerate(requests))

        async def work() -> None:
            for index, request in remaining:
                response = await self._answer(request, settings)
                if keep is not None:
                    keep(index, response)
                answers.put((index, response))

        num_workers = min(settings.max_concurrency, len(requests))
        workers = [asyncio.ensure_future(work()) for _ in range(num_workers)]
        try:
            await asyncio.gather(*workers)
            answers.put(None)
        except Exception as error:
            answers.put(error)
        finally:
            for worker in workers:
                worker.cancel()

    async def _answer(self, request: ChatRequest, settings: OpenAIChatBackend) -> ChatResponse:
        """Asks until there is an answer or the time is over."""
        body = {"model": settings.model, **await self._body(request, settings)}
        give_up = time.monotonic() + settings.retry_seconds
        for attempt in itertools.count():
            await self._wait_for_turn(request)
            sent = time.monotonic()
            outcome = await self._ask(body, request, settings)
            now = time.monotonic()
            if isinstance(outcome, ChatResponse):
                self.num_answered += 1
                self.tokens.give_back(
                    _num_tokens(request) - outcome.prompt_tokens - outcome.completion_tokens
                )
                return replace(outcome, seconds=now - sent)
            self.tokens.give_back(_num_tokens(request))
            delay = outcome.delay or backoff(attempt)
            if outcome.final or now + delay > give_up:
                return self._failed(outcome.reason, settings)
            if now - self.warned > WARN_EVERY_SECONDS:
                self.warned = now
                server = urlsplit(settings.base_url).netloc
                log.warning(
                    "chat server %s: %s; trying again for %.0f s at most",
                    server,
                    outcome.reason,
                    give_up - now,
                )
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _body(self, request: ChatRequest, settings: OpenAIChatBackend) -> dict[str, Any]:
        arguments = (settings.image_format, settings.max_image_side, settings.top_logprobs)
        if any(turn.images for turn in request.turns):  # encoding would hold up all others
            body = await asyncio.to_thread(request_body, request, *arguments)
        else:
            body = request_body(request, *arguments)
        body[settings.length_field] = body.pop("max_tokens")
        return body

    async def _wait_for_turn(self, request: ChatRequest) -> None:
        while (pause := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        await self.requests.take(1)
        await self.tokens.take(_num_tokens(request))

    async def _ask(
        self, body: dict[str, Any], request: ChatRequest, settings: OpenAIChatBackend
    ) -> ChatResponse | _Failure:
        """Asks once.

        Raises:
            ValueError: What goes wrong here goes wrong for every request.
        """
        import openai

        try:
            async with asyncio.timeout(settings.timeout):  # also where an answer trickles in
                completion = await self.client.chat.completions.create(
                    **body, extra_body=settings.extra_body or None
                )
            response = read_completion(completion, request)
        except openai.APIStatusError as error:
            said = error.response.text or error.message
            reason = self._redact(f"status {error.status_code}: {_one_line(said)}")
            if error.status_code in HOPELESS or error.code == "insufficient_quota":
                server = urlsplit(settings.base_url).netloc
                raise ValueError(
                    f"chat server {server}, model {settings.model}: {reason} (the key comes from "
                    f"${settings.api_key_env})"
                ) from None
            delay = retry_after(error.response.headers)
            if delay and delay <= settings.retry_seconds:  # meant for all of us, not for this one
                self.not_before = max(self.not_before, time.monotonic() + delay)
            retried = error.status_code in RETRIED or error.status_code >= 500
            return _Failure(reason, final=not retried, delay=delay)
        except TimeoutError:
            return _Failure(f"no answer within {settings.timeout:g} s")
        except UnscoredAnswerError as error:
            return _Failure(str(error), final=True)
        except (openai.APIError, ValueError, MalformedAnswerError) as error:  # or no JSON
            return _Failure(self._redact(_one_line(str(error) or type(error).__name__)))
        return replace(
            response, text=self._redact(response.text), model=self._redact(response.model)
        )

    def _failed(self, reason: str, settings: OpenAIChatBackend) -> ChatResponse:
        self.num_failed += 1
        total = self.num_answered + self.num_failed
        if self.num_failed > max(FEWEST_ERRORS, settings.max_error_rate * total):
            raise ValueError(
                f"{self.num_failed} of {total} requests to {urlsplit(settings.base_url).netloc} "
                f"found no answer, more than max_error_rate allows; the last: {reason}"
            )
        return ChatResponse("", finish_reason="error", error=reason)

    def _redact(self, text: str) -> str:
        """Servers repeat keys in their messages."""
        return text.replace(self.key, "***") if len(self.key) >= SHORTEST_SECRET else text


def _one_line(text: str) -> str:
    return textwrap.shorten(text, 500, placeholder=" ...")


def _num_tokens(request: ChatRequest) -> int:
    """A guess at what a request will cost: four characters to a token."""
    length = 1 if request.choices else request.max_new_tokens
    parts = [part for turn in request.turns for part in turn.parts]
    return length + sum(
        len(part) // 4 if isinstance(part, str) else TOKENS_PER_IMAGE for part in parts
    )
