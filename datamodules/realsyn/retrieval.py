"""Hierarchical retrieval: the nearest clusters of sentences, then the nearest sentences in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...modules.files import write_json
from .clustering import nearest_centroids
from .embedding import VectorBlocks, read_clusters
from .extraction import part
from .steps import Stats, Task
from .tables import hash64, histogram, read_table, write_table
from .vectors import Floats, Ints, Vectors, batches, exact_top, read_array, write_array

COSINES = [round(-0.2 + 0.03 * k, 2) for k in range(41)]
USES = [0, 1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101, 1001]
LENGTHS = [*range(0, 85, 5), 100, 150, 300]


@dataclass(frozen=True)
class Retrieval:
    """How sentences are found for an image.

    Attributes:
        num_texts: Sentences per image, k.
        num_probes: Clusters that are searched for an image (RealSyn: 1). More are searched where
            these have fewer than k sentences.
        num_recall: Images for which the result is compared with an exact search; 0: none.
    """

    num_texts: int = 3
    num_probes: int = 1
    num_recall: int = 1000

    def __post_init__(self) -> None:
        if self.num_texts < 1 or self.num_probes < 1 or self.num_recall < 0:
            raise ValueError(
                "retrieval: num_texts and num_probes must be 1 or more and num_recall 0 or more, "
                f"got {self.num_texts}, {self.num_probes} and {self.num_recall}"
            )


def cost_ratio(num_rows: int, num_clusters: int, num_probes: int = 1) -> float:
    """How many times fewer scores a hierarchical search computes than a flat one, on average.

    N / (K + probes N / K): 420 for RealSyn's 840M sentences in 2M clusters.
    """
    return num_rows / (num_clusters + num_probes * num_rows / num_clusters)


def choose_probes(
    queries: Vectors, centroids: Vectors, sizes: Ints, num_probes: int, num_texts: int
) -> Ints:
    """The clusters that are searched for each query.

    The nearest `num_probes`, and more where they have fewer than `num_texts` rows together.

    Args:
        queries: (N, D).
        centroids: (K, D).
        sizes: (K,) rows of each cluster; empty ones are never searched.
        num_probes: At least so many.
        num_texts: Rows that must be there, if the whole has as many.

    Returns:
        (N, P) int64, filled up with -1.
    """
    filled = np.flatnonzero(sizes)
    if not len(filled):
        return np.full((len(queries), 0), -1)
    wanted = min(num_probes, len(filled))
    # Where even the smallest clusters have enough, no further ones are ranked.
    smallest = np.sort(sizes[filled])
    enough = int(np.searchsorted(np.cumsum(smallest), num_texts)) + 1
    ranked = nearest_centroids(queries, centroids[filled], min(max(wanted, enough), len(filled)))
    before = np.cumsum(sizes[filled][ranked], 1) - sizes[filled][ranked]
    used = (np.arange(ranked.shape[1]) < wanted) | (before < num_texts)
    probes = np.where(used, filled[ranked], -1)
    return probes[:, : max(1, int(used.sum(1).max(initial=1)))]


def best_candidates(queries: Ints, rows: Ints, scores: Floats, number: int) -> Ints:
    """Places of the best rows of each query, the best first; of equal scores the first row.

    Args:
        queries: (C,) number of the query of each candidate.
        rows: (C,) number of the row.
        scores: (C,).
        number: Rows per query at most.

    Returns:
        Places, sorted by query and rank.
    """
    order = np.lexsort((rows, -scores, queries))
    sorted_queries = queries[order]
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_queries) != 0][: len(order)])
    sizes = np.diff(np.r_[starts, len(order)])
    ranks = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[ranks < number]


def search_lists(
    clusters: Ints,
    rows: Ints,
    vectors: Vectors | NDArray[np.float32],
    query_clusters: Ints,
    queries: Ints,
    query_vectors: Vectors,
    number: int,
) -> tuple[Ints, Ints, Floats, int]:
    """Searches clusters for the queries that probe them, one product of matrices per cluster.

    Args:
        clusters: (N,) sorted; cluster of each row.
        rows: (N,) number of each row.
        vectors: (N, D) its vector.
        query_clusters: (Q,) sorted; the cluster that a query probes.
        queries: (Q,) number of that query.
        query_vectors: (Q, D) its vector.
        number: Rows per query and cluster at most.

    Returns:
        Queries, rows and scores of the candidates; and how many scores were computed.
    """
    found: list[tuple[Ints, Ints, Floats]] = [
        (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    ]
    num_scores = 0
    probed, starts = np.unique(query_clusters, return_index=True)
    stops = [*starts[1:], len(query_clusters)]
    firsts, lasts = np.searchsorted(clusters, probed), np.searchsorted(clusters, probed, "right")
    for start, stop, first, last in zip(starts, stops, firsts, lasts, strict=True):
        if first == last:
            continue
        members, member_rows = vectors[first:last], rows[first:last]
        for slot in batches(stop - start):
            here = slice(start + slot.start, start + slot.stop)
            places, scores = exact_top(query_vectors[here], members, number)
            num_scores += len(places) * len(members)
            found.append(
                (
                    np.repeat(queries[here], places.shape[1]),
                    member_rows[places].reshape(-1),
                    scores.reshape(-1),
                )
            )
    queries_found, rows_found, scores_found = (
        np.concatenate(arrays) for arrays in zip(*found, strict=True)
    )
    return queries_found, rows_found, scores_found, num_scores


@dataclass
class HierarchicalIndex:
    """Vectors in clusters, in memory: for notebooks and benchmarks; the pipeline reads from disk.

    Attributes:
        centroids: (K, D) float16.
        clusters: (N,) sorted; cluster of each row.
        rows: (N,) number of each row.
        vectors: (N, D), in this order; float32, so that no search converts them.
    """

    centroids: Vectors
    clusters: Ints
    rows: Ints
    vectors: Vectors | NDArray[np.float32]
    sizes: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = np.bincount(self.clusters, minlength=len(self.centroids))

    @classmethod
    def build(cls, vectors: Vectors, centroids: Vectors) -> "HierarchicalIndex":
        """Assigns vectors to centroids."""
        clusters = nearest_centroids(vectors, centroids)[:, 0]
        order = np.argsort(clusters, kind="stable")
        return cls(centroids, clusters[order], order, vectors[order].astype(np.float32))

    def search(
        self, queries: Vectors, num_texts: int, num_probes: int = 1
    ) -> tuple[Ints, Floats, int]:
        """The best rows of each query in its nearest clusters.

        Returns:
            (N, num_texts) rows, -1 where there are fewer; their scores; how many scores were
            computed, of centroids and of rows.
        """
        probes = choose_probes(queries, self.centroids, self.sizes, num_probes, num_texts)
        number, place = np.nonzero(probes >= 0)
        wanted = probes[number, place]
        order = np.argsort(wanted, kind="stable")
        found, rows, scores, num_scores = search_lists(
            self.clusters,
            self.rows,
            self.vectors,
            wanted[order],
            number[order],
            queries[number[order]],
            num_texts,
        )
        best = best_candidates(found, rows, scores, num_texts)
        shape = (len(queries), num_texts)
        rows_out, scores_out = np.full(shape, -1), np.full(shape, -np.inf)
        ranks = ranks_within(found[best])
        rows_out[found[best], ranks] = rows[best]
        scores_out[found[best], ranks] = scores[best]
        return rows_out, scores_out, num_scores + len(queries) * int((self.sizes > 0).sum())


def ranks_within(groups: Ints) -> Ints:
    """0, 1, 2, ... inside of each run of equal numbers."""
    starts = np.flatnonzero(np.r_[True, np.diff(groups) != 0][: len(groups)])
    sizes = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, sizes)


# Works


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
            examples={"retrieved": examples.drop_columns("rows").take(sorted(shown)).to_pylist()},
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


# The check against an exact search


@dataclass
class SampleImages(Task):
    """Draws the images whose ids hash lowest: `rows.npy`, `vectors.npy`.

    Attributes:
        folder: Where to write.
        images: All of them.
        number: How many.
    """

    folder: str
    images: VectorBlocks
    number: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        hashed: list[tuple[int, int, int]] = []
        for block in range(len(self.images.rows)):
            ids = self.images.table(block, ["id"])["id"].to_pylist()
            here = [(hash64(1, name), block, place) for place, name in enumerate(ids)]
            hashed = sorted(hashed + here)[: self.number]
        rows, vectors = [], []
        for block in sorted({block for _, block, _ in hashed}):
            places = np.array(sorted(place for _, b, place in hashed if b == block))
            rows.append(self.images.kept(block)[places] + self.images.start(block))
            vectors.append(self.images.read(block)[places])
        write_array(np.concatenate(rows), Path(self.folder) / "rows.npy")
        write_array(np.concatenate(vectors), Path(self.folder) / "vectors.npy")
        return Stats(counts={"sampled images": len(hashed)})


@dataclass
class SearchExactly(Task):
    """Compares a block of sentences with all sampled images: `rows-*`, `scores-*`, (S, k).

    Attributes:
        folder: Where to write.
        sample: Folder of `SampleImages`.
        sentences: The sentences.
        num_texts: k.
    """

    folder: str
    sample: str
    sentences: VectorBlocks
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        queries = read_array(Path(self.sample) / "vectors.npy")
        rows = self.sentences.kept(task) + self.sentences.start(task)
        places, scores = exact_top(queries, self.sentences.read(task), self.num_texts)
        write_array(rows[places], part(self.folder, "rows", task, "npy"))
        write_array(scores, part(self.folder, "scores", task, "npy"))
        return Stats(counts={"scores": len(queries) * len(rows)})


@dataclass
class MeasureRecall(Task):
    """Compares what was retrieved with the exact result: `summary.json`.

    Attributes:
        folder: Where to write.
        sample: Folder of `SampleImages`.
        exact: Folder of `SearchExactly`.
        num_exact: Its number of tasks.
        texts: Folder of `CollectTexts`.
        images: All images.
        num_texts: k.
    """

    folder: str
    sample: str
    exact: str
    num_exact: int
    texts: str
    images: VectorBlocks
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        sampled = read_array(Path(self.sample) / "rows.npy")
        exact = [read_array(part(self.exact, "rows", t, "npy")) for t in range(self.num_exact)]
        scores = [read_array(part(self.exact, "scores", t, "npy")) for t in range(self.num_exact)]
        rows_SC, scores_SC = np.concatenate(exact, 1), np.concatenate(scores, 1)
        queries = np.repeat(np.arange(len(sampled)), rows_SC.shape[1])
        best = best_candidates(queries, rows_SC.ravel(), scores_SC.ravel(), self.num_texts)
        found: dict[int, tuple[list[int], list[float]]] = {}
        for block in range(len(self.images.rows)):
            start = self.images.start(block)
            kept = self.images.kept(block) + start
            places = np.flatnonzero(np.isin(kept, sampled))
            if len(places):
                table = read_table(part(self.texts, "texts", block), ["rows", "scores"])
                table = table.take(places)
                pairs = zip(table["rows"].to_pylist(), table["scores"].to_pylist(), strict=True)
                found |= dict(zip(kept[places].tolist(), pairs, strict=True))
        hits, total, gap = 0, 0, 0.0
        for number, row in enumerate(sampled.tolist()):
            mine = best[queries[best] == number]
            rows, values = found[row]
            hits += len(set(rows) & set(rows_SC.ravel()[mine].tolist()))
            total += len(mine)
            gap += float(scores_SC.ravel()[mine].sum()) - float(np.sum(values))
        summary = {
            "retrieval/recall_vs_exact": hits / max(1, total),
            "retrieval/cosine_gap": gap / max(1, total),
            "sampled images": len(sampled),
        }
        write_json(Path(self.folder) / "summary.json", summary)
        return Stats(counts={"sampled images": len(sampled)})
