"""The base of all DataModules that ask for reasoning about images."""

import hashlib
import json
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ...modules.visual_reasoning.question import Item, Question
from ..loading import ResumableDataLoader

log = logging.getLogger(__name__)

Found = Question | ValueError
SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")


class ReasoningDataModule(LightningDataModule, ABC):
    """Questions about images, for `test` and `predict`. A batch is a list of `Item`.

    Samples are dealt to ranks without padding, so that no question is asked twice. Options are put
    into an order that depends on the seed and the question alone: models prefer some letters.

    Args:
        image_dir: Folder of the images. None: there are none, and descriptions that come with the
            data stand for them.
        batch_size: Questions that are in flight together, per process.
        num_workers: Processes that read images; 0 reads in the main one.
        max_groups: Takes only so many groups (samples, with all their questions).
        subset_seed: Which ones: drawn from the sorted groups by `random.Random(subset_seed)`. None:
            the first.
        shuffle_options: Whether options are shuffled; else they stay as the file has them.
        seed: Of their order.
        strict: Whether a bad entry or a missing image is an error; else the question is left out,
            and how many were, and why, is a warning.

    Raises:
        ValueError: A number out of range.
    """

    makes_pictures: bool = False  # whether images come from elsewhere than `image_dir`

    def __init__(
        self,
        image_dir: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        max_groups: int | None = None,
        subset_seed: int | None = None,
        shuffle_options: bool = True,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size}
        limits |= {} if max_groups is None else {"max_groups": max_groups}
        for name, number in limits.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.image_dir = None if image_dir is None else Path(image_dir).expanduser()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.max_groups, self.subset_seed = max_groups, subset_seed
        self.shuffle_options, self.seed, self.strict = shuffle_options, seed, strict
        self.questions: list[Question] = []
        self.num_left_out = 0

    @abstractmethod
    def read(self) -> Iterable[Found]:
        """Yields questions with options as the file has them, or what is wrong with an entry."""

    def picture(self, name: str) -> Image.Image:
        """Returns an image, RGB.

        Raises:
            ValueError: There is no such image, or it cannot be read.
        """
        path = self._path(name)
        try:
            return Image.open(path).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"image {path} cannot be read: {error}") from error

    def has_picture(self, name: str) -> bool:
        """Whether there is such an image."""
        return self._path(name).is_file()

    def setup(self, stage: str | None = None) -> None:
        """Reads the questions and looks whether their images are there.

        Raises:
            ValueError: Not one question; with `strict`, the first bad entry or missing image.
        """
        if self.questions:
            return
        kept = self._subset(self.keep(self.read()))
        if not kept:
            raise ValueError(f"{type(self).__name__}: not one question that can be asked")
        self.questions = [q.shuffled(self.seed) if self.shuffle_options else q for q in kept]

    def keep(self, found: Iterable[Found]) -> list[Question]:
        """Returns the questions that can be asked.

        Args:
            found: Questions and what is wrong with others.

        Raises:
            ValueError: With `strict` the first that was found; or two questions have one id.
        """
        kept: list[Question] = []
        errors: list[ValueError] = []
        ids: set[tuple[str, str]] = set()
        for item in found:
            problem = item if isinstance(item, ValueError) else self._problem(item)
            if problem is not None:
                if self.strict:
                    raise problem
                errors.append(problem)
                continue
            assert isinstance(item, Question)
            if (item.set, item.id) in ids:
                raise ValueError(f"two questions of {item.set} have the id {item.id!r}")
            ids.add((item.set, item.id))
            kept.append(item)
        if errors:
            self.num_left_out = len(errors)
            name = type(self).__name__
            log.warning("%s: left out %d questions, first: %s", name, len(errors), errors[0])
        return kept

    def item(self, question: Question) -> Item:
        """Returns a question with its images."""
        if self.image_dir is None and not self.makes_pictures:
            return Item(question, [None] * len(question.images))
        return Item(question, [self.picture(name) for name in question.images])

    def pool(self) -> "ReasoningItems":
        """Returns what solved examples may be taken from: the questions themselves."""
        return ReasoningItems(self, self.questions)

    def transfer_batch_to_device(
        self, batch: list[Item], device: torch.device, dataloader_idx: int
    ) -> list[Item]:
        """Leaves questions and images where they are."""
        return batch

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the questions in order."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            ReasoningItems(self, self.questions),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=list,
            **(shard or {}),
        )

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the questions in order."""
        return self.test_dataloader()

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        counts: dict[str, int] = {}
        for question in self.questions:
            counts[question.set] = counts.get(question.set, 0) + 1
        return {
            "data_hash": digest(self.questions),
            "num_questions": counts,
            "num_left_out": self.num_left_out,
        }

    def _subset(self, questions: list[Question]) -> list[Question]:
        if self.max_groups is None:
            return questions
        groups = list(dict.fromkeys(question.group for question in questions))
        if self.subset_seed is None:
            chosen = groups[: self.max_groups]
        else:
            number = min(self.max_groups, len(groups))
            chosen = random.Random(self.subset_seed).sample(sorted(groups), number)
        wanted = set(chosen)
        return [question for question in questions if question.group in wanted]

    def _problem(self, question: Question) -> ValueError | None:
        if self.makes_pictures:
            return None
        where = f"question {question.id} of {question.set}"
        if self.image_dir is None:
            if len(question.captions) == len(question.images):
                return None
            return ValueError(f"{where} has no descriptions of its images: give image_dir")
        missing = [name for name in question.images if not self.has_picture(name)]
        if not missing:
            return None
        return ValueError(f"{where}: there is no image {self.image_dir / missing[0]}")

    def _path(self, name: str) -> Path:
        assert self.image_dir is not None
        paths = [self.image_dir / f"{name}{suffix}" for suffix in SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0])


class ReasoningItems(Dataset[Item]):
    """Questions with their images, which are read when they are asked for.

    Args:
        data: Whose images they are.
        questions: Which.
    """

    def __init__(self, data: ReasoningDataModule, questions: Sequence[Question]) -> None:
        self.data, self.questions = data, questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Item:
        return self.data.item(self.questions[index])


def digest(questions: Iterable[Question]) -> str:
    """SHA-256 of what is asked and what is right, in its order, as 64 hexadecimal digits."""
    rows = [(q.set, q.id, q.text, q.images, q.options, q.answers, q.references) for q in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
