"""Scenes of several objects: digits on coloured tiles (TinyPOPE) or drawn shapes (captions)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np

from .questions import QUESTION_KINDS, WORDS, QuestionKind, ask
from .scene import (
    COLOURS,
    SHAPES,
    SPLITS,
    Box,
    Example,
    Scene,
    SceneObject,
    Scenes,
    Split,
    Style,
    digit_labels,
    place,
)

# Side of an object as a share of the canvas: 10 to 16, 16 to 30 and 30 to 55 of 112 pixels.
SIZES: dict[str, tuple[float, float]] = {
    "tiny": (10 / 112, 16 / 112),
    "medium": (16 / 112, 30 / 112),
    "large": (30 / 112, 55 / 112),
}
SHRINK = 0.95  # of all objects of a scene, when they do not fit


class ObjectScenes(Scenes):
    """Scenes of a few objects that do not overlap, each of a kind and a colour of its own.

    A digit is scikit-learn's 8x8 handwriting, white on a tile of the object's colour: the colour is
    seen from afar, the digit only with enough pixels. Scene i of a split is a function of (seed,
    split, i) and of the settings, whatever was made before. Handwriting of one split is in no
    other.

    The defaults are the TinyPOPE scenes; `caid()` gives those of the caption experiments.

    Args:
        objects: "digits" on tiles, or "shapes".
        canvas: S, side of the picture in pixels.
        num_objects: Least and largest number of objects.
        sizes: What sides are drawn from: one of "tiny", "medium", "large" for a whole scene.
        stretch: Range of the factors that width and height of an object get independently.
        colours: Colours that occur, of `scene.COLOURS`; at least as many as objects.
        frequencies: How often each kind occurs: all alike, or "skewed" as 1 / (rank + 1), which
            gives "popular" and "adversarial" questions a meaning.
        pairing: Share of scenes in which a kind comes with the next one (after 9 comes 0).
        background: "dark", "photo", or a colour.
        style: "flat", "photograph" or "comic".
        questions: Kinds of questions, of `questions.QUESTION_KINDS`. Training draws from them: one
            that is named twice comes twice as often. Evaluation asks each once about each scene.
        questions_per_image: Questions about one picture in training.
        caption_objects: How many objects a caption names, in the order of reading; None: all.
        seed: 0 or more.

    Raises:
        ValueError: A number out of range, an unknown name, or too few colours or kinds.
    """

    def __init__(
        self,
        objects: Literal["digits", "shapes"] = "digits",
        canvas: int = 112,
        num_objects: tuple[int, int] = (3, 4),
        sizes: Sequence[Literal["tiny", "medium", "large"]] = ("tiny", "medium", "large"),
        stretch: tuple[float, float] = (0.8, 1.25),
        colours: Sequence[str] = ("red", "green", "blue", "yellow"),
        frequencies: Literal["uniform", "skewed"] = "skewed",
        pairing: float = 0.4,
        background: str = "dark",
        style: Style = "flat",
        questions: Sequence[QuestionKind] = ("what", "is", "exists", "left"),
        questions_per_image: int = 6,
        caption_objects: int | None = None,
        seed: int = 0,
    ) -> None:
        self.noun = "digit" if objects == "digits" else "shape"
        self.kinds = [str(n) for n in range(10)] if objects == "digits" else list(SHAPES)
        self.objects = objects
        self.canvas, self.num_objects, self.stretch = canvas, num_objects, stretch
        self.sizes, self.colours, self.frequencies = list(sizes), list(colours), frequencies
        self.pairing, self.background, self.style, self.seed = pairing, background, style, seed
        self.questions, self.questions_per_image = list(questions), questions_per_image
        self.caption_objects = caption_objects
        self._check()
        weights = np.ones(len(self.kinds))
        if frequencies == "skewed":
            weights = 1 / (np.arange(len(self.kinds)) + 1)
        self._frequencies = weights / weights.sum()

    @classmethod
    def caid(cls, **settings: Any) -> Self:
        """The scenes of the caption experiments: three shapes on 64 pixels, none more frequent."""
        defaults: dict[str, Any] = {"objects": "shapes", "canvas": 64, "num_objects": (3, 3)}
        defaults |= {"sizes": ("medium", "large"), "frequencies": "uniform", "pairing": 0.0}
        return cls(**(defaults | settings))

    def _check(self) -> None:
        least, most = self.num_objects
        if not 1 <= least <= most:
            raise ValueError(f"num_objects: {self.num_objects}, expected 1 <= least <= most")
        _check_names("sizes", self.sizes, SIZES)
        _check_names("colours", self.colours, COLOURS)
        _check_names("questions", self.questions, QUESTION_KINDS)
        if self.background not in ("dark", "photo", *COLOURS):
            raise ValueError(
                f"background: {self.background!r}, expected dark, photo or one of {list(COLOURS)}"
            )
        for name, number in (("colours", len(self.colours)), ("kinds", len(self.kinds))):
            if number < most:
                raise ValueError(
                    f"num_objects: up to {most} objects, but only {number} {name}, and no two "
                    "objects of a scene share one: lower it"
                )
        if self.caption_objects is not None and self.caption_objects < 1:
            raise ValueError(f"caption_objects: {self.caption_objects}, expected 1 or more")
        if self.questions_per_image < 1:
            raise ValueError(f"questions_per_image: {self.questions_per_image}, expected 1 or more")
        if self.canvas < 16:
            raise ValueError(f"canvas: {self.canvas} pixels, expected 16 or more")
        if not 0 < self.stretch[0] <= self.stretch[1]:
            raise ValueError(f"stretch: {self.stretch}, expected 0 < least <= most")
        if not 0 <= self.pairing <= 1:
            raise ValueError(f"pairing: {self.pairing}, expected a share in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}, expected 0 or more")

    def scene(self, split: Split, index: int, size: str | None = None) -> Scene:
        """Returns scene `index` of a split.

        Args:
            split: "train", "val" or "test".
            index: 0 or more; there is no end.
            size: Draws all objects in this size; None: in one of `sizes`, by chance.
        """
        key = (self.seed, SPLITS[split], index)
        rng = np.random.default_rng(key)
        low, high = SIZES[size or self.sizes[rng.integers(len(self.sizes))]]
        number = int(rng.integers(self.num_objects[0], self.num_objects[1] + 1))
        kinds = self._draw_kinds(rng, number)
        colours = rng.permutation(len(self.colours))[:number]
        factors = rng.uniform(low, high, (number, 1)) * rng.uniform(*self.stretch, (number, 2))
        boxes = self._place_all(rng, factors * self.canvas)
        items = [
            self._object(rng, split, kind, self.colours[colour], box)
            for kind, colour, box in zip(kinds, colours, boxes, strict=True)
        ]
        return Scene(self.canvas, tuple(items), self.background, self.style, (*key, 1))

    def example(self, split: Split, index: int) -> Example:
        """Returns scene and questions number `index`.

        In training a scene of its own for each index and `questions_per_image` questions; in
        evaluation one question, so that each kind is asked once about each scene, in turn.
        """
        rng = np.random.default_rng((self.seed, SPLITS[split], index, 2))
        if split == "train":
            drawn = rng.integers(len(self.questions), size=self.questions_per_image)
            asked = [self.questions[i] for i in drawn]
        else:
            index, which = divmod(index, self.questions_per_scene)
            asked = [list(dict.fromkeys(self.questions))[which]]
        # Sizes take turns, so that there are as many scenes of each.
        size = self.sizes[index % len(self.sizes)]
        scene = self.scene(split, index, size)
        questions = [
            ask(scene, kind, rng, self.noun, self.kinds, self.caption_objects) for kind in asked
        ]
        boxes = np.array([item.box for item in scene.objects], dtype=np.float32)
        labels = [(self.colours.index(o.colour), self.kinds.index(o.kind)) for o in scene.objects]
        return Example(
            scene.render()[None],
            questions,
            size,
            [boxes / np.float32(self.canvas)],
            [np.array(labels) + 1],
        )

    @property
    def questions_per_scene(self) -> int:
        """Questions about one scene in evaluation: one of each kind."""
        return len(set(self.questions))

    def settings(self) -> dict[str, Any]:
        """Returns all that scenes and questions depend on, as JSON values."""
        names = (
            *("objects", "canvas", "num_objects", "sizes", "stretch", "colours", "frequencies"),
            *("pairing", "background", "style", "questions", "questions_per_image", "seed"),
        )
        found = {name: getattr(self, name) for name in names}
        if self.caption_objects is not None:  # so that scenes without it keep their hash
            found["caption_objects"] = self.caption_objects
        return found

    @property
    def vocabulary(self) -> list[str]:
        """All words of questions and answers."""
        own = [self.noun, f"{self.noun}s", *self.kinds, *COLOURS]
        return list(dict.fromkeys([*WORDS.split(), *own]))

    def _draw_kinds(self, rng: np.random.Generator, number: int) -> list[int]:
        """Draws kinds without repetition, the second sometimes the partner of the first."""
        kinds = [int(rng.choice(len(self.kinds), p=self._frequencies))]
        if number > 1 and rng.random() < self.pairing:
            kinds.append((kinds[0] + 1) % len(self.kinds))
        rest = self._frequencies.copy()
        rest[kinds] = 0
        if missing := number - len(kinds):
            others = rng.choice(len(rest), missing, replace=False, p=rest / rest.sum())
            kinds += others.tolist()
        return kinds

    def _place_all(self, rng: np.random.Generator, sides: Any) -> list[Box]:
        """Places boxes of (number, 2) sides; shrinks all of them until they fit."""
        order = np.argsort(-sides.prod(axis=1))  # the largest first, while there is room
        while True:
            boxes: dict[int, Box] = {}
            for i in order.tolist():
                width, height = (min(self.canvas, max(3, round(side))) for side in sides[i])
                box = place(rng, self.canvas, (width, height), list(boxes.values()))
                if box is None:
                    break
                boxes[i] = box
            else:
                return [boxes[i] for i in range(len(sides))]
            sides = sides * SHRINK

    def _object(
        self, rng: np.random.Generator, split: Split, kind: int, colour: str, box: Box
    ) -> SceneObject:
        name = self.kinds[kind]
        if self.objects == "shapes":
            return SceneObject(name, colour, box, parts=SHAPES[name])
        glyphs = glyphs_of(split, kind)
        return SceneObject(name, colour, box, glyph=int(glyphs[rng.integers(len(glyphs))]))


def _check_names(argument: str, given: Sequence[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown or not given:
        raise ValueError(f"{argument}: {unknown or 'none'}, expected some of {[*known]}")


def glyphs_of(split: Split, digit: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the rows of scikit-learn's digits that a split draws a digit from.

    The last 450 of 1,797 are the test's, by other writers than most; the 150 before, validation's.
    """
    first, end = {"train": (0, 1197), "val": (1197, 1347), "test": (1347, 1797)}[split]
    return first + np.flatnonzero(digit_labels()[first:end] == digit)
