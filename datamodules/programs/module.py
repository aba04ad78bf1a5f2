"""Batches of pictures, the programs that drew them, and what each line of these left behind."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ...modules.art2prog.drawing import Renderer, blank_states, to_uint8
from ...modules.art2prog.language import Program
from ...modules.art2prog.layers import Picture, execute
from ...modules.art2prog.vocabulary import BOS, PAD, Vocabulary
from ..loading import ResumableDataLoader, refuse_other_data
from .files import read_manifest, read_programs, write_programs
from .pictures import find_pictures, possible_colors, quantized, read_picture
from .sampler import ProgramSampler, Split, SplitBy


@dataclass(frozen=True)
class Example:
    """One picture with its program.

    Attributes:
        index: Number in its split.
        program: The program.
        image: (3, S, S) uint8.
        states: (lines + 1, 4, s, s) uint8, what there is before each line; None: not asked for.
    """

    index: int
    program: Program
    image: Tensor
    states: Tensor | None


class ProgramDataModule(LightningDataModule):
    """Pictures and programs, drawn when they are needed.

    A batch is a dict: `image` (B, 3, S, S) uint8; `program`, a list of B texts; `index` (B,) int64;
    for each token of the programs, padded to the longest, `token` (B, T) int64, that before it,
    `target`, itself (0 where there is none), `line` and `slot`, where it stands; and with states
    `state` (N, 4, s, s) uint8, what is there before each line and after the last, of all programs,
    `state_index` (B, T), for each token which of them, and `picture_index` (N,), whose they are.
    From a folder of pictures: `image`, `index`, and `name`, a list of B names.

    Args:
        sampler: Draws the programs.
        path: Folder of a fixed benchmark: `<split>.jsonl` and `manifest.json`, written by the first
            command that names it; None: programs are drawn anew by each command, the same ones.
        images: Folder of pictures that `predict` writes programs for; None: the test programs'.
        quantize: Whether each pixel of these takes the nearest colour that the language can make.
        num_train: Programs of an epoch.
        num_val: Validation programs.
        num_test: Test programs.
        split_by: What no two splits share: whole programs, or shapes of layers, wherever they are.
        image_size: S, in pixels.
        state_size: s, in pixels.
        with_states: Whether to draw states; a network that sees the picture alone needs none.
        batch_size: Programs per batch and device.
        cache: How many programs of training are kept as drawn (20 to 60 kB each).
        num_workers: Processes that draw; 0 draws in the main one.
        seed: Seed of the order; None takes that of `seed_everything`. That of programs is the
            sampler's.

    Raises:
        ValueError: A number out of range; a file that is no program or picture.
    """

    def __init__(
        self,
        sampler: ProgramSampler,
        path: str | None = None,
        images: str | None = None,
        quantize: bool = False,
        num_train: int = 200_000,
        num_val: int = 256,
        num_test: int = 1000,
        split_by: SplitBy = "program",
        image_size: int = 128,
        state_size: int = 64,
        with_states: bool = True,
        batch_size: int = 64,
        cache: int = 0,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "num_train": num_train,
            "num_test": num_test,
            "batch_size": batch_size,
        }
        counts |= {"image_size": image_size, "state_size": state_size}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        for name, count in {
            "num_val": num_val,
            "num_workers": num_workers,
            "cache": cache,
        }.items():
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        self.sampler, self.language = sampler, sampler.language
        self.path, self.images, self.quantize = path, images, quantize
        self.numbers: dict[Split, int] = {
            "train": num_train,
            "val": num_val,
            "test": num_test,
        }
        self.split_by = split_by
        self.image_size, self.state_size, self.with_states = (
            image_size,
            state_size,
            with_states,
        )
        self.batch_size, self.cache, self.num_workers = batch_size, cache, num_workers
        self.seed = torch.initial_seed() if seed is None else seed
        self._stored: dict[Split, list[Program]] = {}

    def prepare_data(self) -> None:
        """Writes the fixed benchmark, if it is not there."""
        if self.path is not None and read_manifest(self.path) is None:
            splits = {split: self._drawn_programs(split) for split in self.numbers}
            settings = {**self.sampler.settings(), "split_by": self.split_by}
            write_programs(self.path, self.language, splits, settings, self.image_size)

    def _drawn_programs(self, split: Split) -> Iterator[Program]:
        for number in range(self.numbers[split]):
            yield self.sampler.numbered(split, number, self.split_by)

    def setup(self, stage: str) -> None:
        """Reads the fixed benchmark.

        Raises:
            ValueError: It is of another language, or has fewer programs than are asked for.
        """
        if self.path is None or self._stored:
            return
        manifest = read_manifest(self.path)
        assert manifest is not None
        for name, value in self.language.settings().items():
            if manifest.get(name) != value:
                raise ValueError(
                    f"{self.path}/manifest.json: {name} is {manifest.get(name)}, but"
                    f" data.sampler.language.{name} {value}: use the language of the programs"
                )
        for split, number in self.numbers.items():
            path = Path(self.path) / f"{split}.jsonl"
            programs = read_programs(path, self.language)
            if len(programs) < number:
                raise ValueError(
                    f"{path}: {len(programs)} programs, asked for are {number}: lower num_{split}"
                )
            self._stored[split] = programs[:number]

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training programs, in an order of its own in each epoch."""
        return self._loader(self._programs("train", self.cache), shuffle=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation programs in order; no loader if `num_val` is 0."""
        number = self.numbers["val"]
        return self._loader(self._programs("val", number)) if number else []

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test programs in order."""
        return self._loader(self._programs("test", 0))

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the pictures of the folder, else those of the test programs, in order."""
        if self.images is None:
            return self.test_dataloader()
        colors = possible_colors(self.language) if self.quantize else None
        pictures = PictureFolder(find_pictures(self.images), self.image_size, colors)
        return self._loader(pictures, collate_fn=collate_pictures)

    def _programs(self, split: Split, cache: int) -> "ProgramExamples":
        return ProgramExamples(
            self.sampler,
            split,
            self.numbers[split],
            self.split_by,
            self._stored.get(split),
            (self.image_size, self.state_size if self.with_states else 0),
            cache,
        )

    def _loader(
        self, dataset: Dataset[Any], shuffle: bool = False, collate_fn: Any = None
    ) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        vocabulary = Vocabulary(self.language)
        return ResumableDataLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_fn or ProgramCollator(vocabulary),
            **(shard or {}),
        )

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        return {
            "data_hash": self.state_dict()["data"],
            "num_train_programs": self.numbers["train"],
            "num_val_programs": self.numbers["val"],
            "num_test_programs": self.numbers["test"],
            "rejected": dict(self.sampler.rejected),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the hash by which a checkpoint knows its data again."""
        settings = {**self.sampler.settings(), "split_by": self.split_by}
        settings |= {"image_size": self.image_size, "state_size": self.state_size}
        text = json.dumps(settings, sort_keys=True)
        return {"data": hashlib.sha256(text.encode()).hexdigest()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hash of a checkpoint with that of this data, in `fit`.

        Raises:
            ValueError: The programs differ, so that the run cannot go on where it stopped.
        """
        refuse_other_data(self, state_dict, "programs")


class ProgramExamples(Dataset[Example]):
    """Numbered programs of a split, drawn a batch at a time.

    Args:
        sampler: Where they come from.
        split: "train", "val" or "test".
        number: How many.
        split_by: See `ProgramDataModule`.
        stored: Programs that were read from a file, in place of the sampler's.
        sizes: Sides of pictures and of states; 0: no states.
        cache: How many are kept as drawn.
    """

    def __init__(
        self,
        sampler: ProgramSampler,
        split: Split,
        number: int,
        split_by: SplitBy,
        stored: list[Program] | None,
        sizes: tuple[int, int],
        cache: int,
    ) -> None:
        self.sampler, self.split, self.number, self.split_by = (
            sampler,
            split,
            number,
            split_by,
        )
        self.stored, self.cache = stored, cache
        self.renderer = Renderer(sampler.language, sizes[0])
        self.state_renderer = Renderer(sampler.language, sizes[1]) if sizes[1] else None
        self._drawn: OrderedDict[int, Example] = OrderedDict()

    def __len__(self) -> int:
        return self.number

    def program(self, index: int) -> Program:
        """Returns a program of the split."""
        if self.stored is not None:
            return self.stored[index]
        return self.sampler.numbered(self.split, index, self.split_by)

    def __getitem__(self, index: int) -> Example:
        (example,) = self.__getitems__([index])
        return example

    def __getitems__(self, indices: list[int]) -> list[Example]:
        missing = [index for index in indices if index not in self._drawn]
        found = {index: self._drawn[index] for index in indices if index in self._drawn}
        for example in self._draw(missing):
            found[example.index] = example
            if len(self._drawn) < self.cache:
                self._drawn[example.index] = example
        return [found[index] for index in indices]

    def _draw(self, indices: Sequence[int]) -> list[Example]:
        programs = [self.program(index) for index in indices]
        results = [execute(program) for program in programs]
        pictures = [row[-1] for row in results]
        images = to_uint8(self.renderer.pictures([_picture(p) for p in pictures]))
        states: list[Tensor | None] = [None] * len(programs)
        if self.state_renderer is not None and results:
            blank = blank_states(1, self.state_renderer.size)
            drawn = self.state_renderer.states([result for row in results for result in row])
            parts = torch.split(drawn, [len(row) for row in results])
            states = [torch.cat((blank, part)) for part in parts]
        return [Example(*row) for row in zip(indices, programs, images, states, strict=True)]


class ProgramCollator:
    """Makes a batch; see `ProgramDataModule`.

    Args:
        vocabulary: The tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns the batch of examples."""
        encoded = [self.vocabulary.encode(example.program) for example in examples]
        longest = max(len(tokens) for tokens, _ in encoded)
        parts = np.full((4, len(examples), longest), PAD, dtype=np.int64)
        for row, (tokens, places) in enumerate(encoded):
            number = len(tokens)
            parts[0, row, :number] = [BOS, *tokens[:-1]]
            parts[1, row, :number] = tokens
            parts[2, row, :number] = [place.line for place in places]
            parts[3, row, :number] = [place.slot for place in places]
        token, target, line, slot = torch.from_numpy(parts)
        batch = {
            "image": torch.stack([example.image for example in examples]),
            "program": [self.vocabulary.language.format(example.program) for example in examples],
            "index": torch.tensor([example.index for example in examples]),
            "token": token,
            "target": target,
            "line": line,
            "slot": slot,
        }
        states = [example.states for example in examples if example.states is not None]
        if states:
            numbers = torch.tensor([len(rows) for rows in states])
            batch["state"] = torch.cat(states)
            batch["state_index"] = line + (numbers.cumsum(0) - numbers)[:, None]
            batch["picture_index"] = torch.repeat_interleave(numbers)
        return batch


class PictureFolder(Dataset[tuple[int, str, Tensor]]):
    """Pictures of files.

    Args:
        paths: The files.
        size: S.
        colors: (n, 3) uint8 that pixels are reduced to; None: as they are.
    """

    def __init__(self, paths: Sequence[Path], size: int, colors: Tensor | None) -> None:
        self.paths, self.size, self.colors = paths, size, colors

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, str, Tensor]:
        image = read_picture(self.paths[index], self.size)
        if self.colors is not None:
            image = quantized(image, self.colors)
        return index, self.paths[index].stem, image


def collate_pictures(items: Sequence[tuple[int, str, Tensor]]) -> dict[str, Any]:
    """Makes a batch of pictures without programs."""
    indices, names, images = zip(*items, strict=True)
    return {
        "image": torch.stack(images),
        "index": torch.tensor(indices),
        "name": list(names),
    }


def _picture(result: Any) -> Picture:
    picture: Picture = result
    return picture
