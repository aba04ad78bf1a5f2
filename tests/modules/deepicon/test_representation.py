"""Icons as tensors: exact both ways, canonical, and whatever a network makes up draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.datamodules.icons import GeneratedIcons
from tenfold.modules.deepicon import IconCodec, IconError, IconStyle, IconTensors, Paint
from tenfold.modules.deepicon.canonical import canonical_subpath, reversed_subpath
from tenfold.modules.deepicon.deepsvg import (
    document_from_deepsvg,
    from_deepsvg,
    to_deepsvg,
)
from tenfold.modules.deepicon.representation import (
    ARG_MASK,
    CLOSE,
    CUBIC,
    EOS,
    LINE,
    MOVE,
    NUM_TYPES,
    PAD,
)
from tenfold.modules.svg import Cubic, Document, Line, Stroke, Subpath, parse_svg, render, write_svg

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48" fill="none" stroke="#000"
stroke-width="4" stroke-linecap="round" stroke-linejoin="round">{}</svg>"""


def icon(content: str) -> Document:
    return parse_svg(ICON.format(content))


def same_ink(one: Document, other: Document, size: int = 48) -> float:
    images = render([one, other], (size, size))[:, 0] < 0.5
    union = (images[0] | images[1]).sum()
    return float((images[0] & images[1]).sum() / union) if union else 1.0


coordinates = st.floats(0, 24, width=32).map(lambda x: round(x, 3))
points = st.tuples(coordinates, coordinates)
curves = st.tuples(points, points, points).map(lambda p: Cubic(*p[0], *p[1], *p[2]))
segments = st.one_of(points.map(lambda p: Line(*p)), curves)
subpaths = st.builds(
    lambda start, rest, closed: Subpath(*start, tuple(rest), closed),
    points,
    st.lists(segments, min_size=1, max_size=5),
    st.booleans(),
)


def test_a_house_becomes_the_commands_that_draw_it():
    house = icon('<path d="M10 40v-20h20v20z"/><circle cx="24" cy="24" r="4"/>')
    tensors, style = IconCodec(max_paths=3, max_commands=8).encode(house)
    assert style == IconStyle(2.0, "round", "round")
    assert tensors.visible.tolist() == [True, True, False]
    # From the upper left corner, clockwise; Z draws the last line. Units are halved to 24.
    assert tensors.types[0].tolist() == [MOVE, LINE, LINE, LINE, CLOSE, EOS, PAD, PAD, PAD]
    corners = (tensors.args[0, :4, 4:] + 1) * 12
    torch.testing.assert_close(corners, torch.tensor([[5.0, 10], [15, 10], [15, 20], [5, 20]]))
    assert tensors.types[1].tolist()[:6] == [MOVE, CUBIC, CUBIC, CUBIC, CUBIC, CLOSE]
    assert not tensors.args[~ARG_MASK[tensors.types]].any()


@settings(max_examples=60, deadline=None)
@given(subpaths)
def test_the_canonical_form_is_one_of_all_ways_to_write_an_outline(subpath):
    canonical = canonical_subpath(subpath)
    assert canonical_subpath(canonical) == canonical

    def outlines(one: Subpath) -> set:
        """Segments without a direction; the line that closes is one of them."""
        found, x, y = set(), one.x, one.y
        ends = [*one.segments, *([Line(one.x, one.y)] if one.closed else [])]
        for segment in ends:
            control = segment[:-2] if isinstance(segment, Cubic) else ()
            forth = ((x, y), *zip(control[::2], control[1::2], strict=True), segment[-2:])
            if forth[0] != forth[-1] or control:
                found.add(min(tuple(forth), tuple(reversed(forth))))
            x, y = segment[-2:]
        return found

    assert outlines(canonical) == outlines(subpath)
    backwards = canonical_subpath(reversed_subpath(subpath))
    assert outlines(backwards) == outlines(canonical)


