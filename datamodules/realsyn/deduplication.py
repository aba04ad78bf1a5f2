"""Deduplication: works that find similar pairs in parallel, and the one that decides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...modules.files import write_json
from .duplicates import (
    DuplicateFilter,
    Pairs,
    band_pairs,
    choose_tau,
    components,
    hash_pairs,
    minhashes,
    representatives,
    similar_pairs,
)
from .embedding import VectorBlocks, read_clusters
from .extraction import part
from .steps import Stats, Task
from .tables import hash64, histogram, read_table
from .vectors import read_array, write_array

COSINES = [round(0.5 + 0.0125 * k, 4) for k in range(41)]
COMPONENT_SIZES = [1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101, 1001]
LARGE_COMPONENT = 0.01
NUM_SHOWN = 40


@dataclass
class SimilarPairs(Task):
    """Finds pairs of rows that mean the same, in a run of clusters.

    Writes `pairs-*`, (P, 2) int64, and `cosines-*`, (P,) float64.

    Attributes:
        folder: Where to write.
        assigned: Folder of `AssignBlock`.
        num_blocks: Its number of tasks.
        runs: (first cluster, one after the last) of each task.
        settings: What is similar.
    """

    folder: str
    assigned: str
    num_blocks: int
    runs: Sequence[tuple[int, int]]
    settings: DuplicateFilter

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        clusters, rows, vectors = read_clusters(self.assigned, self.num_blocks, *self.runs[task])
        pairs, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
        starts = np.flatnonzero(np.r_[True, np.diff(clusters) != 0][: len(clusters)])
        for start, stop in zip(starts, [*starts[1:], len(clusters)], strict=True):
            members = slice(int(start), int(stop))
            found, values = similar_pairs(
                vectors[members], self.settings.neighbours, self.settings.least
            )
            pairs.append(rows[members][found])
            cosines.append(values)
        write_array(np.concatenate(pairs), part(self.folder, "pairs", task, "npy"))
        write_array(np.concatenate(cosines), part(self.folder, "cosines", task, "npy"))
        return Stats(counts={"similar pairs": sum(map(len, pairs))})


@dataclass
class SignBlock(Task):
    """MinHash signatures of a block of sentences: `signatures-*`, (N, 64) uint32.

    Attributes:
        folder: Where to write.
        blocks: Folder of `MakeBlock`.
    """

    folder: str
    blocks: str

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        texts = read_table(part(self.blocks, "sentences", task), ["text"])["text"].to_pylist()
        write_array(minhashes(texts), part(self.folder, "signatures", task, "npy"))
        return Stats(counts={"signed": len(texts)})


@dataclass
class LookAlikes(Task):
    """Finds pairs of rows that look the same: `pairs-*`, (P, 2) int64.

    A task is a band of the signatures of sentences; of images there is one task.

    Attributes:
        folder: Where to write.
        kind: "images" or "sentences".
        source: Folder of `MakeBlock` for images, of `SignBlock` for sentences.
        num_blocks: Its blocks.
        settings: What looks the same.
    """

    folder: str
    kind: str
    source: str
    num_blocks: int
    settings: DuplicateFilter

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        blocks = range(self.num_blocks)
        if self.kind == "images":
            tables = [read_table(part(self.source, "images", b), ["phash"]) for b in blocks]
            hashes = np.concatenate([table["phash"].to_numpy() for table in tables])
            pairs = hash_pairs(hashes, self.settings.max_hamming)
        else:
            arrays = [read_array(part(self.source, "signatures", b, "npy")) for b in blocks]
            pairs = band_pairs(np.concatenate(arrays), task, self.settings.min_jaccard)
        write_array(pairs, part(self.folder, "pairs", task, "npy"))
        return Stats(counts={"pairs that look the same": len(pairs)})


@dataclass
class JoinDuplicates(Task):
    """Joins pairs into components and chooses the row of each that stays.

    Writes `kept.npy`, (N,) bool, and `summary.json`.

    Attributes:
        folder: Where to write.
        source: All rows.
        looks: Folder of `LookAlikes`.
        num_looks: Its number of tasks.
        similar: Folder of `SimilarPairs`.
        num_similar: Its number of tasks.
        num_before: Rows before copies were dropped: what the target is a share of.
        settings: What is a duplicate.
    """

    folder: str
    source: VectorBlocks
    looks: str
    num_looks: int
    similar: str
    num_similar: int
    num_before: int
    settings: DuplicateFilter

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        number = sum(self.source.rows)
        looks = self._read(self.looks, "pairs", self.num_looks)
        similar = self._read(self.similar, "pairs", self.num_similar)
        cosines = np.concatenate(
            [read_array(part(self.similar, "cosines", t, "npy")) for t in range(self.num_similar)]
        )
        tau = self.settings.tau
        if tau is None:
            wanted = round(self.num_before * (1 - self.settings.target_removed))
            tau = choose_tau(similar, cosines, looks, number, wanted)
        perceptual = components(looks, number)
        labels = components(np.concatenate([looks, similar[cosines >= tau]]), number)
        kept = representatives(labels, self._sizes(number))
        write_array(kept, Path(self.folder) / "kept.npy")
        sizes = np.bincount(labels)
        summary = {
            "tau": tau,
            "largest component": int(sizes.max(initial=0)),
            "components": len(sizes),
            "share removed": 1 - int(kept.sum()) / max(1, self.num_before),
        }
        write_json(Path(self.folder) / "summary.json", summary)
        looking_same = number - (int(perceptual.max(initial=-1)) + 1)
        kind = self.source.kind
        stats = Stats(
            counts={kind: int(kept.sum())},
            reasons={
                kind: {
                    "looks the same": looking_same,
                    "means the same": int((~kept).sum()) - looking_same,
                }
            },
            histograms={
                f"cosine of similar {kind}": histogram(cosines, COSINES),
                f"size of duplicate groups ({kind})": histogram(sizes, COMPONENT_SIZES),
            },
            edges={
                f"cosine of similar {kind}": COSINES,
                f"size of duplicate groups ({kind})": list(map(float, COMPONENT_SIZES)),
            },
        )
        stats.examples = {f"duplicate {kind}": self._examples(labels, kept)}
        if sizes.max(initial=0) > max(10, LARGE_COMPONENT * number):
            stats.problems = [
                f"{kind}: {sizes.max():,} of {number:,} rows are one group of duplicates: tau "
                f"{tau:.3f} is too low, or they are the same"
            ]
        return stats

    def _read(self, folder: str, kind: str, number: int) -> Pairs:
        arrays = [read_array(part(folder, kind, task, "npy")) for task in range(number)]
        return np.concatenate([np.zeros((0, 2), np.int64), *arrays])

    def _sizes(self, number: int) -> np.ndarray:
        """What makes a row the one that stays: the pixels of an image."""
        if self.source.kind != "images":
            return np.zeros(number, np.int64)
        sizes = []
        for block in range(len(self.source.rows)):
            table = self.source.table(block, ["width", "height"])
            sizes.append(table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy())
        return np.concatenate([np.zeros(0, np.int64), *sizes])

    def _examples(self, labels: np.ndarray, kept: np.ndarray) -> list[dict[str, object]]:
        """Some dropped rows beside the ones that stay for them."""
        stays = np.zeros(labels.max(initial=-1) + 1, np.int64)
        stays[labels[kept]] = np.flatnonzero(kept)
        gone = np.flatnonzero(~kept)
        order = sorted(gone.tolist(), key=lambda row: hash64(0, str(row)))[:NUM_SHOWN]
        column = "source" if self.source.kind == "images" else "text"
        rows = sorted({*order, *(int(stays[labels[row]]) for row in order)})
        found: dict[int, dict[str, object]] = {}
        for block in range(len(self.source.rows)):
            start = self.source.start(block)
            here = [row - start for row in rows if 0 <= row - start < self.source.rows[block]]
            if here:
                table = self.source.table(block, ["id", column]).take(here)
                for row, known in zip(here, table.to_pylist(), strict=True):
                    found[start + row] = known | {"block": block, "row": row}
        examples: list[dict[str, object]] = []
        for row in order:
            other = found[int(stays[labels[row]])]
            told = {"kept_id": other["id"], "kept": other[column]}
            places = {"kept_block": other["block"], "kept_row": other["row"]}
            examples.append({"reason": "duplicate", **found[row], **told, **places})
        return examples


def read_summary(folder: Path) -> dict[str, float]:
    """What `JoinDuplicates` found."""
    found: dict[str, float] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found
