"""Pairs of pictures, before and after: the cause-and-effect sprites of the MuCR experiments.

A statement ("it rains on ...", "... catches a cold") is shown with four subjects. The effect keeps
the looks of its cause's subject, so that only the picture tells which effect belongs to which
cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from .questions import with_article
from .scene import (
    COLOURS,
    SPLITS,
    Example,
    Part,
    Question,
    Scene,
    SceneObject,
    Scenes,
    Split,
    Style,
)

MATCH = "Which image is the effect of the first?"
LETTERS = "ABCD"
NUM_SIBLINGS = len(LETTERS)
# Looks that the test split uses and training does not: of all combinations of three colours.
NUM_TEST_LOOKS, NUM_VAL_LOOKS = 112, 40
# Shares of the benchmark's categories and of its comics among the styles.
CATEGORIES = {"person": 0.48, "animal": 0.24, "character": 0.13, "mixture": 0.10, "plant": 0.05}
COMIC_SHARE = 0.14


def _legs(paint: str) -> tuple[Part, ...]:
    return (
        ("rectangle", (0.34, 0.7, 0.46, 1), paint),
        ("rectangle", (0.54, 0.7, 0.66, 1), paint),
    )


_PERSON: tuple[Part, ...] = (
    *_legs("accent"),
    ("rectangle", (0.28, 0.34, 0.72, 0.74), "body"),
    ("rectangle", (0.14, 0.36, 0.28, 0.64), "body"),
    ("rectangle", (0.72, 0.36, 0.86, 0.64), "body"),
    ("ellipse", (0.32, 0.02, 0.68, 0.36), "skin"),
    ("rectangle", (0.32, 0.02, 0.68, 0.12), "accent"),
)
_ANIMAL: tuple[Part, ...] = (
    ("rectangle", (0.14, 0.7, 0.24, 1), "body"),
    ("rectangle", (0.54, 0.7, 0.64, 1), "body"),
    ("ellipse", (0.05, 0.42, 0.72, 0.82), "body"),
    ("ellipse", (0.56, 0.16, 0.96, 0.56), "body"),
    ("polygon", (0.6, 0.26, 0.66, 0.02, 0.76, 0.22), "accent"),
    ("polygon", (0.78, 0.22, 0.88, 0.02, 0.92, 0.28), "accent"),
    ("ellipse", (0.2, 0.5, 0.45, 0.68), "accent"),
    ("ellipse", (0.78, 0.3, 0.84, 0.36), "black"),
)
_CHARACTER: tuple[Part, ...] = (
    *_legs("grey"),
    ("rectangle", (0.48, 0, 0.52, 0.12), "grey"),
    ("ellipse", (0.44, 0, 0.56, 0.08), "accent"),
    ("rectangle", (0.26, 0.1, 0.74, 0.4), "body"),
    ("ellipse", (0.34, 0.18, 0.46, 0.3), "white"),
    ("ellipse", (0.54, 0.18, 0.66, 0.3), "white"),
    ("rectangle", (0.2, 0.44, 0.8, 0.74), "accent"),
    ("rectangle", (0.38, 0.52, 0.62, 0.66), "body"),
)
_PLANT: tuple[Part, ...] = (
    ("rectangle", (0.46, 0.3, 0.54, 0.72), "leaf"),
    ("ellipse", (0.2, 0.42, 0.48, 0.6), "leaf"),
    ("ellipse", (0.52, 0.34, 0.8, 0.52), "leaf"),
    ("ellipse", (0.32, 0.04, 0.68, 0.38), "body"),
    ("polygon", (0.24, 0.68, 0.76, 0.68, 0.66, 1, 0.34, 1), "accent"),
)


def _scaled(parts: tuple[Part, ...], left: float, top: float, side: float) -> tuple[Part, ...]:
    """Draws parts smaller, inside the unit square."""
    return tuple(
        (
            operation,
            tuple((top if i % 2 else left) + side * value for i, value in enumerate(points)),
            paint,
        )
        for operation, points, paint in parts
    )


SUBJECTS: dict[str, tuple[Part, ...]] = {
    "person": _PERSON,
    "animal": _ANIMAL,
    "character": _CHARACTER,
    "plant": _PLANT,
    "mixture": _scaled(_PERSON, 0, 0.15, 0.62) + _scaled(_ANIMAL, 0.5, 0.5, 0.5),
}
NAMES = {name: name for name in SUBJECTS} | {"character": "robot", "mixture": "person and animal"}

_DROPS: tuple[Part, ...] = tuple(
    ("ellipse", (x, y, x + 0.08, y + 0.16), "water")
    for x, y in ((0.1, 0.5), (0.35, 0.62), (0.6, 0.5), (0.82, 0.62), (0.22, 0.82), (0.7, 0.82))
)
_CLOUD: tuple[Part, ...] = (
    ("ellipse", (0, 0.12, 0.5, 0.45), "grey"),
    ("ellipse", (0.3, 0, 0.75, 0.42), "grey"),
    ("ellipse", (0.55, 0.12, 1, 0.45), "grey"),
)
_FLOWER: tuple[Part, ...] = (
    ("rectangle", (0.46, 0.4, 0.54, 1), "leaf"),
    ("ellipse", (0.1, 0.1, 0.5, 0.5), "white"),
    ("ellipse", (0.5, 0.1, 0.9, 0.5), "white"),
    ("ellipse", (0.3, 0.35, 0.7, 0.7), "white"),
    ("ellipse", (0.36, 0.26, 0.64, 0.54), "gold"),
)
_WINDOW: tuple[Part, ...] = (
    ("rectangle", (0.1, 0.1, 0.9, 0.9), "brown"),
    ("rectangle", (0.18, 0.18, 0.82, 0.82), "water"),
)
_CUP: tuple[Part, ...] = (("polygon", (0.15, 0.3, 0.85, 0.3, 0.72, 1, 0.28, 1), "white"),)
_DOOR: tuple[Part, ...] = (("rectangle", (0.2, 0, 0.8, 1), "brown"),)
_POT: tuple[Part, ...] = (("rectangle", (0.15, 0.45, 0.85, 0.78), "grey"),)


@dataclass(frozen=True)
class Statement:
    """A cause and its effect, in words and in pictures.

    Args:
        cause: Caption of the cause; `{}` stands for the subject.
        effect: Caption of the effect.
        link: Why the one follows from the other.
        cue: The phrase that names the link.
        false_cues: Three phrases that do not.
        cause_parts: What is drawn beside the subject before.
        effect_parts: What is drawn after.
    """

    cause: str
    effect: str
    link: str
    cue: str
    false_cues: tuple[str, str, str]
    cause_parts: tuple[Part, ...]
    effect_parts: tuple[Part, ...]


STATEMENTS: tuple[Statement, ...] = (
    Statement(
        "it rains on the {}",
        "the {} has a cold",
        "standing in cold rain makes one ill",
        "catch cold",
        ("wet", "rain", "run"),
        _CLOUD + _DROPS,
        (
            ("rectangle", (0.1, 0.55, 0.9, 1), "grey"),
            ("polygon", (0.3, 0.55, 0.5, 0.2, 0.7, 0.55), "white"),
        ),
    ),
    Statement(
        "the {} waters a seed",
        "the {} has a flower",
        "water makes the seed grow",
        "grow",
        ("water", "soil", "cut"),
        (*_DROPS[:3], ("rectangle", (0.1, 0.85, 0.9, 1), "brown")),
        (*_FLOWER, ("rectangle", (0.1, 0.85, 0.9, 1), "brown")),
    ),
    Statement(
        "the {} presses a switch",
        "the {} is beside a bright lamp",
        "the switch lets the current flow",
        "turn on",
        ("wall", "sleep", "read"),
        (
            ("rectangle", (0.25, 0.2, 0.75, 0.8), "white"),
            ("rectangle", (0.42, 0.35, 0.58, 0.65), "black"),
        ),
        (
            ("ellipse", (0.05, 0, 0.95, 0.8), "gold"),
            ("ellipse", (0.25, 0.15, 0.75, 0.62), "white"),
            ("rectangle", (0.4, 0.75, 0.6, 1), "grey"),
        ),
    ),
    Statement(
        "the {} lifts a dumbbell",
        "the {} wins a medal",
        "training makes strong",
        "build muscle",
        ("heavy", "iron", "rest"),
        (
            ("rectangle", (0.2, 0.45, 0.8, 0.55), "grey"),
            ("rectangle", (0, 0.25, 0.22, 0.75), "black"),
            ("rectangle", (0.78, 0.25, 1, 0.75), "black"),
        ),
        (
            ("polygon", (0.3, 0, 0.7, 0, 0.5, 0.5), "water"),
            ("ellipse", (0.22, 0.38, 0.78, 0.94), "gold"),
        ),
    ),
    Statement(
        "the {} holds a jug over an empty cup",
        "the {} has a full cup",
        "what is poured fills the cup",
        "fill",
        ("jug", "thirst", "wash"),
        (*_CUP, ("polygon", (0.55, 0, 1, 0, 0.95, 0.25, 0.6, 0.25), "water")),
        (*_CUP, ("ellipse", (0.15, 0.22, 0.85, 0.42), "water")),
    ),
    Statement(
        "the {} kicks a ball at a window",
        "the {} is beside a broken window",
        "the ball hit the glass",
        "break",
        ("play", "throw", "glass"),
        (*_WINDOW, ("ellipse", (0, 0.6, 0.36, 0.96), "white")),
        (
            *_WINDOW,
            ("polygon", (0.5, 0.2, 0.62, 0.45, 0.8, 0.5, 0.6, 0.62, 0.5, 0.8, 0.36, 0.56), "black"),
        ),
    ),
    Statement(
        "the {} lights a fire under a pot",
        "the {} has a steaming pot",
        "heat brings the water to the boil",
        "boil",
        ("burn", "cold", "smell"),
        (*_POT, ("polygon", (0.3, 1, 0.5, 0.72, 0.7, 1), "fire")),
        (
            *_POT,
            ("ellipse", (0.2, 0.05, 0.42, 0.4), "white"),
            ("ellipse", (0.55, 0, 0.8, 0.38), "white"),
        ),
    ),
    Statement(
        "the {} leaves ice in the sun",
        "the {} has a puddle",
        "the sun warms the ice",
        "melt",
        ("freeze", "hot", "drink"),
        (
            ("ellipse", (0.55, 0, 1, 0.45), "gold"),
            ("rectangle", (0.1, 0.5, 0.6, 1), "white"),
        ),
        (
            ("ellipse", (0.55, 0, 1, 0.45), "gold"),
            ("ellipse", (0, 0.75, 0.95, 1), "water"),
        ),
    ),
    Statement(
        "the {} has a cake",
        "the {} has an empty plate",
        "the cake was eaten",
        "eat",
        ("sweet", "bake", "plate"),
        (
            ("ellipse", (0, 0.75, 1, 1), "white"),
            ("rectangle", (0.2, 0.4, 0.8, 0.85), "brown"),
            ("ellipse", (0.4, 0.22, 0.6, 0.44), "fire"),
        ),
        (
            ("ellipse", (0, 0.75, 1, 1), "white"),
            ("ellipse", (0.3, 0.82, 0.4, 0.9), "brown"),
        ),
    ),
    Statement(
        "the {} opens a bucket of paint",
        "the {} is beside a painted wall",
        "paint covers the wall",
        "paint",
        ("clean", "bucket", "build"),
        (
            ("polygon", (0.15, 0.4, 0.85, 0.4, 0.75, 1, 0.25, 1), "grey"),
            ("ellipse", (0.15, 0.3, 0.85, 0.52), "fire"),
        ),
        (
            ("rectangle", (0, 0, 1, 1), "fire"),
            ("line", (0, 0.33, 1, 0.33), "brown"),
            ("line", (0, 0.66, 1, 0.66), "brown"),
        ),
    ),
    Statement(
        "the {} holds a shovel",
        "the {} is beside a hole",
        "the earth was dug out",
        "dig",
        ("garden", "tired", "bury"),
        (
            ("rectangle", (0.44, 0, 0.56, 0.65), "brown"),
            ("polygon", (0.28, 0.6, 0.72, 0.6, 0.5, 1), "grey"),
        ),
        (
            ("polygon", (0.5, 0.85, 0.75, 0.35, 1, 0.85), "brown"),
            ("ellipse", (0, 0.7, 0.6, 1), "black"),
        ),
    ),
    Statement(
        "the {} puts a key into a locked door",
        "the {} is beside an open door",
        "the key turns the lock",
        "unlock",
        ("knock", "house", "lose"),
        (*_DOOR, ("ellipse", (0.6, 0.45, 0.75, 0.6), "gold")),
        (
            ("rectangle", (0.2, 0, 0.8, 1), "black"),
            ("polygon", (0.2, 0, 0.4, 0.12, 0.4, 0.88, 0.2, 1), "brown"),
        ),
    ),
)


@dataclass(frozen=True)
class Looks:
    """The colours of a subject and of what is behind it."""

    body: str
    accent: str
    background: str


@dataclass(frozen=True)
class CausePair:
    """One statement shown with one subject.

    Args:
        cause: The picture before.
        effect: The picture after.
        statement: What happens.
        category: The kind of subject: of `CATEGORIES`.
        looks: The subject's.
    """

    cause: Scene
    effect: Scene
    statement: Statement
    category: str
    looks: Looks

    @property
    def captions(self) -> tuple[str, str]:
        """Captions of cause and effect, the same for all subjects of a category."""
        name = NAMES[self.category]
        return self.statement.cause.format(name), self.statement.effect.format(name)

    @property
    def descriptions(self) -> tuple[str, str]:
        """Captions that also tell the looks."""
        looks = self.looks
        name = f"{looks.body} {NAMES[self.category]} with {looks.accent} parts"
        place = f" on {with_article(looks.background)} background"
        return self.statement.cause.format(name) + place, self.statement.effect.format(name) + place

    @property
    def references(self) -> list[str]:
        """Three explanations: what each picture shows, the subject being the same, and the link."""
        (before, after), link = self.descriptions, self.statement.link
        same = f"the same {NAMES[self.category]}"
        return [
            f"The first image shows that {before}. The second shows {same}: {after}. "
            f"The link is that {link}.",
            f"In image one, {before}; in image two, with {same}, {after}, because {link}.",
            f"First, {before}. Then, {after}. It is {same}, and {link}: {self.statement.cue}.",
        ]


def arrange(
    statement: Statement,
    moment: int,
    category: str,
    looks: Looks,
    style: Style,
    canvas: int,
    moved: Sequence[int] = (0, 0, 0, 0),
    seed: tuple[int, ...] = (0,),
) -> Scene:
    """Puts a subject and what happens to it into a picture.

    Args:
        statement: What happens.
        moment: 0 before, 1 after.
        category: Of the subject.
        looks: The subject's, and the background.
        style: Of the drawing.
        canvas: Side in pixels.
        moved: How far subject (x, y) and thing (x, y) are from their places, in pixels.
        seed: Of light and noise.
    """
    x, y, u, v = moved
    subject = (canvas // 16 + x, canvas // 4 + y, canvas * 10 // 16 + x, canvas * 15 // 16 + y)
    thing = (canvas * 10 // 16 + u, canvas // 16 + v, canvas * 15 // 16 + u, canvas // 2 + v)
    parts = (statement.cause_parts, statement.effect_parts)[moment]
    objects = (
        SceneObject(category, looks.body, subject, None, SUBJECTS[category], looks.accent),
        SceneObject(("cause", "effect")[moment], looks.body, thing, None, parts),
    )
    return Scene(canvas, objects, looks.background, style, seed)


class CauseEffectScenes(Scenes):
    """Groups of four pairs of pictures, cause and effect, for the task of matching them.

    Group i of a split is a function of (seed, split, i) and of the settings. Subjects have one of
    512 combinations of body, accent and background colours; 112 are the test's alone and 40 the
    validation's, so that the subjects of a test are unseen while its statements are not.

    Args:
        siblings: What tells the four pairs of a group apart. "looks": the statement is the same,
            the looks of the subjects differ, as in the benchmark. "statement": the looks are the
            same and the statements differ, so that words are enough. "nothing": both are the same,
            so that nobody can do better than chance.
        canvas: S, side of a picture in pixels.
        seed: 0 or more.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        siblings: Literal["looks", "statement", "nothing"] = "looks",
        canvas: int = 48,
        seed: int = 0,
    ) -> None:
        if canvas < 16:
            raise ValueError(f"canvas: {canvas} pixels, expected 16 or more")
        if seed < 0:
            raise ValueError(f"seed: {seed}, expected 0 or more")
        self.siblings, self.canvas, self.seed = siblings, canvas, seed
        combinations = list(product(COLOURS, repeat=3))
        order = np.random.default_rng((seed, len(SPLITS))).permutation(len(combinations))
        looks = [Looks(*combinations[i]) for i in order]
        val_end = NUM_TEST_LOOKS + NUM_VAL_LOOKS
        self._looks: dict[str, list[Looks]] = {
            "test": looks[:NUM_TEST_LOOKS],
            "val": looks[NUM_TEST_LOOKS:val_end],
            "train": looks[val_end:],
        }

    def looks_of(self, split: Split) -> list[Looks]:
        """Returns the combinations of colours that a split uses."""
        return list(self._looks[split])

    def group(self, split: Split, index: int) -> list[CausePair]:
        """Returns group `index` of a split: four pairs that are each other's wrong answers."""
        rng = np.random.default_rng((self.seed, SPLITS[split], index))
        category = str(rng.choice(list(CATEGORIES), p=list(CATEGORIES.values())))
        statements = rng.permutation(len(STATEMENTS))[:NUM_SIBLINGS]
        pool = self._looks[split]
        looks = rng.permutation(len(pool))[:NUM_SIBLINGS]
        if self.siblings != "statement":
            statements = statements[:1].repeat(NUM_SIBLINGS)
        if self.siblings != "looks":
            looks = looks[:1].repeat(NUM_SIBLINGS)
        pairs: list[CausePair] = []
        for j, (s, k) in enumerate(zip(statements, looks, strict=True)):
            # Where nothing may tell siblings apart, the style must not either.
            style = pairs[0].cause.style if pairs and self.siblings == "nothing" else None
            pairs.append(
                self._pair(rng, (split, index, j), STATEMENTS[s], category, pool[k], style)
            )
        return pairs

    def example(self, split: Split, index: int) -> Example:
        """Returns question number `index`: a cause, four effects, and which of them is its own.

        Pair j of group i is number 4 i + j. The place of the right effect is random and does not
        depend on the pair.
        """
        number, which = divmod(index, NUM_SIBLINGS)
        group = self.group(split, number)
        rng = np.random.default_rng((self.seed, SPLITS[split], index, 2))
        order = rng.permutation(NUM_SIBLINGS).tolist()
        scenes = [group[which].cause, *(group[j].effect for j in order)]
        question = Question("match", MATCH, LETTERS[order.index(which)])
        boxes, labels = zip(*(self._targets(scene) for scene in scenes), strict=True)
        images = np.stack([scene.render() for scene in scenes])
        return Example(images, [question], group[which].category, [*boxes], [*labels])

    @property
    def questions_per_scene(self) -> int:
        """Examples of a group: one for each of its causes."""
        return NUM_SIBLINGS

    def settings(self) -> dict[str, Any]:
        """Returns all that examples depend on, as JSON values."""
        return {"siblings": self.siblings, "canvas": self.canvas, "seed": self.seed}

    @property
    def vocabulary(self) -> list[str]:
        """All words of the question and its answers."""
        return list(dict.fromkeys([*MATCH.replace("?", " ?").split(), *LETTERS]))

    def _pair(
        self,
        rng: np.random.Generator,
        key: tuple[Split, int, int],
        statement: Statement,
        category: str,
        looks: Looks,
        style: Style | None = None,
    ) -> CausePair:
        split, index, sibling = key
        drawn: Style = "comic" if rng.random() < COMIC_SHARE else "photograph"
        style = style or drawn
        scenes = []
        for moment in (0, 1):
            seed = (self.seed, SPLITS[split], index, 3, sibling, moment)
            moved = (rng.integers(-self.canvas // 16, self.canvas // 16 + 1, size=4)).tolist()
            scenes.append(
                arrange(statement, moment, category, looks, style, self.canvas, moved, seed)
            )
        return CausePair(scenes[0], scenes[1], statement, category, looks)

    def _targets(self, scene: Scene) -> tuple[Any, Any]:
        """Returns box (1, 4) and labels (1, 2) of the subject: body colour and category."""
        subject = scene.objects[0]
        box = np.array([subject.box], dtype=np.float32).clip(0, self.canvas) / self.canvas
        label = [list(COLOURS).index(subject.colour) + 1, list(CATEGORIES).index(subject.kind) + 1]
        return box, np.array([label])
