"""Structure of vector images, against values by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.metrics.vector import (
    IconMetrics,
    chamfer_distances,
    compare_icons,
    path_points,
)
from tenfold.modules.svg import Document, Line, Shape, Stroke, Subpath, parse_svg
from torchvision.models import squeezenet1_1

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#000"
stroke-width="2" stroke-linecap="round" stroke-linejoin="round">{}</svg>"""
SQUARE = '<path d="M4 4h6v6h-6z"/>'
LINE = '<path d="M14 4h6"/>'
RING = '<circle cx="16" cy="16" r="4"/>'


def icon(content: str) -> Document:
    return parse_svg(SVG.format(content))


def line(*points: tuple[float, float], closed: bool = False) -> Shape:
    (x, y), *rest = points
    path = Subpath(x, y, tuple(Line(*p) for p in rest), closed)
    return Shape((path,), stroke=Stroke(width=2.0))


def test_points_are_as_far_apart_along_the_whole_outline():
    points = path_points(line((0, 0), (4, 0), (4, 2)), number=7)
    assert np.allclose(points, [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [4, 1], [4, 2]])
    around = path_points(line((0, 0), (2, 0), (2, 2), (0, 2), closed=True), number=9)
    assert np.allclose(around[[0, 4, 8]], [[0, 0], [2, 2], [0, 0]])


def test_chamfer_of_parallel_lines_is_twice_their_distance():
    shapes = [line((0, 0), (10, 0))]
    assert chamfer_distances(shapes, [line((0, 3), (10, 3))])[0, 0] == pytest.approx(6)
    # Half of the longer line is beyond the end of the shorter: on average 5/2 away over that half.
    longer = chamfer_distances(shapes, [line((0, 0), (20, 0))])[0, 0]
    assert longer == pytest.approx(2.5, rel=0.05)


def test_a_redrawn_icon_is_perfect_whatever_the_order_of_its_points():
    true = icon(SQUARE + LINE + RING)
    turned = icon('<path d="M10 10v-6h-6v6z"/><path d="M20 4h-6"/>' + RING)
    one = compare_icons(turned, true)
    assert (one.num_matched, one.f1, one.count_error, one.num_redundant) == (3, 1.0, 0, 0)
    assert (one.mse, one.ink_iou, one.order, one.num_incomplete) == pytest.approx((0, 1, 1, 0))
    assert one.blank_mse > 0.1


def test_a_path_drawn_twice_shows_in_structure_alone():
    true, twice = icon(SQUARE + LINE), icon(SQUARE + LINE + SQUARE)
    one = compare_icons(twice, true)
    assert one.mse < 1e-4  # borders are a little darker
    # Each of the two squares alone may be taken away.
    assert (one.count_error, one.num_redundant, one.num_matched) == (1, 2, 2)
    assert one.f1 == pytest.approx(4 / 5)


def test_a_small_offset_keeps_the_structure():
    one = compare_icons(icon('<path d="M4.4 4h6v6h-6z"/>' + LINE), icon(SQUARE + LINE))
    assert one.num_matched == 2
    assert one.ink_iou < 0.95
    far = compare_icons(icon('<path d="M5.5 4h6v6h-6z"/>' + LINE), icon(SQUARE + LINE))
    assert far.num_matched == 1


def test_outlines_that_are_not_closed_are_incomplete():
    true = icon(SQUARE + LINE)
    almost = compare_icons(icon('<path d="M4 4h6v6h-6v-5.2"/>' + LINE), true)
    assert (almost.num_closed, almost.num_incomplete) == (1, 0)  # a gap of 0.8
    apart = compare_icons(icon('<path d="M4 4h6v6h-6v-4.5"/>' + LINE), true)
    assert (apart.num_incomplete, apart.num_open) == (1, 1)  # of 1.5
    missing = compare_icons(icon(LINE), true)
    assert (missing.num_incomplete, missing.num_open) == (1, 0)


def test_order_is_kendalls():
    paths = [SQUARE, LINE, RING]
    true = icon("".join(paths))
    assert compare_icons(icon("".join(reversed(paths))), true).order == -1
    swapped = compare_icons(icon(paths[1] + paths[0] + paths[2]), true)
    assert swapped.order == pytest.approx(1 / 3)


def test_nothing_at_all_is_compared_too():
    one = compare_icons(icon(""), icon(SQUARE))
    assert (one.num_paths, one.num_matched, one.f1, one.count_error) == (0, 0, 0, 1)
    assert one.mse == one.blank_mse
    assert math.isnan(one.order)
    nothing = compare_icons(icon(""), icon(""))
    assert (nothing.f1, nothing.ink_iou) == (1, 1)


def test_means_are_those_of_sums_and_each_icon_counts_once():
    true = icon(SQUARE + LINE)
    pairs = {"good": true, "twice": icon(SQUARE + LINE + SQUARE), "none": icon("")}
    metrics = IconMetrics(64)
    for name, predicted in pairs.items():
        for _ in range(2):
            metrics.update([name], [compare_icons(predicted, true, 64)])
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found["matched_precision"] == pytest.approx(4 / 5)
    assert found["matched_recall"] == pytest.approx(4 / 6)
    assert found["matched_f1"] == pytest.approx(8 / 11)
    assert found["redundant_paths"] == pytest.approx(2 / 5)
    assert found["count_accuracy"] == pytest.approx(1 / 3)
    assert found["count_error"] == pytest.approx(1)
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["incomplete_shapes"] == pytest.approx(1 / 3)
    assert found["num_commands"] == pytest.approx((2 * 3 + 3 + 1 + 1) / 5)


@pytest.mark.filterwarnings("ignore:.*was called before")
def test_no_icon_no_number():
    assert IconMetrics().compute() == {}


class Brightness:
    """Embeds a picture as what is dark and what is light."""

    def encode_images(self, images):
        shares = torch.tensor([np.asarray(image).mean() / 255 for image in images])
        return torch.stack([shares, 1 - shares], dim=1)


def test_encoders_say_how_alike_pictures_are():
    metrics = IconMetrics(32, {"brightness": Brightness()})
    true, other = icon(SQUARE), icon("")
    similar = metrics.similarities([true, other], [true, true])
    assert similar.shape == (2, 1)
    assert similar[0, 0] == pytest.approx(1)
    assert similar[1, 0] < 1
    metrics.update(["a", "b"], [compare_icons(p, true, 32) for p in (true, other)], similar)
    assert metrics.compute()["brightness"] == pytest.approx(similar.mean().item())


def test_lpips_needs_weights_and_says_so(tmp_path, monkeypatch):
    true, other = icon(SQUARE), icon(RING)
    metrics = IconMetrics(64, lpips="squeeze")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ValueError, match="weights of squeeze are not there"):
        metrics.similarities([true], [true])
    # Random ones will do: nothing is farther from an icon than itself.
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(squeezenet1_1().state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    same, different = metrics.similarities([true, other], [true, true])[:, 0].tolist()
    assert same == pytest.approx(0, abs=1e-6)
    assert different > 1e-4


def unreachable(*args, **kwargs):
    raise OSError("no network")


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(3)), st.floats(0, 1))
def test_order_and_translucency_of_what_does_not_overlap_change_no_match(order, opacity):
    true = icon(SQUARE + LINE + RING)
    shapes = [list(true.shapes())[place] for place in order]
    one = compare_icons(replace(true, children=tuple(shapes)), true, 32)
    assert (one.f1, one.mse) == (1, pytest.approx(0, abs=1e-6))
    faint = [replace(shape, opacity=opacity) for shape in shapes]
    assert compare_icons(replace(true, children=tuple(faint)), true, 32).f1 == 1
