"""One record for a question about an image, from whatever file it came, and the image it is about.

Readers yield a `ValueError` for an entry that is none, so that whoever reads decides whether to go
on without it.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class VisualQuestion:
    """A question about an image.

    Args:
        id: Unique in its set.
        image: Name of the image.
        text: As the model is asked, without the suffix of the prompt.
        answer: What is right; empty where nothing is known.
        category: What results are reported by.
        boxes: Of the objects that it is about, in pixels; empty where none are known.
        source: Where it stands, "file:line".
        extra: What else the benchmark has, by its names.
    """

    id: str
    image: str
    text: str
    answer: str = ""
    category: str = ""
    boxes: tuple[Box, ...] = ()
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class ImageSource(ABC):
    """Where the images of questions come from."""

    @abstractmethod
    def size(self, name: str) -> tuple[int, int]:
        """Returns width and height in pixels.

        Raises:
            ValueError: There is no such image, or it cannot be read.
        """

    @abstractmethod
    def load(self, name: str) -> Tensor:
        """Returns an image of its original size, (3, H, W) float32 in [0, 1].

        Raises:
            ValueError: As `size`.
        """


class ImageFolder(ImageSource):
    """Image files of a folder.

    Args:
        folder: Where they are.
        prefixes: What a file name may begin with that is left out in the questions.
    """

    def __init__(self, folder: str | Path, prefixes: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.prefixes = ("", *prefixes)

    def size(self, name: str) -> tuple[int, int]:
        """See `ImageSource`; reads the head of the file only."""
        return self._open(name).size

    def load(self, name: str) -> Tensor:
        """See `ImageSource`."""
        try:
            pixels = np.array(self._open(name).convert("RGB"))
        except OSError as error:
            raise ValueError(f"image {self.folder / name} cannot be read: {error}") from error
        return to_tensor(pixels)

    def _open(self, name: str) -> Image.Image:
        paths = [self.folder / f"{prefix}{name}" for prefix in self.prefixes]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(f"there is no image {paths[0]}")
        try:
            return Image.open(path)
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"image {path} cannot be read: {error}") from error


def to_tensor(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """Turns (H, W, 3) uint8 into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def read_entries(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Reads JSON lines, or one JSON array; benchmarks name both `.json`.

    Yields:
        Where an entry stands, and the entry, or what is wrong with it.

    Raises:
        ValueError: The file cannot be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"question file {path} cannot be read: {error}") from error
    if text.lstrip()[:1] == "[":
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: no JSON array: {error.msg}") from error
        for number, entry in enumerate(entries, start=1):
            where = f"{path}: entry {number}"
            yield where, _object(entry, where)
        return
    # Not `splitlines`, which also splits at characters that JSON may hold inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, _object(json.loads(line), where)
        except json.JSONDecodeError as error:
            yield where, ValueError(f"{where}: no JSON: {error.msg} at column {error.colno}")


def _object(entry: Any, where: str) -> dict[str, Any] | ValueError:
    if isinstance(entry, dict):
        return entry
    return ValueError(f"{where}: expected an object, found {type(entry).__name__}")


def field_of(entry: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that is a text or a number, as text.

    Raises:
        ValueError: It is missing, empty or something else.
    """
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = f"found {value!r}" if name in entry else f"only {', '.join(map(repr, entry))}"
        raise ValueError(f"{where}: expected a text as {name!r}, {found}")
    return str(value)
