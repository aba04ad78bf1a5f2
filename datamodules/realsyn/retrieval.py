"""Hierarchical retrieval: the nearest clusters of sentences, then the nearest sentences in them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .clustering import nearest_centroids
from .vectors import Floats, Ints, Vectors, batches, exact_top


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
