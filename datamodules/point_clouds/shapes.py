"""A split of labelled shapes in memory, and how one is divided without a running generator.

Shapes: n shapes, P points each.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corruptions import UpAxis

Points = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ShapeSet:
    """Labelled point clouds of one split, in the order in which they are stored.

    Args:
        points: (n, P, 3) float32, finite. Points of a shape are in no particular order, so that
            the first N of them are a fair sample.
        labels: (n,) int64, numbers of `class_names`.
        class_names: Names of the classes.
        names: Name of each shape, unique where the source tells shapes apart.
        meshes: Mesh file of each shape, in the frame of its points up to position and scale; None
            where the source has points only.
        groups: (n,) int64; shapes of one number are versions of one model and belong to one split.
            None: each shape is a group of its own.
        up: The vertical axis.
        skipped: What was left out, one line each.
    """

    points: Points
    labels: Integers
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    meshes: tuple[Path, ...] | None = None
    groups: Integers | None = None
    up: UpAxis = "y"
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of points, labels and class names."""
        digest = hashlib.sha256(repr((self.points.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.points).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def subset(self, indices: NDArray[Any]) -> "ShapeSet":
        """Returns the shapes of an index or boolean array (n,)."""
        kept = np.arange(len(self))[indices]
        return replace(
            self,
            points=self.points[kept],
            labels=self.labels[kept],
            names=tuple(self.names[k] for k in kept),
            meshes=None if self.meshes is None else tuple(self.meshes[k] for k in kept),
            groups=None if self.groups is None else self.groups[kept],
        )


def checked_shapes(shapes: ShapeSet, source: str, strict: bool) -> ShapeSet:
    """Checks a split that was read; leaves out clouds that are not finite.

    Args:
        shapes: What a reader found. `points` may be of any floating type.
        source: What the messages call it.
        strict: Whether a cloud that is not finite is an error.

    Returns:
        The split with float32 points, and a line in `skipped` for each cloud left out.

    Raises:
        ValueError: Wrong rank or width, lengths that differ, labels outside the classes, no shape
            at all, or with `strict` a cloud that is not finite.
    """
    points, labels = shapes.points, shapes.labels
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(f"{source}: points must have the shape (n, P, 3), found {points.shape}")
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"{source}: {len(points)} clouds, but labels of the shape {labels.shape} (expected "
            f"({len(points)},))"
        )
    outside = (labels < 0) | (labels >= len(shapes.class_names))
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(
            f"{source}: the label of {shapes.names[first]} is {labels[first]}, expected 0 to "
            f"{len(shapes.class_names) - 1} ({len(shapes.class_names)} classes)"
        )
    finite = np.asarray(np.isfinite(points).all(axis=(1, 2)))
    bad = [f"{source}: {shapes.names[k]}: points are not finite" for k in np.flatnonzero(~finite)]
    if strict and bad:
        raise ValueError(bad[0])
    if not finite.any():
        raise ValueError(f"{source}: no usable shape" + (f" ({bad[0]})" if bad else ""))
    kept = shapes.subset(finite) if bad else shapes
    return replace(
        kept,
        points=np.ascontiguousarray(kept.points, dtype=np.float32),
        labels=kept.labels.astype(np.int64),
        skipped=(*shapes.skipped, *bad),
    )


def unit_sphere(points: NDArray[Any]) -> NDArray[np.float64]:
    """Moves the mean of clouds (..., P, 3) to the origin and the farthest point to distance 1."""
    centered = points - points.mean(axis=-2, keepdims=True, dtype=np.float64)
    radius = np.linalg.norm(centered, axis=-1).max(axis=-1)[..., None, None]
    scaled: NDArray[np.float64] = centered / np.maximum(radius, 1e-12)
    return scaled


def unit_box(points: NDArray[Any]) -> NDArray[np.float64]:
    """Moves the bounding boxes of clouds (..., P, 3) to the origin, their longest edge to 2."""
    low = points.min(axis=-2, keepdims=True).astype(np.float64)
    high = points.max(axis=-2, keepdims=True).astype(np.float64)
    edge = (high - low).max(axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = (points - (low + high) / 2) * (2 / np.maximum(edge, 1e-12))
    return scaled


def random_order(num: int, seed: int, *key: int) -> Integers:
    """Returns a permutation (num,) that depends on its arguments alone, whatever numpy's version.

    numpy promises to keep the raw words of a bit generator, not what it derives from them.
    """
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(num)
    return np.argsort(words, kind="stable").astype(np.int64)


def stratified_split(
    labels: Integers, groups: Integers | None, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Chooses a share of each class for a second split, whole groups only.

    Each class gives round(fraction * its number) shapes, at least one, or fewer where its groups
    are too large for that. A class of one group gives none.

    Args:
        labels: (n,) classes.
        groups: (n,) groups; None makes each shape one.
        fraction: Share, in [0, 1).
        seed: Of the random order in which groups are taken.

    Returns:
        (n,) bool, True in the second split.
    """
    chosen = np.zeros(len(labels), dtype=np.bool_)
    groups = np.arange(len(labels)) if groups is None else groups
    for label in np.unique(labels) if fraction else ():
        ids, sizes = np.unique(groups[labels == label], return_counts=True)
        order = random_order(len(ids), seed, int(label))
        target = max(1, round(fraction * int(sizes.sum())))
        taken: list[int] = []
        for k in order.tolist() if len(ids) > 1 else []:
            if sizes[taken].sum() + sizes[k] <= target:
                taken.append(k)
        if not taken and len(ids) > 1:
            taken = [int(sizes.argmin())]
        chosen |= (labels == label) & np.isin(groups, ids[taken])
    return chosen