def test_where_a_square_begins_and_which_way_it_runs_does_not_matter():
    corners = [(3.0, 3.0), (9.0, 3.0), (9.0, 8.0), (3.0, 8.0)]
    forms = set()
    for first in range(4):
        for step in (1, -1):
            (x, y), *rest = [corners[(first + step * k) % 4] for k in range(4)]
            forms.add(canonical_subpath(Subpath(x, y, tuple(Line(*p) for p in rest), True)))
            closed_by_hand = tuple(Line(*p) for p in [*rest, (x, y)])
            forms.add(canonical_subpath(Subpath(x, y, closed_by_hand, True)))
    (form,) = forms
    assert (form.x, form.y, form.segments[0]) == (3.0, 3.0, Line(9.0, 3.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(subpaths, st.sampled_from([0, 1, 2])), min_size=1, max_size=4))
def test_an_icon_survives_its_tensors(shapes):
    names = {0: 'fill="none"', 1: 'stroke="none" fill="#000" fill-rule="evenodd"', 2: 'fill="#000"'}
    names[2] += ' fill-rule="evenodd"'
    content = ""
    for subpath, kind in shapes:
        d = f"M{subpath.x} {subpath.y}"
        for segment in subpath.segments:
            d += ("C" if isinstance(segment, Cubic) else "L") + " ".join(map(str, segment))
        content += f'<path {names[kind]} d="{d}{"Z" if subpath.closed else ""}"/>'
    document = parse_svg(ICON.format(content).replace("0 0 48 48", "0 0 24 24"))
    codec = IconCodec(max_paths=4, max_commands=8)
    tensors, style = codec.encode(document)
    back = parse_svg(write_svg(codec.decode(tensors, style), precision=6))
    assert same_ink(document, back) >= 0.98
    # What the first encoding has made canonical a second one leaves.
    again, _ = codec.encode(codec.decode(tensors, style))
    for one, other in zip(tensors, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('<path stroke="red" d="M1 1h9"/>', "several colours"),
        ('<path opacity=".5" d="M1 1h9"/>', "translucent"),
        ('<path d="M1 1h9"/><path stroke-width="1" d="M1 1h9"/>', "strokes of several styles"),
        ('<path d="M1 1h90"/>', "leaves its view box"),
        ('<path d="M1 1h1h1h1h1h1h1"/>', "a path of more than 6 commands"),
        ('<path d="M1 1h9"/>' * 3, "more than 2 paths"),
        ('<path d="M1 1"/>', "paints nothing"),
        ('<g opacity=".5"><path d="M1 1h9"/></g>', "groups that are blended"),
    ],
)
def test_what_the_tensors_cannot_hold_is_refused_with_the_reason(content, reason):
    with pytest.raises(IconError, match=reason):
        IconCodec(max_paths=2, max_commands=6).encode(icon(content))


def test_holes_are_one_path_or_several():
    ring = icon(
        '<path fill="#000" stroke="none" fill-rule="evenodd" d="M4 4h40v40h-40z M14 14h9v9h-9z"/>'
    )
    for unit, paths in (("element", 1), ("subpath", 2)):
        codec = IconCodec(max_paths=2, max_commands=12, path_unit=unit)
        tensors, style = codec.encode(ring)
        assert int(tensors.visible.sum()) == paths
        assert same_ink(ring, codec.decode(tensors, style)) >= 0.98


