"""Pictures of programs, and of what each of their lines leaves behind, by the kernels.

This one renderer draws data, what guides the decoder, and what metrics compare. It cuts edges into
chords in a way that does not depend on how an outline is written (`geometry.chord_points`); else it
draws what `modules.svg.render` of `layers.document` does, but many pictures at a time.

Shapes: B pictures, L layers, E edges, N results of lines, S side of the canvas in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.compositing import composite_layers, mode_numbers, on_background
from ...kernels.polygon_raster import coverage
from ..svg import Arc, Document, Fill, Shape, Stroke, Subpath
from ..svg.rendering import TOLERANCE, document_coverage
from .geometry import chord_points
from .language import Language
from .layers import Edge, Outline, Picture, Point, Result, subpath

Coverage = NDArray[np.uint8]

LINE_WIDTH = 0.18  # of an outline that is not filled yet, in cells
PEN_RADIUS = 0.32  # of the dot at the pen, in cells
CACHED_EDGES = 8192  # strokes of edges that are kept: about 8 kB each at 64 pixels, 4 times less


class Renderer:
    """Draws pictures on a square canvas.

    Args:
        language: Of the programs.
        size: S, in pixels.
        samples: Per pixel and axis, 1 to 16.
        device: Where the kernels run.
    """

    def __init__(
        self,
        language: Language,
        size: int,
        samples: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.language, self.size, self.samples = language, size, samples
        self.device = torch.device(device)
        self.cells = language.grid - 1 + 2 * language.margin  # of a side
        self._palette = torch.tensor(language.palette, dtype=torch.float32) / 255
        # Caches of this object: a cached method would keep it alive.
        self._chords = lru_cache(CACHED_EDGES)(self._edge_chords)
        self._stroke = lru_cache(CACHED_EDGES)(self._stroke_coverage)
        self._dot = lru_cache(CACHED_EDGES)(self._dot_coverage)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("language", "size", "samples", "device")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc] # its own arguments

    def pictures(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns pictures on white paper, (B, 3, S, S) float32 in [0, 1]."""
        return on_background(self.transparent(pictures))

    def transparent(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns pictures without paper, (B, 4, S, S) float32, premultiplied."""
        size = (self.size, self.size)
        if not pictures:
            return torch.zeros((0, 4, *size), device=self.device)
        covered_BLHW = self.coverage(pictures)
        B, L = covered_BLHW.shape[:2]
        color_BL, mode_BL = torch.zeros(2, B, L, dtype=torch.int64)
        opacity_BL = torch.zeros(B, L)  # of layers that are not there
        opacities = self.language.opacities
        for row, picture in enumerate(pictures):
            numbers = mode_numbers([layer.mode for layer in picture])
            mode_BL[row, 1 : len(picture)] = numbers[1:]
            for place, layer in enumerate(picture):
                color_BL[row, place] = layer.color
                opaque = layer.opacity is None
                opacity_BL[row, place] = 1.0 if opaque else opacities[layer.opacity or 0]
        return composite_layers(
            covered_BLHW,
            self._palette[color_BL].to(self.device),
            opacity_BL.to(self.device),
            mode_BL.to(self.device),
        )

    def coverage(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns what each layer covers, hidden parts included; (B, L, S, S), 0 for none."""
        most = max(map(len, pictures))
        outlines = [[self._polygon(layer.outline) for layer in picture] for picture in pictures]
        longest = max(len(edges) for row in outlines for edges in row)
        edges = np.zeros((len(pictures), most, longest, 4), dtype=np.float32)
        for row, polygons in enumerate(outlines):
            for place, polygon in enumerate(polygons):
                edges[row, place, : len(polygon)] = polygon
        on_device = torch.from_numpy(edges).to(self.device)
        return coverage(on_device, (self.size, self.size), samples=self.samples)

    def states(self, results: Sequence[Result]) -> Tensor:
        """Returns what lines leave behind, (N, 4, S, S) uint8: colours on white, and alpha.

        A picture is drawn as such, an outline that is still open by thin black lines with a dot at
        the pen: without alpha, white could not be told from nothing.
        """
        states = np.empty((len(results), 4, self.size, self.size), dtype=np.uint8)
        places = []
        for place, result in enumerate(results):
            if isinstance(result, Outline):
                alpha = self._line_coverage(result)
                states[place, :3], states[place, 3] = 255 - alpha, alpha
            else:
                places.append(place)
        if places:
            pictures = [result for result in results if not isinstance(result, Outline)]
            image = self.transparent(pictures)
            drawn = torch.cat((on_background(image), image[:, 3:]), dim=1)
            states[places] = to_uint8(drawn).cpu().numpy()
        return torch.from_numpy(states)

    def _polygon(self, outline: Outline) -> NDArray[np.float32]:
        """Returns the edges of a closed outline in pixels, (E, 4)."""
        closed = outline.closed()
        starts = closed.vertices
        parts = [self._chords(*pair) for pair in zip(starts, closed.edges, strict=False)]
        return np.concatenate(parts) if parts else np.zeros((0, 4), dtype=np.float32)

    def _edge_chords(self, start: Point, edge: Edge) -> NDArray[np.float32]:
        scale = self.size / self.cells
        points = chord_points(start, edge, self.language.grid, TOLERANCE / scale)
        pixels = ((points + self.language.margin) * scale).astype(np.float32)
        return np.concatenate((pixels[:-1], pixels[1:]), axis=1)

    def _line_coverage(self, outline: Outline) -> Coverage:
        """Returns the lines of an open outline and the dot at its pen, 0 to 255."""
        covered = self._dot(outline.pen).copy()
        for pair in zip(outline.vertices, outline.edges, strict=False):
            np.maximum(covered, self._stroke(*pair), out=covered)
        return covered

    def _stroke_coverage(self, start: Point, edge: Edge) -> Coverage:
        stroke = Stroke(width=LINE_WIDTH, cap="round")
        path = subpath(Outline(start, (edge,)), self.language.margin, False)
        return self._shape_coverage(Shape((path,), stroke=stroke))

    def _dot_coverage(self, point: Point) -> Coverage:
        x, y = (part + self.language.margin for part in point)
        right, left = x + PEN_RADIUS, x - PEN_RADIUS
        halves = [Arc(PEN_RADIUS, PEN_RADIUS, 0.0, False, True, end, y) for end in (left, right)]
        return self._shape_coverage(Shape((Subpath(right, y, tuple(halves), True),), fill=Fill()))

    def _shape_coverage(self, shape: Shape) -> Coverage:
        canvas = Document((0.0, 0.0, self.cells, self.cells), (shape,))
        covered = document_coverage(canvas, (self.size, self.size), self.samples)[0]
        image: Coverage = to_uint8(covered).numpy()
        return image


def to_uint8(image: Tensor) -> Tensor:
    """Returns values in [0, 1] as the nearest of 0 to 255."""
    return (image * 255).round().to(torch.uint8)


def blank_states(number: int, size: int) -> Tensor:
    """Returns what is there before the first line, (N, 4, S, S) uint8: white and nothing."""
    states = torch.full((number, 4, size, size), 255, dtype=torch.uint8)
    states[:, 3] = 0
    return states
