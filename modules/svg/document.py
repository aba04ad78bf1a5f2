"""A vector image as typed, immutable values: what is parsed, written, drawn, encoded and printed.

    Document(view_box, children)
      Group(children, opacity, blend_mode)                 layers blended among themselves first
      Shape(subpaths, fill, stroke, opacity, blend_mode)   one layer
        Subpath(x, y, segments, closed)                    start, then Line | Cubic | Arc

Children are in document order, which is the order of painting, the lowest first. All coordinates
are absolute, in the units of the view box, y down; there are no transforms, no inherited styles and
no references left. A group exists only where it changes the picture: its children are blended onto
transparency, and the result, times `opacity`, onto what lies below it (`isolation: isolate`).
A shape that paints nothing does not exist.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...kernels.compositing import BlendMode

FillRule = Literal["nonzero", "evenodd"]
Cap = Literal["butt", "round", "square"]
Join = Literal["miter", "round", "bevel"]
Color = tuple[float, float, float]  # sRGB-encoded red, green, blue from 0 to 1
Box = tuple[float, float, float, float]  # least x, least y, width, height
Matrix = tuple[float, float, float, float, float, float]  # a b c d e f of SVG: x' = a x + c y + e


class Line(NamedTuple):
    """A straight segment from the current point to (x, y)."""

    x: float
    y: float


class Cubic(NamedTuple):
    """A cubic Bezier curve with two control points to (x, y)."""

    x1: float
    y1: float
    x2: float
    y2: float
    x: float
    y: float


class Arc(NamedTuple):
    """An elliptical arc to (x, y), with the meaning that SVG gives to the arguments of `A`.

    `rotation` is in degrees. Radii that are too small for the distance are scaled up; a radius of 0
    makes a straight line.
    """

    rx: float
    ry: float
    rotation: float
    large: bool
    sweep: bool  # clockwise as seen, y being down
    x: float
    y: float


Segment = Line | Cubic | Arc


@dataclass(frozen=True, slots=True)
class Subpath:
    """A connected line; closed, it goes back straight to where it started.

    Attributes:
        x: Of the start.
        y: Of the start.
        segments: In order; the start of one is the end of the one before.
        closed: Whether it ends with `Z`.
    """

    x: float
    y: float
    segments: tuple[Segment, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Fill:
    """What paints the inside of a shape; open subpaths count as closed."""

    color: Color = (0.0, 0.0, 0.0)
    opacity: float = 1.0
    rule: FillRule = "nonzero"


@dataclass(frozen=True, slots=True)
class Stroke:
    """What paints along the subpaths of a shape, over its fill. `width` is positive."""

    color: Color = (0.0, 0.0, 0.0)
    width: float = 1.0
    opacity: float = 1.0
    cap: Cap = "butt"
    join: Join = "miter"
    miter_limit: float = 4.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer: subpaths that share a fill, a stroke, or both, which are blended as one.

    Attributes:
        subpaths: At least one; the fill rule sees them together, so that they make holes.
        fill: None: not filled.
        stroke: None: no outline.
        opacity: Of fill and stroke together, 0 to 1.
        blend_mode: With what lies below.
        name: The `id` of the element, or "".
    """

    subpaths: tuple[Subpath, ...]
    fill: Fill | None = None
    stroke: Stroke | None = None
    opacity: float = 1.0
    blend_mode: BlendMode = "normal"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Children blended among themselves, then as one layer with what lies below."""

    children: tuple["Shape | Group", ...]
    opacity: float = 1.0
    blend_mode: BlendMode = "normal"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """An image; what lies outside of its view box may be seen where the canvas is larger."""

    view_box: Box
    children: tuple[Shape | Group, ...] = ()

    def shapes(self) -> Iterator[Shape]:
        """Yields all shapes in document order, those of groups among them."""
        yield from _shapes(self.children)


def _shapes(children: tuple[Shape | Group, ...]) -> Iterator[Shape]:
    for child in children:
        if isinstance(child, Shape):
            yield child
        else:
            yield from _shapes(child.children)
