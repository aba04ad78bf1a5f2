import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tenfold.modules import point_order
from tenfold.modules.point_order import canonical_order, check_orders, point_orders

ALL = ("x", "y", "z", "radius", "pca1", "pca2", "pca3", "morton", "hilbert")
# A coarse grid: full of ties, equal points and flat faces, as CAD models are.
grids = arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.just(3)),
    elements=st.integers(-3, 3).map(lambda i: i / 4),
)


def in_order(cloud, order, mask=None):
    return cloud.gather(1, order[..., None].expand_as(cloud))


@given(grids)
def test_canonical_order_is_that_of_tuples(points):
    cloud = torch.from_numpy(points)[None]
    found = in_order(cloud, canonical_order(cloud))[0].tolist()
    assert found == sorted(points.tolist())


@given(grids, st.integers(0, 2**31), st.integers(0, 5))
def test_every_order_ignores_permutation_and_padding(points, seed, num_padded):
    cloud = torch.from_numpy(points)[None]
    num_points = cloud.shape[1]
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.randperm(num_points + num_padded, generator=generator)
    padded = torch.full((1, num_points + num_padded, 3), torch.nan)
    padded[:, :num_points] = cloud
    padded, mask = padded[:, shuffle], (shuffle < num_points)[None]
    plain = point_orders(cloud, ALL)
    masked = point_orders(padded, ALL, mask)
    for name, one, other in zip(ALL, plain, masked, strict=True):
        again = in_order(padded, other)[:, :num_points]
        assert torch.equal(in_order(cloud, one), again), name


def test_keys_are_what_the_names_say():
    cloud = torch.randn(3, 200, 3) * torch.tensor([1.0, 5.0, 2.0])
    centred = (cloud - cloud.mean(1, keepdim=True)).double()
    y, radius, pca1 = (
        in_order(cloud, order) for order in point_orders(cloud, ("y", "radius", "pca1"))
    )
    assert (y[..., 1].diff() >= 0).all()
    assert ((radius - cloud.mean(1, keepdim=True)).norm(dim=-1).diff() >= -1e-6).all()
    for one, ordered in zip(centred, pca1, strict=True):
        covariance = np.cov(one.numpy().T)
        axis = np.linalg.eigh(covariance)[1][:, -1]
        along = np.diff(ordered.double().numpy() @ axis)
        assert (along >= -1e-5).all() or (along <= 1e-5).all()


def test_pca_order_turns_with_the_cloud():
    cloud = torch.randn(2, 100, 3, dtype=torch.float64) ** 2 * torch.tensor([1.0, 3.0, 2.0])
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turn = turn * torch.linalg.det(turn).sign()
    for one, other in zip(
        point_orders(cloud, ("pca1", "pca2", "pca3")),
        point_orders(cloud @ turn, ("pca1", "pca2", "pca3")),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("curve", ["morton", "hilbert"])
def test_curves_visit_every_cell_once(curve, monkeypatch):
    monkeypatch.setattr(point_order, "CURVE_BITS", 3)
    axis = torch.arange(8.0)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(1, -1, 3)
    shuffled = cells[:, torch.randperm(512)]
    path = in_order(shuffled, point_orders(shuffled, (curve,))[0])[0]
    assert len({tuple(cell) for cell in path.tolist()}) == 512
    steps = path.diff(dim=0).abs().sum(dim=1)
    if curve == "hilbert":
        assert (steps == 1).all()  # neighbours on the curve are neighbours in space
    else:
        assert path[:8].max() == 1  # the first eight fill the first cube of two cells' edge


def test_half_precision_would_tie_but_float32_decides():
    cloud = torch.tensor([[[1.0, 0, 0], [1.0001, 0, 0], [0.9999, 0, 0]]])
    assert point_orders(cloud, ("x",))[0].tolist() == [[2, 0, 1]]


def test_unknown_orders_are_named():
    with pytest.raises(ValueError, match=r"spiral.*morton"):
        check_orders(("x", "spiral"))
    with pytest.raises(ValueError, match="empty"):
        check_orders(())
