"""The New Yorker caption contest (Hessel et al. 2023): which caption belongs, which is funnier?"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, UnidentifiedImageError

from ...modules.visual_reasoning.parsing import letters
from ...modules.visual_reasoning.question import Count, Question
from .module import Found, ReasoningDataModule

NewYorkerTask = Literal["matching", "ranking"]
RAW = {"matching": "contest_matching", "ranking": "quality_ranking"}
TASKS = {
    "matching": "A cartoon of The New Yorker, and captions of which one was written for it.",
    "ranking": "A cartoon of The New Yorker, and two captions of which one won the contest.",
}
QUESTIONS = {
    "matching": "Which caption was written for this cartoon?",
    "ranking": "Which caption is funnier for this cartoon?",
}
WINNERS = {"crowd_winner": "crowd_accuracy", "official_winner": "new_yorker_accuracy"}
DESCRIPTIONS = {
    "image_location": "Place: ",
    "image_description": "",
    "image_uncanny_description": "What is odd: ",
}


class NewYorkerDataModule(ReasoningDataModule):
    """The caption contest as the hub has it, and the files of its repository.

    `root` is a copy of the hub's data set (jmhessel/newyorker_caption_contest):
    `<task>/<part>-*.parquet`, `<task>_<fold>/...` for folds 1 to 4; or a folder of the repository's
    `contest_matching_split=<fold>_cleaned.json` and `quality_ranking_split=...`. The annotations
    are CC-BY-4.0; the cartoons belong to their owners.

    The sets are `new_yorker_matching` (five captions, `accuracy`) and `new_yorker_ranking` (two:
    `crowd_accuracy` where the crowd's favourite has to be found, `new_yorker_accuracy` where the
    editors' has). The cartoons of one contest are a group.

    Descriptions that people wrote of the cartoons stand for them unless `pixels` is set: the "from
    description" setting, which is legitimate, and not comparable with pixels.

    Args:
        root: Folder of the files.
        tasks: Which.
        folds: Which of the five cross-validation splits; published numbers are means over all.
        part: Which part of them.
        pixels: Whether cartoons are shown: those in the parquet files, or in `image_dir`.
        image_dir: Folder of the cartoons, `<contest number>.jpg`.
        **settings: Those of `ReasoningDataModule`.

    Raises:
        ValueError: No such task or fold, or a number out of range.
    """

    def __init__(
        self,
        root: str,
        tasks: Sequence[NewYorkerTask] = ("matching", "ranking"),
        folds: Sequence[int] = (0,),
        part: Literal["train", "validation", "test"] = "test",
        pixels: bool = False,
        image_dir: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(image_dir=image_dir if pixels else None, **settings)
        unknown = sorted(set(tasks) - set(RAW))
        if unknown or not tasks:
            raise ValueError(f"tasks: {unknown or 'none'}, expected of {get_args(NewYorkerTask)}")
        if not folds or not set(folds) <= set(range(5)):
            raise ValueError(f"folds: {list(folds)}, expected some of 0, 1, 2, 3, 4")
        self.root, self.part = Path(root).expanduser(), part
        self.tasks, self.folds = list(tasks), sorted(set(folds))
        self.makes_pictures = pixels and image_dir is None
        self._bytes: dict[str, bytes] = {}

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        for task in self.tasks:
            for fold in self.folds:
                for number, (where, entry) in enumerate(self._entries(task, fold)):
                    try:
                        yield question_of(entry, task, f"{fold}/{number}", where)
                    except ValueError as error:
                        yield error

    def picture(self, name: str) -> Image.Image:
        """See `ReasoningDataModule`."""
        if not self.makes_pictures:
            return super().picture(name)
        if name not in self._bytes:
            raise ValueError(f"{self.root}: no picture of contest {name}: set image_dir")
        try:
            return Image.open(io.BytesIO(self._bytes[name])).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{self.root}: the picture of contest {name}: {error}") from error

    def _entries(self, task: NewYorkerTask, fold: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields where an entry stands, and the entry."""
        folder = self.root / (task if fold == 0 else f"{task}_{fold}")
        paths = sorted(folder.glob(f"{self.part}-*.parquet"))
        if paths:
            for path in paths:
                yield from self._parquet_entries(path)
            return
        raw = self.root / f"{RAW[task]}_split={fold}_cleaned.json"
        part = "val" if self.part == "validation" else self.part
        try:
            entries = json.loads(raw.read_text(encoding="utf-8"))[part]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"there is no {folder}/{self.part}-*.parquet, and no {raw} with a part {part!r} "
                f"({error!r})"
            ) from error
        for number, entry in enumerate(entries):
            yield f"{raw}: {part} {number}", entry

    def _parquet_entries(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        from pyarrow import parquet

        for number, entry in enumerate(parquet.read_table(path).to_pylist()):
            image = entry.pop("image", None)
            if self.makes_pictures and isinstance(image, dict) and image.get("bytes"):
                self._bytes[str(entry.get("contest_number"))] = image["bytes"]
            yield f"{path}: row {number}", entry


def question_of(
    entry: Mapping[str, Any], task: NewYorkerTask, identity: str, where: str
) -> Question:
    """Makes a question of an entry, of the hub or of the repository.

    Args:
        entry: With `caption_choices` and a letter as `label`; or `choices` and `correct_idx`; or
            `A`, `B` and `label`.
        task: What is asked.
        identity: Of the question, where the entry has no `instance_id`.
        where: Names the entry.

    Raises:
        ValueError: It is none.
    """
    try:
        contest = str(entry["contest_number"])
        identity = str(entry.get("instance_id") or identity)
        if "caption_choices" in entry:
            options = [str(caption) for caption in entry["caption_choices"]]
        elif task == "matching":
            options = [str(choice["clean_caption"]) for choice in entry["choices"]]
        else:
            options = [str(entry["A"]), str(entry["B"])]
        if "correct_idx" in entry:
            right = int(entry["correct_idx"])
        else:
            right = letters(len(options)).index(entry["label"])
        is_ranking = task == "ranking"
        counts = (Count(WINNERS[entry["winner_source"]], identity),) if is_ranking else ()
        return Question(
            id=identity,
            set=f"new_yorker_{task}",
            task=TASKS[task],
            text=QUESTIONS[task],
            images=(contest,),
            options=tuple(options),
            answers=(right,),
            captions=_description(entry),
            counts=counts,
            group=contest,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: no entry of the caption contest ({error!r})") from error


def _description(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What people wrote of the cartoon; nothing if they did not."""
    parts = [f"{label}{entry[name]}" for name, label in DESCRIPTIONS.items() if entry.get(name)]
    return (" ".join(parts),) if parts else ()
