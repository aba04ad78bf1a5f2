"""Triton code of `polygon_raster`: the same coverage as its reference, bit for bit.

Multiplications and additions are not fused into one rounding (`enable_fp_fusion=False`), so that
crossings are those of the reference. A program looks only at edges that reach the rows of its tile.
Tile sizes follow from the registers they take, not from tuning; nothing here has been timed on a
GPU yet. `tests/benchmarks/polygon_raster.py` prints the ratio.

Shape suffixes: T paths, E edges, H rows, W columns; in the kernels H and W are the extents of a
tile, R and S its rows and columns of samples.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backend import jit, tl

if TYPE_CHECKING:
    from .polygon_raster import EdgeTable

BLOCK_H, BLOCK_W = 8, 32  # pixels of a tile in the search of the nearest edge
SAMPLES_IN_TILE = 4096


@jit
def _coverage_kernel(  # type: ignore[no-untyped-def]
    first_ptr,
    last_ptr,
    x_ptr,
    y_ptr,
    slope_ptr,
    up_ptr,
    even_odd_ptr,
    out_ptr,
    E,
    H,
    W,
    SAMPLES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One tile of BLOCK_H x BLOCK_W pixels of one path; BLOCK_S >= SAMPLES is a power of two."""
    path = tl.program_id(0).to(tl.int64)
    # Samples by pixel: their number within it in the lowest bits, which is beyond it for padding.
    r_R = tl.arange(0, BLOCK_H * BLOCK_S)
    s_S = tl.arange(0, BLOCK_W * BLOCK_S)
    top = tl.program_id(1) * BLOCK_H
    left = tl.program_id(2) * BLOCK_W
    row_R = (top + r_R // BLOCK_S) * SAMPLES + r_R % BLOCK_S
    column_S = (left + s_S // BLOCK_S) * SAMPLES + s_S % BLOCK_S
    first_row = top * SAMPLES
    winding_RS = tl.zeros((BLOCK_H * BLOCK_S, BLOCK_W * BLOCK_S), tl.int32)
    for e in range(E):
        place = path * E + e
        first = tl.load(first_ptr + place)
        last = tl.load(last_ptr + place)
        if (first < first_row + BLOCK_H * SAMPLES) & (last > first_row):
            x = tl.load(x_ptr + place)
            y = tl.load(y_ptr + place)
            slope = tl.load(slope_ptr + place)
            direction = 2 * tl.load(up_ptr + place) - 1
            crossing_R = x + ((row_R.to(tl.float32) + 0.5) - y) * slope
            is_crossed_R = (row_R >= first) & (row_R < last)
            # Compared as floats, so that no crossing is too far away to be a number of a column.
            is_right_RS = column_S[None, :].to(tl.float32) >= crossing_R[:, None] - 0.5
            winding_RS += tl.where(is_crossed_R[:, None] & is_right_RS, direction, 0)
    even_odd = tl.load(even_odd_ptr + path) != 0
    inside_RS = tl.where(even_odd, winding_RS & 1, (winding_RS != 0).to(tl.int32))
    is_sample_RS = (r_R % BLOCK_S < SAMPLES)[:, None] & (s_S % BLOCK_S < SAMPLES)[None, :]
    inside_RS = tl.where(is_sample_RS, inside_RS, 0)
    inside_RW = tl.sum(tl.reshape(inside_RS, (BLOCK_H * BLOCK_S, BLOCK_W, BLOCK_S)), axis=2)
    inside_HW = tl.sum(tl.reshape(inside_RW, (BLOCK_H, BLOCK_S, BLOCK_W)), axis=1)
    share_HW = tl.div_rn(
        inside_HW.to(tl.float32),
        tl.full((BLOCK_H, BLOCK_W), SAMPLES * SAMPLES, tl.float32),
    )
    h_H1 = (top + tl.arange(0, BLOCK_H))[:, None]
    w_1W = (left + tl.arange(0, BLOCK_W))[None, :]
    tl.store(out_ptr + (path * H + h_H1) * W + w_1W, share_HW, mask=(h_H1 < H) & (w_1W < W))


@jit
def _nearest_edge_kernel(  # type: ignore[no-untyped-def]
    edge_ptr,
    real_ptr,
    first_ptr,
    last_ptr,
    x_ptr,
    y_ptr,
    slope_ptr,
    up_ptr,
    index_ptr,
    winding_ptr,
    E,
    H,
    W,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One tile of BLOCK_H x BLOCK_W pixel centers of one path."""
    path = tl.program_id(0).to(tl.int64)
    h_H1 = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    w_1W = (tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    best_HW = tl.full((BLOCK_H, BLOCK_W), float("inf"), tl.float32)
    index_HW = tl.full((BLOCK_H, BLOCK_W), -1, tl.int32)
    winding_HW = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    for e in range(E):
        place = path * E + e
        if tl.load(real_ptr + place) != 0:
            x0 = tl.load(edge_ptr + place * 4)
            y0 = tl.load(edge_ptr + place * 4 + 1)
            dx = tl.load(edge_ptr + place * 4 + 2) - x0
            dy = tl.load(edge_ptr + place * 4 + 3) - y0
            px_1W = (w_1W.to(tl.float32) + 0.5) - x0
            py_H1 = (h_H1.to(tl.float32) + 0.5) - y0
            # The smallest normal number, as in the reference.
            squared = tl.maximum(dx * dx + dy * dy, 1.1754943508222875e-38)
            along_HW = px_1W * dx + py_H1 * dy
            t_HW = tl.div_rn(along_HW, tl.full((BLOCK_H, BLOCK_W), 1.0, tl.float32) * squared)
            t_HW = tl.minimum(tl.maximum(t_HW, 0.0), 1.0)
            away_x_HW = px_1W - t_HW * dx
            away_y_HW = py_H1 - t_HW * dy
            distance_HW = away_x_HW * away_x_HW + away_y_HW * away_y_HW
            closer_HW = distance_HW < best_HW
            best_HW = tl.where(closer_HW, distance_HW, best_HW)
            index_HW = tl.where(closer_HW, e, index_HW)
            y = tl.load(y_ptr + place)
            x = tl.load(x_ptr + place)
            crossing_H1 = x + ((h_H1.to(tl.float32) + 0.5) - y) * tl.load(slope_ptr + place)
            crossed_H1 = (h_H1 >= tl.load(first_ptr + place)) & (h_H1 < tl.load(last_ptr + place))
            is_right_HW = w_1W.to(tl.float32) >= crossing_H1 - 0.5
            direction = 2 * tl.load(up_ptr + place) - 1
            winding_HW += tl.where(crossed_H1 & is_right_HW, direction, 0)
    out_HW = (path * H + h_H1) * W + w_1W
    mask_HW = (h_H1 < H) & (w_1W < W)
    tl.store(index_ptr + out_HW, index_HW.to(tl.int64), mask=mask_HW)
    tl.store(winding_ptr + out_HW, winding_HW, mask=mask_HW)


def coverage_tile(samples: int) -> dict[str, int]:
    """Returns the constants of the kernel for so many samples per pixel and axis."""
    block = 1 << (samples - 1).bit_length()
    # Four times as wide as high, as far as possible: rows are tested once for a whole line.
    height = max(1, min(8, int((SAMPLES_IN_TILE // block**2 // 4) ** 0.5)))
    height = 1 << (height.bit_length() - 1)
    width = max(1, min(32, SAMPLES_IN_TILE // block**2 // height))
    return {"SAMPLES": samples, "BLOCK_S": block, "BLOCK_H": height, "BLOCK_W": width}


def coverage(table: "EdgeTable", even_odd_T: Tensor | None, H: int, W: int, samples: int) -> Tensor:
    """Returns what `polygon_raster.coverage` does, (T, H, W) float32.

    Args:
        table: Edges, float32.
        even_odd_T: (T,) bool, the rule of each path; None: nonzero.
        H: Rows.
        W: Columns.
        samples: Per pixel and axis.
    """
    T, E = table.x.shape
    if even_odd_T is None:
        even_odd_T = torch.zeros(T, dtype=torch.bool, device=table.x.device)
    out_THW = table.x.new_empty((T, H, W))
    tile = coverage_tile(samples)
    grid = (T, -(-H // tile["BLOCK_H"]), -(-W // tile["BLOCK_W"]))
    _coverage_kernel[grid](
        *(column.contiguous() for column in table),
        even_odd_T.contiguous().view(torch.uint8),
        out_THW,
        E,
        H,
        W,
        **tile,
        enable_fp_fusion=False,
    )
    return out_THW


def nearest_edge(
    edges_TE4: Tensor, real_TE: Tensor, table: "EdgeTable", H: int, W: int
) -> tuple[Tensor, Tensor]:
    """Returns the nearest edge, (T, H, W) int64, and the winding number of each pixel, int32.

    Args:
        edges_TE4: (T, E, 4) float32.
        real_TE: (T, E) bool, which of them count.
        table: The same edges, for one sample per pixel.
        H: Rows.
        W: Columns.
    """
    T, E, _ = edges_TE4.shape
    index_THW = edges_TE4.new_empty((T, H, W), dtype=torch.int64)
    winding_THW = edges_TE4.new_empty((T, H, W), dtype=torch.int32)
    _nearest_edge_kernel[(T, -(-H // BLOCK_H), -(-W // BLOCK_W))](
        edges_TE4.contiguous(),
        real_TE.contiguous().view(torch.uint8),
        *(column.contiguous() for column in table),
        index_THW,
        winding_THW,
        E,
        H,
        W,
        BLOCK_H=BLOCK_H,
        BLOCK_W=BLOCK_W,
        enable_fp_fusion=False,
    )
    return index_THW, winding_THW
