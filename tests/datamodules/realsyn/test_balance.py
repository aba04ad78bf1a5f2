"""Balance sampling: caps, sizes, nesting, order; the band of similarity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenfold.datamodules.realsyn.balance import (
    BalanceSampling,
    SimilarityBand,
    cap_for,
    sample_balanced,
)
from tenfold.datamodules.realsyn.clustering import evenness
from tenfold.datamodules.realsyn.tables import hash64

clusterings = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def hashes(number: int) -> np.ndarray:
    return np.array([hash64(0, str(row)) for row in range(number)], np.uint64)


def sizes(clusters: np.ndarray) -> np.ndarray:
    return np.bincount(clusters, minlength=6)


@given(clusterings, st.integers(1, 20))
def test_a_cap_keeps_small_clusters_whole_and_larger_caps_contain_smaller_ones(raw, cap):
    clusters = np.array(raw)
    kept = sample_balanced(clusters, hashes(len(raw)), BalanceSampling(cap=cap))
    assert (sizes(clusters[kept]) == np.minimum(sizes(clusters), cap)).all()
    more = sample_balanced(clusters, hashes(len(raw)), BalanceSampling(cap=cap + 1))
    assert (more | ~kept).all()


@given(clusterings, st.integers(1, 80))
def test_a_target_size_is_hit_exactly_and_as_evenly_as_caps_allow(raw, target):
    clusters = np.array(raw)
    settings = BalanceSampling(cap=None, target_size=target)
    kept = sample_balanced(clusters, hashes(len(raw)), settings)
    assert kept.sum() == min(target, len(raw))
    cap = cap_for(np.bincount(clusters), target)
    assert (sizes(clusters[kept]) >= np.minimum(sizes(clusters), cap)).all()
    assert (sizes(clusters[kept]) <= cap + 1).all()


@given(clusterings, st.randoms())
def test_what_stays_does_not_depend_on_the_order_of_the_rows(raw, random_):
    clusters, keys = np.array(raw), hashes(len(raw))
    kept = sample_balanced(clusters, keys, BalanceSampling(cap=3))
    order = list(range(len(raw)))
    random_.shuffle(order)
    again = sample_balanced(clusters[order], keys[order], BalanceSampling(cap=3))
    assert (kept[order] == again).all()


def test_a_cap_flattens_a_zipf_law_more_than_a_random_subset_of_the_same_size():
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, 101)
    clusters = generator.choice(100, 20_000, p=weights / weights.sum())
    keys = hashes(len(clusters))
    capped = sample_balanced(clusters, keys, BalanceSampling(cap=60))
    size = int(capped.sum())
    random = sample_balanced(
        clusters, keys, BalanceSampling(mode="random", cap=None, target_size=size)
    )
    assert random.sum() == size
    even, uneven = (evenness(np.bincount(clusters[k], minlength=100)) for k in (capped, random))
    assert even["entropy"] > uneven["entropy"] + 0.1
    assert even["gini"] < uneven["gini"] - 0.4
    assert even["max_share"] < uneven["max_share"] / 5


def test_bernoulli_keeps_as_many_on_average_and_small_clusters_whole():
    clusters = np.repeat([0, 1], [4000, 10])
    kept = sample_balanced(clusters, hashes(4010), BalanceSampling(mode="bernoulli", cap=1000))
    # 1000 with a standard deviation of sqrt(1000 * 3 / 4) = 27
    assert abs(kept[:4000].sum() - 1000) < 120
    assert kept[4000:].all()


def test_none_keeps_all():
    assert sample_balanced(np.array([0, 0]), hashes(2), BalanceSampling(mode="none")).all()


def test_bands_are_cosines_affine_scores_or_shares():
    cosines = np.linspace(-0.1, 0.9, 101)
    assert SimilarityBand("raw", 0.51, 0.61).limits(cosines) == (0.51, 0.61)
    assert SimilarityBand("affine", 0.51, 0.61).limits(cosines) == pytest.approx((0.02, 0.22))
    low, high = SimilarityBand().limits(cosines)
    kept = (cosines >= low) & (cosines <= high)
    assert kept.mean() == pytest.approx(0.85, abs=0.02)
    assert (cosines < low).sum() == pytest.approx(7.5, abs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"cap": 5, "target_size": 5},
        {"cap": None},
        {"cap": 0},
        {"mode": "random"},
        {"mode": "bernoulli", "cap": None, "target_size": 4},
    ],
)
def test_senseless_settings_are_refused(options):
    with pytest.raises(ValueError, match="balance: "):
        BalanceSampling(**options)
    with pytest.raises(ValueError, match="band: "):
        SimilarityBand("quantile", 0.9, 0.1)
