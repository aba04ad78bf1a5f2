"""Paths as polygons: curves cut into chords, strokes as pieces whose union is what they cover.

A stroke becomes one rectangle per chord, one piece per join and two caps, all of the same
orientation, so that the nonzero rule unites them. They overlap; the coverage of `polygon_raster`
counts every sample once.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .document import Cubic, Shape, Stroke, Subpath
from .geometry import cubic_subpath

Points = NDArray[np.float64]  # (n, 2)
Edges = NDArray[np.float64]  # (n, 4): x and y of the start, x and y of the end
MAX_CHORDS = 200  # of one curve, however large
SAME = 1e-6  # pixels between points that differ by rounding: a chord needs a direction


class Outline(NamedTuple):
    """The border of one layer.

    Attributes:
        edges: (n, 4) float64: x, y of the start and x, y of the end.
        even_odd: Whether inside is an odd winding number, not one that is not 0.
    """

    edges: Edges
    even_odd: bool


def flattened(subpath: Subpath, tolerance: float) -> tuple[Points, NDArray[np.bool_]]:
    """Returns points along a subpath, and which of them are corners, not points inside a curve.

    Points that repeat the one before are left out. A closed subpath does not repeat its start.

    Args:
        subpath: In pixels. Its arcs are cut as the curves that approximate them.
        tolerance: Largest distance of a curve from its chords.
    """
    parts: list[Points] = [np.array([[subpath.x, subpath.y]])]
    corner = [True]
    for segment in cubic_subpath(subpath).segments:
        start = parts[-1][-1]
        if isinstance(segment, Cubic):
            control = np.array([start, segment[:2], segment[2:4], segment[4:]])
            points = _chords(control, tolerance)
        else:
            points = np.array([segment], dtype=np.float64)
        parts.append(points)
        corner += [False] * (len(points) - 1) + [True]
    points, corners = np.concatenate(parts), np.array(corner)
    differs = np.append(True, (np.abs(np.diff(points, axis=0)) > SAME).any(axis=1))
    points, corners = points[differs], corners[differs]
    if subpath.closed and len(points) > 1 and np.abs(points[0] - points[-1]).max() <= SAME:
        points, corners = points[:-1], corners[:-1]
    return points, corners


def shape_outlines(shape: Shape, tolerance: float) -> list[Outline]:
    """Returns what the fill and the stroke of a shape cover, in this order, each if it has one."""
    outlines = []
    if shape.fill:
        polygons = [flattened(subpath, tolerance)[0] for subpath in shape.subpaths]
        edges = np.concatenate([_edges(points[None]) for points in polygons])
        outlines.append(Outline(edges, shape.fill.rule == "evenodd"))
    if shape.stroke:
        parts = [_subpath_stroke(subpath, shape.stroke, tolerance) for subpath in shape.subpaths]
        outlines.append(Outline(np.concatenate(parts), False))
    return outlines


def _subpath_stroke(subpath: Subpath, stroke: Stroke, tolerance: float) -> Edges:
    half = stroke.width / 2
    # Of round joins and caps: the chord of an angle is off by half * (1 - cos(angle / 2)).
    step = 2 * math.acos(max(1 - tolerance / half, math.cos(math.pi / 8)))
    points, corners = flattened(subpath, tolerance)
    if len(points) == 1:
        return _pieces(_dot(points[0], half, stroke, step))
    if subpath.closed:
        starts, ends, middles, corners = points, np.roll(points, -1, axis=0), points, corners
    else:
        starts, ends, middles, corners = points[:-1], points[1:], points[1:-1], corners[1:-1]
    along = ends - starts
    along *= half / np.hypot(along[:, 0], along[:, 1])[:, None]
    side = np.stack((-along[:, 1], along[:, 0]), axis=1)
    edges = [_pieces(np.stack((starts - side, ends - side, ends + side, starts + side), axis=1))]
    # Of the two normals at a join, those on the outer side.
    before, after = (np.roll(side, 1, axis=0), side) if subpath.closed else (side[:-1], side[1:])
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turn = np.arctan2(cross + 0.0, (before * after).sum(axis=1))  # half a turn is never negative
    outer = np.where(turn < 0, 1.0, -1.0)[:, None]
    before, after = outer * before, outer * after
    edges.append(_pieces(np.stack((middles, middles + before, middles + after), axis=1)))
    for i in np.flatnonzero(corners | (np.abs(turn) > step)):
        if stroke.join == "round" or not corners[i]:
            edges.append(_pieces(middles[i] + _fan(before[i], turn[i], step)))
        elif stroke.join == "miter" and math.cos(turn[i] / 2) * stroke.miter_limit >= 1:
            tip = (before[i] + after[i]) / (1 + math.cos(turn[i]))
            edges.append(_pieces(middles[i] + np.stack((before[i], tip, after[i]))[None]))
    if not subpath.closed:
        caps = ((points[0], side[0], -along[0]), (points[-1], -side[-1], along[-1]))
        for point, beside, outwards in caps:
            if stroke.cap == "round":
                edges.append(_pieces(point + _fan(beside, math.pi, step)))
            elif stroke.cap == "square":
                square = (beside, beside + outwards, outwards - beside, -beside)
                edges.append(_pieces(point + np.stack(square)[None]))
    return np.concatenate(edges)


def _fan(first: NDArray[np.float64], turn: float, step: float) -> NDArray[np.float64]:
    """Returns points on a circle around 0 from one of them on, as a polygon (1, corners, 2)."""
    number = max(1, math.ceil(abs(turn) / step))
    angle = np.arctan2(first[1], first[0]) + np.linspace(0, turn, number + 1)
    return math.hypot(*first) * np.stack((np.cos(angle), np.sin(angle)), axis=1)[None]


def _dot(
    point: NDArray[np.float64], half: float, stroke: Stroke, step: float
) -> NDArray[np.float64]:
    """Returns what the caps of a subpath without length cover, polygons (n, corners, 2)."""
    if stroke.cap == "butt":
        return np.zeros((0, 4, 2))
    if stroke.cap == "square":
        return point + half * np.array([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]])
    return point + _fan(np.array([half, 0.0]), math.tau, step)


def _chords(control: Points, tolerance: float) -> Points:
    """Returns points of a cubic curve (4, 2) without its start."""
    second = control[:-2] - 2 * control[1:-1] + control[2:]
    bend = float(np.hypot(second[:, 0], second[:, 1]).max())
    # The second derivative is at most 6 times that; a chord of n is off by an eighth of it / n^2.
    number = min(max(1, math.ceil(math.sqrt(0.75 * bend / tolerance))), MAX_CHORDS)
    t = np.linspace(0, 1, number + 1)[1:, None]
    s = 1 - t
    weights = np.concatenate((s**3, 3 * s * s * t, 3 * s * t * t, t**3), axis=1)
    points: Points = weights @ control
    points[-1] = control[-1]
    return points


def _pieces(polygons: NDArray[np.float64]) -> Edges:
    """Returns the edges of polygons (n, corners, 2), all of them turned the same way."""
    following = np.roll(polygons, -1, axis=1)
    area = (polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0]).sum(axis=1)
    return _edges(np.where((area < 0)[:, None, None], polygons[:, ::-1], polygons))


def _edges(polygons: NDArray[np.float64]) -> Edges:
    """Returns the edges of polygons (n, corners, 2)."""
    return np.concatenate((polygons, np.roll(polygons, -1, axis=1)), axis=2).reshape(-1, 4)
