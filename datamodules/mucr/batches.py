"""What both sources of pairs share: batches of groups."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ...modules.mucr.pair import PairGroup
from ..loading import ResumableDataLoader
from ..visual_questions.questions import to_tensor


class GroupDataset(Dataset[PairGroup], ABC):
    """Groups by their number."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> PairGroup:
        """Returns a group."""


class PairGroupDataModule(LightningDataModule, ABC):
    """Batches of G groups of K pairs of cause and effect.

    A batch is a dict: `pairs`, G lists of K `CausalPair`; `asked` (G, K) bool, whether a pair is
    asked about (the others only lend their effects); `groups`, their names; `sources`, how
    the siblings were found (see `PairGroup`); and, if `image_size` is given, `images`
    (G, K, 2, 3, S, S) float32 in [0, 1], of cause and effect.

    Groups are dealt to ranks without padding, so that no pair is asked about twice.

    Args:
        image_size: S: pictures are resized to squares of so many pixels. None: no tensors, for
            models that take the pictures as they are.
        batch_size: Groups per batch and device.
        num_workers: Processes that read or draw; 0 does so in the main one.
        seed: Of the order in training; None takes that of `seed_everything`.

    Raises:
        ValueError: A number below 1 (0 for workers).
    """

    def __init__(
        self,
        image_size: int | None = None,
        batch_size: int = 12,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size, "image_size": image_size or 1}
        for name, number in limits.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.seed = torch.initial_seed() if seed is None else seed

    @abstractmethod
    def dataset(self, split: str) -> GroupDataset | None:
        """Returns the groups of "train", "val" or "test"; None if there are none."""

    @abstractmethod
    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training groups, in an order of its own in each epoch.

        Raises:
            ValueError: There are none.
        """
        groups = self.dataset("train")
        if groups is None:
            raise ValueError("no pairs to train with: set data.init_args.train_root to a folder")
        return self._loader(groups, shuffle=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation groups in order; no loader if there are none."""
        groups = self.dataset("val")
        return [] if groups is None else self._loader(groups)

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test groups in order."""
        groups = self.dataset("test")
        assert groups is not None
        return self._loader(groups)

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the test groups in order."""
        return self.test_dataloader()

    def _loader(self, groups: GroupDataset, shuffle: bool = False) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            groups,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and self.image_size is not None,
            collate_fn=partial(collate, image_size=self.image_size),
            **(shard or {}),
        )


def collate(groups: Sequence[PairGroup], image_size: int | None) -> dict[str, Any]:
    """Makes a batch; see `PairGroupDataModule`."""
    batch: dict[str, Any] = {
        "pairs": [list(group.pairs) for group in groups],
        "asked": torch.tensor([group.asked for group in groups]),
        "groups": [group.id for group in groups],
        "sources": [group.source for group in groups],
    }
    if image_size is not None:
        batch["images"] = torch.stack([_images(group, image_size) for group in groups])
    return batch


def _images(group: PairGroup, side: int) -> Tensor:
    """Returns (K, 2, 3, side, side)."""
    pictures = []
    for pair in group.pairs:
        for image in pair.images:
            sized = image if image.size == (side, side) else image.resize((side, side))
            pictures.append(to_tensor(np.array(sized.convert("RGB"))))
    return torch.stack(pictures).reshape(-1, 2, 3, side, side)
