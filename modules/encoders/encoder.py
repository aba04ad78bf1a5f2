"""The one interface to image and text encoders, whichever library they come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..descriptions import Rebuildable, build_described


class Encoder(Rebuildable, ABC):
    """Turns images and texts into vectors. Modules and pipelines take one; recipes choose it.

    It is no part of the module that holds it: neither trained nor saved with it, nor copied with
    its weights (see `Rebuildable`).
    """

    @property
    def supports_images(self) -> bool:
        """Whether it has an image tower."""
        return False

    @property
    def supports_texts(self) -> bool:
        """Whether it has a text tower."""
        return False

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All settings that decide an embedding, as plain JSON: files by content, not by path.

        The machine is not in it: rounding differs between devices, versions of libraries and
        numbers of threads.
        """

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Encodes images.

        Args:
            images: Any number, of any size; read one at a time, so that the sequence may open files
                when it is indexed. They are converted to RGB, without their alpha channel.

        Returns:
            (N, D) embeddings on the CPU, in the order of `images`; (0, D) where there are none.

        Raises:
            ValueError: There is no image tower, or an image cannot be read; the message names it.
        """
        raise ValueError(f"{type(self).__name__} has no image tower: choose another encoder")

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encodes texts.

        Args:
            texts: Any number, of any length; what is beyond the encoder's length is cut off.

        Returns:
            (N, D) embeddings on the CPU, in the order of `texts`; (0, D) where there are none.

        Raises:
            ValueError: There is no text tower, or something is not a text.
        """
        raise ValueError(f"{type(self).__name__} has no text tower: choose another encoder")


class PairedEncoder(Encoder):
    """An image tower and a text tower that were trained for one space but live in two models.

    Args:
        images: Encodes the images.
        texts: Encodes the texts, into as many dimensions.
    """

    supports_images = True
    supports_texts = True

    def __init__(self, images: Encoder, texts: Encoder) -> None:
        if not images.supports_images:
            raise ValueError(f"images: {type(images).__name__} has no image tower")
        if not texts.supports_texts:
            raise ValueError(f"texts: {type(texts).__name__} has no text tower")
        self.images = images
        self.texts = texts

    @property
    def identity(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "encoder": type(self).__name__,
            "images": self.images.identity,
            "texts": self.texts.identity,
        }

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Encoder`."""
        return self.images.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder`."""
        return self.texts.encode_texts(texts)


def build_encoder(description: Mapping[str, Any]) -> Encoder:
    """Builds an encoder from `class_path` and `init_args`, as recipes write them.

    So a worker process or another machine gets a dict and needs nothing else but the files.

    Raises:
        ValueError: No such class or argument, or a value of the wrong type.
    """
    return build_described(Encoder, description, "encoder")  # type: ignore[type-abstract]
