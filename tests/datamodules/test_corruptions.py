"""The corruptions of clouds against the benchmarks' formulas, closed forms and scipy."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation
from scipy.special import comb
from tenfold.datamodules.corruptions import (
    MESH_FREE,
    CorruptedClouds,
    corrupt,
    corruption_rng,
    resolve_corruptions,
    rules,
    shared_subset,
)
from tenfold.datamodules.corruptions import deformations as d
from tenfold.modules.corruption_names import MODELNET40_C_NAMES, POINTCLOUD_C, SEVERITIES
from torch.utils.data import default_collate

SAME = (1024,) * 5
SIZES = {
    "density_inc": SAME,
    "density": (949, 874, 799, 724, 649),
    "cutout": (964, 934, 874, 814, 724),
    "uniform": SAME,
    "gaussian": SAME,
    "impulse": SAME,
    "upsampling": (1228, 1280, 1365, 1536, 2048),
    "background": (1046, 1049, 1053, 1058, 1075),
    "rotation": SAME,
    "shear": SAME,
    "distortion": SAME,
    "distortion_rbf": SAME,
    "distortion_rbf_inv": SAME,
    "scale": SAME,
    "jitter": SAME,
    "rotate": SAME,
    "dropout_global": (768, 640, 512, 384, 256),
    "dropout_local": (924, 824, 724, 624, 524),
    "add_global": (1034, 1044, 1054, 1064, 1074),
    "add_local": (1124, 1224, 1324, 1424, 1524),
}
BOX_NORMALIZED = (
    *("uniform", "impulse", "upsampling", "background", "rotation", "shear"),
    *("distortion", "distortion_rbf", "distortion_rbf_inv"),
)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    """2,048 points in the unit ball, some on its surface, float32."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2048, 3))
    points *= rng.uniform(0.3, 1, (2048, 1)) ** 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32)


def corrupted(cloud, corruption, severity, index=0, **kwargs) -> np.ndarray:
    rng = corruption_rng(2021, corruption, severity, index)
    return corrupt(cloud, corruption, severity, rng, **kwargs)


