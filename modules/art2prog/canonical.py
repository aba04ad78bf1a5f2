"""One program for one picture: the canonical form, without which exact matches mean nothing.

- An outline is closed explicitly, goes clockwise and starts at its vertex of the least (y, x). Its
  edges are as long as they can be: edges in line are joined, arcs of one circle are cut again from
  the start of their run, each part as long as a minor arc may be. A radius of no more than half the
  chord is written `half`.
- A layer that touches none below it is blended by normal. Layers whose order cannot be seen - far
  apart, or all multiplied - are sorted by start, colour and edges.
- Lines come in the order of layers, each blended as soon as it is filled, so that pointers follow.

Pictures stay the same: to the last bit, but for layers that are reordered, whose sums are rounded
in another order. Programs whose layers are simple outlines and which hide no vertex have one form;
other pictures may have several programs that no canonical form can bring together.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from .geometry import (
    EPS,
    arc_center,
    arc_sweep,
    are_apart,
    effective_radius,
    grid_points,
    half_chord,
    polyline,
    signed_area,
    turn_to,
)
from .language import HALF, Language, Program
from .layers import Edge, Layer, Outline, Picture, Point, picture_of, program_of


def canonicalise(program: Program, language: Language) -> Program:
    """Returns the canonical program of a picture.

    Args:
        program: A checked program.
        language: Its language.
    """
    return program_of(canonical_picture(picture_of(program), language))


def canonical_picture(picture: Picture, language: Language) -> Picture:
    """Returns layers in canonical order, with canonical outlines and modes."""
    layers = [
        replace(layer, outline=canonical_outline(layer.outline, language)) for layer in picture
    ]
    shapes = [polyline(layer.outline) for layer in layers]
    apart = [[i == j or are_apart(shapes[i], shapes[j]) for j in range(len(layers))]
             for i in range(len(layers))]  # fmt: skip
    # A layer that touches none below it may be multiplied as well as not.
    multiplied = [
        layer.mode == "multiply" or all(apart[place][:place]) for place, layer in enumerate(layers)
    ]
    left, order = list(range(len(layers))), []
    while left:
        free = [
            j for place, j in enumerate(left)
            if all(apart[i][j] or (multiplied[i] and multiplied[j]) for i in left[:place])
        ]  # fmt: skip
        order.append(min(free, key=lambda j: _sort_key(layers[j])))
        left.remove(order[-1])
    found: list[Layer] = []
    for place, number in enumerate(order):
        layer = layers[number]
        mode = "multiply" if multiplied[number] else layer.mode
        if all(apart[number][other] for other in order[:place]):
            mode = "normal"
        found.append(replace(layer, mode=mode))
    return tuple(found)


def _sort_key(layer: Layer) -> tuple[int, int, int, tuple[Edge, ...], int]:
    x, y = layer.outline.start
    opacity = -1 if layer.opacity is None else layer.opacity
    return y, x, layer.color, layer.outline.edges, opacity


def canonical_outline(outline: Outline, language: Language) -> Outline:
    """Returns a closed outline in canonical form.

    An outline of no area, or one that meets itself in a vertex, keeps what it covers, but two such
    outlines that cover the same may stay different.
    """
    closed = outline.closed()
    forward = _Loop(closed.start, closed.edges)
    turned = _reversed(forward)
    area = signed_area(polyline(closed))
    loops = [forward, turned] if abs(area) < EPS else [forward if area > 0 else turned]
    starts = [rotation for loop in loops for rotation in _rotations(_merged(loop, language))]
    return min(starts, key=lambda found: (found.start[1], found.start[0], found.edges))


class _Loop:
    """Edges of a closed outline; edge k goes from vertex k to vertex k + 1."""

    def __init__(self, start: Point, edges: Sequence[Edge]) -> None:
        ends = [(edge.x, edge.y) for edge in edges]
        self.vertices = [start, *ends[:-1]]
        self.edges = [
            edge if edge.is_straight or effective_radius(v, edge) > half_chord(v, edge) + EPS
            else replace(edge, radius=HALF)
            for v, edge in zip(self.vertices, edges, strict=True)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.edges)


def _reversed(loop: _Loop) -> _Loop:
    """Returns the same loop in the other direction."""
    edges = [
        Edge(x, y, edge.radius, edge.clockwise if edge.is_straight else not edge.clockwise)
        for (x, y), edge in zip(loop.vertices, loop.edges, strict=True)
    ]
    return _Loop(loop.vertices[0], edges[::-1])


def _rotations(loop: _Loop) -> list[Outline]:
    """Returns the loop, started at each vertex of the least (y, x)."""
    first = min((y, x) for x, y in loop.vertices)
    return [
        Outline((x, y), (*loop.edges[place:], *loop.edges[:place]))
        for place, (x, y) in enumerate(loop.vertices)
        if (y, x) == first
    ]


def _merged(loop: _Loop, language: Language) -> _Loop:
    """Joins edges in line, and cuts arcs of one circle anew."""
    corners = [k for k in range(len(loop)) if not _continues(loop, k - 1, k)]
    if not corners:
        return _full_circle(loop, language)
    edges: list[Edge] = []
    runs = zip(corners, [*corners[1:], corners[0] + len(loop)], strict=True)
    for first, after in runs:
        run = [k % len(loop) for k in range(first, after)]
        start, last = loop.vertices[run[0]], loop.edges[run[-1]]
        if len(run) == 1 or last.is_straight:
            edges.append(last)
            continue
        center, radius = arc_center(start, loop.edges[run[0]])
        sweep = sum(arc_sweep(loop.vertices[k], loop.edges[k]) for k in run)
        edges += _cut(start, (last.x, last.y), center, radius, sweep, last.clockwise, language)
    return _Loop(loop.vertices[corners[0]], edges)


def _continues(loop: _Loop, before: int, after: int) -> bool:
    """Whether edge `after` goes on along the line or the circle of edge `before`."""
    a, b = loop.edges[before], loop.edges[after]
    if len(loop) == 1 or a.is_straight != b.is_straight:
        return False
    (x0, y0), (x1, y1) = loop.vertices[before], loop.vertices[after]
    if a.is_straight:
        ax, ay, bx, by = x1 - x0, y1 - y0, b.x - x1, b.y - y1
        return ax * by == ay * bx and ax * bx + ay * by > 0
    (ca, ra), (cb, rb) = arc_center((x0, y0), a), arc_center((x1, y1), b)
    return a.clockwise == b.clockwise and abs(ra - rb) < EPS and math.dist(ca, cb) < EPS


def _full_circle(loop: _Loop, language: Language) -> _Loop:
    """Cuts a circle anew, from its grid point of the least (y, x)."""
    center, radius = arc_center(loop.vertices[0], loop.edges[0])
    sweeps = [arc_sweep(v, edge) for v, edge in zip(loop.vertices, loop.edges, strict=True)]
    if abs(sum(sweeps) - math.tau) > EPS:  # around more than once
        return loop
    points = grid_points(center, radius, language.grid)
    if not _is_token(radius, language):  # by halves only
        inside = set(points)
        points = [
            (x, y) for x, y in points
            if (round(2 * center[0]) - x, round(2 * center[1]) - y) in inside
        ]  # fmt: skip
    start = min(points, key=lambda point: (point[1], point[0]))
    clockwise = loop.edges[0].clockwise
    return _Loop(start, _cut(start, start, center, radius, math.tau, clockwise, language))


def _cut(
    start: Point,
    end: Point,
    center: tuple[float, float],
    radius: float,
    sweep: float,
    clockwise: bool,
    language: Language,
) -> list[Edge]:
    """Cuts an arc into minor ones, each as long as can be, from its start."""
    token = _is_token(radius, language)
    turns = {turn_to(center, start, point, clockwise): point
             for point in grid_points(center, radius, language.grid)}  # fmt: skip
    stops = sorted((turn, point) for turn, point in turns.items() if EPS < turn < sweep - EPS)
    stops.append((sweep, end))
    edges: list[Edge] = []
    done = 0.0
    while done < sweep - EPS:
        reach = [
            (turn, point) for turn, point in stops
            if done + EPS < turn < done + math.pi + EPS
            and (token or abs(turn - done - math.pi) < EPS)
        ]  # fmt: skip
        turn, point = reach[-1]
        is_half = abs(turn - done - math.pi) < EPS
        edges.append(Edge(*point, HALF if is_half else round(radius), clockwise))
        done = turn
    return edges


def _is_token(radius: float, language: Language) -> bool:
    return abs(radius - round(radius)) < EPS and round(radius) in language.radii
