"""The weights of the last query, against a float64 loop and transformers' eager attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.kernels.last_row_attention import last_row_attention
from torch.utils._python_dispatch import TorchDispatchMode


def weights_in_float64(query, key, visible, scaling, gain=None):
    """The definition, one head and key after the other; `visible` (B, H, K)."""
    batch, heads, _, _ = query.shape
    repeats = heads // key.shape[1]
    weights = torch.zeros(batch, heads, key.shape[2], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            scores = {}
            for k in range(key.shape[2]):
                if visible[b, h, k]:
                    pairs = zip(query[b, h, -1].tolist(), key[b, h // repeats, k].tolist())  # noqa: B905
                    score = scaling * math.fsum(x * y for x, y in pairs)
                    scores[k] = score + (0 if gain is None else gain[b, k].item() * abs(score))
            top = max(scores.values(), default=0)
            total = math.fsum(math.exp(s - top) for s in scores.values())
            for k, score in scores.items():
                weights[b, h, k] = math.exp(score - top) / total
    return weights


SHAPES = st.tuples(*(st.integers(1, n) for n in (3, 2, 3, 4, 6, 5)))


@given(SHAPES, st.sampled_from(["none", "bool", "int", "additive", "padding"]), st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_weights_are_those_of_the_definition(shape, kind, seed):
    batch, groups, repeats, num_queries, num_keys, width = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, groups * repeats, num_queries, width, generator=generator)
    key = torch.randn(batch, groups, num_keys, width, generator=generator)
    visible = torch.rand(batch, 1, num_queries, num_keys, generator=generator) < 0.7
    if kind == "none":
        mask, visible = None, torch.ones_like(visible)
    elif kind == "padding":
        mask = visible[:, 0, -1].long()
    elif kind == "additive":
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    else:
        mask = visible if kind == "bool" else visible.int()
    gain = torch.rand(batch, num_keys, generator=generator) if seed % 2 else None
    found = last_row_attention(query, key, mask, 0.7, gain)
    rows = visible[:, :, -1].expand(-1, groups * repeats, -1)
    expected = weights_in_float64(query.double(), key.double(), rows, 0.7, gain)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not found[~rows].any()
    totals = found.sum(dim=-1)
    torch.testing.assert_close(totals, rows.any(dim=-1).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_taken_in_single(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, h, 7, 16, generator=generator).to(dtype) for h in (4, 2))
    found = last_row_attention(query, key)
    assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
    visible = torch.ones(2, 4, 7)
    expected = weights_in_float64(query.double(), key.double(), visible, 0.25)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-6)


def test_the_row_is_that_of_the_whole_attention_of_transformers():
    from transformers.models.llama.modeling_llama import eager_attention_forward

    class Layer(torch.nn.Module):
        num_key_value_groups = 3

    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, h, 9, 8, generator=generator) for h in (6, 2, 2))
    lowest = torch.finfo(torch.float32).min
    mask = torch.full((9, 9), lowest).triu(1).expand(2, 1, 9, 9).clone()
    mask[0, :, :, :3] = lowest
    _, weights = eager_attention_forward(Layer().eval(), query, key, value, mask, 0.3)
    torch.testing.assert_close(last_row_attention(query, key, mask, 0.3), weights[:, :, -1])


class LargestResult(TorchDispatchMode):
    """Remembers the most numbers that one operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_memory_does_not_grow_with_the_square_of_the_length():
    largest = {}
    for length in (64, 256):
        query, key = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8)
        with LargestResult() as watch:
            last_row_attention(query, key, torch.ones(1, 1, 1, length).bool())
        largest[length] = watch.numel
    assert largest[256] <= 4 * largest[64]
    assert largest[256] <= 256 * 4 * 8


def test_gradients_are_right_in_float64():
    query, key = (torch.randn(1, h, 3, 4).double().requires_grad_() for h in (2, 1))
    assert torch.autograd.gradcheck(last_row_attention, (query, key))


@pytest.mark.parametrize(
    ("key", "mask", "message"),
    [
        ((2, 2, 5, 8), None, "do not fit"),
        ((1, 3, 5, 8), None, "H a multiple of G"),
        ((1, 2, 5, 4), None, "do not fit"),
        ((1, 2, 5, 8), (1, 1, 5, 4), r"mask \(1, 1, 5, 4\): expected"),
        ((1, 2, 5, 8), (5,), r"mask \(5,\): expected"),
    ],
)
def test_shapes_that_do_not_fit_are_named(key, mask, message):
    given_mask = None if mask is None else torch.ones(mask).bool()
    with pytest.raises(ValueError, match=message):
        last_row_attention(torch.zeros(1, 4, 5, 8), torch.zeros(key), given_mask)
