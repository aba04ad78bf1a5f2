"""Icons with their pictures, as items of a data loader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ...modules.deepicon.representation import (
    PAD,
    VIEW_BOX,
    IconCodec,
    IconError,
    IconStyle,
    IconTensors,
    style_numbers,
)
from ...modules.svg import Document, Shape, render
from ...modules.svg.document import Matrix
from ...modules.svg.geometry import transformed_shape

SAMPLES = 4  # per pixel and axis of a picture
MAX_TRIES = 8
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


class Documents(Protocol):
    """Numbered documents."""

    def __getitem__(self, index: int) -> Document: ...


@dataclass(frozen=True)
class IconAugmentation:
    """What training does to an icon before it is drawn, so that picture and tensors agree.

    Args:
        scale: Range of the factor about the center.
        shift: Largest shift along each axis, in units of the view box of 24.
        flip: Probability of left and right changing places.
        stroke_width: Range of the width of all strokes, in units of 24; None: as they are.
        ink: Largest lightness of the ink, and darkness of the paper, of the picture alone.

    Raises:
        ValueError: A range is empty, or a number is out of range.
    """

    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 1.5
    flip: float = 0.5
    stroke_width: tuple[float, float] | None = (1.25, 2.5)
    ink: float = 0.2

    def __post_init__(self) -> None:
        widths = self.stroke_width or (1.0, 1.0)
        if not (0 < self.scale[0] <= self.scale[1] and 0 < widths[0] <= widths[1]):
            raise ValueError(f"augment: scale {self.scale} and stroke_width {widths}: empty ranges")
        if self.shift < 0 or not 0 <= self.flip <= 1 or not 0 <= self.ink < 0.5:
            raise ValueError(
                f"augment: shift {self.shift}, flip {self.flip}, ink {self.ink}: expected 0 or "
                "more, a probability, and less than 0.5"
            )

    def document(self, document: Document, rng: np.random.Generator) -> Document:
        """Returns an icon moved, scaled, flipped, with other strokes."""
        factor = rng.uniform(*self.scale)
        dx, dy = rng.uniform(-self.shift, self.shift, 2)
        across = -factor if rng.random() < self.flip else factor
        center = VIEW_BOX / 2
        matrix: Matrix = (
            across,
            0.0,
            0.0,
            factor,
            center - across * center + dx,
            center - factor * center + dy,
        )
        width = None if self.stroke_width is None else float(rng.uniform(*self.stroke_width))
        shapes = []
        for shape in document.shapes():
            moved = transformed_shape(shape, matrix)
            if moved.stroke is not None:
                assert shape.stroke is not None
                moved = replace(
                    moved, stroke=replace(moved.stroke, width=width or shape.stroke.width)
                )
            shapes.append(moved)
        return replace(document, children=tuple[Shape, ...](shapes))


class IconDataset(Dataset[dict[str, Any]]):
    """Icons with the pictures that are drawn of them.

    An item is a dict: `image` (3, S, S) float32 in [0, 1], dark on white; `types`, `args`,
    `visible`, `paint`, see `IconTensors`; `style` (3,), see `style_numbers`; `index` () int64;
    `name`.

    Args:
        documents: The icons.
        names: Of each.
        codec: Makes the tensors.
        image_size: S.
        augmentation: None: icons as they are.
        num_views: How many augmented versions of each icon there are, drawn at their first use and
            kept in memory (about S * S bytes each). None: a new one each time, and nothing is kept.
        seed: Of the augmented versions.
    """

    def __init__(
        self,
        documents: Documents,
        names: Sequence[str],
        codec: IconCodec,
        image_size: int,
        augmentation: IconAugmentation | None = None,
        num_views: int | None = 1,
        seed: int = 0,
    ) -> None:
        self.documents, self.names, self.codec = documents, names, codec
        self.image_size, self.augmentation = image_size, augmentation
        self.num_views = num_views if augmentation is not None else 1
        self.seed = seed
        self._kept: dict[tuple[int, int], tuple[Tensor, IconTensors, IconStyle]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # numpy's global generator is seeded by (seed, epoch, index) around each item.
        view = np.random.randint(self.num_views or 2**31) if self.num_views != 1 else 0  # noqa: NPY002
        found = self._kept.get((index, view)) or self._draw(index, view)
        if self.num_views is not None:
            self._kept[index, view] = found
        grey, icon, style = found
        image = grey.float() / 255
        if self.augmentation is not None and self.augmentation.ink:
            dark, light = np.random.uniform(0, self.augmentation.ink, 2)  # noqa: NPY002
            image = dark + (1 - light - dark) * image
        return {
            "image": image.expand(3, -1, -1),
            **icon._asdict(),
            "style": style_numbers(style),
            "index": torch.tensor(index),
            "name": self.names[index],
        }

    def _draw(self, index: int, view: int) -> tuple[Tensor, IconTensors, IconStyle]:
        """Returns picture (1, S, S) uint8, tensors and style of a version of an icon."""
        document = self.documents[index]
        rng = np.random.default_rng([self.seed, index, view])
        for _ in range(MAX_TRIES if self.augmentation else 0):
            assert self.augmentation is not None
            moved = self.augmentation.document(document, rng)
            try:
                icon, style = self.codec.encode(moved)
            except IconError:  # out of the view box; or the other way round it is too long
                continue
            return self._picture(moved), icon, style
        icon, style = self.codec.encode(document)
        return self._picture(document), icon, style

    def _picture(self, document: Document) -> Tensor:
        size = (self.image_size, self.image_size)
        image = render([document], size, samples=SAMPLES)[0, :1]
        return (image * 255).round().to(torch.uint8)


def collate_icons(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch; adds `lengths`, which stay on the host."""
    batch: dict[str, Any] = default_collate(list(items))
    if "types" in batch:
        ends = (batch["types"] != PAD).sum(dim=-1)
        rows = zip(ends.tolist(), batch["visible"].sum(dim=1).tolist(), strict=True)
        batch["lengths"] = [lengths[:number] for lengths, number in rows]
    return batch


class PictureFolder(Dataset[dict[str, Any]]):
    """Pictures of a folder, to be vectorized: dark on white, in a square.

    An item is a dict: `image` (3, S, S) float32 in [0, 1]; `index` () int64; `name`, the path below
    the folder without its suffix. What is transparent becomes white, what is no square is filled up
    with white.

    Args:
        root: Folder, with all below, or a file.
        image_size: S.

    Raises:
        ValueError: There is no picture; from reading an item, it cannot be read.
    """

    def __init__(self, root: str, image_size: int) -> None:
        self.root, self.image_size = Path(root).expanduser(), image_size
        found = self.root.rglob("*") if self.root.is_dir() else [self.root]
        self.files = sorted(p for p in found if p.suffix.lower() in PICTURES and p.is_file())
        if not self.files:
            raise ValueError(f"no picture at '{root}' (expected {', '.join(PICTURES)})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[index]
        name = path.relative_to(self.root) if path != self.root else Path(path.name)
        return {
            "image": read_picture(path, self.image_size),
            "index": torch.tensor(index),
            "name": name.with_suffix("").as_posix(),
        }


def read_picture(path: Path, size: int) -> Tensor:
    """Reads a picture as (3, size, size) float32 in [0, 1] on white.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as a picture: {error}") from error
    paper = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(paper, picture).convert("RGB")
    square = ImageOps.pad(flat, (size, size), Image.Resampling.LANCZOS, color="white")
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
