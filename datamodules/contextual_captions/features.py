"""Features of images, computed once by whatever encoder a recipe names, and kept."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...modules.encoders.encoder import Encoder
from ...modules.files import atomic_write
from .examples import Examples

log = logging.getLogger(__name__)

CHUNK = 2048  # images in a file
PADDED_SIDE = 224


class PixelEncoder(Encoder):
    """The pixels themselves, as floats in [0, 1]: for small pictures, and machines without weights.

    Args:
        side: Pictures are resized to so many pixels square.
        colour: Whether there are three channels, or one of greys.

    Raises:
        ValueError: A side below 1.
    """

    supports_images = True

    def __init__(self, side: int = 8, colour: bool = False) -> None:
        if side < 1:
            raise ValueError(f"side must be 1 or more, got {side}")
        self.side, self.colour = side, colour

    @property
    def identity(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {"encoder": type(self).__name__, **self.__getstate__()}

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Encoder`."""
        mode, channels = ("RGB", 3) if self.colour else ("L", 1)
        rows = np.zeros((len(images), channels * self.side**2), dtype=np.float32)
        for row in range(len(images)):
            small = images[row].convert(mode).resize((self.side, self.side))
            rows[row] = np.asarray(small, dtype=np.float32).reshape(-1) / 255
        return torch.from_numpy(rows)


class ImageList(Sequence[Image.Image]):
    """A part of the images of `Examples`, opened when they are looked at.

    One that cannot be read is black, as in the released code, and counted.

    Args:
        examples: Where they are.
        first: Number of the first.
        last: Number after the last.
        pad: Whether to shrink the long side to 224 pixels and fill up to a square with black, as
            the released features were made.
    """

    def __init__(self, examples: Examples, first: int, last: int, pad: bool) -> None:
        self.examples, self.first, self.last, self.pad = examples, first, last, pad
        self.errors: list[str] = []

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            image = self.examples.image(self.first + index)
        except ValueError as error:
            self.errors.append(str(error))
            image = Image.new("RGB", (512, 512))
        return padded(image) if self.pad else image


def padded(image: Image.Image, side: int = PADDED_SIDE) -> Image.Image:
    """Shrinks or enlarges the long side to `side` pixels and fills up to a square with black."""
    scale = side / max(image.size)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    square = Image.new("RGB", (side, side))
    small = image.convert("RGB").resize(size)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


class FeatureTable:
    """Features of all images, in files of 2,048 rows that a killed run need not make again.

    Args:
        examples: Whose images.
        encoder: What makes features of them.
        pad: See `ImageList`.
        cache_dir: Where caches are; None: `$TENFOLD_CACHE`, else `~/.cache/tenfold`.
    """

    def __init__(
        self, examples: Examples, encoder: Encoder, pad: bool = False, cache_dir: str | None = None
    ) -> None:
        self.examples, self.encoder, self.pad = examples, encoder, pad
        settings = {"images": examples.identity, "encoder": encoder.identity, "pad": pad}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        root = cache_dir or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold"
        self.folder = Path(root).expanduser() / "image_features" / digest[:32]
        self._parts: list[NDArray[np.float32]] = []

    def prepare(self) -> None:
        """Makes the files that are not there."""
        if self.examples.has_features:
            return
        errors = []
        for path, first, last in self._files():
            if path.is_file():
                continue
            images = ImageList(self.examples, first, last, self.pad)
            rows = self.encoder.encode_images(images).float().numpy()
            with atomic_write(path) as file:
                np.save(file, rows, allow_pickle=False)
            errors += images.errors
        if errors:
            log.warning(
                "%d images are black, as they cannot be read; first: %s", len(errors), errors[0]
            )

    def open(self) -> None:
        """Opens the files, as memory maps."""
        if not self._parts and not self.examples.has_features:
            paths = [path for path, _, _ in self._files()]
            self._parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]

    def __getitem__(self, number: int) -> Tensor:
        if self.examples.has_features:
            return self.examples.feature(number)
        part, row = divmod(number, CHUNK)
        return torch.from_numpy(np.array(self._parts[part][row]))

    @property
    def width(self) -> int:
        """Numbers in a feature; after `open`."""
        return int(self._parts[0].shape[1])

    def _files(self) -> list[tuple[Path, int, int]]:
        number = self.examples.num_images
        return [
            (self.folder / f"{first // CHUNK:06d}.npy", first, min(first + CHUNK, number))
            for first in range(0, number, CHUNK)
        ]
