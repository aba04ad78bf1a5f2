"""Neighbours and samples of point clouds against loops in float64 and against scipy's kd-tree.

Coordinates are multiples of 1/4 where indices are compared with a loop: every dtype holds them,
distances are exact, and ties are frequent. Triton's code runs in `interpreted/check_point_ops.py`;
here it is compiled for GPUs that this machine does not have.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from tenfold.kernels import point_ops, point_ops_triton
from tenfold.kernels.point_ops import ball_query, farthest_point_sample, gather_points, knn
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Clouds(NamedTuple):
    points: Tensor
    queries: Tensor
    mask: Tensor | None


@st.composite
def clouds(draw: st.DrawFn, channels: tuple[int, int] = (3, 3)) -> Clouds:
    """Two clouds of 1 to 30 points, some of them not finite, with 0 to 6 queries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_points, num_queries, width = (
        draw(st.integers(1, 30)),
        draw(st.integers(0, 6)),
        draw(st.integers(*channels)),
    )
    extent = draw(st.integers(0, 8))
    points = rng.integers(-extent, extent + 1, (2, num_points, width)) / 4
    queries = rng.integers(-extent, extent + 1, (2, num_queries, width)) / 4
    broken = rng.random(points.shape) < draw(st.sampled_from([0.0, 0.1]))
    points[broken] = rng.choice([np.nan, np.inf, -np.inf], broken.sum())
    mask = rng.random((2, num_points)) < draw(st.sampled_from([0.0, 0.3, 0.8]))
    dtype = draw(st.sampled_from(DTYPES))
    return Clouds(
        torch.from_numpy(points).to(dtype),
        torch.from_numpy(queries).to(dtype),
        draw(st.sampled_from([None, torch.from_numpy(mask)])),
    )


def in_float64(points: Tensor) -> np.ndarray:
    return points.detach().double().numpy()


def that_count(cloud: np.ndarray, mask: Tensor | None, number: int) -> list[int]:
    real = np.isfinite(cloud).all(axis=1)
    return np.flatnonzero(real if mask is None else real & mask[number].numpy()).tolist()


def squared_distance(cloud: np.ndarray, index: int, query: np.ndarray) -> float:
    return float(((cloud[index] - query) ** 2).sum())


def padded(found: list[int], k: int, otherwise: int) -> list[int]:
    first = found[0] if found else otherwise
    return (found + [first] * k)[:k]


def nearest_by_loop(points: Tensor, queries: Tensor, mask: Tensor | None, k: int) -> list:
    rows = []
    for number, (cloud, asked) in enumerate(
        zip(in_float64(points), in_float64(queries), strict=True)
    ):
        real = that_count(cloud, mask, number)
        orders = [
            sorted(real, key=lambda i: (squared_distance(cloud, i, query), i)) for query in asked
        ]
        rows.append([padded(order[:k], k, 0) for order in orders])
    return rows


def farthest_by_loop(points: Tensor, mask: Tensor | None, start: list[int] | None, k: int) -> list:
    rows = []
    for number, cloud in enumerate(in_float64(points)):
        real = that_count(cloud, mask, number)
        chosen = [start[number] if start else (real or [0])[0]]
        while len(chosen) < k:
            # The distance to what was chosen, all of it once more at each step.
            far = {i: min(squared_distance(cloud, i, cloud[j]) for j in chosen) for i in real}
            chosen.append(max(real, key=lambda i: (far[i], -i)) if real else 0)
        rows.append(chosen)
    return rows


def inside_by_loop(
    points: Tensor, centers: Tensor, mask: Tensor | None, radius: float, k: int
) -> list:
    nearest, rows = nearest_by_loop(points, centers, mask, 1), []
    for number, (cloud, asked) in enumerate(
        zip(in_float64(points), in_float64(centers), strict=True)
    ):
        real = that_count(cloud, mask, number)
        rows.append([])
        for place, center in enumerate(asked):
            inside = [i for i in real if squared_distance(cloud, i, center) < radius**2]
            rows[-1].append(padded(inside, k, nearest[number][place][0]))
    return rows


