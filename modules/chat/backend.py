"""The one interface to chat models, wherever they run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..descriptions import Rebuildable, build_described
from .messages import ChatRequest, ChatResponse
from .progress import track

Keep = Callable[[int, ChatResponse], None]


class ChatBackend(Rebuildable, ABC):
    """Answers chat requests. Modules take one as an argument; recipes choose the class."""

    @property
    def supports_images(self) -> bool:
        """Whether requests may hold images."""
        return False

    @property
    def supports_scoring(self) -> bool:
        """Whether requests may hold choices."""
        return False

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides an answer beside the request, as plain JSON without secrets."""

    @abstractmethod
    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """Yields (place of the request, response) in the order in which answers arrive.

        A request that cannot be answered gets a response with an `error`.

        Args:
            requests: What to answer.
            keep: Called with what is yielded where answers arrive before that, in another thread:
                so what has been paid for is kept even if the process is killed before its turn.
                A backend that has nothing waiting need not call it.

        Raises:
            ValueError: No request can be answered, or too many were not.
        """

    def generate(self, requests: Sequence[ChatRequest], progress: str = "") -> list[ChatResponse]:
        """Answers requests together, as many at a time as the backend can.

        Args:
            requests: Any number; a large one keeps a server busy and costs no more memory than
                its answers.
            progress: A title shows a progress bar, or lines in a log. Leave it empty inside a
                Trainer, which has its own.

        Returns:
            The responses in the order of the requests.

        Raises:
            ValueError: No request can be answered, or too many were not.
        """
        for request in requests:
            if request.choices and not self.supports_scoring:
                raise ValueError(f"{type(self).__name__} cannot score choices: parse its answers")
            if not self.supports_images and any(turn.images for turn in request.turns):
                raise ValueError(
                    f"{type(self).__name__} {self.identity.get('model', '')} takes no images: "
                    "choose another model, or describe them in text"
                )
        responses: list[ChatResponse | None] = [None] * len(requests)
        for index, response in track(self.answer(requests), len(requests), progress):
            responses[index] = response
        answered = [response for response in responses if response is not None]
        assert len(answered) == len(requests), f"{type(self).__name__} left requests unanswered"
        return answered


def build_backend(description: Mapping[str, Any]) -> ChatBackend:
    """Builds a backend from `class_path` and `init_args`, as recipes write them.

    So a worker process or another machine gets a dict and needs nothing else.

    Raises:
        ValueError: No such class or argument, or a value of the wrong type.
    """
    return build_described(ChatBackend, description, "chat backend")  # type: ignore[type-abstract]
