"""Points from the surfaces of meshes, sampled once and kept in a cache."""

import hashlib
import json
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ..corruptions import UpAxis
from .cache import cached_array
from .shapes import Points, ShapeSet, unit_sphere

MESH_SUFFIXES = (".off", ".obj", ".ply", ".stl", ".glb")
_FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeshFile:
    """A mesh and the number of its class."""

    path: Path
    label: int


def sample_meshes(
    folder: Path,
    files: Sequence[MeshFile],
    class_names: tuple[str, ...],
    num_points: int,
    seed: int,
    strict: bool,
    cache_dir: str | None,
    num_workers: int = 0,
) -> ShapeSet:
    """Samples points from the surface of each mesh, evenly by area, and scales to the unit sphere.

    The points of a mesh depend on its path below `folder`, on `num_points` and on `seed`. They are
    kept in the cache, keyed by names, sizes and times of the files. Several processes may fill it
    at a time.

    Args:
        folder: Folder of the data set.
        files: Its meshes.
        class_names: Names of the classes.
        num_points: P.
        seed: Of the sampling.
        strict: Whether a mesh that cannot be sampled is an error, or left out and named.
        cache_dir: See `load_split`.
        num_workers: Processes that sample.

    Returns:
        The shapes of the meshes that could be sampled; `up` is "z" for .off files, ModelNet's.

    Raises:
        ValueError: With `strict`, the first mesh that cannot be sampled, and why; trimesh is not
            installed.
    """
    stats = [
        [str(f.path.relative_to(folder)), f.path.stat().st_size, f.path.stat().st_mtime_ns]
        for f in files
    ]
    key = [_FORMAT, str(folder.resolve()), num_points, seed, stats]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    work = partial(_sample_or_reason, folder=folder, num_points=num_points, seed=seed)
    points = cached_array(
        cache_dir,
        f"meshes-{digest[:16]}",
        lambda: _sample_all(work, [f.path for f in files], num_points, num_workers),
    )
    is_good = np.isfinite(points).all(axis=(1, 2))
    # The cache knows which meshes failed; why is found out again.
    bad = [str(work(f.path)) for f, good in zip(files, is_good, strict=True) if not good]
    if bad and strict:
        raise ValueError(bad[0])
    if bad:
        log.warning("left out %d meshes; first: %s", len(bad), bad[0])
    good = [file for file, fine in zip(files, is_good, strict=True) if fine]
    up: UpAxis = "z" if {f.path.suffix.lower() for f in files} == {".off"} else "y"
    return ShapeSet(
        points=points[is_good],
        labels=np.array([file.label for file in good], dtype=np.int64),
        class_names=class_names,
        names=tuple(str(file.path.relative_to(folder)) for file in good),
        meshes=tuple(file.path for file in good),
        up=up,
        skipped=tuple(bad),
    )


def sample_mesh(path: Path, num_points: int, seed: int) -> Points:
    """Returns points of the surface of a mesh file, (num_points, 3), in the unit sphere.

    A file of points without faces gives its own points, all of them.

    Raises:
        ValueError: It cannot be read, has no face of positive area, or values that are not finite.
    """
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package trimesh: pip install 'tenfold[point-clouds]'"
        ) from error
    try:
        shape: Any = trimesh.load(path, process=False, skip_materials=True)
        if isinstance(shape, trimesh.Scene):
            shape = shape.to_mesh()
    except Exception as error:  # trimesh's parsers raise whatever they stumble over
        raise ValueError(f"{path}: cannot be read as a mesh ({error})") from error
    vertices = np.asarray(shape.vertices)
    if not len(vertices) or not np.isfinite(vertices).all():
        raise ValueError(f"{path}: {'no vertex' if not len(vertices) else 'vertices not finite'}")
    if not len(getattr(shape, "faces", ())):
        return unit_sphere(vertices).astype(np.float32)
    if not shape.area > 0:
        raise ValueError(f"{path}: an empty mesh (no face with an area)")
    points, _ = trimesh.sample.sample_surface(shape, num_points, seed=seed)
    return unit_sphere(np.asarray(points)).astype(np.float32)


def _sample_or_reason(path: Path, folder: Path, num_points: int, seed: int) -> Points | str:
    name = f"{seed} {path.relative_to(folder).as_posix()}"
    own_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    try:
        points = sample_mesh(path, num_points, own_seed)
    except ValueError as error:
        return str(error)
    return points if len(points) == num_points else f"{path}: points without faces"


def _sample_all(
    work: "partial[Points | str]", paths: Sequence[Path], num_points: int, num_workers: int
) -> Points:
    """Returns (n, num_points, 3), NaN for a mesh that cannot be sampled."""
    show = partial(
        track,
        description="sampling meshes",
        total=len(paths),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    if num_workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            results = list(show(pool.map(work, paths, chunksize=16)))
    else:
        results = list(show(map(work, paths)))
    failed = np.full((num_points, 3), np.nan, dtype=np.float32)
    return np.stack([failed if isinstance(result, str) else result for result in results])
