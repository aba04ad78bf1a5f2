"""Occlusion and LiDAR: what is seen lies on the surface, faces the camera and hits its pixels."""

import sys

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation
from tenfold.datamodules.corruptions import CorruptedClouds, corrupt, corruption_rng, load_mesh
from tenfold.datamodules.corruptions.deformations import axis_rotation
from tenfold.datamodules.corruptions.ray_casting import (
    Z_UP_TO_Y_UP,
    lidar,
    occlusion,
    snap_to_rings,
    visible_points,
)
from tenfold.modules.corruption_names import SEVERITIES


def rng(index: int = 0) -> np.random.Generator:
    return np.random.default_rng(index)


def unit_cube() -> trimesh.Trimesh:
    return trimesh.creation.box((2, 2, 2))


def chair_like() -> trimesh.Trimesh:
    """A shape without symmetry, z up."""
    seat = trimesh.creation.box((1, 1, 0.1))
    back = trimesh.creation.box(
        (0.1, 1, 1.2), trimesh.transformations.translation_matrix((0.5, 0, 0.5))
    )
    arm = trimesh.creation.box(
        (0.8, 0.1, 0.1), trimesh.transformations.translation_matrix((0, 0.5, 0.4))
    )
    return trimesh.util.concatenate([seat, back, arm])


