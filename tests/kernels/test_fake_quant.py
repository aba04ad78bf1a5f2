"""Fake quantisation: the numerical contract, the gradients, every backend against the reference.

Triton's code runs in `interpreted/check_fake_quant.py`, which says what its interpreter cannot
show; here it is compiled for GPUs that this machine does not have.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.kernels import fake_quant
from tenfold.kernels.fake_quant import dequantize, fake_quantize, grid_bounds, quantize
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def in_numpy(x: Tensor, group_size: int, bits: int = 4, divisor: float | None = None) -> np.ndarray:
    """The contract once more, written for one group at a time, in float32."""
    divisor = divisor or 2 ** (bits - 1)
    rows = x.float().numpy().reshape(-1, group_size)
    out = np.empty_like(rows)
    for row, y in zip(rows, out, strict=True):
        scale = np.maximum(np.abs(row).max() / np.float32(divisor), np.float32(1e-8))
        q = np.clip(np.rint(row / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        y[:] = q.astype(np.float32) * scale
    return out.reshape(x.shape)


def straight_through(x: Tensor, group_size: int, clip=None, scale=None, divisor=8.0) -> Tensor:
    """Rounding whose gradient is left to autograd: through the scale, and where not clamped."""
    groups = x.reshape(-1, group_size)
    if scale is None:
        amax = groups.abs().amax(dim=-1, keepdim=True)
        factor = 1.0 if clip is None else clip.expand(*x.shape[:-1], -1).reshape(-1, 1)
        s = amax * factor / divisor
    else:
        s = scale.expand(*x.shape[:-1], -1).reshape(-1, 1)
    v = groups / s
    rounded = v.round().detach() + (v - v.detach())
    # Not torch.clamp, whose gradient at the very ends differs between versions.
    q = torch.where((rounded >= -8) & (rounded <= 7), rounded, rounded.detach().clamp(-8, 7))
    return (q * s).view(x.shape)


# The numerical contract


def test_a_group_is_rounded_as_by_hand():
    """Scale 1: ties go to even, 8 saturates at 7, -8 is kept."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49, 8.0, -8.0, 6.5, 7.5, 0.0])
    expected = torch.tensor([0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 3.0, 7.0, -8.0, 6.0, 7.0, 0.0])
    assert torch.equal(fake_quantize(x, 12), expected)


def test_fp4_takes_the_nearest_value_and_ties_go_to_the_even_mantissa():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0])
    assert torch.equal(fake_quantize(ties, 8, grid="fp4_e2m1"), expected)
    assert torch.equal(fake_quantize(-ties, 8, grid="fp4_e2m1"), -expected)
    x = torch.cat((torch.linspace(-6, 6, 1001), torch.tensor([6.0])))
    nearest = np.abs(x.abs().numpy()[:, None] - FP4).min(axis=1)
    y = fake_quantize(x, len(x), grid="fp4_e2m1")
    np.testing.assert_allclose((x - y).abs().numpy(), nearest, atol=1e-6)


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 40),
    bits=st.integers(2, 8),
    divisor=st.sampled_from([None, 7.0, 7.5]),
    magnitude=st.sampled_from([1e-12, 1e-3, 1.0, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=150)
def test_values_are_those_of_the_contract(
    rows, groups, group_size, bits, divisor, magnitude, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, groups * group_size, generator=generator) * magnitude).to(dtype)
    y = fake_quantize(x, group_size, bits=bits, divisor=divisor)
    expected = torch.from_numpy(in_numpy(x, group_size, bits, divisor)).to(dtype)
    assert torch.equal(y, expected)
    if divisor is None and magnitude > 1e-6 and dtype == torch.float32:
        # Rounding again does not move a group whose largest magnitude was kept.
        kept = y.abs().view(-1, group_size).amax(-1) == x.abs().view(-1, group_size).amax(-1)
        again = fake_quantize(y, group_size, bits=bits).view(-1, group_size)
        assert torch.equal(again[kept], y.view(-1, group_size)[kept])


