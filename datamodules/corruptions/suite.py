"""One function for every corruption, and the random numbers that make it repeatable.

The benchmark runs one global generator through all corruptions in turn. Here the generator of a
cloud is a function of (seed, corruption, severity, index), so that a cloud is the same whatever
else is generated, in whatever order and in however many processes. Clouds made here are therefore
comparable with the published files in distribution, not bit by bit.

Shapes: P points given, N points asked for, M points returned.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from ...modules.corruption_names import (
    MODELNET40_C_NAMES,
    NEEDS_MESH,
    POINTCLOUD_C,
    SEVERITIES,
)
from . import deformations, rules
from .ray_casting import UpAxis, lidar, load_mesh, occlusion
from .rules import Array

if TYPE_CHECKING:
    from trimesh import Trimesh

MIN_POINTS = 64
MESH_FREE: tuple[str, ...] = tuple(name for name in MODELNET40_C_NAMES if name not in NEEDS_MESH)
_RULES: dict[str, Callable[[Array, int, Generator, int], Array]] = {
    "density_inc": rules.density_increase,
    "density": rules.density_decrease,
    "cutout": rules.cutout,
    "uniform": rules.uniform,
    "gaussian": rules.gaussian,
    "impulse": rules.impulse,
    "upsampling": rules.upsampling,
    "background": rules.background,
    "rotation": deformations.rotation,
    "shear": deformations.shear,
    "distortion": deformations.distortion,
    "distortion_rbf": deformations.distortion_rbf,
    "distortion_rbf_inv": deformations.distortion_rbf_inv,
    "scale": rules.scale,
    "jitter": rules.jitter,
    "rotate": deformations.rotate,
    "dropout_global": rules.dropout_global,
    "dropout_local": rules.dropout_local,
    "add_global": rules.add_global,
    "add_local": rules.add_local,
}
_MESH_RULES = {"occlusion": occlusion, "lidar": lidar}


def corrupt(
    points: ArrayLike | None,
    corruption: str,
    severity: int,
    rng: Generator,
    num_points: int = rules.REFERENCE_POINTS,
    mesh: "Trimesh | None" = None,
    subset: NDArray[np.int64] | None = None,
    up: UpAxis = "y",
) -> NDArray[np.float32]:
    """Corrupts one point cloud as ModelNet40-C or PointCloud-C does.

    At 1,024 points the rules are the benchmarks'. For other numbers, what they count as a share of
    the points follows, and so do the fixed sizes of neighbourhoods, which keeps their share.

    Args:
        points: Cloud, (P, 3), P >= `num_points`, centred and inside the unit sphere or the box
            [-1, 1]^3, finite. Not looked at by "occlusion" and "lidar".
        corruption: One of the 15 names of ModelNet40-C or the 7 of PointCloud-C.
        severity: 1 to 5 (for "occlusion" and "lidar" the sector from which the object is seen).
        rng: Random numbers, as from `corruption_rng`.
        num_points: N points that are corrupted, 64 or more. The result may have more or fewer.
        mesh: What "occlusion" and "lidar" see, in the frame of the clouds; of any scale.
        subset: Indices into `points` of those to corrupt, as from `shared_subset`. None draws them
            from `rng`.
        up: Vertical axis of clouds and mesh: "y" in ModelNet40's HDF5 files, "z" in its meshes.

    Returns:
        The corrupted cloud, (M, 3). M depends on corruption, severity and N alone.

    Raises:
        ValueError: An unknown corruption, a severity outside 1..5, points that are not (P, 3), not
            finite or fewer than N, a missing or empty mesh.
        ImportError: A mesh is to be seen, and embreex is not installed.

    Source: Sun et al. 2022 (ModelNet40-C); Ren et al. 2022 (PointCloud-C).
    """
    check_corruption(corruption, severity)
    check_num_points(num_points)
    if corruption in NEEDS_MESH:
        if mesh is None:
            raise ValueError(f"{corruption} requires meshes: pass `mesh`, or leave it out")
        seen = _MESH_RULES[corruption](mesh, severity, rng, num_points, up)
        return seen.astype(np.float32)
    cloud = check_cloud(points, num_points)
    if subset is None:
        count = _num_drawn(corruption, len(cloud), num_points)
        subset = rng.choice(len(cloud), count, replace=False)
    return _RULES[corruption](cloud[subset], severity, rng, num_points).astype(np.float32)


def corruption_rng(seed: int, corruption: str, severity: int, index: int) -> Generator:
    """Returns the generator of one corrupted cloud, a function of the arguments alone.

    Args:
        seed: 0 or more; 2021 is the benchmark's.
        corruption: Name.
        severity: 1 to 5.
        index: Number of the shape in its split.
    """
    key = f"{seed} {corruption} {severity} {index}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()))


def shared_subset(
    seed: int,
    corruption: str,
    severity: int,
    num_stored: int,
    num_points: int = rules.REFERENCE_POINTS,
) -> NDArray[np.int64]:
    """Draws which of the stored points are corrupted: the same for all shapes, as in ModelNet40-C.

    Args:
        seed: 0 or more.
        corruption: Name.
        severity: 1 to 5.
        num_stored: P points that every shape has.
        num_points: N points asked for.

    Returns:
        Indices below P, without repetition: N of them, or 2 N for "density_inc" (at most P), which
        draws from a denser pool.

    Raises:
        ValueError: Fewer points are stored than asked for.
    """
    check_num_points(num_points)
    _check_enough(num_stored, num_points)
    key = f"{seed} {corruption} {severity} subset".encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()))
    count = _num_drawn(corruption, num_stored, num_points)
    subset: NDArray[np.int64] = rng.choice(num_stored, count, replace=False)
    return subset


class CorruptedClouds:
    """A map-style dataset that corrupts clouds as they are read.

    Item k is the same in every epoch, order and process: a dict of pos (M, 3) float32, label and
    index, which `default_collate` makes the tensors of a batch. M is the same for all items. A mesh
    is read anew for each item.

    Args:
        points: Clouds, (n, P, 3).
        labels: Classes, (n,).
        corruption: As for `corrupt`.
        severity: 1 to 5.
        seed: Of the random numbers.
        num_points: N points that are corrupted.
        meshes: Mesh file of each shape, for "occlusion" and "lidar".
        up: Vertical axis of clouds and meshes.

    Raises:
        ValueError: From the constructor as from `corrupt`, or lengths that differ; from reading a
            cloud or mesh that cannot be used, with its name.
    """

    def __init__(
        self,
        points: NDArray[np.floating[Any]],
        labels: ArrayLike,
        corruption: str,
        severity: int,
        seed: int = 2021,
        num_points: int = rules.REFERENCE_POINTS,
        meshes: Sequence[str | Path] | None = None,
        up: UpAxis = "y",
    ) -> None:
        check_corruption(corruption, severity)
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"points must have the shape (n, P, 3), got {points.shape}")
        self.points, self.labels = points, np.asarray(labels, dtype=np.int64)
        if self.labels.shape != points.shape[:1]:
            raise ValueError(f"{len(points)} clouds, but labels of the shape {self.labels.shape}")
        if corruption not in NEEDS_MESH:
            meshes = None
        elif meshes is None or len(meshes) != len(points):
            raise ValueError(f"{corruption} requires meshes: one for each of {len(points)} clouds")
        self.corruption, self.severity, self.seed = corruption, severity, seed
        self.num_points, self.meshes, self.up = num_points, meshes, up
        self.subset = shared_subset(seed, corruption, severity, points.shape[1], num_points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pos": self.cloud(index), "label": int(self.labels[index]), "index": index}

    def cloud(self, index: int) -> NDArray[np.float32]:
        """Returns one corrupted cloud, (M, 3)."""
        rng = corruption_rng(self.seed, self.corruption, self.severity, index)
        path = None if self.meshes is None else self.meshes[index]
        with naming(f"shape {index}" if path is None else str(path)):
            return corrupt(
                self.points[index],
                self.corruption,
                self.severity,
                rng,
                self.num_points,
                None if path is None else load_mesh(path),
                self.subset,
                self.up,
            )


@contextmanager
def naming(shape: str) -> Iterator[None]:
    """Adds to a ValueError which shape it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{shape}: {error}") from error


