"""Elements that draw, as subpaths in their own coordinates."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .document import Arc, Box, Cubic, Line, Segment, Subpath
from .values import length, number_list

SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
COMMAND = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])([^MmZzLlHhVvCcSsQqTtAa]*+)")
NUMBERS_OF = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2}


def outline(name: str, attributes: Mapping[str, str], view_box: Box) -> list[Subpath]:
    """Returns the subpaths of an element in its own coordinates, none if it draws nothing.

    Args:
        name: One of `SHAPES`.
        attributes: Of the element.
        view_box: What lengths in per cent refer to.

    Raises:
        ValueError: An attribute is not what it must be.
    """

    def lengths(names: str) -> list[float]:
        return attribute_lengths(attributes, names, view_box)

    if name == "path":
        return _path(attributes.get("d", ""))
    if name in ("polyline", "polygon"):
        numbers = number_list(attributes.get("points", ""), "points")
        if len(numbers) % 2:
            raise ValueError(f"points: {len(numbers)} numbers are no pairs")
        corners = [Line(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        closed = name == "polygon"
        return [Subpath(*corners[0], tuple(corners[1:]), closed)] if corners else []
    if name == "line":
        x1, y1, x2, y2 = lengths("x1 y1 x2 y2")
        return [Subpath(x1, y1, (Line(x2, y2),))]
    if name == "rect":
        x, y, width, height = lengths("x y width height")
        return _rectangle(x, y, width, height, *_radii(attributes, lengths("rx ry")))
    cx, cy = lengths("cx cy")
    rx, ry = lengths("r r" if name == "circle" else "rx ry")
    if name == "ellipse":
        rx, ry = _radii(attributes, [rx, ry])
    if rx <= 0 or ry <= 0:
        return []
    halves = (
        Arc(rx, ry, 0.0, False, True, cx - rx, cy),
        Arc(rx, ry, 0.0, False, True, cx + rx, cy),
    )
    return [Subpath(cx + rx, cy, halves, closed=True)]


def _radii(attributes: Mapping[str, str], radii: list[float]) -> tuple[float, float]:
    """Returns both radii; one that is not given is the other."""
    rx, ry = radii
    rx = ry if attributes.get("rx", "auto") == "auto" else rx
    return rx, rx if attributes.get("ry", "auto") == "auto" else ry


def _rectangle(
    x: float, y: float, width: float, height: float, rx: float, ry: float
) -> list[Subpath]:
    if width <= 0 or height <= 0:
        return []
    rx, ry = min(max(rx, 0.0), width / 2), min(max(ry, 0.0), height / 2)
    right, bottom = x + width, y + height
    if rx == 0 or ry == 0:
        return [Subpath(x, y, (Line(right, y), Line(right, bottom), Line(x, bottom)), True)]
    segments: list[Segment] = []
    current = (x + rx, y)
    for edge, corner in (
        (Line(right - rx, y), (right, y + ry)),
        (Line(right, bottom - ry), (right - rx, bottom)),
        (Line(x + rx, bottom), (x, bottom - ry)),
        (Line(x, y + ry), (x + rx, y)),
    ):
        if edge != current:
            segments.append(edge)
        segments.append(Arc(rx, ry, 0.0, False, True, *corner))
        current = corner
    return [Subpath(x + rx, y, tuple(segments), closed=True)]


def _path(data: str) -> list[Subpath]:
    import svgelements

    if data.strip() and data.lstrip()[0] not in "Mm":
        raise ValueError(f"path data {data[:40]!r}: the first command is no M")
    for command, arguments in COMMAND.findall(data):
        _check_arguments(command, arguments)
    try:
        parsed = svgelements.Path(data)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"path data {data[:40]!r}: not what its commands need") from error
    paths: list[Subpath] = []
    segments: list[Segment] = []  # of the last subpath

    def finish(closed: bool = False) -> None:
        if paths and not paths[-1].closed:
            paths[-1] = replace(paths[-1], segments=tuple(segments), closed=closed)
        segments.clear()

    for segment in parsed:
        if isinstance(segment, svgelements.Move):
            finish()
            paths.append(Subpath(segment.end.x, segment.end.y))
        elif isinstance(segment, svgelements.Close):
            finish(closed=True)
        else:
            if paths[-1].closed:  # drawing goes on from where the last subpath started
                paths.append(Subpath(paths[-1].x, paths[-1].y))
            segments.append(_segment(segment))
    finish()
    return paths


def _check_arguments(command: str, arguments: str) -> None:
    """Refuses what is not the numbers that a command takes, once or several times."""
    number = len(number_list(arguments, f"path data {command}"))
    kind = command.upper()
    if kind == "A":  # its flags may stand together with the number that follows
        fits = number >= 5
    elif kind == "Z":
        fits = number == 0
    else:
        fits = number > 0 and number % NUMBERS_OF[kind] == 0
    if not fits:
        raise ValueError(f"path data {command}{arguments[:40]}: {number} numbers")


def _segment(segment: Any) -> Segment:
    """Returns a segment of svgelements as ours."""
    import svgelements

    start, end = segment.start, segment.end
    if isinstance(segment, svgelements.Line):
        return Line(end.x, end.y)
    if isinstance(segment, svgelements.CubicBezier):
        first, second = segment.control1, segment.control2
        return Cubic(first.x, first.y, second.x, second.y, end.x, end.y)
    if isinstance(segment, svgelements.QuadraticBezier):
        (x, y), (x0, y0), (x1, y1) = segment.control, start, end
        first_x, first_y = x0 + (x - x0) / 1.5, y0 + (y - y0) / 1.5
        second_x, second_y = x1 + (x - x1) / 1.5, y1 + (y - y1) / 1.5
        return Cubic(first_x, first_y, second_x, second_y, x1, y1)
    rx, ry, turn = float(segment.rx), float(segment.ry), float(segment.sweep)
    if not (rx > 0 and ry > 0) or start == end:
        return Line(end.x, end.y)
    rotation = math.degrees(float(segment.get_rotation()))
    return Arc(rx, ry, rotation, abs(turn) > math.pi, turn > 0, end.x, end.y)


def attribute_lengths(attributes: Mapping[str, str], names: str, view_box: Box) -> list[float]:
    """Returns lengths by name; 0 for what is not given or "auto"."""
    _, _, width, height = view_box
    across = {"x", "x1", "x2", "cx", "width", "rx"}
    diagonal = math.hypot(width, height) / math.sqrt(2)
    return [
        length(
            attributes.get(name, "0").replace("auto", "0"),
            diagonal if name == "r" else width if name in across else height,
        )
        for name in names.split()
    ]
