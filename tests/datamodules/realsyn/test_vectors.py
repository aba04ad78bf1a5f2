"""Scores are exact, whatever the order; choices among equal ones are by place."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.datamodules.realsyn.clustering import (
    Clustering,
    evenness,
    learn_centroids,
    nearest_centroids,
)
from tenfold.datamodules.realsyn.vectors import (
    exact_dots,
    exact_top,
    ranges_of,
    to_unit,
    top_scores,
)


def unit(number: int, width: int, seed: int) -> np.ndarray:
    return to_unit(np.random.default_rng(seed).standard_normal((number, width)))


@settings(max_examples=20)
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_scores_are_exact_in_any_batch_and_order(width, seed):
    left, right = unit(3, width, seed), unit(5, width, seed + 1)
    scores = exact_dots(left, right)
    for row in range(3):
        for column in range(5):
            products = zip(left[row].tolist(), right[column].tolist(), strict=True)
            exact = sum((Fraction(a) * Fraction(b) for a, b in products), Fraction(0))
            assert Fraction(float(scores[row, column])) == exact
    order = np.random.default_rng(seed).permutation(width)
    assert (exact_dots(left[:, order], right[:, order]) == scores).all()
    assert (exact_dots(left[1:2], right[3:]) == scores[1:2, 3:]).all()


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_top_scores_are_those_of_a_stable_sort(rows, number):
    scores = np.array(rows, dtype=float)
    expected = [sorted(range(7), key=lambda k: (-row[k], k))[:number] for row in rows]
    assert top_scores(scores, number).tolist() == expected
    wide = np.tile(scores, 20)
    expected = [sorted(range(140), key=lambda k: (-row[k % 7], k))[:number] for row in rows]
    assert top_scores(wide, number).tolist() == expected


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(1, 6), st.integers(0, 1000), st.integers(1, 40))
def test_the_fast_way_to_the_top_is_the_exact_one_also_among_copies(total, number, seed, kinds):
    generator = np.random.default_rng(seed)
    right = unit(kinds, 8, seed)[generator.integers(kinds, size=total)]
    left = np.concatenate([unit(5, 8, seed + 1), right[:3]])
    scores = exact_dots(left, right)
    places, best = exact_top(left, right, number)
    assert places.tolist() == top_scores(scores, number).tolist()
    assert best.tolist() == np.take_along_axis(scores, places, 1).tolist()


def test_scores_that_float32_cannot_tell_apart_are_still_in_order():
    # Rows differ in one last place of a float16: their scores by some 1e-8 and less.
    base = unit(1, 64, 0)
    right = np.repeat(base, 200, 0)
    for row in range(200):
        place = np.uint16(row % 64)
        right.view(np.uint16)[row, place] += np.uint16(row // 64)
    query = unit(1, 64, 1)
    places, _ = exact_top(query, right, 5)
    assert places.tolist() == top_scores(exact_dots(query, right), 5).tolist()


def test_rows_become_unit_vectors_by_themselves_and_zeros_stay():
    rows = np.array([[3.0, 4.0], [0, 0], [1e-30, 0]])
    assert to_unit(rows).tolist() == [[0.60009765625, 0.7998046875], [0, 0], [1, 0]]
    many = np.random.default_rng(0).standard_normal((50, 33))
    assert (to_unit(many)[7:9] == to_unit(many[7:9])).all()
    with pytest.raises(ValueError, match="not finite"):
        to_unit([[np.nan, 1]])


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_runs_cover_all_in_order_and_respect_the_limit(counts, most):
    runs = ranges_of(counts, most)
    assert [k for first, last in runs for k in range(first, last)] == list(range(len(counts)))
    for first, last in runs:
        assert last - first == 1 or sum(counts[first:last]) <= most


def test_kmeans_is_nearer_to_groups_than_any_of_their_rows_and_assigns_in_any_batch_the_same():
    centres = unit(6, 32, 0).astype(np.float32)
    noise = 0.1 * np.random.default_rng(1).standard_normal((600, 32))
    vectors = to_unit(np.repeat(centres, 100, 0) + noise)
    centroids = learn_centroids(vectors, 6, Clustering(seed=0))
    found = nearest_centroids(vectors, centroids)[:, 0]
    reached = exact_dots(vectors, centroids).max(1).mean()
    assert reached > exact_dots(vectors, vectors[50::100]).max(1).mean()
    norms = np.linalg.norm(centroids.astype(float), axis=1)
    assert norms == pytest.approx(np.ones(6), abs=1e-3)
    parts = [nearest_centroids(vectors[k : k + 7], centroids)[:, 0] for k in range(0, 600, 7)]
    assert (np.concatenate(parts) == found).all()
    assert (learn_centroids(vectors, 6, Clustering(seed=0)) == centroids).all()


def test_the_number_of_clusters_follows_the_rows():
    paper = Clustering()
    assert paper.number(840_000_000) == 2_000_000
    assert paper.number(100) == 1
    assert Clustering(num_clusters=50).number(20) == 20
    assert paper.num_points(840_000_000) == 10_000_000
    with pytest.raises(ValueError, match="num_iterations must be 1 or more"):
        Clustering(num_iterations=0)


def test_evenness_of_equal_and_of_one_sided_sizes():
    equal = evenness(np.array([5, 5, 5, 5]))
    assert equal == {"entropy": pytest.approx(1), "gini": pytest.approx(0), "max_share": 0.25}
    single = evenness(np.array([0, 0, 0, 9]))
    assert single == {"entropy": 0, "gini": pytest.approx(0.75), "max_share": 1}
