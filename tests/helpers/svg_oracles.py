"""Other programs that draw: resvg for files, Skia for polygons."""

import io

import numpy as np
import resvg_py
import skia
import torch
from PIL import Image
from torch import Tensor


def resvg(text: str, size: tuple[int, int]) -> Tensor:
    """Draws an SVG file of the canvas's proportions; (4, H, W) float64, premultiplied."""
    data = resvg_py.svg_to_bytes(
        svg_string=text, height=size[0], width=size[1], skip_system_fonts=True
    )
    pixels = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGBA"))
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    return torch.cat((image[:3] * image[3:], image[3:]))


def skia_path(contours: list[Tensor], even_odd: bool = False) -> skia.Path:
    """A path of closed polygons, each (n, 2)."""
    path = skia.Path()
    for points in contours:
        path.addPoly([skia.Point(*point) for point in points.tolist()], True)
    path.setFillType(skia.PathFillType.kEvenOdd if even_odd else skia.PathFillType.kWinding)
    return path


def skia_coverage(path: skia.Path, size: tuple[int, int], samples: int = 0) -> Tensor:
    """The coverage of a path, (H, W) float64, or the mean of so many samples per axis and pixel."""
    scale = samples or 1
    surface = skia.Surface(size[1] * scale, size[0] * scale)
    canvas = surface.getCanvas()
    canvas.clear(skia.ColorTRANSPARENT)
    canvas.scale(scale, scale)
    canvas.drawPath(path, skia.Paint(AntiAlias=not samples, Color=skia.ColorBLACK))
    covered = torch.from_numpy(surface.toarray()[..., 3] / 255)
    return torch.nn.functional.avg_pool2d(covered[None], scale)[0]


def far_from_edges(covered: Tensor) -> Tensor:
    """Pixels that no layer of (L, H, W) covers in part, within one pixel around each; (H, W)."""
    whole = (covered == 0) | (covered == 1)
    pooled_low = -torch.nn.functional.max_pool2d(-covered[None], 3, 1, 1)[0]
    pooled_high = torch.nn.functional.max_pool2d(covered[None], 3, 1, 1)[0]
    return (whole & (pooled_low == pooled_high)).all(dim=0)
