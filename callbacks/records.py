"""The one way out for predictions and per-item results: whole or absent, on any number of ranks."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..modules.files import atomic_write


class RecordWriter(Callback):
    """Writes what `predict_step` and `test_step` return, item by item.

    `predict_step` returns a list of records, dicts with an `id`. Each goes to the module's
    `save_prediction(record, folder)` if it has one, after the DataModule's `decode(record)`, if it
    has one, has added what only the owner of the data can tell (text for token ids, say).
    `predictions/manifest.jsonl` lists every record.

    `test_step` may return `{"records": [...]}`, each with `id`, `row`, `group` and a value per
    metric; they become `records.jsonl`, which `tenfold study` compares item by item. What it
    returns as `predictions`, all that was said of each item, becomes `predictions.jsonl`, which
    `tenfold score` reads.

    Tensors become lists. Ranks write parts of their own, which rank 0 joins in rank order; a
    sample that a distributed sampler repeated is written once.
    """

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Path, IO[str]]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens this rank's part of the manifest."""
        self._open(trainer, "predictions", "predictions/manifest.jsonl")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Saves the records of one batch."""
        decode = getattr(trainer.datamodule, "decode", None)  # type: ignore[attr-defined]
        records = [plain(decode(record) if decode else record) for record in outputs or []]
        save = getattr(pl_module, "save_prediction", None)
        if save is not None:
            folder = self._parts["predictions"][0].parent
            for record in records:
                save(record, folder)
        self._write("predictions", records)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the parts."""
        self._join(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens this rank's part of the records."""
        for name in ("records", "predictions"):
            self._open(trainer, name, f"{name}.jsonl")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the records of one batch."""
        if isinstance(outputs, Mapping):
            for name in self._parts:
                self._write(name, (plain(record) for record in outputs.get(name, [])))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the parts."""
        self._join(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drops unfinished parts after an error."""
        for _, part in self._parts.values():
            part.close()
            Path(part.name).unlink(missing_ok=True)
        self._parts = {}

    def _open(self, trainer: Trainer, name: str, file: str) -> None:
        path = Path(trainer.default_root_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path, trainer.global_rank)
        self._parts[name] = (path, part.open("w", encoding="utf-8"))

    def _write(self, name: str, records: Iterable[Any]) -> None:
        for record in records:
            self._parts[name][1].write(json.dumps(record) + "\n")

    def _join(self, trainer: Trainer) -> None:
        paths = [path for path, _ in self._parts.values()]
        for _, part in self._parts.values():
            part.close()
        self._parts = {}
        trainer.strategy.barrier("records written")
        if trainer.is_global_zero:
            for path in paths:
                join_parts([part_of(path, rank) for rank in range(trainer.world_size)], path)
        trainer.strategy.barrier("records joined")


def part_of(path: Path, rank: int) -> Path:
    """Where rank `rank` writes its share of `path`."""
    return path.with_name(f".{path.name}.{rank}")


def join_parts(parts: list[Path], path: Path) -> None:
    """Joins JSON-lines files into `path` and removes them.

    Repeated lines are written once; if all parts are empty, there is no file.
    """
    seen: set[str] = set()
    with atomic_write(path, "w") as file:
        for part in parts:
            for line in part.read_text(encoding="utf-8").splitlines():
                if line not in seen:
                    seen.add(line)
                    file.write(line + "\n")
    if not seen:
        path.unlink()
    for part in parts:
        part.unlink()


def plain(value: Any) -> Any:
    """Turns tensors inside a record into numbers and lists, and NaN into None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
