"""The forms in which a question's pictures reach a model."""

from collections.abc import Mapping, Sequence
from typing import Literal

from PIL import Image

from ..chat.messages import Part
from ..visual_reasoning.parsing import letters
from ..visual_reasoning.question import Item
from .composite import CompositeImage

InputForm = Literal["multi_image", "composite", "text", "core_text", "caption_then_text"]


def show(
    item: Item,
    form: InputForm,
    composite: CompositeImage,
    texts: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Part]:
    """Returns the part of a message that shows the pictures and the options.

    No role is told but by the order: neither file names nor ids.

    Args:
        item: The question with its pictures.
        form: "multi_image": each picture, with a name before it. "composite": one picture. "text":
            descriptions that come with the data. "core_text": the plain captions, which siblings
            share. "caption_then_text": `texts`.
        composite: Makes one picture of several.
        texts: What stands for each picture, by its name.
        notes: What is said about each picture, by its name, beside it.

    Raises:
        ValueError: There is no description of a picture.
    """
    question = item.question
    labels = picture_labels(item)
    by_name = dict(zip(question.images, labels, strict=True))
    parts: list[Part]
    if form == "multi_image":
        pictures = pictures_of(item)
        parts = []
        for label, picture in zip(labels, pictures, strict=True):
            parts += [f"{label}:\n", picture, "\n"]
    elif form == "composite":
        pictures = pictures_of(item)
        given = len(question.images) - len(question.option_images)
        parts = [_legend(item), composite(pictures[:given], pictures[given:]), "\n"]
    else:
        said = texts if form == "caption_then_text" else _descriptions(item, form)
        assert said is not None
        lines = [f"{by_name[name]}: {said[name]}" for name in question.images]
        parts = ["Each picture is described in words.\n" + "\n".join(lines) + "\n"]
    if notes is not None:
        lines = [f"{by_name[name]}, cues: {notes[name]}" for name in question.images]
        parts.append("\n".join(lines) + "\n")
    if question.options and not question.option_images:
        pairs = zip(letters(len(question.options)), question.options, strict=True)
        parts.append("\n".join(f"{letter}. {text}" for letter, text in pairs) + "\n")
    return parts


def picture_labels(item: Item) -> list[str]:
    """Names of the pictures as a model reads them: "Picture 1", "Option A"."""
    question = item.question
    names = letters(len(question.options)) if question.option_images else []
    of_place = dict(zip(question.option_images, names, strict=True))
    return [
        f"Option {of_place[place]}" if place in of_place else f"Picture {place + 1}"
        for place in range(len(question.images))
    ]


def pictures_of(item: Item) -> list[Image.Image]:
    """Returns the pictures.

    Raises:
        ValueError: One is missing.
    """
    found = [picture for picture in item.pictures if picture is not None]
    if len(found) != len(item.question.images):
        raise ValueError(f"{item.question.id} has no pictures: take input_form text")
    return found


def _descriptions(item: Item, form: str) -> dict[str, str]:
    question = item.question
    if form == "core_text":
        plain: dict[str, str] = dict(question.extra["plain"])
        return plain
    texts: Sequence[str] = question.captions
    if not texts or not all(texts):
        raise ValueError(
            f"{question.set}: {question.id} has no descriptions of its pictures (released "
            "files have none; descriptions.jsonl beside them): take input_form core_text or "
            "caption_then_text"
        )
    return dict(zip(question.images, texts, strict=True))


def _legend(item: Item) -> str:
    if item.question.option_images:
        names = letters(len(item.question.options))
        return (
            f"One image holds all pictures: picture 1 on top, options {', '.join(names)} below.\n"
        )
    return "One image holds both pictures: picture 1 on the left, picture 2 on the right.\n"
