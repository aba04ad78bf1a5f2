"""Copies dropped, and rows of any shards put into equal blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .extraction import part
from .sentences import normalized
from .steps import Stats, Task
from .tables import hash64, read_table, write_table
from .vectors import Ints, read_array, write_array

# Copies: the first of each stays


@dataclass
class HashRows(Task):
    """Sorts the rows of a shard by a hash of what copies share.

    Writes `images-*` and `sentences-*`: (N, 3) uint64 of hash, shard and row.

    Attributes:
        folder: Where to write.
        quality: Folder with `images-*`.
        sentences: Folder with `sentences-*`.
    """

    folder: str
    quality: str
    sentences: str

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        digests = read_table(part(self.quality, "images", task), ["sha256"])["sha256"].to_pylist()
        texts = read_table(part(self.sentences, "sentences", task), ["text"])["text"].to_pylist()
        hashes = {
            "images": [int.from_bytes(digest[:8], "little") for digest in digests],
            "sentences": [hash64(0, normalized(text)) for text in texts],
        }
        for kind, values in hashes.items():
            rows = np.empty((len(values), 3), np.uint64)
            rows[:, 0] = np.array(values, np.uint64)
            rows[:, 1] = task
            rows[:, 2] = np.arange(len(values))
            order = np.argsort(rows[:, 0], kind="stable")
            write_array(rows[order], part(self.folder, kind, task, "npy"))
        return Stats(counts={f"{kind} hashed": len(v) for kind, v in hashes.items()})


@dataclass
class FindFirsts(Task):
    """Finds the first row of each hash, in one part of the range of hashes.

    64 bits of a hash: two of a billion different rows meet with a probability of 3 %, and one of
    them is lost. Writes `images-*` and `sentences-*`: (N, 2) int64 of shard and row, in order.

    Attributes:
        folder: Where to write.
        hashed: Folder of `HashRows`.
        num_shards: Its number of tasks.
        num_ranges: Number of parts.
    """

    folder: str
    hashed: str
    num_shards: int
    num_ranges: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        width = -(-(2**64) // self.num_ranges)
        low, high = task * width, min((task + 1) * width, 2**64) - 1
        stats = Stats()
        for kind in ("images", "sentences"):
            found = []
            for shard in range(self.num_shards):
                rows = np.load(part(self.hashed, kind, shard, "npy"), mmap_mode="r")
                hashes = rows[:, 0]
                start = int(np.searchsorted(hashes, np.uint64(low)))
                stop = int(np.searchsorted(hashes, np.uint64(high), side="right"))
                found.append(np.array(rows[start:stop]))
            rows = np.concatenate(found)  # in the order of shards; of rows in each hash
            order = np.argsort(rows[:, 0], kind="stable")
            hashes = rows[order, 0]
            firsts = order[np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])]
            kept = rows[firsts][:, 1:].astype(np.int64)
            kept = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
            write_array(kept, part(self.folder, kind, task, "npy"))
            stats.counts[kind] = len(kept)
            stats.reasons[kind] = {"copy": len(rows) - len(kept)}
        return stats


@dataclass
class KeepFirsts(Task):
    """Takes from a shard the rows that `FindFirsts` has found.

    Writes `images-*` and `sentences-*`.

    Attributes:
        folder: Where to write.
        quality: Folder with `images-*`.
        sentences: Folder with `sentences-*`.
        firsts: Folder of `FindFirsts`.
        num_ranges: Its number of tasks.
    """

    folder: str
    quality: str
    sentences: str
    firsts: str
    num_ranges: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        stats = Stats()
        for kind, source in (("images", self.quality), ("sentences", self.sentences)):
            rows = []
            for number in range(self.num_ranges):
                kept = np.load(part(self.firsts, kind, number, "npy"), mmap_mode="r")
                start, stop = np.searchsorted(kept[:, 0], [task, task + 1])
                rows.append(np.array(kept[start:stop, 1]))
            table = read_table(part(source, kind, task)).take(np.sort(np.concatenate(rows)))
            if kind == "images":
                shard = pa.array([task] * len(table), pa.int32())
                table = table.append_column("shard", shard)
            write_table(table, part(self.folder, kind, task))
            stats.counts[f"{kind} rows"] = len(table)
        return stats


# Blocks: equal numbers of rows, whatever the shards were


def locate(rows: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    """Where rows `start` to `stop` of shards put one after another are.

    Returns:
        (shard, first row, one after the last) of each shard that has some.
    """
    found, before = [], 0
    for shard, number in enumerate(rows):
        first, last = max(start - before, 0), min(stop - before, number)
        if first < last:
            found.append((shard, first, last))
        before += number
    return found


@dataclass
class MakeBlock(Task):
    """Puts rows of shards into a block; tasks of images come first, then those of sentences.

    Writes `images-*` with their bytes in a column `image`, or `sentences-*`.

    Attributes:
        folder: Where to write.
        pages: Folder of `ExtractPages`, which has the bytes.
        distinct: Folder of `KeepFirsts`.
        image_rows: Rows of its shards.
        sentence_rows: Likewise.
        images_per_block: Rows of a block.
        sentences_per_block: Likewise.
    """

    folder: str
    pages: str
    distinct: str
    image_rows: Sequence[int]
    sentence_rows: Sequence[int]
    images_per_block: int
    sentences_per_block: int

    @property
    def num_image_blocks(self) -> int:
        """How many tasks are of images."""
        return -(-sum(self.image_rows) // self.images_per_block)

    @property
    def num_sentence_blocks(self) -> int:
        """How many are of sentences."""
        return -(-sum(self.sentence_rows) // self.sentences_per_block)

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        if task < self.num_image_blocks:
            table = self._rows("images", self.image_rows, task, self.images_per_block)
            images = image_bytes(self.pages, table)
            table = table.drop_columns("shard").append_column("image", images)
            write_table(table, part(self.folder, "images", task), row_group_size=256)
            return Stats(counts={"images": len(table)})
        number = task - self.num_image_blocks
        table = self._rows("sentences", self.sentence_rows, number, self.sentences_per_block)
        write_table(table, part(self.folder, "sentences", number))
        return Stats(counts={"sentences": len(table)})

    def _rows(self, kind: str, rows: Sequence[int], number: int, size: int) -> pa.Table:
        places = locate(rows, number * size, (number + 1) * size)
        return pa.concat_tables(
            [
                read_table(part(self.distinct, kind, shard)).slice(first, last - first)
                for shard, first, last in places
            ]
        )


def image_bytes(pages: str, table: pa.Table) -> pa.Array:
    """The bytes of images, from the shards that have them.

    Args:
        pages: Folder of `ExtractPages`.
        table: With `sha256` and `shard`, sorted by shard.
    """
    found = []
    shards = table["shard"].to_numpy()
    for shard in np.unique(shards):
        stored = read_table(part(pages, "bytes", int(shard)))
        places = pc.index_in(table["sha256"].filter(pa.array(shards == shard)), stored["sha256"])
        found.append(stored["image"].take(places))
    chunks = [chunk for column in found for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.binary())


def kept_rows(mask: str | None, start: int, number: int) -> Ints:
    """Which rows of a block stay, by a mask over the rows of all blocks (None: all).

    Args:
        mask: A .npy of booleans.
        start: Number of the block's first row.
        number: Rows of the block.
    """
    if mask is None:
        return np.arange(number)
    return np.flatnonzero(read_array(Path(mask), slice(start, start + number)))
