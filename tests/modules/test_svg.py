"""Reading and writing SVG documents: what is read, and that both agree."""

import math

import pytest
import svgelements
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tenfold.kernels.compositing import BLEND_MODES
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
    SvgError,
    normalized,
    parse_svg,
    path_data,
    without_arcs,
    write_svg,
)
from tenfold.modules.svg.geometry import arc_curves, transformed_subpath

XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def svg(content: str, attributes: str = 'viewBox="0 0 24 24"') -> str:
    return f"<svg {XMLNS} {attributes}>{content}</svg>"


def shapes(content: str, **options) -> list[Shape]:
    return list(parse_svg(svg(content), **options).shapes())


def only(content: str, **options) -> Shape:
    (shape,) = shapes(content, **options)
    return shape


# What is read.


@pytest.mark.parametrize(
    ("element", "data"),
    [
        ('<path d="M1 2l3 4h-1v2H0V1z"/>', "M1 2L4 6L3 6L3 8L0 8L0 1Z"),
        ('<path d="m1 2 3 4m1 1-2 0"/>', "M1 2L4 6M5 7L3 7"),
        ('<path d="M0 0L1 0z l0 1"/>', "M0 0L1 0ZM0 0L0 1"),
        ('<path d="M0 0q3 3 6 0t6 0"/>', "M0 0C2 2 4 2 6 0C8 -2 10 -2 12 0"),
        ('<path d="M0 0c1 1 2 1 3 0s2-1 3 0"/>', "M0 0C1 1 2 1 3 0C4 -1 5 -1 6 0"),
        ('<path d="M0 0a2 1 0 01.5.5"/>', "M0 0A2 1 0 0 1 0.5 0.5"),
        ('<path d="M0 0a0 1 0 0 1 3 0"/>', "M0 0L3 0"),
        ('<path d="M0 0A1 1 0 0 0 4 0"/>', "M0 0A2 2 0 0 0 4 0"),
        ('<rect x="1" y="2" width="3" height="4"/>', "M1 2L4 2L4 6L1 6Z"),
        (
            '<rect width="6" height="4" ry="1"/>',
            "M1 0L5 0A1 1 0 0 1 6 1L6 3A1 1 0 0 1 5 4L1 4A1 1 0 0 1 0 3L0 1A1 1 0 0 1 1 0Z",
        ),
        (
            '<rect width="2" height="2" rx="9"/>',
            "M1 0A1 1 0 0 1 2 1A1 1 0 0 1 1 2A1 1 0 0 1 0 1A1 1 0 0 1 1 0Z",
        ),
        ('<circle cx="5" cy="6" r="2"/>', "M7 6A2 2 0 0 1 3 6A2 2 0 0 1 7 6Z"),
        ('<ellipse cx="5" cy="6" rx="2" ry="1"/>', "M7 6A2 1 0 0 1 3 6A2 1 0 0 1 7 6Z"),
        ('<polyline points="1,2 3 4-5 6"/>', "M1 2L3 4L-5 6"),
        ('<polygon points="1,2 3 4-5 6"/>', "M1 2L3 4L-5 6Z"),
        ('<line x1="25%" x2="1in" y2="1pc"/>', "M6 0L96 16"),
        ('<path transform="translate(1,2) scale(2)" d="M1 1h1"/>', "M3 4L5 4"),
        ('<path transform="rotate(90 1 1)" d="M1 0h1"/>', "M2 1L2 2"),
        ('<path transform="matrix(1 0 1 1 0 0)" d="M1 1v1"/>', "M2 1L3 2"),
        ('<path transform="scale(-2 2)" d="M0 0a2 1 0 0 1 1 1"/>', "M0 0A4 2 0 0 0 -2 2"),
        (
            '<g transform="scale(3)"><path d="M1 1h1" style="transform:translate(2px,0)"/></g>',
            "M9 3L12 3",
        ),
        ('<defs><path id="p" d="M1 1h1"/></defs><use x="2" href="#p"/>', "M3 1L4 1"),
        (
            '<symbol id="s" viewBox="0 0 2 2"><path d="M0 1h2"/></symbol>'
            '<use xlink:href="#s" x="1" width="4" height="8"/>',
            "M1 4L5 4",
        ),
    ],
)
def test_geometry(element, data):
    assert path_data(only(element, keep_arcs=True).subpaths) == data


