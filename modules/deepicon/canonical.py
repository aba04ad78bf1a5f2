"""One of the many ways to write the same outline, always the same one.

A closed outline may start at any of its corners and run either way round, an open one at either
end. A network that learns coordinates by regression would learn the mean of all of these.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..svg import Cubic, Line, Subpath
from ..svg.document import Segment

DIGITS = 4  # of coordinates that are compared: what differs less is the same place
SAME = 10.0**-DIGITS
Point = tuple[float, float]


def canonical_subpath(subpath: Subpath) -> Subpath:
    """Returns the same outline in its canonical form, which a second call leaves as it is.

    A closed outline starts at its top-most, then left-most corner and runs clockwise as seen (y
    points down); the straight line that closes it is left to `Z`. An open one starts at the upper,
    then left end. What is drawn is the same, but for the fill of a shape by the nonzero rule, which
    depends on the directions of its subpaths.

    Args:
        subpath: Without arcs, of at least one segment.
    """
    subpath = _without_points(subpath)
    if subpath.closed:
        return _canonical_ring(subpath)
    start, end = _place((subpath.x, subpath.y)), _place(_end(subpath.segments[-1]))
    if end < start:
        return reversed_subpath(subpath)
    return subpath if end > start else _clockwise(subpath)


def reversed_subpath(subpath: Subpath) -> Subpath:
    """Returns an outline drawn from its end to its start; closed, it keeps its start."""
    segments = _closed_segments(subpath) if subpath.closed else list(subpath.segments)
    points = [(subpath.x, subpath.y), *map(_end, segments)]
    backwards = [
        _reversed(segment, start) for segment, start in zip(segments, points, strict=False)
    ][::-1]
    if subpath.closed:
        return replace(subpath, segments=_without_closing_line(backwards, points[0]))
    return Subpath(*points[-1], tuple(backwards))


def _canonical_ring(subpath: Subpath) -> Subpath:
    segments = _closed_segments(subpath)
    starts = [(subpath.x, subpath.y), *map(_end, segments[:-1])]
    first = min(map(_place, starts))
    rings = []  # more than one where the outline comes back to its first corner
    for place, start in enumerate(starts):
        if _place(start) == first:
            turned = _without_closing_line([*segments[place:], *segments[:place]], start)
            rings.append(_clockwise(Subpath(*start, turned, closed=True)))
    return min(rings, key=_numbers)


def _clockwise(subpath: Subpath) -> Subpath:
    """Returns an outline that ends where it starts, or its reverse, whichever is clockwise."""
    backwards = reversed_subpath(subpath)
    area = _area(subpath)
    if abs(area) > SAME:
        return subpath if area > 0 else backwards
    # Without an inside no direction is clockwise: take the one whose numbers come first.
    return min(subpath, backwards, key=_numbers)


def _without_points(subpath: Subpath) -> Subpath:
    """Returns an outline without straight lines of no length; a dot keeps one."""
    kept: list[Segment] = []
    current = (subpath.x, subpath.y)
    for segment in subpath.segments:
        if not (isinstance(segment, Line) and _same(_end(segment), current)):
            kept.append(segment)
            current = _end(segment)
    return replace(subpath, segments=tuple(kept or subpath.segments[:1]))


def _closed_segments(subpath: Subpath) -> list[Segment]:
    """Returns the segments of a closed subpath with the straight line that `Z` draws."""
    segments = list(subpath.segments)
    start = (subpath.x, subpath.y)
    return segments if _same(_end(segments[-1]), start) else [*segments, Line(*start)]


def _without_closing_line(segments: Sequence[Segment], start: Point) -> tuple[Segment, ...]:
    last = segments[-1]
    redundant = isinstance(last, Line) and _same(_end(last), start) and len(segments) > 1
    return tuple(segments[:-1]) if redundant else tuple(segments)


def _reversed(segment: Segment, start: Point) -> Segment:
    if isinstance(segment, Cubic):
        return Cubic(segment.x2, segment.y2, segment.x1, segment.y1, *start)
    return Line(*start)


def _area(subpath: Subpath) -> float:
    """Returns about twice the area, positive clockwise as seen; control points count as corners."""
    points = [(subpath.x, subpath.y)]
    for segment in subpath.segments:
        if isinstance(segment, Cubic):
            points += [(segment.x1, segment.y1), (segment.x2, segment.y2)]
        points.append(_end(segment))
    following = [*points[1:], points[0]]
    return sum(x * v - y * u for (x, y), (u, v) in zip(points, following, strict=True))


def _end(segment: Segment) -> Point:
    return segment.x, segment.y


def _place(point: Point) -> tuple[float, float]:
    """Returns what orders points from top to bottom, then from left to right."""
    return round(point[1], DIGITS), round(point[0], DIGITS)


def _numbers(subpath: Subpath) -> list[tuple[float, ...]]:
    return [tuple(round(value, DIGITS) for value in segment) for segment in subpath.segments]


def _same(one: Point, other: Point) -> bool:
    return abs(one[0] - other[0]) < SAME and abs(one[1] - other[1]) < SAME
