"""The Triton kernels of `kernels/int4.py` against float64, in the interpreter or on a GPU.

The interpreter shows that indices, masks and arithmetic are right. It cannot show races, too much
shared memory, anything about the number of warps, speed, or bfloat16: it truncates casts to
bfloat16, and multiplies bit patterns in `tl.dot`. So bfloat16 is left to a GPU, and `test_int4.py`
compiles the kernels for real targets.
"""

import os

import pytest
import torch
from tenfold.kernels.int4 import dequantize_int4, int4_linear, pack_int4
from torch import Tensor

NEEDS_GPU = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] == "1", reason="no bfloat16")
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=NEEDS_GPU)]


def random_weight(
    num_rows: int, num_columns: int, group_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns packed codes, their scales, and the weight in float64."""
    generator = torch.Generator().manual_seed(num_rows + num_columns)
    codes = torch.randint(-8, 8, (num_rows, num_columns), dtype=torch.int8, generator=generator)
    scale = torch.rand(num_rows, num_columns // group_size, generator=generator) + 0.1
    weight = codes.double() * scale.double().repeat_interleave(group_size, dim=1)
    return pack_int4(codes).to(device), scale.to(device), weight.to(device)


def largest_error(x: Tensor, weight: Tensor, expected: Tensor) -> Tensor:
    """What rounding the weight and the result to the dtype of x, and float32 sums, may cost."""
    unit, magnitudes = torch.finfo(x.dtype).eps / 2, x.double().abs() @ weight.abs().T
    return 1.01 * unit * (magnitudes + expected.abs() + 1) + x.shape[1] * 2**-24 * magnitudes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "out_features", "in_features", "group_size"),
    [
        (1, 24, 256, 128),  # one row
        (1, 9, 5120, 128),  # K split, unevenly
        (1, 5, 1000, 1000),  # one group, not a power of two
        (1, 7, 192, 96),
        (1, 3, 12, 2),
        (2, 65, 256, 64),  # one row more than a block of N
        (5, 33, 320, 32),
        (17, 30, 1024, 64),  # K split, rows and columns no multiple of a block
        (20, 48, 480, 96),
        (40, 21, 500, 500),
        (70, 130, 288, 96),
    ],
)
def test_product_is_that_of_float64(num_rows, out_features, in_features, group_size, dtype, device):
    packed, scale, weight = random_weight(out_features, in_features, group_size, device)
    x = torch.randn(num_rows, in_features).to(device, dtype)
    bias = torch.randn(out_features).to(device, dtype)
    expected = x.double() @ weight.T + bias.double()
    y = int4_linear(x, packed, scale, bias, backend="triton")
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= largest_error(x, weight, expected)).all()


@pytest.mark.parametrize("num_rows", [1, 3])
def test_sums_are_float32(num_rows, device):
    packed = pack_int4(torch.ones(2, 4096, dtype=torch.int8)).to(device)
    x = torch.full((num_rows, 4096), 1 / 16, dtype=torch.float16, device=device)
    x[:, 0:2048:128] = 32768  # in float16 what is less than 16 is lost when added to it
    x[:, 2048::128] = -32768
    y = int4_linear(x, packed, torch.ones(2, 1, device=device), backend="triton")
    assert (y == (4096 - 32) / 16).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's, of the interpreter: 0 times inf
@pytest.mark.parametrize("num_rows", [1, 3])
def test_what_lies_outside_of_the_weight_is_not_multiplied(num_rows, device):
    packed, scale, weight = random_weight(3, 96, 48, device)
    room = torch.full((num_rows + 1, 96), torch.inf, device=device)
    room[:num_rows] = torch.randn(num_rows, 96)
    x = room[:num_rows]
    y = int4_linear(x, packed, scale, backend="triton")
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_scales_of_any_dtype(scale_dtype, device):
    packed, scale, _ = random_weight(6, 128, 32, device)
    scale = scale.to(scale_dtype)
    x = torch.randn(2, 128, device=device)
    expected = int4_linear(x, packed, scale, backend="reference")
    y = int4_linear(x, packed, scale, backend="triton")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def test_strided_tensors_are_read_right(device):
    packed, scale, weight = random_weight(6, 128, 32, device)
    x = torch.randn(128, 3, device=device).T
    y = int4_linear(x, packed.T.contiguous().T, scale.T.contiguous().T, backend="triton")
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-4)


def test_no_rows(device):
    packed, scale, _ = random_weight(6, 128, 32, device)
    y = int4_linear(torch.empty(2, 0, 128, device=device), packed, scale, backend="triton")
    assert y.shape == (2, 0, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64, 32), (70, 96, 96), (33, 600, 600), (5, 520, 8)])
def test_dequantised_weight_is_bitwise_the_reference(shape, dtype, device):
    packed, scale, _ = random_weight(*shape, device)
    expected = dequantize_int4(packed, scale, dtype, backend="reference")
    assert torch.equal(dequantize_int4(packed, scale, dtype, backend="triton"), expected)


@pytest.mark.parametrize("num_rows", [1, 6])
def test_gradient_is_that_of_float64(num_rows, device):
    packed, scale, weight = random_weight(10, 96, 32, device)
    x = torch.randn(num_rows, 96, device=device, requires_grad=True)
    bias = torch.zeros(10, device=device, requires_grad=True)
    upstream = torch.randn(num_rows, 10, device=device)
    int4_linear(x, packed, scale, bias, backend="triton").backward(upstream)
    torch.testing.assert_close(x.grad.double(), upstream.double() @ weight, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(bias.grad, upstream.sum(0))


@NEEDS_GPU
def test_product_on_large_shapes_of_networks(device):
    for num_rows in (1, 8, 100, 1000):
        packed, scale, weight = random_weight(4096, 2048, 128, device)
        x = torch.randn(num_rows, 2048, device=device, dtype=torch.bfloat16)
        expected = x.double() @ weight.T
        y = int4_linear(x, packed, scale)
        assert ((y.double() - expected).abs() <= largest_error(x, weight, expected)).all()