@given(cloud=clouds((1, 5)), k=st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_neighbours_are_those_of_a_loop_in_float64(cloud, k):
    index = knn(cloud.points, k, cloud.queries, cloud.mask)
    assert index.tolist() == nearest_by_loop(cloud.points, cloud.queries, cloud.mask, k)


@given(cloud=clouds(), num_samples=st.integers(1, 40), given_start=st.booleans())
@settings(deadline=None, max_examples=50)
def test_samples_are_those_of_a_loop_in_float64(cloud, num_samples, given_start):
    start = None
    if given_start:
        reals = [that_count(c, cloud.mask, n) for n, c in enumerate(in_float64(cloud.points))]
        start = [(real or [0])[-1] for real in reals]
    given = None if start is None else torch.tensor(start)
    index = farthest_point_sample(cloud.points, num_samples, given, cloud.mask)
    assert index.tolist() == farthest_by_loop(cloud.points, cloud.mask, start, num_samples)


@given(cloud=clouds(), radius=st.sampled_from([0.25, 0.6, 1.5, 9.0]), k=st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_balls_are_those_of_a_loop_in_float64(cloud, radius, k):
    index = ball_query(cloud.points, cloud.queries, radius, k, cloud.mask)
    assert index.tolist() == inside_by_loop(cloud.points, cloud.queries, cloud.mask, radius, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_points", "channels"), [(2500, 3), (700, 64)])
def test_neighbours_are_those_of_a_kd_tree(num_points, channels, dtype):
    points = torch.randn(2, num_points, channels, dtype=dtype)
    queries = torch.randn(2, 50, channels, dtype=dtype)
    index = knn(points, 20, queries)
    for number in range(2):
        tree = cKDTree(in_float64(points[number]))
        expected, _ = tree.query(in_float64(queries[number]), 20)
        found = in_float64(points[number])[index[number].numpy()]
        distance = np.linalg.norm(found - in_float64(queries[number])[:, None], axis=-1)
        np.testing.assert_allclose(distance, expected, rtol=1e-6)
        balls = ball_query(points[:, :, :3], queries[:, :, :3], 0.5, num_points)[number]
        tree = cKDTree(in_float64(points[number, :, :3]))
        inside = tree.query_ball_point(in_float64(queries[number, :, :3]), 0.5)
        assert [set(ball.tolist()) for ball in balls] == [
            set(indices) or {tree.query(query)[1]}
            for indices, query in zip(inside, in_float64(queries[number, :, :3]), strict=True)
        ]


def test_points_far_from_the_origin_keep_their_neighbours():
    points = torch.randn(1, 200, 3) * 0.02 + 100
    exact, exact_index = cKDTree(in_float64(points[0])).query(in_float64(points[0]), 5)
    assert np.array_equal(knn(points, 5)[0].numpy()[:, 0], exact_index[:, 0])
    found = in_float64(points[0])[knn(points, 5)[0].numpy()]
    distance = np.linalg.norm(found - in_float64(points[0])[:, None], axis=-1)
    np.testing.assert_allclose(distance, exact, rtol=1e-5)
    expanded = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist")
    assert (expanded.topk(5, largest=False).indices[0, :, 0].numpy() != exact_index[:, 0]).any()


@given(seed=st.integers(0, 2**32 - 1), num_points=st.integers(1, 80))
@settings(deadline=None, max_examples=40)
def test_copies_have_equal_distances_wherever_they_stand(seed, num_points):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(1, num_points, 7, generator=generator)
    points = points[:, torch.randint(num_points, (2 * num_points,), generator=generator)]
    order = torch.randperm(2 * num_points, generator=generator)
    queries = torch.randn(1, 5, 7, generator=generator)
    found = gather_points(points, knn(points, 9, queries))
    assert torch.equal(found, gather_points(points[:, order], knn(points[:, order], 9, queries)))
    itself = gather_points(points, knn(points, 1)).squeeze(2)
    assert torch.equal(itself, points)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_numbers_that_overflow_stay_in_range_and_end(value):
    points = torch.randn(2, 12, 3)
    points[0, :7, 1] = value
    points[1] = value
    queries = points[:, :9]
    for index in (
        knn(points, 20),
        knn(points, 4, queries),
        farthest_point_sample(points, 20),
        farthest_point_sample(points, 20, start_B=torch.tensor([3, 11])),
        ball_query(points, queries, 0.5, 20),
    ):
        assert index.min() >= 0
        assert index.max() < 12
    first = farthest_point_sample(points, 5)[0]
    assert sorted(first.tolist()) == sorted(set(first.tolist()))
    if value != 3e38:
        assert first.min() >= 7
        assert knn(points, 5)[0].min() >= 7
        assert (knn(points, 5)[1] == 0).all()


def test_padding_changes_no_index():
    points, padding = torch.randn(2, 40, 3), torch.randn(2, 25, 3)
    mask = torch.cat((torch.ones(2, 40, dtype=torch.bool), torch.zeros(2, 25, dtype=torch.bool)), 1)
    longer, queries = torch.cat((points, padding), dim=1), torch.randn(2, 10, 3)
    assert torch.equal(knn(longer, 50, queries, mask), knn(points, 50, queries))
    assert torch.equal(
        farthest_point_sample(longer, 50, mask_BN=mask), farthest_point_sample(points, 50)
    )
    assert torch.equal(
        ball_query(longer, queries, 0.8, 50, mask), ball_query(points, queries, 0.8, 50)
    )


def test_memory_of_a_search_does_not_grow_with_points_times_queries(monkeypatch):
    sizes, distances = [], point_ops._distances

    def measured(*args):
        sizes.append((result := distances(*args)).numel())
        return result

    monkeypatch.setattr(point_ops, "_distances", measured)
    points = torch.randn(2, 2000, 3)
    knn(points, 8)
    ball_query(points, points, 0.1, 8)
    assert max(sizes) <= point_ops.CHUNK
    assert sum(sizes) == 2 * 2 * 2000 * 2000
    knn(torch.randn(1, point_ops.CHUNK + 1, 1), 2, torch.randn(1, 3, 1))
    assert max(sizes) == point_ops.CHUNK + 1  # one query at a time


def test_gathered_points_carry_gradients_to_each_use():
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 5], [5, 5], [2, 0]], [[1, 1], [3, 4], [0, 2]]])
    gathered = gather_points(x, index)
    assert gathered.shape == (2, 3, 2, 4)
    assert torch.equal(gathered[1, 1, 0], x[1, 3])
    assert torch.autograd.gradcheck(lambda x: gather_points(x, index), (x,))
    assert torch.equal(gather_points(x, index[:, :, 0]), gathered[:, :, 0])
    with pytest.raises(IndexError):
        gather_points(x, index + 1)


