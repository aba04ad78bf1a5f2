"""POPE (Li et al. 2023): is there a such-and-such in the image? Real files, and made scenes.

Copies of POPE differ. The COCO files of RUCAIBox/POPE and those that VCD and Perception Magnifier
use have the same random and popular questions, but 57 of the 3,000 adversarial ones differ; a copy
in OPERA has 2,910 random questions. A set is therefore named with where it comes from.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..scenes import ObjectScenes
from ..scenes.scene import Scene, to_pil
from ..scenes.tiny_pope import QuestionSet as TinyPopeSet
from ..scenes.tiny_pope import numbered_scenes, scene_rows
from .module import QuestionDataModule, QuestionSet, digest, parsed
from .questions import (
    Box,
    ImageFolder,
    ImageSource,
    VisualQuestion,
    field_of,
    read_entries,
    to_tensor,
)

log = logging.getLogger(__name__)

NUM_QUESTIONS = 3000  # of each of POPE's files
# Copies that are known by the SHA-256 of their images, texts and labels.
KNOWN = {
    "4a3148335ef4322f909b92e5a52625e3b6706a48d72d8ed9c7751f0268341c6b": "rucaibox",  # coco random
    "2c7e936b1b96db62267d65e7b69ccd32c78ca5035a245d12d6a9b694d775f33b": "rucaibox",  # popular
    "90a05b95734e6e6ca5b735f8b4d75a2fc654f0e2b04df859fe4902fabac61de4": "rucaibox",  # adversarial
}


class PopeDataModule(QuestionDataModule):
    """POPE's question files, and all others of their format.

    The sets are `<dataset>/<split>@<provenance>`: `coco/random@rucaibox`. Provenance is that of
    copies that are known, else the first eight digits of the questions' SHA-256; where a set has
    not 3,000 questions, their number is added and a warning says so, since numbers on it compare
    with no others.

    Batches are those of `QuestionDataModule`; answers are "yes" or "no" (or what a control asks
    for); the category is the split. A key `bbox` of an entry (a box in pixels, or a list of them)
    gives boxes.

    Args:
        root: Folder with the question files, `<dataset>_pope_<split>.json` or
            `<dataset>_pope_seem_<split>.json`, JSON lines or an array; or with a folder of them for
            each data set.
        datasets: Which: "coco", "aokvqa", "gqa", or what else files are named after.
        splits: Which.
        image_dirs: Folder of the images of each data set (COCO's val2014 for coco and aokvqa);
            `root/images` for those not named.
        provenance: Names the copy, in place of what is said above.
        prompt_suffix: Follows each question.
        **settings: Those of `QuestionDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        datasets: Sequence[str] = ("coco",),
        splits: Sequence[str] = ("random", "popular", "adversarial"),
        image_dirs: Mapping[str, str] | None = None,
        provenance: str | None = None,
        prompt_suffix: str = " Please answer this question with one word.",
        **settings: Any,
    ) -> None:
        super().__init__(prompt_suffix, **settings)
        self.root = Path(root).expanduser()
        self.datasets, self.splits, self.provenance = list(datasets), list(splits), provenance
        self.image_dirs = dict(image_dirs or {})

    def read(self) -> list[QuestionSet]:
        """See `QuestionDataModule`."""
        return [self._read(dataset, split) for dataset in self.datasets for split in self.splits]

    def _read(self, dataset: str, split: str) -> QuestionSet:
        path = self._find(dataset, split)
        questions = self.keep(
            parsed(read_entries(path), partial(parse_pope, category=split)), f"{dataset}/{split}"
        )
        label = self.provenance or provenance_of(questions)
        if len(questions) != NUM_QUESTIONS:
            num_yes = sum(question.answer == "yes" for question in questions)
            log.warning(
                "%s: %d questions, %d of them yes; POPE's files have 3,000, half of them yes: "
                "compare with no others",
                *(path, len(questions), num_yes),
            )
            label += f"-{len(questions)}"
        images = Path(self.image_dirs.get(dataset, self.root / "images")).expanduser()
        return QuestionSet(f"{dataset}/{split}@{label}", questions, ImageFolder(images))

    def _find(self, dataset: str, split: str) -> Path:
        stems = [f"{dataset}_pope_{split}", f"{dataset}_pope_seem_{split}"]
        names = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "jsonl")]
        paths = [folder / name for folder in (self.root, self.root / dataset) for name in names]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise ValueError(
                f"there is no {paths[0]} (also looked for {names[2]}, and in {self.root / dataset})"
            )
        return found[0]


class TinyPopeDataModule(QuestionDataModule):
    """TinyPOPE, made when it is needed: digits on coloured tiles, in POPE's questions and controls.

    What `tenfold scenes --format pope` writes, without files and pixel by pixel the same. The sets
    are `<size>/<questions>`: `tiny/random`, `large/left`; all objects of a scene have the size.
    Batches are those of `QuestionDataModule`; the category is the split, boxes are known.

    Args:
        scenes: Which scenes; None: the defaults of `ObjectScenes`.
        sizes: Sides of the objects: 10-16, 16-30, 30-55 of 112 pixels.
        splits: POPE's "random", "popular", "adversarial" (six questions about a scene); controls:
            "what" (is the red digit), "is" (the red digit a 7), "left" (of), "larger" (than).
        num_scenes: Scenes of each size.
        batch_size: Questions per batch and device.
        **settings: Those of `QuestionDataModule`.

    Raises:
        ValueError: A number out of range, or scenes of fewer than three objects.
    """

    def __init__(
        self,
        scenes: ObjectScenes | None = None,
        sizes: Sequence[Literal["tiny", "medium", "large"]] = ("tiny", "medium", "large"),
        splits: Sequence[TinyPopeSet] = ("random", "popular", "adversarial", "left", "larger"),
        num_scenes: int = 500,
        batch_size: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **settings)
        if num_scenes < 1:
            raise ValueError(f"num_scenes must be 1 or more, got {num_scenes}")
        self.scenes = ObjectScenes() if scenes is None else scenes
        self.sizes, self.splits, self.num_scenes = list(sizes), list(splits), num_scenes

    def read(self) -> list[QuestionSet]:
        """See `QuestionDataModule`."""
        sets = []
        for size in self.sizes:
            made = numbered_scenes(self.scenes, self.num_scenes, size, "tinypope")
            for split in self.splits:
                name, rows = f"{size}/{split}", scene_rows(self.scenes, made, split)
                entries = [(f"{name}: entry {row['question_id']}", row) for row in rows]
                questions = self.keep(parsed(entries, partial(parse_pope, category=split)), name)
                sets.append(QuestionSet(name, questions, SceneImages(made)))
        return sets

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        return {**super().run_info(), "scenes": self.scenes.settings()}


class SceneImages(ImageSource):
    """Scenes, drawn as their PNG files would be.

    Args:
        scenes: By the names of the files.
    """

    def __init__(self, scenes: Mapping[str, Scene]) -> None:
        self.scenes = scenes

    def size(self, name: str) -> tuple[int, int]:
        """See `ImageSource`."""
        side = self.scenes[name].canvas
        return side, side

    def load(self, name: str) -> Tensor:
        """See `ImageSource`."""
        return to_tensor(np.array(to_pil(self.scenes[name].render())))


def parse_pope(entry: Mapping[str, Any], where: str, category: str = "") -> VisualQuestion:
    """Reads an entry of a POPE file.

    Args:
        entry: What stands there.
        where: Where that is.
        category: The split.

    Raises:
        ValueError: A key is missing, or no box.
    """
    text = field_of(entry, "text", where)
    answer = field_of(entry, "label", where).strip().lower()
    # Only POPE's own questions are sure to have yes or no for an answer.
    if text.startswith("Is ") and answer not in ("yes", "no"):
        raise ValueError(f"{where}: expected yes or no as 'label', found {entry['label']!r}")
    return VisualQuestion(
        id=field_of(entry, "question_id", where),
        image=field_of(entry, "image", where),
        text=text,
        answer=answer,
        category=category,
        boxes=_boxes(entry.get("bbox"), where),
        source=where,
    )


def provenance_of(questions: Sequence[VisualQuestion]) -> str:
    """Names the copy of POPE that questions are from: a known one, or eight digits of its hash."""
    found = digest(questions)
    return KNOWN.get(found, found[:8])


def _boxes(value: Any, where: str) -> tuple[Box, ...]:
    if value is None:
        return ()
    try:
        rows = np.array(value, dtype=float).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: expected left, top, right, bottom as 'bbox'") from error
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in rows.tolist())