def test_circles_become_four_curves():
    (subpath,) = only('<circle cx="5" cy="6" r="2"/>').subpaths
    assert [type(segment) for segment in subpath.segments] == [Cubic] * 4
    assert subpath.closed
    for segment in subpath.segments:
        assert math.dist(segment[4:], (5, 6)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('<path d="M0 0h1" fill="#f00"/>', Fill((1, 0, 0))),
        ('<path d="M0 0h1" fill="rgb(0 0 255 / 50%)" fill-opacity=".5"/>', Fill((0, 0, 1), 0.25)),
        (
            '<path d="M0 0h1" fill="HSL(120, 100%, 50%)" fill-rule="evenodd"/>',
            Fill((0, 1, 0), 1, "evenodd"),
        ),
        ('<g fill="lime"><path d="M0 0h1"/></g>', Fill((0, 1, 0))),
        ('<g color="lime"><path d="M0 0h1" fill="currentColor"/></g>', Fill((0, 1, 0))),
        ('<g fill="lime"><path d="M0 0h1" style="fill:red;"/></g>', Fill((1, 0, 0))),
        ('<style>path{fill:red}</style><path d="M0 0h1" fill="lime"/>', Fill((1, 0, 0))),
        (
            '<style>#x{fill:red}.a{fill:lime}</style><path id="x" class="b a" d="M0 0h1"/>',
            Fill((1, 0, 0)),
        ),
        (
            '<style>.a{fill:red!important}</style><path class="a" d="M0 0h1" style="fill:lime"/>',
            Fill((1, 0, 0)),
        ),
        ('<style>/**/ path.a, *{fill:red}</style><path d="M0 0h1"/>', Fill((1, 0, 0))),
        ('<g fill="lime"><path d="M0 0h1" fill="inherit"/></g>', Fill((0, 1, 0))),
    ],
)
def test_fills(content, expected):
    assert only(content).fill == expected


def test_strokes():
    shape = only(
        '<g stroke="red" stroke-width="10%" stroke-linecap="round" stroke-linejoin="bevel"'
        ' fill="none" stroke-miterlimit="7"><path transform="scale(.5)" d="M0 0h1"'
        ' stroke-opacity="50%"/></g>'
    )
    assert shape.fill is None
    assert shape.stroke == Stroke((1, 0, 0), pytest.approx(1.2), 0.5, "round", "bevel", 7)


def test_document_order_and_names_are_kept():
    content = (
        '<rect id="a" width="1" height="1"/><g><path id="b" d="M0 0h1"/></g>'
        '<line id="c" x2="1" stroke="red"/>'
    )
    assert [shape.name for shape in shapes(content)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "content",
    [
        '<path d="M0 0h24v24H0z" stroke="none" fill="none"/>',
        '<path d="M0 0h24v24H0z" opacity="0"/>',
        '<path d="M0 0h24v24H0z" fill="none" stroke="red" transform="scale(0)"/>',
        '<path d="M0 0h24v24H0z" visibility="hidden"/>',
        '<g display="none"><path d="M0 0h24v24H0z"/></g>',
        '<g opacity="0"><path d="M0 0h24v24H0z"/></g>',
        '<path d="M1 1"/><path d=""/><path/><rect width="0" height="3"/><circle r="0"/>',
        '<title>x</title><metadata><x:y xmlns:x="z"/></metadata>',
        '<i:name xmlns:i="j"><path d="M0 0h9"/></i:name>',
        '<defs><linearGradient id="g"/><path d="M0 0h1"/></defs>',
    ],
)
def test_what_paints_nothing_is_no_shape(content):
    assert parse_svg(svg(content)).children == ()


def test_groups_stay_where_they_change_the_picture():
    (child,) = parse_svg(
        svg('<g id="x" opacity=".5"><path d="M0 0h1"/><path d="M0 1h1"/></g>')
    ).children
    assert isinstance(child, Group)
    assert (child.name, child.opacity, len(child.children)) == ("x", 0.5, 2)
    (child,) = parse_svg(svg('<g style="mix-blend-mode:multiply"><path d="M0 0h1"/></g>')).children
    assert isinstance(child, Group)
    assert child.blend_mode == "multiply"
    (child,) = parse_svg(svg('<g style="isolation:isolate"><path d="M0 0h1"/></g>')).children
    assert isinstance(child, Group)
    (child,) = parse_svg(
        svg('<g fill="red"><path d="M0 0h1" opacity=".3" style="mix-blend-mode:screen"/></g>')
    ).children
    assert isinstance(child, Shape)
    assert (child.opacity, child.blend_mode) == (0.3, "screen")


