"""Coverage of paths against its definition in float64, against Skia, and by finite differences.

Triton's code runs in `interpreted/check_polygon_raster.py`; here it is compiled for GPUs that this
machine does not have.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BPoly
from scipy.spatial import cKDTree
from svg_oracles import far_from_edges, skia_coverage, skia_path
from tenfold.kernels import polygon_raster, polygon_raster_triton
from tenfold.kernels.polygon_raster import coverage, cubic_edges, polygon_edges, soft_coverage
from torch import Tensor

SQUARE = torch.tensor([[2.0, 2.0], [7.0, 2.0], [7.0, 6.0], [2.0, 6.0]])


@st.composite
def paths(draw: st.DrawFn) -> Tensor:
    """(2, 2, E, 4) float64: edges of two contours, some of them cut open, off any grid."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = draw(st.integers(2, 6))
    points = torch.from_numpy(rng.integers(-16, 64, (2, 2, 2, number, 2)) / 4)
    edges = polygon_edges(points).flatten(2, 3)
    keep = edges.shape[2] - draw(st.integers(0, 2))
    shift = torch.tensor([math.pi / 1000, math.e / 1000] * 2, dtype=torch.float64)
    return edges[:, :, torch.from_numpy(rng.permutation(edges.shape[2])[:keep])] + shift


def winding_numbers(edges: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """By the definition: each edge that passes to the left of a point counts, up or down."""
    x0, y0, x1, y1 = (value[:, None, None] for value in edges.unbind(-1))
    passes = (y0 <= y) != (y1 <= y)
    side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)  # the sign tells left from right
    left = torch.where(y1 > y0, side < 0, side > 0)
    return torch.where(passes & left, (y0 - y1).sign(), 0.0).sum(dim=0)


