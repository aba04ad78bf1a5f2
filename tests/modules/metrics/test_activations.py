"""Kurtosis and rounding statistics against scipy and numpy, however the values are split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis
from tenfold.modules.metrics.activations import (
    ActivationStatistics,
    central_moments,
    merge_moments,
)


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    mean=st.sampled_from([0.0, 1.0, 1e4, -1e6]),
    power=st.sampled_from([1, 3]),
)
@settings(deadline=None, max_examples=80)
def test_kurtosis_is_scipys_for_any_split(seed, sizes, mean, power):
    generator = np.random.default_rng(seed)
    parts = [generator.normal(size=size) ** power + mean for size in sizes]
    metric = ActivationStatistics()
    for part in parts:
        metric.update(torch.from_numpy(part))
    whole = np.concatenate(parts)
    if len(whole) < 3:
        return
    values = metric.compute()
    assert float(values["kurtosis"]) == pytest.approx(kurtosis(whole, fisher=False), rel=1e-6)
    assert float(values["amax"]) == np.abs(whole).max()
    assert set(values) == {"kurtosis", "amax"}


@given(seed=st.integers(0, 2**32 - 1), splits=st.lists(st.integers(0, 40), min_size=2, max_size=5))
@settings(deadline=None, max_examples=60)
def test_moments_of_parts_merge_into_those_of_the_whole(seed, splits):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=sum(splits) + 2) * 3 + 7)
    parts = [part for part in x.split([*splits, 2]) if len(part)]
    merged = merge_moments(torch.stack([central_moments(part) for part in parts]))
    torch.testing.assert_close(merged, central_moments(x), rtol=1e-9, atol=1e-9)


def test_rounding_statistics_are_those_of_their_definitions():
    x = torch.tensor([1.0, -2.0, 0.1, 8.0])
    rounded = torch.tensor([1.0, -2.0, 0.0, 7.0])
    clipped = torch.tensor([False, False, False, True])
    metric = ActivationStatistics()
    for half in (slice(0, 2), slice(2, 4)):
        metric.update(x[half], rounded[half], clipped[half])
    values = metric.compute()
    assert float(values["clip_fraction"]) == 0.25
    assert float(values["zero_fraction"]) == 0.25
    assert float(values["snr_db"]) == pytest.approx(10 * np.log10(69.01 / 1.01), rel=1e-6)


def test_a_gaussian_has_kurtosis_3_and_an_exact_rounding_infinite_snr():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    metric = ActivationStatistics()
    metric.update(x, x, torch.zeros_like(x, dtype=torch.bool))
    values = metric.compute()
    assert float(values["kurtosis"]) == pytest.approx(3, abs=0.05)
    assert float(values["snr_db"]) == np.inf
