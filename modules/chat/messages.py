"""What is asked and what comes back: plain values that any backend understands."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Part = str | Image.Image


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: A text, or texts and images in the order in which the model shall see them. Texts
            are joined as they are, without a space; images are seen as RGB.
    """

    role: Literal["system", "user", "assistant"]
    content: str | Sequence[Part]

    @property
    def parts(self) -> list[Part]:
        """Texts and images in their order, neighbouring texts joined."""
        parts: list[Part] = []
        for part in [self.content] if isinstance(self.content, str) else self.content:
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return parts

    @property
    def images(self) -> list[Image.Image]:
        """The images in their order."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True)
class ChatRequest:
    """One question to a model.

    Attributes:
        messages: The conversation so far; the model speaks next. A text stands for one turn of the
            user.
        max_new_tokens: Length at which an answer is cut.
        temperature: 0 takes the most probable token, 1 samples from the model's distribution.
        top_p: Samples from the most probable tokens that together have this probability, in (0, 1].
        stop: Texts before which an answer ends.
        seed: Of the sampling; servers promise only to try.
        choices: Answers to choose from: nothing is generated, the response has the most probable
            choice as its text and the log-probability of each. What starts an answer counts, with
            or without a space before it; options of several words are best named by letters.
        attempt: Raise it to ask again where a cache would repeat an answer that was of no use.
        id: The caller's name for the request. It changes no answer; replays may look it up.
    """

    messages: str | Sequence[Message]
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    choices: Sequence[str] = ()
    attempt: int = 0
    id: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("messages of a chat request: give at least one")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        different = {choice.strip() for choice in self.choices} - {""}
        enough = len(different) >= max(2, len(self.choices))
        if self.choices and not (enough and different == set(self.choices)):
            raise ValueError(
                "choices must be two or more different texts without spaces around them, "
                f"got {list(self.choices)}"
            )

    @property
    def turns(self) -> Sequence[Message]:
        """The messages."""
        if isinstance(self.messages, str):
            return [Message("user", self.messages)]
        return self.messages

    @property
    def digest(self) -> str:
        """SHA-256 of all that may change the answer; of images, their decoded pixels."""
        fields = [self.max_new_tokens, self.temperature, self.top_p, list(self.stop), self.seed]
        turns = [[turn.role, [_plain(part) for part in turn.parts]] for turn in self.turns]
        return sha256_of([turns, fields, list(self.choices), self.attempt])


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """One answer, or why there is none.

    Attributes:
        text: What the model said, without stop texts; with choices, the most probable one.
        finish_reason: "stop", "length" (cut), "choice", or what the server says.
        scores: Natural log-probability of each choice of the request; -inf for one that a server
            did not list among its most probable tokens.
        prompt_tokens: Tokens read, images included.
        completion_tokens: Tokens written.
        seconds: From sending the request to its answer, of a batch for all in it.
        model: The model's name as the server reports it.
        error: Why there is no answer; empty if there is one.
        cached: Whether it was read and not asked for.
    """

    text: str
    finish_reason: str = "stop"
    scores: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    model: str = ""
    error: str = ""
    cached: bool = False


def best_choice(request: ChatRequest, scores: Sequence[float]) -> ChatResponse:
    """Returns the response that names the most probable choice, the first of equal ones."""
    best = max(range(len(scores)), key=lambda number: scores[number])
    return ChatResponse(request.choices[best], finish_reason="choice", scores=tuple(scores))


def sha256_of(value: Any) -> str:
    """SHA-256 of a value in canonical JSON, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(part: Part) -> Any:
    if isinstance(part, str):
        return part
    pixels = part.convert("RGB").tobytes()
    return {"rgb": hashlib.sha256(pixels).hexdigest(), "size": part.size}
