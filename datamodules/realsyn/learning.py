"""The work that lets an encoder learn from the corpus before it embeds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .embedding import Opened, VectorBlocks
from .settings import Settings
from .steps import Stats, Task
from .tables import hash64


@runtime_checkable
class Learner(Protocol):
    """An encoder that is learned from the corpus before it embeds it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is learned."""

    def learn(self, texts: Sequence[str], pairs: Any) -> dict[str, float]:
        """Learns from texts, and from images with the texts beside them."""


@dataclass
class LearnEncoder(Task):
    """Lets an encoder learn from the corpus.

    Attributes:
        encoder: Learns, and writes what it has learned into a folder of its own.
        images: Blocks of images.
        sentences: Blocks of sentences.
        settings: How many.
    """

    encoder: Learner
    images: VectorBlocks
    sentences: VectorBlocks
    settings: Settings

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        share = self.settings.learned_texts / max(1, sum(self.sentences.rows))
        texts = [
            text
            for block in range(len(self.sentences.rows))
            for name, text in _columns(self.sentences, block, "id", "text")
            if hash64(3, name) < share * 2.0**64
        ]
        found = self.encoder.learn(texts, self._pairs())
        counts = {f"encoder: {name}": int(value) for name, value in found.items() if value > 1}
        return Stats(counts=counts)

    def _pairs(self) -> Any:
        share = self.settings.learned_images / max(1, sum(self.images.rows))
        for block in range(len(self.images.rows)):
            table = self.images.table(block, ["id", "nearest", "image"])
            images = Opened(table["image"], self.settings.images.max_pixels)
            names, texts = table["id"].to_pylist(), table["nearest"].to_pylist()
            for row, (name, text) in enumerate(zip(names, texts, strict=True)):
                if text and hash64(3, name) < share * 2.0**64:
                    yield images[row], text


def _columns(source: VectorBlocks, block: int, *names: str) -> Any:
    table = source.table(block, names)
    return zip(*(table[name].to_pylist() for name in names), strict=True)
