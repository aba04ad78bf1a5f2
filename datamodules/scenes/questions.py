"""Questions about a scene, with answers that are true, and captions."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from .scene import Question, Scene, SceneObject

QuestionKind = Literal[
    "what", "colour", "where", "is", "exists", "left", "above", "larger", "count", "caption"
]
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
# Words that questions and answers consist of besides kinds, colours and the noun.
WORDS = (
    "what is the a an ? where colour there in image left right top bottom of above many how are "
    "yes no describe . , and 1 2 3 4 5 6 7 8 9 larger than"
)
DESCRIBE = "Describe the image."
Relation = Literal["left", "above", "larger"]
PHRASES: dict[Relation, str] = {"left": "left of", "above": "above", "larger": "larger than"}
CLEARLY_LARGER = 1.25  # ratio of areas
SPOKEN_AS_VOWEL = re.compile(r"hour|heir|honou?r|honest|1[18]\b", re.IGNORECASE)
SPOKEN_AS_CONSONANT = re.compile(
    r"uni(?![dmn])|us(?:e|age|ual|urp|b)|ut(?:en|il|op)|ukulele|eu|ewe|one\b|once\b|ouija",
    re.IGNORECASE,
)


def ask(
    scene: Scene,
    kind: QuestionKind,
    rng: np.random.Generator,
    noun: str,
    kinds: Sequence[str],
    caption_objects: int | None = None,
) -> Question:
    """Asks about a scene by chance; questions for yes or no are even between the two.

    Args:
        scene: What is asked about; its objects have each a kind and a colour of their own.
        kind: "what" (is the red digit), "colour", "where", "is" (the red digit a 7), "exists",
            "left", "above" and "larger" (relations), "count", "caption".
        rng: Where chance comes from.
        noun: The word for an object.
        kinds: All kinds, from which absent ones are taken.
        caption_objects: How many objects a caption names; None: all.

    Raises:
        ValueError: A relation in a scene of one object.
    """
    objects = scene.objects
    i = int(rng.integers(len(objects)))
    item = objects[i]
    named = f"the {item.colour} {noun}"
    truth = bool(rng.random() < 0.5)
    match kind:
        case "what":
            return Question(kind, f"What is {named}?", item.kind, (i,))
        case "colour":
            return Question(kind, f"What colour is the {item.kind}?", item.colour, (i,))
        case "where":
            return Question(kind, f"Where is {named}?", where(scene, item), (i,))
        case "is":
            others = [k for k in kinds if k != item.kind]
            # Half of the wrong kinds are those of other objects: seeing one is not enough.
            here = [other.kind for other in objects if other is not item]
            pool = here if here and rng.random() < 0.5 else others
            shown = item.kind if truth else pool[rng.integers(len(pool))]
            return Question(kind, f"Is {named} {with_article(shown)}?", yes_no(truth), (i,))
        case "exists":
            absent = [k for k in kinds if k not in {other.kind for other in objects}]
            shown = item.kind if truth else absent[rng.integers(len(absent))]
            return exists(shown, (i,) if truth else ())
        case "left" | "above" | "larger":
            if len(objects) < 2:
                raise ValueError(
                    f"questions: {kind!r} compares two objects: num_objects must be 2 or more"
                )
            j = int((i + rng.integers(1, len(objects))) % len(objects))
            if kind == "larger":
                pairs = clear_pairs(scene, kind) or [(i, j)]
                i, j = pairs[rng.integers(len(pairs))]
            return relation(scene, kind, i, j, noun)
        case "count":
            places = tuple(range(len(objects)))
            text = f"How many {noun}s are there in the image?"
            return Question(kind, text, str(len(objects)), places)
        case "caption":
            caption = describe(scene, caption_objects)
            return Question(kind, DESCRIBE, caption, tuple(range(len(objects))))


def exists(kind: str, about: tuple[int, ...]) -> Question:
    """Asks whether there is an object of a kind: yes if it is `about` one."""
    text = f"Is there {with_article(kind)} in the image?"
    return Question("exists", text, yes_no(bool(about)), about)


def describe(scene: Scene, num_objects: int | None = None) -> str:
    """Returns a caption: each object with its colour and its place, in the order of reading.

    Args:
        scene: What is described.
        num_objects: Names only so many; None: all.
    """
    order = sorted(scene.objects, key=lambda item: (where(scene, item), item.box))
    parts = [f"{with_article(item.colour)} {item.kind} {where(scene, item)}" for item in order]
    return " , ".join(parts[:num_objects]) + " ."


def where(scene: Scene, item: SceneObject) -> str:
    """Returns the quarter of the picture that the centre of an object is in: "top left"."""
    x, y = item.centre
    half = scene.canvas / 2
    return f"{'top' if y < half else 'bottom'} {'left' if x < half else 'right'}"


def with_article(noun: str) -> str:
    """Puts "a" or "an" before a word, by its sound: a 7, an 8, an orange, an hour, a unicorn."""
    is_written = noun[0].lower() in "aeiou8" and not SPOKEN_AS_CONSONANT.match(noun)
    return f"an {noun}" if is_written or SPOKEN_AS_VOWEL.match(noun) else f"a {noun}"


def yes_no(truth: bool) -> str:
    """Returns "yes" or "no"."""
    return "yes" if truth else "no"


def relation(scene: Scene, kind: Relation, i: int, j: int, noun: str) -> Question:
    """Asks whether object i is left of, above or larger (of more area) than object j."""
    one, other = scene.objects[i], scene.objects[j]
    if kind == "larger":
        truth = one.area > other.area
    else:
        axis = 0 if kind == "left" else 1
        truth = one.centre[axis] < other.centre[axis]
    text = f"Is the {one.colour} {noun} {PHRASES[kind]} the {other.colour} {noun}?"
    return Question(kind, text, yes_no(truth), (i, j))


def clear_pairs(scene: Scene, kind: Relation) -> list[tuple[int, int]]:
    """Returns the pairs of objects, each in both orders, of which one is (clearly) more.

    Areas count as different from a ratio of 1.25 on, places from half a pixel on.
    """
    if kind == "larger":
        values = [float(np.log(item.area) / np.log(CLEARLY_LARGER)) for item in scene.objects]
        least = 1.0
    else:
        values = [item.centre[0 if kind == "left" else 1] for item in scene.objects]
        least = 0.5
    places = range(len(values))
    return [(i, j) for i in places for j in places if abs(values[i] - values[j]) >= least]
