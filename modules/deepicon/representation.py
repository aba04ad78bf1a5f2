"""Icons as tensors: for each path its commands, what they are given, and how it is painted.

    types   M L C Z EOS ...     (P, S) of P paths, S = max_commands + 1
    args    c1x c1y c2x c2y x y (P, S, 6) in [-1, 1], the view box from edge to edge; unused are 0
    paint   (P,) what a path paints with
    visible (P,) whether a path exists; those that do come first

Paths are in the order of painting, the lowest first. A path is an element of the file, which may
have several subpaths, or one subpath (`path_unit`). Icons have one colour of ink and one style of
stroke; the DeepSVG lineage calls a path a group.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..svg import Cubic, Document, Fill, Group, Line, Shape, Stroke, Subpath, normalized
from ..svg.document import Cap, Color, Join, Segment
from .canonical import SAME, canonical_subpath

VIEW_BOX = 24.0  # icons are scaled to it; all lengths of this package are in its units

MOVE, LINE, CUBIC, CLOSE, EOS, SOS, PAD = range(7)
NUM_TYPES = 7
NUM_ARGS = 6
LETTERS = "MLCZ"
# Which of c1x c1y c2x c2y x y each type uses.
ARG_MASK = torch.tensor(
    [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], *([[0] * 6] * 4)],
    dtype=torch.bool,
)
CLOSING_GAP = 0.25  # how far from its start the end of an outline may be that is then joined to it

CAPS: tuple[Cap, ...] = ("butt", "round", "square")
JOINS: tuple[Join, ...] = ("miter", "round", "bevel")
INK: Color = (0.0, 0.0, 0.0)
PAPER: Color = (1.0, 1.0, 1.0)

PathUnit = Literal["element", "subpath"]
PathOrder = Literal["document", "topleft"]


class Paint(IntEnum):
    """What a path paints with."""

    STROKE = 0
    FILL = 1
    FILL_AND_STROKE = 2
    ERASE = 3  # a fill of the colour of the paper


class IconStyle(NamedTuple):
    """How all strokes of an icon are drawn; `width` in units of the view box of 24."""

    width: float = 2.0
    cap: Cap = "round"
    join: Join = "round"


def style_numbers(style: IconStyle) -> Tensor:
    """Returns a style as width, number of the cap and number of the join, (3,) float32."""
    return torch.tensor([style.width, CAPS.index(style.cap), JOINS.index(style.join)])


def style_of(numbers: Tensor) -> IconStyle:
    """Returns the style of what `style_numbers` returned."""
    width, cap, join = numbers.tolist()
    return IconStyle(width, CAPS[int(cap)], JOINS[int(join)])


class IconTensors(NamedTuple):
    """One icon, or with a leading dimension B several.

    Attributes:
        types: (P, S) int64; after the first EOS only PAD.
        args: (P, S, 6) float32.
        visible: (P,) bool.
        paint: (P,) int64.
    """

    types: Tensor
    args: Tensor
    visible: Tensor
    paint: Tensor

    def icons(self) -> "list[IconTensors]":
        """Returns the icons of a batch."""
        return [IconTensors(*parts) for parts in zip(*self, strict=True)]


class IconError(ValueError):
    """An icon that the tensors cannot hold; the message is the reason, the same for all alike."""


@dataclass(frozen=True)
class IconCodec:
    """Documents as tensors and back.

    Args:
        max_paths: P.
        max_commands: Of a path, its first M and its Z among them.
        path_unit: "element": a path is an element of the file, and holds several subpaths where the
            element does (holes). "subpath": a path is one subpath; what an icon fills is then
            filled together by the even-odd rule.
        path_order: "document": as painted. "topleft": by where paths start, from top to bottom.
        canonical: Whether each subpath is brought into its canonical form.

    Raises:
        ValueError: A number is too small.
    """

    max_paths: int = 8
    max_commands: int = 30
    path_unit: PathUnit = "element"
    path_order: PathOrder = "document"
    canonical: bool = True

    def __post_init__(self) -> None:
        if self.max_paths < 1 or self.max_commands < 2:
            raise ValueError(
                f"max_paths {self.max_paths} and max_commands {self.max_commands}: expected at "
                "least 1 and 2"
            )

    def encode(self, document: Document) -> tuple[IconTensors, IconStyle]:
        """Returns an icon as tensors, and the style of its strokes.

        Arcs must have become curves (`parse_svg` does so).

        Raises:
            IconError: It has colours, opacities, groups or strokes of several styles, or more or
                longer paths than the tensors hold, or leaves its view box.
        """
        shapes = _plain_shapes(normalized(document, VIEW_BOX))
        style = _common_style(shapes)
        paths = [path for shape in shapes for path in self._paths(shape)]
        if not paths:
            raise IconError("paints nothing")
        if self.path_order == "topleft":
            paths.sort(key=lambda path: (path[0][0].y, path[0][0].x))
        if len(paths) > self.max_paths:
            raise IconError(f"more than {self.max_paths} paths")
        return self._tensors(paths), style

    def _paths(self, shape: Shape) -> list[tuple[list[Subpath], Paint]]:
        paint = _paint(shape)
        round_stroke = shape.stroke and (shape.stroke.cap, shape.stroke.join) == ("round", "round")
        subpaths = []
        for subpath in shape.subpaths:
            if not subpath.segments:
                if not subpath.closed:  # a point that draws nothing
                    continue
                subpath = replace(subpath, segments=(Line(subpath.x, subpath.y),))
            ends = abs(subpath.segments[-1].x - subpath.x), abs(subpath.segments[-1].y - subpath.y)
            returns = max(ends) < SAME and len(subpath.segments) > 1
            # Nothing shows whether such an outline is closed; closed it has one canonical form.
            if paint in (Paint.FILL, Paint.ERASE) or (returns and round_stroke):
                subpath = replace(subpath, closed=True)
            subpaths.append(canonical_subpath(subpath) if self.canonical else subpath)
        if self.path_order == "topleft":
            subpaths.sort(key=lambda one: (one.y, one.x))
        if self.path_unit == "subpath":
            return [([subpath], paint) for subpath in subpaths]
        return [(subpaths, paint)] if subpaths else []

    def _tensors(self, paths: Sequence[tuple[list[Subpath], Paint]]) -> IconTensors:
        size = self.max_paths, self.max_commands + 1
        types = torch.full(size, PAD)
        args = torch.zeros(*size, NUM_ARGS)
        paint = torch.zeros(self.max_paths, dtype=torch.int64)
        for place, (subpaths, kind) in enumerate(paths):
            commands = [command for subpath in subpaths for command in _commands(subpath)]
            if len(commands) > self.max_commands:
                raise IconError(f"a path of more than {self.max_commands} commands")
            types[place, : len(commands)] = torch.tensor([type_ for type_, _ in commands])
            types[place, len(commands)] = EOS
            args[place, : len(commands)] = torch.tensor([given for _, given in commands])
            paint[place] = kind
        used = ARG_MASK[types]
        args = torch.where(used, 2 * args / VIEW_BOX - 1, 0.0)
        if args.abs().max() > 1 + SAME:
            raise IconError("leaves its view box")
        visible = torch.arange(self.max_paths) < len(paths)
        return IconTensors(types, args.clamp(-1, 1), visible, paint)

    def decode(
        self,
        icon: IconTensors,
        style: IconStyle | None = None,
        view_box: float = VIEW_BOX,
        snap: float | None = None,
    ) -> Document:
        """Returns an icon as a document, whatever the tensors hold: also what a network made up.

        Drawing before the first M, and after a Z without one, starts where it goes to; a path
        without a segment is left out. An outline that ends within a quarter of a unit of its start,
        and has a Z, ends there.

        Args:
            icon: Of one icon.
            style: Of strokes; by default 2 units wide, with round caps and joins.
            view_box: Side of the document's view box.
            snap: Grid of all coordinates, in units of the view box of 24; None: as they are.

        Raises:
            ValueError: Coordinates are not finite, or `snap` is not positive.
        """
        if snap is not None and snap <= 0:
            raise ValueError(f"snap must be positive, got {snap}")
        if not icon.args.isfinite().all():
            raise ValueError("args: coordinates are not finite")
        places = (icon.args.double().cpu() + 1) * (VIEW_BOX / 2)
        if snap is not None:
            places = (places / snap).round() * snap
        places = places * (view_box / VIEW_BOX)
        shapes: list[Shape] = []
        compound: list[Subpath] = []  # of `path_unit` subpath: what is filled together
        stroke = _stroke(style or IconStyle(), view_box / VIEW_BOX)
        for path in icon.visible.nonzero().flatten().tolist():
            gap = CLOSING_GAP * view_box / VIEW_BOX
            subpaths = _subpaths(icon.types[path].tolist(), places[path].tolist(), gap)
            paint = Paint(int(icon.paint[path]))
            if not subpaths:
                continue
            if self.path_unit == "subpath" and paint == Paint.FILL:
                compound += subpaths
                continue
            shapes.append(_shape(subpaths, paint, stroke))
        if compound:
            shapes.append(_shape(compound, Paint.FILL, stroke))
        named = (replace(shape, name=f"layer-{k}") for k, shape in enumerate(shapes))
        return Document((0.0, 0.0, view_box, view_box), tuple(named))


def stack_icons(icons: Iterable[IconTensors]) -> IconTensors:
    """Returns icons as a batch."""
    return IconTensors(*(torch.stack(parts) for parts in zip(*icons, strict=True)))


def path_documents(document: Document) -> list[Document]:
    """Returns each shape of a document as one of its own, in order."""
    return [replace(document, children=(shape,)) for shape in document.shapes()]


def _plain_shapes(document: Document) -> list[Shape]:
    shapes = []
    for child in document.children:
        if isinstance(child, Group):
            raise IconError("groups that are blended")
        if child.blend_mode != "normal":
            raise IconError("blend modes")
        paints = [paint for paint in (child.fill, child.stroke) if paint]
        if child.opacity != 1 or any(paint.opacity != 1 for paint in paints):
            raise IconError("is translucent")
        shapes.append(child)
    return shapes


def _common_style(shapes: Sequence[Shape]) -> IconStyle:
    styles = {
        (round(shape.stroke.width, 3), shape.stroke.cap, shape.stroke.join)
        for shape in shapes
        if shape.stroke
    }
    if len(styles) > 1:
        raise IconError("strokes of several styles")
    return IconStyle(*styles.pop()) if styles else IconStyle()


def _paint(shape: Shape) -> Paint:
    inks = {_is_ink(paint.color) for paint in (shape.fill, shape.stroke) if paint}
    if len(inks) > 1 or (inks == {False} and shape.stroke):
        raise IconError("several colours")
    if inks == {False}:
        return Paint.ERASE
    if shape.fill and shape.stroke:
        return Paint.FILL_AND_STROKE
    return Paint.FILL if shape.fill else Paint.STROKE


def _is_ink(color: Color) -> bool:
    """Whether a colour is black, not white.

    Raises:
        IconError: It is neither.
    """
    if color not in (INK, PAPER):
        raise IconError("several colours")
    return color == INK


def _commands(subpath: Subpath) -> list[tuple[int, list[float]]]:
    found = [(MOVE, [0.0, 0.0, 0.0, 0.0, subpath.x, subpath.y])]
    for segment in subpath.segments:
        if isinstance(segment, Cubic):
            found.append((CUBIC, list(segment)))
        else:
            found.append((LINE, [0.0, 0.0, 0.0, 0.0, segment.x, segment.y]))
    return [*found, (CLOSE, [0.0] * NUM_ARGS)] if subpath.closed else found


def _subpaths(types: Sequence[int], places: Sequence[Sequence[float]], gap: float) -> list[Subpath]:
    """Returns what a row of commands draws, up to the first that is none."""
    found: list[Subpath] = []
    start: tuple[float, float] | None = None
    segments: list[Segment] = []

    def finish(closed: bool = False) -> None:
        if start is not None and segments:
            if closed and math.dist(start, segments[-1][-2:]) < gap:
                segments[-1] = segments[-1]._replace(x=start[0], y=start[1])
            found.append(Subpath(*start, tuple(segments), closed))
        segments.clear()

    for type_, given in zip(types, places, strict=True):
        if type_ > CLOSE:
            break
        x, y = given[-2:]
        if type_ == CLOSE:
            finish(closed=True)
            start = None
        elif type_ == MOVE or start is None:
            finish()
            start = (x, y)
        elif type_ == LINE:
            segments.append(Line(x, y))
        else:
            segments.append(Cubic(*given))
    finish()
    return found


def _stroke(style: IconStyle, scale: float) -> Stroke:
    return Stroke(INK, style.width * scale, cap=style.cap, join=style.join)


def _shape(subpaths: Sequence[Subpath], paint: Paint, stroke: Stroke) -> Shape:
    fill = None
    if paint != Paint.STROKE:
        fill = Fill(PAPER if paint == Paint.ERASE else INK, rule="evenodd")
    stroked = paint in (Paint.STROKE, Paint.FILL_AND_STROKE)
    return Shape(tuple(subpaths), fill, stroke if stroked else None)
