"""Clouds per second of each corruption, and of the whole suite in one and more processes.

    python tests/benchmarks/corruptions.py
    python tests/benchmarks/corruptions.py --jobs "[1, 2, 4]" --shapes 500

The clouds are samples of the surface of boxes joined at random, 2,048 points each, and the meshes
those boxes, so that nothing has to be downloaded. In one process the suite takes turns with the
other numbers of processes; a rate is the median over rounds, and the speed-up the median of the
ratios within a round. Starting processes is part of the time, as it is for users. Times of
occlusion and LiDAR include reading the mesh.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.corruptions import MESH_FREE, CorruptedClouds
from tenfold.datamodules.corruptions.files import write_suite
from tenfold.modules.corruption_names import NEEDS_MESH, POINTCLOUD_C, SEVERITIES

if TYPE_CHECKING:
    from tenfold.datamodules.point_clouds.shapes import ShapeSet


def make_shapes(num_shapes: int, folder: Path) -> ShapeSet:
    """Returns shapes of eight boxes each, with their meshes as files (about 25,000 faces)."""
    # Not above, because started processes import this file again, and this imports torch.
    from tenfold.datamodules.point_clouds.shapes import ShapeSet

    clouds, paths = [], []
    for index in range(num_shapes):
        rng = np.random.default_rng(index)
        boxes = [trimesh.creation.box(rng.uniform(0.1, 0.8, 3)) for _ in range(8)]
        for box in boxes:
            box.apply_translation(rng.uniform(-0.4, 0.4, 3))
        mesh = trimesh.util.concatenate(boxes)
        for _ in range(4):
            mesh = mesh.subdivide()
        paths.append(folder / f"{index}.ply")
        mesh.export(paths[-1])
        points, _ = trimesh.sample.sample_surface(mesh, 2048, seed=index)
        clouds.append(points / np.linalg.norm(points, axis=1).max())
    return ShapeSet(
        points=np.stack(clouds).astype(np.float32),
        labels=np.zeros(num_shapes, dtype=np.int64),
        class_names=("boxes",),
        names=tuple(map(str, range(num_shapes))),
        meshes=tuple(paths),
    )


def rate_of(shapes: ShapeSet, corruption: str, count: int) -> float:
    """Clouds per second of one corruption in this process, all severities alike."""
    datasets = [
        CorruptedClouds(shapes.points, shapes.labels, corruption, s, meshes=shapes.meshes)
        for s in SEVERITIES
    ]
    datasets[0].cloud(0)
    started = time.perf_counter()
    for dataset, index in product(datasets, range(count)):
        dataset.cloud(index)
    return count * len(SEVERITIES) / (time.perf_counter() - started)


def seconds_of(shapes: ShapeSet, jobs: int) -> float:
    """Seconds to write the 13 corruptions that need no mesh, five severities each."""
    cells = list(product(MESH_FREE, SEVERITIES))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_suite(shapes, Path(folder), cells, source="boxes", jobs=jobs, say=lambda line: None)
        return time.perf_counter() - started


def main(shapes: int = 200, jobs: list[int] | None = None, rounds: int = 3) -> None:
    """Measures and prints.

    Args:
        shapes: Number of shapes in the suite.
        jobs: Numbers of processes to compare with one.
        rounds: How often each measurement is taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        split = make_shapes(shapes, Path(folder))
        print(
            f"{shapes} shapes, 1,024 points, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        for corruption in (*MESH_FREE, *sorted(NEEDS_MESH), *POINTCLOUD_C):
            count = 10 if corruption in NEEDS_MESH else 40
            rates = [rate_of(split, corruption, min(count, shapes)) for _ in range(rounds)]
            print(f"{corruption:20} {statistics.median(rates):8,.0f} clouds/s")
        clouds = shapes * len(MESH_FREE) * len(SEVERITIES)
        compared = jobs or [2]
        times = {number: [] for number in (1, *compared)}
        for _ in range(rounds):
            for number, found in times.items():
                found.append(seconds_of(split, number))
        for number, found in times.items():
            ratios = [one / this for one, this in zip(times[1], found, strict=True)]
            print(
                f"suite, {number} processes: {clouds / statistics.median(found):8,.0f} clouds/s, "
                f"{statistics.median(ratios):.2f} times one process"
            )
            if number > 1:
                ratio(f"clouds/s of the suite, {number} processes / 1", statistics.median(ratios))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
