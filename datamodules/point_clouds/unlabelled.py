"""Clouds without labels, to predict: files of points or meshes, one by one.

Shapes: P points, a number of its own for each file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .meshes import MESH_SUFFIXES, sample_mesh
from .shapes import Points, unit_box, unit_sphere

TEXT_SUFFIXES = (".xyz", ".txt", ".pts")
SUFFIXES = (".npy", *TEXT_SUFFIXES, *MESH_SUFFIXES)


class UnlabelledClouds(Dataset[dict[str, Any]]):
    """The clouds of a folder or file, brought to the scale of training.

    An item is a dict: pos (P, 3) float32; index () int64; name, the path below the folder. Sizes
    differ, so they are read one by one.

    Args:
        root: Folder (with all below) or file: `.npy` (P, 3), text with x y z first in each line,
            or a mesh, of whose surface points are sampled; a .ply of points only is used as it is.
        num_points: Points to sample from a mesh.
        box: Whether clouds are brought into the box [-1, 1]^3, not the unit sphere.

    Raises:
        ValueError: No such file; from reading an item, that it cannot be read.
    """

    def __init__(self, root: str | Path, num_points: int, box: bool = False) -> None:
        self.root, self.num_points, self.box = Path(root).expanduser(), num_points, box
        found = self.root.rglob("*") if self.root.is_dir() else [self.root]
        self.files = sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.files:
            raise ValueError(f"no cloud at '{root}' (expected {', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[index]
        points = read_cloud(path, self.num_points)
        scaled = unit_box(points) if self.box else unit_sphere(points)
        name = path.name if path == self.root else str(path.relative_to(self.root))
        return {
            "pos": torch.from_numpy(scaled.astype(np.float32)),
            "index": torch.tensor(index),
            "name": name,
        }


def collate_single(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch of one cloud: tensors get a batch axis, the name becomes a list."""
    (sample,) = samples
    return {k: [v] if isinstance(v, str) else v[None] for k, v in sample.items()}


def read_cloud(path: Path, num_points: int) -> Points:
    """Reads one cloud, (P, 3) float32.

    Args:
        path: Of one of `SUFFIXES`.
        num_points: Points to sample from a mesh.

    Raises:
        ValueError: It cannot be read, is empty, or has values that are not finite.
    """
    suffix = path.suffix.lower()
    if suffix in MESH_SUFFIXES:
        return sample_mesh(path, num_points, seed=0)
    try:
        if suffix == ".npy":
            points = np.load(path, allow_pickle=False)
        else:
            points = np.loadtxt(path, delimiter="," if "," in _first_line(path) else None, ndmin=2)
            points = points[:, :3]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path} as points: {error}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"{path}: points must have the shape (P, 3), found {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: points are not finite")
    cloud: Points = points.astype(np.float32)
    return cloud


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline()
