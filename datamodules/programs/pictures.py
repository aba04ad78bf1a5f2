"""Pictures of a user's folder, as the network sees pictures: square, flat, on white."""

from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...modules.art2prog.drawing import Renderer, to_uint8
from ...modules.art2prog.language import Language
from ...modules.art2prog.layers import Edge, Layer, Outline

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
MAX_PIXELS = 64_000_000  # of a picture that is opened


def find_pictures(folder: str | Path) -> list[Path]:
    """Returns the pictures of a folder, sorted by name.

    Raises:
        ValueError: There is no folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one of pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not found:
        raise ValueError(f"{folder}: no picture in it ({' '.join(sorted(ENDINGS))})")
    return found


def read_picture(path: str | Path, size: int) -> Tensor:
    """Reads a picture onto a white square, (3, size, size) uint8.

    What is transparent becomes white; the picture keeps its proportions and is centered.

    Raises:
        ValueError: The file is no picture, or has too many pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{path}: {image.width} x {image.height} pixels, at most {MAX_PIXELS} in all"
                )
            layered = image.convert("RGBA")
    except (
        UnidentifiedImageError,
        OSError,
        Image.DecompressionBombError,
        SyntaxError,
    ) as error:
        raise ValueError(f"{path}: no picture that can be read: {error}") from error
    side = max(layered.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    place = ((side - layered.width) // 2, (side - layered.height) // 2)
    square.alpha_composite(layered, place)
    method = Image.Resampling.BOX if side > size else Image.Resampling.NEAREST
    small = square.convert("RGB").resize((size, size), method)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def possible_colors(language: Language) -> Tensor:
    """Returns the colours that up to two layers of a language make on white, (n, 3) uint8."""
    # Around the whole canvas of any grid.
    corners = ((99, -9), (99, 99), (-9, 99), (-9, -9))
    whole = Outline((-9, -9), tuple(Edge(*corner) for corner in corners))
    opacities = [None, *range(len(language.opacities))]
    single = [
        Layer(whole, color, opacity)
        for color in range(len(language.palette))
        for opacity in opacities
    ]
    pictures = [(layer,) for layer in single]
    if language.max_layers > 1:
        pictures += [
            (below, Layer(whole, above.color, above.opacity, mode))  # type: ignore[misc]
            for below, above in permutations(single, 2)
            for mode in language.blend_modes
        ]
    drawn = to_uint8(Renderer(language, 4, samples=1).pictures(pictures)[:, :, 2, 2])
    colors = {(255, 255, 255), *(tuple(color) for color in drawn.tolist())}
    return torch.tensor(sorted(colors), dtype=torch.uint8)


def quantized(image: Tensor, colors: Tensor) -> Tensor:
    """Returns an image (3, H, W) uint8 in the nearest of colours (n, 3), pixel by pixel."""
    pixels = image.flatten(1).T.float()
    nearest = torch.cdist(pixels, colors.float()).argmin(dim=1)
    return colors[nearest].T.reshape(image.shape)
