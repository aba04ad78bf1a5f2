"""The Triton kernels of `kernels/polygon_raster.py` against its reference, pixel by pixel.

The reference is checked against other programs in `test_polygon_raster.py`; crossings are the same
bit for bit, so that every sample falls on the same side.
"""

import pytest
import torch
from tenfold.kernels.polygon_raster import coverage, polygon_edges, soft_coverage
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's: NaN and overflow


def random_paths(num_corners: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of three paths: polygons that cross themselves, half their corners on a grid.

    Returns edges, how many count, and the rules.
    """
    points = torch.rand(2, 3, num_corners, 2) * 24 - 4
    points = points.where(torch.rand_like(points) < 0.5, points.round())
    edges = polygon_edges(points)
    edges[0, 1, 0, 2] = torch.nan
    edges[1, 2, 1, 1] = 1e30
    count = torch.tensor([[num_corners, num_corners, 0], [num_corners, 2, num_corners]])
    even_odd = torch.tensor([[True, False, True], [False, True, False]])
    return edges.to(device), count.to(device), even_odd.to(device)


@pytest.mark.parametrize(
    ("size", "samples"),
    [((1, 1), 8), ((8, 32), 1), ((9, 33), 2), ((9, 20), 3), ((16, 16), 4), ((5, 18), 8)],
)
def test_coverage(size, samples, device):
    edges, count, even_odd = random_paths(7, device)
    for options in ({}, {"count_BL": count, "even_odd_BL": even_odd}):
        mine = coverage(edges, size, samples=samples, backend="triton", **options)
        expected = coverage(edges, size, samples=samples, backend="reference", **options)
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("size", [(1, 1), (8, 32), (9, 33)])
def test_soft_coverage(size, device):
    edges, count, even_odd = random_paths(7, device)
    width = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]], device=device)
    for options in ({}, {"even_odd_BL": even_odd}, {"count_BL": count, "width_BL": width}):
        mine = soft_coverage(edges, size, backend="triton", **options)
        expected = soft_coverage(edges, size, backend="reference", **options)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_gradients_of_soft_coverage(device):
    edges, _, even_odd = random_paths(5, device)
    edges = edges.nan_to_num().clamp(-9, 30).requires_grad_()
    width = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]], device=device).requires_grad_()
    weight = torch.rand(2, 3, 11, 13, device=device)

    def gradients(backend: str) -> tuple[Tensor, ...]:
        soft = soft_coverage(edges, (11, 13), None, even_odd, width, backend=backend)
        return torch.autograd.grad((soft * weight).sum(), (edges, width))

    torch.testing.assert_close(gradients("triton"), gradients("reference"), rtol=1e-4, atol=1e-5)


def test_no_paths_and_no_edges(device):
    assert coverage(torch.zeros(0, 3, 4, 4, device=device), (5, 6), backend="triton").numel() == 0
    for draw in (coverage, soft_coverage):
        empty = draw(torch.zeros(1, 2, 0, 4, device=device), (5, 6), backend="triton")
        assert empty.shape == (1, 2, 5, 6)
        assert (empty == 0).all()
