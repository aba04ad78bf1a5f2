"""Image files as they come from the web, as RGB pictures or one line that says what is wrong."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485  # PIL's own, a quarter of a GB of RGB


def open_image(
    source: bytes | Path, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes an image as a person would see it on a white page.

    The first frame of an animation; turned as EXIF says; transparent parts on white, so that
    drawings and screenshots with an alpha channel or a transparent palette do not turn black; grey
    values of more than 8 bits stretched to the range from black to white.

    Args:
        source: The encoded file, or where it is.
        min_side: A JPEG may be decoded at a half, a quarter or an eighth of its size, which is much
            faster, as long as no side is shorter than this, in pixels; None: at full size.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        An RGB image.

    Raises:
        ValueError: It is none that can be decoded, or too large.
    """
    name = "image" if isinstance(source, bytes) else f"image {source}"
    try:
        with warnings.catch_warnings():
            # PIL warns of what is refused below, and of oddities of files that it then reads.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                if file.width * file.height > max_pixels:
                    raise ValueError(f"too many pixels: {file.width} x {file.height}")
                if min_side is not None:
                    file.draft("RGB", (min_side, min_side))
                upright = ImageOps.exif_transpose(file)
                if upright.has_transparency_data:
                    layered = upright.convert("RGBA")
                    white = Image.new("RGBA", layered.size, "white")
                    return Image.alpha_composite(white, layered).convert("RGB")
                if upright.mode.startswith(("I", "F")):
                    return _stretched(upright)
                return upright.convert("RGB")
    except Exception as error:  # decoders of broken files raise anything, from OSError to TypeError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read: {reason}") from error


def _stretched(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits, its range made 0 to 255: `convert` would cut it off."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