def test_white_over_black_is_erased_in_the_order_of_the_file():
    content = '<circle fill="#000" stroke="none" cx="24" cy="24" r="20"/>'
    content += '<circle fill="#fff" stroke="none" cx="24" cy="24" r="8"/>'
    codec = IconCodec(max_paths=2, max_commands=8)
    tensors, _ = codec.encode(icon(content))
    assert [Paint(p) for p in tensors.paint.tolist()] == [Paint.FILL, Paint.ERASE]
    assert same_ink(icon(content), codec.decode(tensors)) >= 0.98
    # Told from top to bottom the circles would change places, and the hole would go.
    turned, _ = IconCodec(2, 8, path_order="topleft").encode(icon(content))
    assert [Paint(p) for p in turned.paint.tolist()] == [Paint.FILL, Paint.ERASE]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_a_network_says_is_an_svg(data):
    types = data.draw(st.lists(st.integers(0, NUM_TYPES - 1), min_size=9, max_size=9))
    args = data.draw(
        st.lists(st.floats(-1, 1, width=32), min_size=54, max_size=54), label="arguments"
    )
    tensors = IconTensors(
        torch.tensor(types).view(1, 9),
        torch.tensor(args).view(1, 9, 6),
        torch.tensor([True]),
        torch.tensor([data.draw(st.integers(0, 3))]),
    )
    document = IconCodec(max_paths=1, max_commands=8).decode(tensors, snap=0.5)
    text = write_svg(document)
    again = parse_svg(text)  # refuses scripts, references, and what is not well-formed
    assert sum(1 for _ in again.shapes()) == sum(1 for _ in document.shapes()) <= 1


def test_an_end_near_the_start_is_joined_to_it():
    codec = IconCodec(max_paths=1, max_commands=5)
    types = torch.tensor([[MOVE, LINE, LINE, LINE, CLOSE, EOS]])
    args = torch.zeros(1, 6, 6)
    args[0, :4, 4:] = torch.tensor([[2.0, 2], [9, 2], [9, 9], [2.1, 2.2]]) / 12 - 1
    parts = (types, args, torch.tensor([True]), torch.tensor([0]))
    (shape,) = codec.decode(IconTensors(*parts)).shapes()
    end = shape.subpaths[0].segments[-1]
    assert (end.x, end.y) == pytest.approx((2, 2))
    assert shape.name == "layer-0"
    args[0, 3, 4:] = torch.tensor([2.1, 3.2]) / 12 - 1
    (shape,) = codec.decode(IconTensors(*parts)).shapes()
    assert shape.subpaths[0].segments[-1].y == pytest.approx(3.2, abs=1e-5)


# DeepSVG.


def test_deepsvgs_tensors_come_back_bit_for_bit():
    codec, icons = IconCodec(max_paths=5, max_commands=12), GeneratedIcons(fill=0.5, grid=0.0)
    for index in range(20):
        tensors, _ = codec.encode(icons[index])
        rows, fillings = to_deepsvg(tensors)
        back = from_deepsvg(rows, fillings, 5, 12)
        for one, other in zip(tensors, back, strict=True):
            assert torch.equal(one, other)


def test_deepsvgs_columns_are_theirs():
    """Against numbers by the definition: type, five of arcs, start, controls, end."""
    document = icon('<path d="M4 4h8c2 0 4 2 4 4z"/>')
    tensors, _ = IconCodec(max_paths=1, max_commands=6).encode(document)
    (rows,), fillings = to_deepsvg(tensors)
    arc = [-1.0] * 5
    none = [-1.0] * 4
    expected = [
        [0, *arc, 0, 0, *none, 2, 2],
        [1, *arc, 2, 2, *none, 6, 2],
        [2, *arc, 6, 2, 7, 2, 8, 3, 8, 4],
        [6, *arc, 8, 4, *none, 2, 2],
    ]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64))
    assert fillings == [0]


def test_deepsvgs_arcs_become_curves():
    stroke = Stroke(width=1.0)
    rows = torch.tensor(
        [[0.0, *[-1] * 5, 0, 0, *[-1] * 4, 4, 8], [3, 4, 4, 0, 0, 1, 4, 8, *[-1] * 4, 12, 8]]
    )
    (shape,) = document_from_deepsvg([rows], [0], stroke).shapes()
    top = min(segment.y for segment in shape.subpaths[0].segments)
    assert math.isclose(top, 4, abs_tol=1e-6)
    with pytest.raises(ValueError, match="arcs"):
        from_deepsvg([rows], [0], 1, 4)
