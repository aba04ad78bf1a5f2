"""Images of documents: decoded whatever they are, measured, filtered."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from .extras import require
from .tables import Verdict, split_by_reason

PHASH_BITS = 64


@dataclass(frozen=True)
class ImageFilter:
    """Which images are worth keeping (RealSyn, section 3.1).

    Attributes:
        min_side: Pixels that the shorter side must have.
        max_aspect: How many times longer than the other a side may be.
        max_pixels: Larger images are taken for decompression bombs and never decoded.
        max_bytes: Larger files are not read.
    """

    min_side: int = 100
    max_aspect: float = 3.0
    max_pixels: int = 89_478_485
    max_bytes: int = 50_000_000

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1 or self.max_pixels < 1 or self.max_bytes < 1:
            raise ValueError(
                "images: min_side, max_aspect, max_pixels and max_bytes must be 1 or more, got "
                f"{self.min_side}, {self.max_aspect}, {self.max_pixels}, {self.max_bytes}"
            )


def decode_image(data: bytes, max_pixels: int = ImageFilter.max_pixels) -> Image.Image:
    """Decodes an image as a person would see it on a white page.

    The first frame of an animation, turned as its EXIF data say, with transparency over white:
    screenshots with a transparent ground would otherwise turn black.

    Args:
        data: An encoded image.
        max_pixels: Larger ones are refused before they are decoded.

    Returns:
        An RGB image.

    Raises:
        ValueError: It is none that can be decoded, or too large.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what the check below refuses, and of oddities of files it then reads.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise ValueError(f"too many pixels: {image.width} x {image.height}")
            image.seek(0)
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                layered = upright.convert("RGBA")
                white = Image.new("RGBA", layered.size, "white")
                return Image.alpha_composite(white, layered).convert("RGB")
            if upright.mode.startswith(("I", "F")):
                return _stretched(upright)
            return upright.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError("too many pixels") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"no image: {_kind(data)}") from error
    except ValueError:
        raise
    except Exception as error:  # decoders of broken files raise anything, from OSError to TypeError
        raise ValueError(f"broken image: {' '.join(str(error).split())}") from error


def shrunk_image(data: bytes, side: int, max_pixels: int = ImageFilter.max_pixels) -> bytes:
    """Encodes an image anew so that its shorter side has `side` pixels; a smaller one is kept.

    JPEG stays JPEG, of quality 95; all others become PNG.

    Args:
        data: An encoded image.
        side: Pixels.
        max_pixels: As of `decode_image`.

    Raises:
        ValueError: As of `decode_image`.
    """
    image = decode_image(data, max_pixels)
    scale = side / min(image.size)
    if scale >= 1:
        return data
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    if data.startswith(b"\xff\xd8"):
        small.save(encoded, "JPEG", quality=95)
    else:
        small.save(encoded, "PNG")
    return encoded.getvalue()


def _stretched(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits, its range made 0 to 255: `convert` would cut it off."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def _kind(data: bytes) -> str:
    head = data[:1024].lstrip().lower()
    if not data:
        return "an empty file"
    if b"<svg" in head or head.startswith(b"<?xml"):
        return "vector graphics"
    return "a page" if head.startswith((b"<!doctype html", b"<html")) else "of no known format"


def perceptual_hash(image: Image.Image) -> int:
    """The 64-bit pHash of an image: signs of the low frequencies of its brightness."""
    bits = require("imagehash", "imagehash").phash(image).hash
    return int(np.packbits(bits).view(">u8")[0])


def filter_images(images: pa.Table, settings: ImageFilter) -> Verdict:
    """Drops images that are too small or too long.

    Args:
        images: With `width` and `height` in pixels, 0 where the image could not be decoded, and
            `problem`, why it could not.
        settings: What to keep. An aspect of exactly `max_aspect` is kept.

    Returns:
        What is kept, and the reason for each of the others: its problem, "small" or "long".
    """
    width = pc.cast(images["width"], pa.int64())
    height = pc.cast(images["height"], pa.int64())
    small = pc.less(pc.min_element_wise(width, height), settings.min_side)
    longer = pc.cast(pc.max_element_wise(width, height), pa.float64())
    shorter = pc.cast(pc.min_element_wise(width, height), pa.float64())
    long = pc.greater(longer, pc.multiply(shorter, settings.max_aspect))
    broken = pc.not_equal(images["problem"], "")
    reasons = pc.case_when(
        pc.make_struct(broken, small, long),
        pc.replace_substring_regex(images["problem"], ":.*", ""),
        "small",
        "long",
        "",
    )
    return split_by_reason(images, reasons)
