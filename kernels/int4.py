"""Linear layers on weights stored as 4-bit integers: packing, dequantisation, matrix product.

A weight of N rows and K columns is codes from -8 to 7, two in a byte, and one scale for each group
of G consecutive elements of a row: `weight[n, k] = code[n, k] * scale[n, k // G]`. The layout is
`int4_rows`: row n holds K / 2 bytes, byte j is code 2j in the low and code 2j + 1 in the high half,
both in two's complement.

Performance. Decoding (few rows of x) waits for the weight alone: N K / 2 bytes of codes and
2 N K / G of 16-bit scales against 2 N K of a 16-bit weight, so the floor is 2 / (0.5 + 2 / G) times
the speed of `F.linear`: 3.88 times for G = 128, 3.56 for G = 32 (3.76 and 3.2 with 32-bit scales).
Not measured on a GPU yet; `tests/benchmarks/int4_linear.py` prints the ratios. Compiled for an H100
both kernels take about seven instructions for each weight, where its memory leaves time for four or
five: expect up to 60 % of the floor there, more where memory is slower beside arithmetic. With many
rows arithmetic is the limit, and the speed of `F.linear` the most to hope for. Tile sizes follow
from such counts, not from tuning.

Shape suffixes: M rows of x, N output and K input features, B = K / 2 bytes, R = K / G groups of a
row. In the kernels the same letters are the extents of a tile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, check_backend, compiled, jit, tl, uses_compiler, uses_triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_COMPILED_BYTES = 1 << 21  # of packed codes: smaller weights are dequantised in a few ms anyway
MAX_GEMV_ROWS = 1  # more rows share the unpacking of a weight only in the kernel on tensor cores
MIN_PROGRAMS = 256  # about two for each multiprocessor of a large GPU; with fewer, K is split
MIN_TILES = 2  # of a program, when K is split


def pack_int4(codes: Tensor) -> Tensor:
    """Packs 4-bit codes, two in a byte.

    Values are checked, which on a GPU waits for the result: packing happens once, at export.

    Args:
        codes: (..., K) int8, from -8 to 7; K even.

    Returns:
        (..., K / 2) uint8: even elements in the low halves, two's complement.

    Raises:
        ValueError: The dtype is not int8, K is odd, or a code does not fit into four bits.
    """
    if codes.dtype != torch.int8:
        raise ValueError(
            f"codes: dtype {codes.dtype}, expected torch.int8; use codes.to(torch.int8)"
        )
    if codes.dim() == 0 or codes.shape[-1] % 2:
        raise ValueError(
            f"codes: shape {tuple(codes.shape)}, but two codes share a byte; pad the last dimension"
            " with a zero to an even size"
        )
    packed: Tensor = _pack_int4(codes)
    return packed


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpacks what `pack_int4` packed.

    Args:
        packed: (..., K / 2) uint8.

    Returns:
        (..., K) int8, from -8 to 7.

    Raises:
        ValueError: The dtype is not uint8, or there is no dimension.
    """
    if packed.dtype != torch.uint8 or packed.dim() == 0:
        raise ValueError(
            f"packed: dtype {packed.dtype}, shape {tuple(packed.shape)}, expected torch.uint8 of"
            " shape (..., K / 2), as pack_int4 returns it"
        )
    codes: Tensor = _unpack_int4(packed)
    return codes


