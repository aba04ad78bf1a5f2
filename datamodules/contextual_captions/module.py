"""The DataModule of contextual captions: batches of texts and image features."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import Dataset

from ...modules.encoders.encoder import Encoder
from ..loading import ResumableDataLoader, refuse_other_data
from .examples import CaptionExample, Examples, Split
from .facts import FactExamples
from .features import FeatureTable, PixelEncoder

BATCH_SIZE = 12


class ContextualCaptionDataModule(LightningDataModule):
    """Captioned images with the section and the page they are on.

    A batch of B images is a dict: `ids`, `captions`, `page_titles`, `section_titles`,
    `section_texts`, `page_urls`, `groups`: B strings each; `other_captions`, `depicted`: B lists of
    strings; `other_sections`: B lists of (title, text, captions); `images` (B, F) float32 features;
    `highlights`: B lists of highlights, which are lists of phrases; `references`: for each
    highlight a caption, or "". For testing and prediction also `pictures`, B PIL images or None.

    Args:
        examples: Where records come from; None: made ones, see `FactExamples`.
        encoder: Makes features of images, once: they are kept in the cache; None: 8 x 8 greys.
        batch_size: Images per batch and device.
        num_workers: Processes that read; 0 reads in the main one.
        highlights: For prediction and testing, in place of those of the records: each highlight is
            a list of phrases. Phrases that a section has not are left out of it.
        image: For prediction: the id of the one image to write captions for; None: all of the test.
        pad_images: Whether images are padded to squares before they are encoded.
        cache_dir: Where caches are; None: `$TENFOLD_CACHE`, else `~/.cache/tenfold`.
        seed: Seed of the order; None takes that of `seed_everything`.

    Raises:
        ValueError: A number below 1 (0 for workers).
    """

    def __init__(
        self,
        examples: Examples | None = None,
        encoder: Encoder | None = None,
        batch_size: int = BATCH_SIZE,
        num_workers: int = 0,
        highlights: list[list[str]] | None = None,
        image: str | None = None,
        pad_images: bool = False,
        cache_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.examples = FactExamples() if examples is None else examples
        self.encoder = PixelEncoder() if encoder is None else encoder
        self.batch_size, self.num_workers = batch_size, num_workers
        self.highlights, self.image = highlights, image
        self.pad_images, self.cache_dir = pad_images, cache_dir
        self.seed = torch.initial_seed() if seed is None else seed
        self._features: FeatureTable | None = None

    def prepare_data(self) -> None:
        """Prepares records and features, in one process."""
        self.examples.prepare()
        FeatureTable(self.examples, self.encoder, self.pad_images, self.cache_dir).prepare()

    def setup(self, stage: str | None = None) -> None:
        """Opens the features."""
        if self._features is None:
            table = FeatureTable(self.examples, self.encoder, self.pad_images, self.cache_dir)
            table.open()
            self._features = table

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training records, in an order of its own in each epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation records in order; no loader where there are none."""
        return self._loader("val") if len(self.examples.split("val")) else []

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test records in order."""
        return self._loader("test", with_pictures=True)

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the test records in order, or the one that is named."""
        return self._loader("test", with_pictures=True, only=self.image)

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return {
            "data_hash": self.state_dict()["data"],
            "num_images": {name: len(self.examples.split(name)) for name in splits},
            "examples": self.examples.identity,
            "encoder": self.encoder.identity,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the hash by which a checkpoint knows its data again."""
        settings = [self.examples.identity, self.encoder.identity, self.pad_images]
        return {"data": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hash of a checkpoint with that of this data, in `fit`.

        Raises:
            ValueError: The data differ, so that the run cannot go on where it stopped.
        """
        refuse_other_data(self, state_dict)

    def _loader(
        self,
        split: Split,
        shuffle: bool = False,
        with_pictures: bool = False,
        only: str | None = None,
    ) -> ResumableDataLoader:
        assert self._features is not None
        examples = self.examples.split(split)
        if only is not None:
            examples = [example for example in examples if example.id == only]
            if not examples:
                raise ValueError(f"image: no test image has the id {only!r}")
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        given = self.highlights if with_pictures else None
        pictures = self.examples if with_pictures else None
        return ResumableDataLoader(
            CaptionDataset(examples, self._features, pictures, given),
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


class CaptionDataset(Dataset[dict[str, Any]]):
    """Items of the batches that `ContextualCaptionDataModule` describes.

    Args:
        examples: Records.
        features: Of all images.
        pictures: Where to get pictures from; None: items have none.
        highlights: In place of those of the records; see the DataModule.
    """

    def __init__(
        self,
        examples: Sequence[CaptionExample],
        features: FeatureTable,
        pictures: Examples | None = None,
        highlights: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.examples, self.features = examples, features
        self.pictures, self.highlights = pictures, highlights

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        highlights = [list(phrases) for phrases in example.highlights]
        references = list(example.references) or [""] * len(highlights)
        if self.highlights is not None:
            text = example.section_text
            kept = ([p for p in phrases if p in text] for phrases in self.highlights)
            highlights = [list(phrases) for phrases in kept if phrases]
            references = [""] * len(highlights)
        item: dict[str, Any] = {
            "ids": example.id,
            "captions": example.caption,
            "page_titles": example.page_title,
            "section_titles": example.section_title,
            "section_texts": example.section_text,
            "other_captions": list(example.other_captions),
            "page_urls": example.page_url,
            "other_sections": list(example.other_sections),
            "groups": example.group,
            "depicted": list(example.depicted),
            "images": self.features[example.image],
            "highlights": highlights,
            "references": references,
        }
        if self.pictures is not None:
            item["pictures"] = self._picture(example.image)
        return item

    def _picture(self, number: int) -> Image.Image | None:
        assert self.pictures is not None
        try:
            return self.pictures.image(number)
        except ValueError:  # named when its feature was made
            return None


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch of items."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    batch["images"] = torch.stack(batch["images"])
    return batch
