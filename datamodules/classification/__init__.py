"""Images with labels, for zero-shot classification, linear probes and robustness."""

import logging
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ...modules.image_transforms import evaluation_transform
from ...modules.metrics.classification import IGNORED, ScoreName
from ..loading import ResumableDataLoader
from ..multi_text import cache_folder
from ..multi_text.dataset import collate, read_image
from ..multi_text.glyphs import GLYPHS, prepare_glyphs
from ..multi_text.sources import PairSource, find_shards, open_source
from .names import DEFAULT_TEMPLATES, templates
from .readers import BENCHMARKS, LabelledImages, open_benchmark

__all__ = ["ClassificationDataModule"]

log = logging.getLogger(__name__)

PAIRS = "pairs"


class ClassificationDataModule(LightningDataModule):
    """Labelled images of a benchmark, in order and without augmentation.

    A batch is a dict: `images` (B, 3, S, S) uint8, the shorter side resized and the middle cut out;
    `label` (B,) int64, -100 for an image that cannot be read; `index` (B,) int64; `num_broken`.

    Nothing is downloaded.

    Args:
        dataset: One of RealSyn's 20: food101, cifar10, cifar100, birdsnap, sun397, cars, aircraft,
            dtd, pets, caltech101, flowers, stl10, eurosat, resisc45, kitti, country211, ucf101,
            hateful_memes, sst2, imagenet; for robustness imagenet_v2, imagenet_a, imagenet_r,
            imagenet_sketch, objectnet; "folders": `train/CLASS/` and `test/CLASS/` with images
            (also birdsnap's, and of ucf101 the middle frames); or "pairs": Parquet with a column of
            labels, as `MultiTextDataModule` reads it.
        root: Where it is: torchvision's `root` where it has the data set; with "pairs" also
            "glyphs".
        train: With "pairs": the training shards in `root`.
        test: With "pairs": the test shards in `root`.
        label_key: With "pairs": the column; records where it is null or empty are left out.
        label_pattern: With "pairs": a regular expression searched for in the label, whose first
            group is the class; records without it are left out. null: the label is the class.
        min_count: With "pairs": classes with fewer training images are left out.
        templates: Texts with `{c}` in place of the class; null: those of `clip-benchmark`.
        image_size: S.
        batch_size: Images per batch and device.
        num_workers: Processes that read.
        cache_dir: As of `MultiTextDataModule`.

    Raises:
        ValueError: No such data set; from `setup`: it is not there.
    """

    def __init__(
        self,
        dataset: str,
        root: str,
        train: str | list[str] = "pairs",
        test: str | list[str] = "held_out",
        label_key: str = "class",
        label_pattern: str | None = None,
        min_count: int = 1,
        templates: list[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if dataset not in (*BENCHMARKS, PAIRS):
            raise ValueError(f"dataset: {dataset!r} is none of {', '.join([*BENCHMARKS, PAIRS])}")
        self.dataset, self.root = dataset, root
        self.train, self.test = train, test
        self.label_key, self.min_count = label_key, min_count
        self.label_pattern = None if label_pattern is None else re.compile(label_pattern)
        self._templates = templates
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.cache = cache_folder(cache_dir)
        self._images: dict[bool, LabelledImages] = {}

    @property
    def class_names(self) -> list[str]:
        """What the labels are called, in their order; known after `setup`."""
        return self._images[False].classes

    @cached_property
    def templates(self) -> list[str]:
        """Texts with `{c}` in place of the class."""
        if self._templates is not None:
            return self._templates
        if self.dataset == PAIRS:
            return list(DEFAULT_TEMPLATES)
        return templates(BENCHMARKS[self.dataset].templates)

    @property
    def metric(self) -> ScoreName:
        """What the data set is reported by: "accuracy", "mean_per_class" or "roc_auc"."""
        return "accuracy" if self.dataset == PAIRS else BENCHMARKS[self.dataset].metric

    def prepare_data(self) -> None:
        """Fills the cache of "pairs"."""
        if self.dataset == PAIRS:
            for patterns in (self.train, self.test):
                self._source(patterns)

    def setup(self, stage: str | None = None) -> None:
        """Opens the test images."""
        if not self._images:
            self._images[False] = self._open(train=False)

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training images, for a linear probe: in order, as they are."""
        if True not in self._images:
            self._images[True] = self._open(train=True)
        return self._loader(self._images[True])

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test images in order."""
        return self._loader(self._images[False])

    def _open(self, train: bool) -> LabelledImages:
        if self.dataset != PAIRS:
            return open_benchmark(self.dataset, Path(self.root), train)
        labels = self._labels(self._source(self.train))
        counts = {name: labels.count(name) for name in sorted({x for x in labels if x})}
        classes = [name for name, count in counts.items() if count >= self.min_count]
        if len(classes) < 2:
            raise ValueError(
                f"data: {len(classes)} class(es) in {self.root}, column {self.label_key!r}: at "
                "least 2 are needed"
            )
        source = self._source(self.train if train else self.test)
        return LabelledPairs(source, self._labels(source), classes)

    def _source(self, patterns: str | list[str]) -> PairSource:
        root = prepare_glyphs(self.cache) if self.root == GLYPHS else Path(self.root)
        return open_source(find_shards(root, patterns), "image", [self.label_key], self.cache)

    def _labels(self, source: PairSource) -> list[str | None]:
        """The class of each record, None where it has none."""
        found: list[str | None] = []
        for value in source.column(self.label_key):
            label = str(value) if value else None
            if label is not None and self.label_pattern is not None:
                match = self.label_pattern.search(label)
                label = match.group(1) if match else None
            found.append(label)
        return found

    def _loader(self, images: LabelledImages) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            LabelledSamples(images, self.image_size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
            **(shard or {}),
        )


class LabelledPairs:
    """Records of pairs that have a class.

    Args:
        source: The records.
        labels: The class of each, None for none.
        classes: Which classes count.
    """

    def __init__(self, source: PairSource, labels: list[str | None], classes: list[str]) -> None:
        self.source, self.classes = source, classes
        label_of = {name: label for label, name in enumerate(classes)}
        self.rows = [(k, label_of[x]) for k, x in enumerate(labels) if x in label_of]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Reads an image and its label."""
        row, label = self.rows[index]
        return read_image(self.source[row]), label


class LabelledSamples(Dataset[dict[str, Any]]):
    """Items of the batches that `ClassificationDataModule` describes.

    Args:
        images: Where they are.
        image_size: S.
    """

    def __init__(self, images: LabelledImages, image_size: int) -> None:
        self.images, self.image_size = images, image_size
        self.transform = evaluation_transform(image_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        num_broken = 0
        try:
            image, label = self.images[index]
            pixels: Tensor = self.transform(image)
        except ValueError as error:
            log.warning("left out: %s", error)
            pixels = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
            label, num_broken = IGNORED, 1
        return {"images": pixels, "label": label, "index": index, "num_broken": num_broken}


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate(items)
    batch["label"] = torch.tensor(batch["label"])
    return batch
