"""The embedded data: CAD models of furniture and things around it, as quantised point clouds.

Made by `convert_furniture.py` from Debian's package sweethome3d-furniture; authors and licences
are in `FURNITURE_LICENSES.txt`. Each shape has 2,048 points of its surface, in the unit sphere, y
up, front towards +z.

The file exploits that a point set has no order: quantised points are sorted by Morton code
(interleaved bits), of which differences are small, and those are stored as planes of bytes, which
compress well. Decoding gives each shape a random order that depends on its place alone, because
"the first 1,024 points" must not be one half of the shape.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .shapes import Points, ShapeSet, random_order

FILE = Path(__file__).with_name("furniture.npz")
LICENSES = Path(__file__).with_name("FURNITURE_LICENSES.txt")
_ORDER_SEED = 2048


def load_furniture(split: Literal["train", "test", "all"]) -> ShapeSet:
    """Returns a split of the embedded furniture set.

    Args:
        split: The stored split "train" or "test" (about 70 and 30 % of each class; versions of one
            model share a split), or "all".
    """
    shapes, is_test = _decoded()
    if split == "all":
        return shapes
    return shapes.subset(is_test if split == "test" else ~is_test)


def furniture_sha256() -> str:
    """Returns the SHA-256 of the data file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def _decoded() -> tuple[ShapeSet, NDArray[np.bool_]]:
    with np.load(FILE) as file:
        stored = {name: file[name] for name in file.files}
    points = decode_clouds(stored["planes"], int(stored["num_points"]), int(stored["num_bits"]))
    for index, cloud in enumerate(points):
        points[index] = cloud[random_order(len(cloud), _ORDER_SEED, index)]
    shapes = ShapeSet(
        points=points,
        labels=stored["labels"].astype(np.int64),
        class_names=tuple(stored["class_names"].tolist()),
        names=tuple(stored["names"].tolist()),
        groups=stored["groups"].astype(np.int64),
    )
    for array in (shapes.points, shapes.labels, shapes.groups):
        assert array is not None
        array.flags.writeable = False  # one copy serves all readers of a process
    return shapes, stored["is_test"]


def encode_clouds(points: Points, num_bits: int) -> NDArray[np.uint8]:
    """Quantises clouds and codes them as sets; the inverse of `decode_clouds` but for the order.

    Args:
        points: (n, P, 3) in [-1, 1].
        num_bits: Bits per coordinate, 1 to 21.

    Returns:
        (ceil(3 num_bits / 8), n * P) planes of bytes, the highest first.
    """
    levels = 2**num_bits - 1
    grid = np.rint((points.astype(np.float64) + 1) / 2 * levels).clip(0, levels).astype(np.uint64)
    codes = np.zeros(points.shape[:2], dtype=np.uint64)
    for bit in range(num_bits):
        for axis in range(3):
            codes |= ((grid[..., axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(
                3 * bit + axis
            )
    steps = np.diff(np.sort(codes, axis=1), axis=1, prepend=np.uint64(0)).astype(">u8")
    in_bytes = np.ascontiguousarray(steps).view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(in_bytes[:, 8 - -(-3 * num_bits // 8) :].T)


def decode_clouds(planes: NDArray[np.uint8], num_points: int, num_bits: int) -> Points:
    """Returns clouds (n, P, 3) float32 in [-1, 1], sorted by Morton code.

    Args:
        planes: From `encode_clouds`.
        num_points: P.
        num_bits: Bits per coordinate.
    """
    in_bytes = np.zeros((planes.shape[1], 8), dtype=np.uint8)
    in_bytes[:, 8 - len(planes) :] = planes.T
    steps = in_bytes.view(">u8").astype(np.uint64).reshape(-1, num_points)
    codes = np.cumsum(steps, axis=1, dtype=np.uint64)
    grid = np.zeros((*codes.shape, 3), dtype=np.uint32)
    for bit in range(num_bits):
        for axis in range(3):
            ones = (codes >> np.uint64(3 * bit + axis)) & np.uint64(1)
            grid[..., axis] |= ones.astype(np.uint32) << np.uint32(bit)
    points: Points = (grid / (2**num_bits - 1) * 2 - 1).astype(np.float32)
    return points
