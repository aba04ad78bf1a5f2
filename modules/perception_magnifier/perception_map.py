"""From attention to a perception map: which parts of an image a model looks at.

Steps A to C of Perception Magnifier (arXiv 2503.10183): attention of the last token is summed over
layers, regions that were found are hidden so that others show, and the result is made a smooth map.

Shapes: B questions, H heads, L sequence length, C cells of the map, all images of a question one
after the other; h and w rows and columns of cells of one image.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HeadReduction = Literal["max", "mean"]
LayerReduction = Literal["sum", "normalized_mean"]
MAX_TWO_MEANS_STEPS = 10
TWO_MEANS_TOLERANCE = 1e-4  # absolute, as in the released code


def check_layers(start_layer: int | None, num_layers: int) -> int:
    """Returns the first layer that counts, from 1; None: 3 / 8 of the way, as 12 of 32.

    Raises:
        ValueError: The model has no such layer.
    """
    if start_layer is None:
        return max(1, round(0.375 * num_layers))
    if not 1 <= start_layer <= num_layers:
        raise ValueError(f"start_layer: {start_layer} is not in 1 ... {num_layers}, the layers")
    return start_layer


def aggregate_attention(
    layers_BHL: Sequence[Tensor],
    head_reduction: HeadReduction = "max",
    layer_reduction: LayerReduction = "sum",
    divisor: float | None = None,
) -> Tensor:
    """Makes one number of each token from what layers and heads attend to.

    The largest head keeps a peak that the mean would blur; middle layers know better than the last
    one where something is. The result is not bounded by 1.

    Args:
        layers_BHL: For each layer that counts the attention of the last query.
        head_reduction: Over heads.
        layer_reduction: "sum", then divided; or the mean of layers that are scaled to 0 ... 1.
        divisor: Of the sum. None: the number of layers. The released code divides by one less.

    Returns:
        (B, L) float32, or float64 as given.
    """
    dtype = torch.float64 if layers_BHL[0].dtype == torch.float64 else torch.float32
    rows = [layer.to(dtype) for layer in layers_BHL]
    reduced = [row.amax(dim=1) if head_reduction == "max" else row.mean(dim=1) for row in rows]
    stacked = torch.stack(reduced)
    if layer_reduction == "normalized_mean":
        low = stacked.amin(dim=-1, keepdim=True)
        span = stacked.amax(dim=-1, keepdim=True) - low
        return ((stacked - low) / span.clamp(min=torch.finfo(dtype).tiny)).mean(dim=0)
    return stacked.sum(dim=0) / (len(rows) if divisor is None else divisor)


def two_means(values_BC: Tensor, valid_BC: Tensor | None = None) -> Tensor:
    """Marks the higher of two clusters of each row, by Lloyd's algorithm.

    The centres start at the extremes; what is as near to both is low; an empty cluster keeps its
    centre. It ends after 10 steps, or when neither centre moves by 1e-4.

    Args:
        values_BC: Any numbers.
        valid_BC: bool, which of them count. None: all.

    Returns:
        (B, C) bool, False where not valid.
    """
    valid = torch.ones_like(values_BC, dtype=torch.bool) if valid_BC is None else valid_BC
    low_B1 = values_BC.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high_B1 = values_BC.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    moving_B1 = torch.ones_like(low_B1, dtype=torch.bool)
    hot = torch.zeros_like(valid)
    for _ in range(MAX_TWO_MEANS_STEPS):
        is_high = (values_BC - high_B1).abs() < (values_BC - low_B1).abs()
        hot = torch.where(moving_B1, is_high & valid, hot)
        new_low = _mean(values_BC, valid & ~hot, low_B1)
        new_high = _mean(values_BC, hot, high_B1)
        moved = torch.maximum((new_low - low_B1).abs(), (new_high - high_B1).abs())
        low_B1 = torch.where(moving_B1, new_low, low_B1)
        high_B1 = torch.where(moving_B1, new_high, high_B1)
        moving_B1 = moving_B1 & (moved >= TWO_MEANS_TOLERANCE)
        if not moving_B1.any():
            break
    return hot


def _mean(values_BC: Tensor, members_BC: Tensor, default_B1: Tensor) -> Tensor:
    count = members_BC.sum(dim=1, keepdim=True)
    mean = values_BC.masked_fill(~members_BC, 0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    return torch.where(count > 0, mean, default_B1)


class Refined(NamedTuple):
    """What refinement found.

    Attributes:
        map: (B, C) mean heat of each cell over the rounds in which it was visible.
        rounds: (B,) int64: for each question the forward passes with hidden cells.
    """

    map: Tensor
    rounds: Tensor


def refine(
    heat_BC: Tensor,
    valid_BC: Tensor,
    look_again: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    max_iterations: int,
    drop_first_round: bool = False,
) -> Refined:
    """Hides what was found and looks again, so that regions in its shadow show.

    The heat of a hidden cell is 0. The last pass that the released loop makes and does not use,
    after `max_iterations`, is left out.

    Args:
        heat_BC: Of the first pass, in which everything was visible.
        valid_BC: bool: which cells exist; questions may have different numbers of them.
        look_again: Called with hidden cells (B, C) bool and the questions that are asked (B,)
            bool; returns their heat (B, C), anything for others, and whether each is done (B,)
            bool: then this heat is not counted.
        max_iterations: Rounds at most, the first pass included; 0 and 1: none but that.
        drop_first_round: Leaves the first pass out where another one counts: attention sinks are
            in it.
    """
    visible_BC = valid_BC.clone()
    sums_BC, counts_BC = torch.zeros_like(heat_BC), torch.zeros_like(heat_BC)
    first_BC = heat_BC * valid_BC
    active_B = valid_BC.any(dim=1)
    rounds_B = torch.zeros(len(heat_BC), dtype=torch.int64, device=heat_BC.device)
    for iteration in range(max(1, max_iterations)):
        counted_BC = visible_BC & active_B[:, None]
        if not (iteration == 0 and drop_first_round):
            counts_BC += counted_BC
            sums_BC += heat_BC.masked_fill(~counted_BC, 0)
        if iteration + 1 >= max_iterations:
            break
        hot_BC = two_means(heat_BC, valid_BC) & active_B[:, None]
        visible_BC = visible_BC & ~hot_BC
        # Uniform heat has no hot cells: nothing would change.
        active_B = active_B & hot_BC.any(dim=1) & visible_BC.any(dim=1)
        if not active_B.any():
            break
        heat_BC, done_B = look_again(valid_BC & ~visible_BC, active_B)
        heat_BC = heat_BC.masked_fill(~visible_BC, 0)
        rounds_B += active_B
        active_B = active_B & ~done_B
        if not active_B.any():
            break
    map_BC = sums_BC / counts_BC.clamp(min=1)
    was_counted_B1 = (counts_BC > 0).any(dim=1, keepdim=True)
    return Refined(torch.where(was_counted_B1, map_BC, first_BC), rounds_B)


def enhance(map_hw: Tensor, alpha: float) -> Tensor:
    """Stretches a map to 0 ... 1: almost 1 where attention is high, almost 0 elsewhere.

    Args:
        map_hw: Heat of cells.
        alpha: Steepness, in standard deviations.

    Returns:
        sigmoid(alpha * z), with z in unbiased standard deviations from the mean; all 0.5 for a
        uniform map.
    """
    span = map_hw.amax() - map_hw.amin()
    if not span > 1e-12 * map_hw.abs().amax():
        return torch.full_like(map_hw, 0.5)
    scaled = (map_hw - map_hw.amin()) / span
    return torch.sigmoid(alpha * (scaled - scaled.mean()) / scaled.std())


def box_smooth(map_hw: Tensor, kernel_size: int) -> Tensor:
    """Averages over kernel_size x kernel_size cells; the border is repeated outwards.

    Raises:
        ValueError: The size is not odd and positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: {kernel_size} is not odd and positive")
    margin = kernel_size // 2
    padded = F.pad(map_hw[None, None], (margin,) * 4, mode="replicate")
    return F.avg_pool2d(padded, kernel_size, stride=1)[0, 0]


def upsample(
    map_hw: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """Resizes a map to the pixels of an image; never below 0.

    Args:
        map_hw: Of cells.
        size: Height and width of the image in pixels.
        mode: The paper resizes bilinearly, the released code bicubically.
    """
    resized = F.interpolate(map_hw[None, None], size, mode=mode, align_corners=False)
    return resized[0, 0].clamp(min=0)


def without_padding(pixels_HW: Tensor, content: tuple[float, float, float, float]) -> Tensor:
    """Gives the padding of an image the least of its map.

    Args:
        pixels_HW: The map.
        content: Left, top, right, bottom of what is no padding, as shares.
    """
    height, width = pixels_HW.shape
    left, top, right, bottom = content
    is_content = torch.zeros_like(pixels_HW, dtype=torch.bool)
    columns = slice(round(left * width), round(right * width))
    is_content[round(top * height) : round(bottom * height), columns] = True
    return torch.where(is_content, pixels_HW, pixels_HW.amin())
