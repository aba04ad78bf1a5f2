"""Coverage of paths: which part of each pixel lies inside, hard (sampled) or soft (differentiable).

A path arrives as directed edges in pixels, x to the right and y down; pixel (i, j) is the square
from (j, i) to (j + 1, i + 1). Curves are cut into chords before (`cubic_edges`), and the contours
of one path, holes among them, share its edges in any order. An edge with a number that is not
finite counts as absent.

The numerical contract of `coverage`, the same bit for bit in every backend: a pixel has n x n
samples in a regular grid; the winding number of a sample is the sum of the directions of the edges
that cross its row at or to the left of it; an edge crosses the rows whose centers lie between its
ends, the upper one included, at `x + (row - y) * slope` from its upper end, rounded as written. So
edges of adjacent shapes leave no gap and no overlap.

Performance. The reference visits crossings, not pixels times edges: an edge costs as many steps as
sample rows it crosses; they are sorted within their rows and summed from left to right. On a CPU
that takes about twice as long as a loop over Skia (256 x 4 polygons of 24 edges, 64 x 64 pixels).
Triton tests the samples of a tile against the edges that reach its rows, in registers; 4 bytes per
pixel are written. `tests/benchmarks/polygon_raster.py` prints the ratios.

Shape suffixes: B images, L paths (layers), E edges, T = B * L paths in one row, H rows, W columns,
C crossings.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import polygon_raster_triton
from .backend import check_uncompiled_backend, uses_triton

RasterBackend = Literal["auto", "reference", "triton"]

MAX_SAMPLES = 16
# What the reference works on at a time, so that it stays in the cache: crossings, at the very most,
# and pixels whose distances to an edge are computed.
CHUNK, PIXELS = 1 << 20, 1 << 15


def coverage(
    edges_BLE4: Tensor,
    size: tuple[int, int],
    count_BL: Tensor | None = None,
    even_odd_BL: Tensor | None = None,
    samples: int = 8,
    backend: RasterBackend = "auto",
) -> Tensor:
    """Returns the share of each pixel that lies inside each path; without a gradient.

    Contours should be closed: what an open one leaves inside reaches to the right border.

    Args:
        edges_BLE4: (B, L, E, 4) float32 or float64: x, y of the start and x, y of the end.
        size: (H, W) of the image.
        count_BL: (B, L) int64, how many edges of each path count; by default all.
        even_odd_BL: (B, L) bool, True: inside is an odd winding number, False: one that is not 0.
            By default nonzero for all.
        samples: Per pixel and axis, 1 to 16. With 8, coverage is nearer to the truth than that of
            Skia. An error of up to 1 / (2 * samples) remains where a border runs along a row.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, L, H, W) in the dtype of the edges, multiples of 1 / samples^2 from 0 to 1.

    Raises:
        ValueError: A dtype, shape, device or range does not fit, or the backend is not available.
    """
    check_uncompiled_backend(backend, "polygons")
    _check_paths(edges_BLE4, size, count_BL, even_odd_BL)
    if not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples must be from 1 to {MAX_SAMPLES}, got {samples}")
    inside: Tensor = _coverage(edges_BLE4.detach(), count_BL, even_odd_BL, *size, samples, backend)
    return inside


def soft_coverage(
    edges_BLE4: Tensor,
    size: tuple[int, int],
    count_BL: Tensor | None = None,
    even_odd_BL: Tensor | None = None,
    width_BL: Tensor | None = None,
    softness: float = 0.5,
    backend: RasterBackend = "auto",
) -> Tensor:
    """Returns a sigmoid of the distance to each path's border; differentiable in edges and widths.

    For a filled path the distance is that to the nearest edge, positive inside: edges that run
    inside of the path, as where contours overlap, count as border too. For a stroked one it is half
    the width minus that distance: joins and caps are round. Distances are exact, those of pixel
    centers. Nothing of size H * W * E is ever held, but a few dozen numbers per pixel and path.

    Args:
        edges_BLE4: As in `coverage`, like `size`, `count_BL` and `even_odd_BL`.
        size: (H, W).
        count_BL: How many edges of each path count.
        even_odd_BL: Rule of filled paths.
        width_BL: (B, L) in the dtype of the edges, pixels: widths of stroked paths, 0 for filled
            ones. By default all are filled. The edges of a stroke need not be closed.
        softness: Pixels: where the distance is this, coverage is 0.73. Positive.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, L, H, W) in the dtype of the edges, 0 to 1; 0 for a path without edges.

    Raises:
        ValueError: A dtype, shape, device or range does not fit, or the backend is not available.
    """
    check_uncompiled_backend(backend, "polygons")
    _check_paths(edges_BLE4, size, count_BL, even_odd_BL)
    if width_BL is not None:
        _check_like("width", width_BL, edges_BLE4, edges_BLE4.dtype)
    if not 0 < softness < torch.inf:
        raise ValueError(f"softness must be positive, got {softness}")
    if edges_BLE4.shape[2] == 0:
        return edges_BLE4.new_zeros((*edges_BLE4.shape[:2], *size))
    edge, winding = _nearest_edge(edges_BLE4.detach(), count_BL, *size, backend)
    is_odd = winding % 2 == 1
    inside = winding != 0
    if even_odd_BL is not None:
        inside = torch.where(even_odd_BL[..., None, None], is_odd, inside)
    stroked = torch.zeros_like(inside) if width_BL is None else width_BL[..., None, None] > 0
    distance = _distance(edges_BLE4, edge, stroked)
    signed = torch.where(inside, distance, -distance)
    if width_BL is not None:
        signed = torch.where(stroked, width_BL[..., None, None] / 2 - distance, signed)
    return torch.where(edge >= 0, torch.sigmoid(signed / softness), 0.0)


def polygon_edges(points_BLK2: Tensor) -> Tensor:
    """Returns the edges of closed polygons, (..., K, 4), from their corners (..., K, 2).

    Points that are repeated at the end add edges of no length, which do no harm.
    """
    return torch.cat((points_BLK2, points_BLK2.roll(-1, dims=-2)), dim=-1)


def cubic_edges(control: Tensor, num_chords: int) -> Tensor:
    """Returns the chords of cubic Bezier curves, (..., num_chords, 4); differentiable.

    Args:
        control: (..., 4, 2) floating point: start, two control points, end.
        num_chords: Equal steps of the parameter, at least 1.
    """
    t = torch.linspace(0, 1, num_chords + 1, dtype=control.dtype, device=control.device)
    s = 1 - t
    basis = torch.stack((s**3, 3 * s * s * t, 3 * s * t * t, t**3), dim=-1)
    points = basis @ control
    return torch.cat((points[..., :-1, :], points[..., 1:, :]), dim=-1)


def _check_paths(
    edges: Tensor, size: tuple[int, int], count: Tensor | None, even_odd: Tensor | None
) -> None:
    if edges.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"edges: dtype {edges.dtype}, expected float32 or float64")
    if edges.dim() != 4 or edges.shape[-1] != 4:
        raise ValueError(f"edges: shape {tuple(edges.shape)}, expected (B, L, E, 4)")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: {size}, expected (rows, columns), both at least 1")
    if count is not None:
        _check_like("count", count, edges, torch.int64)
    if even_odd is not None:
        _check_like("even_odd", even_odd, edges, torch.bool)


def _check_like(name: str, value: Tensor, edges: Tensor, dtype: torch.dtype) -> None:
    shape = tuple(edges.shape[:2])
    if value.dtype != dtype or tuple(value.shape) != shape or value.device != edges.device:
        raise ValueError(
            f"{name}: {value.dtype} of shape {tuple(value.shape)} on {value.device}, expected"
            f" {dtype} of shape {shape} on {edges.device}, one for each path of edges"
        )


# Reference: the definition.


class EdgeTable(NamedTuple):
    """Where edges cross rows of samples, each (T, E); coordinates in units of samples."""

    first: Tensor  # int32, the first row that is crossed
    last: Tensor  # int32, the one after the last
    x: Tensor  # of the upper end
    y: Tensor
    slope: Tensor  # columns per row
    up: Tensor  # int32: 1 for an edge that goes up, whose direction counts +1, else 0 for -1


def edge_table(edges_TE4: Tensor, real_TE: Tensor, num_rows: int, samples: int) -> EdgeTable:
    """Prepares edges for an image of so many rows of samples."""
    x0, y0, x1, y1 = (edges_TE4 * samples).unbind(-1)
    up = y1 < y0
    upper, lower = torch.where(up, y1, y0), torch.where(up, y0, y1)
    first, last = ((end - 0.5).ceil().clamp(0, num_rows) for end in (upper, lower))
    # No division by zero: an edge that crosses a row has a height.
    height = torch.where(real_TE & (last > first), lower - upper, 1.0)
    slope = torch.where(up, x0 - x1, x1 - x0) / height
    return EdgeTable(
        first.where(real_TE, 0).int(),
        last.where(real_TE, 0).int(),
        torch.where(up, x1, x0),
        upper,
        slope,
        up.int(),
    )


def real_edges(edges_TE4: Tensor, count_T: Tensor | None) -> Tensor:
    """Returns which edges count, (T, E) bool."""
    real_TE = edges_TE4.isfinite().all(dim=-1)
    if count_T is None:
        return real_TE
    return real_TE & (torch.arange(real_TE.shape[1], device=real_TE.device) < count_T[:, None])


def _coverage_reference(
    table: EdgeTable, even_odd_T: Tensor | None, H: int, W: int, samples: int
) -> Tensor:
    """Returns (T, H, W)."""
    T, E = table.x.shape
    inside_THW = table.x.new_empty((T, H, W))
    step = max(1, CHUNK // max(1, E * H * samples))
    for start in range(0, T, step):
        part = slice(start, start + step)
        rule_T = None if even_odd_T is None else even_odd_T[part]
        chunk = EdgeTable(*(column[part] for column in table))
        inside_THW[part] = _covered_samples(chunk, rule_T, H, W, samples)
    return inside_THW.div_(samples**2)


def _covered_samples(
    table: EdgeTable, even_odd_T: Tensor | None, H: int, W: int, samples: int
) -> Tensor:
    """Returns how many samples of each pixel lie inside, (T, H, W)."""
    T = len(table.x)
    line_C, column_C, up_C = _crossings(table, H * samples, W * samples)
    direction_C = 2 * up_C - 1
    after_C = direction_C.cumsum(0)
    before_C = after_C - direction_C
    # Each line starts from 0, whatever an open contour left on the line before.
    is_first_C = torch.ones_like(line_C, dtype=torch.bool)
    torch.ne(line_C[1:], line_C[:-1], out=is_first_C[1:])
    first_C = is_first_C.nonzero().squeeze(1)
    base_C = before_C[first_C][is_first_C.cumsum(0) - 1]
    after_C, before_C = after_C - base_C, before_C - base_C
    path_C = line_C // (H * samples)
    entered_C = _is_inside(after_C, even_odd_T, path_C).to(table.x.dtype)
    entered_C -= _is_inside(before_C, even_odd_T, path_C).to(table.x.dtype)
    # From here on inside: the rest of this pixel, and by the running sum all pixels to the right.
    pixel_C = (line_C // samples) * (W + 2) + column_C // samples
    missed_C = entered_C * (column_C % samples)
    sum_THW = table.x.new_zeros(T * H * (W + 2))
    sum_THW.index_add_(0, pixel_C, entered_C * samples - missed_C)
    sum_THW.index_add_(0, pixel_C + 1, missed_C)
    return sum_THW.view(T, H, W + 2).cumsum(-1)[..., :W]


def _crossings(table: EdgeTable, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns line (path and row), column and direction of all crossings from left to right.

    The column is that of the first sample at or to the right of the crossing.
    """
    E = table.x.shape[1]
    rows = (table.last - table.first).flatten().long()
    edge_C = torch.repeat_interleave(rows)
    offset = table.first.flatten() - (rows.cumsum(0) - rows)
    row_C = torch.arange(len(edge_C), device=rows.device) + offset[edge_C]
    down_C = (row_C + 0.5).to(table.x.dtype) - table.y.flatten()[edge_C]
    x_C = table.x.flatten()[edge_C] + down_C * table.slope.flatten()[edge_C]
    x_C = x_C.nan_to_num_(nan=num_columns + 1)  # inf - inf: to the right of all samples
    column_C = (x_C - 0.5).ceil().clamp(0, num_columns).long()
    line_C = edge_C // E * num_rows + row_C
    # One number to be sorted by: line, column, direction.
    bits = num_columns.bit_length()
    key_C = (((line_C << bits) | column_C) << 1) | table.up.flatten()[edge_C]
    key_C = key_C.sort().values
    place_C = key_C >> 1
    return place_C >> bits, place_C & ((1 << bits) - 1), key_C & 1


