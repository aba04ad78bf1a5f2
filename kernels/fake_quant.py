"""Group-wise fake quantisation: rounding to a few levels and back, with a gradient.

The last dimension of a tensor is cut into groups of `group_size` elements that share a scale s:

    q = clamp(round_half_even(x / s), qmin, qmax),   y = q * s

The numerical contract, the same for every backend: computed in float32 (float64 for float64
inputs), divided and not multiplied by a reciprocal, ties to even, one rounding to the input's
dtype at the end. A group of zeros gives zeros; a group that holds NaN or infinity gives NaN (with
a given `scale`, only those elements do).

Performance, n elements of 2 bytes: the forward pass moves 4n bytes (read once, write once) and the
backward pass none ("identity"), else 6n. Triton puts many small groups into one program. On CPU the
compiled reference runs for large tensors. `tests/benchmarks/fake_quant.py` measures shares of a
plain copy's bandwidth.

Shapes: R number of groups, G elements of a group.
"""

import functools
import math
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .backend import (
    Backend,
    check_backend,
    compiled,
    jit,
    tl,
    uses_compiler,
    uses_triton,
)

Grid = Literal["int", "fp4_e2m1"]
StraightThrough = Literal["identity", "clipped", "through_scale"]

# Elements from which the compiled reference was 1.4 times as fast as the eager one, or more (2 CPU
# cores); below, it gains 30 microseconds at most.
COMPILE_FROM = 1 << 14
# The largest group that one Triton program holds; larger ones take the reference.
MAX_TRITON_GROUP = 16384


def fake_quantize(
    x: Tensor,
    group_size: int,
    *,
    bits: int = 4,
    grid: Grid = "int",
    divisor: float | None = None,
    eps: float = 1e-8,
    clip: Tensor | None = None,
    scale: Tensor | None = None,
    ste: StraightThrough = "identity",
    backend: Backend = "auto",
) -> Tensor:
    """Quantises and dequantises each group of the last dimension.

    The scale of a group is `max(amax / divisor, eps)`, amax being its largest magnitude (AbsMax);
    with `clip` it is `max(amax * clip / divisor, eps)` (learnable clipping: LWC of OmniQuant, LAC
    of PrefixQuant); with `scale` it is `max(scale, eps)` (LSQ).

    The gradient with respect to `x` is chosen by `ste`, I marking elements that were not clamped:

    - "identity": dx = dy.
    - "clipped": dx = I * dy. Clamped elements, such as a group's positive maximum when `divisor`
      exceeds qmax, get no gradient.
    - "through_scale": also through the scale, to the group's element of largest magnitude; ties
      share it. The same as "clipped" when `scale` is given.

    That with respect to the scale is `sum(dy * where(I, q - x / s, q))`, whatever `ste` is.

    Args:
        x: (..., K) float16, bfloat16, float32 or float64; K a multiple of `group_size`.
        group_size: G, consecutive elements that share a scale, 1 to K.
        bits: Width of the integer grid -2^(bits-1) ... 2^(bits-1) - 1; 2 to 8. "fp4_e2m1" has 4.
        grid: "int", or "fp4_e2m1": 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even
            mantissa.
        divisor: Grid value that the largest magnitude is mapped to; default 2^(bits-1) (which
            clamps a positive maximum by one step; it has the lowest error on Gaussian data), 6 for
            "fp4_e2m1". torchao's symmetric mapping is 7.5 at 4 bits.
        eps: Least scale.
        clip: Factors, (K / G,) shared by all rows or (..., K / G), one per group.
        scale: Scales, shaped like `clip`. Not together with `clip`.
        ste: Straight-through estimator.
        backend: "auto": Triton on CUDA, compiled reference for large CPU tensors, else reference.

    Returns:
        The rounded values, of the shape and dtype of `x`.

    Raises:
        ValueError: An argument is outside its range, shapes do not fit, or the backend is missing.
    """
    rule = _rule(x, group_size, bits, grid, divisor, eps, clip, scale, ste, backend)
    param = clip if scale is None else scale
    if torch.compiler.is_compiling() and not uses_triton(x, backend):
        # In plain sight, so that the surrounding compiler fuses it with its neighbours.
        y: Tensor = _Inlined.apply(x, param, rule)
    else:
        y = _fake_quantize_op(x, param, *rule)
    return y


