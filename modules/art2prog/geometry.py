"""Geometry of outlines, in cells: arcs, areas, distances."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .layers import Edge, Outline, Point

Points = NDArray[np.float64]  # (n, 2), corners of a polygon

EPS = 1e-6
APART = 0.25  # closer layers may share a pixel (of canvases down to 6 pixels per cell)
CHORDS = 16  # of an arc, for distances and areas


def effective_radius(start: Point, edge: Edge) -> float:
    """Returns the radius of an arc: never less than half the chord."""
    return max(edge.radius, half_chord(start, edge))


def half_chord(start: Point, edge: Edge) -> float:
    """Returns half the distance of the ends of an edge."""
    return math.dist(start, (edge.x, edge.y)) / 2


def arc_center(start: Point, edge: Edge) -> tuple[tuple[float, float], float]:
    """Returns center and radius of an arc, in cells."""
    (x0, y0), (x1, y1) = start, (edge.x, edge.y)
    chord = 2 * half_chord(start, edge)
    radius = effective_radius(start, edge)
    away = math.sqrt(max(0.0, radius * radius - chord * chord / 4)) / chord
    if not edge.clockwise:
        away = -away
    # Clockwise, y being down, the center of a minor arc is to the right of who walks along it.
    return ((x0 + x1) / 2 - away * (y1 - y0), (y0 + y1) / 2 + away * (x1 - x0)), radius


def arc_sweep(start: Point, edge: Edge) -> float:
    """Returns the angle of a minor arc, above 0 and at most pi."""
    return 2 * math.asin(half_chord(start, edge) / effective_radius(start, edge))


def turn_to(
    center: tuple[float, float],
    start: tuple[float, float],
    point: tuple[float, float],
    clockwise: bool,
) -> float:
    """Returns by which angle one turns from `start` to `point`, in [0, tau)."""
    angles = [math.atan2(y - center[1], x - center[0]) for x, y in (start, point)]
    turn = angles[1] - angles[0] if clockwise else angles[0] - angles[1]
    turn %= math.tau
    return 0.0 if turn > math.tau - EPS else turn


def grid_points(center: tuple[float, float], radius: float, grid: int) -> list[Point]:
    """Returns the grid points on a circle."""
    return [
        (x, y)
        for x in range(grid)
        for y in range(grid)
        if abs(math.dist(center, (x, y)) - radius) < EPS
    ]


def polyline(outline: Outline) -> Points:
    """Returns points along a closed outline in cells, (n, 2): arcs cut into 16 chords."""
    closed = outline.closed()
    parts = [edge_points(*pair) for pair in zip(closed.vertices, closed.edges, strict=False)]
    return np.concatenate(parts) if parts else np.array([closed.start], dtype=np.float64)


@lru_cache(1 << 16)
def edge_points(start: Point, edge: Edge) -> Points:
    """Returns points along an edge but for its end, (n, 2); not to be written to."""
    if edge.is_straight:
        return np.array([start], dtype=np.float64)
    (cx, cy), radius = arc_center(start, edge)
    sweep = arc_sweep(start, edge) * (1 if edge.clockwise else -1)
    first = math.atan2(start[1] - cy, start[0] - cx)
    angles = first + sweep * np.arange(CHORDS) / CHORDS
    points = np.stack((cx + radius * np.cos(angles), cy + radius * np.sin(angles)), axis=1)
    points[0] = start
    return points


def signed_area(points: Points) -> float:
    """Returns the area of a polygon (n, 2), positive if it goes clockwise (y being down)."""
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def are_apart(a: Points, b: Points, distance: float = APART) -> bool:
    """Whether two polygons (n, 2) are so many cells or more from each other."""
    gap = np.maximum(a.min(axis=0) - b.max(axis=0), b.min(axis=0) - a.max(axis=0)).max()
    if gap >= distance:
        return True
    if contains(a, b[0]) or contains(b, a[0]) or _cross(a, b):
        return False
    a_next, b_next = np.roll(a, -1, axis=0), np.roll(b, -1, axis=0)
    nearest = min(_distances(a, b, b_next).min(), _distances(b, a, a_next).min())
    return bool(nearest >= distance)


def contains(polygon: Points, point: Points) -> bool:
    """Whether a point (2,) lies inside of a polygon (n, 2), by the even-odd rule."""
    following = np.roll(polygon, -1, axis=0)
    spans = (polygon[:, 1] > point[1]) != (following[:, 1] > point[1])
    start, end = polygon[spans], following[spans]
    x = start[:, 0] + (point[1] - start[:, 1]) / (end[:, 1] - start[:, 1]) * (
        end[:, 0] - start[:, 0]
    )
    return bool((x > point[0]).sum() % 2)


def _side(start: Points, end: Points, point: Points) -> Points:
    """Returns on which side of a line points lie, by sign."""
    along, away = end - start, point - start
    side: Points = along[..., 0] * away[..., 1] - along[..., 1] * away[..., 0]
    return side


def _cross(a: Points, b: Points) -> bool:
    """Whether edges of two polygons cross."""
    a0, a1 = a[:, None], np.roll(a, -1, axis=0)[:, None]
    b0, b1 = b[None], np.roll(b, -1, axis=0)[None]
    over_a = _side(a0, a1, b0) * _side(a0, a1, b1) < 0
    over_b = _side(b0, b1, a0) * _side(b0, b1, a1) < 0
    return bool((over_a & over_b).any())


def _distances(points: Points, starts: Points, ends: Points) -> Points:
    """Returns the distance of each point from each edge, (n, edges)."""
    along = ends - starts
    length = np.maximum((along * along).sum(axis=-1), EPS)
    away = points[:, None] - starts
    share = ((away * along).sum(axis=-1) / length).clip(0, 1)
    away -= share[..., None] * along
    distances: Points = np.hypot(away[..., 0], away[..., 1])
    return distances


def chord_points(start: Point, edge: Edge, grid: int, tolerance: float) -> Points:
    """Returns points along an edge whose chords are independent of how an outline is cut.

    A straight edge is cut at each grid point on it, an arc at grid points and at angles that depend
    on its circle alone, so that joined edges have the same chords, to the last bit.

    Args:
        start: Where the edge starts.
        edge: The edge.
        grid: Points per axis.
        tolerance: Largest distance of an arc from its chords, in cells.
    """
    if edge.is_straight:
        dx, dy = edge.x - start[0], edge.y - start[1]
        pieces = math.gcd(dx, dy)
        steps = np.arange(pieces + 1)[:, None]
        return np.array(start) + steps * np.array([dx // pieces, dy // pieces], dtype=np.float64)
    center, radius = arc_center(start, edge)
    # The same circle from other ends, but for rounding.
    center, radius = (round(center[0], 9), round(center[1], 9)), round(radius, 9)
    sweep = arc_sweep(start, edge)
    number = math.ceil(math.pi / math.acos(1 - min(tolerance / radius, 1.0)))
    around = [math.tau * k / number for k in range(number)]
    marks = {(center[0] + radius * math.cos(a), center[1] + radius * math.sin(a)) for a in around}
    marks |= {(float(x), float(y)) for x, y in grid_points(center, radius, grid)}
    turns = {turn_to(center, start, mark, edge.clockwise): mark for mark in marks}
    inner = [mark for turn, mark in sorted(turns.items()) if EPS < turn < sweep - EPS]
    return np.array([start, *inner, (edge.x, edge.y)], dtype=np.float64)


def is_simple(outline: Outline, distance: float = APART) -> bool:
    """Whether a closed outline neither crosses nor nearly touches itself.

    Args:
        outline: Any.
        distance: Least distance of a vertex from edges that do not end there, in cells.
    """
    closed = outline.closed()
    vertices = closed.vertices[:-1]
    if len(set(vertices)) < len(vertices) or len(vertices) < 2:
        return False
    points = polyline(closed)
    following = np.roll(points, -1, axis=0)
    sizes = [1 if edge.is_straight else CHORDS for edge in closed.edges]
    owner = np.repeat(np.arange(len(vertices)), sizes)  # edge of each chord
    corners = np.array(vertices, dtype=np.float64)
    distances = _distances(corners, points, following)
    number = np.arange(len(vertices))[:, None]
    is_foreign = (owner != number) & (owner != (number - 1) % len(vertices))
    if (distances[is_foreign] < distance).any():
        return False
    return not _cross(points, points)
