"""The Triton kernels of `kernels/point_ops.py` against its reference, index by index.

The reference is checked against float64 in `test_point_ops.py`; distances are the same bit for bit,
so that even rounding decides alike. The interpreter cannot show races, or multiplications and
additions that a GPU fuses: `test_point_ops.py` looks for those in the compiled code.
"""

import pytest
import torch
from tenfold.kernels import point_ops_triton
from tenfold.kernels.point_ops import ball_query, farthest_point_sample, knn
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's: NaN and overflow


def random_clouds(num_points: int, channels: int, device: torch.device) -> Tensor:
    """Two clouds with ties: half of the coordinates lie on a grid, a fifth of the points twice."""
    points = torch.randn(2, num_points, channels)
    points = points.where(torch.rand_like(points) < 0.5, points.round())
    copies = num_points // 5
    points[:, num_points - copies :] = points[:, :copies]
    return points.to(device)


def random_mask(num_points: int, device: torch.device) -> Tensor:
    """The second cloud has no point at all."""
    mask = torch.rand(2, num_points) < 0.7
    mask[1] = False
    return mask.to(device)


def with_bad_numbers(points: Tensor) -> Tensor:
    points = points.clone()
    points[:, 1::9, 0] = torch.nan
    points[:, 2::9, 1] = torch.inf
    points[:, 3::9, 2] = 1e30
    return points


@pytest.mark.parametrize(
    ("num_points", "num_queries", "channels", "k"),
    [
        (1, 3, 3, 1),
        (1, 17, 2, 5),  # k above N, one query more than a block
        (128, 16, 3, 16),  # whole blocks
        (130, 33, 3, 20),
        (150, 5, 64, 64),
        (140, 2, 3, 128),  # all that is kept in registers
        (40, 5, 1, 129),  # more: the reference
    ],
)
def test_neighbours(num_points, num_queries, channels, k, device):
    points = random_clouds(num_points, channels, device)
    queries = random_clouds(num_queries, channels, device)
    for mask in (None, random_mask(num_points, device)):
        index = knn(points, k, queries, mask, backend="triton")
        assert torch.equal(index, knn(points, k, queries, mask, backend="reference"))


def test_neighbours_of_the_points_themselves(device):
    points = random_clouds(50, 3, device)
    index = knn(points, 7, backend="triton")
    assert torch.equal(index, knn(points, 7, points, backend="reference"))


@pytest.mark.parametrize(("num_points", "num_samples"), [(1, 4), (10, 12), (64, 5), (1000, 5)])
@pytest.mark.parametrize("in_registers", [True, False])
def test_samples(num_points, num_samples, in_registers, device, monkeypatch):
    if not in_registers:
        monkeypatch.setattr(point_ops_triton, "MAX_CLOUD", 0)
    points = random_clouds(num_points, 3, device)
    start = torch.tensor([num_points - 1, 0], device=device)
    for first, mask in ((None, None), (start, None), (None, random_mask(num_points, device))):
        index = farthest_point_sample(points, num_samples, first, mask, backend="triton")
        expected = farthest_point_sample(points, num_samples, first, mask, backend="reference")
        assert torch.equal(index, expected)


def test_samples_of_clouds_of_several_blocks(device):
    points = random_clouds(9001, 3, device)
    points[0, 9000] = 50  # the farthest is the last, in a block that it fills a part of
    index = farthest_point_sample(points, 8, backend="triton")
    assert torch.equal(index, farthest_point_sample(points, 8, backend="reference"))
    assert index[0, 1] == 9000


@pytest.mark.parametrize(
    ("num_points", "num_queries", "k"), [(1, 3, 2), (128, 17, 8), (200, 9, 150)]
)
@pytest.mark.parametrize("radius", [0.01, 1.0, 50.0])
def test_balls(num_points, num_queries, k, radius, device):
    points, centers = random_clouds(num_points, 3, device), random_clouds(num_queries, 3, device)
    for mask in (None, random_mask(num_points, device)):
        index = ball_query(points, centers, radius, k, mask, backend="triton")
        assert torch.equal(index, ball_query(points, centers, radius, k, mask, backend="reference"))


def test_numbers_that_are_not_finite(device):
    points = with_bad_numbers(random_clouds(60, 3, device))
    queries = with_bad_numbers(random_clouds(20, 3, device))
    for backend_free in (
        lambda backend: knn(points, 30, queries, backend=backend),
        lambda backend: farthest_point_sample(points, 50, backend=backend),
        lambda backend: ball_query(points, queries, 1e30, 70, backend=backend),
    ):
        assert torch.equal(backend_free("triton"), backend_free("reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_computed_in_float32(dtype, device):
    points = random_clouds(50, 3, device).to(dtype)
    assert torch.equal(knn(points, 5, backend="triton"), knn(points.float(), 5))
    sample = farthest_point_sample(points, 20, backend="triton")
    assert torch.equal(sample, farthest_point_sample(points.float(), 20))
    balls = ball_query(points, points[:, :5], 0.5, 9, backend="triton")
    assert torch.equal(balls, ball_query(points.float(), points[:, :5].float(), 0.5, 9))


def test_no_clouds_and_no_queries(device):
    points = random_clouds(9, 3, device)
    assert knn(points[:0], 2, backend="triton").shape == (0, 9, 2)
    assert knn(points, 2, points[:, :0], backend="triton").shape == (2, 0, 2)
    assert farthest_point_sample(points[:0], 4, backend="triton").shape == (0, 4)
    assert ball_query(points, points[:, :0], 1.0, 2, backend="triton").shape == (2, 0, 2)
