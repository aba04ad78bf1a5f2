"""Images of any kind are decoded as a person would see them, or named; size and aspect."""

import contextlib
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.realsyn.images import (
    ImageFilter,
    decode_image,
    filter_images,
    perceptual_hash,
    shrunk_image,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_transparency_lies_on_white_in_every_mode_that_has_it():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    palette = clear.quantize(4)
    for image in (clear, palette, clear.convert("LA")):
        seen = decode_image(encoded(image))
        assert seen.mode == "RGB"
        assert seen.getpixel((7, 7)) == (255, 255, 255)
    keyed = Image.new("RGB", (8, 8), (1, 2, 3))
    assert decode_image(encoded(keyed, transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3


def test_exif_turns_an_animation_shows_its_first_frame_and_16_bits_keep_their_range():
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decode_image(encoded(image, "JPEG", exif=exif)).size == (10, 20)
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    seen = np.asarray(decode_image(encoded(Image.fromarray(ramp))))
    assert seen.min() == 0
    assert seen.max() == 255
    assert 100 < seen.mean() < 155  # `convert` alone would make all but a few pixels white
    assert decode_image(encoded(Image.new("CMYK", (4, 4)), "JPEG")).mode == "RGB"
    assert decode_image(encoded(Image.new("1", (4, 4)))).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image: an empty file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image: vector graphics"),
        (b"<!DOCTYPE html><p>not found", "no image: a page"),
        (b"nonsense", "no image: of no known format"),
        (encoded(Image.new("RGB", (64, 64)))[:60], "broken image"),
    ],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        decode_image(data)


def test_bombs_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="too many pixels"):
        decode_image(bomb)
    with pytest.raises(ValueError, match="too many pixels: 30 x 20"):
        decode_image(encoded(Image.new("RGB", (30, 20))), max_pixels=599)


@given(st.binary(max_size=120), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
def test_damaged_files_are_errors_of_one_kind(noise, kind):
    data = bytearray(encoded(Image.effect_noise((24, 24), 50).convert("RGB"), kind))
    data[8 : 8 + len(noise)] = noise
    with contextlib.suppress(ValueError):
        assert decode_image(bytes(data), 10_000).mode == "RGB"


def sized(*sizes: tuple[int, int], problem: str = "") -> pa.Table:
    width, height = zip(*sizes, strict=True)
    return pa.table({"width": width, "height": height, "problem": [problem] * len(sizes)})


def test_a_side_of_100_and_an_aspect_of_3_are_kept_exactly():
    sizes = [(100, 100), (99, 200), (100, 300), (300, 100), (100, 301), (1001, 333), (999, 333)]
    verdict = filter_images(sized(*sizes), ImageFilter())
    assert verdict.kept["width"].to_pylist() == [100, 100, 300, 999]
    assert verdict.dropped["reason"].to_pylist() == ["small", "long", "long"]
    assert verdict.counts == {"long": 2, "small": 1}


def test_problems_are_counted_by_kind():
    table = sized((0, 0), problem="broken image: truncated at 12")
    assert filter_images(table, ImageFilter()).counts == {"broken image": 1}


def test_the_hash_of_a_rescaled_image_is_near_and_that_of_another_far():
    noise = Image.effect_noise((64, 64), 90).resize((256, 256), Image.Resampling.BICUBIC)
    other = Image.effect_noise((64, 64), 90).resize((256, 256), Image.Resampling.BICUBIC)
    mine = perceptual_hash(noise)
    assert (mine ^ perceptual_hash(noise.resize((200, 200)))).bit_count() <= 4
    assert (mine ^ perceptual_hash(other)).bit_count() > 10


@pytest.mark.parametrize("option", ["min_side", "max_aspect", "max_pixels", "max_bytes"])
def test_senseless_limits_are_refused(option):
    with pytest.raises(ValueError, match="must be 1 or more"):
        ImageFilter(**{option: 0})


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 40), st.sampled_from(["PNG", "JPEG"]))
def test_a_shrunk_image_has_the_shorter_side_and_shows_the_same(width, height, side, kind):
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    image = Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8))
    data = encoded(image, kind)
    small = shrunk_image(data, side)
    if side >= min(width, height):
        assert small == data
        return
    shown = Image.open(io.BytesIO(small))
    assert shown.format == kind
    assert min(shown.size) == side
    assert abs(max(shown.size) - side * max(width, height) / min(width, height)) <= 0.5
    before, after = (np.asarray(decode_image(x), float).mean() for x in (data, small))
    assert abs(after - before) < (1 if kind == "PNG" else 2.5)  # of 255


def test_a_shrunk_image_is_upright_and_on_white():
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    shown = Image.open(io.BytesIO(shrunk_image(encoded(clear, exif=exif), 10)))
    assert shown.size == (10, 20)
    assert shown.getpixel((5, 5)) == (255, 255, 255)
