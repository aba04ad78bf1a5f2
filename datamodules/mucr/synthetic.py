"""Pairs of cause and effect that are drawn when they are needed."""

import hashlib
import json
from typing import Any, Literal

from ...modules.mucr.pair import CausalPair, PairGroup, shuffled
from ..scenes.cause_effect import STATEMENTS, CauseEffectScenes, CausePair
from ..scenes.scene import SPLITS, Split, to_pil
from .batches import GroupDataset, PairGroupDataModule

FalseCues = Literal["written", "other_cues"]


class DrawnGroups(GroupDataset):
    """Groups of `CauseEffectScenes`, as `SyntheticMuCRDataModule` describes."""

    def __init__(
        self, scenes: CauseEffectScenes, split: Split, number: int, false_cues: FalseCues
    ) -> None:
        self.scenes, self.split, self.number, self.false_cues = scenes, split, number, false_cues

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> PairGroup:
        name = f"{self.split}{index:05d}"
        drawn = self.scenes.group(self.split, index)
        pairs = tuple(self._pair(f"{name}-{j}", pair) for j, pair in enumerate(drawn))
        return PairGroup(name, pairs, (True,) * len(pairs), "link_id")

    def _pair(self, name: str, pair: CausePair) -> CausalPair:
        statement = pair.statement
        false_cues: tuple[str, ...] = statement.false_cues
        if self.false_cues == "other_cues":
            others = [other.cue for other in STATEMENTS if other.cue != statement.cue]
            order = shuffled(len(others), self.scenes.seed, name)
            false_cues = tuple(others[place] for place in order[: len(false_cues)])
        return CausalPair(
            id=name,
            images=(to_pil(pair.cause.render()), to_pil(pair.effect.render())),
            captions=pair.captions,
            descriptions=pair.descriptions,
            cue=statement.cue,
            false_cues=false_cues,
            references=tuple(pair.references),
            category=pair.category,
            style=pair.cause.style,
        )


class SyntheticMuCRDataModule(PairGroupDataModule):
    """Groups of four pairs of drawn pictures, with known answers, in any number.

    Statements are shared by all splits; the looks of subjects are not (see `CauseEffectScenes`), so
    that a matcher is tested on subjects it has never seen. See `PairGroupDataModule` for batches.

    Args:
        siblings: What tells the pairs of a group apart: "looks", as in the benchmark; "statement",
            so that words are enough; "nothing", so that nobody does better than chance.
        false_cues: "written": three phrases that stand in the statement's table, of which none is a
            cue anywhere, so that a model can learn the answers without pictures. "other_cues":
            the cues of three other statements, so that it cannot.
        num_train: Groups of an epoch.
        num_val: Groups; 0: no validation.
        num_test: Groups.
        image_size: Side of the pictures, in pixels.
        scene_seed: Of the scenes; another one has other subjects in its test.
        tensors: Whether batches have `images`; without, for models that take pictures.
        batch_size: See `PairGroupDataModule`.
        num_workers: See there.
        seed: See there.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        siblings: Literal["looks", "statement", "nothing"] = "looks",
        false_cues: FalseCues = "other_cues",
        num_train: int = 2400,
        num_val: int = 50,
        num_test: int = 200,
        image_size: int = 32,
        scene_seed: int = 0,
        tensors: bool = True,
        batch_size: int = 12,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(image_size if tensors else None, batch_size, num_workers, seed)
        for name, number in {"num_train": num_train, "num_test": num_test}.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if num_val < 0:
            raise ValueError(f"num_val must be 0 or more, got {num_val}")
        self.scenes = CauseEffectScenes(siblings, image_size, scene_seed)
        self.false_cues: FalseCues = false_cues
        self.numbers = {"train": num_train, "val": num_val, "test": num_test}

    def dataset(self, split: str) -> DrawnGroups | None:
        """See `PairGroupDataModule`."""
        assert split in SPLITS
        known: Split = split  # type: ignore[assignment]
        number = self.numbers[split]
        return DrawnGroups(self.scenes, known, number, self.false_cues) if number else None

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        settings = {**self.scenes.settings(), "false_cues": self.false_cues, **self.numbers}
        text = json.dumps(settings, sort_keys=True)
        return {"data_hash": hashlib.sha256(text.encode()).hexdigest(), "pairs": settings}
