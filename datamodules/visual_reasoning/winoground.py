"""Winoground (Thrush et al. 2022): two images, two captions of the same words in another order."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...modules.visual_reasoning.question import Count, Question
from ..visual_questions.questions import field_of, read_entries
from .module import Found, ReasoningDataModule

TASK = (
    "Two images and two captions that have the same words in different orders. Each caption is "
    "true of one image only."
)


class WinogroundDataModule(ReasoningDataModule):
    """Winoground's `examples.jsonl`, and all files of its format.

    The data are gated and for research alone: get them from the hub (facebook/winoground). The set
    is `winoground`. Each example gives four forced choices of two: which caption is true of an
    image (twice), which image a caption is true of (twice). They are counted as Winoground does:
    `text` is right if both choices of captions are, `image` if both of images are, `group` if all
    four are. Chance is 25, 25 and 6.25 % - with scores of a model instead of choices the last would
    be 16.7 %.

    Args:
        root: Folder of `examples.jsonl`.
        image_dir: Folder of the images; None: `root/images`.
        tags: A JSON object of example ids and lists of tags, such as `new_tag_assignments.json` of
            why-winoground-hard: results are also reported by them, beside Winoground's own.
        **settings: Those of `ReasoningDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        image_dir: str | None = None,
        tags: str | None = None,
        **settings: Any,
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(image_dir=image_dir or str(self.root / "images"), **settings)
        self.tags_file = None if tags is None else Path(tags).expanduser()

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        tags = self._read_tags()
        for where, entry in read_entries(self.root / "examples.jsonl"):
            if isinstance(entry, ValueError):
                yield entry
                continue
            try:
                yield from questions_of(entry, where, tags)
            except ValueError as error:
                yield error

    def _read_tags(self) -> dict[str, list[str]]:
        if self.tags_file is None:
            return {}
        try:
            content = json.loads(self.tags_file.read_text(encoding="utf-8"))
            return {str(name): [str(tag) for tag in found] for name, found in content.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"tags: {self.tags_file}: expected an object of ids and lists of tags ({error})"
            ) from error


def questions_of(
    entry: Mapping[str, Any], where: str, tags: Mapping[str, list[str]]
) -> list[Question]:
    """Makes the four questions of an example.

    Args:
        entry: A line of the file.
        where: Names it.
        tags: Further tags, by id.

    Raises:
        ValueError: A field is missing.
    """
    identity = field_of(entry, "id", where)
    images = tuple(field_of(entry, f"image_{k}", where) for k in (0, 1))
    captions = tuple(field_of(entry, f"caption_{k}", where) for k in (0, 1))
    categories = {"tag": str(tag)} if (tag := entry.get("collapsed_tag")) else {}
    categories |= {f"tag {name}": "yes" for name in tags.get(identity, [])}
    questions = []
    for part in ("text", "image"):
        for k in (0, 1):
            common: dict[str, Any] = {
                "id": f"{identity}/{part}_{k}",
                "set": "winoground",
                "task": f"{TASK} The captions: {captions[0]!r} and {captions[1]!r}.",
                "options": captions if part == "text" else images,
                "answers": (k,),
                "counts": (Count(part, identity, 2), Count("group", identity, 4)),
                "group": identity,
                "kind": part,
                "categories": categories,
            }
            if part == "text":
                text = "Which caption is true of the image?"
                questions.append(Question(text=text, images=images[k : k + 1], **common))
            else:
                text = f"Which image is the caption {captions[k]!r} true of?"
                extra = {"query": captions[k]}
                shown: dict[str, Any] = {"images": images, "option_images": (0, 1), "extra": extra}
                questions.append(Question(text=text, **shown, **common))
    return questions
