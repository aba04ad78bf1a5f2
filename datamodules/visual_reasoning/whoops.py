"""WHOOPS! (Bitton-Guetta et al. 2023): what is weird about the image?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...modules.visual_reasoning.question import Question
from .module import Found, ReasoningDataModule
from .winogavil import read_csv

TASK = "An image shows something that goes against common sense. Explain what is weird about it."


class WhoopsDataModule(ReasoningDataModule):
    """WHOOPS!'s `whoops_dataset.csv`, and all files of its format.

    The data are gated and for research alone: get them from the hub (nlphuji/whoops). The set is
    `whoops`; answers are free, and a judge compares them with the designer's explanation and those
    of the crowd. Results are also reported by category.

    Args:
        root: Folder of `whoops_dataset.csv`.
        image_dir: Folder of the images; None: `root/whoops_images`.
        num_references: How many of the crowd's explanations a judge is shown.
        **settings: Those of `ReasoningDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        root: str,
        image_dir: str | None = None,
        num_references: int = 4,
        **settings: Any,
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(image_dir=image_dir or str(self.root / "whoops_images"), **settings)
        if num_references < 0:
            raise ValueError(f"num_references must be 0 or more, got {num_references}")
        self.num_references = num_references

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        path = self.root / "whoops_dataset.csv"
        for number, row in enumerate(read_csv(path), start=2):
            where = f"{path}:{number}"
            try:
                crowd = json.loads(row.get("crowd_explanations") or "[]")
                designer = row["designer_explanation"]
                name = row.get("image_id") or row["image"]
            except (KeyError, ValueError) as error:
                yield ValueError(f"{where}: expected image_id and explanations ({error})")
                continue
            references = [text for text in [designer, *crowd[: self.num_references]] if text]
            if not references or not name:
                yield ValueError(f"{where}: no image or no explanation")
                continue
            category = row.get("commonsense_category")
            yield Question(
                id=name,
                set="whoops",
                task=TASK,
                text="What is weird about this image, and why?",
                images=(name,),
                references=tuple(references),
                categories={"category": category} if category else {},
            )
