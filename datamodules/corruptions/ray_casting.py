"""Occlusion and LiDAR: what a depth camera sees of a mesh, by ray casting without a display.

The camera of ModelNet40-C has 1080 x 720 pixels and looks at the origin from above, from one of
five sectors around the vertical axis: for these two corruptions the severity is the sector, not a
strength. The benchmark renders every pixel and keeps a random 1,024 of those that show the object.
Here pixels are cast in a random order until that many have hit, which is the same draw at a
fraction of the rays; pixels outside the rectangle around the projected object cannot hit.

Needs trimesh and embreex: `pip install 'tenfold[point-clouds]'`.

Shapes: V vertices, R rays, M points; the last axis is x, y, z.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .deformations import axis_rotation
from .rules import Array, normalize_box, scaled

if TYPE_CHECKING:
    from trimesh import Trimesh

UpAxis = Literal["y", "z"]
WIDTH, HEIGHT, FOCAL = 1080, 720, 365.0
OCCLUSION_DISTANCE, LIDAR_DISTANCE = 3.0, 5.0
LIDAR_PITCH = np.deg2rad(1.0)
# Rx(-pi/2) Rz(pi) of the benchmark: (x, y, z) -> (-x, z, y), its own inverse.
Z_UP_TO_Y_UP = np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])


def load_mesh(path: str | Path) -> "Trimesh":
    """Reads a mesh of any format that trimesh knows; the parts of a scene become one.

    Raises:
        ImportError: trimesh is not installed.
        ValueError: There is no such file, or it cannot be read as a mesh.
    """
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(_missing("trimesh")) from error

    try:
        return trimesh.load_mesh(path, process=False, skip_materials=True)
    except Exception as error:  # trimesh's parsers raise whatever they stumble over
        raise ValueError(f"cannot be read as a mesh: {error}") from error


def occlusion(
    mesh: "Trimesh", severity: int, rng: Generator, num_points: int, up: UpAxis = "y"
) -> Array:
    """Draws points of the surface that a camera at distance 3 sees, and normalises their box.

    Args:
        mesh: The object, of any scale and position.
        severity: Sector of the camera around the vertical axis, 1 to 5.
        rng: Random numbers.
        num_points: N points to draw; a view of fewer pixels gives some of them several times.
        up: Vertical axis of the mesh and of the result.

    Returns:
        Points, (N, 3).

    Raises:
        ValueError: The mesh is empty, flat as seen, or not finite.
        ImportError: embreex is not installed.
    """
    pitch = rng.uniform(2 / 3 * np.pi, 5 / 6 * np.pi)
    rotation = axis_rotation(2, _azimuth(severity, rng)) @ axis_rotation(0, pitch)
    seen = visible_points(mesh, up, rotation, OCCLUSION_DISTANCE, rng, num_points)
    return normalize_box(_turn(seen, up))


def lidar(
    mesh: "Trimesh", severity: int, rng: Generator, num_points: int, up: UpAxis = "y"
) -> Array:
    """Draws points on the rings that a spinning sensor at distance 5 would leave on the surface.

    Args:
        mesh: The object, of any scale and position.
        severity: Sector of the sensor around the vertical axis, 1 to 5.
        rng: Random numbers.
        num_points: N; 3/4 N points are drawn, with replacement.
        up: Vertical axis of the mesh and of the result.

    Returns:
        Points, (3/4 N, 3), in the frame of the mesh's box scaled to edge 2; not normalised again.

    Raises:
        ValueError: The mesh is empty, flat as seen, or not finite.
        ImportError: embreex is not installed.
    """
    rotation = axis_rotation(2, _azimuth(severity, rng)) @ axis_rotation(0, 5 / 8 * np.pi)
    seen = visible_points(mesh, up, rotation, LIDAR_DISTANCE, rng, num_points)
    rings = snap_to_rings(seen, -LIDAR_DISTANCE * rotation[:, 2])
    return _turn(rings[rng.integers(len(rings), size=scaled(768, num_points))], up)


def visible_points(
    mesh: "Trimesh", up: UpAxis, rotation_33: Array, distance: float, rng: Generator, count: int
) -> Array:
    """Draws pixels of a camera's depth image that show the mesh, as points in space.

    Args:
        mesh: The object; its box is moved to the origin and its longest edge scaled to 2.
        up: Its vertical axis.
        rotation_33: Axes of the camera (right, down, forward) in its columns.
        distance: Of the camera from the origin, at which it looks.
        rng: Random numbers.
        count: Pixels to draw, without repetition unless there are fewer.

    Returns:
        Points, (count, 3), in the camera's frame, in which z is up.

    Raises:
        ValueError: As for `occlusion`.
    """
    caster = _Caster(mesh, up)
    camera = -distance * rotation_33[:, 2]
    rays = _pixel_rays(caster.vertices, camera, rotation_33, rng)
    found, num_found, size = [], 0, 4 * count
    for start in range(0, len(rays), size):
        hits = caster.first_hits(camera, rays[start : start + size])
        found.append(hits)
        num_found += len(hits)
        if num_found >= count:
            return np.concatenate(found)[:count]
    if num_found == 0:
        raise ValueError("the camera sees nothing of the mesh: its surface is edge-on or too thin")
    seen = np.concatenate(found)
    return seen[rng.integers(num_found, size=count)]


def snap_to_rings(points_M3: Array, sensor_3: Array) -> Array:
    """Keeps the points in the middle half of each degree of elevation, moved to its middle.

    Args:
        points_M3: Points, (M, 3).
        sensor_3: Place of the sensor, (3,). Elevations are measured from its z axis.

    Returns:
        Those kept, as far from the sensor as before; the nearest to a ring's middle where none is.
    """
    offset = points_M3 - sensor_3
    flat = np.hypot(offset[:, 0], offset[:, 1])
    elevation = np.arctan2(flat, offset[:, 2])
    bins = (elevation - elevation.min()) / LIDAR_PITCH
    from_middle = np.abs(bins - np.floor(bins) - 0.5)
    kept = from_middle <= max(0.25, from_middle.min())
    middle = elevation.min() + (np.floor(bins[kept]) + 0.5) * LIDAR_PITCH
    radius = np.linalg.norm(offset[kept], axis=1)
    flat_direction = offset[kept, :2] / np.maximum(flat[kept, None], np.finfo(float).tiny)
    ring = np.column_stack([flat_direction * np.sin(middle)[:, None], np.cos(middle)])
    snapped: Array = sensor_3 + radius[:, None] * ring
    return snapped


def _azimuth(severity: int, rng: Generator) -> float:
    middle = 2 * np.pi * severity / 5
    return rng.uniform(middle - np.pi / 5, middle + np.pi / 5)


def _turn(points_M3: Array, up: UpAxis) -> Array:
    """Between the camera's frame, in which z is up, and that of the clouds."""
    return points_M3 @ Z_UP_TO_Y_UP if up == "y" else points_M3


