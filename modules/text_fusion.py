"""Synthetic texts of images: a retrieved sentence, a caption and tags made one (RealSyn, 3.3)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .chat.backend import ChatBackend
from .chat.messages import ChatRequest, Message
from .descriptions import Rebuildable

# RealSyn's instruction in our words; its slots are the paper's.
INSTRUCTION = """\
You are an expert at integrating and enriching information. Merge the raw text and the synthetic \
caption below into one text about the image, with the help of its highly relevant detection tags.
- The raw text holds true details of the real world, but its grammar and structure may be poor.
- The synthetic caption is well formed, but thin, and may be wrong.
- The tags add meaning; some of them repeat others or are noise.
Write one well-structured sentence that keeps the real-world details of the raw text. Do not \
simply join the parts and add nothing that is not in them. Correct and simplify it at the end. \
Answer with the sentence alone.

Raw caption: {raw}
synthetic caption: {caption}
highly relevant detection tags: {tags}"""
CAPTION_REQUEST = "Describe this image in one concise sentence. Answer with the sentence alone."


@dataclass(frozen=True)
class FusionItem:
    """What is known of an image.

    Attributes:
        id: Its name.
        sentence: The best retrieved one.
        caption: A machine's description, "" if there is none.
        tags: What is seen on it, the most certain first.
    """

    id: str
    sentence: str
    caption: str = ""
    tags: Sequence[str] = ()


class TextFusion(Rebuildable, ABC):
    """Makes a synthetic text of each item. Recipes choose the class."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Who wrote the texts: stands beside each of them in the data."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the texts, as plain JSON."""

    @abstractmethod
    def fuse(self, items: Sequence[FusionItem]) -> list[str]:
        """The texts, "" for an item of which none was made."""


class TemplateFusion(TextFusion):
    """Puts the parts into a fixed grammar. No language model: its texts are labelled "template"."""

    label = "template"

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextFusion`."""
        return {"fusion": type(self).__name__, "version": 1}

    def fuse(self, items: Sequence[FusionItem]) -> list[str]:
        """See `TextFusion`: "[Caption]: [sentence] Shown: [tags]."."""
        return [self._fuse(item) for item in items]

    def _fuse(self, item: FusionItem) -> str:
        said = item.sentence.lower()
        tags = [tag for tag in dict.fromkeys(item.tags) if tag.lower() not in said]
        parts = [item.sentence.rstrip(" .:;,") + "."]
        if item.caption:
            parts.insert(0, item.caption.rstrip(" .:;,") + ":")
        if tags:
            parts.append(f"Shown: {', '.join(tags)}.")
        return " ".join(parts)


class ChatFusion(TextFusion):
    """Asks a chat model.

    Args:
        backend: The model; a `CachedBackend` around it keeps what was paid for.
        max_new_tokens: Length at which a text is cut.
        temperature: 0 takes the most probable token.
        seed: Of the sampling.
    """

    def __init__(
        self,
        backend: ChatBackend,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.backend = backend
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed

    @property
    def label(self) -> str:
        """See `TextFusion`."""
        return str(self.backend.identity.get("model", type(self.backend).__name__))

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextFusion`."""
        return {
            "fusion": type(self).__name__,
            "backend": self.backend.identity,
            "instruction": INSTRUCTION,
            "sampling": [self.max_new_tokens, self.temperature, self.seed],
        }

    def fuse(self, items: Sequence[FusionItem]) -> list[str]:
        """See `TextFusion`."""
        requests = [
            ChatRequest(
                INSTRUCTION.format(
                    raw=item.sentence, caption=item.caption, tags=" | ".join(item.tags)
                ),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
                id=item.id,
            )
            for item in items
        ]
        answers = self.backend.generate(requests)
        return [" ".join(answer.text.split()) if not answer.error else "" for answer in answers]


class ChatCaptioner(Rebuildable):
    """Asks a chat model that sees images for one sentence about each.

    Args:
        backend: The model.
        max_new_tokens: Length at which a caption is cut.
    """

    def __init__(self, backend: ChatBackend, max_new_tokens: int = 48) -> None:
        self.backend = backend
        self.max_new_tokens = max_new_tokens

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the captions, as plain JSON."""
        return {
            "captioner": type(self).__name__,
            "backend": self.backend.identity,
            "request": CAPTION_REQUEST,
            "max_new_tokens": self.max_new_tokens,
        }

    def caption(self, ids: Sequence[str], images: Sequence[Image.Image]) -> list[str]:
        """A caption of each image, "" where the model gave none."""
        requests = [
            ChatRequest(
                [Message("user", [image, CAPTION_REQUEST])],
                max_new_tokens=self.max_new_tokens,
                id=name,
            )
            for name, image in zip(ids, images, strict=True)
        ]
        answers = self.backend.generate(requests)
        return [" ".join(answer.text.split()) if not answer.error else "" for answer in answers]
