"""Pictures as OpenRaster files (.ora), which GIMP, Krita, MyPaint and Pinta open with their layers.

Format 0.0.3: a zip of `mimetype` (first, not compressed), `stack.xml` with the topmost layer first,
a PNG per layer, the merged picture and a thumbnail.
"""

import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from torch import Tensor

from ...kernels.compositing import BlendMode, unpremultiplied
from ..files import atomic_path
from .drawing import Renderer, to_uint8
from .language import Language
from .layers import Picture

THUMBNAIL = 256  # pixels, at most
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time of a zip: equal pictures are equal files


def write_ora(path: str | Path, picture: Picture, language: Language, size: int = 512) -> None:
    """Writes a picture with its layers, white paper below them.

    Args:
        path: File to write.
        picture: The layers.
        language: Of the program.
        size: Side of the canvas in pixels.
    """
    renderer = Renderer(language, size)
    images = renderer.transparent([(replace(layer, opacity=None),) for layer in picture])
    merged = _png(renderer.pictures([picture])[0])
    rows = []
    for number, (layer, image) in enumerate(zip(picture, images, strict=True), 1):
        opacity = 1.0 if layer.opacity is None else language.opacities[layer.opacity]
        mode = layer.mode if number > 1 else "normal"
        rows.append((f"layer-{number}", _png(unpremultiplied(image[None])[0]), opacity, mode))
    paper = np.full((size, size, 3), 255, dtype=np.uint8)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:

        def add(name: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> None:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, compress_type=kind)

        add("mimetype", b"image/openraster", zipfile.ZIP_STORED)
        add("stack.xml", _stack_xml(rows, size).encode())
        for name, content, _, _ in rows:
            add(f"data/{name}.png", content)
        add("data/paper.png", _encoded(Image.fromarray(paper)))
        add("mergedimage.png", merged)
        small = Image.open(io.BytesIO(merged))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        add("Thumbnails/thumbnail.png", _encoded(small))


def _stack_xml(rows: list[tuple[str, bytes, float, BlendMode]], size: int) -> str:
    def layer(name: str, opacity: float, mode: str) -> str:
        attributes: dict[str, Any] = {"name": name, "src": f"data/{name}.png", "x": 0, "y": 0}
        attributes |= {"opacity": f"{opacity:g}", "visibility": "visible", "composite-op": mode}
        written = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
        return f"<layer {written}/>"

    # Layers blend among themselves first: the group is isolated from the paper.
    inner = [layer(name, opacity, _operation(mode)) for name, _, opacity, mode in reversed(rows)]
    return "\n".join(
        [
            "<?xml version='1.0' encoding='UTF-8'?>",
            f'<image version="0.0.3" w="{size}" h="{size}" xres="72" yres="72">',
            "<stack>",
            '<stack name="art" isolation="isolate" opacity="1" visibility="visible"'
            ' composite-op="svg:src-over" x="0" y="0">',
            *inner,
            "</stack>",
            layer("paper", 1.0, "svg:src-over"),
            "</stack>",
            "</image>",
        ]
    )


def _operation(mode: BlendMode) -> str:
    if mode == "exclusion":
        warnings.warn("OpenRaster has no exclusion: written as difference", stacklevel=3)
        mode = "difference"
    return "svg:src-over" if mode == "normal" else f"svg:{mode}"


def _png(image_CHW: Tensor) -> bytes:
    return _encoded(Image.fromarray(to_uint8(image_CHW).permute(1, 2, 0).numpy()))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
