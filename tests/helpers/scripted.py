"""A chat backend whose answers are a function of the request; remembers what it was asked."""

from collections.abc import Callable
from typing import Any

from tenfold.modules.chat import ChatBackend, ChatRequest, ChatResponse


class Scripted(ChatBackend):
    """None as an answer is an error; numbers are the scores of choices."""

    supports_images = True

    def __init__(self, answer_to: Callable[[ChatRequest], Any], name: str = "scripted",
                 scores: bool = False):  # fmt: skip
        self.answer_to, self.name, self.scores = answer_to, name, scores
        self.asked: list[ChatRequest] = []

    @property
    def supports_scoring(self):
        return self.scores

    @property
    def identity(self):
        return {"backend": "scripted", "model": self.name}

    def answer(self, requests, keep=None):
        for place, request in enumerate(requests):
            self.asked.append(request)
            said = self.answer_to(request)
            if said is None:
                yield place, ChatResponse("", "error", error="status 500")
            elif isinstance(said, str):
                yield place, ChatResponse(said, prompt_tokens=7, completion_tokens=3)
            else:
                best = max(range(len(said)), key=said.__getitem__)
                yield place, ChatResponse(request.choices[best], "choice", scores=tuple(said))
