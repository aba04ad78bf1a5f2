"""Random programs whose pictures tell which program made them."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.compositing import BlendMode, composite_images, mode_numbers
from ...modules.art2prog.canonical import canonical_outline, canonical_picture
from ...modules.art2prog.drawing import Renderer
from ...modules.art2prog.geometry import (
    Points,
    are_apart,
    contains,
    effective_radius,
    half_chord,
    is_simple,
    polyline,
    signed_area,
)
from ...modules.art2prog.language import HALF, Language, Program
from ...modules.art2prog.layers import Edge, Layer, Outline, Picture, Point, program_of

PIXELS = 6  # per cell, where overlaps are measured
MIN_BEND = 0.25  # cells by which an arc, or a corner, leaves the straight line between its ends
MAX_TRIES = 2000
LAYER_TRIES = 8


Split = Literal["train", "val", "test"]
SplitBy = Literal["program", "shapes"]
SHARES = {"train": range(6), "val": (6,), "test": (7,)}  # eighths of all programs or shapes


class ProgramSampler:
    """Draws programs in canonical form.

    What could not be seen is not drawn: an arc that is nearly straight, a corner that hardly turns,
    a layer that is hidden, layers that nearly touch, a blend mode where nothing overlaps.

    Args:
        language: Of the programs.
        layer_probs: Shares of pictures with 1, 2, ... layers; they add up to 1.
        num_edges: Least and most edges of an outline that is no template.
        arc_prob: Share of edges that are arcs.
        template_prob: Share of outlines that are rectangles, triangles, circles and the like.
        overlap_prob: Share of layers that overlap one below them, at least.
        blend_prob: Share of overlapping layers that are blended by another mode than normal.
        opacity_prob: Share of layers that are not opaque, where the language has opacities.
        min_area: Least area of an outline in cells.
        min_visible: Least visible share of a layer.
        min_overlap: Least overlap, if there is one, in cells; modes and opacities show there.
        min_contrast: Least difference that a blend mode makes, of 255, in some channel.
        visible_corners: Whether every corner can be seen, so that no outline is ambiguous.
        guards: False: overlaps, contrasts and corners are not asked for, so that blend modes may
            be mere guesses (to show that they are).
        seed: 0 or more.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        language: Language,
        layer_probs: Sequence[float] = (0.4, 0.6),
        num_edges: tuple[int, int] = (2, 6),
        arc_prob: float = 0.35,
        template_prob: float = 0.2,
        overlap_prob: float = 0.6,
        blend_prob: float = 0.5,
        opacity_prob: float = 0.5,
        min_area: float = 4.0,
        min_visible: float = 0.15,
        min_overlap: float = 1.0,
        min_contrast: int = 24,
        visible_corners: bool = True,
        guards: bool = True,
        seed: int = 0,
    ) -> None:
        self.language = language
        self.layer_probs = list(layer_probs)
        self.num_edges = num_edges
        self.arc_prob, self.template_prob = arc_prob, template_prob
        self.overlap_prob, self.blend_prob = overlap_prob, blend_prob
        self.opacity_prob = opacity_prob
        self.min_area, self.min_visible, self.min_overlap = min_area, min_visible, min_overlap
        self.min_contrast = min_contrast
        self.visible_corners, self.guards, self.seed = visible_corners, guards, seed
        self.rejected: Counter[str] = Counter()
        self._check()
        self._renderer = Renderer(language, round(PIXELS * self._cells()), samples=2)

    def _cells(self) -> float:
        return self.language.grid - 1 + 2 * self.language.margin

    def _check(self) -> None:
        probs = self.layer_probs
        if not probs or min(probs) < 0 or not math.isclose(sum(probs), 1.0, abs_tol=1e-6):
            raise ValueError(f"layer_probs: {probs}, expected shares that add up to 1")
        if len(probs) > self.language.max_layers:
            raise ValueError(
                f"layer_probs: {len(probs)} layers, the language has {self.language.max_layers}:"
                " raise language.max_layers"
            )
        least, most = self.num_edges
        if not 2 <= least <= most:
            raise ValueError(f"num_edges: {list(self.num_edges)}, expected 2 <= least <= most")
        for name in ("arc_prob", "template_prob", "overlap_prob", "blend_prob", "opacity_prob"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name}: {share}, expected a share in [0, 1]")
        if most == 2 and self.arc_prob == 0 and self.template_prob == 0:
            raise ValueError("num_edges: two straight edges have no area; raise arc_prob")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}, expected 0 or more")
        longest = len(probs) * (most + 2) + len(probs) * bool(self.language.opacities)
        if longest + len(probs) - 1 > self.language.max_lines:
            raise ValueError(
                f"language.max_lines: {self.language.max_lines}, but {len(probs)} layers of {most}"
                f" edges need {longest + len(probs) - 1}"
            )

    def settings(self) -> dict[str, Any]:
        """Returns all that programs depend on, as JSON values."""
        names = (
            *("layer_probs", "arc_prob", "template_prob", "overlap_prob", "blend_prob"),
            *("opacity_prob", "min_area", "min_visible", "min_overlap", "min_contrast"),
            *("visible_corners", "guards", "seed"),
        )
        own = {name: getattr(self, name) for name in names}
        num_edges = list(self.num_edges)
        return {"language": self.language.settings(), "num_edges": num_edges, **own}

    def numbered(self, split: Split, index: int, split_by: SplitBy = "program") -> Program:
        """Returns program `index` of a split, which depends on the arguments and the seed alone.

        Args:
            split: "train", "val" or "test": 6/8, 1/8 and 1/8 of all programs, by their hash.
            index: 0 or more; there is no end.
            split_by: What no two splits share: whole programs, or shapes of layers, wherever these
                lie.
        """
        rng = np.random.default_rng((self.seed, get_args(Split).index(split), index))
        if split_by == "shapes":
            return program_of(self.picture(rng, lambda outline: _eighth(outline) in SHARES[split]))
        while True:
            program = self.program(rng)
            if _eighth(self.language.format(program)) in SHARES[split]:
                return program

    def program(self, rng: np.random.Generator) -> Program:
        """Draws a program."""
        return program_of(self.picture(rng))

    def picture(
        self, rng: np.random.Generator, accepts: Callable[[Outline], bool] = lambda outline: True
    ) -> Picture:
        """Draws the layers of a program, in canonical form.

        Args:
            rng: Random numbers.
            accepts: Says which outlines may be used.

        Raises:
            ValueError: No picture fits, however often one is drawn.
        """
        number = 1 + int(rng.choice(len(self.layer_probs), p=self.layer_probs))
        for _ in range(MAX_TRIES):
            drawn: list[_Drawn] = []
            # Another try for a layer that does not fit costs less than another picture.
            for _ in range(LAYER_TRIES * number):
                if (layer := self._add_layer(rng, drawn, accepts)) is not None:
                    drawn.append(layer)
                if len(drawn) == number:
                    layers = tuple(each.layer for each in drawn)
                    return canonical_picture(layers, self.language)
        raise ValueError(
            f"no picture of {number} layers fits after {MAX_TRIES} tries"
            f" ({dict(self.rejected)}): lower min_area or min_visible, or set visible_corners false"
        )

    # Outlines

    def outline(
        self, rng: np.random.Generator, accepts: Callable[[Outline], bool] = lambda outline: True
    ) -> Outline:
        """Draws a simple outline in canonical form; see `picture`."""
        for _ in range(MAX_TRIES):
            template = rng.random() < self.template_prob
            drawn = self._template(rng) if template else self._polygon(rng)
            if reason := "no outline" if drawn is None else self._flaw(drawn):
                self.rejected[reason] += 1
                continue
            assert drawn is not None
            outline = canonical_outline(drawn, self.language)
            if accepts(outline):
                return outline
            self.rejected["another split"] += 1
        raise ValueError(
            f"no outline fits after {MAX_TRIES} tries ({dict(self.rejected)}): lower min_area"
        )

    def _polygon(self, rng: np.random.Generator) -> Outline | None:
        """Draws grid points around their centroid and edges between them."""
        grid = self.language.grid
        number = int(rng.integers(self.num_edges[0], self.num_edges[1] + 1))
        numbers = rng.choice(grid * grid, size=min(number, grid * grid), replace=False)
        points = np.stack((numbers % grid, numbers // grid), axis=1)
        away = points - points.mean(axis=0)
        order = np.argsort(np.arctan2(away[:, 1], away[:, 0]))
        vertices = [(int(x), int(y)) for x, y in points[order]]
        return self._edges(rng, vertices)

    def _edges(self, rng: np.random.Generator, vertices: list[Point]) -> Outline | None:
        edges = []
        for start, end in pairwise([*vertices, vertices[0]]):
            edge = Edge(*end)
            radii = self.radii_of(start, end) if rng.random() < self.arc_prob else []
            if radii:
                radius = radii[int(rng.integers(len(radii)))]
                edge = Edge(*end, radius, bool(rng.random() < 0.5))
            edges.append(edge)
        if len(edges) == 2 and all(edge.is_straight for edge in edges):
            return None
        return Outline(vertices[0], tuple(edges))

    def radii_of(self, start: Point, end: Point) -> list[int]:
        """Returns the radii whose arcs between two points differ from each other and from a line.

        Each leaves the chord by `MIN_BEND` less than the one before, as far as radii go.
        """
        found: list[int] = []
        last = math.inf
        for radius in (HALF, *self.language.radii):
            edge = Edge(*end, radius)
            half, real = half_chord(start, edge), effective_radius(start, edge)
            bend = real - math.sqrt(max(0.0, real * real - half * half))
            if MIN_BEND <= bend <= last - MIN_BEND:
                found.append(radius)
                last = bend
        return found

    def _template(self, rng: np.random.Generator) -> Outline | None:
        """Draws a rectangle, right triangle, diamond, circle, half disc or quarter disc."""
        grid, kind = self.language.grid, int(rng.integers(3 if self.arc_prob == 0 else 6))
        x0, x1 = sorted(int(v) for v in rng.choice(grid, size=2, replace=False))
        y0, y1 = sorted(int(v) for v in rng.choice(grid, size=2, replace=False))
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        turn = int(rng.integers(4))
        corners = corners[turn:] + corners[:turn]
        a, b, _, d = corners
        arcs: dict[int, int] = {}
        if kind == 0:
            vertices = corners
        elif kind == 1:
            vertices = corners[:3]
        elif kind == 2:
            mx, my = (x0 + x1) // 2, (y0 + y1) // 2
            vertices = [(mx, y0), (x1, my), (mx, y1), (x0, my)]
        elif kind == 3:
            vertices, arcs = [a, b], {0: HALF, 1: HALF}
        elif kind == 4:
            vertices, arcs = [a, b], {0: HALF}
        else:
            side = min(x1 - x0, y1 - y0)
            if side not in self.language.radii:
                return None
            # A quarter disc, its center in the first corner.
            b, d = (
                (a[0] + side * _sign(end[0] - a[0]), a[1] + side * _sign(end[1] - a[1]))
                for end in (b, d)
            )
            vertices, arcs = [a, b, d], {1: side}
        edges = tuple(
            Edge(*end, arcs.get(place, -1))
            for place, end in enumerate([*vertices[1:], vertices[0]])
        )
        return Outline(vertices[0], edges)

    def _flaw(self, outline: Outline) -> str:
        """Returns what is wrong with an outline, "" if nothing is; what is quickly seen first."""
        edges, vertices = outline.edges, outline.vertices[:-1]
        for place, edge in enumerate(edges):
            if edge.is_straight and edges[place - 1].is_straight:
                before, corner = vertices[place - 1], vertices[place]
                if _bend(before, corner, (edge.x, edge.y)) < MIN_BEND:
                    return "flat corner"
        points = polyline(outline)
        if abs(signed_area(points)) < self.min_area:
            return "too small"
        low, high = -self.language.margin, self.language.grid - 1 + self.language.margin
        if points.min() < low or points.max() > high:
            return "off the canvas"
        return "" if is_simple(outline) else "not simple"

    # Layers

    def _add_layer(
        self,
        rng: np.random.Generator,
        below: "list[_Drawn]",
        accepts: Callable[[Outline], bool],
    ) -> "_Drawn | None":
        """Draws a layer on top of others; None if it does not fit."""
        outline, opacity = self.outline(rng, accepts), self._opacity(rng)
        drawn = _Drawn(Layer(outline, 0, opacity), polyline(outline))
        must_overlap = self.guards and bool(below) and rng.random() < self.overlap_prob
        touched = self._touched(drawn, below)
        if touched is None or (must_overlap and not touched):
            self.rejected["overlap"] += 1
            return None
        free = [
            color
            for color in range(len(self.language.palette))
            if all(color != other.layer.color for other in touched)
        ]
        if not free:
            self.rejected["colours"] += 1
            return None
        layer = replace(drawn.layer, color=free[int(rng.integers(len(free)))])
        others = self.language.blend_modes[1:]
        mode: BlendMode = "normal"
        if others and (touched or not self.guards) and rng.random() < self.blend_prob:
            mode = others[int(rng.integers(len(others)))]
        if mode != "normal" and self.guards:
            shows = all(self._shows(layer, mode, other.layer) for other in touched)
            mode = mode if shows else "normal"
        drawn = replace(drawn, layer=replace(layer, mode=mode))
        if self.guards and not self._leaves_visible(drawn, below):
            return None
        return drawn

    def _opacity(self, rng: np.random.Generator) -> int | None:
        number = len(self.language.opacities)
        if number == 0 or rng.random() >= self.opacity_prob:
            return None
        return int(rng.integers(number))

    def _touched(self, drawn: "_Drawn", below: "list[_Drawn]") -> "list[_Drawn] | None":
        """Returns the layers that a new one overlaps; None if it nearly touches one."""
        touched = []
        for other in below:
            if are_apart(drawn.points, other.points):
                continue
            if self.guards:
                shared = float((self._covered(drawn) * self._covered(other)).sum()) / PIXELS**2
                if shared < self.min_overlap:
                    return None
            touched.append(other)
        return touched

    def _shows(self, layer: Layer, mode: BlendMode, below: Layer) -> bool:
        """Whether a mode makes a colour that is neither that of the layer nor that below."""
        lower, upper = (self._colors(each) for each in (below, layer))
        mixed = self._mixed(lower, upper, mode)
        least = self.min_contrast / 255
        plain = (lower, self._mixed(lower, upper, "normal"))
        return all(float((mixed - other).abs().max()) >= least for other in plain)

    def _colors(self, layer: Layer) -> Tensor:
        """Returns colour and alpha of a layer, (1, 4, 1, 1), premultiplied."""
        alpha = 1.0 if layer.opacity is None else self.language.opacities[layer.opacity]
        rgb = [part / 255 * alpha for part in self.language.palette[layer.color]]
        return torch.tensor([*rgb, alpha]).view(1, 4, 1, 1)

    @staticmethod
    def _mixed(below: Tensor, above: Tensor, mode: BlendMode) -> Tensor:
        return composite_images(below, above, mode_numbers([mode]))

    def _leaves_visible(self, drawn: "_Drawn", below: "list[_Drawn]") -> bool:
        """Whether enough of each layer below, and each of its corners, can still be seen."""
        if drawn.layer.mode != "normal" or drawn.layer.opacity is not None:
            return True
        seen = []
        for other in below:
            corners = np.array(other.layer.outline.vertices, dtype=np.float64)
            if self.visible_corners and any(contains(drawn.points, at) for at in corners):
                self.rejected["hidden corner"] += 1
                return False
            whole, hidden = self._covered(other), self._covered(drawn)
            assert other.seen is not None
            seen.append(other.seen * (1 - hidden))
            if seen[-1].sum() < self.min_visible * whole.sum():
                self.rejected["hidden layer"] += 1
                return False
        for other, left in zip(below, seen, strict=True):
            other.seen = left
        return True

    def _covered(self, drawn: "_Drawn") -> NDArray[np.float32]:
        """Returns what a layer covers, (S, S), computed once."""
        if drawn.covered is None:
            image = self._renderer.coverage([(drawn.layer,)])[0, 0]
            drawn.covered = drawn.seen = image.numpy()
        return drawn.covered


@dataclass
class _Drawn:
    """A layer while its picture is drawn.

    Attributes:
        layer: The layer.
        points: Its outline in cells, (n, 2).
        covered: What it covers, (S, S); None: not asked for so far.
        seen: What of it is not hidden so far.
    """

    layer: Layer
    points: Points
    covered: NDArray[np.float32] | None = None
    seen: NDArray[np.float32] | None = None


def _bend(before: Point, corner: Point, after: Point) -> float:
    """Returns the distance of a corner from the line between its neighbours, 0 for a spike."""
    (ax, ay), (bx, by), (cx, cy) = before, corner, after
    if (bx - ax) * (cx - bx) + (by - ay) * (cy - by) < 0 and (cx - ax, cy - ay) == (0, 0):
        return 0.0
    chord = math.dist(before, after)
    return abs((cx - ax) * (by - ay) - (cy - ay) * (bx - ax)) / chord if chord else 0.0


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _eighth(thing: str | Outline) -> int:
    """Returns 0 to 7 by the hash of a text, or of an outline wherever it lies."""
    if isinstance(thing, Outline):
        x, y = thing.start
        edges = [(e.x - x, e.y - y, e.radius, e.clockwise) for e in thing.edges]
        thing = repr(edges)
    return hashlib.sha256(thing.encode()).digest()[0] % 8