def _pixel_rays(vertices_V3: Array, camera_3: Array, rotation_33: Array, rng: Generator) -> Array:
    """Directions, in random order, of the pixels in the rectangle around the projected vertices."""
    local = (vertices_V3 - camera_3) @ rotation_33
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    pixels = FOCAL * local[:, :2] / local[:, 2:] + middle
    low = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(pixels.max(axis=0)) + 1, (WIDTH, HEIGHT)).astype(int)
    u, v = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
    plane = (np.stack([u.ravel(), v.ravel()], axis=1) - middle) / FOCAL
    directions = np.column_stack([plane, np.ones(len(plane))])[rng.permutation(len(plane))]
    return directions @ rotation_33.T


class _Caster:
    """Rays against a mesh whose box is centred on the origin and has the longest edge 2."""

    def __init__(self, mesh: "Trimesh", up: UpAxis) -> None:
        try:
            from trimesh import Trimesh
            from trimesh.ray.ray_pyembree import RayMeshIntersector
        except ImportError as error:
            raise ImportError(_missing("embreex")) from error
        if len(mesh.faces) == 0:
            raise ValueError("the mesh is empty: it has no faces")
        used, faces = np.unique(mesh.faces, return_inverse=True)
        vertices = np.asarray(mesh.vertices, dtype=np.float64)[used]
        if not np.isfinite(vertices).all():
            raise ValueError("the mesh has vertices that are not finite")
        self.vertices = normalize_box(_turn(vertices, up))
        self._mesh = RayMeshIntersector(
            Trimesh(self.vertices, faces.reshape(-1, 3), process=False), scale_to_box=False
        )

    def first_hits(self, origin_3: Array, directions_R3: Array) -> Array:
        """The nearest point of the surface on each ray that meets it, in the order of the rays."""
        origins = np.broadcast_to(origin_3, directions_R3.shape)
        points, rays, _ = self._mesh.intersects_location(
            origins, directions_R3, multiple_hits=False
        )
        order: NDArray[np.int64] = np.argsort(rays, kind="stable")
        hits: Array = points[order]
        return hits


def _missing(package: str) -> str:
    return f"occlusion and lidar need {package}: pip install 'tenfold[point-clouds]'"
