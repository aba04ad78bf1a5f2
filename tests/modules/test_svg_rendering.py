"""Drawing documents against resvg: all blend modes, strokes, fill rules, groups."""

import math

import pytest
import torch
from svg_oracles import far_from_edges, resvg
from tenfold.kernels.compositing import BLEND_MODES, BlendMode
from tenfold.modules.svg import (
    Arc,
    Cubic,
    Document,
    Fill,
    Group,
    Line,
    Shape,
    Stroke,
    Subpath,
    parse_svg,
    render,
    write_svg,
)
from tenfold.modules.svg.rendering import document_coverage

SIZE = (64, 64)
BOX = (0.0, 0.0, 64.0, 64.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_color() -> tuple[float, float, float]:
    """One of 256 levels per channel, as files have them; 0 and 1 are frequent."""
    levels = (torch.randint(-60, 316, (3,)).clamp(0, 255) / 255).tolist()
    return levels[0], levels[1], levels[2]


def random_shape(mode: BlendMode = "normal") -> Shape:
    """A polygon or a disc over a good part of the canvas, often translucent."""
    x, y, radius = (
        torch.rand(3) * torch.tensor([30.0, 30.0, 20]) + torch.tensor([17.0, 17, 10])
    ).tolist()
    if torch.rand(()) < 0.5:
        arcs = (
            Arc(radius, radius, 0, False, True, x - radius, y),
            Arc(radius, radius, 0, False, True, x + radius, y),
        )
        path = Subpath(x + radius, y, arcs, closed=True)
    else:
        angles = (torch.rand(5).sort().values * math.tau).tolist()
        first, *rest = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        path = Subpath(*first, tuple(Line(*corner) for corner in rest), closed=True)
    alpha, opacity = (torch.randint(1, 10, (2,)).clamp(max=5) / 5).tolist()
    return Shape((path,), Fill(random_color(), alpha), None, opacity, mode)


def check_against_resvg(document: Document, largest: float = 2 / 255) -> None:
    """Within 2/255 of resvg off the edges, and on average within 1/255."""
    size = SIZE
    mine = render([document], size, background=None)[0].double()
    theirs = resvg(write_svg(document, precision=5), size)
    difference = (mine - theirs).abs()
    far = far_from_edges(document_coverage(document, size))
    assert far.float().mean() > 0.2  # or nothing is compared
    assert difference[:, far].max() <= largest
    assert difference.mean() < 1 / 255


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize("opaque", [False, True])
def test_blend_modes_are_those_of_resvg(mode, opaque):
    for _ in range(16):
        below = random_shape()
        if opaque:
            edges = (Line(64, 0), Line(64, 64), Line(0, 64))
            below = Shape((Subpath(0, 0, edges, closed=True),), Fill(random_color()))
        check_against_resvg(Document(BOX, (below, random_shape(mode))))


# After each layer resvg rounds to 8 bits; these functions are up to several times as steep as 1, so
# that the next layer multiplies what was rounded off.
STEEP = ("color-dodge", "color-burn", "soft-light")


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_layers_and_groups_are_those_of_resvg(mode):
    largest = 5 / 255 if mode in STEEP else 2 / 255
    for _ in range(4):
        inner = Group((random_shape(), random_shape(mode)), 0.8, "multiply")
        group = Group((random_shape("screen"), inner, random_shape(mode)), 0.6, mode)
        children = random_shape(), random_shape(), group, random_shape(mode)
        check_against_resvg(Document(BOX, children), largest)


WAVE = (Subpath(10, 40, (Cubic(20, -20, 30, 90, 54, 20),)),)
CORNERS = (
    Subpath(10, 50, (Line(22, 12), Line(32, 50), Line(38, 12), Line(56, 40))),
    Subpath(30, 56, (Line(44, 56), Line(50, 60), Line(34, 60)), closed=True),
)
LOOP = (
    Subpath(20, 20, (Cubic(70, 10, -10, 70, 44, 44), Cubic(60, 32, 40, 10, 30, 30)), closed=True),
)
TURN = (Subpath(16, 32, (Line(48, 32), Line(32, 32))),)
POINTS = (
    Subpath(20, 20, (Line(20, 20),)),
    Subpath(44, 20, closed=True),
    Subpath(32, 44, (Line(32, 44), Line(32, 44))),
)
RING = (
    Subpath(
        50,
        32,
        (Arc(18, 12, 30, True, True, 14, 32), Arc(18, 12, 30, True, True, 50, 32)),
        closed=True,
    ),
    Subpath(
        40,
        32,
        (Arc(8, 8, 0, False, False, 24, 32), Arc(8, 8, 0, False, False, 40, 32)),
        closed=True,
    ),
)
PATHS = {
    "wave": WAVE,
    "corners": CORNERS,
    "loop": LOOP,
    "turn": TURN,
    "points": POINTS,
    "ring": RING,
}


@pytest.mark.parametrize("join", ["miter", "round", "bevel"])
@pytest.mark.parametrize("cap", ["butt", "round", "square"])
@pytest.mark.parametrize("paths", PATHS)
def test_strokes_are_those_of_resvg(paths, cap, join):
    for width, limit in ((1.5, 4.0), (9.0, 8.0)):
        stroke = Stroke((0.2, 0.0, 0.4), width, 0.7, cap, join, limit)
        shape = Shape(PATHS[paths], None, stroke)
        check_against_resvg(Document(BOX, (shape,)))


@pytest.mark.parametrize("rule", ["nonzero", "evenodd"])
@pytest.mark.parametrize("paths", ["loop", "corners", "ring", "wave"])
def test_fill_and_stroke_are_blended_as_one(paths, rule):
    fill, stroke = Fill((1.0, 0.6, 0.0), 0.8, rule), Stroke((0.0, 0.2, 0.8), 4.0, 0.5)
    below = Shape(RING, Fill((0.4, 0.8, 0.4)))
    shape = Shape(PATHS[paths], fill, stroke, 0.7, "difference")
    check_against_resvg(Document(BOX, (below, shape)))


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (33, 33)])
def test_other_canvases_hold_the_picture_in_the_middle(size):
    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 2 30 30">'
        '<rect x="-4" y="2" width="30" height="30" fill="teal"/>'
        '<circle cx="11" cy="17" r="9"/></svg>'
    )
    image = render([parse_svg(text)], size, background=None)[0].double()
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = resvg(text, (side, side))
    assert (image[:, top : top + side, left : left + side] - square).abs().mean() < 1 / 255
    assert image[3].sum() == pytest.approx(side * side)