@given(paths(), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_coverage_counts_the_samples_inside(edges, samples, even_odd):
    size = (7, 9)
    y = (torch.arange(size[0] * samples, dtype=torch.float64)[:, None] + 0.5) / samples
    x = (torch.arange(size[1] * samples, dtype=torch.float64) + 0.5) / samples
    rule = torch.full((2, 2), even_odd)
    mine = coverage(edges, size, even_odd_BL=rule, samples=samples)
    for image in range(2):
        for layer in range(2):
            winding = winding_numbers(edges[image, layer], x, y)
            inside = (winding % 2 == 1 if even_odd else winding != 0).double()
            expected = torch.nn.functional.avg_pool2d(inside[None], samples)[0]
            torch.testing.assert_close(mine[image, layer], expected, rtol=0, atol=1e-12)


@given(paths(), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_order_and_direction_do_not_matter_and_chunks_join(edges, seed):
    order = torch.from_numpy(np.random.default_rng(seed).permutation(edges.shape[2]))
    expected = coverage(edges, (16, 16))
    assert torch.equal(coverage(edges[:, :, order], (16, 16)), expected)
    assert torch.equal(coverage(edges[..., [2, 3, 0, 1]], (16, 16)), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygon_raster, "CHUNK", 1)
        assert torch.equal(coverage(edges, (16, 16)), expected)


def random_star(corners: int, size: int) -> Tensor:
    """A polygon around the middle that crosses itself."""
    angle = torch.arange(corners) * (2 * math.pi * 3 / corners)
    radius = (0.2 + 0.25 * torch.rand(corners)) * size
    return size / 2 + radius[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)


@pytest.mark.parametrize("even_odd", [False, True])
def test_coverage_is_that_of_skia(even_odd):
    size = (64, 64)
    for _ in range(10):
        contours = [random_star(11, 64), SQUARE * 5 + torch.rand(2)]
        edges = torch.cat([polygon_edges(points) for points in contours])[None, None]
        rule = torch.tensor([[even_odd]])
        path = skia_path(contours, even_odd)
        theirs = skia_coverage(path, size)
        exact = skia_coverage(path, size, samples=16)
        for samples, largest in ((8, 1 / 255), (16, 0.1 / 255)):
            mine = coverage(edges, size, even_odd_BL=rule, samples=samples)[0, 0].double()
            assert (mine - exact).abs().mean() < largest
            far = far_from_edges(theirs[None])
            assert torch.equal(mine[far], theirs[far])


def test_neighbours_leave_no_gap_and_no_overlap():
    center = torch.tensor([31.3, 29.7])
    ring = random_star(13, 64)
    ring = ring[torch.atan2(*(ring - center).T.flip(0)).argsort()]
    slices = torch.stack((center.expand_as(ring), ring, ring.roll(-1, 0)), dim=1)
    parts = coverage(polygon_edges(slices)[None], (64, 64))
    whole = coverage(polygon_edges(ring)[None, None], (64, 64))
    assert torch.equal(parts.sum(dim=1), whole[:, 0])


def test_edges_beyond_the_count_and_broken_ones_are_absent():
    edges = torch.cat((polygon_edges(SQUARE), torch.rand(3, 4) * 9))[None, None]
    count = torch.tensor([[4]])
    expected = coverage(polygon_edges(SQUARE)[None, None], (8, 9))
    assert torch.equal(coverage(edges, (8, 9), count), expected)
    edges[..., 4:, 1] = torch.tensor([math.nan, math.inf, -math.inf])
    assert torch.equal(coverage(edges, (8, 9)), expected)
    soft = soft_coverage(edges, (8, 9))
    assert torch.equal(soft, soft_coverage(polygon_edges(SQUARE)[None, None], (8, 9)))


def test_a_path_without_edges_is_empty_and_has_no_slope():
    edges = torch.full((1, 2, 3, 4), math.nan).requires_grad_()
    for count in (None, torch.tensor([[0, 3]])):
        soft = soft_coverage(edges, (4, 5), count)
        assert (soft == 0).all()
        assert (torch.autograd.grad(soft.sum(), edges)[0] == 0).all()


def test_far_away_corners_do_no_harm():
    big = torch.tensor([[-1e30, -1e30], [1e30, -1e30], [1e30, 1e30], [-1e30, 1e30]])
    assert (coverage(polygon_edges(big)[None, None], (5, 6)) == 1).all()
    assert (coverage(polygon_edges(big + 3e30)[None, None], (5, 6)) == 0).all()
    assert coverage(torch.randn(1, 99, 9, 4) * 1e38, (5, 6)).isfinite().all()


def test_a_square_on_the_grid_is_exact():
    inside = coverage(polygon_edges(SQUARE)[None, None], (8, 9), samples=1)[0, 0]
    expected = torch.zeros(8, 9)
    expected[2:6, 2:7] = 1
    assert torch.equal(inside, expected)


# Soft coverage.


def logit(coverage: Tensor, softness: float) -> Tensor:
    return coverage.logit() * softness


@given(paths(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_soft_coverage_is_a_sigmoid_of_the_distance(edges, even_odd):
    rule = torch.full((2, 2), even_odd)
    distance = logit(soft_coverage(edges, (6, 7), even_odd_BL=rule, softness=5.0), 5.0)
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None, None]
    for image in range(2):
        for layer in range(2):
            along = edges[image, layer, :, :2] * (1 - t) + edges[image, layer, :, 2:] * t
            tree = cKDTree(along.reshape(-1, 2))
            nearest, _ = tree.query(torch.stack((x, y), dim=-1).double().numpy())
            mine = distance[image, layer]
            np.testing.assert_allclose(mine.abs(), nearest, rtol=0, atol=0.02)
    hard = coverage(edges, (6, 7), even_odd_BL=rule, samples=1)
    clear = distance.abs() > 1e-6
    assert torch.equal((distance > 0)[clear], (hard == 1)[clear])


def test_a_stroke_is_as_wide_as_asked_for():
    edges = torch.tensor([[[[3.0, 4.5, 12.0, 4.5]]]], dtype=torch.float64)
    width = torch.tensor([[3.0]], dtype=torch.float64)
    distance = logit(soft_coverage(edges, (9, 16), width_BL=width), 0.5)[0, 0]
    torch.testing.assert_close(distance[:, 7], 1.5 - (torch.arange(9) - 4.0).abs().double())
    torch.testing.assert_close(distance[4, 13:], torch.tensor([0.0, -1.0, -2.0]).double())


@pytest.mark.parametrize("kind", ["fill", "even-odd", "stroke"])
def test_gradients_are_those_of_finite_differences(kind):
    points = (torch.rand(2, 2, 5, 2, dtype=torch.float64) * 9).requires_grad_()
    width = (torch.rand(2, 2, dtype=torch.float64) + 0.5).requires_grad_()
    rule = torch.full((2, 2), kind == "even-odd")

    def draw(points: Tensor, width: Tensor) -> Tensor:
        given = width if kind == "stroke" else None
        return soft_coverage(polygon_edges(points), (6, 7), None, rule, given, softness=0.7)

    inputs = (points, width) if kind == "stroke" else (points, width.detach())
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_center_on_the_border_pulls_it_both_ways(flipped):
    points = (SQUARE + 0.5).double()  # the borders pass through centers
    points = points.flip(0) if flipped else points

    def draw(points: Tensor) -> Tensor:
        return soft_coverage(polygon_edges(points)[None, None], (9, 10), softness=0.5)[0, 0]

    slope = torch.autograd.functional.jacobian(draw, points)
    step = 1e-6
    for corner in range(4):
        for axis in range(2):
            moved = points.clone()
            moved[corner, axis] += step
            back = points.clone()
            back[corner, axis] -= step
            expected = (draw(moved) - draw(back)) / (2 * step)
            side = slice(3, 6), slice(3, 7)  # without corners, where one side has another slope
            on_border = torch.zeros(9, 10, dtype=torch.bool)
            on_border[2, side[1]] = on_border[6, side[1]] = True
            on_border[side[0], 2] = on_border[side[0], 7] = True
            mine = slope[:, :, corner, axis]
            torch.testing.assert_close(mine[on_border], expected[on_border], rtol=1e-4, atol=1e-6)
    assert slope.isfinite().all()


def test_chords_of_curves_are_those_of_scipy():
    control = torch.rand(3, 4, 2, dtype=torch.float64)
    edges = cubic_edges(control, 5)
    t = np.linspace(0, 1, 6)
    for curve, chords in zip(control, edges, strict=True):
        expected = BPoly(curve[:, None].numpy(), [0, 1])(t)
        np.testing.assert_allclose(chords[:, :2], expected[:-1])
        np.testing.assert_allclose(chords[:, 2:], expected[1:])


def test_fitting_a_square_by_gradient_descent():
    target = coverage(polygon_edges(SQUARE + 0.6)[None, None], (10, 10), samples=16)
    points = (SQUARE * 0.6 + 2).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        soft = soft_coverage(polygon_edges(points)[None, None], (10, 10), softness=0.3)
        (soft - target).square().mean().backward()
        optimizer.step()
    assert (points.detach() - (SQUARE + 0.6)).abs().max() < 0.2


# Registration.

EDGES = torch.zeros(2, 3, 5, 4)


def test_operations_are_registered_right():
    edges = polygon_edges(torch.rand(2, 3, 4, 2) * 8)
    count, rule = torch.full((2, 3), 4), torch.rand(2, 3) < 0.5
    ops = torch.ops.tenfold
    torch.library.opcheck(ops.polygon_coverage, (edges, count, rule, 5, 6, 4, "reference"))
    torch.library.opcheck(ops.nearest_edge, (edges, count, 5, 6, "reference"))


def test_a_network_compiles_into_one_graph():
    def draw(points: Tensor) -> Tensor:
        edges = polygon_edges(points)
        return soft_coverage(edges, (6, 7)) + coverage(edges, (6, 7))

    points = (torch.rand(1, 2, 4, 2) * 6).requires_grad_()
    fast = torch.compile(draw, backend="aot_eager", fullgraph=True)
    for function in (fast, draw):
        function(points).square().sum().backward()
    torch.testing.assert_close(fast(points), draw(points))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coverage(EDGES.half(), (4, 4)), "edges: dtype torch.float16, expected float32"),
        (lambda: coverage(EDGES[0], (4, 4)), r"edges: shape \(3, 5, 4\), expected \(B, L, E, 4\)"),
        (lambda: coverage(EDGES, (0, 4)), r"size: \(0, 4\), expected \(rows, columns\)"),
        (lambda: coverage(EDGES, (4, 4), samples=0), "samples must be from 1 to 16, got 0"),
        (
            lambda: coverage(EDGES, (4, 4), torch.zeros(2, 3)),
            r"count: torch.float32 .*expected torch.int64 of shape \(2, 3\)",
        ),
        (
            lambda: coverage(EDGES, (4, 4), even_odd_BL=torch.ones(3) > 0),
            r"even_odd: torch.bool of shape \(3,\)",
        ),
        (
            lambda: soft_coverage(EDGES, (4, 4), width_BL=torch.ones(2, 3).double()),
            "width: torch.float64 .*expected torch.float32",
        ),
        (lambda: soft_coverage(EDGES, (4, 4), softness=0), "softness must be positive, got 0"),
        (lambda: coverage(EDGES, (4, 4), backend="compile"), "compile is not offered for polygons"),
        (lambda: coverage(EDGES, (4, 4), backend="cuda"), "backend: 'cuda' is none of"),
        (lambda: coverage(EDGES, (4, 4), backend="triton"), "triton needs a CUDA device, not cpu"),
    ],
)
def test_a_wrong_argument_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_triton_code_in_the_interpreter(run_checks):
    pytest.importorskip("triton")
    assert run_checks("check_polygon_raster.py") >= 11