def undo_box(before: np.ndarray, after: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift of `after` = scale * `before` + shift, by least squares."""
    scale = np.polyfit(np.ravel(before - before.mean(0)), np.ravel(after - after.mean(0)), 1)[0]
    return scale, after.mean(0) - scale * before.mean(0)


def rows(points: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, points.tolist()))


@pytest.mark.parametrize(("corruption", "severity"), list(product(SIZES, SEVERITIES)))
def test_number_of_points_and_bounds_are_the_benchmarks(cloud, corruption, severity):
    result = corrupted(cloud, corruption, severity)
    assert result.shape == (SIZES[corruption][severity - 1], 3)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    if corruption in BOX_NORMALIZED:
        assert np.abs(result).max() <= 1 + 1e-6
        assert np.ptp(result, axis=0).max() == pytest.approx(2, abs=1e-6)
    if corruption == "gaussian":
        assert np.abs(result).max() <= 1


def test_all_names_have_a_rule():
    assert set(SIZES) == {*MESH_FREE, *POINTCLOUD_C}
    assert resolve_corruptions(["all"]) == MODELNET40_C_NAMES
    assert resolve_corruptions(["cutout", "mesh_free"]) == (
        "cutout",
        *(c for c in MESH_FREE if c != "cutout"),
    )


# --- density ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corruption", ["density_inc", "density", "cutout", "dropout_global", "dropout_local"]
)
@pytest.mark.parametrize("severity", [1, 5])
def test_what_only_removes_or_repeats_adds_no_new_point(cloud, corruption, severity):
    result = corrupted(cloud, corruption, severity)
    assert rows(result) <= rows(cloud)
    if corruption != "density_inc":
        assert len(rows(result)) == len(result)


def test_density_thins_one_ball_of_100_points_by_75(cloud):
    points = cloud[:1024]
    kept = rows(corrupted(points, "density", 1))
    removed = np.array([tuple(p) not in kept for p in points.tolist()])
    _, neighbours = cKDTree(points).query(points, k=100)
    assert removed[neighbours].sum(axis=1).max() == removed.sum() == 75


def test_cutout_removes_whole_balls_of_30_points(cloud):
    points = cloud[:1024].astype(np.float64)
    result = rules.cutout(points, 1, np.random.default_rng(0), 1024)
    # The last ball: its 30 points are the nearest to one of them, of what was there before.
    kept = rows(result)
    removed = points[[tuple(p) not in kept for p in points.tolist()]]
    assert len(removed) == 60
    _, neighbours = cKDTree(points).query(removed, k=30)
    first_balls = [set(near) for near in neighbours if not (rows(points[near]) & kept)]
    assert first_balls
    remaining = np.delete(points, list(first_balls[0]), axis=0)
    rest = np.array(sorted(rows(remaining) - kept))
    _, neighbours = cKDTree(remaining).query(rest, k=30)
    assert any(not rows(remaining[near]) & kept for near in neighbours)


def test_density_increase_keeps_whole_balls_of_the_denser_pool_and_fills_up_from_the_rest(cloud):
    result = corrupted(cloud, "density_inc", 2)
    _, neighbours = cKDTree(cloud).query(result[:100], k=100)
    assert any(rows(cloud[near]) == rows(result[:100]) for near in neighbours)
    balls, rest = rows(result[:200]), rows(result[200:])
    assert len(balls) == 200
    assert not balls & rest
    assert len(rest) < 824  # drawn with replacement from 1,848


# --- noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
def test_uniform_noise_fills_its_bounds(cloud, severity):
    points, bound = cloud[:1024], 0.01 * severity
    result = corrupted(points, "uniform", severity, subset=np.arange(1024))
    scale, shift = undo_box(points, result)
    noise = (result - shift) / scale - points
    assert np.abs(noise).max() == pytest.approx(bound, rel=0.05)
    assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("corruption", ["gaussian", "jitter"])
def test_normal_noise_has_its_deviation(cloud, corruption, severity):
    points = cloud[:1024] / 2
    result = corrupted(points, corruption, severity, subset=np.arange(1024))
    sigma = {"gaussian": 0.005 * (severity + 1), "jitter": 0.01 * severity}[corruption]
    assert (result - points).std() == pytest.approx(sigma, rel=0.05)


def test_gaussian_noise_is_clipped_to_the_box():
    corners = np.repeat([[1.0, -1.0, 1.0]], 1024, axis=0)
    result = corrupted(corners, "gaussian", 5)
    assert np.abs(result).max() == 1
    assert 0.45 < (np.abs(result) == 1).mean() < 0.55


@pytest.mark.parametrize(("severity", "count"), [(1, 34), (2, 40), (3, 51), (4, 68), (5, 102)])
def test_impulses_move_a_number_of_points_by_a_tenth_in_each_coordinate(cloud, severity, count):
    points = cloud[:1024].astype(np.float64)
    moved = rules.move_by_impulses(points, severity, np.random.default_rng(1), 1024) - points
    is_moved = moved.any(axis=1)
    assert is_moved.sum() == count
    assert np.abs(np.abs(moved[is_moved]) - 0.1).max() < 1e-12
    signs = moved[is_moved] > 0
    assert 0.3 < signs.mean() < 0.7
    assert len(np.unique(signs, axis=0)) == 8  # independent in each coordinate
    result = corrupted(points, "impulse", severity, subset=np.arange(1024))
    box = rules.normalize_box(result.astype(np.float64))
    assert np.abs(box - result).max() < 1e-6


@pytest.mark.parametrize("severity", SEVERITIES)
def test_upsampling_appends_copies_of_distinct_points_near_them(cloud, severity):
    points = cloud[:1024]
    result = corrupted(points, "upsampling", severity, subset=np.arange(1024))
    scale, shift = undo_box(points, result[:1024])
    restored = (result - shift) / scale
    assert np.abs(restored[:1024] - points).max() < 1e-5
    added = restored[1024:]
    gaps = np.abs(added[:, None] - points[None]).max(axis=2)
    assert (gaps.min(axis=1) <= 0.05 + 1e-5).all()
    nearest_gap = gaps.min(axis=1).max()
    assert nearest_gap > 0.02


def test_background_points_are_uniform_in_the_box_and_come_last(cloud):
    points = cloud[:1024]
    added = []
    for index in range(40):
        result = corrupted(points, "background", 5, index, subset=np.arange(1024))
        scale, shift = undo_box(points, result[:1024])
        restored = (result - shift) / scale
        assert np.abs(restored[:1024] - points).max() < 1e-5
        added.append(restored[1024:])
    values = np.concatenate(added)
    assert values.shape == (40 * 51, 3)
    assert np.abs(values).max() <= 1 + 1e-5
    quantiles = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    assert np.abs(quantiles - np.array([[-0.8], [0.0], [0.8]])).max() < 0.1


# --- transformation ---------------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rotation_is_rigid_with_angles_of_its_band(cloud, severity):
    middle = (2.5, 5, 7.5, 10, 15)[severity - 1]
    for index in range(20):
        matrix = d.rotation_matrix(severity, np.random.default_rng(index))
        assert np.linalg.det(matrix) == pytest.approx(1)
        # Rx Ry Rz are turns about the axes that turn along, in scipy's capital letters.
        angles = np.abs(Rotation.from_matrix(matrix).as_euler("XYZ", degrees=True))
        assert ((angles >= middle - 2.5 - 1e-9) & (angles <= middle + 2.5 + 1e-9)).all()
    points = cloud[:200].astype(np.float64)
    turned = d.rotation(points, severity, np.random.default_rng(0), 200)
    ratio = pdist(turned) / pdist(points)
    assert np.ptp(ratio) < 1e-9


def test_the_rotation_of_pointcloud_c_is_rigid_with_angles_up_to_its_bound(cloud):
    points = cloud[:100].astype(np.float64)
    largest = 0.0
    for index in range(60):
        turned = d.rotate(points, 3, np.random.default_rng(index), 100)
        assert np.abs(pdist(turned) - pdist(points)).max() < 1e-9
        # Row vectors: turned = points @ (Rz Ry Rx), whose transpose scipy's vectors see.
        matrix = np.linalg.lstsq(points, turned, rcond=None)[0]
        angles = Rotation.from_matrix(matrix).as_euler("xyz", degrees=True)
        largest = max(largest, np.abs(angles).max())
    assert 16 < largest <= 18


def test_shear_leaves_y_and_mixes_the_other_two_within_its_band(cloud):
    for severity, index in product(SEVERITIES, range(20)):
        middle = (0.05, 0.1, 0.15, 0.2, 0.25)[severity - 1]
        matrix = d.shear_matrix(severity, np.random.default_rng(index))
        assert matrix[:, 1].tolist() == [0, 1, 0]
        assert np.diag(matrix).tolist() == [1, 1, 1]
        mixing = np.abs(matrix[[0, 1, 1, 2], [2, 0, 2, 0]])
        assert ((mixing >= middle - 0.05 - 1e-12) & (mixing <= middle + 0.05 + 1e-12)).all()
    points = cloud[:1024].astype(np.float64)
    sheared = d.shear(points, 5, np.random.default_rng(0), 1024)
    expected = points @ d.shear_matrix(5, np.random.default_rng(0))
    assert np.abs(sheared - rules.normalize_box(expected)).max() < 1e-12


def test_free_form_deformation_follows_bernstein_polynomials(cloud):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.2, 1.2, (50, 3))
    weights = rng.normal(size=(5, 5, 5, 3))
    expected = points.copy()
    for n, point in enumerate(points):
        u = (point + 1) / 2
        if (u >= 0).all() and (u <= 1).all():
            basis = [[comb(4, i) * t**i * (1 - t) ** (4 - i) for i in range(5)] for t in u]
            for i, j, k in product(range(5), repeat=3):
                expected[n] += 2 * basis[0][i] * basis[1][j] * basis[2][k] * weights[i, j, k]
    assert 10 < (expected != points).any(axis=1).sum() < 45
    assert np.abs(d.deform_free_form(points, weights) - expected).max() < 1e-12


def test_free_form_deformation_by_nothing_is_nothing_and_by_a_constant_a_shift():
    points = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    assert (d.deform_free_form(points, np.zeros((5, 5, 5, 3))) == points).all()
    shift = np.array([0.1, -0.2, 0.3])
    moved = d.deform_free_form(points, np.broadcast_to(shift, (5, 5, 5, 3)))
    assert np.abs(moved - points - 2 * shift).max() < 1e-12
    outside = points + 3
    assert (d.deform_free_form(outside, np.ones((5, 5, 5, 3))) == outside).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_free_form_corruption_draws_weights_up_to_a_tenth_per_severity(
    cloud, severity, monkeypatch
):
    drawn = []
    monkeypatch.setattr(d, "deform_free_form", lambda points, w: drawn.append(w) or points)
    d.distortion(cloud[:64].astype(np.float64), severity, np.random.default_rng(0), 64)
    assert drawn[0].shape == (5, 5, 5, 3)
    assert np.abs(drawn[0]).max() == pytest.approx(0.1 * severity, rel=0.02)
    assert drawn[0].std() == pytest.approx(0.1 * severity / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize("inverse", [False, True])
def test_rbf_deformation_solves_the_system_of_the_library(inverse):
    rng = np.random.default_rng(0)
    grid = np.array(list(product(np.linspace(-1, 1, 5), repeat=3)))
    moves = 0.1 * rng.normal(size=(125, 3))
    points = rng.uniform(-1.2, 1.2, (200, 3))

    def kernel(a, b):
        root = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1) + 0.5**2)
        return 1 / root if inverse else root

    system = np.zeros((129, 129))
    system[:125, :125] = kernel(grid, grid)
    system[:125, 125], system[125, :125] = 1, 1
    system[:125, 126:], system[126:, :125] = grid, grid.T
    weights = np.linalg.solve(system, np.vstack([grid + moves, np.zeros((4, 3))]))
    expected = np.hstack([kernel(points, grid), np.ones((200, 1)), points]) @ weights
    assert np.abs(d.deform_rbf(points, moves, inverse) - expected).max() < 1e-9
    assert np.abs(d.deform_rbf(grid, moves, inverse) - grid - moves).max() < 1e-10
    assert np.abs(d.deform_rbf(points, np.zeros((125, 3)), inverse) - points).max() < 1e-8


@pytest.mark.parametrize("name", ["distortion_rbf", "distortion_rbf_inv"])
def test_rbf_corruption_moves_every_control_point_by_its_length(name, monkeypatch):
    # The control points are the cloud; the box that normalises them afterwards is left out.
    monkeypatch.setattr(d, "normalize_box", lambda points: points)
    moved = getattr(d, name)(d.CONTROL_POINTS, 4, np.random.default_rng(0), 125)
    lengths = np.linalg.norm(moved - d.CONTROL_POINTS, axis=1)
    assert np.abs(lengths - 0.1).max() < 1e-9


# --- PointCloud-C -----------------------------------------------------------------------------


def test_scaling_stretches_each_axis_within_its_bound_and_fills_the_unit_sphere(cloud):
    ratios = []
    for index in range(60):
        result = corrupted(cloud, "scale", 5, index, subset=np.arange(1024)).astype(np.float64)
        assert np.abs(result.mean(axis=0)).max() < 1e-6
        assert np.linalg.norm(result, axis=1).max() == pytest.approx(1, abs=1e-6)
        factors = result.std(axis=0) / cloud[:1024].std(axis=0)
        ratios.append(factors.max() / factors.min())
    # Factors from 1/2 to 2 differ by four at the most, and nearly do so in some of sixty clouds.
    assert 3 < max(ratios) <= 4 + 1e-6


@pytest.mark.parametrize(("corruption", "share"), [("add_global", 0.0), ("add_local", 0.9)])
def test_added_points_lie_in_the_unit_ball_and_local_ones_in_clusters(cloud, corruption, share):
    points = cloud[:1024]
    result = corrupted(points, corruption, 5, subset=np.arange(1024))
    assert (result[:1024] == points).all()
    added = result[1024:]
    assert np.linalg.norm(added, axis=1).max() <= 1 + 1e-6
    near = cKDTree(added).query(added, k=2)[0][:, 1]
    assert (near < 0.1).mean() >= share
    assert (near < 0.1).mean() <= (0.3 if share == 0 else 1)


def test_global_points_are_uniform_in_volume(cloud):
    added = [corrupted(cloud, "add_global", 5, index)[1024:] for index in range(40)]
    radius = np.linalg.norm(np.concatenate(added), axis=1)
    assert np.abs(np.quantile(radius**3, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.05


def test_local_dropout_leaves_holes_that_global_dropout_does_not(cloud):
    local = corrupted(cloud, "dropout_local", 5, subset=np.arange(1024))
    everywhere = corrupted(cloud, "dropout_global", 3, subset=np.arange(1024))
    assert len(local) == 524
    assert len(everywhere) == 512
    hole = [cKDTree(kept).query(cloud[:1024])[0].max() for kept in (local, everywhere)]
    assert hole[0] > 1.5 * hole[1]


# --- repeatability ----------------------------------------------------------------------------


def test_a_cloud_depends_on_seed_corruption_severity_and_index_alone(cloud):
    cells = [(c, s) for c in SIZES for s in (1, 4)]
    forward = {(c, s): corrupted(cloud, c, s, 3) for c, s in cells}
    for corruption, severity in reversed(cells):
        again = corrupted(cloud, corruption, severity, 3)
        assert (again == forward[corruption, severity]).all()
    for key in [(2022, "jitter", 1, 0), (2021, "rotate", 1, 0), (2021, "jitter", 2, 0)]:
        assert corruption_rng(*key).random() != corruption_rng(2021, "jitter", 1, 0).random()
    assert (corrupted(cloud, "jitter", 1, 0) != corrupted(cloud, "jitter", 1, 1)).any()


def test_one_subset_of_the_stored_points_is_shared_by_all_shapes():
    points = np.random.default_rng(0).normal(size=(3, 2048, 3)).astype(np.float32)
    dataset = CorruptedClouds(points, [0, 1, 2], "cutout", 2)
    subset = shared_subset(2021, "cutout", 2, 2048)
    assert len(set(subset.tolist())) == 1024
    for index in range(3):
        assert rows(dataset.cloud(index)) <= rows(points[index, subset])
    assert (subset != shared_subset(2021, "cutout", 3, 2048)).any()
    assert sorted(shared_subset(2021, "density_inc", 2, 2048)) == list(range(2048))
    assert len(shared_subset(2021, "density_inc", 2, 1500)) == 1500


def test_the_dataset_makes_batches_and_the_same_items_in_any_order():
    points = np.random.default_rng(0).uniform(-1, 1, (5, 256, 3)).astype(np.float32)
    dataset = CorruptedClouds(points, [3, 1, 2, 0, 4], "upsampling", 5, num_points=128)
    batch = default_collate([dataset[k] for k in range(5)])
    assert batch["pos"].shape == (5, 256, 3)
    assert str(batch["pos"].dtype) == "torch.float32"
    assert batch["label"].tolist() == [3, 1, 2, 0, 4]
    assert batch["index"].tolist() == list(range(5))
    for k in reversed(range(len(dataset))):
        assert (dataset[k]["pos"] == batch["pos"][k].numpy()).all()


@settings(max_examples=60, deadline=None)
@given(
    num_points=st.integers(64, 700),
    extra=st.integers(0, 300),
    corruption=st.sampled_from(sorted(SIZES)),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**70),
)
def test_any_number_of_points_gives_its_share(num_points, extra, corruption, severity, seed):
    rng = corruption_rng(seed, corruption, severity, 0)
    points = np.random.default_rng(seed).uniform(-1, 1, (num_points + extra, 3))
    result = corrupt(points, corruption, severity, rng, num_points)
    assert np.isfinite(result).all()
    # Within rounding of each neighbourhood, the share is that of 1,024 points.
    expected = SIZES[corruption][severity - 1] * num_points / 1024
    assert abs(len(result) - expected) <= 6
    if SIZES[corruption] == SAME:
        assert len(result) == num_points
    else:
        assert len(result) != num_points


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "corruption", "severity", "options", "message"),
    [
        (np.full((1024, 3), np.nan), "uniform", 1, {}, "1024 of 1024 points are not finite"),
        (np.zeros((2, 1024, 3)), "uniform", 1, {}, r"\(P, 3\), got \(2, 1024, 3\)"),
        (np.zeros((1024, 4)), "uniform", 1, {}, r"\(P, 3\), got \(1024, 4\)"),
        (np.zeros((500, 3)), "uniform", 1, {}, "500 points, fewer than the 1024 asked for"),
        (np.zeros((1024, 3)), "unifrom", 1, {}, "unknown corruption 'unifrom': there is uniform"),
        (np.zeros((1024, 3)), "uniform", 6, {}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        (np.zeros((1024, 3)), "uniform", 0, {}, "severity"),
        (np.zeros((1024, 3)), "uniform", 1, {"num_points": 63}, "num_points must be 64 or more"),
        (np.zeros((1024, 3)), "rotation", 1, {}, "all points coincide"),
        (np.zeros((1024, 3)), "scale", 1, {}, "all points coincide"),
        (np.zeros((1024, 3)), "lidar", 1, {}, "lidar requires meshes"),
    ],
)
def test_bad_input_is_named_and_refused(points, corruption, severity, options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(points, corruption, severity, np.random.default_rng(0), **options)


def test_the_dataset_names_the_shape_at_fault():
    points = np.random.default_rng(0).normal(size=(3, 100, 3))
    points[1, 17, 2] = np.inf
    dataset = CorruptedClouds(points, [0, 0, 0], "uniform", 1, num_points=64)
    assert dataset.cloud(0).shape == (64, 3)
    with pytest.raises(ValueError, match="shape 1: 1 of 100 points are not finite, first point 17"):
        dataset.cloud(1)
    with pytest.raises(ValueError, match="3 clouds, but labels of the shape"):
        CorruptedClouds(points, [0, 0], "uniform", 1, num_points=64)
    with pytest.raises(ValueError, match="occlusion requires meshes: one for each of 3 clouds"):
        CorruptedClouds(points, [0, 0, 0], "occlusion", 1, num_points=64, meshes=["a.ply"])
    with pytest.raises(ValueError, match="fewer than the 128 asked for"):
        CorruptedClouds(points, [0, 0, 0], "uniform", 1, num_points=128)
