"""Pictures as tensors, the same for data, evaluation and encoders."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2


def to_uint8(image: Image.Image) -> Tensor:
    """Turns an RGB image into (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def training_transform(
    image_size: int, crop_area: tuple[float, float], flip: float
) -> Callable[[Image.Image], Tensor]:
    """Cuts out a random part, resizes it and mirrors some, as CLIP's training does.

    Args:
        image_size: S of the result, (3, S, S) uint8.
        crop_area: Least and largest share of the area that is kept; its width is 0.8 to 1.25 times
            its height.
        flip: Share of images that are mirrored.
    """
    transform: Callable[[Image.Image], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=crop_area, ratio=(0.8, 1.25)),
            v2.RandomHorizontalFlip(flip),
            to_uint8,
        ]
    )
    return transform


def evaluation_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Resizes the shorter side, bicubic, and cuts out the middle: (3, S, S) uint8.

    Args:
        image_size: S.
    """
    bicubic = v2.InterpolationMode.BICUBIC
    steps = [v2.Resize(image_size, bicubic), v2.CenterCrop(image_size), to_uint8]
    transform: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return transform
