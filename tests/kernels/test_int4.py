"""Packed 4-bit weights: the layout, the values it stands for, products and gradients.

Triton's code runs in `interpreted/check_int4.py`, which says what its interpreter cannot show; here
it is compiled for two generations of GPUs, with what registers and shared memory they have.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.kernels import int4
from tenfold.kernels.fake_quant import fake_quantize, quantize
from tenfold.kernels.int4 import dequantize_int4, int4_linear, pack_int4, unpack_int4
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Codes (N, K) and scales (N, K / G) of any shape."""
    num_rows, num_groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    group_size = 2 * draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (num_rows, num_groups * group_size)
    codes = torch.randint(-8, 8, shape, dtype=torch.int8, generator=generator)
    scale = 4 * torch.rand(num_rows, num_groups, generator=generator) + 1e-3
    return codes, scale.to(draw(st.sampled_from(DTYPES)))


def in_float64(codes: Tensor, scale: Tensor) -> Tensor:
    group_size = codes.shape[1] // scale.shape[1]
    return codes.double() * scale.double().repeat_interleave(group_size, dim=1)


def random_weight(num_rows: int, num_columns: int, group_size: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-8, 8, (num_rows, num_columns), dtype=torch.int8)
    return codes, torch.rand(num_rows, num_columns // group_size) + 0.1


def test_all_pairs_of_codes_have_the_documented_bytes():
    table = {(0, 0): 0x00, (1, 0): 0x01, (0, 1): 0x10, (7, -8): 0x87, (-8, 7): 0x78}
    table |= {(-1, -1): 0xFF, (-2, 3): 0x3E, (5, -6): 0xA5}
    codes = torch.tensor(list(table), dtype=torch.int8)
    assert pack_int4(codes).flatten().tolist() == list(table.values())
    assert torch.equal(unpack_int4(pack_int4(codes)), codes)
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack_int4(unpack_int4(every_byte)), every_byte)


@given(shape=st.lists(st.integers(0, 5), max_size=3), num_bytes=st.integers(0, 9), data=st.data())
@settings(deadline=None, max_examples=60)
def test_packing_loses_nothing_in_any_shape(shape, num_bytes, data):
    size = (*shape, 2 * num_bytes)
    seed = data.draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(-8, 8, size, dtype=np.int8)
    packed = pack_int4(torch.from_numpy(codes))
    assert packed.shape == (*shape, num_bytes)
    assert np.array_equal(packed.numpy() & 15, codes[..., 0::2] % 16)
    assert np.array_equal(packed.numpy() >> 4, codes[..., 1::2] % 16)
    assert np.array_equal(unpack_int4(packed).numpy(), codes)


def test_strided_tensors_are_packed_and_unpacked():
    codes = torch.randint(-8, 8, (6, 5), dtype=torch.int8).T
    packed = pack_int4(codes)
    assert torch.equal(unpack_int4(packed), codes)
    assert torch.equal(unpack_int4(packed.T.contiguous().T), codes)


@given(weight=weights(), dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=60)
def test_dequantised_weight_is_the_product_rounded_once(weight, dtype):
    codes, scale = weight
    expected = in_float64(codes, scale).float().to(dtype)  # the product is exact in float64
    assert torch.equal(dequantize_int4(pack_int4(codes), scale, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 256])
def test_a_packed_weight_is_bitwise_the_fake_quantised_one(group_size, dtype):
    weight = torch.randn(24, 256).to(dtype)
    codes, scale = quantize(weight, group_size)
    expected = fake_quantize(weight, group_size)
    assert torch.equal(dequantize_int4(pack_int4(codes), scale, dtype), expected)


def test_compiled_reference_is_bitwise_the_reference():
    for num_rows, num_columns, group_size in [(33, 96, 32), (5, 96, 96)]:
        codes, scale = random_weight(num_rows, num_columns, group_size)
        args = pack_int4(codes), scale, torch.bfloat16
        expected = dequantize_int4(*args, backend="reference")
        assert torch.equal(dequantize_int4(*args, backend="compile"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "out_features", "in_features", "group_size"),
    [
        ((), 4, 32, 32),
        ((1,), 7, 256, 64),
        ((2, 3), 33, 384, 128),
        ((37,), 65, 1000, 1000),
        ((2, 0), 3, 64, 32),
    ],
)
def test_product_is_that_of_float64(rows, out_features, in_features, group_size, dtype, with_bias):
    codes, scale = random_weight(out_features, in_features, group_size)
    weight, x = in_float64(codes, scale), torch.randn(*rows, in_features).to(dtype)
    bias = torch.randn(out_features).to(dtype) if with_bias else None
    expected = x.double() @ weight.T + (0 if bias is None else bias.double())
    y = int4_linear(x, pack_int4(codes), scale, bias)
    assert y.dtype == dtype
    assert y.shape == (*rows, out_features)
    # Rounding of the weight and of the result to the dtype, and of float32 sums.
    unit, magnitudes = torch.finfo(dtype).eps / 2, x.double().abs() @ weight.abs().T
    bound = 1.01 * unit * (magnitudes + 2 * expected.abs() + 4) + in_features * 2**-24 * magnitudes
    assert ((y.double() - expected).abs() <= bound).all()