@pytest.mark.parametrize(
    ("group_size", "divisor", "error"),
    [
        (32, 7, 9.42e-3), (32, 7.5, 9.00e-3), (32, 8, 8.79e-3),
        (128, 7, 1.374e-2), (128, 7.5, 1.225e-2), (128, 8, 1.112e-2),
        (1024, 7, 2.04e-2), (1024, 7.5, 1.78e-2), (1024, 8, 1.57e-2),
    ],
)  # fmt: skip
def test_error_on_gaussian_data(group_size, divisor, error):
    """Relative squared error of 4 bits, measured once with an independent program."""
    x = torch.randn(2**21, generator=torch.Generator().manual_seed(1))
    y = fake_quantize(x, group_size, divisor=divisor)
    assert float((x - y).square().sum() / x.square().sum()) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["reference", "compile"])
def test_zero_groups_stay_zero_and_bad_groups_become_nan(dtype, backend):
    x = torch.ones(4, 8, dtype=dtype)
    x[0] = 0
    x[1, 3], x[2, 3] = math.nan, math.inf
    y = fake_quantize(x, 8, backend=backend)
    assert y.dtype == dtype
    assert torch.equal(y[0], torch.zeros(8, dtype=dtype))
    assert y[1:3].isnan().all()
    assert y[3].isfinite().all()
    given = fake_quantize(x, 8, scale=torch.full((1,), 0.5), backend=backend)
    assert given[1:3].isnan().sum() == 2
    assert given[1, 3].isnan()
    assert given[2, 3].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("param", ["none", "clip", "scale"])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_times_scales_are_the_fake_quantised_values(dtype, param, bits):
    x = torch.randn(6, 5, 64).to(dtype)
    arguments = {} if param == "none" else {param: torch.rand(6, 5, 4) + 0.1}
    codes, scales = quantize(x, 16, bits=bits, **arguments)
    qmin, qmax = grid_bounds(bits, "int")
    assert codes.dtype == torch.int8
    assert scales.shape == (6, 5, 4)
    assert qmin <= int(codes.min()) <= int(codes.max()) <= qmax
    rounded = fake_quantize(x, 16, bits=bits, **arguments)
    assert torch.equal(dequantize(codes, scales, dtype), rounded)


def test_scales_never_fall_below_eps():
    x = torch.full((1, 4), 1e-6)
    assert torch.equal(fake_quantize(x, 4, eps=1e-2), torch.zeros(1, 4))
    _, scales = quantize(x, 4, scale=torch.tensor([-1.0]), eps=1e-2)
    assert scales.item() == pytest.approx(1e-2)


def test_shared_and_own_parameters_give_the_same_where_they_are_equal():
    x, clip = torch.randn(3, 7, 32), torch.rand(2)
    shared = fake_quantize(x, 16, clip=clip)
    assert torch.equal(shared, fake_quantize(x, 16, clip=clip.expand(3, 7, 2)))


def test_strided_and_empty_inputs():
    x = torch.randn(32, 6)
    assert torch.equal(fake_quantize(x.t(), 16), fake_quantize(x.t().contiguous(), 16))
    assert fake_quantize(torch.empty(0, 32), 16).shape == (0, 32)


# Gradients


