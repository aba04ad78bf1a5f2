"""Golden values of the authors' functions, and what must hold for any attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.perception_magnifier.perception_map import (
    aggregate_attention,
    box_smooth,
    check_layers,
    enhance,
    refine,
    two_means,
    upsample,
)

HEAT = torch.tensor(
    [
        [0.01, 0.02, 0.01, 0.03],
        [0.02, 0.30, 0.25, 0.02],
        [0.01, 0.20, 0.05, 0.01],
        [0.02, 0.01, 0.01, 0.03],
    ]
)
# Computed with the authors' functions on HEAT, alpha 10, kernel 3.
SMOOTHED = torch.tensor(
    [
        [0.118018, 0.227853, 0.234081, 0.128822],
        [0.227853, 0.360840, 0.363954, 0.145747],
        [0.228678, 0.360840, 0.363129, 0.145747],
        [0.118018, 0.139520, 0.144096, 0.039663],
    ]
)


def test_the_hot_cells_are_those_of_the_reference():
    hot = two_means(HEAT.flatten()[None])[0].view(4, 4)
    assert hot.nonzero().tolist() == [[1, 1], [1, 2], [2, 1]]


def test_enhanced_and_smoothed_maps_are_those_of_the_reference():
    sharp = enhance(HEAT, alpha=10)
    golden = torch.tensor([0.004056, 0.011484, 0.004056, 0.032080])
    torch.testing.assert_close(sharp[0], golden, atol=1e-5, rtol=0)
    cells = [sharp[1, 1], sharp[1, 2], sharp[2, 1], sharp[2, 2], sharp[1, 0], sharp[3, 0]]
    golden = torch.tensor([1.0, 1.0, 0.999999, 0.212427, 0.011484, 0.011484])
    torch.testing.assert_close(torch.stack(cells), golden, atol=1e-5, rtol=0)
    torch.testing.assert_close(box_smooth(sharp, 3), SMOOTHED, atol=1e-5, rtol=0)


def lloyd_in_float64(values):
    """The definition, one number after the other."""
    low, high = min(values), max(values)
    for _ in range(10):
        hot = [abs(v - high) < abs(v - low) for v in values]
        lows = [v for v, is_hot in zip(values, hot, strict=True) if not is_hot]
        highs = [v for v, is_hot in zip(values, hot, strict=True) if is_hot]
        new_low = math.fsum(lows) / len(lows) if lows else low
        new_high = math.fsum(highs) / len(highs) if highs else high
        moved = max(abs(new_low - low), abs(new_high - high))
        low, high = new_low, new_high
        if moved < 1e-4:
            break
    return hot


@given(
    st.lists(
        st.lists(st.integers(0, 64).map(lambda v: v / 64), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=60)
def test_clusters_of_a_padded_batch_are_those_of_each_row_alone(rows):
    width = max(map(len, rows))
    values = torch.full((len(rows), width), torch.nan).double()
    for row, numbers in enumerate(rows):
        values[row, : len(numbers)] = torch.tensor(numbers).double()
    valid = ~values.isnan()
    hot = two_means(values.nan_to_num(9.0), valid)
    assert not hot[~valid].any()
    for row, numbers in enumerate(rows):
        assert hot[row, : len(numbers)].tolist() == lloyd_in_float64(numbers)


def test_layers_and_heads_are_reduced_as_named():
    layers = [torch.tensor([[[0.1, 0.4], [0.3, 0.2]]]), torch.tensor([[[0.0, 0.5], [0.2, 0.1]]])]
    close = torch.testing.assert_close
    close(aggregate_attention(layers), torch.tensor([[0.25, 0.45]]))
    close(aggregate_attention(layers, divisor=1), torch.tensor([[0.5, 0.9]]))
    close(aggregate_attention(layers, "mean"), torch.tensor([[0.15, 0.3]]))
    close(aggregate_attention(layers, "max", "normalized_mean"), torch.tensor([[0.0, 1.0]]))
    assert aggregate_attention([layers[0].half()]).dtype == torch.float32
    assert [check_layers(None, 32), check_layers(None, 2), check_layers(None, 1)] == [12, 1, 1]
    with pytest.raises(ValueError, match=r"start_layer: 5 is not in 1 \.\.\. 4"):
        check_layers(5, 4)


class Attention:
    """Fixed logits; hidden cells are left out of the softmax. Counts how often it is asked."""

    def __init__(self, logits, threshold=0.0):
        self.logits, self.threshold, self.hidden = logits, threshold, []

    def __call__(self, hidden, active):
        self.hidden.append(hidden.clone())
        heat = 2 * self.logits.masked_fill(hidden, -torch.inf).softmax(dim=1)
        heat *= 0.6 ** len(self.hidden)  # the rest of the attention goes to words
        return heat, heat.sum(dim=1) <= self.threshold

    def first(self):
        return 2 * self.logits.softmax(dim=1)


def reference_refinement(attention, max_iterations):
    """The loop of the specification, for one question."""
    heat, visible = attention.first()[0], torch.ones(attention.logits.shape[1]).bool()
    sums = counts = torch.zeros(attention.logits.shape[1])
    for _ in range(max_iterations):
        counts, sums = counts + visible, sums + heat
        visible = visible & ~torch.tensor(lloyd_in_float64(heat.tolist()))
        heat, done = (x[0] for x in attention(~visible[None], torch.ones(1).bool()))
        if done:
            break
    return sums / counts


@pytest.mark.parametrize("max_iterations", [1, 2, 3, 8])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 9.0])
def test_refinement_is_the_loop_of_the_paper(max_iterations, threshold):
    logits = 3 * torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    ours, theirs = Attention(logits, threshold), Attention(logits, threshold)
    found = refine(ours.first(), torch.ones(1, 16).bool(), ours, max_iterations)
    torch.testing.assert_close(found.map[0], reference_refinement(theirs, max_iterations))
    assert found.rounds.item() == len(ours.hidden) <= max(0, max_iterations - 1)
    for before, after in zip(ours.hidden, ours.hidden[1:], strict=False):
        assert after.sum() > before.sum()  # what is visible shrinks strictly
        assert bool((after | ~before).all())


def test_refinement_of_a_batch_is_that_of_each_question():
    logits = 3 * torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(4, 9).bool()
    valid[2, 6:] = False
    logits = logits.masked_fill(~valid, -1e9)
    asked = Attention(logits, 0.6)
    found = refine(asked.first(), valid, asked, 8)
    for row in range(4):
        count = int(valid[row].sum())
        alone = Attention(logits[row : row + 1, :count], 0.6)
        one = refine(alone.first(), torch.ones(1, count).bool(), alone, 8)
        torch.testing.assert_close(found.map[row, :count], one.map[0])
        assert found.rounds[row] == one.rounds[0]


def test_no_iterations_ask_nothing_and_uniform_heat_is_left_alone():
    attention = Attention(torch.randn(2, 6))
    for iterations in (0, 1):
        found = refine(attention.first(), torch.ones(2, 6).bool(), attention, iterations)
        assert torch.equal(found.map, attention.first())
    uniform = torch.full((2, 6), 0.1)
    assert torch.equal(refine(uniform, torch.ones(2, 6).bool(), attention, 8).map, uniform)
    assert attention.hidden == []


def test_the_first_round_may_be_dropped_but_not_if_it_is_all():
    attention = Attention(torch.tensor([[5.0, 0.0, 1.0, 0.5]]), 0.0)
    valid = torch.ones(1, 4).bool()
    kept = refine(attention.first(), valid, attention, 2).map
    attention.hidden = []
    dropped = refine(attention.first(), valid, attention, 2, drop_first_round=True).map
    assert kept.argmax() == 0
    assert dropped.argmax() == 2
    assert dropped[0, 0] == 0
    done = Attention(attention.logits, 99.0)
    assert torch.equal(refine(done.first(), valid, done, 8, True).map, done.first())


def test_uniform_maps_stay_uniform():
    for value in (0.0, 0.3, 1e-3):
        uniform = box_smooth(enhance(torch.full((5, 3), value), 10), 3)
        assert torch.equal(uniform, torch.full((5, 3), 0.5))
    assert torch.equal(enhance(torch.rand(1, 1), 10), torch.full((1, 1), 0.5))
    with pytest.raises(ValueError, match="kernel_size: 2 is not odd"):
        box_smooth(HEAT, 2)


def test_upsampling_keeps_place_and_sign():
    hot = torch.zeros(4, 6)
    hot[1, 4] = 1.0
    for mode in ("bilinear", "bicubic"):
        large = upsample(hot, (40, 60), mode)
        assert large.shape == (40, 60)
        assert large.min() >= 0
        assert 10 <= large.flatten().argmax().item() // 60 < 20
        assert 40 <= large.flatten().argmax().item() % 60 < 50
