"""Works of the retrieval: clusters are searched in parallel, each once for all its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...modules.files import write_json
from .embedding import VectorBlocks, read_clusters
from .extraction import part
from .retrieval import Retrieval, best_candidates, choose_probes, search_lists
from .steps import Stats, Task
from .tables import hash64, histogram, take_rows, write_table
from .vectors import Floats, Ints, Vectors, read_array, write_array

COSINES = [round(-0.2 + 0.03 * k, 2) for k in range(41)]
USES = [0, 1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101, 1001]
LENGTHS = [*range(0, 85, 5), 100, 150, 300]


@dataclass
class ProbeBlock(Task):
    """Chooses the clusters of a block of images.

    Writes `clusters-*`, (P,) sorted, and `rows-*`, (P,) numbers of images among all.

    Attributes:
        folder: Where to write.
        images: The images.
        centroids: File of the centroids of the sentences.
        sizes: File of their sizes.
        settings: How many clusters.
    """

    folder: str
    images: VectorBlocks
    centroids: str
    sizes: str
    settings: Retrieval

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        probes = choose_probes(
            self.images.read(task),
            read_array(Path(self.centroids)),
            read_array(Path(self.sizes)),
            self.settings.num_probes,
            self.settings.num_texts,
        )
        number, place = np.nonzero(probes >= 0)
        rows = self.images.kept(task)[number] + self.images.start(task)
        clusters = probes[number, place]
        order = np.argsort(clusters, kind="stable")
        write_array(clusters[order], part(self.folder, "clusters", task, "npy"))
        write_array(rows[order], part(self.folder, "rows", task, "npy"))
        return Stats(counts={"images": len(probes), "searched clusters": len(rows)})


@dataclass
class SearchClusters(Task):
    """Searches a run of clusters for all images that probe them.

    Writes `images-*` and `texts-*`, (C,) numbers of rows, and `scores-*`, (C,), by image.

    Attributes:
        folder: Where to write.
        probes: Folder of `ProbeBlock`.
        images: The images.
        assigned: Folder of `AssignBlock` of the sentences.
        num_blocks: Its number of tasks.
        runs: (first cluster, one after the last) of each task.
        num_texts: Candidates per image and cluster.
    """

    folder: str
    probes: str
    images: VectorBlocks
    assigned: str
    num_blocks: int
    runs: Sequence[tuple[int, int]]
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        first, last = self.runs[task]
        clusters, rows, vectors = read_clusters(self.assigned, self.num_blocks, first, last)
        wanted, images, queries = self._queries(first, last)
        found, texts, scores, num_scores = search_lists(
            clusters, rows, vectors, wanted, images, queries, self.num_texts
        )
        order = np.argsort(found, kind="stable")
        for kind, array in (("images", found), ("texts", texts), ("scores", scores)):
            write_array(array[order], part(self.folder, kind, task, "npy"))
        return Stats(counts={"scores": num_scores})

    def _queries(self, first: int, last: int) -> tuple[Ints, Ints, Vectors]:
        clusters, images, vectors = [], [], []
        for block in range(len(self.images.rows)):
            mine = np.load(part(self.probes, "clusters", block, "npy"), mmap_mode="r")
            start, stop = (int(place) for place in np.searchsorted(mine, [first, last]))
            where = slice(start, stop)
            clusters.append(np.array(mine[where]))
            images.append(read_array(part(self.probes, "rows", block, "npy"), where))
            stored = np.load(part(self.images.vectors, "vectors", block, "npy"), mmap_mode="r")
            vectors.append(stored[images[-1] - self.images.start(block)])
        order = np.argsort(np.concatenate(clusters), kind="stable")
        return (
            np.concatenate(clusters)[order],
            np.concatenate(images)[order],
            np.concatenate(vectors)[order],
        )


@dataclass
class CollectTexts(Task):
    """Joins the candidates of a block of images and fetches their sentences.

    Writes `texts-*` with `id`, `texts`, `rows` and `scores`, and `uses-*`, (T,) rows of sentences.

    Attributes:
        folder: Where to write.
        images: The images.
        sentences: The sentences.
        found: Folder of `SearchClusters`.
        num_found: Its number of tasks.
        num_texts: Sentences per image.
    """

    folder: str
    images: VectorBlocks
    sentences: VectorBlocks
    found: str
    num_found: int
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        start = self.images.start(task)
        stop = start + self.images.rows[task]
        images, texts, scores = self._candidates(start, stop)
        best = best_candidates(images, texts, scores, self.num_texts)
        images, texts, scores = images[best], texts[best], scores[best]
        kept = self.images.kept(task) + start
        missing = len(kept) - len(np.unique(images))
        if missing:
            raise ValueError("retrieval: there are no sentences: the filters drop all of them")
        strings = fetch_texts(self.sentences, texts)
        table = self.images.table(task, ["id", "source"])
        edges = [*np.searchsorted(images, kept, "left").tolist(), len(images)]
        offsets = pa.array(edges, pa.int32())
        table = table.append_column("texts", pa.ListArray.from_arrays(offsets, strings))
        rows = pa.ListArray.from_arrays(offsets, pa.array(texts))
        table = table.append_column("rows", rows)
        values = pa.ListArray.from_arrays(offsets, pa.array(scores.astype(np.float32)))
        table = table.append_column("scores", values)
        write_table(table.drop_columns("source"), part(self.folder, "texts", task))
        write_array(np.sort(texts), part(self.folder, "uses", task, "npy"))
        lengths = [len(text.split()) for text in strings.to_pylist()]
        examples = table.append_column("reason", pa.array(["retrieved"] * len(table)))
        shown = sorted(range(len(table)), key=lambda k: hash64(0, table["id"][k].as_py()))[:12]
        retrieved = take_rows(examples.drop_columns("rows"), sorted(shown))
        return Stats(
            counts={"images": len(table), "texts": len(texts)},
            histograms={
                "cosine of image and sentence": histogram(scores, COSINES),
                "words of the retrieved sentences": histogram(lengths, LENGTHS),
            },
            edges={
                "cosine of image and sentence": COSINES,
                "words of the retrieved sentences": list(map(float, LENGTHS)),
            },
            examples={"retrieved": retrieved.to_pylist()},
        )

    def _candidates(self, start: int, stop: int) -> tuple[Ints, Ints, Floats]:
        found: list[tuple[Ints, Ints, Floats]] = []
        for task in range(self.num_found):
            images = np.load(part(self.found, "images", task, "npy"), mmap_mode="r")
            first, last = (int(place) for place in np.searchsorted(images, [start, stop]))
            where = slice(first, last)
            names = ("images", "texts", "scores")
            found.append(tuple(read_array(part(self.found, n, task, "npy"), where) for n in names))  # type: ignore[arg-type]
        images, texts, scores = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return images, texts, scores


def fetch_texts(sentences: VectorBlocks, rows: Ints) -> pa.Array:
    """The texts of rows among all, in the order given; blocks are read one after the other."""
    strings = np.empty(len(rows), dtype=object)
    for block in range(len(sentences.rows)):
        start = sentences.start(block)
        here = np.flatnonzero((rows >= start) & (rows < start + sentences.rows[block]))
        if len(here):
            whole = VectorBlocks(
                sentences.vectors, sentences.blocks, sentences.kind, sentences.rows
            )
            table = whole.table(block, ["text"])
            strings[here] = table["text"].take(pa.array(rows[here] - start)).to_pylist()
    return pa.array(strings.tolist(), pa.string())


@dataclass
class CountUses(Task):
    """How the sentences and clusters are used: `summary.json`.

    Attributes:
        folder: Where to write.
        texts: Folder of `CollectTexts`.
        probes: Folder of `ProbeBlock`.
        num_blocks: Their number of tasks.
        num_clusters: K.
        num_sentences: N.
    """

    folder: str
    texts: str
    probes: str
    num_blocks: int
    num_clusters: int
    num_sentences: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        uses: dict[int, int] = {}
        images = np.zeros(self.num_clusters, np.int64)
        for block in range(self.num_blocks):
            rows, counts = np.unique(
                read_array(part(self.texts, "uses", block, "npy")), return_counts=True
            )
            for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
                uses[row] = uses.get(row, 0) + count
            clusters = read_array(part(self.probes, "clusters", block, "npy"))
            images += np.bincount(clusters, minlength=self.num_clusters)
        numbers = np.array(sorted(uses.values(), reverse=True), np.int64)
        most = np.sort(images)[::-1]
        summary = {
            "different sentences used": len(numbers),
            "share of the sentences that is used": len(numbers) / max(1, self.num_sentences),
            "most uses of one sentence": int(numbers.max(initial=0)),
            "clusters that are searched": int((images > 0).sum()),
            "share of the searches in the most searched 1 % of the clusters": float(
                most[: -(-self.num_clusters // 100)].sum() / max(1, images.sum())
            ),
        }
        write_json(Path(self.folder) / "summary.json", summary)
        return Stats(
            counts={"different sentences used": len(numbers)},
            histograms={"uses of a sentence": histogram(numbers, USES)},
            edges={"uses of a sentence": list(map(float, USES))},
        )