def first_hit_on_cube(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distances along rays to the cube [-1, 1]^3 by the slab method; NaN where they miss."""
    a, b = (-1 - origin) / directions, (1 - origin) / directions
    entry, leave = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
    return np.where(entry <= leave, entry, np.nan)


def test_seen_points_are_the_first_hits_of_distinct_pixels_of_the_camera():
    rotation = axis_rotation(2, 0.7) @ axis_rotation(0, 2.2)
    seen = visible_points(unit_cube(), "z", rotation, 3.0, rng(), 1024)
    camera = -3.0 * rotation[:, 2]
    local = (seen - camera) @ rotation
    pixels = 365 * local[:, :2] / local[:, 2:] + (539.5, 359.5)
    assert np.abs(pixels - pixels.round()).max() < 1e-2
    assert len(np.unique(pixels.round(), axis=0)) == 1024
    assert pixels.min() >= 0
    assert (pixels.max(axis=0) <= (1079, 719)).all()
    directions = np.column_stack([(pixels.round() - (539.5, 359.5)) / 365, np.ones(1024)])
    distance = first_hit_on_cube(camera, directions @ rotation.T)
    assert np.abs(distance - local[:, 2]).max() < 1e-3


def test_the_draw_is_uniform_over_all_pixels_that_show_the_object():
    rotation = axis_rotation(2, 0.7) @ axis_rotation(0, 2.2)
    u, v = np.meshgrid(np.arange(1080), np.arange(720))
    plane = np.stack([u.ravel() - 539.5, v.ravel() - 359.5, np.full(u.size, 365)], axis=1) / 365
    camera = -3.0 * rotation[:, 2]
    directions = plane @ rotation.T
    depth = first_hit_on_cube(camera, directions)
    everything = (camera + depth[:, None] * directions)[np.isfinite(depth)]
    draws = np.concatenate(
        [visible_points(unit_cube(), "z", rotation, 3.0, rng(k), 1024) for k in range(20)]
    )
    # Compared in pixels of the image, of which points near to the camera have more.
    error = np.abs(draws.mean(axis=0) - everything.mean(axis=0))
    assert (error < 4 * everything.std(axis=0) / np.sqrt(len(draws))).all()
    top = [(np.abs(points[:, 2] - 1) < 1e-5).mean() for points in (draws, everything)]
    assert top[0] == pytest.approx(top[1], abs=0.02)


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_cube_shows_its_top_and_never_its_bottom(up, severity):
    points = occlusion(unit_cube(), severity, rng(severity), 1024, up)
    assert points.shape == (1024, 3)
    assert np.abs(np.abs(points).max(axis=1) - 1).max() < 0.02  # on the surface
    vertical = points[:, "xyz".index(up)]
    assert (vertical > 0.98).mean() > 0.2
    assert (vertical < -0.98).mean() < 0.05  # only lower edges of the sides


@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_severity_is_a_sector_of_the_camera(severity):
    ball = trimesh.creation.icosphere(subdivisions=3)
    for index in range(8):
        points = lidar(ball, severity, rng(index), 8192, "z")
        toward = points.mean(axis=0)
        # The camera is at -d R e_z with R = Rz(azimuth) Rx(pitch): behind it, seen from above.
        azimuth = np.arctan2(toward[1], toward[0]) - np.pi / 2
        from_middle = (azimuth - 2 * np.pi * severity / 5 + np.pi) % (2 * np.pi) - np.pi
        assert abs(from_middle) < np.pi / 5 + 0.05
        polar = np.rad2deg(np.arccos(toward[2] / np.linalg.norm(toward)))
        assert polar == pytest.approx(180 - 112.5, abs=2)


def test_what_lies_behind_is_not_seen():
    plate = trimesh.creation.box(
        (2, 2, 0.02), trimesh.transformations.translation_matrix((0, 0, 0.4))
    )
    hidden = trimesh.creation.icosphere(radius=0.1)
    both = trimesh.util.concatenate([plate, hidden])
    for severity in SEVERITIES:
        alone = occlusion(plate, severity, rng(severity), 1024, "z")
        together = occlusion(both, severity, rng(severity), 1024, "z")
        assert np.ptp(together[:, 2]) < 0.03
        assert np.ptp(alone[:, 2]) < 0.03
    # Turned upside down, the ball lies on top and is seen.
    both.apply_transform(trimesh.transformations.rotation_matrix(np.pi, (1, 0, 0)))
    assert np.ptp(occlusion(both, 1, rng(), 1024, "z")[:, 2]) > 0.3


def test_a_fixed_seed_gives_one_cloud_wherever_the_mesh_lies_and_however_large_it_is():
    mesh = chair_like()
    moved = mesh.copy().apply_scale(37.0).apply_translation((5, -3, 100))
    for rule in (occlusion, lidar):
        assert (rule(mesh, 2, rng(), 1024, "z") == rule(mesh, 2, rng(), 1024, "z")).all()
        ours, theirs = (rule(m, 2, rng(), 1024, "z") for m in (mesh, moved))
        assert (np.abs(ours - theirs).max(axis=1) < 1e-3).mean() > 0.98


def test_the_two_vertical_axes_differ_by_the_turn_of_the_benchmark():
    # Row vectors: Rx(-pi/2), then Rz(pi).
    turn = axis_rotation(0, -np.pi / 2) @ axis_rotation(2, np.pi)
    assert np.abs(Z_UP_TO_Y_UP - turn).max() < 1e-15
    assert np.linalg.det(Z_UP_TO_Y_UP) == pytest.approx(1)
    assert (np.array([0, 0, 1.0]) @ Z_UP_TO_Y_UP).tolist() == [0, 1, 0]
    standing = chair_like()
    turned = trimesh.Trimesh(standing.vertices @ Z_UP_TO_Y_UP, standing.faces, process=False)
    for rule in (occlusion, lidar):
        expected = rule(standing, 3, rng(), 1024, "z") @ Z_UP_TO_Y_UP
        assert np.abs(rule(turned, 3, rng(), 1024, "y") - expected).max() < 1e-9


def test_axis_rotations_are_those_of_scipy():
    for axis, name in enumerate("xyz"):
        expected = Rotation.from_euler(name, 0.3).as_matrix()
        assert np.abs(axis_rotation(axis, 0.3) - expected).max() < 1e-15


def test_rings_keep_distance_and_azimuth_and_the_middle_half_of_each_degree():
    generator = rng()
    sensor = np.array([1.0, 2.0, 5.0])
    points = sensor + generator.normal(size=(5000, 3)) * 0.4 + (0, 0, -4)
    rings = snap_to_rings(points, sensor)

    def spherical(cloud):
        x, y, z = (cloud - sensor).T
        radius = np.sqrt(x * x + y * y + z * z)
        return radius, np.rad2deg(np.arccos(z / radius)), np.arctan2(y, x)

    radius, elevation, azimuth = spherical(points)
    lowest = elevation.min()
    part = (elevation - lowest) % 1
    kept = (part >= 0.25) & (part <= 0.75)
    ring_radius, ring_elevation, ring_azimuth = spherical(rings)
    assert 0.45 < kept.mean() < 0.55
    assert np.abs(ring_radius - radius[kept]).max() < 1e-9
    assert np.abs(ring_azimuth - azimuth[kept]).max() < 1e-9
    expected = lowest + np.floor(elevation[kept] - lowest) + 0.5
    assert np.abs(ring_elevation - expected).max() < 1e-6


def test_a_thing_thinner_than_a_ring_still_gives_points():
    points = np.array([[0.0, 0.0, -1.0], [0.001, 0.0, -1.0]])
    assert len(snap_to_rings(points, np.array([0.0, 1.0, 0.0]))) >= 1


def test_lidar_has_three_quarters_of_the_points_on_few_rings():
    for num_points, expected in ((1024, 768), (256, 192)):
        mesh, generator = unit_cube(), corruption_rng(2021, "lidar", 2, 0)
        points = corrupt(None, "lidar", 2, generator, num_points, mesh=mesh, up="z")
        assert points.shape == (expected, 3)
        assert points.dtype == np.float32
    replay = corruption_rng(2021, "lidar", 2, 0)
    azimuth = replay.uniform(4 * np.pi / 5 - np.pi / 5, 4 * np.pi / 5 + np.pi / 5)
    sensor = -5 * (axis_rotation(2, azimuth) @ axis_rotation(0, 5 / 8 * np.pi))[:, 2]
    points = corrupt(
        None, "lidar", 2, corruption_rng(2021, "lidar", 2, 0), mesh=unit_cube(), up="z"
    )
    offset = points - sensor
    elevation = np.rad2deg(np.arccos(offset[:, 2] / np.linalg.norm(offset, axis=1)))
    from_ring = (elevation - elevation.min() + 0.5) % 1 - 0.5
    assert np.abs(from_ring).max() < 1e-3


def test_a_view_of_few_pixels_repeats_them():
    needle = trimesh.creation.box((0.02, 0.02, 2))
    points = occlusion(needle, 1, rng(), 1024, "z")
    assert points.shape == (1024, 3)
    assert 1 < len(np.unique(points, axis=0)) < 1024


def test_meshes_of_files_are_read_and_named_when_they_cannot_be_used(tmp_path):
    glued = tmp_path / "glued.off"
    lines = ["0 0 0", "1 0 0", "0 1 0", "0 0 1", "3 0 1 2", "3 0 1 3", "3 0 2 3", "3 1 2 3"]
    glued.write_text("\n".join(["OFF4 4 6", *lines, ""]))
    chair_like().export(tmp_path / "chair.ply")
    (tmp_path / "broken.off").write_text("OFF\n3 1 0\n0 0 0\n")
    (tmp_path / "empty.off").write_text("OFF\n0 0 0\n")
    paths = [tmp_path / f"{name}" for name in ("glued.off", "chair.ply", "broken.off", "empty.off")]
    paths.append(tmp_path / "missing.off")
    points = np.zeros((5, 1024, 3))
    dataset = CorruptedClouds(points, np.arange(5), "occlusion", 1, meshes=paths, up="z")
    for index in (0, 1):
        item = dataset[index]
        assert item["pos"].shape == (1024, 3)
        assert item["label"] == index
        assert (dataset[index]["pos"] == item["pos"]).all()
    for index, message in (
        (2, "broken.off: cannot be read as a mesh"),
        (3, "empty.off: (the mesh is empty|cannot be read)"),
        (4, "missing.off: cannot be read as a mesh"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset[index]
    assert isinstance(load_mesh(glued), trimesh.Trimesh)


def test_meshes_that_cannot_be_seen_are_refused():
    line = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="the camera sees nothing of the mesh"):
        occlusion(line, 1, rng(), 1024)
    bad = trimesh.Trimesh([[0, 0, 0], [1, 0, np.nan], [0, 1, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="vertices that are not finite"):
        lidar(bad, 1, rng(), 1024)
    with pytest.raises(ValueError, match="the mesh is empty"):
        occlusion(trimesh.Trimesh(), 1, rng(), 1024)
    point = trimesh.Trimesh(np.ones((3, 3)), [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="all points coincide"):
        occlusion(point, 1, rng(), 1024)


@pytest.mark.parametrize(
    ("module", "package"), [("trimesh", "trimesh"), ("trimesh.ray.ray_pyembree", "embreex")]
)
def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch, module, package):
    mesh = unit_cube()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"need {package}: pip install 'tenfold\[point-clouds\]'"
    ):
        load_mesh("x.off") if package == "trimesh" else occlusion(mesh, 1, rng(), 1024)