def quantize(
    x: Tensor,
    group_size: int,
    *,
    bits: int = 4,
    divisor: float | None = None,
    eps: float = 1e-8,
    clip: Tensor | None = None,
    scale: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Returns what `fake_quantize` rounds to: integer codes and scales.

    `dequantize(codes, scales, x.dtype)` equals `fake_quantize(x, ...)` exactly where x is finite.
    With `group_size=K` this is dynamic per-token quantisation.

    Args:
        x: As in `fake_quantize`, like all that follows; the grid is "int".
        group_size: Elements per scale.
        bits: Width of the grid.
        divisor: Grid value of the largest magnitude.
        eps: Least scale.
        clip: Factors.
        scale: Scales.
        backend: What computes it.

    Returns:
        Codes (..., K) int8 and scales (..., K / G) float32 (float64 for float64 inputs).
    """
    rule = _rule(x, group_size, bits, "int", divisor, eps, clip, scale, "identity", backend)
    codes: Tensor
    scales: Tensor
    codes, scales = _quantize_op(x, clip if scale is None else scale, *rule)
    return codes, scales


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns codes times scales, rounded once to `dtype`.

    Args:
        codes: (..., K) integers.
        scales: (..., K / G) float32 or float64.
        dtype: Of the result.
    """
    groups = codes.reshape(*scales.shape, -1)
    return (groups.to(scales.dtype) * scales.unsqueeze(-1)).view(codes.shape).to(dtype)


def grid_bounds(bits: int, grid: Grid) -> tuple[float, float]:
    """Returns the least and the largest value of a grid.

    Raises:
        ValueError: `bits` is outside 2 to 8, or not 4 for "fp4_e2m1", or the grid is unknown.
    """
    if grid not in get_args(Grid):
        raise ValueError(f"grid: {grid!r} is none of {', '.join(get_args(Grid))}")
    if grid == "fp4_e2m1":
        if bits != 4:
            raise ValueError(f"bits must be 4 for fp4_e2m1, got {bits}")
        return -6.0, 6.0
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be from 2 to 8, got {bits}")
    return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1


class Rule(NamedTuple):
    """How a tensor is rounded, in the form the registered operations take."""

    group_size: int
    scale_from: str  # "amax", "clip" (amax times a factor) or "given"
    fp4: bool
    qmin: float
    qmax: float
    divisor: float
    eps: float
    ste: str
    backend: str


RULE = (
    "int group_size, str scale_from, bool fp4, float qmin, float qmax, float divisor, float eps, "
    "str ste, str backend"
)


def _rule(
    x: Tensor,
    group_size: int,
    bits: int,
    grid: Grid,
    divisor: float | None,
    eps: float,
    clip: Tensor | None,
    scale: Tensor | None,
    ste: StraightThrough,
    backend: Backend,
) -> Rule:
    """Checks the arguments of the public functions and fills in defaults."""
    check_backend(backend)
    qmin, qmax = grid_bounds(bits, grid)
    if divisor is None:
        divisor = max(-qmin, qmax)
    if not (divisor > 0 and math.isfinite(divisor)):
        raise ValueError(f"divisor must be positive, got {divisor}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be positive, got {eps}")
    if ste not in get_args(StraightThrough):
        raise ValueError(f"ste: {ste!r} is none of {', '.join(get_args(StraightThrough))}")
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension")
    if group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(
            f"group_size {group_size} does not divide the last dimension, {x.shape[-1]}"
        )
    if clip is not None and scale is not None:
        raise ValueError("clip and scale are both given: the scale is either computed or given")
    num_groups = x.shape[-1] // group_size
    for name, param in (("clip", clip), ("scale", scale)):
        if param is not None and param.shape not in ((num_groups,), (*x.shape[:-1], num_groups)):
            raise ValueError(
                f"{name} has shape {tuple(param.shape)}; expected ({num_groups},), shared by all "
                f"rows, or {(*x.shape[:-1], num_groups)}"
            )
    scale_from = "given" if scale is not None else "amax" if clip is None else "clip"
    fp4 = grid == "fp4_e2m1"
    bounds = (qmin, qmax, float(divisor), float(eps))
    return Rule(group_size, scale_from, fp4, *bounds, ste, backend)


# The definition, in torch


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _round(v: Tensor, fp4: bool) -> Tensor:
    """Rounds to the grid, continued beyond its ends; ties to even."""
    if not fp4:
        return v.round()
    magnitude = v.abs()
    fine = torch.where(magnitude < 2, (v * 2).round() / 2, v.round())
    return torch.where(magnitude < 4, fine, (v / 2).round() * 2)


def _scale(x_RG: Tensor, param_R1: Tensor | None, rule: Rule) -> Tensor:
    """Returns the scale of each group, (R, 1)."""
    if rule.scale_from == "given":
        assert param_R1 is not None
        return param_R1.clamp(min=rule.eps)
    amax = x_RG.abs().amax(dim=-1, keepdim=True)
    if param_R1 is not None:
        amax = amax * param_R1
    return (amax / rule.divisor).clamp(min=rule.eps)


def _quantize_groups(
    x_RG: Tensor, param_R1: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns x / s, the rounded value, that clamped to the grid, and s: (R, G), ..., (R, 1)."""
    scale_R1 = _scale(x_RG, param_R1, rule)
    v_RG = x_RG / scale_R1
    rounded_RG = _round(v_RG, rule.fp4)
    return v_RG, rounded_RG, rounded_RG.clamp(rule.qmin, rule.qmax), scale_R1


def _forward(x_RG: Tensor, param_R1: Tensor | None, rule: Rule) -> Tensor:
    wide_RG = _wide(x_RG)
    _, _, q_RG, scale_R1 = _quantize_groups(wide_RG, param_R1, rule)
    y_RG = q_RG * scale_R1
    if rule.scale_from == "given":
        y_RG = torch.where(wide_RG.isfinite(), y_RG, math.nan)
    return y_RG.to(x_RG.dtype)


def _codes(x_RG: Tensor, param_R1: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor]:
    _, _, q_RG, scale_R1 = _quantize_groups(_wide(x_RG), param_R1, rule)
    return q_RG.nan_to_num(0.0).to(torch.int8), scale_R1


def _backward(
    grad_RG: Tensor, x_RG: Tensor, param_R1: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x, (R, G), and of each group's parameter, (R,).

    With "identity" the first is the incoming one, and an empty tensor stands for it.
    """
    x = _wide(x_RG)
    grad = grad_RG.to(x.dtype)
    v, rounded, q, _ = _quantize_groups(x, param_R1, rule)
    inside = (rounded >= rule.qmin) & (rounded <= rule.qmax)
    grad_scale = (grad * torch.where(inside, rounded - v, q)).sum(dim=-1, keepdim=True)
    grad_x = grad * inside
    grad_param = grad_scale
    if rule.scale_from != "given":
        magnitude = x.abs()
        amax = magnitude.amax(dim=-1, keepdim=True)
        factor = 1.0 if param_R1 is None else param_R1
        # Where the scale is at its floor, it depends on neither amax nor the factor.
        grad_scale = torch.where(amax * factor / rule.divisor >= rule.eps, grad_scale, 0.0)
        grad_param = grad_scale * amax / rule.divisor
        if rule.ste == "through_scale":
            largest = magnitude == amax
            share = largest / largest.sum(dim=-1, keepdim=True)
            grad_x = grad_x + share * x.sign() * (grad_scale * factor / rule.divisor)
    if rule.ste == "identity":
        return x_RG.new_empty(0), grad_param.squeeze(-1)
    return grad_x.to(x_RG.dtype), grad_param.squeeze(-1)


# Triton


@jit
def _round_triton(v, FP4: tl.constexpr):  # type: ignore[no-untyped-def]
    # 1.5 * 2^23: adding and taking it away rounds to even, exactly where |v| < 2^22; beyond, v is
    # far outside the grid and clamped anyway. libdevice.rint is not available on every target.
    magic = 12582912.0
    if FP4:
        magnitude = tl.abs(v)
        fine = tl.where(magnitude < 2.0, ((v * 2.0 + magic) - magic) * 0.5, (v + magic) - magic)
        return tl.where(magnitude < 4.0, fine, ((v * 0.5 + magic) - magic) * 2.0)
    return (v + magic) - magic


@jit
def _scale_triton(x, param, divisor, eps, SCALE_FROM: tl.constexpr):  # type: ignore[no-untyped-def]
    # Returns s, amax and s before its floor. The largest magnitude is taken as an integer: the bit
    # patterns of positive floats are in order, and NaN, which a float maximum drops, is the top.
    amax = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1).to(tl.float32, bitcast=True)
    if SCALE_FROM == "given":
        raw = param
    else:
        # Divided, rounded to nearest: `/` is an approximation on GPUs.
        raw = tl.div_rn(amax * param, tl.full(amax.shape, divisor, tl.float32))
    return tl.where(raw < eps, eps, raw), amax, raw


@jit
def _load_triton(  # type: ignore[no-untyped-def]
    x_ptr, param_ptr, num_groups, num_params, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, SCALE_FROM: tl.constexpr,
):  # fmt: skip
    # Returns this program's groups, (ROWS, BLOCK), their parameters, and where they are.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    valid = rows < num_groups
    mask = valid[:, None] & (cols < GROUP)[None, :]
    offsets = rows[:, None] * GROUP + cols[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    param = tl.full([ROWS], 1.0, tl.float32)
    if SCALE_FROM != "amax":
        param = tl.load(param_ptr + rows % num_params, mask=valid, other=1.0).to(tl.float32)
    return x, param, rows, valid, offsets, mask


@jit
def _forward_triton(  # type: ignore[no-untyped-def]
    x_ptr, param_ptr, y_ptr, scale_ptr, num_groups, num_params, divisor, eps, qmin, qmax,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SCALE_FROM: tl.constexpr,
    FP4: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    x, param, rows, valid, offsets, mask = _load_triton(
        x_ptr, param_ptr, num_groups, num_params, GROUP, BLOCK, ROWS, SCALE_FROM
    )
    scale, _, _ = _scale_triton(x, param, divisor, eps, SCALE_FROM)
    v = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    q = tl.minimum(tl.maximum(_round_triton(v, FP4), qmin), qmax)
    if CODES:
        tl.store(y_ptr + offsets, tl.where(v == v, q, 0.0).to(tl.int8), mask=mask)
        tl.store(scale_ptr + rows, scale, mask=valid)
    else:
        y = tl.where(tl.abs(x) < float("inf"), q * scale[:, None], float("nan"))
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _backward_triton(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, param_ptr, grad_x_ptr, grad_param_ptr, num_groups, num_params, divisor, eps,
    qmin, qmax, GROUP: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    SCALE_FROM: tl.constexpr, FP4: tl.constexpr, STE: tl.constexpr,
):  # fmt: skip
    x, param, rows, valid, offsets, mask = _load_triton(
        x_ptr, param_ptr, num_groups, num_params, GROUP, BLOCK, ROWS, SCALE_FROM
    )
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    scale, amax, raw = _scale_triton(x, param, divisor, eps, SCALE_FROM)
    v = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    rounded = _round_triton(v, FP4)
    inside = (rounded >= qmin) & (rounded <= qmax)
    clamped = tl.where(v == v, tl.minimum(tl.maximum(rounded, qmin), qmax), v)
    grad_scale = tl.sum(grad * tl.where(inside, rounded - v, clamped), axis=1)
    grad_param = grad_scale
    by = tl.full(amax.shape, divisor, tl.float32)
    if SCALE_FROM != "given":
        # Where the scale is at its floor, it depends on neither amax nor the factor.
        grad_scale = tl.where(raw >= eps, grad_scale, 0.0)
        grad_param = tl.div_rn(grad_scale * amax, by)
    tl.store(grad_param_ptr + rows, grad_param, mask=valid)
    if STE != "identity":
        grad_x = tl.where(inside, grad, 0.0)
        if STE == "through_scale" and SCALE_FROM != "given":
            largest = (tl.abs(x) == amax[:, None]) & mask
            share = tl.where(largest, 1.0, 0.0)
            share = tl.div_rn(share, tl.broadcast_to(tl.sum(share, axis=1)[:, None], share.shape))
            sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
            grad_x += share * sign * tl.div_rn(grad_scale * param, by)[:, None]
        tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)


def _launch(
    kernel: Any, rule: Rule, param: Tensor | None, tensors: tuple[Tensor, ...], **constants: Any
) -> None:
    """Runs a kernel over all groups of the first tensor, about 4096 elements to a program."""
    num_groups = tensors[0].numel() // rule.group_size
    block = 1 << (rule.group_size - 1).bit_length()
    rows = max(1, 4096 // block)
    kernel[((num_groups + rows - 1) // rows,)](
        *tensors,
        num_groups,
        1 if param is None else param.numel(),
        rule.divisor,
        rule.eps,
        rule.qmin,
        rule.qmax,
        GROUP=rule.group_size,
        BLOCK=block,
        ROWS=rows,
        SCALE_FROM=rule.scale_from,
        FP4=rule.fp4,
        **constants,
    )


def _runs_triton(x: Tensor, rule: Rule) -> bool:
    fits = x.dtype != torch.float64 and rule.group_size <= MAX_TRITON_GROUP and x.numel() > 0
    return fits and uses_triton(x, rule.backend)


# Registration


def _as_groups(x: Tensor, param: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """Views x as (R, G) and repeats the parameters to (R, 1)."""
    x_RG = x.reshape(-1, rule.group_size)
    if param is None:
        return x_RG, None
    param = param.to(torch.promote_types(x.dtype, torch.float32)).flatten()
    return x_RG, param.repeat(x_RG.shape[0] // param.numel()).unsqueeze(-1)


@functools.cache
def _compiled(function: Any, rule: Rule) -> Any:
    return compiled(function, rule=rule)


def _reference_for(function: Any, x: Tensor, rule: Rule) -> Any:
    """The reference of an operation, compiled where that is faster."""
    if uses_compiler(x, rule.backend, COMPILE_FROM):
        return _compiled(function, rule)
    return partial(function, rule=rule)


@torch.library.custom_op(
    "tenfold::fake_quantize", mutates_args=(), schema=f"(Tensor x, Tensor? param, {RULE}) -> Tensor"
)
def _fake_quantize_op(x: Tensor, param: Tensor | None, *settings: Any) -> Tensor:
    rule = Rule(*settings)._replace(ste="")  # of no matter here: compiled once for all
    if _runs_triton(x, rule):
        x = x.contiguous()
        y = torch.empty_like(x)
        _launch(_forward_triton, rule, param, (x, x if param is None else param, y, y), CODES=False)
        return y
    y_RG: Tensor = _reference_for(_forward, x, rule)(*_as_groups(x, param, rule))
    return y_RG.view(x.shape)


@_fake_quantize_op.register_fake
def _(x: Tensor, param: Tensor | None, *settings: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "tenfold::fake_quantize_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor? param, {RULE}) -> (Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor, x: Tensor, param: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    rule = Rule(*settings)
    if _runs_triton(x, rule):
        x, grad = x.contiguous(), grad.contiguous()
        grad_param = x.new_empty(x.numel() // rule.group_size, dtype=torch.float32)
        grad_x = x.new_empty(0) if rule.ste == "identity" else torch.empty_like(x)
        tensors = (x, grad, x if param is None else param, grad_x, grad_param)
        _launch(_backward_triton, rule, param, tensors, STE=rule.ste)
        return grad_x, grad_param
    backward = _reference_for(_backward, x, rule)
    x_RG, param_R1 = _as_groups(x, param, rule)
    grad_x, grad_param = backward(grad.reshape(x_RG.shape), x_RG, param_R1)
    return grad_x if rule.ste == "identity" else grad_x.view(x.shape), grad_param


@_backward_op.register_fake
def _(grad: Tensor, x: Tensor, param: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    rule = Rule(*settings)
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_x = x.new_empty(0 if rule.ste == "identity" else x.shape)
    return grad_x, x.new_empty(x.numel() // rule.group_size, dtype=wide)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, param, *settings = inputs
    ctx.rule = Rule(*settings)
    ctx.saves = param is not None or ctx.rule.ste != "identity"
    if ctx.saves:
        ctx.save_for_backward(x, param)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x and the parameter, and None for each entry of the rule."""
    others = (None,) * len(ctx.rule)
    if not ctx.saves:
        return grad, None, *others
    x, param = ctx.saved_tensors
    grad_x, grad_param = _backward_op(grad, x, param, *ctx.rule)
    return grad if ctx.rule.ste == "identity" else grad_x, _reduced(grad_param, param), *others


def _reduced(grad_R: Tensor, param: Tensor | None) -> Tensor | None:
    """Sums the gradients of the groups that share a parameter."""
    if param is None:
        return None
    return grad_R.view(-1, param.numel()).sum(dim=0).view_as(param).to(param.dtype)


_fake_quantize_op.register_autograd(_gradients, setup_context=_save_for_backward)


class _Inlined(torch.autograd.Function):
    """The reference forwards and backwards, transparent to a surrounding `torch.compile`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, param: Tensor | None, rule: Rule) -> Tensor:
        _save_for_backward(ctx, (x, param, *rule), x)
        return _forward(*_as_groups(x, param, rule), rule).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.saves:
            return grad, None, None
        x, param = ctx.saved_tensors
        x_RG, param_R1 = _as_groups(x, param, ctx.rule)
        grad_x, grad_param = _backward(grad.reshape(x_RG.shape), x_RG, param_R1, ctx.rule)
        grad_x = grad if ctx.rule.ste == "identity" else grad_x.view(x.shape)
        return grad_x, _reduced(grad_param, param), None


@torch.library.custom_op(
    "tenfold::quantize",
    mutates_args=(),
    schema=f"(Tensor x, Tensor? param, {RULE}) -> (Tensor, Tensor)",
)
def _quantize_op(x: Tensor, param: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    rule = Rule(*settings)
    shape = (*x.shape[:-1], x.shape[-1] // rule.group_size)
    if _runs_triton(x, rule):
        x = x.contiguous()
        codes = torch.empty_like(x, dtype=torch.int8)
        scale = x.new_empty(shape, dtype=torch.float32)
        tensors = (x, x if param is None else param, codes, scale)
        _launch(_forward_triton, rule, param, tensors, CODES=True)
        return codes, scale
    quantize_groups = _reference_for(_codes, x, rule)
    codes, scale = quantize_groups(*_as_groups(x, param, rule))
    return codes.view(x.shape), scale.view(shape)


@_quantize_op.register_fake
def _(x: Tensor, param: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (*x.shape[:-1], x.shape[-1] // Rule(*settings).group_size)
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(shape, dtype=wide)
