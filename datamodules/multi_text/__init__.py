"""Images with several texts each, as RealSyn makes them; one of the texts is drawn at each step."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ...modules.image_transforms import evaluation_transform, training_transform
from ..loading import ResumableDataLoader, refuse_other_data
from .dataset import HeldOutPairs, Texts, TrainingPairs, collate
from .glyphs import GLYPHS, prepare_glyphs
from .sources import PairSource, find_shards, open_source

__all__ = ["MultiTextDataModule"]


class MultiTextDataModule(LightningDataModule):
    """Batches of images, each with one of its texts, from Parquet or webdataset tar files.

    A training batch is a dict: `images` (B, 3, S, S) uint8; `texts`, B strings, each drawn anew in
    every epoch from the image's texts that are not empty; `index` (B,) int64; `num_broken`, how
    many records had to be replaced. In evaluation `captions`, for each image the list of all its
    texts, stands in place of `texts`. Which record, text and crop comes when is a function of
    (seed, epoch): a run resumes exactly.

    Parquet is copied once into Arrow files in the cache, as large as the columns that are used; tar
    files are read where they are (uncompressed, on a disk that seeks: 16 bytes per sample of
    index).

    Args:
        root: A folder; or "glyphs": drawn from the fonts inside of matplotlib into the cache, some
            45,000 images of letters and signs with their Unicode names, for trying things out.
        train: Folders, files or glob patterns of the training shards, in `root`.
        val: The same for validation; null: none.
        test: The same for test and `predict`; null: none.
        image_key: Column of the encoded image (tar files: by the suffixes of image files).
        text_keys: Columns of texts or of lists of texts; in tar files suffixes (`txt`) or keys of
            `.json` members (`json.text2`).
        text_slots: Which of a record's texts to use, from 0, from the end if negative; null: all.
        text_weights: How often each of them is drawn, relative to the others.
        caption_key: Column with the texts of evaluation, if they are others than those of training.
        image_size: S, side of the images in pixels.
        crop_area: Least and largest share of the area that a training image keeps.
        flip: Share of training images that are mirrored. 0 where texts speak of left and right.
        batch_size: Images per batch and device.
        num_workers: Processes that read; 0 reads in the main one.
        seed: Seed of order, texts and crops; null: that of `seed_everything`.
        strict: Whether a broken record (no readable image, no text) is an error; else it is
            replaced, counted, and the first is named.
        cache_dir: Where caches are; by default `$TENFOLD_CACHE`, else `~/.cache/tenfold`.

    Raises:
        ValueError: A number out of range; from `prepare_data` missing or damaged files.
    """

    def __init__(
        self,
        root: str = GLYPHS,
        train: str | list[str] = "pairs",
        val: str | list[str] | None = "val",
        test: str | list[str] | None = "held_out",
        image_key: str = "image",
        text_keys: list[str] | None = None,
        text_slots: list[int] | None = None,
        text_weights: list[float] | None = None,
        caption_key: str | None = None,
        image_size: int = 224,
        crop_area: tuple[float, float] = (0.7, 1.0),
        flip: float = 0.5,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        strict: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, count, least in (
            ("image_size", image_size, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if count < least:
                raise ValueError(f"{name} must be {least} or more, got {count}")
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise ValueError(f"crop_area: {list(crop_area)}, expected two shares in (0, 1]")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be in [0, 1], got {flip}")
        self.root = root
        self.train, self.val, self.test = train, val, test
        self.image_key, self.caption_key = image_key, caption_key
        self.texts = Texts(text_keys or ["texts"], text_slots, text_weights)
        self.image_size, self.crop_area, self.flip = image_size, crop_area, flip
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed = torch.initial_seed() if seed is None else seed
        self.strict = strict
        self.cache = cache_folder(cache_dir)
        self._sources: dict[str, PairSource] = {}

    def prepare_data(self) -> None:
        """Draws the glyphs if asked for, and fills the cache; Lightning does so once per node."""
        if self.root == GLYPHS:
            prepare_glyphs(self.cache)
        for split in ("train", "val", "test"):
            if (patterns := getattr(self, split)) is not None:
                self._open(patterns)

    def setup(self, stage: str | None = None) -> None:
        """Opens what `prepare_data` left."""
        for split in ("train", "val", "test"):
            if (patterns := getattr(self, split)) is not None and split not in self._sources:
                self._sources[split] = self._open(patterns)

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training pairs, in an order of its own in each epoch."""
        transform = training_transform(self.image_size, self.crop_area, self.flip)
        pairs = TrainingPairs(
            self._source("train"), self.texts, transform, 2 * self.image_size, self.strict
        )
        return self._loader(pairs, shuffle=True, drop_last=True, randomness=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation pairs in order; no loader if `val` is null."""
        return self._loader(self._held_out("val")) if self.val is not None else []

    def test_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the test pairs in order; no loader if `test` is null."""
        return self._loader(self._held_out("test")) if self.test is not None else []

    def predict_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the test pairs in order."""
        return self.test_dataloader()

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        counts = {f"num_{split}_pairs": len(source) for split, source in self._sources.items()}
        return {"data_hash": self._hash(), **counts}

    def state_dict(self) -> dict[str, Any]:
        """Returns the hash by which a checkpoint knows its data again."""
        return {"data": self._hash()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hash of a checkpoint with that of this data, in `fit`.

        Raises:
            ValueError: The data differ, so that the run cannot go on where it stopped.
        """
        refuse_other_data(self, state_dict, "pairs")

    def _hash(self) -> str:
        """SHA-256 of names and sizes of the training shards and of what is drawn from them."""
        shards = self._shards(self.train)
        settings = [self.texts.fields, self.texts.slots, self.texts.weights, self.image_key]
        known = [[path.name, path.stat().st_size] for path in shards]
        return hashlib.sha256(json.dumps([known, settings]).encode()).hexdigest()

    def _shards(self, patterns: str | Sequence[str]) -> list[Path]:
        root = prepare_glyphs(self.cache) if self.root == GLYPHS else Path(self.root)
        return find_shards(root, patterns)

    def _open(self, patterns: str | Sequence[str]) -> PairSource:
        fields = [*self.texts.fields, *([self.caption_key] if self.caption_key else [])]
        return open_source(self._shards(patterns), self.image_key, fields, self.cache)

    def _source(self, split: str) -> PairSource:
        if split not in self._sources:
            raise RuntimeError("call prepare_data() and setup() first; a Trainer does so itself")
        return self._sources[split]

    def _held_out(self, split: str) -> HeldOutPairs:
        return HeldOutPairs(
            self._source(split),
            self.texts,
            self.caption_key,
            evaluation_transform(self.image_size),
            self.image_size,
            self.strict,
        )

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **kwargs,
            **(shard or {}),
        )


def cache_folder(given: str | None) -> Path:
    """Where what is made from data is kept: `given`, else `$TENFOLD_CACHE`, else a default."""
    root = given or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold"
    return Path(root).expanduser() / "pairs"
