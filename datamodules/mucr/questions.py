"""Questions about pairs of causes and effects, for models that are asked."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from ...modules.mucr.pair import PairGroup, shuffled
from ...modules.mucr.questions import TASKS, Task, questions_of
from ...modules.visual_reasoning.question import Item
from ..loading import ResumableDataLoader
from .batches import GroupDataset, PairGroupDataModule


class CausalQuestions(LightningDataModule):
    """Asks MuCR's questions about pairs from files, or drawn ones; `test` and `predict`.

    A batch is a list of `Item`: all questions about `batch_size` groups. Groups are dealt to ranks
    without padding, so that nothing is asked twice.

    Args:
        pairs: Where the pairs come from: `MuCRDataModule` or `SyntheticMuCRDataModule`; of it only
            the groups of the test are used.
        tasks: What is asked, of "c2e", "e2c", "cue" and "exp"; see `modules.mucr.questions`.
        circular: Whether each choice is asked again with its options moved on.
        num_demonstrations: Solved questions of the same task, each from another group, that come
            with each question for the strategy `icl`. Which is a function of seed and question.
        set_name: Sets are called `<set_name>/<task>`.
        option_seed: Of the orders of options and of the demonstrations.
        batch_size: Groups per batch and device. A large one keeps a server busy.
        num_workers: Processes that read or draw; 0 does so in the main one.

    Raises:
        ValueError: A number out of range, or an unknown task; from `setup` what is wrong with the
            pairs, or there are too few groups for the demonstrations.
    """

    def __init__(
        self,
        pairs: PairGroupDataModule,
        tasks: Sequence[Task] = TASKS,
        circular: bool = False,
        num_demonstrations: int = 0,
        set_name: str = "mucr",
        option_seed: int = 0,
        batch_size: int = 25,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(
                f"tasks: {list(tasks)}, expected some of c2e, e2c, cue, exp, each once"
            )
        if batch_size < 1 or min(num_workers, num_demonstrations) < 0:
            raise ValueError(
                f"batch_size {batch_size}, num_workers {num_workers}, num_demonstrations "
                f"{num_demonstrations}: expected 1, 0 and 0 or more"
            )
        self.pairs, self.tasks, self.circular = pairs, tuple(tasks), circular
        self.num_demonstrations, self.set_name = num_demonstrations, set_name
        self.option_seed, self.batch_size, self.num_workers = option_seed, batch_size, num_workers

    def setup(self, stage: str | None = None) -> None:
        """Reads the annotations."""
        self.pairs.setup("test")
        number = len(self._groups)
        if number <= self.num_demonstrations:
            raise ValueError(
                f"num_demonstrations {self.num_demonstrations} of other groups, and there are "
                f"{number} groups in all"
            )

    def transfer_batch_to_device(
        self, batch: list[Item], device: torch.device, dataloader_idx: int
    ) -> list[Item]:
        """Leaves questions and pictures where they are."""
        return batch

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the questions of all groups in order."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        ask = partial(_ask, tasks=self.tasks, name=self.set_name, seed=self.option_seed)
        return ResumableDataLoader(
            GroupsWithOthers(self._groups, self.num_demonstrations, self.option_seed),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(_collate, ask=ask, circular=self.circular),
            **(shard or {}),
        )

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the questions of all groups in order."""
        return self.test_dataloader()

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        asked = {"tasks": list(self.tasks), "circular": self.circular, "seed": self.option_seed}
        return {**self.pairs.run_info(), "num_demonstrations": self.num_demonstrations, **asked}

    @property
    def _groups(self) -> GroupDataset:
        groups = self.pairs.dataset("test")
        assert groups is not None
        return groups


class GroupsWithOthers(Dataset[tuple[PairGroup, list[PairGroup]]]):
    """Groups with others that are shown as solved examples.

    Args:
        groups: The groups.
        number: How many others come with each.
        seed: Of which.
    """

    def __init__(self, groups: GroupDataset, number: int, seed: int) -> None:
        self.groups, self.number, self.seed = groups, number, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[PairGroup, list[PairGroup]]:
        order = shuffled(len(self.groups), self.seed, "demonstrations", index)
        others = [other for other in order if other != index][: self.number]
        return self.groups[index], [self.groups[other] for other in others]


def _ask(
    group: PairGroup, circular: bool, tasks: Sequence[Task], name: str, seed: int
) -> list[Item]:
    return questions_of(group, tasks, name, circular, seed)


def _collate(
    groups: Sequence[tuple[PairGroup, list[PairGroup]]], ask: Any, circular: bool
) -> list[Item]:
    items: list[Item] = []
    for group, others in groups:
        solved: dict[str, list[Item]] = {}
        for other in others:
            seen = set()
            for item in ask(other, False):
                if item.question.set not in seen:  # one pair of each group
                    seen.add(item.question.set)
                    solved.setdefault(item.question.set, []).append(item)
        for question, pictures in ask(group, circular):
            extra = {**question.extra, "demonstrations": solved.get(question.set, [])}
            items.append(Item(replace(question, extra=extra), pictures))
    return items