def test_points_that_train_are_searched_without_a_gradient():
    points = torch.randn(2, 20, 3, requires_grad=True)
    index = knn(points, 4)
    centers = gather_points(points, farthest_point_sample(points, 5))
    balls = ball_query(points, centers, 2.0, 4)
    assert not index.requires_grad
    assert not balls.requires_grad
    (gather_points(points, balls) - centers.unsqueeze(2)).square().sum().backward()
    assert points.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_keep_the_rules_of_torch_library(dtype):
    points, mask = torch.randn(2, 9, 3).to(dtype), torch.rand(2, 9) < 0.7
    start = torch.tensor([1, 2])
    torch.library.opcheck(point_ops._knn, (points, None, None, 4, "reference"))
    torch.library.opcheck(point_ops._knn, (points, points[:, :5], mask, 12, "reference"))
    torch.library.opcheck(point_ops._fps, (points, start, mask, 4, "reference"))
    torch.library.opcheck(point_ops._fps, (points, None, None, 12, "reference"))
    torch.library.opcheck(point_ops._ball_query, (points, points[:, 2:], mask, 1.0, 4, "reference"))


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_network_compiles_into_one_graph(compiler):
    def network(points: Tensor) -> Tensor:
        centers = gather_points(points, farthest_point_sample(points, 6))
        near = gather_points(points, ball_query(points, centers, 0.7, 5))
        features = (near - centers.unsqueeze(2)).amax(2)
        return gather_points(features, knn(features, 3)).amax(2)

    fast = torch.compile(network, backend=compiler, fullgraph=True)
    for num_points in (20, 31, 17):  # from the second on, the number of points is symbolic
        points = torch.randn(2, num_points, 3, requires_grad=True)
        y, expected = fast(points), network(points)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), points),
            torch.autograd.grad(expected.square().sum(), points),
        )


def test_shapes_are_known_without_data():
    with torch.device("meta"):
        points, queries = torch.empty(3, 20, 3), torch.empty(3, 7, 3)
        assert knn(points, 5).shape == (3, 20, 5)
        assert knn(points, 5, queries).shape == (3, 7, 5)
        assert farthest_point_sample(points, 50).shape == (3, 50)
        assert ball_query(points, queries, 0.1, 5).dtype == torch.int64


POINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(POINTS.long(), 2), "points: dtype torch.int64, expected one of float32"),
        (lambda: knn(POINTS[0], 2), r"points: shape \(5, 3\), expected \(B, N, C\)"),
        (lambda: knn(POINTS[:, :0], 2), r"points: shape \(2, 0, 3\), .* with N >= 1"),
        (lambda: knn(POINTS, 0), "k must be at least 1, got 0"),
        (lambda: knn(POINTS, 2, POINTS[:1]), r"queries: .*\(1, 5, 3\).*of shape \(2, M, 3\)"),
        (
            lambda: knn(POINTS, 2, POINTS.double()),
            "queries: torch.float64 .*expected torch.float32",
        ),
        (lambda: knn(POINTS, 2, POINTS.to("meta")), "queries: .* on meta, expected .* on cpu"),
        (lambda: knn(POINTS, 2, mask_BN=torch.ones(2, 5)), "mask: torch.float32 .*torch.bool"),
        (lambda: knn(POINTS, 2, mask_BN=torch.ones(5) > 0), r"mask: .*\(5,\).* shape \(2, 5\)"),
        (lambda: knn(POINTS, 2, backend="compile"), "backend: compile is not offered for points"),
        (lambda: knn(POINTS, 2, backend="cuda"), "backend: 'cuda' is none of"),
        (lambda: knn(POINTS, 2, backend="triton"), "backend: triton needs a CUDA device, not cpu"),
        (
            lambda: farthest_point_sample(torch.zeros(2, 5, 2), 2),
            r"points: shape \(2, 5, 2\), expected \(B, N, 3\)",
        ),
        (lambda: farthest_point_sample(POINTS, 0), "num_samples must be at least 1, got 0"),
        (
            lambda: farthest_point_sample(POINTS, 2, torch.tensor([0])),
            r"start: torch.int64 of shape \(1,\).*of shape \(2,\)",
        ),
        (
            lambda: farthest_point_sample(POINTS, 2, torch.tensor([0, 5])),
            "start: indices from 0 to 5, expected 0 to 4",
        ),
        (
            lambda: farthest_point_sample(POINTS, 2, torch.tensor([-1, 0])),
            "start: indices from -1 to 0, expected 0 to 4",
        ),
        (lambda: ball_query(POINTS, POINTS[0], 1.0, 2), r"centers: .*\(5, 3\).*\(2, M, 3\)"),
        (lambda: ball_query(POINTS, POINTS, 0.0, 2), "radius must be positive, got 0.0"),
        (lambda: ball_query(POINTS, POINTS, torch.nan, 2), "radius must be positive, got nan"),
        (lambda: gather_points(POINTS[0], torch.zeros(2, 1).long()), r"x: shape \(5, 3\)"),
        (lambda: gather_points(POINTS, torch.zeros(2, 1)), "index: torch.float32 .*torch.int64"),
        (lambda: gather_points(POINTS, torch.zeros(3, 1).long()), r"index: .*shape \(2, \.\.\.\)"),
    ],
)
def test_a_wrong_argument_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_triton_code_in_the_interpreter(run_checks):
    pytest.importorskip("triton")
    assert run_checks("check_point_ops.py") >= 30


@pytest.mark.gpu
def test_triton_code_on_a_gpu(run_checks):
    assert run_checks("check_point_ops.py", interpret=False) >= 30


@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("operation", ["knn", "fps", "fps_blocks", "ball_query"])
def test_triton_code_compiles_for_a_gpu(architecture, operation, compile_for_gpu):
    tile = {"BLOCK_M": point_ops_triton.BLOCK_M, "BLOCK_N": point_ops_triton.BLOCK_N}
    num_warps = 4
    if operation == "knn":
        kernel = point_ops_triton._knn_kernel
        constants = tile | {"BLOCK_K": point_ops_triton.MAX_NEIGHBOURS}
    elif operation == "ball_query":
        kernel, constants = point_ops_triton._ball_query_kernel, tile
    else:
        num_points = 65536 if operation == "fps_blocks" else point_ops_triton.MAX_CLOUD
        kernel, block, num_warps = point_ops_triton.fps_plan(num_points)
        constants = {"BLOCK_N": block}
    types = dict.fromkeys(("query_ptr", "point_ptr", "distance_ptr"), "*fp32") | {"limit": "fp32"}
    types |= {"valid_ptr": "*u8", "start_ptr": "*i64", "index_ptr": "*i64"}
    binary = compile_for_gpu(
        kernel, types, constants, architecture, num_warps=num_warps, enable_fp_fusion=False
    )
    assert binary.metadata.shared <= 48 * 1024  # what a program gets without asking for more
    assert "fma.rn.f32" not in binary.asm["ptx"]  # distances are rounded as in the reference
