"""Images with several captions each, as retrieval benchmarks list them."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ...modules.image_transforms import evaluation_transform
from ..images import open_image
from ..loading import ResumableDataLoader
from .dataset import collate

log = logging.getLogger(__name__)


class CaptionDataModule(LightningDataModule):
    """Test images with captions from a JSON list, as the Karpathy splits of Flickr30k and COCO.

    A batch is a dict: `images` (B, 3, S, S) uint8, `captions`, for each image a list of strings,
    empty where the image cannot be read; `index` (B,) int64; `num_broken`.

    Args:
        annotations: JSON: a list of `{"image": "folder/name.jpg", "caption": [...]}`, the caption
            one text or several (`flickr30k_test.json`, `coco_test.json`).
        root: Folder of the images.
        image_size: S.
        batch_size: Images per batch and device.
        num_workers: Processes that read.

    Raises:
        ValueError: From `setup`: the list is missing or something else.
    """

    def __init__(
        self,
        annotations: str,
        root: str,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.annotations, self.root = Path(annotations), Path(root)
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self._entries: list[tuple[Path, list[str]]] = []

    def setup(self, stage: str | None = None) -> None:
        """Reads the list."""
        try:
            entries: list[Any] = json.loads(self.annotations.read_text("utf-8"))
            for entry in entries:
                caption = entry["caption"]
                texts = [caption] if isinstance(caption, str) else list(caption)
                self._entries.append((self.root / entry["image"], texts))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"annotations: {self.annotations} is no JSON list of image and caption: {error!r}"
            ) from error

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the images in order."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            CaptionedImages(self._entries, self.image_size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **(shard or {}),
        )


class CaptionedImages(Dataset[dict[str, Any]]):
    """Items of the batches that `CaptionDataModule` describes.

    Args:
        entries: Image files and their captions.
        image_size: S.
    """

    def __init__(self, entries: list[tuple[Path, list[str]]], image_size: int) -> None:
        self.entries, self.image_size = entries, image_size
        self.transform = evaluation_transform(image_size)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, captions = self.entries[index]
        num_broken = 0
        try:
            image = self.transform(open_image(path))
        except ValueError as error:
            log.warning("left out: %s", error)
            image = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
            captions, num_broken = [], 1
        return {"images": image, "captions": captions, "index": index, "num_broken": num_broken}
