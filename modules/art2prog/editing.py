"""Changes to programs, as a person makes them: what a picture of pixels does not offer.

Layers count from 1, the lowest, as in exported files; lines as they are printed. Each function
returns a new program, checked; layers come in the order of `layers.program_of`.
"""

from dataclasses import replace
from typing import Any

from ...kernels.compositing import BlendMode
from .language import Language, Program
from .layers import Edge, Layer, Outline, Picture, picture_of, program_of


def edit_line(program: Program, language: Language, line: int, **changes: Any) -> Program:
    """Changes arguments of a line: `edit_line(program, language, 5, color=3)`.

    Args:
        program: A checked program.
        language: Its language.
        line: As printed, from 1.
        **changes: By the names of the line's class, pointers from 0.

    Raises:
        ValueError: No such line or argument, or the result is no program.
    """
    if not 1 <= line <= len(program):
        raise ValueError(f"line {line}: the program has lines 1 to {len(program)}")
    before = program.lines[line - 1]
    try:
        after = replace(before, **changes)
    except TypeError as error:
        names = ", ".join(type(before).__dataclass_fields__)
        raise ValueError(f"line {line}: {type(before).__name__} has {names}") from error
    edited = Program((*program.lines[: line - 1], after, *program.lines[line:]))
    language.check(edited)
    return edited


def recolor_layer(program: Program, language: Language, layer: int, color: int) -> Program:
    """Gives a layer another colour of the palette."""
    return _with_layer(program, language, layer, color=color)


def move_layer(program: Program, language: Language, layer: int, dx: int, dy: int) -> Program:
    """Moves a layer by whole cells.

    Raises:
        ValueError: A point would leave the grid.
    """
    outline = _layer(program, layer).outline
    start, edges = outline.start, outline.edges
    moved = Outline(
        (start[0] + dx, start[1] + dy),
        tuple(Edge(e.x + dx, e.y + dy, e.radius, e.clockwise) for e in edges),
    )
    return _with_layer(program, language, layer, outline=moved)


def set_mode(program: Program, language: Language, layer: int, mode: BlendMode) -> Program:
    """Blends a layer onto those below it by another mode.

    Raises:
        ValueError: It is the lowest layer, or the language has no such mode.
    """
    if layer == 1:
        raise ValueError("layer 1 lies on nothing: it has no blend mode")
    return _with_layer(program, language, layer, mode=mode)


def set_opacity(program: Program, language: Language, layer: int, opacity: float) -> Program:
    """Gives a layer an opacity of the language, or 1.

    Raises:
        ValueError: The language has no such opacity.
    """
    if opacity == 1:
        return _with_layer(program, language, layer, opacity=None)
    if opacity not in language.opacities:
        raise ValueError(f"opacity {opacity:g}: the language has {list(language.opacities)} and 1")
    return _with_layer(program, language, layer, opacity=language.opacities.index(opacity))


def delete_layer(program: Program, language: Language, layer: int) -> Program:
    """Takes a layer away; pointers are numbered anew.

    Raises:
        ValueError: There is no other.
    """
    _layer(program, layer)
    picture = picture_of(program)
    if len(picture) == 1:
        raise ValueError("the only layer cannot be deleted: a picture has at least one")
    return _checked((*picture[: layer - 1], *picture[layer:]), language)


def raise_layer(program: Program, language: Language, layer: int, by: int = 1) -> Program:
    """Moves a layer up by so many places, down if negative; it keeps its blend mode.

    Raises:
        ValueError: There are not so many.
    """
    moved, picture = _layer(program, layer), list(picture_of(program))
    if not 1 <= layer + by <= len(picture):
        raise ValueError(f"layer {layer} cannot move by {by}: there are layers 1 to {len(picture)}")
    picture.remove(moved)
    picture.insert(layer - 1 + by, moved)
    return _checked(tuple(picture), language)


def _layer(program: Program, layer: int) -> Layer:
    picture = picture_of(program)
    if not 1 <= layer <= len(picture):
        raise ValueError(f"layer {layer}: there are layers 1 to {len(picture)}")
    return picture[layer - 1]


def _with_layer(program: Program, language: Language, layer: int, **changes: Any) -> Program:
    changed = replace(_layer(program, layer), **changes)
    picture = picture_of(program)
    return _checked((*picture[: layer - 1], changed, *picture[layer:]), language)


def _checked(picture: Picture, language: Language) -> Program:
    program = program_of(picture)
    language.check(program, name="edited program")
    return program
