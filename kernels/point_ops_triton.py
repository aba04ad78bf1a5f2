"""Triton code of `point_ops`: the same indices as its reference, bit for bit.

Multiplications and additions are not fused into one rounding (`enable_fp_fusion=False`), so that
distances are those of the reference. Points arrive channels first, (B, C, N) float32: neighbours in
a tile are neighbours in memory. Tile sizes follow from the registers they take, not from tuning;
nothing here has been timed on a GPU yet. `tests/benchmarks/point_ops.py` prints the ratios.

Shape suffixes: B clouds, N points, M queries, C channels, K neighbours, S samples. In the kernels
the same letters are the extents of a tile.
"""

from typing import Any

import torch
from torch import Tensor

from .backend import jit, tl

MAX_NEIGHBOURS = 128  # of a query in `knn`: they are kept in registers
MAX_CLOUD = 8192  # points that farthest-point sampling keeps in registers
BLOCK_M, BLOCK_N = 16, 128  # queries and points of a tile of distances


@jit
def _rows(M, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cloud of this program, and its queries."""
    blocks = tl.cdiv(M, BLOCK_M)
    m_M = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    return (tl.program_id(0) // blocks).to(tl.int64), m_M


@jit
def _distances(  # type: ignore[no-untyped-def]
    query_ptr, point_ptr, valid_ptr, m_M, n_N, M, N, C
):
    """Squared distances of a tile, (M, N); infinity to points that do not count, only to them."""
    distance_MN = tl.zeros((m_M.shape[0], n_N.shape[0]), tl.float32)
    for c in range(C):
        q_M = tl.load(query_ptr + c * M + m_M, mask=m_M < M, other=0.0)
        p_N = tl.load(point_ptr + c * N + n_N, mask=n_N < N, other=0.0)
        difference_MN = q_M[:, None] - p_N[None, :]
        distance_MN += difference_MN * difference_MN
    valid_N = tl.load(valid_ptr + n_N, mask=n_N < N, other=0) != 0
    return tl.where(valid_N[None, :], _finite(distance_MN), float("inf"))


@jit
def _finite(distance):  # type: ignore[no-untyped-def]
    """NaN and infinity become the largest number."""
    largest = 3.4028234663852886e38
    return tl.where(distance <= largest, distance, largest)


@jit
def _knn_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    point_ptr,
    valid_ptr,
    index_ptr,
    M,
    N,
    C,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M queries against all points, BLOCK_N of them at a time.

    The k smallest so far, in no order, are kept; as long as a tile has a smaller one than their
    largest, it takes its place. In random order that happens about k * (1 + log(N / k)) times.
    """
    cloud, m_M = _rows(M, BLOCK_M)
    query_ptr += cloud * C * M
    point_ptr += cloud * C * N
    valid_ptr += cloud * N
    k_K = tl.arange(0, BLOCK_K)
    # Distance above, index below: one number to be ordered by, and no ties.
    infinity = tl.full((), 0x7F800000, tl.int64) << 32
    none = infinity + 0xFFFFFFFF
    # Below all keys, the places beyond k are never the largest; the free ones differ.
    best_K = tl.where(k_K < k, infinity + k_K, -1)
    best_MK = tl.broadcast_to(best_K[None, :], (BLOCK_M, BLOCK_K))
    worst_M = tl.max(best_MK, axis=1)
    for start in range(0, N, BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        distance_MN = _distances(query_ptr, point_ptr, valid_ptr, m_M, n_N, M, N, C)
        bits_MN = distance_MN.to(tl.int32, bitcast=True).to(tl.int64)
        key_MN = tl.where(distance_MN < float("inf"), (bits_MN << 32) | n_N[None, :], none)
        least_M = tl.min(key_MN, axis=1)
        while tl.max((least_M < worst_M).to(tl.int32), axis=0) > 0:
            replaced_MK = (best_MK == worst_M[:, None]) & (least_M < worst_M)[:, None]
            best_MK = tl.where(replaced_MK, least_M[:, None], best_MK)
            worst_M = tl.max(best_MK, axis=1)
            key_MN = tl.where(key_MN == least_M[:, None], none, key_MN)
            least_M = tl.min(key_MN, axis=1)
    best_MK = tl.where(k_K[None, :] < k, best_MK, none)
    first_M = tl.min(best_MK, axis=1)
    first_M = tl.where(first_M < infinity, first_M, 0)
    row_M = index_ptr + (cloud * M + m_M) * k
    for place in range(k):
        least_M = tl.min(best_MK, axis=1)
        index_M = tl.where(least_M < infinity, least_M, first_M) & 0xFFFFFFFF
        tl.store(row_M + place, index_M, mask=m_M < M)
        best_MK = tl.where(best_MK == least_M[:, None], none, best_MK)


@jit
def _fps_step(  # type: ignore[no-untyped-def]
    distance_N, x_N, y_N, z_N, point_ptr, chosen, N
):
    """Distance of each point to the nearest of those chosen, one more being chosen."""
    x_N -= tl.load(point_ptr + chosen)
    y_N -= tl.load(point_ptr + N + chosen)
    z_N -= tl.load(point_ptr + 2 * N + chosen)
    return tl.minimum(distance_N, _finite(x_N * x_N + y_N * y_N + z_N * z_N))


@jit
def _fps_kernel(  # type: ignore[no-untyped-def]
    point_ptr, distance_ptr, start_ptr, index_ptr, N, S, BLOCK_N: tl.constexpr
):
    """One cloud, kept in registers."""
    cloud = tl.program_id(0).to(tl.int64)
    point_ptr += cloud * 3 * N
    n_N = tl.arange(0, BLOCK_N)
    x_N = tl.load(point_ptr + n_N, mask=n_N < N, other=0.0)
    y_N = tl.load(point_ptr + N + n_N, mask=n_N < N, other=0.0)
    z_N = tl.load(point_ptr + 2 * N + n_N, mask=n_N < N, other=0.0)
    distance_N = tl.load(distance_ptr + cloud * N + n_N, mask=n_N < N, other=-2.0)
    chosen = tl.load(start_ptr + cloud)
    for sample in range(S):
        tl.store(index_ptr + cloud * S + sample, chosen)
        distance_N = _fps_step(distance_N, x_N, y_N, z_N, point_ptr, chosen, N)
        chosen = tl.argmax(distance_N, axis=0).to(tl.int64)


@jit
def _fps_blocks_kernel(  # type: ignore[no-untyped-def]
    point_ptr, distance_ptr, start_ptr, index_ptr, N, S, BLOCK_N: tl.constexpr
):
    """One cloud of any size, BLOCK_N points at a time; distances stay in memory."""
    cloud = tl.program_id(0).to(tl.int64)
    point_ptr += cloud * 3 * N
    distance_ptr += cloud * N
    chosen = tl.load(start_ptr + cloud)
    for sample in range(S):
        tl.store(index_ptr + cloud * S + sample, chosen)
        largest = -2.0
        farthest = tl.zeros((), tl.int64)
        for start in range(0, N, BLOCK_N):
            n_N = start + tl.arange(0, BLOCK_N)
            x_N = tl.load(point_ptr + n_N, mask=n_N < N, other=0.0)
            y_N = tl.load(point_ptr + N + n_N, mask=n_N < N, other=0.0)
            z_N = tl.load(point_ptr + 2 * N + n_N, mask=n_N < N, other=0.0)
            distance_N = tl.load(distance_ptr + n_N, mask=n_N < N, other=-2.0)
            distance_N = _fps_step(distance_N, x_N, y_N, z_N, point_ptr, chosen, N)
            tl.store(distance_ptr + n_N, distance_N, mask=n_N < N)
            value, position = tl.max(distance_N, axis=0, return_indices=True)
            farthest = tl.where(value > largest, start + position.to(tl.int64), farthest)
            largest = tl.maximum(value, largest)
        tl.debug_barrier()  # what one thread stored, another may load
        chosen = farthest


@jit
def _ball_query_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    point_ptr,
    valid_ptr,
    index_ptr,
    M,
    N,
    k,
    limit,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M centers against all points, BLOCK_N at a time; the limit is the radius squared."""
    cloud, m_M = _rows(M, BLOCK_M)
    query_ptr += cloud * 3 * M
    point_ptr += cloud * 3 * N
    valid_ptr += cloud * N
    row_M1 = index_ptr + (cloud * M + m_M[:, None]) * k
    count_M = tl.zeros((BLOCK_M,), tl.int32)
    first_M = tl.zeros((BLOCK_M,), tl.int32) + N
    smallest_M = tl.full((BLOCK_M,), float("inf"), tl.float32)
    nearest_M = tl.zeros((BLOCK_M,), tl.int32)
    for start in range(0, N, BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        distance_MN = _distances(query_ptr, point_ptr, valid_ptr, m_M, n_N, M, N, 3)
        value_M, position_M = tl.min(distance_MN, axis=1, return_indices=True)
        nearest_M = tl.where(value_M < smallest_M, start + position_M, nearest_M)
        smallest_M = tl.minimum(value_M, smallest_M)
        inside_MN = distance_MN < limit
        rank_MN = count_M[:, None] + tl.cumsum(inside_MN.to(tl.int32), axis=1) - 1
        index_MN = tl.broadcast_to(n_N[None, :], inside_MN.shape)
        first_M = tl.minimum(first_M, tl.min(tl.where(inside_MN, index_MN, N), axis=1))
        stored_MN = inside_MN & (rank_MN < k) & (m_M[:, None] < M)
        tl.store(row_M1 + rank_MN, index_MN.to(tl.int64), mask=stored_MN)
        count_M += tl.sum(inside_MN.to(tl.int32), axis=1)
    rest_M = tl.where(first_M < N, first_M, nearest_M).to(tl.int64)
    for start in range(0, k, BLOCK_N):
        k_K = start + tl.arange(0, BLOCK_N)
        empty_MK = (k_K[None, :] >= count_M[:, None]) & (k_K[None, :] < k) & (m_M[:, None] < M)
        tl.store(row_M1 + k_K[None, :], tl.broadcast_to(rest_M[:, None], empty_MK.shape), empty_MK)


def _cdiv(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def fps_plan(num_points: int) -> tuple[Any, int, int]:
    """Returns the kernel for clouds of this size, its block of points, and its warps."""
    block = max(32, _next_power_of_2(num_points))
    if num_points > MAX_CLOUD:
        return _fps_blocks_kernel, 4096, 16
    return _fps_kernel, block, min(max(block // 256, 1), 16)


def knn(points_BCN: Tensor, queries_BCM: Tensor, valid_BN: Tensor, k: int) -> Tensor:
    """Returns what `point_ops.knn` does, (B, M, k); k at most `MAX_NEIGHBOURS`.

    Args:
        points_BCN: (B, C, N) float32, contiguous like all of them.
        queries_BCM: (B, C, M) float32.
        valid_BN: (B, N) bool, True for points that count.
        k: Neighbours.
    """
    (B, C, N), M = points_BCN.shape, queries_BCM.shape[2]
    index_BMK = points_BCN.new_empty((B, M, k), dtype=torch.int64)
    _knn_kernel[(_cdiv(M, BLOCK_M) * B,)](
        queries_BCM,
        points_BCN,
        valid_BN.view(torch.uint8),
        index_BMK,
        M,
        N,
        C,
        k,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=_next_power_of_2(k),
        enable_fp_fusion=False,
    )
    return index_BMK


def farthest_point_sample(
    points_B3N: Tensor, distance_BN: Tensor, start_B: Tensor, num_samples: int
) -> Tensor:
    """Returns what `point_ops.farthest_point_sample` does, (B, num_samples).

    Args:
        points_B3N: (B, 3, N) float32, contiguous like all of them.
        distance_BN: (B, N) float32: infinity for points that count, -1 for others. Written to.
        start_B: (B,) int64, the first one.
        num_samples: Points to choose.
    """
    B, _, N = points_B3N.shape
    index_BS = start_B.new_empty((B, num_samples))
    kernel, block, num_warps = fps_plan(N)
    kernel[(B,)](
        points_B3N,
        distance_BN,
        start_B,
        index_BS,
        N,
        num_samples,
        BLOCK_N=block,
        num_warps=num_warps,
        enable_fp_fusion=False,
    )
    return index_BS


def ball_query(
    points_B3N: Tensor, centers_B3M: Tensor, valid_BN: Tensor, radius: float, k: int
) -> Tensor:
    """Returns what `point_ops.ball_query` does, (B, M, k).

    Args:
        points_B3N: (B, 3, N) float32, contiguous like all of them.
        centers_B3M: (B, 3, M) float32.
        valid_BN: (B, N) bool, True for points that count.
        radius: Of the balls.
        k: Points for each center.
    """
    (B, _, N), M = points_B3N.shape, centers_B3M.shape[2]
    index_BMK = points_B3N.new_empty((B, M, k), dtype=torch.int64)
    _ball_query_kernel[(_cdiv(M, BLOCK_M) * B,)](
        centers_B3M,
        points_B3N,
        valid_BN.view(torch.uint8),
        index_BMK,
        M,
        N,
        k,
        radius * radius,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        enable_fp_fusion=False,
    )
    return index_BMK