@pytest.mark.parametrize(
    ("attributes", "box"),
    [
        ('viewBox="1,2 3 4" width="99"', (1, 2, 3, 4)),
        ('width="12px" height="1in"', (0, 0, 12, 96)),
    ],
)
def test_view_boxes(attributes, box):
    assert parse_svg(svg("", attributes)).view_box == box


def test_a_clip_path_around_everything_is_none():
    clip = (
        '<clipPath id="c"><rect width="24" height="24"/></clipPath>'
        '<g clip-path="url(#c)"><path d="M0 0h1"/></g>'
    )
    assert len(shapes(clip)) == 1
    with pytest.raises(SvgError, match="clip-path is not supported"):
        shapes(clip.replace('width="24"', 'width="23"'))
    with pytest.raises(SvgError, match="clip-path is not supported"):
        shapes(clip.replace("<g ", '<g transform="scale(.5)" '))


def test_bytes_in_the_encoding_that_they_declare():
    text = '<?xml version="1.0" encoding="latin-1"?>' + svg('<path id="é" d="M0 0h1"/>')
    assert next(parse_svg(text.encode("latin-1")).shapes()).name == "é"


@pytest.mark.parametrize(
    "attributes",
    [
        'stroke-dasharray="2" vector-effect="non-scaling-stroke"',
        'transform-origin="50% 50%"',
        'paint-order="stroke"',
    ],
)
def test_what_would_change_strokes_or_turns_is_no_matter_without_them(attributes):
    assert only(f'<path d="M0 0h1" {attributes}/>') == only('<path d="M0 0h1"/>')
    with pytest.raises(SvgError, match="is not supported"):
        only(f'<path d="M0 0h1" {attributes} stroke="red" transform="scale(2)"/>')


# Geometry of documents.


def test_normalised_documents_fill_the_box_evenly():
    content = '<path d="M10 20h10v5" stroke="red" stroke-width="2"/>'
    document = normalized(parse_svg(svg(content, 'viewBox="10 20 20 10"')), 24)
    (shape,) = document.shapes()
    assert document.view_box == (0, 0, 24, 24)
    assert path_data(shape.subpaths) == "M0 6L12 6L12 12"
    assert shape.stroke
    assert shape.stroke.width == pytest.approx(2.4)


NUMBERS = st.floats(-20, 20).map(lambda value: round(value, 2))
ARCS = st.builds(
    Arc,
    st.floats(0.1, 9).map(lambda value: round(value, 2)),
    st.floats(0.1, 9).map(lambda value: round(value, 2)),
    st.integers(-89, 89).map(float),
    st.booleans(),
    st.booleans(),
    NUMBERS,
    NUMBERS,
)


@given(NUMBERS, NUMBERS, ARCS)
@settings(max_examples=60, deadline=None)
def test_curves_of_an_arc_lie_on_it(x, y, arc):
    expected = svgelements.Arc(
        (x, y), arc.rx, arc.ry, arc.rotation, arc.large, arc.sweep, (arc.x, arc.y)
    )
    points = [expected.point(k / 400) for k in range(401)]
    for segment in arc_curves(x, y, arc):
        if isinstance(segment, Cubic):
            middle_x = (x + 3 * segment.x1 + 3 * segment.x2 + segment.x) / 8
            middle_y = (y + 3 * segment.y1 + 3 * segment.y2 + segment.y) / 8
            nearest = min(math.dist((middle_x, middle_y), point) for point in points)
            assert nearest < 0.02 * max(expected.rx, expected.ry)
        x, y = segment.x, segment.y
    assert (x, y) == (arc.x, arc.y)