def dequantize_int4(
    packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, backend: Backend = "auto"
) -> Tensor:
    """Returns the weight that packed codes and scales stand for.

    Code and scale are multiplied in float32 and rounded once, to nearest even: bit for bit the
    weight that fake quantisation trained with. Not differentiable.

    Args:
        packed: (N, K / 2) uint8 from `pack_int4`.
        scale: (N, K / G) float32, bfloat16 or float16; G, even, is inferred.
        dtype: Of the result: float32, bfloat16 or float16.
        backend: "auto", "reference", "compile" or "triton" (see `kernels.backend`).

    Returns:
        (N, K) of `dtype`.

    Raises:
        ValueError: A dtype, shape or device does not fit, or the backend is not available.
    """
    check_backend(backend)
    _check_weight(packed, scale)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype}, expected one of {_names(DTYPES)}")
    weight: Tensor = _dequantize_int4(packed, scale.detach(), dtype, backend)
    return weight


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Applies a linear layer whose weight is stored as 4-bit codes: `x @ weight.T + bias`.

    Sums are float32. The weight is used as `dequantize_int4` rounds it to the dtype of x; the
    Triton kernel for one row uses it unrounded. Differentiable in x and bias, the weight being
    frozen: what adapters on a quantised network need. The backward pass holds the dequantised
    weight of one layer at a time. Under autocast x and bias are cast, as for `F.linear`.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        packed: (N, K / 2) uint8 from `pack_int4`.
        scale: (N, K / G) float32, bfloat16 or float16; G, even, is inferred.
        bias: (N,), of the dtype of x.
        backend: "auto", "reference", "compile" or "triton" (see `kernels.backend`).

    Returns:
        (..., N) of the dtype of x.

    Raises:
        ValueError: A dtype, shape or device does not fit, the scale requires a gradient, or the
            backend is not available.
    """
    check_backend(backend)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    _check_weight(packed, scale)
    _check_input(x, packed, bias)
    if scale.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "scale: requires a gradient, which int4_linear does not compute; pass scale.detach(),"
            " or train scales with fake quantisation before packing"
        )
    y_MN: Tensor = _int4_linear(x.reshape(-1, x.shape[-1]), packed, scale.detach(), bias, backend)
    return y_MN.reshape(*x.shape[:-1], packed.shape[0])


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check_weight(packed: Tensor, scale: Tensor) -> None:
    if packed.dtype != torch.uint8 or packed.dim() != 2:
        raise ValueError(
            f"packed: dtype {packed.dtype}, shape {tuple(packed.shape)}, expected torch.uint8 of"
            " shape (N, K / 2), as pack_int4 returns it"
        )
    if scale.dtype not in DTYPES:
        raise ValueError(f"scale: dtype {scale.dtype}, expected one of {_names(DTYPES)}")
    if scale.dim() != 2 or scale.shape[0] != packed.shape[0]:
        raise ValueError(
            f"scale: shape {tuple(scale.shape)}, expected ({packed.shape[0]}, K / G): one row for"
            " each row of packed"
        )
    in_features, num_groups = 2 * packed.shape[1], scale.shape[1]
    if num_groups == 0 or in_features % (2 * num_groups):
        raise ValueError(
            f"scale: {num_groups} columns do not divide the {in_features} elements of a row into"
            " groups of one even size; expected K / G columns"
        )
    if scale.device != packed.device:
        raise ValueError(
            f"scale: on {scale.device}, but packed is on {packed.device}; move one of them"
        )


def _check_input(x: Tensor, packed: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(f"x: dtype {x.dtype}, expected one of {_names(DTYPES)}")
    out_features, in_features = packed.shape[0], 2 * packed.shape[1]
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (..., {in_features}): packed has"
            f" {packed.shape[1]} bytes in a row, two elements in each"
        )
    if x.device != packed.device:
        raise ValueError(f"x: on {x.device}, but packed is on {packed.device}; move one of them")
    if bias is None:
        return
    if bias.shape != (out_features,) or bias.dtype != x.dtype or bias.device != x.device:
        raise ValueError(
            f"bias: {bias.dtype} of shape {tuple(bias.shape)} on {bias.device}, expected {x.dtype}"
            f" of shape ({out_features},) on {x.device}, like x and the rows of packed"
        )


# Reference: the definition.


def _pack_reference(codes: Tensor) -> Tensor:
    halves = codes.view(torch.uint8)
    return (halves[..., 0::2] & 0xF) | (halves[..., 1::2] << 4)


def _unpack_reference(packed: Tensor) -> Tensor:
    signed = packed.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1).flatten(-2)


def _dequantize_reference(packed_NB: Tensor, scale_NR: Tensor, dtype: torch.dtype) -> Tensor:
    codes_NK = _unpack_reference(packed_NB)
    group_size = codes_NK.shape[1] // scale_NR.shape[1]
    codes_NRG = codes_NK.reshape(*scale_NR.shape, group_size).float()
    return (codes_NRG * scale_NR.float().unsqueeze(-1)).flatten(1).to(dtype)


@functools.cache
def _compiled_dequantize(dtype: torch.dtype) -> Callable[..., Any]:
    return compiled(_dequantize_reference, dtype=dtype)


# Triton. A tile spans TILE_GROUPS groups and TILE_WIDTH elements of each: whole groups, or with
# TILE_GROUPS = 1 a part of one. So its scales are loaded once, whatever the size of the groups.


@jit
def _columns(  # type: ignore[no-untyped-def]
    tile, num_groups, GROUP_SIZE: tl.constexpr, TILE_GROUPS: tl.constexpr, TILE_WIDTH: tl.constexpr
):
    """Columns of a tile in a matrix of `num_groups * GROUP_SIZE`, and which of them exist."""
    PARTS: tl.constexpr = (GROUP_SIZE + TILE_WIDTH - 1) // TILE_WIDTH
    column = tl.arange(0, TILE_GROUPS * TILE_WIDTH)
    group = tile // PARTS * TILE_GROUPS + column // TILE_WIDTH
    element = tile % PARTS * TILE_WIDTH + column % TILE_WIDTH
    return group * GROUP_SIZE + element, (group < num_groups) & (element < GROUP_SIZE)


@jit
def _load_codes(  # type: ignore[no-untyped-def]
    packed_ptr,
    n_N,
    N,
    tile,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    """Codes of a tile as float32, in even and in odd columns; 0 outside of the weight."""
    b_B, exists_B = _columns(tile, num_groups, GROUP_SIZE // 2, TILE_GROUPS, TILE_WIDTH // 2)
    pointers = packed_ptr + n_N[:, None] * (num_groups * GROUP_SIZE // 2) + b_B[None, :]
    packed_NB = tl.load(pointers, mask=(n_N[:, None] < N) & exists_B[None, :], other=0).to(tl.int32)
    # 0x4B000000 | u is the float 2^23 + u, and a half byte with its sign bit flipped is code + 8.
    even_NB = ((packed_NB & 0xF) ^ 0x4B000008).to(tl.float32, bitcast=True) - 8388616.0
    odd_NB = ((packed_NB >> 4) ^ 0x4B000008).to(tl.float32, bitcast=True) - 8388616.0
    return even_NB, odd_NB


@jit
def _load_scales(  # type: ignore[no-untyped-def]
    scale_ptr,
    n_N,
    N,
    tile,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    """Scales of a tile as float32."""
    PARTS: tl.constexpr = (GROUP_SIZE + TILE_WIDTH - 1) // TILE_WIDTH
    r_R = tile // PARTS * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
    pointers = scale_ptr + n_N[:, None] * num_groups + r_R[None, :]
    exists_NR = (n_N[:, None] < N) & (r_R[None, :] < num_groups)
    return tl.load(pointers, mask=exists_NR, other=0.0).to(tl.float32)


@jit
def _load_weight(  # type: ignore[no-untyped-def]
    packed_ptr,
    scale_ptr,
    n_N,
    N,
    tile,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    """Weights of a tile as float32."""
    even_NB, odd_NB = _load_codes(
        packed_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
    )
    scale_NR = _load_scales(
        scale_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
    )
    BLOCK_N: tl.constexpr = even_NB.shape[0]
    codes_NK = tl.interleave(even_NB, odd_NB)
    grouped_NRG = tl.reshape(codes_NK, (BLOCK_N, TILE_GROUPS, TILE_WIDTH)) * scale_NR[:, :, None]
    return tl.reshape(grouped_NRG, (BLOCK_N, TILE_GROUPS * TILE_WIDTH))


@jit
def _store(y_ptr, y, bias_ptr, m, n, M, N):  # type: ignore[no-untyped-def]
    """Adds the bias to a tile and stores it; m and n are its indices, shaped to broadcast."""
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + m * N + n, y.to(y_ptr.dtype.element_ty), mask=(m < M) & (n < N))


@jit
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    packed_ptr,
    scale_ptr,
    weight_ptr,
    N,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    tile = tl.program_id(0)
    n_N = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_NK = _load_weight(
        packed_ptr, scale_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
    )
    k_K, exists_K = _columns(tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH)
    pointers = weight_ptr + n_N[:, None] * (num_groups * GROUP_SIZE) + k_K[None, :]
    exists_NK = (n_N[:, None] < N) & exists_K[None, :]
    tl.store(pointers, weight_NK.to(weight_ptr.dtype.element_ty), mask=exists_NK)


@jit
def _gemv_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    packed_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    NUM_STEPS: tl.constexpr,
):
    """One row of x (BLOCK_M = 1) with BLOCK_N rows of the weight.

    Codes stay in the registers they were unpacked into, and sums are reduced once, at the end.
    """
    m = tl.program_id(1).to(tl.int64)
    row_ptr = x_ptr + m * (num_groups * GROUP_SIZE)
    n_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums_NRB = tl.zeros((BLOCK_N, TILE_GROUPS, TILE_WIDTH // 2), tl.float32)
    for step in range(NUM_STEPS):
        tile = tl.program_id(2) + step * tl.num_programs(2)  # beyond the last one all is masked
        even_NB, odd_NB = _load_codes(
            packed_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
        )
        scale_NR = _load_scales(
            scale_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
        )
        b_B, exists_B = _columns(tile, num_groups, GROUP_SIZE // 2, TILE_GROUPS, TILE_WIDTH // 2)
        even_B = tl.load(row_ptr + 2 * b_B, mask=exists_B, other=0.0).to(tl.float32)
        odd_B = tl.load(row_ptr + 2 * b_B + 1, mask=exists_B, other=0.0).to(tl.float32)
        products_NB = even_NB * even_B[None, :] + odd_NB * odd_B[None, :]
        products_NRB = tl.reshape(products_NB, (BLOCK_N, TILE_GROUPS, TILE_WIDTH // 2))
        sums_NRB += products_NRB * scale_NR[:, :, None]
    sums_NB = tl.reshape(sums_NRB, (BLOCK_N, TILE_GROUPS * TILE_WIDTH // 2))
    y_N = tl.sum(sums_NB, axis=1)
    partial_ptr = y_ptr + tl.program_id(2).to(tl.int64) * M * N
    _store(partial_ptr, y_N, bias_ptr, m, n_N, M, N)


@jit
def _gemm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    packed_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    num_groups,
    GROUP_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    NUM_STEPS: tl.constexpr,
):
    """One tile of the transposed product.

    As the first operand the weight stays in the registers in which it was unpacked.
    """
    pid_n, pid_m = tl.swizzle2d(
        tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1), 8
    )
    m_M = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_N = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    y_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(NUM_STEPS):
        tile = tl.program_id(2) + step * tl.num_programs(2)  # beyond the last one all is masked
        weight_NK = _load_weight(
            packed_ptr, scale_ptr, n_N, N, tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH
        )
        k_K, exists_K = _columns(tile, num_groups, GROUP_SIZE, TILE_GROUPS, TILE_WIDTH)
        pointers = x_ptr + m_M[None, :] * (num_groups * GROUP_SIZE) + k_K[:, None]
        x_KM = tl.load(pointers, mask=(m_M[None, :] < M) & exists_K[:, None], other=0.0)
        y_NM = tl.dot(weight_NK.to(x_KM.dtype), x_KM, y_NM, input_precision="ieee")
    partial_ptr = y_ptr + tl.program_id(2).to(tl.int64) * M * N
    _store(partial_ptr, y_NM, bias_ptr, m_M[None, :], n_N[:, None], M, N)


class _Blocks(NamedTuple):
    """How a product is cut into programs."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def _blocks(num_rows: int, dtype: torch.dtype) -> _Blocks:
    if num_rows <= MAX_GEMV_ROWS:
        return _Blocks(1, 8, 1024, num_warps=4, num_stages=2)
    halves = 2 if dtype == torch.float32 else 1  # the same bytes of shared memory
    if num_rows <= 32:
        return _Blocks(16 if num_rows <= 16 else 32, 64, 128 // halves, num_warps=4, num_stages=4)
    if num_rows <= 64:
        return _Blocks(64, 64, 64 // halves, num_warps=4, num_stages=4)
    return _Blocks(128, 128, 64 // halves, num_warps=8, num_stages=3)


def _next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _cdiv(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _tiling(num_groups: int, group_size: int, block_k: int) -> tuple[int, int, int]:
    """Returns TILE_GROUPS, TILE_WIDTH, and the number of tiles in a row of the weight."""
    width = min(_next_power_of_2(group_size), block_k)
    groups = block_k // width
    return groups, width, _cdiv(num_groups, groups) * _cdiv(group_size, width)


def _dequantize_triton(packed_NB: Tensor, scale_NR: Tensor, dtype: torch.dtype) -> Tensor:
    num_rows, num_groups = scale_NR.shape
    group_size = 2 * packed_NB.shape[1] // num_groups
    weight_NK = packed_NB.new_empty((num_rows, num_groups * group_size), dtype=dtype)
    groups, width, num_tiles = _tiling(num_groups, group_size, 256)
    _dequantize_kernel[(num_tiles, _cdiv(num_rows, 32))](
        packed_NB.contiguous(),
        scale_NR.contiguous(),
        weight_NK,
        num_rows,
        num_groups,
        group_size,
        BLOCK_N=32,
        TILE_GROUPS=groups,
        TILE_WIDTH=width,
    )
    return weight_NK


def _linear_triton(
    x_MK: Tensor, packed_NB: Tensor, scale_NR: Tensor, bias: Tensor | None
) -> Tensor:
    """Launches the kernel that fits the number of rows; where N is small, K is split over programs.

    Partial sums meet in a buffer rather than by atomic additions: results are the same in each run.
    """
    (M, K), (N, num_groups) = x_MK.shape, scale_NR.shape
    blocks = _blocks(M, x_MK.dtype)
    groups, width, num_tiles = _tiling(num_groups, K // num_groups, blocks.block_k)
    num_n, num_m = _cdiv(N, blocks.block_n), _cdiv(M, blocks.block_m)
    split_k = max(1, min(MIN_PROGRAMS // max(num_n * num_m, 1), num_tiles // MIN_TILES))
    y_SMN = x_MK.new_empty((split_k, M, N), dtype=torch.float32 if split_k > 1 else x_MK.dtype)
    kernel = _gemv_kernel if M <= MAX_GEMV_ROWS else _gemm_kernel
    kernel[(num_n, num_m, split_k)](
        x_MK.contiguous(),
        packed_NB.contiguous(),
        scale_NR.contiguous(),
        bias.contiguous() if bias is not None and split_k == 1 else None,
        y_SMN,
        M,
        N,
        num_groups,
        GROUP_SIZE=K // num_groups,
        BLOCK_M=blocks.block_m,
        BLOCK_N=blocks.block_n,
        TILE_GROUPS=groups,
        TILE_WIDTH=width,
        NUM_STEPS=_cdiv(num_tiles, split_k),
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    if split_k == 1:
        return y_SMN[0]
    y_MN = y_SMN.sum(0)
    return (y_MN if bias is None else y_MN + bias).to(x_MK.dtype)


# Registration.


@torch.library.custom_op("tenfold::pack_int4", mutates_args=())
def _pack_int4(codes: Tensor) -> Tensor:
    if codes.numel():
        low, high = (int(value) for value in torch.aminmax(codes))
        if low < -8 or high > 7:
            raise ValueError(
                f"codes: values from {low} to {high} do not fit into four bits; clamp them to"
                " -8 ... 7"
            )
    return _pack_reference(codes)


@_pack_int4.register_fake
def _(codes: Tensor) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], codes.shape[-1] // 2), dtype=torch.uint8)


@torch.library.custom_op("tenfold::unpack_int4", mutates_args=())
def _unpack_int4(packed: Tensor) -> Tensor:
    return _unpack_reference(packed)


@_unpack_int4.register_fake
def _(packed: Tensor) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], 2 * packed.shape[-1]), dtype=torch.int8)


@torch.library.custom_op("tenfold::dequantize_int4", mutates_args=())
def _dequantize_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    if uses_triton(packed, backend):
        return _dequantize_triton(packed, scale, dtype)
    if uses_compiler(packed, backend, MIN_COMPILED_BYTES):
        weight: Tensor = _compiled_dequantize(dtype)(packed, scale)
        return weight
    return _dequantize_reference(packed, scale, dtype)


@_dequantize_int4.register_fake
def _(packed: Tensor, scale: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]), dtype=dtype)


@torch.library.custom_op("tenfold::int4_linear", mutates_args=())
def _int4_linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, backend: str
) -> Tensor:
    if uses_triton(x, backend):
        return _linear_triton(x, packed, scale, bias)
    return F.linear(x, _dequantize_int4(packed, scale, x.dtype, backend), bias)


@_int4_linear.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, scale, _, ctx.backend = inputs
    ctx.save_for_backward(packed, scale)


def _backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
    packed, scale = ctx.saved_tensors
    needs_x, _, _, needs_bias, _ = ctx.needs_input_grad
    grad_x = grad_bias = None
    if needs_x:
        grad_x = grad_MN @ _dequantize_int4(packed, scale, grad_MN.dtype, ctx.backend)
    if needs_bias:
        grad_bias = grad_MN.sum(0)
    return grad_x, None, None, grad_bias, None


_int4_linear.register_autograd(_backward, setup_context=_setup_context)
