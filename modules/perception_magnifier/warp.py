"""Separable warps of images: rows and columns are as large as their density asks for.

A density along an axis says how much of the output each input pixel takes. Its cumulative sum leads
from input to output coordinates, the inverse of that from output to input, which is what sampling
needs. Straight lines along the axes stay straight, the order of things stays, nothing is cut away.

Shapes: B images, C channels, H and W of images, S pixels along an axis, T output pixels along it, O
objects.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Marginal = Literal["max", "sum"]
Warp = Literal["anchored", "reference"]

EPSILON = 1e-6  # of the largest density: what a pixel without any gets


def marginals(maps_BHW: Tensor, reduce: Marginal = "max") -> tuple[Tensor, Tensor]:
    """Returns the densities of columns and rows, (B, W) and (B, H).

    Args:
        maps_BHW: Not negative.
        reduce: "max" as in the authors' code, or "sum" as a probability has marginals.
    """
    if reduce == "max":
        return maps_BHW.amax(dim=1), maps_BHW.amax(dim=2)
    return maps_BHW.sum(dim=1), maps_BHW.sum(dim=2)


def shared_density(x_BW: Tensor, y_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Returns one density for both axes, the geometric mean, so that shapes are kept better.

    Args:
        x_BW: Of columns.
        y_BH: Of rows; where an axis is longer, the other density is interpolated.
    """

    def resized(density: Tensor, size: int) -> Tensor:
        return F.interpolate(density[:, None], size=size, mode="linear")[:, 0]

    return (
        (x_BW * resized(y_BH, x_BW.shape[1])).sqrt(),
        (y_BH * resized(x_BW, y_BH.shape[1])).sqrt(),
    )


def magnification(density_BS: Tensor) -> Tensor:
    """Returns how many times its size each pixel gets along the axis, (B, S) float64."""
    density = _positive(density_BS)
    return density / density.mean(dim=1, keepdim=True)


def anchored_coordinates(density_BS: Tensor, size: int | None = None) -> Tensor:
    """Returns where each output pixel is sampled, (B, T) float64, 0 = centre of the first pixel.

    The density is one on the pixels' extent, so that the ends of the axis stay where they are, and
    an even density gives 0, 1, 2, ... exactly. The coordinates increase strictly; those of the
    outer half pixels are beyond the centres 0 and S - 1.

    Args:
        density_BS: Not negative; zeros are allowed anywhere.
        size: Output pixels T. Default: S.
    """
    density = _positive(density_BS)
    num_inputs = density.shape[1]
    size = num_inputs if size is None else size
    ends = density.cumsum(dim=1)
    share = (torch.arange(size, device=ends.device, dtype=ends.dtype) + 0.5) / size
    target = share * ends[:, -1:]
    pixel = torch.searchsorted(ends, target).clamp(max=num_inputs - 1)
    beyond = target - (ends - density).gather(1, pixel)
    return pixel + beyond / density.gather(1, pixel) - 0.5


def reference_coordinates(density_BS: Tensor) -> Tensor:
    """Returns where the authors' code samples each output pixel, (B, S) float64.

    Its cumulative sums lack the leading 0, so that an even density is not the identity, the first
    coordinate lies outside of the image, and zeros make coordinates that are not numbers.

    Args:
        density_BS: Not negative.
    """
    density = density_BS.double()
    size = density.shape[1]
    if size < 2:
        raise ValueError(f"warp: reference needs at least 2 pixels along an axis, got {size}")
    cumulative = density.cumsum(dim=1) / density.sum(dim=1, keepdim=True)
    share = torch.linspace(0, 1, size, dtype=density.dtype, device=density.device)
    share = share.expand_as(cumulative).contiguous()
    right = torch.searchsorted(cumulative, share).clamp(1, size - 1)
    low, high = cumulative.gather(1, right - 1), cumulative.gather(1, right)
    return (right - 1) + (share - low) / (high - low)


def forward_shares(density_BS: Tensor, shares_BO: Tensor) -> Tensor:
    """Returns where `anchored_coordinates` move positions along an axis to, (B, O).

    Args:
        density_BS: Not negative.
        shares_BO: Positions as shares of the axis, in [0, 1].
    """
    density = _positive(density_BS)
    size = density.shape[1]
    ends = density.cumsum(dim=1)
    position = shares_BO.double() * size
    pixel = position.long().clamp(0, size - 1)
    within = (position - pixel) * density.gather(1, pixel)
    moved = ((ends - density).gather(1, pixel) + within) / ends[:, -1:]
    return moved.to(shares_BO.dtype)