def resolve_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the corruptions that words and names stand for, each once.

    Args:
        names: Corruptions, "all" (the 15 of ModelNet40-C), "mesh_free" (13 of them) or
            "pointcloud_c" (the 7 of PointCloud-C).

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    words = {"all": MODELNET40_C_NAMES, "mesh_free": MESH_FREE, "pointcloud_c": POINTCLOUD_C}
    chosen = [name for word in names for name in words.get(word, (word,))]
    for name in chosen:
        check_corruption(name, 1)
    return tuple(dict.fromkeys(chosen))


def check_corruption(corruption: str, severity: int) -> None:
    """Refuses an unknown corruption, and a severity outside 1 to 5.

    Raises:
        ValueError: With the names that there are.
    """
    names = (*MODELNET40_C_NAMES, *POINTCLOUD_C)
    if corruption not in names:
        near = get_close_matches(corruption, names, n=3) or names
        raise ValueError(f"unknown corruption '{corruption}': there is {', '.join(near)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")


def check_num_points(num_points: int) -> None:
    """Refuses so few points that a corruption would change none.

    Raises:
        ValueError: Fewer than 64 points.
    """
    if num_points < MIN_POINTS:
        raise ValueError(f"num_points must be {MIN_POINTS} or more, got {num_points}")


def check_cloud(points: ArrayLike | None, num_points: int) -> Array:
    """Returns a cloud as (P, 3) float64.

    Raises:
        ValueError: The rank or width is another, values are not finite, or points are too few.
    """
    cloud = np.asarray(points, dtype=np.float64)
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"a cloud must have the shape (P, 3), got {cloud.shape}")
    bad = ~np.isfinite(cloud).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(cloud)} points are not finite, first point {bad.argmax()}"
        )
    _check_enough(len(cloud), num_points)
    return cloud


def _check_enough(num_stored: int, num_points: int) -> None:
    if num_stored < num_points:
        raise ValueError(
            f"a cloud has {num_stored} points, fewer than the {num_points} asked for: give denser "
            f"clouds or num_points {num_stored}"
        )


def _num_drawn(corruption: str, num_stored: int, num_points: int) -> int:
    pool = 2 * num_points if corruption == "density_inc" else num_points
    return min(pool, num_stored)
