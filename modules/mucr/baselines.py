"""Matching without learning: what colours and pixels alone give away.

Shapes: G groups, K siblings; images (G, K, 2, 3, H, W) in [0, 1] of cause and effect; both return
how close each cause is to each effect, (G, K, K).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 8  # of each colour
SIDE = 16  # pixels to which pictures are shrunk


def histogram_similarity(images_GK2CHW: Tensor) -> Tensor:
    """Returns what two pictures' colour histograms of 8 x 8 x 8 cells have in common, in [0, 1]."""
    levels = (images_GK2CHW * LEVELS).long().clamp(0, LEVELS - 1)
    cells_GK2HW = (levels[:, :, :, 0] * LEVELS + levels[:, :, :, 1]) * LEVELS + levels[:, :, :, 2]
    cells_GK2N = cells_GK2HW.flatten(3)
    counts = torch.zeros(*cells_GK2N.shape[:3], LEVELS**3, device=cells_GK2N.device)
    counts.scatter_add_(-1, cells_GK2N, torch.ones_like(cells_GK2N, dtype=counts.dtype))
    cause, effect = (counts[:, :, moment] / cells_GK2N.shape[-1] for moment in (0, 1))
    return torch.minimum(cause[:, :, None], effect[:, None]).sum(dim=-1)


def pixel_similarity(images_GK2CHW: Tensor) -> Tensor:
    """Returns the correlation of two pictures shrunk to 16 x 16 pixels, in [-1, 1]."""
    small = F.adaptive_avg_pool2d(images_GK2CHW.flatten(0, 2), SIDE).flatten(1)
    centred = F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)
    pictures_GK2N = centred.reshape(*images_GK2CHW.shape[:3], -1)
    return pictures_GK2N[:, :, 0] @ pictures_GK2N[:, :, 1].mT


BASELINES = {"histogram": histogram_similarity, "pixels": pixel_similarity}
