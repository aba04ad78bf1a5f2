"""The base of all DataModules that ask questions about images."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ..loading import ResumableDataLoader
from .questions import ImageSource, VisualQuestion

log = logging.getLogger(__name__)

Found = VisualQuestion | ValueError


@dataclass(frozen=True)
class QuestionSet:
    """Questions that are counted together.

    Args:
        name: "dataset/split".
        questions: In the order of their file.
        images: Where their images come from.
    """

    name: str
    questions: list[VisualQuestion]
    images: ImageSource


class QuestionDataModule(LightningDataModule, ABC):
    """Asks a benchmark's questions; one dataloader per set of questions, in the order of `names`.

    For evaluation: `validate`, `test` and `predict` get the same loaders. Samples are dealt to
    ranks without padding, so that no question is asked twice.

    A batch of B questions is a dict of lists:

    - `images`: float32 tensors (3, H, W) in [0, 1], each of the size of its file.
    - `questions`: texts, with the suffix of the prompt.
    - `answers`: what is right; "" where nothing is known.
    - `question_ids`: texts, unique in a set.
    - `sets`: "dataset/split", the same for all of a batch.
    - `categories`: what the benchmark reports by.
    - `image_names`: as the question file has them.
    - `boxes`: float32 tensors (n, 4): left, top, right, bottom of the objects asked about, as
      shares of the image; n is 0 where none are known.
    - `extras`: dicts with whatever else the benchmark has.

    Args:
        prompt_suffix: Follows each question.
        batch_size: Questions per batch and device.
        num_workers: Processes that read images; 0 reads in the main one.
        max_questions: Asks only the first so many of each set.
        min_image_side: Least width and height in pixels: the side of a patch of the encoder.
        strict: Whether a bad entry, a missing or too small image is an error; else the question is
            left out, and how many were is a warning.

    Raises:
        ValueError: A number below 1 (0 for workers).
    """

    def __init__(
        self,
        prompt_suffix: str = "",
        batch_size: int = 8,
        num_workers: int = 0,
        max_questions: int | None = None,
        min_image_side: int = 14,
        strict: bool = True,
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size, "min_image_side": min_image_side}
        limits |= {} if max_questions is None else {"max_questions": max_questions}
        for name, number in limits.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.prompt_suffix = prompt_suffix
        self.batch_size, self.num_workers = batch_size, num_workers
        self.max_questions, self.min_image_side, self.strict = max_questions, min_image_side, strict
        self.sets: list[QuestionSet] = []

    @abstractmethod
    def read(self) -> list[QuestionSet]:
        """Reads the sets of questions; `keep` decides about bad entries."""

    @property
    def names(self) -> list[str]:
        """Names of the sets, in the order of the dataloaders; known after `setup`."""
        return [questions.name for questions in self.sets]

    def setup(self, stage: str | None = None) -> None:
        """Reads the questions and looks at each image's head.

        Raises:
            ValueError: A set without a question; with `strict`, the first bad entry or image.
        """
        if not self.sets:
            self.sets = [self._check(questions) for questions in self.read()]

    def keep(self, found: Iterable[Found], name: str) -> list[VisualQuestion]:
        """Returns the questions; raises the first error, or counts errors if not `strict`.

        Args:
            found: Questions and what is wrong with others.
            name: Of the set.

        Raises:
            ValueError: With `strict` the first that was found; or two questions have one id.
        """
        kept, errors = [], []
        for item in found:
            if isinstance(item, ValueError):
                if self.strict:
                    raise item
                errors.append(item)
            else:
                kept.append(item)
        if errors:
            log.warning("%s: left out %d questions, first: %s", name, len(errors), errors[0])
        seen: dict[str, str] = {}
        for question in kept:
            if question.id in seen:
                raise ValueError(
                    f"{question.source}: the question id {question.id!r} is that of "
                    f"{seen[question.id]} as well"
                )
            seen[question.id] = question.source
        return kept

    def val_dataloader(self) -> list[ResumableDataLoader]:
        """One loader for each set."""
        return [self._loader(questions) for questions in self.sets]

    def test_dataloader(self) -> list[ResumableDataLoader]:
        """One loader for each set."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[ResumableDataLoader]:
        """One loader for each set."""
        return self.val_dataloader()

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        digests = {questions.name: digest(questions.questions) for questions in self.sets}
        whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        counts = {questions.name: len(questions.questions) for questions in self.sets}
        return {"data_hash": whole, "num_questions": counts, "prompt_suffix": self.prompt_suffix}

    def _check(self, questions: QuestionSet) -> QuestionSet:
        """Leaves out questions whose image is missing or too small, or raises."""
        problems: dict[str, str] = {}
        found: list[Found] = []
        for question in questions.questions[: self.max_questions]:
            if question.image not in problems:
                problems[question.image] = self._problem(questions.images, question.image)
            problem = problems[question.image]
            found.append(ValueError(f"{question.source}: {problem}") if problem else question)
        kept = self.keep(found, questions.name)
        if not kept:
            raise ValueError(f"{questions.name}: not one question that can be asked")
        return replace(questions, questions=kept)

    def _problem(self, images: ImageSource, name: str) -> str:
        try:
            width, height = images.size(name)
        except ValueError as error:
            return str(error)
        if min(width, height) >= self.min_image_side:
            return ""
        least = self.min_image_side
        return f"image {name} has {width}x{height} pixels, a patch of the encoder {least}x{least}"

    def _loader(self, questions: QuestionSet) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            QuestionDataset(questions, self.prompt_suffix),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **(shard or {}),
        )


class QuestionDataset(Dataset[dict[str, Any]]):
    """Items of the batches that `QuestionDataModule` describes.

    Args:
        questions: What is asked.
        prompt_suffix: Follows each question.
    """

    def __init__(self, questions: QuestionSet, prompt_suffix: str = "") -> None:
        self.questions, self.prompt_suffix = questions, prompt_suffix

    def __len__(self) -> int:
        return len(self.questions.questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        question = self.questions.questions[index]
        try:
            image = self.questions.images.load(question.image)
        except ValueError as error:  # a file with a good head and a bad body
            raise ValueError(f"{question.source}: {error}") from error
        return {
            "images": image,
            "questions": question.text + self.prompt_suffix,
            "answers": question.answer,
            "question_ids": question.id,
            "sets": self.questions.name,
            "categories": question.category,
            "image_names": question.image,
            "boxes": _shares(question, image),
            "extras": dict(question.extra),
        }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Makes a batch of items: each key with the list of its values."""
    return {key: [item[key] for item in items] for key in items[0]}


def digest(questions: Iterable[VisualQuestion]) -> str:
    """SHA-256 of images, texts and answers in their order, as 64 hexadecimal digits."""
    rows = [(question.image, question.text, question.answer) for question in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def parsed(
    entries: Iterable[tuple[str, dict[str, Any] | ValueError]],
    parse: Callable[[dict[str, Any], str], VisualQuestion],
) -> Iterable[Found]:
    """Parses entries; yields what is wrong with those that cannot be."""
    for where, entry in entries:
        if isinstance(entry, ValueError):
            yield entry
            continue
        try:
            yield parse(entry, where)
        except ValueError as error:
            yield error


def _shares(question: VisualQuestion, image: Tensor) -> Tensor:
    """Boxes as shares of the image, (n, 4)."""
    height, width = image.shape[1:]
    boxes = torch.tensor(question.boxes, dtype=torch.float32).reshape(-1, 4)
    return boxes / torch.tensor([width, height, width, height])
