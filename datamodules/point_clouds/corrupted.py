"""Corrupted copies of a split: the benchmarks' files, or made here once and kept.

Shapes: n shapes, M points each; M depends on corruption and severity, and is never cut.
"""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from ...modules.corruption_names import CLEAN, MODELNET40_C_NAMES, POINTCLOUD_C
from ..corruptions import CorruptedClouds
from .cache import cached_array
from .readers import read_h5
from .shapes import Integers, Points, ShapeSet

_FORMAT = 1


class TestClouds(Dataset[dict[str, Any]]):
    """Clouds of one (corruption, severity), as they are stored, in batches.

    A batch is a dict: pos (B, M, 3) float32, label (B,) int64, index (B,) int64, the number of the
    shape in its split; corruption and severity, the same for all shapes; name (B names) if given.

    Args:
        points: (n, M, 3), also as a memory map.
        labels: (n,).
        corruption: Name; "clean" for none.
        severity: 1 to 5; 0 for clean clouds.
        names: Names of the shapes.
    """

    __test__ = False  # pytest takes the name for a test case

    def __init__(
        self,
        points: Points,
        labels: Integers,
        corruption: str = CLEAN,
        severity: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        self.points, self.labels = points, labels
        self.corruption, self.severity, self.names = corruption, severity, names

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one shape, as `__getitems__` without the batch axis."""
        batch = self.__getitems__([index])
        return {k: v[0] if isinstance(v, Tensor | list) else v for k, v in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Returns shapes as one batch."""
        index = np.asarray(indices, dtype=np.int64)
        batch: dict[str, Any] = {
            "pos": torch.from_numpy(np.array(self.points[index], dtype=np.float32)),
            "label": torch.from_numpy(self.labels[index]),
            "index": torch.from_numpy(index),
            "corruption": self.corruption,
            "severity": self.severity,
        }
        if self.names is not None:
            batch["name"] = [self.names[k] for k in indices]
        return batch


def make_corrupted(
    shapes: ShapeSet,
    corruption: str,
    severity: int,
    num_points: int,
    seed: int,
    cache_dir: str | None,
) -> TestClouds:
    """Corrupts a split as ModelNet40-C or PointCloud-C does, unless the cache has it already.

    Args:
        shapes: The clean split, with meshes for "occlusion" and "lidar".
        corruption: Name.
        severity: 1 to 5.
        num_points: Points of a shape before it is corrupted.
        seed: Of the random numbers; a shape's depend on its place in the split.
        cache_dir: See `load_split`.

    Raises:
        ValueError: As from `datamodules.corruptions.corrupt`, with the shape's name.
    """
    meshes = [] if shapes.meshes is None else [[str(p), p.stat().st_size] for p in shapes.meshes]
    key = [_FORMAT, shapes.data_hash, shapes.up, meshes, corruption, severity, num_points, seed]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def make() -> Points:
        clouds = CorruptedClouds(
            shapes.points,
            shapes.labels,
            corruption,
            severity,
            seed=seed,
            num_points=num_points,
            meshes=shapes.meshes,
            up=shapes.up,
        )
        show = track(
            range(len(clouds)),
            description=f"making {corruption} {severity}",
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        return np.stack([clouds.cloud(index) for index in show])

    points = cached_array(cache_dir, f"{corruption}-{severity}-{digest[:16]}", make)
    return TestClouds(points, shapes.labels, corruption, severity)


class CorruptedFiles:
    """The corrupted test sets in a folder, as downloaded or as `tenfold corrupt` writes them.

    Two layouts: ModelNet40-C's `data_<corruption>_<severity>.npy` with `label.npy`, and
    PointCloud-C's `<corruption>_<level>.h5`, of which level 0 is severity 1.

    Args:
        folder: The folder.
        num_classes: Classes of the clean data, that labels are compared with.

    Raises:
        ValueError: Neither layout is there.
    """

    def __init__(self, folder: str | Path, num_classes: int) -> None:
        self.folder, self.num_classes = Path(folder).expanduser(), num_classes
        if not self.sets:
            raise ValueError(
                f"no corrupted sets in '{folder}' (expected ModelNet40-C's "
                "data_<corruption>_<severity>.npy or PointCloud-C's <corruption>_<level>.h5)"
            )

    @cached_property
    def sets(self) -> dict[tuple[str, int], Path]:
        """The file of each (corruption, severity)."""
        found = {}
        for path in sorted(self.folder.glob("*_*")):
            if match := re.fullmatch(r"data_(\w+)_([1-5])\.npy", path.name):
                found[match[1], int(match[2])] = path
            elif match := re.fullmatch(r"(\w+)_([0-4])\.h5", path.name):
                found[match[1], int(match[2]) + 1] = path
        known = {*MODELNET40_C_NAMES, *POINTCLOUD_C}
        return {key: path for key, path in found.items() if key[0] in known}

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions that are there, in the benchmarks' order."""
        there = {name for name, _ in self.sets}
        return tuple(name for name in (*MODELNET40_C_NAMES, *POINTCLOUD_C) if name in there)

    def clean(self) -> TestClouds | None:
        """Returns PointCloud-C's own clean set, if it is there."""
        path = self.folder / "clean.h5"
        if not path.exists():
            return None
        points, labels = read_h5(path)
        return self._checked(points, labels, CLEAN, 0, path)

    def load(self, corruption: str, severity: int) -> TestClouds:
        """Reads a set.

        Raises:
            ValueError: It is missing or broken.
        """
        path = self.sets.get((corruption, severity))
        if path is None:
            raise ValueError(
                f"'{self.folder}' lacks {corruption} {severity} (it has "
                f"{', '.join(self.corruptions)}; leave it out, or make it with tenfold corrupt)"
            )
        if path.suffix == ".h5":
            points, labels = read_h5(path)
        else:
            points = _load_npy(path)
            labels = _load_npy(self.folder / "label.npy").reshape(-1).astype(np.int64)
        return self._checked(points, labels, corruption, severity, path)

    def _checked(
        self, points: NDArray[Any], labels: Integers, corruption: str, severity: int, path: Path
    ) -> TestClouds:
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"{path}: points must have the shape (n, M, 3), found {points.shape}")
        if len(points) != len(labels):
            raise ValueError(f"{path}: {len(points)} clouds, but {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(
                f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to "
                f"{self.num_classes - 1} as in the clean data"
            )
        bad = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
        if len(bad):
            # Leaving shapes out would change what the benchmark's error rate is a rate of.
            raise ValueError(f"{path}: points of shape {bad[0]} are not finite ({len(bad)} shapes)")
        return TestClouds(points, labels, corruption, severity)


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
