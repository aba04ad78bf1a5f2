"""Hierarchical retrieval against flat faiss search: recall and time on named vectors.

    python tests/benchmarks/realsyn_retrieval.py                            a mixture, 1M vectors
    python tests/benchmarks/realsyn_retrieval.py --sentences FILE.npy       real embeddings, (N, D)

The mixture: `centres` directions drawn from a normal distribution and normalised; each vector is
one of them plus `noise` times a normalised normal vector, normalised again; queries are drawn
alike, from the same directions. This generator decides the result: on vectors without structure no
clusters help. Both searches take the same queries in one batch on the same threads; times are
seconds of the processor, medians over rounds: other programs on the machine disturb them less. Flat
search is faiss's IndexFlatIP in float32; ours is exact inside of the clusters it reads. Nothing is
asserted about time.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.realsyn.clustering import Clustering, learn_centroids
from tenfold.datamodules.realsyn.retrieval import HierarchicalIndex, cost_ratio
from tenfold.datamodules.realsyn.vectors import Vectors, to_unit


def mixture(number: int, width: int, centres: int, noise: float, seed: int) -> Vectors:
    """Unit vectors around `centres` directions, which are the same for each `seed` // 1000."""
    directions = np.random.default_rng(seed // 1000).standard_normal((centres, width))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    generator = np.random.default_rng(seed)
    found = np.empty((number, width), np.float16)
    for start in range(0, number, 50_000):
        size = min(50_000, number - start)
        around = generator.standard_normal((size, width), dtype=np.float32)
        around *= noise / np.linalg.norm(around, axis=1, keepdims=True)
        rows = directions[generator.integers(centres, size=size)] + around
        found[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def benchmark(
    sentences: Path | None = None,
    number: int = 1_000_000,
    width: int = 384,
    centres: int = 2000,
    noise: float = 1.0,
    queries: int = 1000,
    clusters: int = 0,
    rounds: int = 3,
    threads: int = 1,
    seed: int = 1000,
    recall: float = 0.9,
) -> None:
    """Prints recall@3 and the ratio of times for rising numbers of probes.

    Args:
        sentences: Real embeddings; queries are drawn from them and left out of the rest.
        number: Vectors of the mixture.
        width: Their dimensions.
        centres: Of the mixture.
        noise: Of the mixture.
        queries: In one batch.
        clusters: K; 0: one for 420 vectors.
        rounds: Each search is timed so often.
        threads: Of both.
        seed: Of vectors, k-means and choice.
        recall: Probes are added until recall@3 reaches it.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    faiss.omp_set_num_threads(threads)
    if sentences is None:
        vectors = mixture(number, width, centres, noise, seed)
        asked = mixture(queries, width, centres, noise, seed + 1)
        print(f"mixture: {centres} centres, noise {noise}, {number} x {width}, seed {seed}")
    else:
        every = to_unit(np.load(sentences))
        chosen = np.random.default_rng(seed).permutation(len(every))
        asked, vectors = every[chosen[:queries]], every[chosen[queries:]]
        print(f"{sentences.name}: {len(vectors)} x {vectors.shape[1]}")
    total = len(vectors)
    settings = Clustering(num_clusters=clusters or None, num_iterations=10, threads=threads)
    start = time.perf_counter()
    sample = vectors[np.random.default_rng(seed).permutation(total)[: settings.num_points(total)]]
    # Ten iterations on 64 points per centroid: the centroids are not what is measured.
    sample = sample[: 64 * settings.number(total)]
    centroids = learn_centroids(sample, settings.number(total), settings)
    index = HierarchicalIndex.build(vectors, centroids)
    print(f"{len(centroids)} clusters, made in {time.perf_counter() - start:.0f} s", flush=True)

    flat = faiss.IndexFlatIP(vectors.shape[1])
    for first in range(0, total, 100_000):
        flat.add(vectors[first : first + 100_000].astype(np.float32))
    wanted = asked.astype(np.float32)

    def timed(search: Callable[[], Any]) -> tuple[float, Any]:
        times = []
        for _ in range(rounds):
            start = time.process_time()
            found = search()
            times.append(time.process_time() - start)
        return statistics.median(times), found

    theirs, (_, exact) = timed(lambda: flat.search(wanted, 3))
    probes, reached = 1, 0.0
    while reached < recall and probes <= len(centroids):
        ours, (rows, _, num_scores) = timed(partial(index.search, asked, 3, probes))
        hits = sum(len(set(a) & set(b)) for a, b in zip(rows.tolist(), exact.tolist(), strict=True))
        reached = hits / exact.size
        print(
            f"probes {probes}: recall@3 {reached:.3f}, {theirs / ours:.1f}x faster "
            f"({ours:.2f} s against {theirs:.2f} s), {total * len(asked) / num_scores:.1f}x fewer "
            f"scores (formula: {cost_ratio(total, len(centroids), probes):.1f}x)",
            flush=True,
        )
        # Wanted on a mixture of a million vectors or more, where the recall is reached.
        stated = sentences is None and total >= 1e6 and reached >= recall
        name = f"CPU time, flat / ours, probes {probes}, recall@3 {reached:.3f}"
        ratio(name, theirs / ours, at_least=10 if stated else None)
        probes *= 2


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
