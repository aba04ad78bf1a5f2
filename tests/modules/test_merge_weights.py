"""Merge weights: the published tables, and what each scheme is exact for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenfold.modules.merge_weights import (
    DECAY_SHAPES,
    MergeScheme,
    decay_fraction,
    decay_to_weights,
    qam_weights,
    weights_to_decay,
)

# WSM figure 2 and PMA equations 3-5, ten checkpoints, oldest first.
TABLE = {
    MergeScheme("sma"): [0.1] * 10,
    MergeScheme("wsm", "linear"): [0.1] * 10,
    MergeScheme("wsm", "cosine"): [
        *(0.0245, 0.0710, 0.1106, 0.1394, 0.1545),
        *(0.1545, 0.1394, 0.1106, 0.0710, 0.0245),
    ],
    MergeScheme("wsm", "1-sqrt"): [
        *(0.3162, 0.1310, 0.1005, 0.0847, 0.0747),
        *(0.0675, 0.0621, 0.0578, 0.0543, 0.0513),
    ],
    MergeScheme("wsm", "square"): [0.01 + 0.02 * i for i in range(10)],
    MergeScheme("wsm", "exp"): [
        *(0.1259, 0.0326, 0.0410, 0.0517, 0.0650),
        *(0.0819, 0.1031, 0.1298, 0.1634, 0.2057),
    ],
    MergeScheme("wsm", "cosine", min_lr_ratio=0.1): [
        *(0.0220, 0.0639, 0.0996, 0.1254, 0.1391),
        *(0.1391, 0.1254, 0.0996, 0.0639, 0.1220),
    ],
    MergeScheme("ema", ema_alpha=0.2): [
        *(0.1342, 0.0336, 0.0419, 0.0524, 0.0655),
        *(0.0819, 0.1024, 0.1280, 0.1600, 0.2000),
    ],
    MergeScheme("wma"): [i / 55 for i in range(1, 11)],
    MergeScheme("qam", "linear"): [
        *(0.0004, 0.0070, 0.0482, 0.1597, 0.2847),
        *(0.2847, 0.1597, 0.0482, 0.0070, 0.0004),
    ],
}
SCHEMES = [s for s in TABLE if s.scheme != "sma"] + [MergeScheme("qam", s) for s in DECAY_SHAPES]

decays = st.lists(st.floats(0, 1), max_size=12).map(lambda values: sorted(values, reverse=True))


@pytest.mark.parametrize(
    ("scheme", "expected"), TABLE.items(), ids=lambda x: getattr(x, "name", "")
)
def test_published_weights(scheme, expected):
    assert scheme.weights(10) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.scheme}_{scheme.name}")
@pytest.mark.parametrize("num_checkpoints", [1, 2, 3, 10, 64])
def test_weights_are_a_distribution(scheme, num_checkpoints):
    weights = scheme.weights(num_checkpoints)
    assert len(weights) == num_checkpoints
    assert min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)


@given(decays)
def test_weights_and_decay_are_one_thing_in_two_notations(decay):
    weights = decay_to_weights(decay)
    assert min(weights) >= 0
    assert weights_to_decay(weights) == pytest.approx(decay, abs=1e-12)
    assert decay_to_weights(weights_to_decay(weights)) == pytest.approx(weights, abs=1e-12)


@given(decays)
def test_qam_counts_independent_events(decay):
    weights = np.array(qam_weights(decay))
    index, w = np.arange(len(weights)), np.array(decay)
    mean = weights @ index
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(w.sum(), abs=1e-12)
    assert weights @ (index - mean) ** 2 == pytest.approx((w * (1 - w)).sum(), abs=1e-12)


@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_wsm_is_exact_where_gradients_do_not_depend_on_the_weights(shape):
    """On a linear loss the merge is the run trained again with the decayed learning rate."""
    rng = np.random.default_rng(0)
    gradients, lr, steps_apart, num = rng.normal(size=(36, 5)), 0.1, 4, 10
    path = np.vstack([np.zeros(5), -np.cumsum(lr * gradients, axis=0)])
    weights = MergeScheme("wsm", shape).weights(num)
    merged = np.tensordot(weights, path[::steps_apart], axes=1)
    decay = [decay_fraction(shape, i / num) for i in range(1, num)]
    annealed = -sum(
        lr * w * g for w, g in zip(np.repeat(decay, steps_apart), gradients, strict=True)
    )
    assert merged == pytest.approx(annealed, abs=1e-12)


@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_qam_is_exact_on_a_quadratic_and_wsm_is_not(shape):
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(5, 5))
    hessian, minimum, lr, num = factor @ factor.T / 5, rng.normal(size=5), 0.05, 10
    path = [rng.normal(size=5)]
    for _ in range(num - 1):
        path.append(path[-1] - lr * hessian @ (path[-1] - minimum))
    annealed = path[0]
    for i in range(1, num):
        fraction = decay_fraction(shape, i / num)
        annealed = annealed - lr * fraction * hessian @ (annealed - minimum)
    errors = {
        scheme: np.abs(np.tensordot(MergeScheme(scheme, shape).weights(num), path, 1) - annealed)
        for scheme in ("qam", "wsm")
    }
    assert errors["qam"].max() < 1e-12
    assert errors["wsm"].max() > 1e-4


def test_ema_is_the_recursion():
    values = np.random.default_rng(2).normal(size=7)
    average = values[0]
    for value in values[1:]:
        average = 0.3 * value + 0.7 * average
    assert MergeScheme("ema", ema_alpha=0.3).weights(7) @ values == pytest.approx(
        average, abs=1e-12
    )


def test_wma_emulates_a_late_decay():
    decay = weights_to_decay(MergeScheme("wma").weights(10))
    assert decay == pytest.approx([1 - i * (i + 1) / 110 for i in range(1, 10)], abs=1e-12)


@pytest.mark.parametrize("scheme", ["wsm", "qam"])
@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_even_spacing_needs_no_areas(scheme, shape):
    even = [7 + 0.5 * i for i in range(10)]
    plain = MergeScheme(scheme, shape).weights(10)
    assert MergeScheme(scheme, shape).weights(10, even) == pytest.approx(plain, abs=1e-12)


def test_uneven_spacing_reads_the_decay_where_the_checkpoints_lie():
    # Linear: the weight of a checkpoint is the share of the interval before it that it closes.
    weights = MergeScheme("wsm", "linear").weights(4, [0, 1, 3, 6])
    assert weights == pytest.approx([1 / 8, 2 / 8, 3 / 8, 2 / 8], abs=1e-12)


def test_a_hessian_decides_what_a_merge_gains():
    """PMA section 5: on a quadratic, the merge is better than the mean member by the variance."""
    rng = np.random.default_rng(3)
    factor, deltas = rng.normal(size=(6, 6)), rng.normal(size=(8, 6))
    hessian = factor @ factor.T
    losses = 0.5 * np.einsum("ki,ij,kj->k", deltas, hessian, deltas)
    merged = np.array(MergeScheme("sma").weights(8)) @ deltas
    spread = deltas - merged
    gain = np.einsum("ki,ij,kj->", spread, hessian, spread) / 16
    assert losses.mean() - 0.5 * merged @ hessian @ merged == pytest.approx(gain, abs=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "mean"}, "scheme: 'mean' is none of sma, wma"),
        ({"scheme": "wsm", "decay_shape": "sqrt"}, "decay_shape: 'sqrt' is none of linear"),
        ({"scheme": "ema", "ema_alpha": 0.0}, "ema_alpha"),
        ({"scheme": "wsm", "min_lr_ratio": 1.5}, "min_lr_ratio"),
        ({"scheme": "custom"}, "custom_weights belong to scheme 'custom'"),
        ({"custom_weights": [1.0]}, "custom_weights belong to scheme 'custom'"),
        ({"scheme": "custom", "custom_weights": [0.7, 0.7]}, "must sum to 1"),
        ({"scheme": "custom", "custom_weights": [1.5, -0.5]}, "must not be negative"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MergeScheme(**arguments)


def test_custom_weights_fit_the_number_of_checkpoints():
    scheme = MergeScheme("custom", custom_weights=[1.5, -0.5], allow_unnormalized=True)
    assert scheme.weights(2) == [1.5, -0.5]
    with pytest.raises(ValueError, match="2 weights, but 3 checkpoints"):
        scheme.weights(3)


@pytest.mark.parametrize("areas", [[0, 1], [0, 2, 1], [0, 1, 1]])
def test_areas_must_increase(areas):
    with pytest.raises(ValueError, match="3 increasing numbers"):
        MergeScheme("wsm").weights(3, areas)
