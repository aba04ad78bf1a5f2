"""Transforms of documents, and arcs as curves."""

import math
from dataclasses import replace

from .document import (
    Arc,
    Box,
    Cubic,
    Document,
    Group,
    Line,
    Matrix,
    Segment,
    Shape,
    Stroke,
    Subpath,
)


def product(outer: Matrix, inner: Matrix) -> Matrix:
    """Returns the transform that applies `inner` first."""
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (
        a * g + c * h,
        b * g + d * h,
        a * i + c * j,
        b * i + d * j,
        a * k + c * m + e,
        b * k + d * m + f,
    )


def fitted(box: Box, width: float, height: float) -> Matrix:
    """Returns what scales a box evenly into a canvas of this size, centered (`xMidYMid meet`)."""
    scale = min(width / box[2], height / box[3])
    dx = (width - scale * box[2]) / 2 - scale * box[0]
    dy = (height - scale * box[3]) / 2 - scale * box[1]
    return scale, 0.0, 0.0, scale, dx, dy


def normalized(document: Document, size: float = 24.0) -> Document:
    """Returns the document with the view box (0, 0, size, size), its content scaled evenly."""
    matrix = fitted(document.view_box, size, size)
    children = tuple(_transformed(child, matrix) for child in document.children)
    return Document((0.0, 0.0, size, size), children)


def without_arcs(document: Document) -> Document:
    """Returns the document with arcs replaced by cubic curves, one per quarter turn or less.

    Their error is under 0.03 % of the radius.
    """

    def convert(child: Shape | Group) -> Shape | Group:
        if isinstance(child, Group):
            return replace(child, children=tuple(convert(inner) for inner in child.children))
        return replace(child, subpaths=tuple(cubic_subpath(path) for path in child.subpaths))

    return replace(document, children=tuple(convert(child) for child in document.children))


def cubic_subpath(subpath: Subpath) -> Subpath:
    """Returns the subpath with arcs replaced by cubic curves."""
    if not any(isinstance(segment, Arc) for segment in subpath.segments):
        return subpath
    segments: list[Segment] = []
    x, y = subpath.x, subpath.y
    for segment in subpath.segments:
        segments += arc_curves(x, y, segment) if isinstance(segment, Arc) else [segment]
        x, y = segment.x, segment.y
    return replace(subpath, segments=tuple(segments))


def arc_curves(x: float, y: float, arc: Arc) -> list[Segment]:
    """Returns an arc from (x, y) as cubic curves, one per quarter turn or less.

    SVG 2, appendix B.2: from the end points to the center, then a curve per equal part.
    """
    rx, ry = abs(arc.rx), abs(arc.ry)
    if rx == 0 or ry == 0 or (x, y) == (arc.x, arc.y):
        return [Line(arc.x, arc.y)]
    phi = math.radians(arc.rotation)
    cos, sin = math.cos(phi), math.sin(phi)
    # Half the chord, in the frame in which the ellipse is a unit circle.
    dx, dy = (x - arc.x) / 2, (y - arc.y) / 2
    u, v = (cos * dx + sin * dy) / rx, (cos * dy - sin * dx) / ry
    length = math.hypot(u, v)
    if length > 1:
        rx, ry, u, v, length = rx * length, ry * length, u / length, v / length, 1.0
    away = math.sqrt(max(0.0, 1 - length * length)) / length
    if arc.large == arc.sweep:
        away = -away
    center_u, center_v = away * v, -away * u
    start = math.atan2(v - center_v, u - center_u)
    turn = math.atan2(-v - center_v, -u - center_u) - start
    if arc.sweep and turn < 0:
        turn += math.tau
    elif not arc.sweep and turn > 0:
        turn -= math.tau
    middle_x, middle_y = (x + arc.x) / 2, (y + arc.y) / 2

    def point(u: float, v: float) -> tuple[float, float]:
        u, v = rx * (u + center_u), ry * (v + center_v)
        return middle_x + cos * u - sin * v, middle_y + sin * u + cos * v

    number = max(1, math.ceil(abs(turn) / (math.pi / 2) - 1e-9))
    handle = 4 / 3 * math.tan(turn / number / 4)
    curves: list[Segment] = []
    for part in range(number):
        a, b = start + turn * part / number, start + turn * (part + 1) / number
        first = point(math.cos(a) - handle * math.sin(a), math.sin(a) + handle * math.cos(a))
        second = point(math.cos(b) + handle * math.sin(b), math.sin(b) - handle * math.cos(b))
        end = (arc.x, arc.y) if part == number - 1 else point(math.cos(b), math.sin(b))
        curves.append(Cubic(*first, *second, *end))
    return curves


def transformed_point(matrix: Matrix, x: float, y: float) -> tuple[float, float]:
    """Returns a point after a transform."""
    a, b, c, d, e, f = matrix
    return a * x + c * y + e, b * x + d * y + f


def similarity_scale(matrix: Matrix) -> float | None:
    """Returns by how much a transform scales all lengths; None where that depends on direction."""
    a, b, c, d, _, _ = matrix
    scale = math.hypot(a, b)
    even = math.isclose(scale, math.hypot(c, d), rel_tol=1e-6)
    return scale if even and abs(a * c + b * d) <= 1e-6 * scale * scale else None


def transformed_subpath(subpath: Subpath, matrix: Matrix) -> Subpath:
    """Returns a subpath after a transform; arcs become curves where circles would not stay so."""
    scale = similarity_scale(matrix)
    if scale is None:
        subpath = cubic_subpath(subpath)
    a, b, c, d, _, _ = matrix
    mirrored = a * d - b * c < 0
    angle = math.degrees(math.atan2(b, a))
    segments: list[Segment] = []
    for segment in subpath.segments:
        end = transformed_point(matrix, segment.x, segment.y)
        if isinstance(segment, Line):
            segments.append(Line(*end))
        elif isinstance(segment, Cubic):
            first = transformed_point(matrix, segment.x1, segment.y1)
            second = transformed_point(matrix, segment.x2, segment.y2)
            segments.append(Cubic(*first, *second, *end))
        else:
            assert scale is not None
            rotation = angle + (-segment.rotation if mirrored else segment.rotation)
            rotation = math.remainder(rotation, 180)  # an ellipse is the same upside down
            radii = segment.rx * scale, segment.ry * scale
            sweep = segment.sweep != mirrored
            segments.append(Arc(*radii, rotation, segment.large, sweep, *end))
    start = transformed_point(matrix, subpath.x, subpath.y)
    return Subpath(*start, tuple(segments), subpath.closed)


def transformed_stroke(stroke: Stroke, matrix: Matrix) -> Stroke:
    """Returns a stroke after a transform.

    Raises:
        ValueError: The transform does not scale evenly, so that no one width is left.
    """
    scale = similarity_scale(matrix)
    if scale is None:
        raise ValueError("a stroke is scaled unevenly; outline it, or scale it evenly")
    return replace(stroke, width=stroke.width * scale)


def transformed_shape(shape: Shape, matrix: Matrix) -> Shape:
    """Returns a shape after a transform.

    Raises:
        ValueError: It is stroked, and the transform does not scale evenly.
    """
    paths = tuple(transformed_subpath(path, matrix) for path in shape.subpaths)
    stroke = shape.stroke and transformed_stroke(shape.stroke, matrix)
    return replace(shape, subpaths=paths, stroke=stroke)


def _transformed(child: Shape | Group, matrix: Matrix) -> Shape | Group:
    if isinstance(child, Shape):
        return transformed_shape(child, matrix)
    return replace(child, children=tuple(_transformed(each, matrix) for each in child.children))
