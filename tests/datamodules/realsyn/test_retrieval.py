"""Hierarchical retrieval against an exact search, and what it costs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.datamodules.realsyn.clustering import Clustering, learn_centroids
from tenfold.datamodules.realsyn.retrieval import (
    HierarchicalIndex,
    Retrieval,
    best_candidates,
    choose_probes,
    cost_ratio,
)
from tenfold.datamodules.realsyn.vectors import exact_dots, to_unit, top_scores


def unit(number: int, width: int, seed: int) -> np.ndarray:
    return to_unit(np.random.default_rng(seed).standard_normal((number, width)))


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 100))
def test_all_clusters_together_give_the_exact_result(number, num_clusters, num_texts, seed):
    vectors, queries = unit(number, 4, seed), unit(5, 4, seed + 1)
    index = HierarchicalIndex.build(vectors, unit(num_clusters, 4, seed + 2))
    rows, scores, _ = index.search(queries, num_texts, num_clusters)
    exact = exact_dots(queries, vectors)
    expected = top_scores(exact, num_texts)
    assert rows[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (rows[:, expected.shape[1] :] == -1).all()
    for row in range(5):
        known = rows[row][rows[row] >= 0]
        assert scores[row][: len(known)].tolist() == exact[row, known].tolist()


@settings(max_examples=25)
@given(st.integers(3, 60), st.integers(1, 12), st.integers(1, 3), st.integers(0, 100))
def test_a_query_always_gets_its_texts_from_its_nearest_clusters(number, num_clusters, k, seed):
    vectors, queries = unit(number, 4, seed), unit(6, 4, seed + 1)
    centroids = unit(num_clusters, 4, seed + 2)
    index = HierarchicalIndex.build(vectors, centroids)
    rows, _, _ = index.search(queries, k, 1)
    assert (rows >= 0).all()  # never padded, though clusters may be small or empty
    ranked = np.argsort(-exact_dots(queries, centroids), axis=1, kind="stable")
    cluster_of = np.empty(number, int)
    cluster_of[index.rows] = index.clusters
    for row in range(6):
        probed: list[int] = []
        total = 0
        for cluster in ranked[row]:
            if index.sizes[cluster] and (not probed or total < k):
                probed.append(int(cluster))
                total += int(index.sizes[cluster])
        members = np.flatnonzero(np.isin(cluster_of, probed))
        best = top_scores(exact_dots(queries[row : row + 1], vectors[members]), k)[0]
        assert rows[row].tolist() == members[best].tolist()


def test_recall_rises_with_the_probes_and_the_cost_is_what_the_formula_says():
    vectors, queries = unit(4000, 16, 0), unit(200, 16, 1)
    centroids = learn_centroids(vectors, 64, Clustering(num_iterations=10))
    index = HierarchicalIndex.build(vectors, centroids)
    exact = top_scores(exact_dots(queries, vectors), 3)
    recalls, ratios = [], []
    for probes in (1, 2, 4, 8, 64):
        rows, _, num_scores = index.search(queries, 3, probes)
        hits = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]
        recalls.append(sum(hits) / exact.size)
        ratios.append(4000 * 200 / num_scores)
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9
    assert recalls[-1] == 1
    for probes, ratio in zip((1, 2, 4, 8), ratios, strict=False):
        # Clusters are not equal: those that are probed are larger than the average.
        assert 0.7 < ratio / cost_ratio(4000, 64, probes) < 1.1


def test_the_papers_numbers_give_a_ratio_of_420():
    assert cost_ratio(840_000_000, 2_000_000) == pytest.approx(420, rel=1e-3)


def test_empty_clusters_are_not_probed_and_small_ones_are_followed_by_others():
    centroids = to_unit([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]])
    probes = choose_probes(to_unit([[1, 0]]), centroids, np.array([0, 1, 1, 5]), 1, 3)
    assert probes.tolist() == [[1, 2, 3]]
    assert choose_probes(to_unit([[1, 0]]), centroids, np.zeros(4, int), 1, 3).shape == (1, 0)


def test_equal_scores_are_ranked_by_row():
    queries = np.array([1, 0, 1, 1])
    best = best_candidates(queries, np.array([9, 5, 2, 4]), np.array([1.0, 0.5, 1.0, 2.0]), 2)
    assert best.tolist() == [1, 3, 2]


@pytest.mark.parametrize("option", ["num_texts", "num_probes"])
def test_senseless_settings_are_refused(option):
    with pytest.raises(ValueError, match="retrieval: "):
        Retrieval(**{option: 0})
