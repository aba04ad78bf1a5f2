"""Embeddings of blocks, and their clusters: the artefacts that all later steps read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from .blocks import kept_rows
from .clustering import Clustering, learn_centroids, nearest_centroids
from .extraction import part
from .images import decode_image
from .steps import Stats, Steps, Task
from .tables import hash64, read_table
from .vectors import Ints, Vectors, read_array, to_unit, write_array


class ImageTextEncoder(Protocol):
    """What embeds images and texts in one space; an embedding depends on its item alone."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides an embedding, as plain JSON."""

    def encode_images(self, images: Sequence[Image.Image]) -> Any:
        """(N, D) floats."""

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """(N, D) floats."""


class Opened(Sequence[Image.Image]):
    """Images that are decoded when they are looked at, so that one is in memory at a time."""

    def __init__(self, data: pa.Array | pa.ChunkedArray, max_pixels: int) -> None:
        self.data = data
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Opened(self.data[index], self.max_pixels)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return decode_image(self.data[index].as_py(), self.max_pixels)


@dataclass
class EmbedBlock(Task):
    """Embeds a block of images or of sentences: (N, D) float16, `vectors-*`.

    Attributes:
        folder: Where to write.
        blocks: Folder of `MakeBlock`.
        kind: "images" or "sentences".
        encoder: Embeds them.
        max_pixels: Limit of what is decoded.
    """

    folder: str
    blocks: str
    kind: str
    encoder: ImageTextEncoder
    max_pixels: int
    needs_model = True

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        path = part(self.blocks, self.kind, task)
        if self.kind == "images":
            data = read_table(path, ["image"])["image"]
            found = self.encoder.encode_images(Opened(data, self.max_pixels))
        else:
            found = self.encoder.encode_texts(read_table(path, ["text"])["text"].to_pylist())
        vectors = to_unit(found)
        write_array(vectors, part(self.folder, "vectors", task, "npy"))
        return Stats(counts={"rows": len(vectors), f"{self.kind} embedded": len(vectors)})


@dataclass(frozen=True)
class VectorBlocks:
    """Rows of vectors in blocks, some of which may be masked.

    Attributes:
        vectors: Folder with `vectors-*`.
        blocks: Folder with the tables of the same rows.
        kind: What the tables are called.
        rows: Of each block.
        mask: File of booleans over all rows, or None.
    """

    vectors: str
    blocks: str
    kind: str
    rows: Sequence[int]
    mask: str | None = None

    def start(self, block: int) -> int:
        """Number of the first row of a block."""
        return sum(self.rows[:block])

    def kept(self, block: int) -> Ints:
        """Which rows of a block stay."""
        return kept_rows(self.mask, self.start(block), self.rows[block])

    def read(self, block: int) -> Vectors:
        """The vectors of the rows that stay."""
        return read_array(part(self.vectors, "vectors", block, "npy"))[self.kept(block)]

    def table(self, block: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows that stay."""
        return read_table(part(self.blocks, self.kind, block), columns).take(self.kept(block))


@dataclass
class LearnCentroids(Task):
    """Learns centroids from rows whose ids hash lowest: `centroids.npy`, (K, D) float16.

    Attributes:
        folder: Where to write.
        source: The vectors.
        num_rows: How many stay.
        settings: How many clusters, and how they are learned.
    """

    folder: str
    source: VectorBlocks
    num_rows: int
    settings: Clustering

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        wanted = self.settings.num_points(self.num_rows)
        points: Vectors | None = None
        hashes = np.zeros(0, np.uint64)
        for block in range(len(self.source.rows)):
            ids = self.source.table(block, ["id"])["id"].to_pylist()
            mine = np.array([hash64(self.settings.seed, name) for name in ids], np.uint64)
            vectors = self.source.read(block)
            points = vectors if points is None else np.concatenate([points, vectors])
            hashes = np.concatenate([hashes, mine])
            # Never more than the sample and a block at once; ties keep their order.
            kept = np.sort(np.argsort(hashes, kind="stable")[:wanted])
            points, hashes = points[kept], hashes[kept]
        if points is None or not len(points):
            raise ValueError("clusters: nothing is left to cluster: the filters drop everything")
        number = self.settings.number(self.num_rows)
        centroids = learn_centroids(points, number, self.settings)
        write_array(centroids, Path(self.folder) / "centroids.npy")
        return Stats(counts={"clusters": len(centroids), "points": len(points)})


@dataclass
class AssignBlock(Task):
    """Sorts the rows of a block by their nearest centroids.

    Writes `clusters-*`, (N,) int64 sorted; `rows-*`, (N,) int64 numbers of these rows among all;
    `sorted-*`, their vectors.

    Attributes:
        folder: Where to write.
        source: The vectors.
        centroids: File of `LearnCentroids`.
    """

    folder: str
    source: VectorBlocks
    centroids: str

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        vectors = self.source.read(task)
        centroids = read_array(Path(self.centroids))
        clusters = nearest_centroids(vectors, centroids)[:, 0]
        rows = self.source.kept(task) + self.source.start(task)
        order = np.argsort(clusters, kind="stable")
        write_array(clusters[order], part(self.folder, "clusters", task, "npy"))
        write_array(rows[order], part(self.folder, "rows", task, "npy"))
        write_array(vectors[order], part(self.folder, "sorted", task, "npy"))
        return Stats(counts={"rows": len(rows)})


def cluster_sizes(assigned: str, num_blocks: int, number: int) -> Ints:
    """Rows of each cluster, of all blocks of `AssignBlock`."""
    sizes = np.zeros(number, np.int64)
    for block in range(num_blocks):
        clusters = read_array(part(assigned, "clusters", block, "npy"))
        sizes += np.bincount(clusters, minlength=number)
    return sizes


def cluster_rows(
    steps: Steps,
    name: str,
    source: VectorBlocks,
    number: int,
    clustering: Clustering,
    after: Sequence[str],
) -> tuple[str, Ints]:
    """Learns centroids and assigns rows; returns the step that did and the sizes."""
    learn = LearnCentroids(steps.folder(f"{name}/centroids"), source, number, clustering)
    centroids = f"{learn.folder}/centroids.npy"
    steps.run(f"{name}/centroids", learn, 1, after, {"clusters": asdict(clustering)})
    assign = AssignBlock(steps.folder(f"{name}/assigned"), source, centroids)
    blocks = len(source.rows)
    steps.run(f"{name}/assigned", assign, blocks, [f"{name}/centroids"])
    number = steps.counts(f"{name}/centroids")["clusters"]
    return f"{name}/assigned", cluster_sizes(assign.folder, blocks, number)


def read_clusters(
    assigned: str, num_blocks: int, first: int, last: int
) -> tuple[Ints, Ints, Vectors]:
    """Rows of the clusters `first` to `last` - 1 of all blocks, by cluster and then by row.

    Returns:
        (N,) clusters, (N,) row numbers, (N, D) vectors.
    """
    found: list[tuple[Ints, Ints, Vectors]] = []
    for block in range(num_blocks):
        clusters = np.load(part(assigned, "clusters", block, "npy"), mmap_mode="r")
        start, stop = np.searchsorted(clusters, [first, last])
        where = slice(int(start), int(stop))
        names = ("clusters", "rows", "sorted")
        found.append(tuple(read_array(part(assigned, n, block, "npy"), where) for n in names))  # type: ignore[arg-type]
    clusters, rows, vectors = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    order = np.argsort(clusters, kind="stable")  # blocks come in the order of their rows
    return clusters[order], rows[order], vectors[order]
