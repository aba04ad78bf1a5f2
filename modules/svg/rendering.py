"""Documents as images, by the kernels `polygon_raster` and `compositing`.

This is the one renderer of data sets, predictions and metrics: at edges, renderers differ from each
other by more than methods do.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.compositing import (
    BlendMode,
    composite_images,
    composite_layers,
    mode_numbers,
    on_background,
)
from ...kernels.polygon_raster import RasterBackend, coverage
from .document import Color, Document, Group, Matrix, Shape
from .geometry import fitted, transformed_shape
from .outline import Outline, shape_outlines

TOLERANCE = 0.03  # pixels between a curve and its chords


def render(
    documents: Sequence[Document],
    size: tuple[int, int],
    background: Color | None = (1.0, 1.0, 1.0),
    samples: int = 8,
    device: torch.device | str = "cpu",
    backend: RasterBackend = "auto",
) -> Tensor:
    """Draws documents, each scaled evenly into the canvas and centered.

    Memory is about 4 bytes per pixel and layer of all documents together.

    Args:
        documents: What to draw.
        size: (H, W) in pixels.
        background: What lies below; None: nothing.
        samples: Per pixel and axis, 1 to 16.
        device: Where coverage and blending are computed.
        backend: Of the kernels.

    Returns:
        (B, 3, H, W) float32 in [0, 1], or without background (B, 4, H, W) premultiplied.
    """
    outlines: list[Outline] = []
    stacks = [
        _stack(document.children, fitted(document.view_box, size[1], size[0]), outlines)
        for document in documents
    ]
    covered_NHW = _coverage(outlines, size, samples, device, backend)
    empty_14HW = torch.zeros((1, 4, *size), device=device)
    images = [_blended(stack, covered_NHW, empty_14HW, backend) for stack in stacks]
    image_B4HW = torch.cat(images) if images else empty_14HW[:0]
    return image_B4HW if background is None else on_background(image_B4HW, background)


def document_coverage(
    document: Document,
    size: tuple[int, int],
    samples: int = 8,
    device: torch.device | str = "cpu",
    backend: RasterBackend = "auto",
) -> Tensor:
    """Returns which part of each pixel each layer covers: for every shape its fill, its stroke.

    Args:
        document: What to draw, scaled evenly into the canvas and centered.
        size: (H, W) in pixels.
        samples: Per pixel and axis, 1 to 16.
        device: Where it is computed.
        backend: Of the kernel.

    Returns:
        (N, H, W) float32 in the order of painting.
    """
    outlines: list[Outline] = []
    _stack(document.children, fitted(document.view_box, size[1], size[0]), outlines)
    return _coverage(outlines, size, samples, device, backend)


@dataclass(frozen=True)
class _Layer:
    """One colour on a part of the canvas; `place` counts the layers of all documents."""

    place: int
    color: Color
    opacity: float
    blend_mode: BlendMode


@dataclass(frozen=True)
class _Stack:
    """Layers that are blended among themselves first."""

    children: "tuple[_Layer | _Stack, ...]"
    opacity: float = 1.0
    blend_mode: BlendMode = "normal"


def _stack(children: tuple[Shape | Group, ...], matrix: Matrix, outlines: list[Outline]) -> _Stack:
    """Returns the layers of children; adds their outlines, in pixels, to a list."""
    found: list[_Layer | _Stack] = []
    for child in children:
        if isinstance(child, Group):
            inner = _stack(child.children, matrix, outlines)
            found.append(_Stack(inner.children, child.opacity, child.blend_mode))
            continue
        place = len(outlines)
        outlines += shape_outlines(transformed_shape(child, matrix), TOLERANCE)
        paints = [paint for paint in (child.fill, child.stroke) if paint]
        if len(paints) == 1:
            opacity = child.opacity * paints[0].opacity
            found.append(_Layer(place, paints[0].color, opacity, child.blend_mode))
        elif paints:
            pair = tuple(
                _Layer(place + i, paint.color, paint.opacity, "normal")
                for i, paint in enumerate(paints)
            )
            found.append(_Stack(pair, child.opacity, child.blend_mode))
    return _Stack(tuple(found))


def _coverage(
    outlines: list[Outline],
    size: tuple[int, int],
    samples: int,
    device: torch.device | str,
    backend: RasterBackend,
) -> Tensor:
    """Returns the coverage of all layers, (N, H, W); those of like size are computed together."""
    covered_NHW = torch.zeros((len(outlines), *size), device=device)
    alike = defaultdict(list)
    for place, outline in enumerate(outlines):
        alike[len(outline.edges).bit_length()].append(place)
    for places in alike.values():
        most = max(len(outlines[place].edges) for place in places)
        edges = np.zeros((1, len(places), most, 4), dtype=np.float32)  # of no length: no crossing
        for row, place in zip(edges[0], places, strict=True):
            row[: len(outlines[place].edges)] = outlines[place].edges
        even_odd = torch.tensor([[outlines[place].even_odd for place in places]], device=device)
        covered_NHW[places] = coverage(
            torch.from_numpy(edges).to(device),
            size,
            even_odd_BL=even_odd,
            samples=samples,
            backend=backend,
        )[0]
    return covered_NHW


def _blended(
    stack: _Stack, covered_NHW: Tensor, backdrop_14HW: Tensor, backend: RasterBackend
) -> Tensor:
    """Returns the layers of a stack, blended in order onto a backdrop; (1, 4, H, W)."""
    image_14HW = backdrop_14HW
    run: list[_Layer] = []  # layers that follow each other are blended by one call

    def finish(image_14HW: Tensor) -> Tensor:
        if not run:
            return image_14HW
        device = image_14HW.device
        result = composite_layers(
            covered_NHW[None, [layer.place for layer in run]],
            torch.tensor([[layer.color for layer in run]], device=device),
            torch.tensor([[layer.opacity for layer in run]], device=device),
            mode_numbers([layer.blend_mode for layer in run])[None].to(device),
            image_14HW,
            backend=backend,
        )
        run.clear()
        return result

    for child in stack.children:
        if isinstance(child, _Layer):
            run.append(child)
            continue
        image_14HW = finish(image_14HW)
        inner = _blended(child, covered_NHW, torch.zeros_like(image_14HW), backend)
        image_14HW = composite_images(
            image_14HW,
            inner,
            mode_numbers([child.blend_mode]).to(inner.device),
            torch.tensor([child.opacity], device=inner.device),
        )
    return finish(image_14HW)