@given(weight=weights(), num_rows=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_gradients_are_those_of_float64(weight, num_rows):
    codes, scale = weight
    x = torch.randn(num_rows, codes.shape[1], requires_grad=True)
    bias = torch.randn(codes.shape[0], requires_grad=True)
    upstream = torch.randn(num_rows, codes.shape[0])
    int4_linear(x, pack_int4(codes), scale, bias).backward(upstream)

    exact_x = x.detach().double().requires_grad_()
    exact_bias = bias.detach().double().requires_grad_()
    exact = torch.nn.functional.linear(exact_x, in_float64(codes, scale), exact_bias)
    exact.backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(bias.grad.double(), exact_bias.grad, rtol=1e-5, atol=1e-5)


def test_adapters_train_on_a_frozen_weight():
    codes, scale = random_weight(8, 64, 32)
    down, up = torch.randn(4, 64, requires_grad=True), torch.zeros(8, 4, requires_grad=True)
    x = torch.randn(5, 64)  # no gradient: the weight is not even dequantised for it
    y = int4_linear(x, pack_int4(codes), scale) + x @ down.T @ up.T
    y.square().mean().backward()
    assert up.grad.abs().sum() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_casts_as_for_a_linear_layer(compiled):
    codes, scale = random_weight(8, 64, 32)
    packed, x, bias = pack_int4(codes), torch.randn(3, 64, requires_grad=True), torch.randn(8)
    linear = torch.compile(int4_linear, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = (linear if compiled else int4_linear)(x, packed, scale, bias)
    expected = int4_linear(x.bfloat16(), packed, scale, bias.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_shapes_are_known_without_data():
    with torch.device("meta"):
        packed, scale = torch.empty(6, 32, dtype=torch.uint8), torch.empty(6, 2)
        assert int4_linear(torch.empty(3, 5, 64), packed, scale).shape == (3, 5, 6)
        assert dequantize_int4(packed, scale, torch.float16).shape == (6, 64)
        assert unpack_int4(packed).shape == (6, 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_keep_the_rules_of_torch_library(dtype):
    codes, scale = random_weight(6, 64, 32)
    packed, x = pack_int4(codes), torch.randn(3, 64).to(dtype).requires_grad_()
    bias = torch.randn(6).to(dtype).requires_grad_()
    torch.library.opcheck(int4._pack_int4, (codes,))
    torch.library.opcheck(int4._unpack_int4, (packed,))
    torch.library.opcheck(int4._dequantize_int4, (packed, scale, dtype, "reference"))
    torch.library.opcheck(int4._int4_linear, (x, packed, scale, bias, "reference"))
    torch.library.opcheck(int4._int4_linear, (x, packed, scale, None, "reference"))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_layers_compile_into_one_graph(compiler):
    codes, scale = random_weight(64, 64, 32)
    packed, bias = pack_int4(codes), torch.randn(64)

    def network(x: Tensor) -> Tensor:
        hidden = torch.relu(int4_linear(x, packed, scale, bias))
        return hidden @ dequantize_int4(pack_int4(unpack_int4(packed)), scale)

    fast = torch.compile(network, backend=compiler, fullgraph=True)
    for num_rows in (2, 5, 9):  # from the second on, the number of rows is symbolic
        x = torch.randn(num_rows, 3, 64, requires_grad=True)
        y = fast(x)
        torch.testing.assert_close(y, network(x))
        expected = torch.autograd.grad(network(x).square().sum(), x)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), expected)


def refused(change: dict[str, object]) -> dict[str, object]:
    """Good arguments of int4_linear, but for one."""
    codes, scale = random_weight(6, 64, 32)
    good = {"x": torch.randn(3, 64), "packed": pack_int4(codes), "scale": scale}
    return good | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 62)}, r"x: shape \(3, 62\), expected \(\.\.\., 64\)"),
        ({"x": torch.ones(3, 64, dtype=torch.float64)}, "x: dtype torch.float64, expected one of"),
        ({"x": torch.ones(3, 64, device="meta")}, "x: on meta, but packed is on cpu"),
        ({"packed": torch.ones(6, 32)}, "packed: dtype torch.float32.*as pack_int4 returns it"),
        ({"packed": torch.ones(32, dtype=torch.uint8)}, r"packed: .*shape \(32,\), expected"),
        ({"scale": torch.ones(6, 2).int()}, "scale: dtype torch.int32, expected one of"),
        ({"scale": torch.ones(5, 2)}, r"scale: shape \(5, 2\), expected \(6, K / G\)"),
        ({"scale": torch.ones(6, 3)}, "scale: 3 columns do not divide the 64 elements"),
        ({"scale": torch.ones(6, 64)}, "groups of one even size"),
        ({"scale": torch.ones(6, 0)}, "scale: 0 columns do not divide"),
        ({"scale": torch.ones(6, 2, device="meta")}, "scale: on meta, but packed is on cpu"),
        ({"scale": torch.ones(6, 2, requires_grad=True)}, "pass scale.detach()"),
        ({"bias": torch.ones(5)}, r"bias: .*shape \(5,\).*expected torch.float32 of shape \(6,\)"),
        ({"bias": torch.ones(6).half()}, "bias: torch.float16.*expected torch.float32"),
        ({"backend": "cuda"}, "backend: 'cuda' is none of auto, reference, compile, triton"),
        ({"backend": "triton"}, "backend: triton needs a CUDA device, not cpu; use auto"),
    ],
)
def test_a_wrong_argument_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        int4_linear(**refused(change))
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_packed_is_one_line():
    for codes, message in [
        (torch.ones(3, 5, dtype=torch.int8), r"codes: shape \(3, 5\).*pad"),
        (torch.tensor(1, dtype=torch.int8), r"codes: shape \(\)"),
        (torch.ones(3, 4), "codes: dtype torch.float32, expected torch.int8"),
        (torch.tensor([3, 8], dtype=torch.int8), "values from 3 to 8 do not fit into four bits"),
        (torch.tensor([-9, 0], dtype=torch.int8), "values from -9 to 0 do not fit"),
    ]:
        with pytest.raises(ValueError, match=message):
            pack_int4(codes)
    with pytest.raises(ValueError, match=r"packed: dtype torch.int8"):
        unpack_int4(torch.ones(3, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"dtype: torch.float64, expected"):
        dequantize_int4(torch.zeros(1, 4, dtype=torch.uint8), torch.ones(1, 1), torch.float64)


def test_triton_code_in_the_interpreter(run_checks):
    pytest.importorskip("triton")
    assert run_checks("check_int4.py") >= 38


@pytest.mark.gpu
def test_triton_code_on_a_gpu(run_checks):
    assert run_checks("check_int4.py", interpret=False) >= 55


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("num_rows", "dtype"), [(1, "bf16"), (16, "fp16"), (512, "bf16"), (64, "fp32")]
)
def test_triton_code_compiles_for_a_gpu(architecture, num_rows, dtype, tmp_path, monkeypatch):
    """Uses the compiler that Triton brings, which needs no GPU."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks = int4._blocks(num_rows, torch.float32 if dtype == "fp32" else torch.float16)
    groups, width, num_tiles = int4._tiling(32, 128, blocks.block_k)
    kernel = int4._gemv_kernel if num_rows <= int4.MAX_GEMV_ROWS else int4._gemm_kernel
    constants = {
        "bias_ptr": None,
        "GROUP_SIZE": 128,
        "BLOCK_M": blocks.block_m,
        "BLOCK_N": blocks.block_n,
        "TILE_GROUPS": groups,
        "TILE_WIDTH": width,
        "NUM_STEPS": num_tiles,
    }
    pointers = {"x_ptr": dtype, "packed_ptr": "u8", "scale_ptr": "fp32", "y_ptr": dtype}
    types = dict.fromkeys(kernel.arg_names, "i32") | {k: f"*{v}" for k, v in pointers.items()}
    aligned = [name for name in kernel.arg_names if name in pointers or name == "N"]
    source = compiler.ASTSource(
        kernel,
        types | dict.fromkeys(constants, "constexpr"),
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    binary = compiler.compile(
        source,
        target=backends.GPUTarget("cuda", architecture, 32),
        options={"num_warps": blocks.num_warps, "num_stages": blocks.num_stages},
    )
    assert binary.metadata.shared <= 99 * 1024  # what the smallest GPUs of these generations have
    assembly = binary.asm["ptx"]
    if num_rows > 1 and dtype != "fp32":
        assert ("wgmma.mma_async" if architecture == 90 else "mma.sync") in assembly
