"""Image files as they come from the web, as RGB pictures or one line that says what is wrong."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def open_image(source: bytes | Path, min_side: int | None = None) -> Image.Image:
    """Reads an image as RGB.

    The first frame of an animation; turned as EXIF says; transparent parts on white, so that
    drawings and screenshots with an alpha channel or a transparent palette do not turn black.

    Args:
        source: The encoded file, or where it is.
        min_side: A JPEG may be decoded at a half, a quarter or an eighth of its size, which is much
            faster, as long as no side is shorter than this, in pixels; None: at full size.

    Raises:
        ValueError: It cannot be read, is cut off, or has more pixels than PIL takes for safe
            (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with warnings.catch_warnings():
            # PIL warns above its limit and refuses at twice that; here the limit is one.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", ".*", UserWarning)  # of EXIF and palettes
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                if min_side is not None:
                    file.draft("RGB", (min_side, min_side))
                image = ImageOps.exif_transpose(file)
                if not image.has_transparency_data:
                    return image.convert("RGB")
                above = image.convert("RGBA")
    except Exception as error:  # PIL's formats raise whatever their bytes lead to
        name = "image" if isinstance(source, bytes) else f"image {source}"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read: {reason}") from error
    white = Image.new("RGBA", above.size, "white")
    return Image.alpha_composite(white, above).convert("RGB")


def to_uint8(image: Image.Image) -> Tensor:
    """Turns an RGB image into (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
