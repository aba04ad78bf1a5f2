"""One record for a captioned image in its context, and where such records come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from ...modules.descriptions import Rebuildable

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Phrase = str | tuple[int, int]
Highlight = tuple[Phrase, ...]


@dataclass(frozen=True)
class CaptionExample:
    """A captioned image in its context.

    Args:
        id: Unique in its split.
        caption: What is written under the image.
        image: Its number among the images of the `Examples`.
        page_title: Title of the page.
        section_title: Title of the section that has the image.
        section_text: Text of that section.
        other_captions: Captions of the section's other images.
        group: Page or book, what must not be split between training and test.
        highlights: Of a test: each a few phrases that a caption should be about.
        references: For each highlight a caption that is right, or "".
        depicted: Phrases that only the image tells.
        page_url: Address of the page.
        other_sections: Title, text and captions of the page's other sections.
    """

    id: str
    caption: str
    image: int
    page_title: str = ""
    section_title: str = ""
    section_text: str = ""
    other_captions: tuple[str, ...] = ()
    group: str = ""
    highlights: tuple[Highlight, ...] = ()
    references: tuple[str, ...] = ()
    depicted: tuple[str, ...] = ()
    page_url: str = ""
    other_sections: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


class Examples(Rebuildable, ABC):
    """Records of all splits, and their images."""

    def prepare(self) -> None:
        """Writes what must be written once; called on one process, perhaps several times."""

    @abstractmethod
    def split(self, name: Split) -> Sequence[CaptionExample]:
        """Returns the records of a split; after `prepare`."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """How many images there are; after `prepare`."""

    @abstractmethod
    def image(self, number: int) -> Image.Image:
        """Returns an image.

        Raises:
            ValueError: It cannot be read; the message names it.
        """

    @property
    def has_features(self) -> bool:
        """Whether records come with features, so that no encoder is needed; after `prepare`."""
        return False

    def feature(self, number: int) -> Tensor:
        """Returns the feature that came with an image, (F,) float32, where there are such."""
        raise NotImplementedError

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides records and images, as plain JSON; after `prepare`."""
