"""DeepSVG's tensors and ours, both ways (Carlier et al., NeurIPS 2020; its data set SVG-Icons8).

Theirs: for each path (n, 14): type in the order m l c a EOS SOS z, then rx ry rotation large sweep,
start x y, two control points, end x y, absolute in a view box of 24; unused ones are -1.
With them a filling for each path: 0 outline, 1 fill, 2 erase.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..svg import Arc, Cubic, Document, Fill, Line, Shape, Stroke, Subpath, without_arcs
from ..svg.document import Segment
from .representation import (
    CLOSE,
    CUBIC,
    EOS,
    INK,
    LINE,
    MOVE,
    NUM_ARGS,
    PAD,
    PAPER,
    VIEW_BOX,
    IconTensors,
    Paint,
)

COLUMNS = 14
UNUSED = -1.0
THEIRS = {MOVE: 0, LINE: 1, CUBIC: 2, CLOSE: 6}
M, L, C, A, Z = 0, 1, 2, 3, 6
FILLINGS = {0: Paint.STROKE, 1: Paint.FILL, 2: Paint.ERASE}


def to_deepsvg(icon: IconTensors) -> tuple[list[Tensor], list[int]]:
    """Returns the tensors of an icon's visible paths, (n, 14) float64, and their fillings.

    Raises:
        ValueError: A path is filled and stroked, for which they have no word.
    """
    fillings = {paint: number for number, paint in FILLINGS.items()}
    tensors, numbers = [], []
    for path in icon.visible.nonzero().flatten().tolist():
        paint = Paint(int(icon.paint[path]))
        if paint not in fillings:
            raise ValueError(f"path {path}: DeepSVG's tensors hold no path of {paint.name}")
        tensors.append(_to_rows(icon.types[path], icon.args[path]))
        numbers.append(fillings[paint])
    return tensors, numbers


def from_deepsvg(
    tensors: Sequence[Tensor], fillings: Sequence[int], max_paths: int, max_commands: int
) -> IconTensors:
    """Returns an icon of tensors without arcs; the exact inverse of `to_deepsvg`.

    Raises:
        ValueError: They have arcs, or more or longer paths than given.
    """
    if len(tensors) > max_paths or any(len(rows) > max_commands for rows in tensors):
        raise ValueError(
            f"more than {max_paths} paths, or one of more than {max_commands} commands"
        )
    types = torch.full((max_paths, max_commands + 1), PAD)
    args = torch.zeros(max_paths, max_commands + 1, NUM_ARGS)
    paint = torch.zeros(max_paths, dtype=torch.int64)
    ours = {theirs: type_ for type_, theirs in THEIRS.items()}
    for path, (rows, filling) in enumerate(zip(tensors, fillings, strict=True)):
        for place, row in enumerate(rows.tolist()):
            if int(row[0]) not in ours:
                raise ValueError("arcs: take `document_from_deepsvg`, which makes curves of them")
            type_ = ours[int(row[0])]
            types[path, place] = type_
            used = row[8:14] if type_ == CUBIC else [*[VIEW_BOX / 2] * 4, *row[12:14]]
            if type_ != CLOSE:
                scaled = torch.tensor(used, dtype=torch.float64) / (VIEW_BOX / 2) - 1
                args[path, place] = scaled.float()
        types[path, len(rows)] = EOS
        paint[path] = FILLINGS[int(filling)]
    return IconTensors(types, args, torch.arange(max_paths) < len(tensors), paint)


def document_from_deepsvg(
    tensors: Sequence[Tensor], fillings: Sequence[int], stroke: Stroke
) -> Document:
    """Returns the document that tensors stand for; paths without a segment are left out.

    Args:
        tensors: (n, 14) each.
        fillings: Of each.
        stroke: Of outlines.

    Raises:
        ValueError: A type or filling is unknown, or a tensor has another shape.
    """
    shapes = []
    for rows, filling in zip(tensors, fillings, strict=True):
        if rows.ndim != 2 or rows.shape[1] != COLUMNS or int(filling) not in FILLINGS:
            raise ValueError(
                f"DeepSVG: a path of shape {tuple(rows.shape)} and filling {filling}, expected "
                f"(n, {COLUMNS}) and 0, 1 or 2"
            )
        subpaths = _subpaths(rows.tolist())
        if not subpaths:
            continue
        paint = FILLINGS[int(filling)]
        if paint == Paint.STROKE:
            shapes.append(Shape(tuple(subpaths), stroke=stroke))
        else:
            color = PAPER if paint == Paint.ERASE else INK
            shapes.append(Shape(tuple(subpaths), Fill(color, rule="evenodd")))
    return without_arcs(Document((0.0, 0.0, VIEW_BOX, VIEW_BOX), tuple(shapes)))


def _to_rows(types: Tensor, args: Tensor) -> Tensor:
    places = (args.double() + 1) * (VIEW_BOX / 2)
    rows = []
    start = current = (0.0, 0.0)
    for type_, given in zip(types.tolist(), places.tolist(), strict=True):
        if type_ == EOS:
            break
        end = start if type_ == CLOSE else (given[4], given[5])
        control = given[:4] if type_ == CUBIC else [UNUSED] * 4
        rows.append([float(THEIRS[type_]), *[UNUSED] * 5, *current, *control, *end])
        start = end if type_ == MOVE else start
        current = end
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, COLUMNS)


def _subpaths(rows: Sequence[Sequence[float]]) -> list[Subpath]:
    found: list[Subpath] = []
    start = (0.0, 0.0)
    segments: list[Segment] = []

    def finish(closed: bool) -> None:
        if segments:
            found.append(Subpath(*start, tuple(segments), closed))
            segments.clear()

    for row in rows:
        kind, (x, y) = int(row[0]), row[12:14]
        if kind in (M, Z):
            finish(closed=kind == Z)
            start = (x, y) if kind == M else start
        elif kind == L:
            segments.append(Line(x, y))
        elif kind == C:
            segments.append(Cubic(*row[8:14]))
        elif kind == A:
            rx, ry, rotation, large, sweep = row[1:6]
            segments.append(Arc(rx, ry, rotation, large > 0.5, sweep > 0.5, x, y))
        else:
            break  # EOS, SOS
    finish(closed=False)
    return found
