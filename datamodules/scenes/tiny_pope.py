"""TinyPOPE: POPE's questions, and controls, about made scenes, as the rows of question files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from .objects import ObjectScenes
from .questions import clear_pairs, exists, relation, with_article, yes_no
from .scene import Question, Scene, Split

Negatives = Literal["random", "popular", "adversarial"]
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)
QuestionSet = Literal[Negatives, "what", "is", "left", "larger"]
QUESTION_SETS: tuple[QuestionSet, ...] = get_args(QuestionSet)
NUM_PER_IMAGE = 3  # objects that POPE asks about, each beside one that is absent


def pope_questions(
    annotations: Sequence[tuple[str, Sequence[str]]],
    negatives: Negatives,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Asks "Is there a ... in the image?" about annotated images, as POPE does.

    About each image with three objects or more there are six questions: in turn, one about an
    object that is there and one about an object that is not.

    Args:
        annotations: Of each image, its file name and the kinds of its objects.
        negatives: Which absent kind is asked for: "random"; "popular", the one that occurs in most
            images; "adversarial", the one that occurs most often together with the kind just asked
            for. None is asked for twice about an image; of equals the first by name.
        seed: Of "random".
        only: Asks only about these images; None: about all.

    Returns:
        Rows with POPE's keys: question_id from 1, image, text, label.

    Raises:
        ValueError: There are not enough absent kinds for an image.
    """
    images = [(name, list(dict.fromkeys(kinds))) for name, kinds in annotations]
    popularity = Counter(kind for _, kinds in images for kind in kinds)
    together = Counter((a, b) for _, kinds in images for a in kinds for b in kinds if a != b)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    chosen = None if only is None else set(only)
    for name, kinds in images:
        if len(kinds) < NUM_PER_IMAGE or (chosen is not None and name not in chosen):
            continue
        absent = sorted(popularity.keys() - set(kinds))
        if len(absent) < NUM_PER_IMAGE:
            raise ValueError(
                f"{name}: only {len(absent)} kinds of the data set are not in it, and POPE asks "
                f"for {NUM_PER_IMAGE}: use more kinds or fewer objects"
            )
        for kind in kinds[:NUM_PER_IMAGE]:
            if negatives == "random":
                missing = absent[rng.integers(len(absent))]
            elif negatives == "popular":
                missing = max(absent, key=lambda other: popularity[other])
            else:
                pairs = {other: together[kind, other] for other in absent}
                missing = max(absent, key=pairs.__getitem__)
            absent.remove(missing)
            for shown, label in ((kind, True), (missing, False)):
                text = f"Is there {with_article(shown)} in the image?"
                row = {"question_id": len(rows) + 1, "image": name, "text": text}
                rows.append({**row, "label": yes_no(label)})
    return rows


def numbered_scenes(
    scenes: ObjectScenes, number: int, size: str | None, name: str, split: Split = "test"
) -> dict[str, Scene]:
    """Returns the first scenes of a split by the file names of their pictures.

    Args:
        scenes: Which scenes.
        number: How many.
        size: Of all objects; None: the scenes' own.
        name: Begins the file names.
        split: Of the scenes.

    Raises:
        ValueError: A scene may have fewer objects than POPE asks about.
    """
    if scenes.num_objects[0] < NUM_PER_IMAGE:
        raise ValueError(f"POPE asks about {NUM_PER_IMAGE} objects: set num_objects to [3, 4]")
    return {f"{name}_{i:06d}.png": scenes.scene(split, i, size) for i in range(number)}


def scene_rows(
    scenes: ObjectScenes, made: Mapping[str, Scene], questions: QuestionSet
) -> list[dict[str, Any]]:
    """Asks one set of questions about scenes.

    "random", "popular" and "adversarial" are POPE's six questions about each scene. The controls
    need more than that something is there: "what" asks for the digit of each colour; "is" names a
    right and a wrong one for three colours; "left" and "larger" compare up to three pairs, each in
    both orders (fewer, where fewer pairs differ clearly). But for "what", half of the answers are
    yes.

    Args:
        scenes: What made them.
        made: Scenes by file name.
        questions: Which set.

    Returns:
        Rows with POPE's keys, and `bbox` as `write_pope` has it.
    """
    if questions in NEGATIVES:
        annotations = [(image, [o.kind for o in scene.objects]) for image, scene in made.items()]
        rows = pope_questions(annotations, questions, scenes.seed)
        for row in rows:
            for item in made[row["image"]].objects:
                if exists(item.kind, ()).text == row["text"]:
                    row["bbox"] = list(item.box)
        return rows
    rng = np.random.default_rng((scenes.seed, QUESTION_SETS.index(questions)))
    rows = []
    for image, scene in made.items():
        for question in _controls(scenes, scene, questions, rng):
            boxes = [list(scene.objects[i].box) for i in question.about]
            rows.append(
                {
                    "question_id": len(rows) + 1,
                    "image": image,
                    "text": question.text,
                    "label": question.answer,
                    "bbox": boxes[0] if len(boxes) == 1 else boxes,
                }
            )
    return rows


def _controls(
    scenes: ObjectScenes, scene: Scene, questions: QuestionSet, rng: np.random.Generator
) -> list[Question]:
    """Returns the questions of a control about one scene."""
    objects, noun = scene.objects, scenes.noun
    if questions in ("left", "larger"):
        pairs = [pair for pair in clear_pairs(scene, questions) if pair[0] < pair[1]]
        chosen = rng.permutation(len(pairs))[:NUM_PER_IMAGE].tolist()
        both = [order for k in chosen for order in (pairs[k], pairs[k][::-1])]
        return [relation(scene, questions, i, j, noun) for i, j in both]
    asked: list[Question] = []
    for i, item in enumerate(objects):
        if questions == "what":
            asked.append(Question("what", f"What is the {item.colour} {noun}?", item.kind, (i,)))
        elif i < NUM_PER_IMAGE:
            others = [kind for kind in scenes.kinds if kind != item.kind]
            wrong = others[rng.integers(len(others))]
            for shown in (item.kind, wrong):
                text = f"Is the {item.colour} {noun} {with_article(shown)}?"
                asked.append(Question("is", text, yes_no(shown == item.kind), (i,)))
    return asked
