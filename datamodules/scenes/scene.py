"""What a scene is: objects with a kind, a colour and a box, and the one way to draw them.

Shapes: S side of the square canvas in pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageDraw

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive
Style = Literal["flat", "photograph", "comic"]
Split = Literal["train", "val", "test"]
SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}  # numbers in seeds

# Dark enough for white handwriting on all of them.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.20, 0.30, 0.90),
    "yellow": (0.75, 0.65, 0.10),
    "purple": (0.55, 0.20, 0.70),
    "orange": (0.90, 0.45, 0.10),
    "cyan": (0.10, 0.60, 0.65),
    "pink": (0.90, 0.45, 0.65),
}
DARK = 0.08  # grey level of the plain background

# A part of a drawing: what PIL draws, coordinates in the unit square of the object's box, and its
# paint: "body" and "accent" are the object's colours, other names those of `PAINTS`.
Part = tuple[Literal["ellipse", "rectangle", "polygon", "line"], tuple[float, ...], str]
PAINTS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.55, 0.55, 0.58),
    "brown": (0.45, 0.28, 0.12),
    "leaf": (0.15, 0.55, 0.15),
    "water": (0.25, 0.55, 0.95),
    "fire": (1.00, 0.55, 0.05),
    "gold": (1.00, 0.85, 0.20),
    "skin": (0.95, 0.80, 0.65),
}
SHAPES: dict[str, tuple[Part, ...]] = {
    "circle": (("ellipse", (0, 0, 1, 1), "body"),),
    "square": (("rectangle", (0.05, 0.05, 0.95, 0.95), "body"),),
    "triangle": (("polygon", (0.5, 0, 1, 1, 0, 1), "body"),),
    "cross": (
        ("rectangle", (0.33, 0, 0.67, 1), "body"),
        ("rectangle", (0, 0.33, 1, 0.67), "body"),
    ),
    "diamond": (("polygon", (0.5, 0, 1, 0.5, 0.5, 1, 0, 0.5), "body"),),
    "bar": (("rectangle", (0, 0.3, 1, 0.7), "body"),),
}
SUPERSAMPLING = 4  # of drawn parts, for smooth edges


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Args:
        kind: What it is, in words: "7", "circle", "person".
        colour: Name of its colour, of `COLOURS`.
        box: Where it is.
        glyph: Row of scikit-learn's digits that is drawn on a tile; None for what is drawn by
            `parts`.
        parts: How it is drawn, in the unit square of the box.
        accent: Name of its second colour.
    """

    kind: str
    colour: str
    box: Box
    glyph: int | None = None
    parts: tuple[Part, ...] = ()
    accent: str = "red"

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> int:
        """Area of the box in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Question:
    """A question about one picture or several.

    Args:
        kind: What is asked for: of `questions.QUESTION_KINDS`, or "match".
        text: In words, as a benchmark would put it.
        answer: The true answer.
        about: Places of the objects in the scene that the answer depends on.
    """

    kind: str
    text: str
    answer: str
    about: tuple[int, ...] = ()


@dataclass(frozen=True)
class Example:
    """What a model is trained or tested on: pictures and questions about them.

    Args:
        images: (K, 3, S, S) in [0, 1].
        questions: About the K pictures together.
        group: What results are reported by: the size of the objects, say.
        boxes: Per picture, its objects' boxes as shares of the canvas, each (O, 4).
        labels: Per picture and object, colour and kind, counted from 1, each (O, 2).
    """

    images: FloatArray
    questions: list[Question]
    group: str
    boxes: list[FloatArray]
    labels: list[np.ndarray[Any, np.dtype[np.int64]]]


class Scenes(ABC):
    """Where examples come from.

    A subclass of your own fits `SceneDataModule` as those of this package do.
    """

    @abstractmethod
    def example(self, split: Split, index: int) -> Example:
        """Returns example `index` of a split, the same whenever it is asked for.

        Those of evaluation have one question.
        """

    @property
    @abstractmethod
    def questions_per_scene(self) -> int:
        """How many examples of evaluation in turn are about the same scene."""

    @property
    @abstractmethod
    def vocabulary(self) -> list[str]:
        """All words of questions and answers."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns all that examples depend on, as JSON values."""


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Args:
        canvas: S.
        objects: Drawn in this order.
        background: "dark", "photo" (a dim crop of one of scikit-learn's photographs) or the name
            of a colour, which is dimmed.
        style: "flat"; "photograph" adds a gradient of light, blur and noise; "comic" outlines.
        seed: What the random numbers of drawing (crop, light, noise) are a function of.
    """

    canvas: int
    objects: tuple[SceneObject, ...]
    background: str = "dark"
    style: Style = "flat"
    seed: tuple[int, ...] = field(default=(0,))

    def render(self) -> FloatArray:
        """Draws the scene; returns RGB in [0, 1], (3, S, S) float32."""
        rng = np.random.default_rng(self.seed)
        image = _background(self.background, self.canvas, rng)
        drawn = [item for item in self.objects if item.glyph is None]
        if drawn:
            image = _draw_parts(image, drawn, outline=self.style == "comic")
        for item in self.objects:
            if item.glyph is not None:
                _draw_tile(image, item)
        return _as_photograph(image, rng) if self.style == "photograph" else image


def to_pil(image: FloatArray) -> Image.Image:
    """Turns (3, H, W) in [0, 1] into an 8-bit picture."""
    return Image.fromarray(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8))


def digit_images() -> FloatArray:
    """Returns scikit-learn's 1,797 handwritten digits, (1797, 8, 8) in [0, 1]."""
    return _digits()[0]


def digit_labels() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns which digit each of them is, (1797,)."""
    return _digits()[1]


def place(
    rng: np.random.Generator, canvas: int, size: tuple[int, int], taken: Sequence[Box]
) -> Box | None:
    """Puts a box of (width, height) anywhere in the canvas where it overlaps none of `taken`.

    Every free position is equally likely.

    Returns:
        The box, or None if there is no room.
    """
    width, height = size
    free = np.ones((canvas - height + 1, canvas - width + 1), dtype=bool)
    for left, top, right, bottom in taken:
        free[max(0, top - height + 1) : bottom, max(0, left - width + 1) : right] = False
    positions = np.flatnonzero(free)
    if positions.size == 0:
        return None
    y, x = divmod(int(positions[rng.integers(positions.size)]), free.shape[1])
    return x, y, x + width, y + height


def _draw_tile(image: FloatArray, item: SceneObject) -> None:
    """Draws white handwriting on a tile of the object's colour, stretched to the box."""
    left, top, right, bottom = item.box
    ink = _stretch(bottom - top) @ digit_images()[item.glyph] @ _stretch(right - left).T
    colour = np.array(COLOURS[item.colour], dtype=np.float32)[:, None, None]
    image[:, top:bottom, left:right] = colour + (1 - colour) * ink


def _draw_parts(image: FloatArray, items: Sequence[SceneObject], outline: bool) -> FloatArray:
    """Draws vector parts over the image, with smooth edges."""
    scale, side = SUPERSAMPLING, image.shape[1]
    picture = to_pil(image).resize((side * scale, side * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for item in items:
        left, top, right, bottom = (scale * edge for edge in item.box)
        colours = PAINTS | {"body": COLOURS[item.colour], "accent": COLOURS[item.accent]}
        for operation, unit, paint in item.parts:
            xs = [left + x * (right - left) for x in unit[::2]]
            ys = [top + y * (bottom - top) for y in unit[1::2]]
            points = [value for point in zip(xs, ys, strict=True) for value in point]
            fill = tuple(round(255 * channel) for channel in colours[paint])
            if operation == "line":
                draw.line(points, fill=fill, width=max(scale, round((right - left) / 16)))
            else:
                edge = (0, 0, 0) if outline else None
                getattr(draw, operation)(points, fill=fill, outline=edge, width=scale)
    array = np.asarray(picture.reduce(scale), dtype=np.float32) / 255
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _background(name: str, side: int, rng: np.random.Generator) -> FloatArray:
    if name == "dark":
        return np.full((3, side, side), DARK, dtype=np.float32)
    if name == "photo":
        photo = _photographs()[rng.integers(2)]
        y, x = (int(rng.integers(size - side + 1)) for size in photo.shape[1:])
        return DARK + 0.3 * photo[:, y : y + side, x : x + side]
    colour = 0.35 * np.array(COLOURS[name], dtype=np.float32) + 0.55
    return np.broadcast_to(colour[:, None, None], (3, side, side)).copy()


def _as_photograph(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Adds a gradient of light, a blur of three pixels and noise."""
    side = image.shape[1]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + 0.15 * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    padded = np.pad(image * light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16
    noise = rng.normal(0, 0.03, image.shape)
    return cast(FloatArray, (blurred + noise).clip(0, 1).astype(np.float32))


@cache
def _digits() -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.int64]]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@cache
def _photographs() -> list[FloatArray]:
    from sklearn.datasets import load_sample_images

    photos = [np.asarray(photo, dtype=np.float32) for photo in load_sample_images().images]
    return [photo.transpose(2, 0, 1) / np.float32(255) for photo in photos]


@cache
def _stretch(length: int) -> FloatArray:
    """Returns the matrix that resizes 8 samples to `length`, bilinear, (length, 8)."""
    at = ((np.arange(length) + 0.5) * 8 / length - 0.5).clip(0, 7)
    below = np.floor(at).astype(int).clip(0, 6)
    matrix = np.zeros((length, 8), dtype=np.float32)
    matrix[np.arange(length), below] = 1 - (at - below)
    matrix[np.arange(length), below + 1] += at - below
    return matrix