@pytest.mark.gpu
def test_triton_code_on_a_gpu(run_checks):
    assert run_checks("check_polygon_raster.py", interpret=False) >= 11


@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("samples", [0, 8, pytest.param(16, marks=pytest.mark.slow)])
def test_triton_code_compiles_for_a_gpu(architecture, samples, compile_for_gpu):
    """Coverage with so many samples; 0 stands for the nearest edge."""
    if samples:
        kernel = polygon_raster_triton._coverage_kernel
        constants = polygon_raster_triton.coverage_tile(samples)
    else:
        kernel = polygon_raster_triton._nearest_edge_kernel
        tile = (polygon_raster_triton.BLOCK_H, polygon_raster_triton.BLOCK_W)
        constants = dict(zip(("BLOCK_H", "BLOCK_W"), tile, strict=True))
    types = dict.fromkeys(("edge_ptr", "x_ptr", "y_ptr", "slope_ptr", "out_ptr"), "*fp32")
    types |= dict.fromkeys(("first_ptr", "last_ptr", "up_ptr", "winding_ptr"), "*i32")
    types |= {"even_odd_ptr": "*u8", "real_ptr": "*u8", "index_ptr": "*i64"}
    binary = compile_for_gpu(kernel, types, constants, architecture, enable_fp_fusion=False)
    assert binary.metadata.shared <= 48 * 1024  # what a program gets without asking for more
    assert "fma.rn.f32" not in binary.asm["ptx"]  # crossings are rounded as in the reference
