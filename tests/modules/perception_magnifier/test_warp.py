"""Warps: values worked out by hand, scipy for the authors' warp, properties on random densities."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.ndimage import map_coordinates
from tenfold.modules.perception_magnifier.warp import (
    RandomAxisWarp,
    anchored_coordinates,
    forward_shares,
    magnification,
    marginals,
    reference_coordinates,
    sample,
    shared_density,
    warp_images,
)


def densities(min_size: int = 1):
    """One density of 1 to 40 pixels, zeros and extremes included."""
    values = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
    return st.lists(values, min_size=min_size, max_size=40).map(lambda v: torch.tensor([v]))


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 0, 0], [0, 1, 2]),
        ([1, 1, 4, 4, 1, 1], [0.5, 1.75, 2.25, 2.75, 3.25, 4.5]),
    ],
)
def test_anchored_coordinates_worked_out_by_hand(density, expected):
    found = anchored_coordinates(torch.tensor([density], dtype=torch.float64))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@given(densities(), st.integers(1, 60))
@settings(deadline=None)
def test_anchored_coordinates_increase_stay_inside_and_mirror(density, size):
    found = anchored_coordinates(density, size)[0]
    assert bool((found.diff() > 0).all())
    assert found[0] > -0.5
    assert found[-1] < density.shape[1] - 0.5
    mirrored = anchored_coordinates(density.flip(1), size)[0]
    # A pixel of density 1e-6 is steep, and rounding errors grow there.
    torch.testing.assert_close(density.shape[1] - 1 - mirrored.flip(0), found, rtol=0, atol=1e-5)


@given(densities(), st.integers(1, 60))
@settings(deadline=None)
def test_forward_shares_undo_the_coordinates(density, size):
    edges = (anchored_coordinates(density, size) + 0.5) / density.shape[1]
    expected = (torch.arange(size).double() + 0.5) / size
    torch.testing.assert_close(forward_shares(density, edges)[0], expected, rtol=0, atol=1e-9)


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1e3))
@settings(deadline=None)
def test_an_even_density_returns_the_very_image(height, width, level):
    image = torch.rand(1, 3, height, width)
    warped = warp_images(image, torch.full((1, width), level), torch.full((1, height), level))
    assert torch.equal(warped, image)


def test_sampling_agrees_with_grid_sample():
    images = torch.rand(2, 3, 9, 14, dtype=torch.float64)
    x, y = (anchored_coordinates(torch.rand(2, size) ** 3) for size in (14, 9))
    grid_x = (2 * (x + 0.5) / 14 - 1)[:, None, :].expand(2, 9, 14)
    grid_y = (2 * (y + 0.5) / 9 - 1)[:, :, None].expand(2, 9, 14)
    expected = F.grid_sample(
        images, torch.stack([grid_x, grid_y], dim=-1), padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(sample(images, x, y), expected)


def test_the_warp_enlarges_what_the_map_marks_and_keeps_the_rest():
    image = torch.zeros(1, 1, 40, 40)
    image[..., 10:14, 20:24] = 1
    maps = torch.full((1, 40, 40), 0.1)
    maps[:, 8:16, 18:26] = 1
    x, y = marginals(maps)
    warped = warp_images(image, x, y)
    enlarged = magnification(x)[0, 20] * magnification(y)[0, 10]
    assert warped.sum() / image.sum() == pytest.approx(enlarged.item(), rel=0.02)
    assert enlarged > 6
    corner = torch.zeros(1, 1, 40, 40)
    corner[..., :6, :6] = 1
    assert 0 < warp_images(corner, x, y).sum() < corner.sum()


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        ([1, 1, 1, 1], [-1, 1 / 3, 5 / 3, 3]),
        ([1, 1, 4, 4, 1, 1], [-1, 1.1, 1.7, 2.3, 2.9, 5]),
        ([0, 0, 1, 1, 0], [np.nan, 1.5, 2, 2.5, 3]),
    ],
)
def test_reference_coordinates_have_the_defects_that_were_measured(density, expected):
    found = reference_coordinates(torch.tensor([density], dtype=torch.float64))
    np.testing.assert_allclose(found[0], expected, atol=1e-12)


def test_the_reference_warp_is_that_of_scipy():
    rng = np.random.default_rng(0)
    image = rng.random((12, 17))
    x, y = rng.random(17) + 0.05, rng.random(12) + 0.05

    def coordinates(density):
        cumulative = np.cumsum(density) / density.sum()
        inverse = interp1d(cumulative, np.arange(len(density)), fill_value="extrapolate")
        return inverse(np.linspace(0, 1, len(density))).clip(max=len(density) - 1)

    grid = np.stack(np.meshgrid(coordinates(y), coordinates(x), indexing="ij"))
    expected = map_coordinates(image, grid, order=1, mode="constant", cval=0)
    found = warp_images(
        torch.from_numpy(image)[None, None],
        torch.from_numpy(x)[None],
        torch.from_numpy(y)[None],
        "reference",
    )[0, 0]
    assert not found[0].any()
    assert not found[:, 0].any()
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(densities())
@settings(deadline=None)
def test_no_warp_makes_black_borders_or_numbers_that_are_none(density):
    size = density.shape[1]
    image = torch.ones(1, 1, size, size)
    torch.testing.assert_close(warp_images(image, density, density), image)
    if size > 1:
        assert warp_images(image, density, density, "reference").isfinite().all()


def test_a_separable_map_has_its_factors_as_marginals():
    x, y = torch.rand(1, 7), torch.rand(1, 5)
    by_max = marginals(y[:, :, None] * x[:, None, :], "max")
    torch.testing.assert_close(by_max[0] / by_max[0].sum(), x / x.sum())
    torch.testing.assert_close(by_max[1] / by_max[1].sum(), y / y.sum())
    by_sum = marginals(y[:, :, None] * x[:, None, :], "sum")
    torch.testing.assert_close(by_sum[0], x * y.sum())


def test_a_shared_density_is_the_same_on_both_axes_of_a_square():
    x, y = shared_density(torch.rand(2, 6), torch.rand(2, 6))
    torch.testing.assert_close(x, y)
    x, y = shared_density(torch.rand(2, 6), torch.rand(2, 9))
    assert (x.shape, y.shape) == ((2, 6), (2, 9))


def test_random_warps_move_boxes_with_what_is_in_them():
    torch.manual_seed(0)
    images = torch.zeros(64, 3, 80, 100)
    images[:, :, 20:40, 50:75] = 1
    boxes = torch.tensor([[[0.5, 0.25, 0.75, 0.5], [0, 0, 1, 1]]]).repeat(64, 1, 1)
    warped, moved = RandomAxisWarp()(images, boxes)
    for image, (left, top, right, bottom) in zip(warped[:, 0], moved[:, 0].tolist(), strict=True):
        rows, columns = (image > 0.5).nonzero(as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        expected = [100 * left, 80 * top, 100 * right, 80 * bottom]
        assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))
    torch.testing.assert_close(moved[:, 1], boxes[:, 1])
    unmoved = (moved[:, 0] - boxes[:, 0]).abs() < 1e-6
    assert 0.3 < unmoved[:, 0].float().mean() < 0.7  # each axis by itself, every second time
    assert 0.1 < (unmoved[:, 0] & unmoved[:, 1]).float().mean() < 0.4


def test_random_warps_can_be_switched_off_and_need_no_boxes():
    images = torch.rand(2, 3, 8, 8)
    warped, boxes = RandomAxisWarp(probability=0.0)(images, None)
    assert torch.equal(warped, images)
    assert boxes is None
    assert RandomAxisWarp()(torch.rand(0, 3, 8, 8), torch.zeros(0, 1, 4))[0].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("settings", [{"probability": 1.5}, {"strength": -1.0}, {"num_knots": 1}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RandomAxisWarp(**settings)