def sample(
    images_BCHW: Tensor, x_BT: Tensor, y_BT: Tensor, outside: Literal["border", "black"] = "border"
) -> Tensor:
    """Samples images bilinearly where columns and rows cross; a whole coordinate is exact.

    Args:
        images_BCHW: Floating point.
        x_BT: Coordinates of output columns, 0 = centre of the first.
        y_BT: Of output rows; the number may differ.
        outside: "border" repeats the outer pixels; "black" gives 0 there and where a coordinate is
            not a number.

    Returns:
        (B, C, rows, columns) of the images' dtype.
    """
    warped = _sample_axis(images_BCHW, x_BT, 3)
    warped = _sample_axis(warped, y_BT, 2)
    if outside == "black":
        in_x = (x_BT >= 0) & (x_BT <= images_BCHW.shape[3] - 1)
        in_y = (y_BT >= 0) & (y_BT <= images_BCHW.shape[2] - 1)
        warped = warped * (in_x[:, None, None, :] & in_y[:, None, :, None])
    return warped


def coordinates(density_BS: Tensor, warp: Warp = "anchored") -> Tensor:
    """Returns the coordinates of either warp, see there, (B, S) float64."""
    return (
        anchored_coordinates(density_BS)
        if warp == "anchored"
        else (reference_coordinates(density_BS))
    )


def warp_images(images_BCHW: Tensor, x_BW: Tensor, y_BH: Tensor, warp: Warp = "anchored") -> Tensor:
    """Enlarges the rows and columns of high density at the cost of the others.

    Args:
        images_BCHW: Floating point.
        x_BW: Density of columns, not negative.
        y_BH: Density of rows.
        warp: "anchored", or "reference" as the authors' code does, black border included.

    Returns:
        (B, C, H, W).
    """
    outside: Literal["border", "black"] = "border" if warp == "anchored" else "black"
    return sample(images_BCHW, coordinates(x_BW, warp), coordinates(y_BH, warp), outside)


class RandomAxisWarp(nn.Module):
    """Warps images and boxes at random along each axis, as a magnified image is.

    A large model takes mild distortion as it comes; a small one has to be shown it in training. The
    logarithm of the density is interpolated linearly between knots with uniform values.

    Args:
        probability: Of a warp, for each axis by itself.
        strength: Knots are within plus and minus this; 1.1 lets neighbours differ up to ninefold.
        num_knots: Along each axis, at least 2.

    Raises:
        ValueError: A number is out of its range.

    Shapes:
        images: (N, C, H, W) float; boxes: (N, O, 4) left, top, right, bottom as shares, or None;
        returns both.
    """

    def __init__(self, probability: float = 0.5, strength: float = 1.1, num_knots: int = 5) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        if strength < 0 or num_knots < 2:
            raise ValueError(
                f"strength must be at least 0 and num_knots at least 2, got {strength}, {num_knots}"
            )
        self.probability, self.strength, self.num_knots = probability, strength, num_knots

    def forward(self, images: Tensor, boxes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Draws from torch's global generator of the CPU."""
        count, _, height, width = images.shape
        x_NW, y_NH = (self._density(count, size).to(images.device) for size in (width, height))
        warped = warp_images(images, x_NW, y_NH)
        if boxes is None:
            return warped, None
        moved = boxes.clone()
        for axis, density in enumerate((x_NW, y_NH)):
            ends = boxes[..., axis::2]
            moved[..., axis::2] = forward_shares(density, ends.flatten(1)).view_as(ends)
        return warped, moved

    def _density(self, count: int, size: int) -> Tensor:
        """Draws (count, size) densities; those of an axis that stays as it is are even."""
        knots = (2 * torch.rand(count, 1, self.num_knots) - 1) * self.strength
        is_warped = torch.rand(count, 1, 1) < self.probability
        logs = F.interpolate(knots * is_warped, size=size, mode="linear", align_corners=True)
        return logs[:, 0].exp()


def _positive(density_BS: Tensor) -> Tensor:
    """Returns the density in float64 with a little added, so that no pixel vanishes."""
    density = density_BS.double()
    top = density.amax(dim=1, keepdim=True)
    return density + torch.where(top > 0, EPSILON * top, 1.0)


def _sample_axis(images_BCHW: Tensor, at_BT: Tensor, axis: int) -> Tensor:
    """Interpolates along one axis; beyond its ends the outer pixels go on."""
    size = images_BCHW.shape[axis]
    at = at_BT.nan_to_num().clamp(0, size - 1)
    low = at.floor()
    shape = [len(at), 1, 1, 1]
    shape[axis] = at.shape[1]
    target = list(images_BCHW.shape)
    target[axis] = at.shape[1]

    def pick(index: Tensor) -> Tensor:
        return images_BCHW.gather(axis, index.long().view(shape).expand(target))

    weight = (at - low).to(images_BCHW.dtype).view(shape)
    return torch.lerp(pick(low), pick((low + 1).clamp(max=size - 1)), weight)
