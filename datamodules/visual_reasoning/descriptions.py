"""Captions and context-aware descriptions of a run, to be compared by a judge."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ...modules.cvr_llm.pairs import Pair
from ...modules.visual_reasoning.parsing import lettered
from ..loading import ResumableDataLoader

PREDICTIONS = "predictions.jsonl"


class DescriptionPairs(LightningDataModule):
    """What a run of CVR-LLM has said of images without and with a question; batches are of `Pair`.

    Args:
        run_dir: Of a `tenfold test` with CVR-LLM.
        num_samples: How many questions of each set are compared; None: all.
        seed: Of the choice.
        batch_size: Pairs in flight together, per process.

    Raises:
        ValueError: A number below 1.
    """

    def __init__(
        self,
        run_dir: str,
        num_samples: int | None = 300,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        if min(batch_size, num_samples or 1) < 1:
            raise ValueError("num_samples and batch_size must be 1 or more")
        self.run_dir = Path(run_dir).expanduser()
        self.num_samples, self.seed, self.batch_size = num_samples, seed, batch_size
        self.pairs: list[Pair] = []

    def setup(self, stage: str | None = None) -> None:
        """Reads the run.

        Raises:
            ValueError: It has no such predictions.
        """
        if self.pairs:
            return
        path = self.run_dir / PREDICTIONS
        if not path.is_file():
            raise ValueError(f"there is no {path}: give the run directory of a test of CVR-LLM")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        by_set: dict[str, list[Pair]] = {}
        for row in rows:
            pair = _pair_of(row, path)
            if pair is not None:
                by_set.setdefault(pair.set, []).append(pair)
        for name in sorted(by_set):
            pairs = sorted(by_set[name])
            if self.num_samples is not None and len(pairs) > self.num_samples:
                pairs = random.Random(self.seed).sample(pairs, self.num_samples)
            self.pairs += pairs
        if not self.pairs:
            raise ValueError(f"{path}: not one question with a caption and another description")

    def transfer_batch_to_device(
        self, batch: list[Pair], device: torch.device, dataloader_idx: int
    ) -> list[Pair]:
        """Leaves texts where they are."""
        return batch

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the pairs in order."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            _Pairs(self.pairs), batch_size=self.batch_size, collate_fn=list, **(shard or {})
        )

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        text = json.dumps(self.pairs)
        return {
            "data_hash": hashlib.sha256(text.encode()).hexdigest(),
            "num_pairs": len(self.pairs),
        }


class _Pairs(Dataset[Pair]):
    """Pairs by number."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


def _pair_of(row: dict[str, Any], path: Path) -> Pair | None:
    """Makes a pair of a row; None where there is nothing to compare."""
    if "descriptions" not in row:
        raise ValueError(f"{path}: {row.get('id')} has no descriptions: it is no run of CVR-LLM")
    texts = row["descriptions"]
    if row["error"] or texts["generic"] == texts["context"]:
        return None
    task = f"{row['task']}\n{row['question']}\n{lettered(row['options'])}".strip()
    caption, description = (_numbered(texts[name]) for name in ("generic", "context"))
    return Pair(row["id"], row["set"], row["group"], task, caption, description)


def _numbered(texts: list[str]) -> str:
    return "\n".join(f"Image {number}: {text}" for number, text in enumerate(texts, start=1))
