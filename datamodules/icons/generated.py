"""Icons that are made, not collected: a few shapes on a grid of half units, stroked or filled."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...modules.svg import Arc, Document, Fill, Line, Shape, Stroke, Subpath, without_arcs
from ...modules.svg.document import Segment
from ...modules.svg.rendering import document_coverage

GRID = 0.5
BOX = (0.0, 0.0, 24.0, 24.0)
KINDS = (
    *("rectangle", "rounded", "circle", "ellipse", "triangle", "polygon"),
    *("line", "polyline", "arc", "check"),
)
CLOSED = KINDS[:6]
MIN_VISIBLE = 0.1  # of its own area, of every shape
Rng = np.random.Generator


@dataclass(frozen=True)
class GeneratedIcons:
    """Numbered icons of 1 to `max_shapes` shapes; the same number and seed give the same icon.

    Shapes are rectangles, plain and rounded, circles, ellipses, triangles, polygons, lines,
    polylines, arcs and check marks. A shape of which less than a tenth shows is drawn again.

    Args:
        seed: 0 or more.
        max_shapes: At most so many.
        fill: Share of icons whose closed shapes are filled, one over the other in black and white.
        grid: Of corners and centers, in units of the view box of 24; 0: none.
        split: Icons of different splits have nothing in common but their kind.

    Raises:
        ValueError: A number is out of range.
    """

    seed: int = 0
    max_shapes: int = 5
    fill: float = 0.0
    grid: float = GRID
    split: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0 or self.max_shapes < 1 or self.grid < 0 or not 0 <= self.fill <= 1:
            raise ValueError(
                f"generated icons: seed {self.seed}, max_shapes {self.max_shapes}, fill "
                f"{self.fill}, grid {self.grid}: expected 0 or more, 1 or more, a share, 0 or more"
            )

    @cached_property
    def style(self) -> Stroke:
        """What strokes are drawn with."""
        return Stroke(width=2.0, cap="round", join="round")

    def __getitem__(self, index: int) -> Document:
        rng = np.random.default_rng([self.seed, self.split, index])
        filled = rng.random() < self.fill
        number = 1 + int(rng.integers(self.max_shapes))
        while True:
            shapes = [self._shape(rng, filled, place) for place in range(number)]
            document = without_arcs(Document(BOX, tuple(shapes)))
            if not _hides(document):
                return document

    def _shape(self, rng: Rng, filled: bool, place: int) -> Shape:
        kinds = CLOSED if filled else KINDS
        subpath = self._outline(rng, kinds[int(rng.integers(len(kinds)))])
        if not filled:
            return Shape((subpath,), stroke=self.style)
        white = place > 0 and rng.random() < 0.4
        return Shape(
            (subpath,), Fill((1.0, 1.0, 1.0) if white else (0.0, 0.0, 0.0), rule="evenodd")
        )

    def _outline(self, rng: Rng, kind: str) -> Subpath:
        half = rng.uniform(2, 8, 2)
        if kind in ("circle", "triangle", "polygon", "arc"):
            half[1] = half[0]
        half = np.maximum(self._snap(half), 1.0)
        x, y = self._snap(rng.uniform(2 + half, 22 - half))
        w, h = half.tolist()
        if kind == "rectangle":
            return _polyline([(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)], True)
        if kind == "rounded":
            return _rounded(x, y, w, h, min(w, h) * float(rng.choice([0.25, 0.5])))
        if kind in ("circle", "ellipse"):
            arcs = (Arc(w, h, 0, False, True, x - w, y), Arc(w, h, 0, False, True, x + w, y))
            return Subpath(x + w, y, arcs, closed=True)
        if kind in ("triangle", "polygon"):
            corners = 3 if kind == "triangle" else int(rng.integers(5, 8))
            first = -math.pi / 2 + (math.pi if rng.random() < 0.3 else 0)
            angles = first + math.tau * np.arange(corners) / corners
            points = [
                self._snap(np.array([x + w * math.cos(a), y + w * math.sin(a)])) for a in angles
            ]
            return _polyline([(px, py) for px, py in points], True)
        if kind == "arc":
            start, turn = rng.integers(4), int(rng.integers(1, 4))
            (ax, ay), (bx, by) = (
                (x + w * math.cos(a), y + w * math.sin(a))
                for a in (math.pi / 2 * start, math.pi / 2 * (start + turn))
            )
            return Subpath(ax, ay, (Arc(w, w, 0, turn > 2, True, bx, by),))
        if kind == "check":
            return _polyline([(x - w, y), (x - w / 3, y + h), (x + w, y - h)])
        if kind == "line":
            dx, dy = ((w, h), (w, -h), (w, 0.0), (0.0, h))[int(rng.integers(4))]
            return _polyline([(x - dx, y - dy), (x + dx, y + dy)])
        corners = int(rng.integers(3, 6))
        across = np.linspace(x - w, x + w, corners)
        up = y + h * rng.choice([-1.0, 0.0, 1.0], corners)
        points = [self._snap(np.array(pair)) for pair in zip(across, up, strict=True)]
        return _polyline([(px, py) for px, py in points])

    def _snap(self, values: np.ndarray) -> np.ndarray:
        return np.round(values / self.grid) * self.grid if self.grid else values


def _polyline(points: list[tuple[float, float]], closed: bool = False) -> Subpath:
    (x, y), *rest = [(float(px), float(py)) for px, py in points]
    return Subpath(x, y, tuple(Line(*point) for point in rest), closed)


def _rounded(x: float, y: float, w: float, h: float, r: float) -> Subpath:
    segments: list[Segment] = []
    for edge, corner in (
        ((x + w - r, y - h), (x + w, y - h + r)),
        ((x + w, y + h - r), (x + w - r, y + h)),
        ((x - w + r, y + h), (x - w, y + h - r)),
        ((x - w, y - h + r), (x - w + r, y - h)),
    ):
        segments += [Line(*edge), Arc(r, r, 0, False, True, *corner)]
    return Subpath(x - w + r, y - h, tuple(segments), closed=True)


def _hides(document: Document) -> bool:
    """Whether a shape is nearly covered by those above it, or changes nothing where it lies."""
    covered = document_coverage(document, (32, 32), samples=2)
    shades = [
        sum(paint.color) / 3 for shape in document.shapes() if (paint := shape.fill or shape.stroke)
    ]
    image = torch.ones(covered.shape[1:])
    before = []
    for layer, shade in zip(covered, shades, strict=True):
        before.append(image)
        image = torch.lerp(image, torch.full_like(image, shade), layer)
    for place, layer in enumerate(covered):
        rest = before[place]
        for other, shade in zip(covered[place + 1 :], shades[place + 1 :], strict=True):
            rest = torch.lerp(rest, torch.full_like(rest, shade), other)
        if (rest - image).abs().sum() < MIN_VISIBLE * layer.sum():
            return True
    return False
