"""The Triton kernels of `kernels/fake_quant.py` against the reference, interpreted or on a GPU.

Values are compared bit for bit, sums over a group up to their order. The interpreter shows that
indices, masks and arithmetic are right; it cannot show races, too much shared memory, anything
about the number of warps, or speed. It truncates casts to bfloat16, so that there the expected
value is the truncated one, bit for bit as well.
"""

import math
import os

import pytest
import torch
from tenfold.kernels.fake_quant import dequantize, fake_quantize, quantize
from torch import Tensor

IS_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
NEEDS_GPU = pytest.mark.skipif(IS_INTERPRETED, reason="no bfloat16 rounding")
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=NEEDS_GPU)]
SETTINGS = {
    "absmax": {},
    "8 bit": {"bits": 8},
    "2 bit": {"bits": 2},
    "divisor": {"divisor": 7.5},
    "fp4": {"grid": "fp4_e2m1"},
}


def sample(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    x = torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]
    x[1] = 0
    x[2, 3], x[3, 1], x[4, 0] = math.nan, math.inf, -math.inf
    return x.to(device, dtype)


def parameters(name: str, rows: int, groups: int, device: torch.device) -> dict[str, Tensor]:
    if name == "none":
        return {}
    kind, _, layout = name.partition(", ")
    shape = (groups,) if layout == "shared" else (rows, groups)
    return {kind: (torch.rand(shape) * 0.9 + 0.05).to(device).requires_grad_()}


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(12345), other.nan_to_num(12345))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("group_size", "columns"), [(32, 96), (100, 300), (7, 21), (1536, 1536)])
def test_values_are_bitwise_those_of_the_reference(group_size, columns, setting, dtype, device):
    x = sample((9, columns), dtype, device)
    expected = fake_quantize(x, group_size, backend="reference", **SETTINGS[setting])
    assert equal(fake_quantize(x, group_size, backend="triton", **SETTINGS[setting]), expected)


@pytest.mark.skipif(not IS_INTERPRETED, reason="a GPU rounds")
def test_bfloat16_is_truncated_by_the_interpreter_and_otherwise_exact(device):
    x = torch.randn(9, 96, device=device).bfloat16()
    exact = fake_quantize(x.float(), 32, backend="reference")
    truncated = (exact.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    assert torch.equal(fake_quantize(x, 32, backend="triton"), truncated)


@pytest.mark.parametrize("param", ["clip, shared", "clip, own", "scale, shared", "scale, own"])
def test_given_and_learned_scales(param, device):
    x = sample((9, 96), torch.float32, device)
    arguments = parameters(param, 9, 3, device)
    expected = fake_quantize(x, 32, backend="reference", **arguments)
    assert equal(fake_quantize(x, 32, backend="triton", **arguments), expected)
    codes, scales = quantize(x, 32, backend="triton", **arguments)
    expected_codes, expected_scales = quantize(x, 32, backend="reference", **arguments)
    assert torch.equal(codes, expected_codes)
    assert equal(scales, expected_scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_per_token(dtype, device):
    x = torch.randn(17, 96, device=device).to(dtype)
    codes, scales = quantize(x, 96, bits=8, backend="triton")
    expected = fake_quantize(x, 96, bits=8, backend="reference")
    assert torch.equal(dequantize(codes, scales, dtype), expected)


@pytest.mark.parametrize("ste", ["identity", "clipped", "through_scale"])
@pytest.mark.parametrize("param", ["none", "clip, shared", "clip, own", "scale, shared"])
@pytest.mark.parametrize("group_size", [32, 48])
def test_gradients_are_those_of_the_reference(group_size, param, ste, device):
    x = torch.randn(9, 96, device=device, requires_grad=True)
    arguments = parameters(param, 9, 96 // group_size, device)
    inputs = (x, *arguments.values())
    grad = torch.randn(9, 96, device=device)

    def gradients(backend: str) -> tuple[Tensor, ...]:
        y = fake_quantize(x, group_size, ste=ste, backend=backend, **arguments)
        return torch.autograd.grad(y, inputs, grad)

    mine, expected = gradients("triton"), gradients("reference")
    if ste != "through_scale":
        assert torch.equal(mine[0], expected[0])
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_an_empty_tensor_launches_nothing(device):
    assert fake_quantize(torch.empty(0, 32, device=device), 32, backend="triton").numel() == 0