@given(NUMBERS, NUMBERS, ARCS, st.integers(0, 359), st.booleans(), st.floats(0.2, 3))
@settings(max_examples=60, deadline=None)
def test_an_arc_that_is_turned_is_that_of_its_turned_curves(x, y, arc, angle, mirrored, scale):
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    flip = -1 if mirrored else 1
    matrix = (cos, sin, -flip * sin, flip * cos, 3.0, -2.0)
    # Where the radii just reach, which of two arcs it is depends on rounding.
    path = Subpath(x, y, (arc._replace(rx=arc.rx + 30, ry=arc.ry + 30),))
    document = Document((0, 0, 1, 1), (Shape((path,), Fill()),))
    (curved,) = next(without_arcs(document).shapes()).subpaths
    expected = transformed_subpath(curved, matrix)
    turned = Document((0, 0, 1, 1), (Shape((transformed_subpath(path, matrix),), Fill()),))
    (mine,) = next(without_arcs(turned).shapes()).subpaths
    assert len(mine.segments) == len(expected.segments)
    for one, other in zip(mine.segments, expected.segments, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_stroke_that_is_scaled_unevenly_is_refused_and_a_fill_is_not():
    uneven = '<circle r="2" transform="scale(1 2)" {}/>'
    assert path_data(only(uneven.format("")).subpaths).startswith("M2 0C2 2.209")
    with pytest.raises(SvgError, match="a stroke is scaled unevenly"):
        only(uneven.format('stroke="red"'))


# Writing.

SEGMENTS = st.one_of(
    st.builds(Line, NUMBERS, NUMBERS),
    st.builds(Cubic, *[NUMBERS] * 6),
    ARCS.map(lambda arc: arc._replace(rx=arc.rx + 60, ry=arc.ry + 60)),  # never too small
)
SUBPATHS = st.builds(
    Subpath, NUMBERS, NUMBERS, st.lists(SEGMENTS, min_size=1, max_size=4).map(tuple), st.booleans()
)
COLORS = st.tuples(*[st.integers(0, 255).map(lambda value: value / 255)] * 3)
OPACITIES = st.integers(1, 100).map(lambda value: value / 100)
FILLS = st.builds(Fill, COLORS, OPACITIES, st.sampled_from(["nonzero", "evenodd"]))
STROKES = st.builds(
    Stroke,
    COLORS,
    st.integers(1, 900).map(lambda value: value / 100),
    OPACITIES,
    st.sampled_from(["butt", "round", "square"]),
    st.sampled_from(["miter", "round", "bevel"]),
    st.integers(1, 20).map(float),
)
MODES = st.sampled_from(BLEND_MODES)
NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=5)
PAINTS = st.one_of(
    st.tuples(FILLS, st.none()), st.tuples(st.none(), STROKES), st.tuples(FILLS, STROKES)
)
SHAPES = st.builds(
    lambda paths, paints, opacity, mode, name: Shape(tuple(paths), *paints, opacity, mode, name),
    st.lists(SUBPATHS, min_size=1, max_size=3),
    PAINTS,
    OPACITIES,
    MODES,
    NAMES,
)
GROUPS = st.recursive(
    SHAPES,
    lambda inner: st.builds(
        Group, st.lists(inner, min_size=1, max_size=3).map(tuple), OPACITIES, MODES, NAMES
    ),
    max_leaves=6,
)
DOCUMENTS = st.builds(
    Document,
    st.tuples(NUMBERS, NUMBERS, st.floats(1, 99).map(round).map(float), st.just(24.0)),
    st.lists(GROUPS, max_size=3).map(tuple),
)


def flat(child) -> list:
    """All numbers, and all else, of a document in order."""
    if isinstance(child, (int, float)):
        return [float(child)]
    if isinstance(child, (str, type(None))):
        return [child]
    if isinstance(child, tuple):
        return [type(child).__name__, *(value for each in child for value in flat(each))]
    values = [value for name in child.__slots__ for value in flat(getattr(child, name))]
    return [type(child).__name__, *values]


def has_arc_to_its_start(document: Document) -> bool:
    """Such an arc is nothing, and is read as a line of no length."""
    for path in (path for shape in document.shapes() for path in shape.subpaths):
        starts = [(path.x, path.y), *((each.x, each.y) for each in path.segments)]
        for start, segment in zip(starts, path.segments, strict=False):
            if isinstance(segment, Arc) and math.dist(start, (segment.x, segment.y)) < 0.02:
                return True
    return False


@given(DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_again(document):
    assume(not has_arc_to_its_start(document))
    again = parse_svg(write_svg(document, precision=4), keep_arcs=True)
    for one, other in zip(flat(again), flat(document), strict=True):
        assert one == pytest.approx(other, abs=2e-3) if isinstance(one, float) else one == other
    assert write_svg(parse_svg(write_svg(again), keep_arcs=True)) == write_svg(again)


def test_names_are_escaped():
    text = write_svg(
        Document((0, 0, 1, 1), (Shape((Subpath(0, 0, (Line(1, 1),)),), Fill(), name='"<&'),))
    )
    assert only(text.partition(">")[2].rpartition("</svg>")[0]).name == '"<&'


def test_numbers_that_no_file_can_hold_are_refused():
    path = Subpath(0, 0, (Line(math.nan, 1),))
    with pytest.raises(ValueError, match="svg: nan is no number that a file can hold"):
        write_svg(Document((0, 0, 1, 1), (Shape((path,), Fill()),)))
