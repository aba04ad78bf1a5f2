"""Clusters of unit vectors: spherical k-means by faiss on a sample, exact assignment of all."""

import logging
from dataclasses import dataclass

import numpy as np

from .extras import require
from .vectors import Ints, Vectors, batches, exact_top, to_unit

log = logging.getLogger(__name__)
# Below it faiss warns that a centroid is the mean of too little.
FEWEST_POINTS = 39


@dataclass(frozen=True)
class Clustering:
    """How vectors are clustered.

    Attributes:
        num_clusters: K; null: one for `rows_per_cluster` rows.
        rows_per_cluster: Average size of a cluster where `num_clusters` is null (RealSyn: 840M
            sentences in 2M clusters, 420 each; 168.3M images in 1M, 168 each).
        num_iterations: Of k-means.
        max_points_per_cluster: Centroids are learned from so many vectors for each, chosen by
            their ids; all are assigned afterwards.
        max_points: And from so many in all.
        seed: Of the first centroids and of the choice.
        threads: Of faiss; another number may give other last bits, so that it is a setting.
        gpu: Whether faiss uses all GPUs (package faiss-gpu); not reproducible to the last bit.
    """

    num_clusters: int | None = None
    rows_per_cluster: int = 420
    num_iterations: int = 20
    max_points_per_cluster: int = 256
    max_points: int = 10_000_000
    seed: int = 0
    threads: int = 1
    gpu: bool = False

    def __post_init__(self) -> None:
        for name in (
            "rows_per_cluster",
            "num_iterations",
            "max_points_per_cluster",
            "max_points",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"clusters: {name} must be 1 or more, got {getattr(self, name)}")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise ValueError(f"clusters: num_clusters must be 1 or more, got {self.num_clusters}")

    def number(self, num_rows: int) -> int:
        """K for that many rows, at most one per row and at least one."""
        wanted = self.num_clusters or round(num_rows / self.rows_per_cluster)
        return max(1, min(wanted, num_rows))

    def num_points(self, num_rows: int) -> int:
        """From how many rows the centroids are learned."""
        wanted = self.number(num_rows) * self.max_points_per_cluster
        return min(num_rows, wanted, self.max_points)


def learn_centroids(points: Vectors, number: int, settings: Clustering) -> Vectors:
    """Spherical k-means (faiss).

    Args:
        points: (N, D) of norm 1, all of which are used.
        number: K, at most N.
        settings: Iterations, seed, threads.

    Returns:
        (K, D), of norm 1; sorted, so that a number means nothing.
    """
    if number == 1:
        return to_unit(points.astype(np.float64).mean(0, keepdims=True))
    faiss = require("faiss", "faiss-cpu")
    if len(points) < FEWEST_POINTS * number:
        log.info("%d clusters are learned from %d vectors only", number, len(points))
    faiss.omp_set_num_threads(settings.threads)
    learner = faiss.Kmeans(
        points.shape[1],
        number,
        niter=settings.num_iterations,
        seed=settings.seed,
        spherical=True,
        gpu=settings.gpu,
        min_points_per_centroid=1,  # the line above tells
        max_points_per_centroid=len(points),  # the sample was drawn before
    )
    learner.train(np.ascontiguousarray(points, dtype=np.float32))
    centroids = to_unit(learner.centroids)
    return centroids[np.lexsort(centroids.T[::-1])]


def nearest_centroids(vectors: Vectors, centroids: Vectors, number: int = 1) -> Ints:
    """The nearest centroids of each vector, the nearest first.

    Returns:
        (N, min(number, K)) int64.
    """
    found = [np.zeros((0, min(number, len(centroids))), np.int64)]
    size = max(1, 20_000_000 // max(1, len(centroids)))
    for rows in batches(len(vectors), min(size, 2048)):
        found.append(exact_top(vectors[rows], centroids, number)[0])
    return np.concatenate(found)


def evenness(sizes: Ints) -> dict[str, float]:
    """How even cluster sizes are.

    Returns:
        `entropy`: of the shares, divided by that of equal ones, in [0, 1]; `gini`: 0 for equal
        sizes, near 1 where one cluster has all; `max_share`: of the largest.
    """
    total = sizes.sum()
    if total == 0:
        return {"entropy": 0.0, "gini": 0.0, "max_share": 0.0}
    shares = np.sort(sizes / total)
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    number = len(shares)
    ranks = np.arange(1, number + 1)
    gini = float((2 * ranks - number - 1) @ shares / number)
    return {
        "entropy": entropy / np.log(number) if number > 1 else 1.0,
        "gini": gini,
        "max_share": float(shares[-1]),
    }
