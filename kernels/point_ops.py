"""Neighbours and samples of point clouds: kNN, farthest-point sampling, ball query, gathering.

The numerical contract, the same bit for bit in every backend: squared distances in float32 (float64
for float64 inputs), the squares of the differences added one channel after the other. The expanded
form |q|^2 - 2 q.p + |p|^2, which a matrix product would make faster, is not used: far from the
origin it cancels, points that are near have distances of pure rounding error, a point is not at
distance 0 from its own copy, and what is near depends on the order of the points. So equal points
have equal distances in any order, and ties, which meshes and duplicated points are full of, go to
the lower index.

A point with a coordinate that is not finite counts as masked out, and so is never returned while
the cloud has another one. A cloud without any point returns index 0. Distances beyond the largest
number, as from a query that is not finite, are equal to it.

Performance. On a CPU the search in 3 dimensions takes about the time of `torch.cdist` and `topk`;
in 64, where a matrix product gains most, 3 times as long. Sampling is 4 to 43 times as fast as a
loop that computes all distances again, and takes num_samples short steps that follow each other:
its floor is their latency. `tests/benchmarks/point_ops.py` prints the ratios. Triton takes no
float64 and at most 128 neighbours; for these the reference runs on every device.

Shape suffixes: B clouds, N points, M queries, C channels, K neighbours, S samples.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from . import point_ops_triton
from .backend import check_uncompiled_backend, uses_triton

PointBackend = Literal["auto", "reference", "triton"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Distances that a chunk of queries has at once, when one query has fewer: they stay in the cache.
CHUNK = 1 << 17


def knn(
    points_BNC: Tensor,
    k: int,
    queries_BMC: Tensor | None = None,
    mask_BN: Tensor | None = None,
    backend: PointBackend = "auto",
) -> Tensor:
    """Returns the k nearest points of each query.

    Nearest first, ties to the lower index. Where fewer than k points exist, the nearest is
    repeated. Memory is bounded by a few numbers per point and index, not by N x M.

    Args:
        points_BNC: (B, N, C) float32, float64, bfloat16 or float16: coordinates, or features.
        k: Neighbours, at least 1; may exceed N.
        queries_BMC: (B, M, C) of the same dtype. By default the points themselves: each finds
            itself first, or its copy of the lowest index.
        mask_BN: (B, N) bool, True for real points.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, M, k) int64.

    Raises:
        ValueError: A dtype, shape or device does not fit, k < 1, or the backend is not available.
    """
    check_uncompiled_backend(backend, "points")
    _check_points("points", points_BNC)
    if queries_BMC is not None:
        _check_like("queries", queries_BMC, points_BNC)
        queries_BMC = queries_BMC.detach()
    _check_mask(mask_BN, points_BNC)
    _check_count("k", k)
    index: Tensor = _knn(points_BNC.detach(), queries_BMC, mask_BN, k, backend)
    return index


def farthest_point_sample(
    points_BN3: Tensor,
    num_samples: int,
    start_B: Tensor | None = None,
    mask_BN: Tensor | None = None,
    backend: PointBackend = "auto",
) -> Tensor:
    """Returns points that cover each cloud: every next one is farthest from those chosen so far.

    Ties go to the lower index. Beyond the number of distinct points, those chosen are repeated.

    Args:
        points_BN3: (B, N, 3) float32, float64, bfloat16 or float16.
        num_samples: Points to choose, at least 1; may exceed N.
        start_B: (B,) int64, the first one of each cloud. By default the first that is not masked.
        mask_BN: (B, N) bool, True for real points.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, num_samples) int64.

    Raises:
        ValueError: A dtype, shape or device does not fit, num_samples < 1, a start is no index of
            a point, or the backend is not available.
    """
    check_uncompiled_backend(backend, "points")
    _check_points("points", points_BN3, channels=3)
    _check_mask(mask_BN, points_BN3)
    _check_count("num_samples", num_samples)
    _check_start(start_B, points_BN3)
    index: Tensor = _fps(points_BN3.detach(), start_B, mask_BN, num_samples, backend)
    return index


def ball_query(
    points_BN3: Tensor,
    centers_BM3: Tensor,
    radius: float,
    k: int,
    mask_BN: Tensor | None = None,
    backend: PointBackend = "auto",
) -> Tensor:
    """Returns the first k points, in the order of their indices, closer to a center than a radius.

    Where there are fewer, the first is repeated; where there is none, the nearest point.

    Args:
        points_BN3: (B, N, 3) float32, float64, bfloat16 or float16.
        centers_BM3: (B, M, 3) of the same dtype.
        radius: Positive; points at this very distance are outside.
        k: Points to return for each center, at least 1; may exceed N.
        mask_BN: (B, N) bool, True for real points.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, M, k) int64.

    Raises:
        ValueError: A dtype, shape or device does not fit, the radius or k is not positive, or the
            backend is not available.
    """
    check_uncompiled_backend(backend, "points")
    _check_points("points", points_BN3, channels=3)
    _check_like("centers", centers_BM3, points_BN3)
    _check_mask(mask_BN, points_BN3)
    _check_count("k", k)
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"radius must be positive, got {radius}")
    index: Tensor = _ball_query(
        points_BN3.detach(), centers_BM3.detach(), mask_BN, radius, k, backend
    )
    return index


def gather_points(x_BNC: Tensor, index_BMK: Tensor) -> Tensor:
    """Returns the rows of each cloud that an index names; differentiable in them.

    Args:
        x_BNC: (B, N, C) of any dtype.
        index_BMK: (B, ...) int64, such as `knn` (B, M, k) or `farthest_point_sample` (B, S) return.

    Returns:
        (B, ..., C).

    Raises:
        ValueError: Shapes or dtype do not fit.
    """
    if x_BNC.dim() != 3:
        raise ValueError(f"x: shape {tuple(x_BNC.shape)}, expected (B, N, C)")
    if index_BMK.dtype != torch.int64 or index_BMK.dim() < 2 or len(index_BMK) != len(x_BNC):
        raise ValueError(
            f"index: {index_BMK.dtype} of shape {tuple(index_BMK.shape)}, expected torch.int64 of"
            f" shape ({len(x_BNC)}, ...), one row for each cloud of x"
        )
    cloud_B = torch.arange(len(x_BNC), device=x_BNC.device)
    return x_BNC[cloud_B.view(-1, *(1,) * (index_BMK.dim() - 1)), index_BMK]


def _check_points(name: str, points: Tensor, channels: int | None = None) -> None:
    if points.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{name}: dtype {points.dtype}, expected one of {expected}")
    if (
        points.dim() != 3
        or points.shape[1] == 0
        or points.shape[2] != (channels or points.shape[2])
    ):
        raise ValueError(
            f"{name}: shape {tuple(points.shape)}, expected (B, N, {channels or 'C'}) with N >= 1"
        )


def _check_like(name: str, queries: Tensor, points: Tensor) -> None:
    B, _, C = points.shape
    fits = queries.dim() == 3 and queries.shape[0] == B and queries.shape[2] == C
    if not fits or queries.dtype != points.dtype or queries.device != points.device:
        raise ValueError(
            f"{name}: {queries.dtype} of shape {tuple(queries.shape)} on {queries.device}, expected"
            f" {points.dtype} of shape ({B}, M, {C}) on {points.device}, like points"
        )


def _check_mask(mask: Tensor | None, points: Tensor) -> None:
    if mask is None:
        return
    shape = tuple(points.shape[:2])
    if mask.dtype != torch.bool or mask.shape != shape or mask.device != points.device:
        raise ValueError(
            f"mask: {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}, expected torch.bool"
            f" of shape {shape} on {points.device}, True for real points"
        )


def _check_start(start: Tensor | None, points: Tensor) -> None:
    if start is None:
        return
    B = points.shape[0]
    if start.dtype != torch.int64 or start.shape != (B,) or start.device != points.device:
        raise ValueError(
            f"start: {start.dtype} of shape {tuple(start.shape)} on {start.device}, expected"
            f" torch.int64 of shape ({B},) on {points.device}, one index for each cloud"
        )


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def _channels_first(points_BNC: Tensor) -> Tensor:
    """Returns (B, C, N) float32, or float64."""
    wide_BNC = points_BNC if points_BNC.dtype == torch.float64 else points_BNC.float()
    return wide_BNC.mT.contiguous()


def _valid(points_BNC: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Returns which points count, (B, N) bool."""
    finite_BN = points_BNC.isfinite().all(dim=-1)
    return finite_BN if mask_BN is None else finite_BN & mask_BN