@pytest.mark.parametrize("param", ["none", "clip", "scale"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ste", ["identity", "clipped", "through_scale"])
@pytest.mark.parametrize("backend", ["reference", "compile"])
def test_gradients_are_those_of_the_formulas(param, shared, ste, backend):
    x = torch.randn(5, 3, 32, dtype=torch.float64, requires_grad=True)
    shape = (4,) if shared else (5, 3, 4)
    value = torch.rand(shape, dtype=torch.float64) * 0.4 + 0.1
    arguments = {} if param == "none" else {param: value.requires_grad_()}
    grad = torch.randn_like(x)
    inputs = [x, *arguments.values()]
    y = fake_quantize(x, 8, ste=ste, backend=backend, **arguments)
    mine = torch.autograd.grad(y, inputs, grad)
    expected = list(torch.autograd.grad(straight_through(x, 8, **arguments), inputs, grad))
    if ste == "identity":
        expected[0] = grad
    elif ste == "clipped":
        scale = arguments.get("scale")
        if scale is None:
            amax = x.detach().reshape(-1, 8).abs().amax(-1).view(5, 3, 4)
            scale = amax * arguments.get("clip", 1.0) / 8
        s = scale.detach().expand(5, 3, 4).repeat_interleave(8, dim=-1)
        code = (x.detach() / s).round()
        expected[0] = grad * ((code >= -8) & (code <= 7))
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradient_of_a_scale_agrees_with_finite_differences():
    """Between two roundings y = q s is linear in s, so that a small step shows dy/ds = q.

    The straight-through derivative is q - v (v = x / s), because it counts dq/ds as -v / s.
    """
    x = torch.tensor([0.3, -1.2, 2.2, 3.9], dtype=torch.float64)
    s = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    step = 1e-6
    difference = (
        fake_quantize(x, 4, scale=s + step) - fake_quantize(x, 4, scale=s - step)
    ).detach()
    (grad,) = torch.autograd.grad(fake_quantize(x, 4, scale=s).sum(), s)
    assert float(grad) == pytest.approx(float((difference / (2 * step) - x / s.detach()).sum()))


def test_tied_maxima_share_the_gradient_of_the_scale():
    x = torch.tensor([2.0, -2.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    (mine,) = torch.autograd.grad(fake_quantize(x, 4, ste="through_scale").sum(), x)
    (expected,) = torch.autograd.grad(straight_through(x, 4).sum(), x)
    torch.testing.assert_close(mine, expected)


def test_a_scale_at_its_floor_has_no_gradient_to_its_parts():
    x = torch.full((1, 4), 1e-12, dtype=torch.float64, requires_grad=True)
    clip = torch.ones(1, dtype=torch.float64, requires_grad=True)
    y = fake_quantize(x, 4, clip=clip, ste="through_scale")
    grads = torch.autograd.grad(y.sum(), (x, clip))
    torch.testing.assert_close(grads[0], torch.ones_like(x))
    assert grads[1].item() == 0


def test_by_default_every_element_gets_its_gradient():
    """With divisor 8 a group's positive maximum saturates at 7: "clipped" would starve it."""
    x = torch.randn(64, 32, requires_grad=True)
    grad = torch.rand(64, 32) + 0.5
    (identity,) = torch.autograd.grad(fake_quantize(x, 32), x, grad)
    assert torch.equal(identity, grad)
    (clipped,) = torch.autograd.grad(fake_quantize(x, 32, ste="clipped"), x, grad)
    assert (clipped == 0).sum() > 16


# Backends


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"grid": "fp4_e2m1"},
        {"bits": 8, "divisor": 7.5},
        {"clip": torch.tensor([0.3, 0.9, 1.0])},
        {"scale": torch.tensor([0.05, 0.2, 0.7])},
    ],
    ids=["absmax", "fp4", "8 bit", "clip", "scale"],
)
def test_compiled_values_are_bitwise_those_of_the_reference(arguments, dtype):
    for num_rows in (1, 2, 37, 400):
        x = (torch.randn(num_rows, 96) * torch.logspace(-3, 3, 96)).to(dtype)
        fast = fake_quantize(x, 32, backend="compile", **arguments)
        assert torch.equal(fast, fake_quantize(x, 32, backend="reference", **arguments))


def test_large_tensors_take_the_compiled_reference_and_small_ones_do_not():
    small = torch.randn(8, 32)
    large = torch.randn(fake_quant.COMPILE_FROM // 32, 32)
    for x, is_compiled in [(small, False), (large, True)]:
        chosen = fake_quant._reference_for(fake_quant._forward, x, some_rule())
        assert (getattr(chosen, "func", None) is fake_quant._forward) != is_compiled
        assert torch.equal(fake_quantize(x, 32), fake_quantize(x, 32, backend="reference"))


def some_rule(**changes: object) -> fake_quant.Rule:
    rule = fake_quant.Rule(32, "amax", False, -8.0, 7.0, 8.0, 1e-8, "identity", "auto")
    return rule._replace(**changes)


@pytest.mark.parametrize("scale_from", ["amax", "clip", "given"])
@pytest.mark.parametrize("ste", ["identity", "clipped", "through_scale"])
def test_operations_keep_the_rules_of_torch_library(scale_from, ste):
    rule = some_rule(scale_from=scale_from, ste=ste, backend="reference")
    x = torch.randn(3, 64, requires_grad=True)
    param = None if scale_from == "amax" else torch.rand(2, requires_grad=True)
    torch.library.opcheck(fake_quant._fake_quantize_op, (x, param, *rule))
    x, param = x.detach(), None if param is None else param.detach()
    torch.library.opcheck(fake_quant._backward_op, (torch.randn(3, 64), x, param, *rule))
    torch.library.opcheck(fake_quant._quantize_op, (x, param, *rule))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("ste", ["identity", "through_scale"])
def test_a_network_with_it_compiles_into_one_graph(compiler, ste):
    weight = torch.randn(64, 64, requires_grad=True)
    clip = torch.rand(2, requires_grad=True)

    def network(x: Tensor) -> Tensor:
        rounded = fake_quantize(torch.relu(x), 32, clip=clip, ste=ste)
        codes, scales = quantize(x.detach(), 64)
        return rounded @ fake_quantize(weight, 32, ste=ste).t() + dequantize(codes, scales, x.dtype)

    fast = torch.compile(network, backend=compiler, fullgraph=True)
    for rows in (4, 7):
        x = torch.randn(rows, 64, requires_grad=True)
        y, expected = fast(x), network(x)
        torch.testing.assert_close(y, expected)
        inputs = (x, weight, clip)
        grads = torch.autograd.grad(y.square().sum(), inputs)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), inputs))