def test_a_batch_is_its_documents_one_by_one():
    documents = [
        Document(BOX, tuple(random_shape("multiply") for _ in range(number)))
        for number in (3, 0, 1)
    ]
    batch = render(documents, (20, 24))
    for document, image in zip(documents, batch, strict=True):
        assert torch.equal(render([document], (20, 24))[0], image)
    assert torch.equal(batch[1], torch.ones(3, 20, 24))
    assert torch.equal(
        render(documents, (20, 24), (0.0, 0.5, 1.0))[1, :, 0, 0], torch.tensor([0, 0.5, 1])
    )
    assert render([], (20, 24)).shape == (0, 3, 20, 24)


def test_what_rounding_left_open_is_no_corner():
    """A closing line of 1e-13 units has no direction that a join could follow."""
    stroke = Stroke(width=6.0, miter_limit=30.0)
    images = []
    for shift in (0.0, 1e-13):
        corners = (Line(50, 20), Line(32, 50), Line(14 + shift, 20 - shift))
        shape = Shape((Subpath(14, 20, corners, closed=True),), None, stroke)
        images.append(render([Document(BOX, (shape,))], SIZE))
    assert torch.equal(*images)


def test_wide_strokes_of_small_documents_stay_smooth():
    """A circle as a thick stroke is a ring, whatever the scale."""
    circle = '<circle cx="1" cy="1" r=".5" fill="none" stroke="#000" stroke-width=".6"/>'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">{circle}</svg>'
    image = render([parse_svg(text)], (100, 100), None)[0, 3]
    center = torch.arange(100) + 0.5 - 50
    radius = (center[:, None] ** 2 + center**2).sqrt()
    expected = (radius - 9.5).clamp(0, 1) * (40.5 - radius).clamp(0, 1)
    assert (image - expected).abs().max() < 0.12
