"""DataModules of icons."""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ...modules.deepicon.representation import IconCodec
from ..loading import ResumableDataLoader, refuse_other_data
from .dataset import IconAugmentation, IconDataset, PictureFolder, collate_icons
from .generated import GeneratedIcons
from .sources import LUCIDE, IconSource
from .store import SPLITS, IconSet, load_icons, split_icons

DEFAULT_AUGMENTATION = IconAugmentation()


class IconData(LightningDataModule, ABC):
    """What all DataModules of icons share: loaders, pictures, identity.

    A batch is a dict: `image` (B, 3, S, S) float32 in [0, 1], dark on white; `types` (B, P, L)
    int64, `args` (B, P, L, 6) float32, `visible` (B, P) bool and `paint` (B, P) int64, see
    `modules.deepicon.representation`; `lengths`, a list of B lists: commands of each visible path,
    its end among them; `style` (B, 3) float32: width of strokes in units of 24, number of their cap
    and join; `index` (B,) int64; `name`, a list of B strings. `predict` reads pictures of
    `predict_root`, whose batches have `image`, `index` and `name`, else the test icons.

    Args:
        codec: Makes the tensors; the same as the model's.
        image_size: S, side of the pictures in pixels.
        batch_size: Icons per batch and device.
        num_workers: Processes that draw; 0 draws in the main one.
        seed: Seed of order and augmentation; None takes that of `seed_everything`.
        augment: What training does to icons; None: nothing.
        num_views: Augmented versions of each icon, each drawn once and kept in memory (S * S bytes)
            of each worker; None: always new ones, which takes several milliseconds each.
        predict_root: Folder of pictures, or one picture.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        codec: IconCodec,
        image_size: int,
        batch_size: int,
        num_workers: int,
        seed: int | None,
        augment: IconAugmentation | None,
        num_views: int | None,
        predict_root: str | None,
    ) -> None:
        super().__init__()
        counts = {"image_size": image_size, "batch_size": batch_size, "num_views": num_views or 1}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.codec, self.image_size, self.batch_size = codec, image_size, batch_size
        self.num_workers, self.augment, self.num_views = num_workers, augment, num_views
        self.seed = torch.initial_seed() if seed is None else seed
        self.predict_root = predict_root

    @abstractmethod
    def dataset(self, split: str) -> IconDataset:
        """Returns the icons of `train`, `val` or `test`; those of training are augmented."""

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """By which a run knows its data again."""

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads training icons, in an order of its own in each epoch."""
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads validation icons in order."""
        return self._loader(self._val) if len(self._val) else []

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads test icons in order."""
        return self._loader(self._test)

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads pictures of `predict_root`, or the test icons."""
        if self.predict_root is not None:
            return self._loader(PictureFolder(self.predict_root, self.image_size))
        return self.test_dataloader()

    @cached_property
    def _train(self) -> IconDataset:
        return self.dataset("train")

    @cached_property
    def _val(self) -> IconDataset:
        return self.dataset("val")

    @cached_property
    def _test(self) -> IconDataset:
        return self.dataset("test")

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        if self.predict_root is not None:
            return {"predict_root": self.predict_root}
        return {
            "data_hash": self.data_hash,
            "num_train_icons": len(self._train),
            "num_val_icons": len(self._val),
            "num_test_icons": len(self._test),
            "image_size": self.image_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the hash by which a checkpoint knows its data again."""
        return {"data": self.data_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hash of a checkpoint with that of this data, in `fit`.

        Raises:
            ValueError: They differ, so that the run cannot go on where it stopped.
        """
        refuse_other_data(self, state_dict, "icons")

    def _loader(self, dataset: Dataset[Any], shuffle: bool = False) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=shuffle,
            randomness=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_icons,
            **(shard or {}),
        )


class IconDataModule(IconData):
    """Icons of SVG files, split so that those of one family stay together.

    Files are read once and kept as tensors in the cache, beside a JSON manifest with the name and
    licence of each icon and, by source, what was refused and why. A family is what the name says:
    `circle-user-round` and `user-plus` are `user`. Training icons that look like a held-out one are
    left out as well.

    Args:
        sources: Where icons come from; by default the outline icons of the package `lucide`
            (`pip install 'tenfold[icons]'`). See `IconSource`.
        split_ratios: Shares of families for training, validation, test.
        max_overlap: Largest share of ink that a training icon may have in common with a held-out
            one; 1 keeps all.
        held_out: Of validation and test only icons of sources whose file name contains this text;
            the others' held-out families are left out.
        max_icons: Only so many icons of each split; None: all.
        split_seed: Of the division; the same for runs that are compared.
        overfit: Whether validation and test are the training icons, not augmented: for a test of
            whether a model can learn at all.
        cache_dir: Where caches are; by default `$TENFOLD_CACHE`, else `~/.cache/tenfold`.
        codec: See `IconData`, as for all that follow.
        image_size: Side of the pictures.
        batch_size: Icons per batch.
        num_workers: Processes that draw.
        seed: Of order and augmentation.
        augment: Of training icons.
        num_views: Augmented versions of each icon.
        predict_root: Pictures for `predict`.

    Raises:
        ValueError: Shares that do not add up to 1; later, sources that cannot be used.
        ImportError: The package `lucide` is wanted and not installed.
    """

    def __init__(
        self,
        sources: list[IconSource] | None = None,
        split_ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
        max_overlap: float = 0.85,
        held_out: str = "",
        max_icons: int | None = None,
        split_seed: int = 0,
        overfit: bool = False,
        cache_dir: str | None = None,
        codec: IconCodec = IconCodec(),  # noqa: B008 - frozen
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        augment: IconAugmentation | None = DEFAULT_AUGMENTATION,
        num_views: int | None = 8,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(
            *(codec, image_size, batch_size, num_workers, seed, augment, num_views, predict_root)
        )
        if not math.isclose(sum(split_ratios), 1) or min(split_ratios) < 0:
            raise ValueError(f"split_ratios: {split_ratios} are no shares that add up to 1")
        self.sources = sources or [IconSource(LUCIDE)]
        self.split_ratios, self.split_seed = split_ratios, split_seed
        self.max_overlap, self.held_out = max_overlap, held_out
        self.max_icons, self.overfit, self.cache_dir = max_icons, overfit, cache_dir

    @cached_property
    def icons(self) -> dict[str, IconSet]:
        """The icons of each split."""
        found = load_icons(self.sources, self.codec, self.cache_dir)
        splits = split_icons(found, self.split_ratios, self.max_overlap, self.split_seed)
        for split in SPLITS:
            icons = splits[split]
            kept = [i for i, name in enumerate(icons.names) if self._keeps(split, name)]
            splits[split] = icons.subset(kept[: self.max_icons])
        if self.overfit:
            splits |= {"val": splits["train"], "test": splits["train"]}
        return splits

    def _keeps(self, split: str, name: str) -> bool:
        return split == "train" or self.held_out in name.split("/", 1)[0]

    @property
    def data_hash(self) -> str:
        """SHA-256 of the training icons."""
        return self.icons["train"].data_hash

    def prepare_data(self) -> None:
        """Fills the cache; Lightning does so once per node."""
        if self.predict_root is None:
            load_icons(self.sources, self.codec, self.cache_dir)

    def dataset(self, split: str) -> IconDataset:
        """See `IconData`."""
        icons = self.icons[split]
        augment = self.augment if split == "train" else None
        return IconDataset(
            *(icons, icons.names, self.codec, self.image_size, augment),
            num_views=self.num_views,
            seed=self.seed,
        )

    def run_info(self) -> dict[str, Any]:
        """Adds the report of each source."""
        info = super().run_info()
        if self.predict_root is None:
            report = self.icons["train"].report
            info["sources"] = {
                name: {key: part[key] for key in ("files", "accepted", "round_trip")}
                for name, part in report.items()
            }
        return info


class GeneratedIconDataModule(IconData):
    """Icons of a few shapes that are made here; nothing is read.

    Args:
        icons: How they are made.
        num_train: Training icons.
        num_val: Validation icons.
        num_test: Test icons.
        codec: See `IconData`, as for all that follow.
        image_size: Side of the pictures.
        batch_size: Icons per batch.
        num_workers: Processes that draw.
        seed: Of order and augmentation; that of the icons is theirs.
        augment: Of training icons.
        num_views: Versions of each icon.
        predict_root: Pictures for `predict`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        icons: GeneratedIcons = GeneratedIcons(),  # noqa: B008 - frozen
        num_train: int = 20_000,
        num_val: int = 128,
        num_test: int = 256,
        codec: IconCodec = IconCodec(),  # noqa: B008 - frozen
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        augment: IconAugmentation | None = None,
        num_views: int | None = 1,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(
            *(codec, image_size, batch_size, num_workers, seed, augment, num_views, predict_root)
        )
        if min(num_train, num_test) < 1 or num_val < 0:
            raise ValueError(
                f"num_train {num_train}, num_val {num_val}, num_test {num_test}: expected 1, 0 and "
                "1 or more"
            )
        self.generated = icons
        self.numbers = {"train": num_train, "val": num_val, "test": num_test}

    @property
    def data_hash(self) -> str:
        """The settings, from which all icons follow."""
        return hashlib.sha256(repr((self.generated, self.codec)).encode()).hexdigest()

    def dataset(self, split: str) -> IconDataset:
        """See `IconData`."""
        names = [f"{split}-{index}" for index in range(self.numbers[split])]
        documents = replace(self.generated, split=SPLITS.index(split))
        augment = self.augment if split == "train" else None
        return IconDataset(
            *(documents, names, self.codec, self.image_size, augment),
            num_views=self.num_views,
            seed=self.seed,
        )
