"""Duplicates against brute force and networkx, in any order."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenfold.datamodules.realsyn.duplicates import (
    NUM_BANDS,
    DuplicateFilter,
    band_pairs,
    choose_tau,
    components,
    hash_pairs,
    minhashes,
    near_hashes,
    representatives,
    similar_pairs,
)
from tenfold.datamodules.realsyn.vectors import exact_dots, to_unit

pairs_of_12 = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20)
hash_lists = st.lists(
    st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 3, 7, 15, 31, 2**63, 2**64 - 1])),
    min_size=1,
    max_size=24,
)


def as_pairs(pairs) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@given(pairs_of_12, st.randoms())
def test_components_are_those_of_a_graph_in_any_order_of_its_edges(pairs, random_):
    graph = nx.Graph(pairs)
    graph.add_nodes_from(range(12))
    labels = components(as_pairs(pairs), 12)
    expected = {frozenset(c) for c in nx.connected_components(graph)}
    assert {frozenset(np.flatnonzero(labels == k).tolist()) for k in set(labels)} == expected
    random_.shuffle(pairs)
    assert (components(as_pairs([p[::-1] for p in pairs]), 12) == labels).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.data())
def test_the_largest_of_a_component_stays_and_of_equal_ones_the_first(raw, data):
    labels = np.unique(raw, return_inverse=True)[1]
    size = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(raw), max_size=len(raw))))
    kept = representatives(labels, size)
    expected = {
        min(np.flatnonzero(labels == k).tolist(), key=lambda row: (-size[row], row))
        for k in set(labels)
    }
    assert set(np.flatnonzero(kept).tolist()) == expected


@given(hash_lists, st.integers(0, 6))
def test_pairs_of_near_hashes_join_what_brute_force_joins(values, limit):
    hashes = np.array(values, np.uint64)
    number = len(values)
    brute = [
        (a, b)
        for a in range(number)
        for b in range(a)
        if (values[a] ^ values[b]).bit_count() <= limit
    ]
    found = components(hash_pairs(hashes, limit), number)
    assert (found == components(as_pairs(brute), number)).all()


@given(hash_lists, hash_lists, st.integers(0, 6))
def test_near_hashes_of_another_set(values, others, limit):
    near = near_hashes(np.array(values, np.uint64), np.array(others, np.uint64), limit)
    expected = [any((a ^ b).bit_count() <= limit for b in others) for a in values]
    assert near.tolist() == expected
    assert not near_hashes(np.array(values, np.uint64), np.zeros(0, np.uint64), limit).any()


@given(st.integers(2, 40), st.integers(0, 1000))
def test_similar_pairs_are_all_pairs_above_the_limit(number, seed):
    vectors = to_unit(np.random.default_rng(seed).standard_normal((number, 3)))
    pairs, cosines = similar_pairs(vectors, number, 0.8)
    scores = exact_dots(vectors, vectors)
    expected = [(a, b) for a in range(number) for b in range(a + 1, number) if scores[a, b] >= 0.8]
    assert [tuple(p) for p in pairs.tolist()] == expected
    assert cosines.tolist() == [scores[a, b] for a, b in expected]


@given(pairs_of_12, st.lists(st.sampled_from([0.8, 0.85, 0.9, 0.95]), min_size=20, max_size=20))
def test_an_automatic_tau_leaves_at_least_what_is_wanted_and_the_next_lower_less(pairs, levels):
    scored, scores = as_pairs(pairs), np.array(levels[: len(pairs)])
    none = as_pairs([])

    def left(tau):
        return len(set(components(scored[scores >= tau], 12).tolist()))

    for wanted in range(1, 13):
        tau = choose_tau(scored, scores, none, 12, wanted)
        assert left(tau) >= wanted
        lower = [level for level in set(scores.tolist()) if level < tau]
        assert all(left(level) < wanted for level in lower)


def test_kept_rows_never_rise_when_tau_falls():
    vectors = to_unit(np.random.default_rng(0).standard_normal((200, 4)))
    pairs, cosines = similar_pairs(vectors, 20, 0.7)
    kept = [
        components(pairs[cosines >= tau], 200).max() + 1 for tau in (0.99, 0.97, 0.95, 0.9, 0.7)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_near_copies_of_sentences_meet_and_others_do_not():
    words = [f"word{k}" for k in range(40)]
    changed = [*words[:39], "other"]
    texts = [" ".join(words), " ".join(changed), " ".join(reversed(words)), "a b"]
    signatures = minhashes(texts)
    assert signatures.shape == (4, 64)
    found = [band_pairs(signatures, band, 0.8) for band in range(NUM_BANDS)]
    assert {tuple(sorted(p)) for pairs in found for p in pairs.tolist()} == {(0, 1)}
    # 37 of 39 different triples of the two are common: the estimate of 64 numbers is near.
    assert np.mean(signatures[0] == signatures[1]) == pytest.approx(37 / 39, abs=0.12)
    assert len(minhashes([])) == 0


@pytest.mark.parametrize(
    "options", [{"tau": -2.0}, {"target_removed": 1.0}, {"neighbours": 0}, {"max_hamming": 64}]
)
def test_senseless_settings_are_refused(options):
    with pytest.raises(ValueError, match="duplicates: "):
        DuplicateFilter(**options)
