"""MuCR's files as batches of groups."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ...modules.mucr.pair import PairGroup
from .batches import GroupDataset, PairGroupDataModule
from .groups import GroupPolicy, Members, find_groups
from .reading import StoredPair, Version, read_pairs


class StoredGroups(GroupDataset):
    """Groups of pairs whose pictures are read when they are asked for."""

    def __init__(self, pairs: Sequence[StoredPair], groups: Sequence[Members]) -> None:
        self.pairs, self.groups = pairs, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> PairGroup:
        group = self.groups[index]
        pairs = tuple(self.pairs[place].load() for place in group.places)
        return PairGroup(group.id, pairs, group.asked, group.source)


class MuCRDataModule(PairGroupDataModule):
    """MuCR, and all files of its formats, such as those of `tenfold scenes` and `tenfold mucr`.

    The benchmark has no split: all of its pairs are the test. Its licence is not stated, so that it
    is not part of this package; `root: hub:Pinkygin/MuCR` reads it from the hub. See
    `PairGroupDataModule` for the batches.

    Args:
        root: Of the test pairs: a folder or `hub:OWNER/NAME`, see `read_pairs`.
        train_root: Of pairs to train with; None: there are none.
        val_root: Of pairs to validate with.
        version: Whose keys: "2024", "2025"; "auto" looks.
        group_policy: How siblings are found, see `find_groups`.
        categories: Asks about pairs of these alone; None: all. Siblings stay.
        styles: Asks about pairs of these alone; None: all.
        max_groups: Takes the first so many groups of each set.
        strict: Whether a bad row is an error; else it is left out with a warning.
        image_size: See `PairGroupDataModule`.
        batch_size: See there.
        num_workers: See there.
        seed: Of the training's order and of drawn siblings; None takes that of `seed_everything`
            for the order, 0 for siblings.

    Raises:
        ValueError: A number out of range; from `setup` what is wrong with the files.
    """

    def __init__(
        self,
        root: str,
        train_root: str | None = None,
        val_root: str | None = None,
        version: Version = "auto",
        group_policy: GroupPolicy = "auto",
        categories: list[str] | None = None,
        styles: list[str] | None = None,
        max_groups: int | None = None,
        strict: bool = True,
        image_size: int | None = None,
        batch_size: int = 12,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, seed)
        if max_groups is not None and max_groups < 1:
            raise ValueError(f"max_groups must be 1 or more, got {max_groups}")
        self.roots = {"test": root, "train": train_root, "val": val_root}
        self.version: Version = version
        self.group_policy: GroupPolicy = group_policy
        self.categories, self.styles = categories, styles
        self.max_groups, self.strict = max_groups, strict
        self.group_seed = 0 if seed is None else seed
        self._sets: dict[str, StoredGroups] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads the annotations of what the stage needs.

        Raises:
            ValueError: See `read_pairs` and `find_groups`; or no pair is left to ask about.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage or "", ("test",))
        for split in (*self.roots,) if stage is None else needed:
            root = self.roots[split]
            if root is not None and split not in self._sets:
                self._sets[split] = self._read(root)

    def dataset(self, split: str) -> StoredGroups | None:
        """See `PairGroupDataModule`."""
        return self._sets.get(split)

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        digests, counts = {}, {}
        for split, groups in self._sets.items():
            rows = [(*pair.described, pair.false_cues, pair.references) for pair in groups.pairs]
            text = json.dumps([rows, [tuple(group) for group in groups.groups]])
            digests[split] = hashlib.sha256(text.encode()).hexdigest()
            sources = [group.source for group in groups.groups]
            counts[split] = {source: sources.count(source) for source in sorted(set(sources))}
        whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        return {"data_hash": whole, "num_groups": counts}

    def _read(self, root: str) -> StoredGroups:
        pairs = read_pairs(root, self.version, self.strict)
        groups = find_groups([p.described for p in pairs], self.group_policy, self.group_seed)
        kept = []
        for group in groups:
            asked = tuple(
                asked and self._wanted(pairs[place])
                for place, asked in zip(group.places, group.asked, strict=True)
            )
            if any(asked):
                kept.append(group._replace(asked=asked))
        if not kept:
            raise ValueError(
                f"{root}: no pair of categories {self.categories} and styles {self.styles}"
            )
        return StoredGroups(pairs, kept[: self.max_groups])

    def _wanted(self, pair: StoredPair) -> bool:
        right_category = self.categories is None or pair.category in self.categories
        return right_category and (self.styles is None or pair.style in self.styles)
