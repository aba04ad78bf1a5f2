"""Scenes that are made, not collected: objects, relations, questions, captions, causes, effects.

One mechanism (`scene`) draws them. `ObjectScenes` asks about digits (TinyPOPE) and about shapes
(captions), `CauseEffectScenes` has before and after (MuCR); `files` writes what benchmarks read.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ..loading import ResumableDataLoader, refuse_other_data
from .cause_effect import CauseEffectScenes
from .objects import ObjectScenes
from .questions import QUESTION_KINDS
from .scene import Example, Question, Scene, SceneObject, Scenes, Split

__all__ = [
    "QUESTION_KINDS",
    "CauseEffectScenes",
    "Example",
    "ObjectScenes",
    "Question",
    "Scene",
    "SceneDataModule",
    "SceneObject",
    "Scenes",
]

IGNORED = -100


class SceneDataModule(LightningDataModule):
    """Batches of pictures with questions and answers, drawn when they are needed.

    A batch is a dict: `images` (B, K, 3, S, S) float32 in [0, 1]; `questions`, `answers`, `kinds`:
    for each example a list of strings; `group`, a list of B strings; `index` and `scene` (B,)
    int64; `boxes` (B * K, O, 4) float32, left, top, right, bottom as shares of the picture, and
    `box_labels` (B * K, O, 2) int64, colour and kind from 1; where a picture has fewer objects,
    boxes are empty and labels -100.

    Args:
        scenes: Where the examples come from.
        num_train: Training scenes of an epoch.
        num_val: Validation scenes; each comes with `questions_per_scene` questions.
        num_test: Test scenes; likewise. `predict` answers the test's.
        batch_size: Examples per batch and device.
        num_workers: Processes that draw; 0 draws in the main one.
        seed: Seed of the order; None takes that of `seed_everything`. That of the scenes is theirs.

    Raises:
        ValueError: A number below 1 (0 for `num_val` and workers).
    """

    def __init__(
        self,
        scenes: Scenes,
        num_train: int = 64000,
        num_val: int = 64,
        num_test: int = 500,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"num_train": num_train, "num_test": num_test, "batch_size": batch_size}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        for name, count in {"num_val": num_val, "num_workers": num_workers}.items():
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        self.scenes = scenes
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed = torch.initial_seed() if seed is None else seed

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training scenes, in an order of its own in each epoch."""
        return self._loader("train", self.num_train, shuffle=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation questions in order; no loader if `num_val` is 0."""
        number = self.num_val * self.scenes.questions_per_scene
        return self._loader("val", number) if number else []

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test questions in order."""
        return self._loader("test", self.num_test * self.scenes.questions_per_scene)

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the test questions in order."""
        return self.test_dataloader()

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        return {
            "data_hash": self.state_dict()["data"],
            "num_train_scenes": self.num_train,
            "num_val_questions": self.num_val * self.scenes.questions_per_scene,
            "num_test_questions": self.num_test * self.scenes.questions_per_scene,
            "scenes": self.scenes.settings(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the hashes by which a checkpoint knows its data again."""
        settings = {"class": type(self.scenes).__name__, **self.scenes.settings()}
        found = {"data": settings, "words": sorted(self.scenes.vocabulary)}
        return {name: _digest(value) for name, value in found.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hashes of a checkpoint with those of this data, in `fit`.

        Raises:
            ValueError: The scenes differ, so that the run cannot go on where it stopped.
        """
        refuse_other_data(self, state_dict, "scenes")

    def _loader(self, split: Split, number: int, shuffle: bool = False) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        per_scene = 1 if split == "train" else self.scenes.questions_per_scene
        return ResumableDataLoader(
            SceneExamples(self.scenes, split, number, per_scene),
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **(shard or {}),
        )


class SceneExamples(Dataset[tuple[int, int, Example]]):
    """Numbered examples of a split.

    Args:
        scenes: Where they come from.
        split: "train", "val" or "test".
        number: How many.
        per_scene: How many in turn are about the same scene.
    """

    def __init__(self, scenes: Scenes, split: Split, number: int, per_scene: int) -> None:
        self.scenes, self.split, self.number, self.per_scene = scenes, split, number, per_scene

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[int, int, Example]:
        return index, index // self.per_scene, self.scenes.example(self.split, index)


def collate(examples: Sequence[tuple[int, int, Example]]) -> dict[str, Any]:
    """Makes a batch; see `SceneDataModule`."""
    indices, scenes, found = zip(*examples, strict=True)
    boxes = [box for example in found for box in example.boxes]
    labels = [label for example in found for label in example.labels]
    most = max(map(len, boxes))
    padded = np.zeros((len(boxes), most, 4), dtype=np.float32)
    padded_labels = np.full((len(boxes), most, labels[0].shape[-1]), IGNORED, dtype=np.int64)
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        padded[row, : len(box)], padded_labels[row, : len(box)] = box, label
    return {
        "images": torch.from_numpy(np.stack([example.images for example in found])),
        "questions": [[question.text for question in e.questions] for e in found],
        "answers": [[question.answer for question in e.questions] for e in found],
        "kinds": [[question.kind for question in e.questions] for e in found],
        "group": [example.group for example in found],
        "index": torch.tensor(indices),
        "scene": torch.tensor(scenes),
        "boxes": torch.from_numpy(padded),
        "box_labels": torch.from_numpy(padded_labels),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
