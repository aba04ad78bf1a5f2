"""Random programs, and other ways to write the same."""

from dataclasses import replace

import numpy as np
from tenfold.modules.art2prog.language import Language, Program, pointers, repointed
from tenfold.modules.art2prog.layers import Edge, Layer, Outline, Picture

LANGUAGE = Language(max_layers=4, max_lines=40)


def another_outline(outline: Outline, rng: np.random.Generator) -> Outline:
    """The same outline from another vertex, in the other direction, cut, or not closed."""
    loop = [(start, edge) for start, edge in zip(outline.vertices, outline.edges, strict=False)]
    pieces = []
    for start, edge in loop:
        dx, dy = edge.x - start[0], edge.y - start[1]
        parts = np.gcd(dx, dy)
        if edge.is_straight and parts > 1 and rng.random() < 0.5:
            cut = int(rng.integers(1, parts))
            middle = (start[0] + dx // parts * cut, start[1] + dy // parts * cut)
            pieces += [(start, Edge(*middle)), (middle, edge)]
        elif edge.radius == 0 and rng.random() < 0.5:  # any radius too small is half the chord
            small = 1 if np.hypot(dx, dy) >= 2 else 0
            pieces.append((start, replace(edge, radius=small)))
        else:
            pieces.append((start, edge))
    if rng.random() < 0.5:
        pieces = [
            ((e.x, e.y), replace(e, x=s[0], y=s[1], clockwise=e.is_straight or not e.clockwise))
            for s, e in reversed(pieces)
        ]
    turn = int(rng.integers(len(pieces)))
    pieces = pieces[turn:] + pieces[:turn]
    edges = [edge for _, edge in pieces]
    if edges[-1].is_straight and len(edges) > 2 and rng.random() < 0.5:
        edges.pop()  # filling closes it
    return Outline(pieces[0][0], tuple(edges))


def another_picture(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same layers written differently; all multiplied ones in another order."""
    layers = [replace(layer, outline=another_outline(layer.outline, rng)) for layer in picture]
    if len(layers) > 1 and all(layer.mode == "multiply" for layer in layers[1:]):
        layers = [layers[i] for i in rng.permutation(len(layers))]
        layers = [replace(layer, mode="multiply") for layer in layers]
    return tuple(layers)


def another_order(program: Program, rng: np.random.Generator) -> Program:
    """The same lines, each somewhere after those that it points to."""
    done: dict[int, int] = {}
    lines = []
    last = len(program) - 1
    while len(done) < len(program):
        free = [
            n
            for n, line in enumerate(program.lines)
            if n not in done and all(p in done for p in pointers(line))
        ]
        chosen = int(rng.choice([n for n in free if n != last] or free))
        lines.append(repointed(program.lines[chosen], done))
        done[chosen] = len(lines) - 1
    return Program(tuple(lines))


def square(x: int, y: int, side: int, color: int = 0, **how: object) -> Layer:
    corners = ((x + side, y), (x + side, y + side), (x, y + side), (x, y))
    return Layer(Outline((x, y), tuple(Edge(*corner) for corner in corners)), color, **how)
