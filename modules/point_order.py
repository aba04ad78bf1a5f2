"""Orders of the points of a cloud that do not depend on the order in which they come.

Equal keys are told apart by x, then y, then z, so that only points at the same place can change
places. Sums over points are taken in that order and in float64: the key of a point is then the same
number, bit for bit, however the cloud was permuted or padded (but for one rounding in a billion).

Shapes: B clouds, N points.
"""

from typing import Literal, cast, get_args

import torch
from torch import Tensor

PointOrder = Literal[
    "x", "y", "z", "radius", "pca1", "pca2", "pca3", "morton", "hilbert", "unsorted"
]
CURVE_BITS = 10  # per axis, of the cells along a space-filling curve


def canonical_order(pos_BN3: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Returns the order by x, then y, then z, (B, N) int64; masked points come last."""
    keys = [pos_BN3[..., 2], pos_BN3[..., 1], pos_BN3[..., 0]]  # the most important one last
    if mask_BN is not None:
        keys.append(~mask_BN)
    order_BN = torch.arange(pos_BN3.shape[1], device=pos_BN3.device).expand(pos_BN3.shape[:2])
    for key_BN in keys:
        order_BN = order_BN.gather(1, key_BN.gather(1, order_BN).argsort(dim=1, stable=True))
    return order_BN


def point_orders(
    pos_BN3: Tensor, orders: tuple[PointOrder, ...], mask_BN: Tensor | None = None
) -> list[Tensor]:
    """Sorts each cloud in several ways.

    Args:
        pos_BN3: Finite coordinates, (B, N, 3); half precision would tie most points.
        orders: "x", "y", "z": along an axis. "radius": by the distance from the centroid. "pca1" to
            "pca3": along the axes of largest to least variance, each pointing where the cloud is
            skewed to; not unique for clouds as wide in two directions, or symmetric. "morton",
            "hilbert": along a space-filling curve through 2^10 cells per axis of the bounding cube.
            "unsorted": as they come.
        mask_BN: Which points are real, (B, N) bool; None: all. The others come last.

    Returns:
        For each order the indices of the points, (B, N) int64.
    """
    pos_BN3 = pos_BN3.detach()
    first_BN = canonical_order(pos_BN3, mask_BN)
    sorted_BN3 = pos_BN3.gather(1, first_BN[..., None].expand_as(pos_BN3)).double()
    real_BN = None if mask_BN is None else mask_BN.gather(1, first_BN)
    axes_B33 = None
    if any(order.startswith("pca") for order in orders):
        axes_B33 = _principal_axes(*_centred(sorted_BN3, real_BN))
    result = []
    for order in orders:
        if order == "unsorted":
            arrival = torch.arange(pos_BN3.shape[1], device=pos_BN3.device)
            key_BN = arrival.expand(pos_BN3.shape[:2])
            key_BN = key_BN if mask_BN is None else key_BN.masked_fill(~mask_BN, arrival.numel())
            result.append(key_BN.argsort(dim=1, stable=True))
            continue
        key_BN = _key(order, sorted_BN3, real_BN, axes_B33)
        if real_BN is not None:
            key_BN = key_BN.masked_fill(~real_BN, torch.inf)
        result.append(first_BN.gather(1, key_BN.argsort(dim=1, stable=True)))
    return result


def check_orders(orders: tuple[str, ...]) -> tuple[PointOrder, ...]:
    """Refuses names that are no order.

    Raises:
        ValueError: There is none, or one is unknown.
    """
    unknown = [order for order in orders if order not in get_args(PointOrder)]
    if unknown or not orders:
        raise ValueError(
            f"order: {unknown or 'empty'}; give one or several of {', '.join(get_args(PointOrder))}"
        )
    return cast(tuple[PointOrder, ...], orders)


def _key(
    order: PointOrder, pos_BN3: Tensor, real_BN: Tensor | None, axes_B33: Tensor | None
) -> Tensor:
    """Returns what the points are sorted by, (B, N) float32 or whole numbers as float64."""
    if order in ("x", "y", "z"):
        return pos_BN3[..., "xyz".index(order)]
    if order == "radius":
        distance_BN: Tensor = _centred(pos_BN3, real_BN)[0].norm(dim=-1).float()
        return distance_BN
    if order.startswith("pca"):
        assert axes_B33 is not None
        axis_B31 = axes_B33[..., int(order[-1]) - 1, None]
        along_BN: Tensor = (_centred(pos_BN3, real_BN)[0] @ axis_B31).squeeze(-1).float()
        return along_BN
    cells_BN3 = _cells(pos_BN3, real_BN)
    curve = _hilbert_transpose(cells_BN3) if order == "hilbert" else cells_BN3
    return _interleave(curve).double()


def _centred(pos_BN3: Tensor, real_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns coordinates relative to the centroid, 0 where masked, and the number of points."""
    if real_BN is None:
        count_B11 = torch.full_like(pos_BN3[:, :1, :1], pos_BN3.shape[1])
        return pos_BN3 - pos_BN3.mean(dim=1, keepdim=True), count_B11
    count_B11 = real_BN.sum(dim=1).clamp(min=1)[:, None, None].to(pos_BN3.dtype)
    pos_BN3 = pos_BN3.masked_fill(~real_BN[..., None], 0)
    centred_BN3 = pos_BN3 - pos_BN3.sum(dim=1, keepdim=True) / count_B11
    return centred_BN3.masked_fill(~real_BN[..., None], 0), count_B11


def _principal_axes(centred_BN3: Tensor, count_B11: Tensor) -> Tensor:
    """Returns the axes of largest to least variance as columns, (B, 3, 3)."""
    axes_B33 = torch.linalg.eigh(centred_BN3.mT @ centred_BN3 / count_B11).eigenvectors.flip(-1)
    skew_B13 = (centred_BN3 @ axes_B33).pow(3).sum(dim=1, keepdim=True)
    upright_B33: Tensor = axes_B33 * torch.where(skew_B13 < 0, -1.0, 1.0)
    return upright_B33


def _cells(pos_BN3: Tensor, real_BN: Tensor | None) -> Tensor:
    """Returns the cell of each point in a cube around the cloud, (B, N, 3) int64."""
    low, high = pos_BN3, pos_BN3
    if real_BN is not None:
        low = pos_BN3.masked_fill(~real_BN[..., None], torch.inf)
        high = pos_BN3.masked_fill(~real_BN[..., None], -torch.inf)
    low_B13 = low.amin(dim=1, keepdim=True)
    edge_B11 = (high.amax(dim=1, keepdim=True) - low_B13).amax(dim=-1, keepdim=True)
    unit_BN3 = (pos_BN3 - low_B13) / edge_B11.clamp(min=torch.finfo(torch.float32).tiny)
    largest = (1 << CURVE_BITS) - 1
    return torch.nan_to_num(unit_BN3 * (largest + 1)).clamp(0, largest).long()


def _hilbert_transpose(cells_BN3: Tensor) -> Tensor:
    """Turns cells into the transposed Hilbert index (Skilling, AIP Conf. Proc. 707, 2004)."""
    x = list(cells_BN3.unbind(-1))
    for bit in range(CURVE_BITS - 1, 0, -1):
        low = (1 << bit) - 1
        for axis in range(3):
            is_set = (x[axis] >> bit) & 1
            swap = (x[0] ^ x[axis]) & low
            x[0] = torch.where(is_set == 1, x[0] ^ low, x[0] ^ swap)
            if axis:
                x[axis] = torch.where(is_set == 1, x[axis], x[axis] ^ swap)
    x[1] = x[1] ^ x[0]
    x[2] = x[2] ^ x[1]
    flip = torch.zeros_like(x[0])
    for bit in range(CURVE_BITS - 1, 0, -1):
        flip = torch.where((x[2] >> bit) & 1 == 1, flip ^ ((1 << bit) - 1), flip)
    return torch.stack([axis ^ flip for axis in x], dim=-1)


def _interleave(cells_BN3: Tensor) -> Tensor:
    """Returns one number per cell from the bits of three, the first axis' highest first."""
    code_BN = torch.zeros_like(cells_BN3[..., 0])
    for bit in range(CURVE_BITS - 1, -1, -1):
        for axis in range(3):
            code_BN = (code_BN << 1) | ((cells_BN3[..., axis] >> bit) & 1)
    return code_BN
