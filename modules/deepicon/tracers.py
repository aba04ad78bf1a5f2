"""Other ways from a picture to paths: programs that trace outlines, and a trained DeepIcon.

They all follow what is dark; what they return is in a view box of 24 and black or white. VTracer
comes with the extra `icons`; potrace is a program of every distribution; AutoTrace, which is under
the GPL, is asked for only if `pyautotrace` is installed.
"""

import io
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..svg import Document, Fill, Shape, Stroke, normalized, parse_svg
from .module import DeepIconModule
from .representation import INK, PAPER, VIEW_BOX, IconStyle

SECONDS = 60.0  # for one picture
BRIGHT = 0.5  # luminance from which a colour is paper


class Tracer(ABC):
    """Turns one picture into a document."""

    def prepare(self) -> None:  # noqa: B027 - not all need something
        """Gets what it needs, before the first picture.

        Raises:
            ImportError: A program or package is not installed; the message says how to get it.
            ValueError: A file is missing or of no use.
        """

    @abstractmethod
    def trace(self, image_3SS: Tensor, style: IconStyle) -> Document:
        """Returns the paths of a picture in a view box of 24.

        Args:
            image_3SS: In [0, 1], dark on white, on the CPU.
            style: Of the true strokes, for tracers that draw strokes.
        """


class VTracer(Tracer):
    """VTracer: outlines of regions, stacked.

    Args:
        colormode: "binary": what is dark; "color": regions of like colour, one over the other.
        mode: Curves: "spline", "polygon".
        filter_speckle: Side in pixels of what is left out as noise.
        corner_threshold: Degrees from which a turn is a corner.
        length_threshold: Segments that are shorter are joined, in pixels.
        splice_threshold: Degrees from which a curve is divided.
        color_precision: Bits of each colour that count.
        layer_difference: Between colours of one region and the next.
    """

    def __init__(
        self,
        colormode: Literal["binary", "color"] = "binary",
        mode: Literal["spline", "polygon"] = "spline",
        filter_speckle: int = 4,
        corner_threshold: int = 60,
        length_threshold: float = 4.0,
        splice_threshold: int = 45,
        color_precision: int = 6,
        layer_difference: int = 16,
    ) -> None:
        self.settings: dict[str, Any] = {
            "colormode": colormode,
            "mode": mode,
            "filter_speckle": filter_speckle,
            "corner_threshold": corner_threshold,
            "length_threshold": length_threshold,
            "splice_threshold": splice_threshold,
            "color_precision": color_precision,
            "layer_difference": layer_difference,
        }

    def prepare(self) -> None:
        """See `Tracer`."""
        try:
            import vtracer
        except ImportError as error:
            raise ImportError("vtracer is missing: pip install 'tenfold[icons]'") from error
        self._convert = vtracer.convert_raw_image_to_svg

    def trace(self, image_3SS: Tensor, style: IconStyle) -> Document:
        """See `Tracer`."""
        png = _encoded(image_3SS, "png")
        return ink_document(parse_svg(self._convert(png, img_format="png", **self.settings)))


class Potrace(Tracer):
    """potrace: outlines of what is dark, holes in them.

    Args:
        turdsize: Area in pixels of what is left out as noise.
        alphamax: From 0, all corners, to 4/3, none.
        opttolerance: How far joined curves may be off, in pixels.
    """

    def __init__(self, turdsize: int = 2, alphamax: float = 1.0, opttolerance: float = 0.2) -> None:
        settings = {"-t": turdsize, "-a": alphamax, "-O": opttolerance}
        self.command = ["potrace", "-b", "svg", "-o", "-"]
        self.command += [str(part) for pair in settings.items() for part in pair] + ["-"]

    def prepare(self) -> None:
        """See `Tracer`."""
        if shutil.which("potrace") is None:
            raise ImportError("the program potrace is missing: apt-get install potrace")

    def trace(self, image_3SS: Tensor, style: IconStyle) -> Document:
        """See `Tracer`."""
        bitmap = _encoded((image_3SS.mean(dim=0, keepdim=True) >= BRIGHT).float(), "ppm")
        done = subprocess.run(
            self.command, input=bitmap, capture_output=True, check=True, timeout=SECONDS
        )
        return ink_document(parse_svg(done.stdout))


