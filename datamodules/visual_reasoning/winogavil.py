"""WinoGAViL (Bitton et al. 2022): which of the images go with a cue word?"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ...modules.visual_reasoning.question import Question
from .module import Found, ReasoningDataModule

Split = Literal["5_6", "10_12", "swow"]
FILES = {"5_6": "game_5_6.csv", "10_12": "game_10_12.csv", "swow": "swow.csv"}
CAPTIONS = "ofa_image_caption_predictions.csv"
TASK = (
    "An association game. People were shown several images and a cue word, and had to choose the "
    "images that fit the cue word best, by what is seen, felt or associated with it."
)
csv.field_size_limit(1 << 24)


class WinogavilDataModule(ReasoningDataModule):
    """WinoGAViL's games, as its repository has them: `game_5_6.csv`, `game_10_12.csv`, `swow.csv`.

    The sets are `winogavil_5_6`, `winogavil_10_12` and `winogavil_swow`. The options are images,
    `<candidate>.jpg`; how many are to be chosen is said. Games on one board are one group. Results
    are Jaccard overlaps, also by the number of candidates.

    Without images (`image_dir: null`) the machine captions of the repository stand for them.

    Args:
        root: Folder of the files.
        splits: Which.
        captions: File with `img_name` and `caption`; None: that of the repository, in `root`, if it
            is there.
        **settings: Those of `ReasoningDataModule`.

    Raises:
        ValueError: No such split, or a number out of range.
    """

    def __init__(
        self,
        root: str,
        splits: Sequence[Split] = ("5_6", "10_12", "swow"),
        captions: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        unknown = sorted(set(splits) - set(FILES))
        if unknown or not splits:
            raise ValueError(f"splits: {unknown or 'none'}, expected some of {get_args(Split)}")
        self.root, self.splits = Path(root).expanduser(), list(splits)
        self.captions_file = None if captions is None else Path(captions).expanduser()

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        captions = self._read_captions()
        for split in self.splits:
            path = self.root / FILES[split]
            for number, row in enumerate(read_csv(path), start=2):
                try:
                    yield parse_game(row, f"winogavil_{split}", captions, f"{path}:{number}")
                except ValueError as error:
                    yield error

    def _read_captions(self) -> dict[str, str]:
        path = self.captions_file or self.root / CAPTIONS
        if self.captions_file is None and not path.is_file():
            return {}
        rows = read_csv(path)
        return {row["img_name"]: row["caption"] for row in rows if row.get("caption")}


def parse_game(
    row: dict[str, str], set_name: str, captions: dict[str, str], where: str
) -> Question:
    """Makes a question of a row.

    Args:
        row: Of a file, by its columns.
        set_name: Of the question.
        captions: Of images, by candidate.
        where: Names the row.

    Raises:
        ValueError: It is no game.
    """
    try:
        candidates, associations = json.loads(row["candidates"]), json.loads(row["associations"])
        cue, identity = row["cue"], row["ID"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: expected JSON lists, a cue and an ID ({error})") from error
    if not set(associations) <= set(candidates) or len(set(candidates)) != len(candidates):
        raise ValueError(f"{where}: associations are no candidates, or a candidate is there twice")
    number = len(associations)
    known = all(name in captions for name in candidates)
    return Question(
        id=identity,
        set=set_name,
        task=TASK,
        text=f'Which {number} of the images fit the cue word "{cue}" best?',
        images=tuple(candidates),
        options=tuple(candidates),
        option_images=tuple(range(len(candidates))),
        answers=tuple(sorted(candidates.index(name) for name in associations)),
        captions=tuple(captions[name] for name in candidates) if known else (),
        metric="jaccard",
        group="|".join(sorted(candidates)),
        categories={"candidates": str(len(candidates))},
        extra={"query": cue},
    )


def read_csv(path: Path) -> Iterable[dict[str, str]]:
    """Reads a file with a head line, everything as text.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"there is no {path} that can be read: {error}") from error
