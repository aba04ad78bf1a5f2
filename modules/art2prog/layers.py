"""Programs as what they draw: outlines, layers, pictures. The interpreter, line by line.

A line's result is an `Outline` that is still open, or a picture: layers from the lowest to the
topmost. Only numbers of the grid and of the palette are in them, so that results compare exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...kernels.compositing import BlendMode
from ..svg import Arc, Document, Fill, Shape, Subpath
from ..svg import Line as SvgLine
from .language import (
    Blend,
    Circle,
    Create,
    Fillcolor,
    Language,
    Line,
    Opacity,
    Program,
    Straight,
)

Point = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """An edge from where the one before ends.

    Attributes:
        x: End.
        y: End.
        radius: Of an arc, in cells (`language.HALF`: half the chord); -1 for a straight edge.
        clockwise: Direction of an arc; True for a straight edge.
    """

    x: int
    y: int
    radius: int = -1
    clockwise: bool = True

    @property
    def is_straight(self) -> bool:
        """Whether the edge is no arc."""
        return self.radius < 0


@dataclass(frozen=True, slots=True)
class Outline:
    """A line that the pen has drawn so far."""

    start: Point
    edges: tuple[Edge, ...] = ()

    @property
    def pen(self) -> Point:
        """Where the pen is."""
        return (self.edges[-1].x, self.edges[-1].y) if self.edges else self.start

    @property
    def vertices(self) -> list[Point]:
        """The start and the end of each edge."""
        return [self.start, *((edge.x, edge.y) for edge in self.edges)]

    def closed(self) -> "Outline":
        """Returns the outline with an edge back to its start, if it does not end there."""
        if self.pen == self.start:
            return self
        return Outline(self.start, (*self.edges, Edge(*self.start)))


@dataclass(frozen=True, slots=True)
class Layer:
    """A filled outline and how it is blended onto the layers below it.

    Attributes:
        outline: Closed or not; filling closes it.
        color: In the palette.
        opacity: Number in `Language.opacities`; None: opaque.
        mode: For the lowest layer without meaning, and normal.
    """

    outline: Outline
    color: int
    opacity: int | None = None
    mode: BlendMode = "normal"


Picture = tuple[Layer, ...]
Result = Outline | Picture


def execute_line(line: Line, results: Sequence[Result]) -> Result:
    """Returns the result of a line of a checked program, from the results of earlier lines."""
    match line:
        case Create(x, y):
            return Outline((x, y))
        case Straight(x, y, number):
            return _prolonged(results[number], Edge(x, y))
        case Circle(x, y, radius, clockwise, number):
            return _prolonged(results[number], Edge(x, y, radius, clockwise))
        case Fillcolor(color, number):
            outline = results[number]
            assert isinstance(outline, Outline)
            return (Layer(outline, color),)
        case Opacity(opacity, number):
            (layer,) = _picture(results[number])
            return (replace(layer, opacity=opacity),)
        case Blend(mode, below, above):
            (layer,) = _picture(results[above])
            return (*_picture(results[below]), replace(layer, mode=mode))


def execute(program: Program) -> list[Result]:
    """Returns the result of each line of a checked program."""
    results: list[Result] = []
    for line in program.lines:
        results.append(execute_line(line, results))
    return results


def picture_of(program: Program) -> Picture:
    """Returns the layers that a checked program draws."""
    return _picture(execute(program)[-1])


def program_of(picture: Picture) -> Program:
    """Returns the program that draws layers from the lowest to the topmost, each when its turn is.

    Raises:
        ValueError: There is no layer.
    """
    if not picture:
        raise ValueError("no layer: a picture has at least one")
    lines: list[Line] = []
    below = -1
    for layer in picture:
        lines.append(Create(*layer.outline.start))
        for edge in layer.outline.edges:
            last = len(lines) - 1
            if edge.is_straight:
                lines.append(Straight(edge.x, edge.y, last))
            else:
                lines.append(Circle(edge.x, edge.y, edge.radius, edge.clockwise, last))
        lines.append(Fillcolor(layer.color, len(lines) - 1))
        if layer.opacity is not None:
            lines.append(Opacity(layer.opacity, len(lines) - 1))
        if below >= 0:
            lines.append(Blend(layer.mode, below, len(lines) - 1))
        below = len(lines) - 1
    return Program(tuple(lines))


def subpath(outline: Outline, margin: float, closed: bool) -> Subpath:
    """Returns an outline as a path of SVG, a cell being the unit."""
    segments: list[SvgLine | Arc] = []
    for start, edge in zip(outline.vertices, outline.edges, strict=False):
        end = (edge.x + margin, edge.y + margin)
        if edge.is_straight:
            segments.append(SvgLine(*end))
            continue
        half = math.dist(start, (edge.x, edge.y)) / 2
        # Half the chord is rounded down: SVG scales up a radius that is too small, but a little
        # too much would move the middle of the arc by the square root of it.
        radius = edge.radius if edge.radius > half else math.floor(1000 * half) / 1000
        segments.append(Arc(radius, radius, 0.0, False, edge.clockwise, *end))
    x, y = outline.start
    return Subpath(x + margin, y + margin, tuple(segments), closed)


def document(picture: Picture, language: Language) -> Document:
    """Returns a picture as a vector image without paper: a shape per layer, a cell being the unit.

    Shapes are named `layer-1` and so on, from the lowest.
    """
    size = language.grid - 1 + 2 * language.margin
    shapes = []
    for number, layer in enumerate(picture, 1):
        red, green, blue = (part / 255 for part in language.palette[layer.color])
        shapes.append(
            Shape(
                (subpath(layer.outline, language.margin, closed=True),),
                fill=Fill((red, green, blue)),
                opacity=1.0 if layer.opacity is None else language.opacities[layer.opacity],
                blend_mode=layer.mode if number > 1 else "normal",
                name=f"layer-{number}",
            )
        )
    return Document((0.0, 0.0, size, size), tuple(shapes))


def _prolonged(result: Result, edge: Edge) -> Outline:
    assert isinstance(result, Outline)
    return Outline(result.start, (*result.edges, edge))


def _picture(result: Result) -> Picture:
    assert not isinstance(result, Outline)
    return result
