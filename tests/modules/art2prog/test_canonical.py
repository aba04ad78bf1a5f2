"""One picture, one program."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from programs import LANGUAGE, another_order, another_picture, square
from tenfold.datamodules.programs import ProgramSampler
from tenfold.modules.art2prog.canonical import (
    canonical_outline,
    canonical_picture,
    canonicalise,
)
from tenfold.modules.art2prog.drawing import Renderer, to_uint8
from tenfold.modules.art2prog.geometry import is_simple, polyline, signed_area
from tenfold.modules.art2prog.language import HALF, Language
from tenfold.modules.art2prog.layers import Edge, Layer, Outline, picture_of, program_of


@pytest.mark.parametrize("number", [pytest.param(120), pytest.param(1000, marks=pytest.mark.slow)])
def test_other_ways_to_write_a_program_come_to_one_that_draws_the_same(number):
    sampler = ProgramSampler(LANGUAGE, layer_probs=[0.25, 0.35, 0.25, 0.15])
    renderer = Renderer(LANGUAGE, 64)
    written, canonical, reordered = [], [], []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        program = sampler.program(rng)
        other = another_order(program_of(another_picture(picture_of(program), rng)), rng)
        LANGUAGE.check(other)
        found = canonicalise(other, LANGUAGE)
        assert LANGUAGE.format(found) == LANGUAGE.format(program)
        assert canonicalise(found, LANGUAGE) == found
        written.append(picture_of(other))
        canonical.append(picture_of(found))
        colors = [[layer.color for layer in each] for each in (written[-1], canonical[-1])]
        reordered.append(colors[0] != colors[1])
    for start in range(0, number, 50):
        part = slice(start, start + 50)
        one, other = renderer.pictures(written[part]), renderer.pictures(canonical[part])
        difference = (one - other).abs().amax(dim=(1, 2, 3))
        same_order = ~torch.tensor(reordered[part])
        assert (difference[same_order] == 0).all()
        # In another order the same sums are rounded differently.
        assert (difference <= 1e-6).all()
    assert any(reordered)


def outlines(sides: int) -> list[Outline]:
    """All outlines of so many edges on a grid of 3 x 3, straight or by some arcs."""
    points = list(itertools.product(range(3), repeat=2))
    styles = [(-1, True), *itertools.product((HALF, 1, 2), (True, False))]
    styles = styles if sides < 3 else styles[:3]
    return [
        Outline(v[0], tuple(Edge(*end, *how) for end, how in zip(v[1:] + v[:1], hows, strict=True)))
        for v in itertools.permutations(points, sides)
        for hows in itertools.product(styles, repeat=sides)
    ]


@pytest.mark.parametrize("sides", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_equal_pictures_have_one_outline(sides):
    """Every outline of a small language, grouped by what it covers to the last sample."""
    language = Language(grid=3, radii=(1, 2), palette=((0, 0, 0),), margin=1.5)
    renderer = Renderer(language, 72)
    groups = defaultdict(set)
    found = outlines(sides)
    merged = 0
    for start in range(0, len(found), 256):
        part = found[start : start + 256]
        canonical = [canonical_outline(outline, language) for outline in part]
        assert [canonical_outline(outline, language) for outline in canonical] == canonical
        images = [renderer.coverage([(Layer(o, 0),) for o in each]) for each in (part, canonical)]
        assert torch.equal(*images)
        for outline, image in zip(canonical, images[1], strict=True):
            area = abs(signed_area(polyline(outline)))
            if area > 0.05 and is_simple(outline, distance=1e-3):
                groups[to_uint8(image).numpy().tobytes()].add(outline)
                merged += 1
    assert {len(group) for group in groups.values()} == {1}
    assert merged > 2 * len(groups)


def test_arcs_of_one_circle_are_cut_anew():
    quarters = ((4, 2), (6, 4), (4, 6), (2, 4))
    circle = Outline((2, 4), tuple(Edge(*end, 2, True) for end in quarters))
    halves = (Edge(4, 6, HALF, True), Edge(4, 2, HALF, True))
    assert canonical_outline(circle, LANGUAGE) == Outline((4, 2), halves)
    # Three quarters and two radii: half a circle, then a quarter.
    sector = Outline((4, 4), (Edge(2, 4), *circle.edges[:3], Edge(4, 4)))
    edges = (Edge(4, 6, 2), Edge(4, 4), Edge(2, 4), Edge(6, 4, HALF))
    assert canonical_outline(sector, LANGUAGE).vertices == [(2, 4), (6, 4), (4, 6), (4, 4), (2, 4)]
    assert set(canonical_outline(sector, LANGUAGE).edges) == set(edges)


def test_layers_whose_order_cannot_be_seen_are_sorted():
    left, right = square(0, 3, 2, color=5), square(5, 1, 2, color=3)
    expected = (right, left)
    for mode in ("normal", "multiply"):
        for pair in ((left, right), (right, left)):
            picture = (pair[0], Layer(pair[1].outline, pair[1].color, mode=mode))
            assert canonical_picture(picture, LANGUAGE) == expected
    touching = (square(0, 3, 2, color=5), square(2, 0, 3, color=3))
    assert canonical_picture(touching, LANGUAGE) == touching  # they share a corner's pixels


def test_the_example_of_the_specification():
    program = LANGUAGE.parse(
        "Create(6,5)\nStraight(1,1, 1)\nStraight(6,1, 2)\nFillcolor(2, 3)\n"
        "Create(2,3)\nStraight(4,3, 5)\nStraight(6,3, 6)\nStraight(6,5, 7)\n"
        "Circle(2,5,2,cw, 8)\nFillcolor(0, 9)\nMultiply(4,10)"
    )
    assert LANGUAGE.format(canonicalise(program, LANGUAGE)).splitlines() == [
        "1 Create(1,1)",
        "2 Straight(6,1, 1)",
        "3 Straight(6,5, 2)",
        "4 Straight(1,1, 3)",
        "5 Fillcolor(2, 4)",
        "6 Create(2,3)",
        "7 Straight(6,3, 6)",
        "8 Straight(6,5, 7)",
        "9 Circle(2,5,half,cw, 8)",
        "10 Straight(2,3, 9)",
        "11 Fillcolor(0, 10)",
        "12 Multiply(5,11)",
    ]
