"""Records as samples: a picture of one size and one of its texts."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..images import open_image
from .sources import PairRecord, PairSource

log = logging.getLogger(__name__)

MAX_REPLACED = 100  # in a row: more are no accident


class Texts:
    """Which texts of a record may be drawn.

    Args:
        fields: Names of the fields, each a text or a list of texts; together they are the texts of
            a record, in this order.
        slots: Numbers of the texts to use, from 0, or from the end if negative; None: all.
        weights: How often each of `slots` is drawn, relative to the others; None: equally often.
            What is empty is never drawn: its share goes to the others.

    Raises:
        ValueError: Slots or weights are empty, repeated, or not as many.
    """

    def __init__(
        self, fields: Sequence[str], slots: Sequence[int] | None, weights: Sequence[float] | None
    ) -> None:
        if not fields:
            raise ValueError("text_keys: name at least one column of texts")
        if slots is not None and (not slots or len(set(slots)) < len(slots)):
            raise ValueError(f"text_slots: {list(slots)}, expected different numbers")
        if weights is not None:
            if slots is None or len(weights) != len(slots):
                raise ValueError("text_weights: give text_slots as well, and a weight for each")
            if min(weights) < 0 or max(weights) <= 0:
                raise ValueError(f"text_weights: {list(weights)}, expected 0 or more, not all 0")
        self.fields, self.slots, self.weights = list(fields), slots, weights

    def of(self, record: PairRecord) -> tuple[list[str], list[float]]:
        """Returns the texts of a record that are not empty, and their weights."""
        every: list[str] = []
        for field in self.fields:
            value = record.fields[field]
            every += value if isinstance(value, list) else [value]
        slots = range(len(every)) if self.slots is None else self.slots
        weights = [1.0] * len(slots) if self.weights is None else self.weights
        kept, kept_weights = [], []
        for slot, weight in zip(slots, weights, strict=True):
            if -len(every) <= slot < len(every) and weight > 0:
                text = every[slot]
                if isinstance(text, str) and text.strip():
                    kept.append(text.strip())
                    kept_weights.append(weight)
        return kept, kept_weights


class TrainingPairs(Dataset[dict[str, Any]]):
    """Augmented images, each with one of its texts, drawn anew each time.

    A record that has no readable image or no text is replaced by the next good one and counted, so
    that batches keep their size.

    Args:
        source: Where the records are.
        texts: Which texts may be drawn.
        transform: Makes (3, S, S) uint8 of a picture; may draw random numbers.
        min_side: See `open_image`.
        strict: Whether a bad record is an error.
    """

    def __init__(
        self,
        source: PairSource,
        texts: Texts,
        transform: Callable[[Image.Image], Tensor],
        min_side: int,
        strict: bool,
    ) -> None:
        self.source, self.texts, self.transform = source, texts, transform
        self.min_side, self.strict = min_side, strict
        self._has_warned = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for num_broken in range(min(MAX_REPLACED, len(self.source))):
            place = (index + num_broken) % len(self.source)
            record = self.source[place]
            try:
                image = read_image(record, self.min_side)
                texts, weights = self.texts.of(record)
                if not texts:
                    raise ValueError(f"{record.where}: no text that is not empty")
            except ValueError as error:
                if self.strict:
                    raise
                if not self._has_warned:
                    log.warning("a broken record is replaced: %s (others are counted)", error)
                    self._has_warned = True
                continue
            (text,) = random.choices(texts, weights)  # of the generator that the loader has seeded
            return {
                "images": self.transform(image),
                "texts": text,
                "index": place,
                "num_broken": num_broken,
            }
        raise ValueError(
            f"data: {MAX_REPLACED} records in a row are broken, the last: {record.where}: set "
            "strict: true to see the first, or look at image_key and text_keys"
        )


class HeldOutPairs(Dataset[dict[str, Any]]):
    """Images as they are, with all their texts.

    A bad record is a black image without captions, counted.

    Args:
        source: Where the records are.
        texts: Which texts are the captions, unless `caption_key` is given.
        caption_key: A field with a text or a list of texts, such as alternative texts that are no
            training texts; a record without any is no bad one, it has no caption.
        transform: Makes (3, S, S) uint8 of a picture.
        image_size: S.
        strict: Whether a bad record is an error.
    """

    def __init__(
        self,
        source: PairSource,
        texts: Texts,
        caption_key: str | None,
        transform: Callable[[Image.Image], Tensor],
        image_size: int,
        strict: bool,
    ) -> None:
        self.source, self.texts, self.caption_key = source, texts, caption_key
        self.transform, self.image_size, self.strict = transform, image_size, strict

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        captions = self._captions(record)
        num_broken = 0
        try:
            image = self.transform(read_image(record))
            if not captions and self.caption_key is None:
                raise ValueError(f"{record.where}: no text that is not empty")
        except ValueError as error:
            if self.strict:
                raise
            log.warning("left out: %s", error)
            image = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
            captions, num_broken = [], 1
        return {"images": image, "captions": captions, "index": index, "num_broken": num_broken}

    def _captions(self, record: PairRecord) -> list[str]:
        if self.caption_key is None:
            return self.texts.of(record)[0]
        value = record.fields[self.caption_key]
        values = value if isinstance(value, list) else [value]
        return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def read_image(record: PairRecord, min_side: int | None = None) -> Image.Image:
    """Reads the image of a record.

    Args:
        record: A record.
        min_side: See `open_image`.

    Raises:
        ValueError: There is none, or it cannot be read; the message names the record.
    """
    if record.image is None:
        raise ValueError(f"{record.where}: no image")
    try:
        return open_image(record.image, min_side)
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch; see `MultiTextDataModule`."""
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    batch["images"] = torch.stack(batch["images"])
    batch["index"] = torch.tensor(batch["index"])
    batch["num_broken"] = sum(batch["num_broken"])
    return batch
