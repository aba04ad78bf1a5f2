"""Chat requests and answers as OpenAI's chat completions write them."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from .messages import ChatRequest, ChatResponse, Message, Part, best_choice


class MalformedAnswerError(Exception):
    """An answer that the protocol does not allow; another try may bring a better one."""


class UnscoredAnswerError(ValueError):
    """An answer from which the choices cannot be told apart; another try brings the same."""


def request_body(
    request: ChatRequest, image_format: str, max_image_side: int | None, top_logprobs: int
) -> dict[str, Any]:
    """Returns a request in OpenAI's terms, without the model's name.

    Settings at the value that means nothing are left out: servers refuse what they do not know.
    """
    body: dict[str, Any] = {
        "messages": [_message(turn, image_format, max_image_side) for turn in request.turns],
        "temperature": request.temperature,
        "max_tokens": request.max_new_tokens,
    }
    if request.top_p < 1:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = request.seed
    if request.choices:
        body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": top_logprobs}
    return body


def read_completion(completion: Any, request: ChatRequest) -> ChatResponse:
    """Returns what a server answered; what it does not tell is empty or 0.

    Args:
        completion: openai's `ChatCompletion`, which may lack any of its fields: the client does
            not check what a server sends.
        request: What was asked.

    Raises:
        MalformedAnswerError: It is no chat completion.
        UnscoredAnswerError: The request has choices, and the log-probabilities of the answer do not
            tell them apart.
    """
    try:
        (choice, *_) = completion.choices
        text = choice.message.content or ""
        usage = completion.usage
        first = choice.logprobs.content if choice.logprobs else None
        top = first[0].top_logprobs if first else []
    except (AttributeError, IndexError, TypeError, ValueError):
        raise MalformedAnswerError("an answer without choices") from None
    response = ChatResponse(text, choice.finish_reason or "")
    if request.choices:
        pairs = [(token.token, token.logprob) for token in top]
        response = best_choice(request, choice_scores(pairs, request.choices))
    return replace(
        response,
        prompt_tokens=usage.prompt_tokens or 0 if usage else 0,
        completion_tokens=usage.completion_tokens or 0 if usage else 0,
        model=completion.model or "",
    )


def choice_scores(top: Iterable[tuple[str, float]], choices: Sequence[str]) -> tuple[float, ...]:
    """Returns the log-probability that an answer starts with each choice.

    Args:
        top: The most probable first tokens with their natural log-probabilities.
        choices: What to choose from.

    Returns:
        For each choice the sum over the tokens that are its beginning and no other choice's, with
        or without a space before it; -inf without any.

    Raises:
        UnscoredAnswerError: There are no tokens, none begins a choice, or the most probable token
            that does begins several.
    """
    scores = dict.fromkeys(choices, -math.inf)
    shared = -math.inf
    for token, log_probability in top:
        begun = [choice for choice in scores if token.strip() and choice.startswith(token.strip())]
        if len(begun) == 1:
            scores[begun[0]] = float(np.logaddexp(scores[begun[0]], log_probability))
        elif begun:
            shared = max(shared, log_probability)
    best = max(scores.values())
    if shared > best:
        raise UnscoredAnswerError(
            f"choices {list(choices)} begin with the same token: name them by letters"
        )
    if best == -math.inf:
        raise UnscoredAnswerError(
            f"none of the choices {list(choices)} is among the tokens that the server lists"
            if top
            else "the server sends no log-probabilities: let it answer in text, without choices"
        )
    return tuple(scores[choice] for choice in choices)


def data_url(image: Image.Image, image_format: str, max_side: int | None) -> str:
    """Returns an image as a data URL: PNG, or JPEG of quality 95, at most `max_side` pixels."""
    image = image.convert("RGB")
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=95)
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _message(message: Message, image_format: str, max_side: int | None) -> dict[str, Any]:
    def part_of(part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image_url", "image_url": {"url": data_url(part, image_format, max_side)}}

    parts = message.parts
    if message.images or len(parts) != 1:
        return {"role": message.role, "content": [part_of(part) for part in parts]}
    return {"role": message.role, "content": parts[0]}  # some servers take texts only
