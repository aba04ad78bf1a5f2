"""Which part of an image each of its features stands for.

Models cut and scale images differently: LLaVA-1.5 has one square grid, Qwen-VL a grid of the
image's shape, LLaVA-NeXT a small view of the whole and a large one whose rows end with a token that
is no part of the image.

Shapes: F features of an image, h and w rows and columns of a grid.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next import modeling_llava_next

from .prompt import SeenImage

llava_next: Any = modeling_llava_next  # without types


@dataclass(frozen=True)
class View:
    """One look at the whole image.

    Args:
        places: int64 (h, w), which of the image's features each cell is.
    """

    places: Tensor


def views_of(network: PreTrainedModel, image: SeenImage) -> list[View]:
    """Returns how a model looks at an image, the finest view last.

    Raises:
        ValueError: The features are no grid, as with a Q-Former, or of an image cut into tiles.
    """
    count = len(image.features)
    if "image_grid_thw" in image.about:
        merge = network.config.vision_config.spatial_merge_size
        _, height, width = image.about["image_grid_thw"].tolist()
        return [_grid(0, height // merge, width // merge)]
    if network.config.model_type == "llava_next":
        return _llava_next_views(network.config, image.about["image_sizes"].tolist(), count)
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(
            f"{type(network).__name__}: {count} features of an image are no square grid, so that "
            "nobody knows what they stand for: switch off the processor's tiling of images"
        )
    return [_grid(0, side, side)]


def join_views(views: list[View], values_F: Tensor) -> Tensor:
    """Makes one map of the views of an image, on the grid of the finest: their mean, (h, w).

    Args:
        views: Of the image.
        values_F: A number for each of its features.
    """
    maps = [values_F[view.places] for view in views]
    size = maps[-1].shape
    resized = [
        F.interpolate(grid[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        for grid in maps[:-1]
    ]
    return torch.stack([*resized, maps[-1]]).mean(dim=0)


def _grid(first: int, height: int, width: int, stride: int | None = None) -> View:
    """A grid of features from `first` on, whose rows begin `stride` features apart."""
    rows = torch.arange(height)[:, None] * (width if stride is None else stride)
    return View(first + rows + torch.arange(width))


def _llava_next_views(config: Any, image_size: list[int], count: int) -> list[View]:
    """The whole image small, then large without the padding of its tiles."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    # The functions that the model uses.
    rows, columns = llava_next.get_anyres_image_grid_shape(
        image_size, config.image_grid_pinpoints, vision.image_size
    )
    shape = llava_next.unpad_image(torch.empty(1, rows * side, columns * side), image_size).shape
    _, height, width = shape
    views = [_grid(0, side, side), _grid(side * side, height, width, stride=width + 1)]
    if side * side + height * (width + 1) != count:
        raise ValueError(
            f"LLaVA-NeXT: {count} features of an image of {image_size[1]}x{image_size[0]} pixels, "
            f"expected {side}x{side} and {height} rows of {width} and one more: its vision tower "
            "has a class token that vision_feature_select_strategy does not drop, or none"
        )
    return views