def _is_inside(winding_C: Tensor, even_odd_T: Tensor | None, path_C: Tensor) -> Tensor:
    inside_C = winding_C != 0
    if even_odd_T is None:
        return inside_C
    return torch.where(even_odd_T[path_C], winding_C % 2 == 1, inside_C)


def _nearest_edge_reference(
    edges_TE4: Tensor, real_TE: Tensor, table: EdgeTable, H: int, W: int
) -> tuple[Tensor, Tensor]:
    """Returns the nearest edge, or -1, and the winding number of each pixel's center: (T, H, W)."""
    T = len(edges_TE4)
    edges_TE4 = edges_TE4.masked_fill(~real_TE[..., None], torch.nan)  # never nearer than another
    edge_THW = torch.empty((T, H, W), dtype=torch.int64, device=edges_TE4.device)
    step = max(1, PIXELS // (H * W))
    for start in range(0, T, step):
        part = slice(start, start + step)
        edge_THW[part] = _nearest_edges(edges_TE4[part], H, W)
    return edge_THW, _winding_numbers(table, H, W)


def _nearest_edges(edges_TE4: Tensor, H: int, W: int) -> Tensor:
    """Returns the edge nearest to each pixel's center, or -1, (T, H, W) int32."""
    T, E, _ = edges_TE4.shape
    x_W = torch.arange(W, device=edges_TE4.device) + 0.5
    y_H1 = torch.arange(H, device=edges_TE4.device)[:, None] + 0.5
    edge_THW = torch.full((T, H, W), -1, dtype=torch.int32, device=edges_TE4.device)
    best_THW = edges_TE4.new_full((T, H, W), torch.inf)
    for e in range(E):
        x0, y0, x1, y1 = edges_TE4[:, e, :, None, None].unbind(1)
        dx, dy = x1 - x0, y1 - y0
        px_T1W, py_TH1 = x_W - x0, y_H1 - y0
        squared = (dx * dx + dy * dy).clamp(min=torch.finfo(dx.dtype).tiny)
        t_THW = torch.add(px_T1W * dx, py_TH1 * dy).div_(squared).clamp_(0, 1)
        distance_THW = torch.addcmul(px_T1W, t_THW, dx, value=-1).square_()
        down_THW = torch.addcmul(py_TH1, t_THW, dy, value=-1)
        distance_THW.addcmul_(down_THW, down_THW)
        edge_THW.masked_fill_(distance_THW < best_THW, e)
        torch.fmin(best_THW, distance_THW, out=best_THW)
    return edge_THW


def _winding_numbers(table: EdgeTable, H: int, W: int) -> Tensor:
    """Returns the winding number of each pixel's center, (T, H, W) int32."""
    line_C, column_C, up_C = _crossings(table, H, W)
    turns_HW = torch.zeros(len(table.x) * H * (W + 1), dtype=torch.int32, device=table.x.device)
    turns_HW.index_add_(0, line_C * (W + 1) + column_C, (2 * up_C - 1).int())
    return turns_HW.view(-1, H, W + 1).cumsum(-1, dtype=torch.int32)[..., :W].contiguous()


def _distance(edges_BLE4: Tensor, edge_BLHW: Tensor, stroked: Tensor) -> Tensor:
    """Returns the distance to the edges named, differentiable in them; (B, L, H, W).

    The nearest point of an edge stays the nearest to first order when the edge moves, and so does
    the direction to it: both are constants here, and nothing is divided by a distance of 0. On the
    border of a filled path, where that direction has two signs, it is that of the side to which
    the winding number counts the point; on the middle line of a stroke it is 0.
    """
    B, L, H, W = edge_BLHW.shape
    index = edge_BLHW.clamp(min=0).view(B, L, H * W, 1).expand(-1, -1, -1, 4)
    nearest = edges_BLE4.gather(2, index).view(B, L, H, W, 4)
    nearest = torch.where(edge_BLHW[..., None] >= 0, nearest, 0.0)  # without edges, without NaN
    x0, y0, x1, y1 = nearest.unbind(-1)
    px = torch.arange(W, device=edges_BLE4.device) + 0.5
    py = torch.arange(H, device=edges_BLE4.device)[:, None] + 0.5
    with torch.no_grad():
        dx, dy = x1 - x0, y1 - y0
        squared = (dx * dx + dy * dy).clamp(min=torch.finfo(dx.dtype).tiny)
        t = (((px - x0) * dx + (py - y0) * dy) / squared).clamp(0, 1)
        ux, uy = px - (x0 + t * dx), py - (y0 + t * dy)
        distance = (ux * ux + uy * uy).sqrt()
        on_border = (distance == 0) & ~stroked
        # The normal to which a point on the border is shifted: to the right, along a row down.
        sign = torch.where(dy != 0, dy.sign(), -dx.sign())
        length = torch.where(
            on_border, squared.sqrt(), distance.clamp(min=squared.new_tensor(1e-30))
        )
        ux = torch.where(on_border, sign * dy, ux) / length
        uy = torch.where(on_border, -sign * dx, uy) / length
    away: Tensor = ux * (px - (x0 + t * (x1 - x0))) + uy * (py - (y0 + t * (y1 - y0)))
    return away


# Registration.


def _flat(edges: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns edges (T, E, 4) and which of them count, (T, E) bool."""
    edges_TE4 = edges.flatten(0, 1)
    return edges_TE4, real_edges(edges_TE4, None if count is None else count.flatten())


def _runs_triton(edges: Tensor, backend: str) -> bool:
    fits = edges.dtype == torch.float32 and edges.shape[0] * edges.shape[1] > 0
    return fits and uses_triton(edges, backend)


@torch.library.custom_op("tenfold::polygon_coverage", mutates_args=())
def _coverage(
    edges: Tensor,
    count: Tensor | None,
    even_odd: Tensor | None,
    height: int,
    width: int,
    samples: int,
    backend: str,
) -> Tensor:
    table = edge_table(*_flat(edges, count), height * samples, samples)
    rule_T = None if even_odd is None else even_odd.flatten()
    fill = polygon_raster_triton.coverage if _runs_triton(edges, backend) else _coverage_reference
    return fill(table, rule_T, height, width, samples).view(*edges.shape[:2], height, width)


@_coverage.register_fake
def _(
    edges: Tensor,
    count: Tensor | None,
    even_odd: Tensor | None,
    height: int,
    width: int,
    samples: int,
    backend: str,
) -> Tensor:
    return edges.new_empty((*edges.shape[:2], height, width))


@torch.library.custom_op("tenfold::nearest_edge", mutates_args=())
def _nearest_edge(
    edges: Tensor, count: Tensor | None, height: int, width: int, backend: str
) -> tuple[Tensor, Tensor]:
    edges_TE4, real_TE = _flat(edges, count)
    table = edge_table(edges_TE4, real_TE, height, 1)
    runs_triton = _runs_triton(edges, backend)
    search = polygon_raster_triton.nearest_edge if runs_triton else _nearest_edge_reference
    edge, winding = search(edges_TE4, real_TE, table, height, width)
    shape = (*edges.shape[:2], height, width)
    return edge.view(shape), winding.view(shape)


@_nearest_edge.register_fake
def _(
    edges: Tensor, count: Tensor | None, height: int, width: int, backend: str
) -> tuple[Tensor, Tensor]:
    shape = (*edges.shape[:2], height, width)
    return edges.new_empty(shape, dtype=torch.int64), edges.new_empty(shape, dtype=torch.int32)
