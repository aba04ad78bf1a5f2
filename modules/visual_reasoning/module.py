"""What modules share that ask chat models questions about images: scores, rows, pictures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import LightningModule

from ..chat import ChatBackend
from ..files import write_json
from .asking import keep_answers
from .figures import scores_figure
from .question import Item
from .rows import Row, save_picture
from .scores import ReasoningScores, Score, logged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANSWERS = "answers"  # folder of the run
SCORES = "scores.json"


class ReasoningModule(LightningModule, ABC):
    """Answers questions about images: `tenfold test` and `tenfold predict`; nothing is trained.

    A batch is a list of `Item`. A subclass answers it in `answer`, and names in `backend_names` the
    attributes that are chat backends. Their answers are kept in `answers/` of the run, unless a
    recipe says where: a run that was killed and is given again with `--overwrite` asks what is
    left, on any number of processes.

    Logged are `test/<set>/<count>` with `_chance`, `_low` and `_high` (95 %) and `_n`, and
    `parse_fail_rate`, `error_rate` and `warning_rate` of each set. `predictions.jsonl` has a row
    for each question (see `rows`), `scores.json` all scores with their breakdowns; `tenfold score`
    makes both again without a model.

    Args:
        save_pictures: Whether to write a small copy of each image, for the report.
    """

    backend_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, save_pictures: bool = True) -> None:
        super().__init__()
        self.save_pictures = save_pictures
        self.scores = ReasoningScores()
        self._found: dict[str, Score] = {}

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[Row]:
        """Answers questions; returns a row for each, in their order."""

    @property
    def run_dir(self) -> Path:
        """Where the run leaves what it leaves."""
        return Path(self.trainer.default_root_dir)

    @property
    def backends(self) -> dict[str, ChatBackend]:
        """The chat backends there are, by name."""
        found = {name: getattr(self, name) for name in self.backend_names}
        return {name: backend for name, backend in found.items() if backend is not None}

    def setup(self, stage: str) -> None:
        """Sees to it that no answer is asked for twice."""
        for name, backend in self.backends.items():
            setattr(self, name, keep_answers(backend, self.run_dir / ANSWERS))

    def test_step(
        self, batch: list[Item], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Answers and scores a batch; returns its rows, and what a study compares of them."""
        rows = self.answer(batch)
        self.scores.update(rows)
        return {"records": [record_of(row) for row in rows], "predictions": rows}

    def on_test_epoch_end(self) -> None:
        """Logs and writes the scores."""
        self._found = self.scores.compute()
        self.scores.reset()
        for name, value in logged(self._found).items():
            self.log(f"test/{name}", value, sync_dist=True)  # equal on all ranks already
        if self.trainer.is_global_zero:
            write_json(self.run_dir / SCORES, {n: s._asdict() for n, s in self._found.items()})

    def predict_step(self, batch: list[Item], batch_idx: int, dataloader_idx: int = 0) -> list[Row]:
        """Answers a batch; returns its rows."""
        return self.answer(batch)

    def pictures_of(self, item: Item) -> list[str | None]:
        """Writes small copies of an item's images; returns their files, None for what is none."""
        if not self.save_pictures:
            return []
        return [
            None if picture is None else save_picture(picture, self.run_dir)
            for picture in item.pictures
        ]

    def run_info(self) -> dict[str, Any]:
        """Returns who answered, for `metrics.json`."""
        return {"backends": {name: backend.identity for name, backend in self.backends.items()}}

    def figures(self) -> dict[str, "Figure"]:
        """Returns the scores with their intervals, beside chance."""
        return {"scores": scores_figure(self._found)} if self._found else {}


def record_of(row: Row) -> dict[str, Any]:
    """What a study compares of a row, question by question: the metric, of its set and of all."""
    metric, value = row["metric"], row["value"]
    return {"id": row["id"], "group": row["group"], metric: value, f"{row['set']}/{metric}": value}
