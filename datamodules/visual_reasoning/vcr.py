"""VCR (Zellers et al. 2019): what goes on in a film still, and why one can tell."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...modules.visual_reasoning.question import Count, Question
from ..visual_questions.questions import field_of, read_entries
from .module import Found, ReasoningDataModule, ReasoningItems

TASK = "A question about what goes on in a film still. People are numbered."
POOL_SIZE = 2000


class VCRDataModule(ReasoningDataModule):
    """VCR's `val.jsonl` (or another split), and all files of its format.

    The data are for research alone: get them from visualcommonsense.com. The set is `vcr`. Each
    annotation gives two questions: the answer (`qa`), and the reason for the right answer, which is
    shown (`qar`). Counted are `q_a`, `qa_r`, and `q_ar`, both right.

    The paper's test is a tenth of `val`: `max_groups: 2653`, `subset_seed: 0` (its own ids are not
    known); the ids are in the run's predictions.

    Args:
        root: Folder of `train.jsonl` and `val.jsonl`.
        split: Which of them is asked.
        image_dir: Folder of the images; None: `root/vcr1images`.
        index_base: Number of the first object: 1 writes "Person1", 0 as in the files.
        pool_split: Where solved examples come from: "same" is what is asked, "train" a sample of
            the training annotations, whose right answers may be shown.
        pool_size: How many of these.
        **settings: Those of `ReasoningDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        split: Literal["train", "val", "test"] = "val",
        image_dir: str | None = None,
        index_base: int = 1,
        pool_split: Literal["same", "train"] = "same",
        pool_size: int = POOL_SIZE,
        **settings: Any,
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(image_dir=image_dir or str(self.root / "vcr1images"), **settings)
        if pool_size < 1:
            raise ValueError(f"pool_size must be 1 or more, got {pool_size}")
        self.split, self.index_base = split, index_base
        self.pool_split, self.pool_size = pool_split, pool_size

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        yield from self._read(self.split)

    def pool(self) -> ReasoningItems:
        """See `ReasoningDataModule`."""
        if self.pool_split == "same":
            return super().pool()
        # Reservoir sampling: the training file has 213,000 lines.
        generator, kept = random.Random(self.seed), []
        for number, found in enumerate(self._read("train")):
            if number < self.pool_size:
                kept.append(found)
            elif (place := generator.randrange(number + 1)) < self.pool_size:
                kept[place] = found
        questions = [question.shuffled(self.seed) for question in self.keep(kept)]
        return ReasoningItems(self, questions)

    def _read(self, split: str) -> Iterator[Found]:
        for where, entry in read_entries(self.root / f"{split}.jsonl"):
            if isinstance(entry, ValueError):
                yield entry
                continue
            try:
                yield from questions_of(entry, where, self.index_base)
            except ValueError as error:
                yield error


def questions_of(entry: Mapping[str, Any], where: str, index_base: int = 1) -> list[Question]:
    """Makes both questions of an annotation.

    Args:
        entry: A line of the file.
        where: Names it.
        index_base: Number of the first object.

    Raises:
        ValueError: A field is missing or of another kind.
    """
    identity = field_of(entry, "annot_id", where)
    try:
        objects = [str(name) for name in entry["objects"]]
        asked = in_words(entry["question"], objects, index_base)
        choices = {
            kind: [in_words(tokens, objects, index_base) for tokens in entry[f"{kind}_choices"]]
            for kind in ("answer", "rationale")
        }
        right = {kind: int(entry[f"{kind}_label"]) for kind in ("answer", "rationale")}
        answer = choices["answer"][right["answer"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{where}: no annotation of VCR ({error!r})") from error
    image = field_of(entry, "img_fn", where)
    common: dict[str, Any] = {
        "set": "vcr",
        "task": TASK,
        "images": (image,),
        "group": identity,
        "extra": {"objects": objects, "index_base": index_base},
    }
    return [
        Question(
            id=f"{identity}/qa",
            text=asked,
            options=tuple(choices["answer"]),
            answers=(right["answer"],),
            counts=(Count("q_a", identity), Count("q_ar", identity, 2)),
            kind="qa",
            **common,
        ),
        Question(
            id=f"{identity}/qar",
            text=f"{asked}\nThe right answer is: {answer}\nWhy is it right?",
            options=tuple(choices["rationale"]),
            answers=(right["rationale"],),
            counts=(Count("qa_r", identity), Count("q_ar", identity, 2)),
            kind="qar",
            **common,
        ),
    ]


def in_words(
    tokens: Sequence[str | Sequence[int]], objects: Sequence[str], index_base: int = 1
) -> str:
    """Joins tokens into text and names objects, as in "Person1 and Person4 are talking".

    Args:
        tokens: Words, and lists of places in `objects`.
        objects: Classes of the objects.
        index_base: Number of the first object.

    Raises:
        IndexError: An object that there is not.
    """
    words = []
    for token in tokens:
        if isinstance(token, str):
            words.append(token)
            continue
        names = []
        for place in token:
            if not 0 <= place < len(objects):
                raise IndexError(f"object {place} of {len(objects)}")
            names.append(f"{objects[place].capitalize()}{place + index_base}")
        words.append(", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0])
    text = " ".join(words)
    text = re.sub(r"\s+([.,;:?!%)\]])", r"\1", text)
    text = re.sub(r"([(\[$])\s+", r"\1", text)
    text = re.sub(r"\s+(n't|'(?:s|re|ve|ll|d|m)?)\b", r"\1", text)
    return re.sub(r"(\w) ' (\w)", r"\1'\2", text).strip()