class AutoTrace(Tracer):
    """AutoTrace: outlines, or the middle lines of strokes.

    Args:
        centerline: Whether middle lines are traced, and drawn as wide as the true strokes.
        error_threshold: Curves that are further off are divided, in pixels.
        despeckle_level: From 0, none, to 20.
    """

    def __init__(
        self, centerline: bool = True, error_threshold: float = 2.0, despeckle_level: int = 0
    ) -> None:
        self.centerline = centerline
        self.options: dict[str, Any] = {
            "centerline": centerline,
            "error_threshold": error_threshold,
            "despeckle_level": despeckle_level,
            "background_color": (255, 255, 255),
        }

    def prepare(self) -> None:
        """See `Tracer`."""
        try:
            import autotrace
        except ImportError as error:
            raise ImportError("AutoTrace is missing: pip install pyautotrace (GPL)") from error
        self._autotrace = autotrace

    def trace(self, image_3SS: Tensor, style: IconStyle) -> Document:
        """See `Tracer`."""
        dark = (image_3SS.mean(dim=0) < BRIGHT).numpy()
        pixels = np.where(dark[..., None], np.uint8(0), np.uint8(255)).repeat(3, axis=2)
        vector = self._autotrace.Bitmap(pixels).trace(**self.options)
        document = ink_document(parse_svg(vector.encode(self._autotrace.VectorFormat.SVG)))
        if not self.centerline:
            return document
        # It writes all lines of a colour into one element; each is a path of its own.
        line = Stroke(INK, style.width, cap=style.cap, join=style.join)
        subpaths = [path for shape in document.shapes() for path in shape.subpaths]
        shapes = [Shape((p,), stroke=line, name=f"layer-{k}") for k, p in enumerate(subpaths)]
        return replace(document, children=tuple(shapes))


class TrainedTracer(Tracer):
    """A trained DeepIcon, beside the others; see also `tenfold test` of its own recipe.

    Args:
        checkpoint: Of a run of `DeepIconModule` from the command line.
        image_size: Side of the pictures that it was trained on.
    """

    def __init__(self, checkpoint: str, image_size: int = 64) -> None:
        self.checkpoint, self.image_size = checkpoint, image_size

    def prepare(self) -> None:
        """See `Tracer`."""
        self.module = load_module(self.checkpoint)

    def trace(self, image_3SS: Tensor, style: IconStyle) -> Document:
        """See `Tracer`."""
        size = (self.image_size, self.image_size)
        small = F.interpolate(image_3SS[None], size, mode="area")
        with torch.no_grad():
            (icon,) = self.module.predict_icons(small).icons()
        return self.module.codec.decode(icon, style, snap=self.module.snap)


def load_module(checkpoint: str) -> DeepIconModule:
    """Returns a model that `tenfold fit` has trained, on the CPU, for evaluation.

    Raises:
        ValueError: There is no such file.
    """
    if not Path(checkpoint).is_file():
        raise ValueError(f"checkpoint: there is no file '{checkpoint}'")
    module = DeepIconModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    return module.eval()


def ink_document(document: Document) -> Document:
    """Returns a document in a view box of 24 and in black and white; its lowest paper is left out.

    Tracers of colours return the background as a region of its own, which shows nothing.
    """
    shapes: list[Shape] = []
    for shape in normalized(document, VIEW_BOX).shapes():
        paints = [paint for paint in (shape.fill, shape.stroke) if paint]
        is_paper = sum(paints[0].color) / 3 >= BRIGHT
        if is_paper and not shapes:
            continue
        color = PAPER if is_paper else INK
        fill = shape.fill and Fill(color, rule=shape.fill.rule)
        stroke = shape.stroke and replace(shape.stroke, color=color, opacity=1.0)
        shapes.append(Shape(shape.subpaths, fill, stroke, name=f"layer-{len(shapes)}"))
    return Document((0.0, 0.0, VIEW_BOX, VIEW_BOX), tuple(shapes))


def _encoded(image_CSS: Tensor, format_: str) -> bytes:
    picture = to_pil_image(image_CSS)
    if format_ == "ppm":
        picture = picture.convert("1")
    file = io.BytesIO()
    picture.save(file, format_)
    return file.getvalue()
