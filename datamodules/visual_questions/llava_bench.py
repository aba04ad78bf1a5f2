"""LLaVA-Bench (COCO) (Liu et al. 2023): 90 questions whose free answers a chat model judges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .module import QuestionDataModule, QuestionSet, parsed
from .questions import ImageFolder, VisualQuestion, field_of, read_entries

QUESTIONS, CONTEXTS = "qa90_questions.jsonl", "caps_boxes_coco2014_val_80.jsonl"
REFERENCES = "qa90_gpt4_answer.jsonl"
COCO_PREFIXES = ("COCO_val2014_",)


class LlavaBenchDataModule(QuestionDataModule):
    """LLaVA-Bench (COCO): `qa90_questions.jsonl` and the files beside it.

    One set, `llava-bench/coco`. Batches are those of `QuestionDataModule`; the category is "conv",
    "detail" or "complex"; answers are empty. `extras` have what a judge is shown: `context`
    (captions and boxes of the image, as text) and `reference` (GPT-4's answer).

    Args:
        root: Folder of the three files.
        image_dir: Folder of the images; COCO's val2014 files may have their prefix.
        **settings: Those of `QuestionDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        image_dir: str,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root, self.image_dir = Path(root).expanduser(), Path(image_dir).expanduser()

    def read(self) -> list[QuestionSet]:
        """See `QuestionDataModule`."""
        contexts = self._read_beside(CONTEXTS, "image", context_of)
        references = self._read_beside(
            REFERENCES, "question_id", lambda entry, where: field_of(entry, "text", where)
        )

        def parse(entry: Mapping[str, Any], where: str) -> VisualQuestion:
            identity, image = (field_of(entry, name, where) for name in ("question_id", "image"))
            for file, known, key in (
                (CONTEXTS, contexts, image),
                (REFERENCES, references, identity),
            ):
                if key not in known:
                    raise ValueError(f"{where}: {self.root / file} has nothing of {key!r}")
            return VisualQuestion(
                id=identity,
                image=image,
                text=field_of(entry, "text", where),
                category=field_of(entry, "category", where),
                source=where,
                extra={"context": contexts[image], "reference": references[identity]},
            )

        name = "llava-bench/coco"
        questions = self.keep(parsed(read_entries(self.root / QUESTIONS), parse), name)
        return [QuestionSet(name, questions, ImageFolder(self.image_dir, COCO_PREFIXES))]

    def _read_beside(self, file: str, key: str, read: Any) -> dict[str, str]:
        """Reads a text for each key of a file; a bad entry is always an error."""
        found = {}
        for where, entry in read_entries(self.root / file):
            if isinstance(entry, ValueError):
                raise entry
            found[field_of(entry, key, where)] = read(entry, where)
        return found


def context_of(entry: Mapping[str, Any], where: str) -> str:
    """Writes captions and boxes of an image as text: a line each, boxes after an empty line.

    Raises:
        ValueError: It has not both.
    """
    captions, instances = entry.get("captions"), entry.get("instances")
    if not isinstance(captions, list) or not isinstance(instances, list):
        raise ValueError(f"{where}: expected lists as 'captions' and 'instances'")
    try:
        boxes = [f"{instance['category']}: {instance['bbox']}" for instance in instances]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: an instance has no 'category' or 'bbox'") from error
    return "\n".join(captions) + "\n\n" + "\n".join(boxes)