def test_shapes_are_known_without_data():
    x = torch.empty(3, 64, device="meta", dtype=torch.bfloat16)
    y = fake_quantize(x, 32)
    codes, scales = quantize(x, 32)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert (codes.shape, codes.dtype) == (x.shape, torch.int8)
    assert (scales.shape, scales.dtype) == ((3, 2), torch.float32)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 24}, "group_size 24 does not divide the last dimension, 64"),
        ({"group_size": 0}, "group_size 0 does not divide"),
        ({"bits": 1}, "bits must be from 2 to 8, got 1"),
        ({"bits": 9}, "bits must be from 2 to 8, got 9"),
        ({"grid": "fp8"}, "grid: 'fp8' is none of int, fp4_e2m1"),
        ({"grid": "fp4_e2m1", "bits": 8}, "bits must be 4 for fp4_e2m1, got 8"),
        ({"ste": "none"}, "ste: 'none' is none of identity, clipped, through_scale"),
        ({"divisor": 0.0}, "divisor must be positive, got 0.0"),
        ({"eps": -1.0}, "eps must be positive, got -1.0"),
        ({"x": torch.ones(2, 64).int()}, "x must be a floating-point tensor, got torch.int32"),
        ({"x": torch.tensor(1.0)}, "x must have at least one dimension"),
        ({"clip": torch.ones(3)}, r"clip has shape \(3,\); expected \(2,\).* or \(3, 2\)"),
        ({"scale": torch.ones(2), "clip": torch.ones(2)}, "clip and scale are both given"),
        ({"backend": "cuda"}, "backend: 'cuda' is none of auto, reference, compile, triton"),
        ({"backend": "triton"}, "backend: triton needs a CUDA device"),
    ],
)
def test_a_wrong_argument_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fake_quantize(**({"x": torch.ones(3, 64), "group_size": 32} | change))
    assert "\n" not in str(refusal.value)


# Triton


def test_triton_code_in_the_interpreter(run_checks):
    pytest.importorskip("triton")
    assert run_checks("check_fake_quant.py") >= 50


@pytest.mark.gpu
def test_triton_code_on_a_gpu(run_checks):
    assert run_checks("check_fake_quant.py", interpret=False) >= 70


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("group_size", [32, 1536])
def test_triton_code_compiles_for_a_gpu(kernel, architecture, group_size, tmp_path, monkeypatch):
    """Uses the compiler that Triton brings; the division must be the exactly rounded one."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fake_quant, f"_{kernel}_triton")
    block = 1 << (group_size - 1).bit_length()
    constants = {
        "GROUP": group_size, "BLOCK": block, "ROWS": 4096 // block, "SCALE_FROM": "amax",
        "FP4": False, **({"CODES": False} if kernel == "forward" else {"STE": "through_scale"}),
    }  # fmt: skip
    types = dict.fromkeys(function.arg_names, "fp32") | {"num_groups": "i32", "num_params": "i32"}
    types |= {name: "*bf16" for name in function.arg_names if name.endswith("_ptr")}
    source = compiler.ASTSource(
        function,
        types | dict.fromkeys(constants, "constexpr"),
        {(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    binary = compiler.compile(source, target=backends.GPUTarget("cuda", architecture, 32))
    assert "div.rn.f32" in binary.asm["ptx"]
    assert "div.full" not in binary.asm["ptx"]