# Reference: the definition.


def _distances(queries_BCM: Tensor, points_BCN: Tensor, valid_BN: Tensor) -> Tensor:
    """Returns squared distances, (B, M, N); infinity to points that do not count, only to them."""
    (B, C, N), M = points_BCN.shape, queries_BCM.shape[2]
    distance_BMN = points_BCN.new_zeros((B, M, N))
    for channel in range(C):
        # Not `addcmul_`, which may round once in vector code and twice in the rest of a row.
        difference_BMN = queries_BCM[:, channel, :, None] - points_BCN[:, channel, None]
        distance_BMN += difference_BMN.square_()
    distance_BMN.nan_to_num_(nan=torch.finfo(distance_BMN.dtype).max)
    return distance_BMN.masked_fill_(~valid_BN[:, None], torch.inf)


def _nearest(distance_BMN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns distances and indices of the k <= N nearest in order, ties to the lower index."""
    if distance_BMN.dtype == torch.float64:
        ordered, index = distance_BMN.sort(dim=-1, stable=True)
        return ordered[..., :k], index[..., :k]
    # `topk` leaves the order of ties open, so none are left: the bits of a float that is not
    # negative, which are ordered as floats are, above those of the index.
    index_N = torch.arange(distance_BMN.shape[-1], device=distance_BMN.device)
    key_BMN = torch.add(index_N, distance_BMN.view(torch.int32), alpha=1 << 32)
    key_BMK = key_BMN.topk(k, largest=False).values
    return (key_BMK >> 32).int().view(torch.float32), key_BMK & 0xFFFFFFFF


def _knn_reference(points_BCN: Tensor, queries_BCM: Tensor, valid_BN: Tensor, k: int) -> Tensor:
    (B, _, N), M = points_BCN.shape, queries_BCM.shape[2]
    found = min(k, N)
    index_BMK = points_BCN.new_empty((B, M, k), dtype=torch.int64)
    for chunk in _chunks(M, B * N):
        distance_BMN = _distances(queries_BCM[:, :, chunk], points_BCN, valid_BN)
        distance_BMK, nearest_BMK = _nearest(distance_BMN, found)
        first_BM1 = nearest_BMK[..., :1]
        index_BMK[:, chunk, :found] = nearest_BMK.where(distance_BMK.isfinite(), first_BM1)
        index_BMK[:, chunk, found:] = first_BM1
    return index_BMK


def _fps_reference(
    points_B3N: Tensor, distance_BN: Tensor, start_B: Tensor, num_samples: int
) -> Tensor:
    """`distance_BN` is that of each point to the nearest of those chosen, before the first."""
    every_BN = torch.ones_like(distance_BN, dtype=torch.bool)
    chosen_B = start_B
    index_BS = start_B.new_empty((len(start_B), num_samples))
    for sample in range(num_samples):
        index_BS[:, sample] = chosen_B
        chosen_B31 = points_B3N.take_along_dim(chosen_B[:, None, None], dim=2)
        new_BN = _distances(chosen_B31, points_B3N, every_BN).squeeze(1)
        distance_BN = torch.minimum(distance_BN, new_BN)
        chosen_B = distance_BN.argmax(dim=1)  # documented: the first of equal ones
    return index_BS


def _ball_query_reference(
    points_B3N: Tensor, centers_B3M: Tensor, valid_BN: Tensor, radius: float, k: int
) -> Tensor:
    (B, _, N), M = points_B3N.shape, centers_B3M.shape[2]
    found = min(k, N)
    index_N = torch.arange(N, dtype=torch.int32, device=points_B3N.device)
    index_BMK = points_B3N.new_empty((B, M, k), dtype=torch.int64)
    for chunk in _chunks(M, B * N):
        distance_BMN = _distances(centers_B3M[:, :, chunk], points_B3N, valid_BN)
        inside_BMN = index_N.where(distance_BMN < radius * radius, N)
        inside_BMK = inside_BMN.topk(found, largest=False).values.long()
        nearest_BM1 = distance_BMN.argmin(dim=-1, keepdim=True)
        first_BM1 = inside_BMK[..., :1].where(inside_BMK[..., :1] < N, nearest_BM1)
        index_BMK[:, chunk, :found] = inside_BMK.where(inside_BMK < N, first_BM1)
        index_BMK[:, chunk, found:] = first_BM1
    return index_BMK


def _chunks(num_queries: int, num_distances: int) -> list[slice]:
    """Cuts queries, with so many distances for one of each cloud, into chunks."""
    size = max(1, CHUNK // max(1, num_distances))
    return [slice(start, start + size) for start in range(0, num_queries, size)]


# Registration.


def _runs_triton(points_BCN: Tensor, backend: str) -> bool:
    fits = points_BCN.dtype != torch.float64 and points_BCN.numel() > 0
    return fits and uses_triton(points_BCN, backend)


@torch.library.custom_op("tenfold::knn", mutates_args=())
def _knn(
    points: Tensor, queries: Tensor | None, mask: Tensor | None, k: int, backend: str
) -> Tensor:
    points_BCN, valid_BN = _channels_first(points), _valid(points, mask)
    queries_BCM = points_BCN if queries is None else _channels_first(queries)
    runs_triton = _runs_triton(points_BCN, backend) and k <= point_ops_triton.MAX_NEIGHBOURS
    search = point_ops_triton.knn if runs_triton else _knn_reference
    return search(points_BCN, queries_BCM, valid_BN, k)


@_knn.register_fake
def _(points: Tensor, queries: Tensor | None, mask: Tensor | None, k: int, backend: str) -> Tensor:
    rows = (points if queries is None else queries).shape[:2]
    return points.new_empty((*rows, k), dtype=torch.int64)


@torch.library.custom_op("tenfold::farthest_point_sample", mutates_args=())
def _fps(
    points: Tensor, start: Tensor | None, mask: Tensor | None, num_samples: int, backend: str
) -> Tensor:
    points_B3N, valid_BN = _channels_first(points), _valid(points, mask)
    N = points_B3N.shape[2]
    if start is None:
        start = valid_BN.int().argmax(dim=1)
    elif ((start < 0) | (start >= N)).any():
        raise ValueError(
            f"start: indices from {int(start.min())} to {int(start.max())}, expected 0 to {N - 1}:"
            f" the clouds have {N} points"
        )
    # Below all others for what does not count.
    distance_BN = torch.where(valid_BN, torch.inf, -1.0).to(points_B3N.dtype)
    runs_triton = _runs_triton(points_B3N, backend)
    sample = point_ops_triton.farthest_point_sample if runs_triton else _fps_reference
    return sample(points_B3N, distance_BN, start.contiguous(), num_samples)


@_fps.register_fake
def _(
    points: Tensor, start: Tensor | None, mask: Tensor | None, num_samples: int, backend: str
) -> Tensor:
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


@torch.library.custom_op("tenfold::ball_query", mutates_args=())
def _ball_query(
    points: Tensor, centers: Tensor, mask: Tensor | None, radius: float, k: int, backend: str
) -> Tensor:
    points_B3N, valid_BN = _channels_first(points), _valid(points, mask)
    runs_triton = _runs_triton(points_B3N, backend)
    query = point_ops_triton.ball_query if runs_triton else _ball_query_reference
    return query(points_B3N, _channels_first(centers), valid_BN, radius, k)


@_ball_query.register_fake
def _(
    points: Tensor, centers: Tensor, mask: Tensor | None, radius: float, k: int, backend: str
) -> Tensor:
    return points.new_empty((*centers.shape[:2], k), dtype=torch.int64)
