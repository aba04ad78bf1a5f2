"""Training clouds: which points are drawn, how they are augmented and mixed.

Shapes: B shapes in a batch, P stored points, N drawn points, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.utils.data import Dataset

from ..loading import SeededItems
from .mixing import Mixing, draw_share, mix
from .shapes import Points, ShapeSet, unit_box, unit_sphere

Normalize = Literal["none", "unit_sphere", "box"]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What training changes in a cloud, in this order.

    Args:
        random_points: Whether the N points are drawn anew each time, or always the first N.
        normalize: See `normalized`.
        rotate: Random rotation: about the vertical axis, any ("so3"), or none.
        scale: Range of a random factor per axis, or None.
        shift: Largest random shift per axis.
        jitter: Standard deviation of noise on each coordinate, cut off at 5 of them.
        dropout: Largest share of the points that one point of the cloud replaces.
        shuffle: Whether the points come in a random order.
        mixing: How clouds are mixed with others of the training split.
    """

    random_points: bool = False
    normalize: Normalize = "none"
    rotate: Literal["none", "vertical", "so3"] = "none"
    scale: tuple[float, float] | None = (2 / 3, 3 / 2)
    shift: float = 0.2
    jitter: float = 0.0
    dropout: float = 0.0
    shuffle: bool = True
    mixing: Mixing = "none"

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two numbers 0 < low <= high, got {self.scale}")
        for name in ("shift", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def normalized(points: Points, how: Normalize) -> Points:
    """Returns clouds (..., P, 3) as they are, in the unit sphere, or in the box [-1, 1]^3."""
    if how == "none":
        return points
    return (unit_sphere if how == "unit_sphere" else unit_box)(points).astype(np.float32)


class TrainingClouds(SeededItems):
    """Augmented clouds, read a batch at a time; item (epoch, index) depends on that and the seed.

    A batch is a dict: pos (B, N, 3) float32, label (B,) int64, index (B,) int64; with mixing also
    label_weights (B, K) float32, rows that sum to 1. The cross entropy with these is the weighted
    sum of those with the two labels; `label` is the one of the first cloud, of which the order of
    the points and `index` are.

    Args:
        shapes: The training split.
        num_points: N, at most P.
        augmentation: What is changed.
        seed: Of the random numbers.
    """

    def __init__(
        self, shapes: ShapeSet, num_points: int, augmentation: Augmentation, seed: int
    ) -> None:
        super().__init__(cast(Dataset[Any], shapes), seed)  # of which it uses the length
        self.shapes, self.num_points, self.augmentation = shapes, num_points, augmentation

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Returns one item, as `__getitems__` without the batch axis."""
        return {name: batched[0] for name, batched in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """Returns the items of pairs (epoch, index) as one batch."""
        rngs = [Generator(Philox(SeedSequence(self.seed, spawn_key=key))) for key in keys]
        index = np.array([index for _, index in keys], dtype=np.int64)
        pos = self._augmented(index, rngs)
        labels = self.shapes.labels[index]
        batch = {"label": torch.from_numpy(labels), "index": torch.from_numpy(index)}
        mixing = self.augmentation.mixing
        if mixing != "none":
            num_shapes = len(self.shapes)
            partner = np.array([rng.integers(num_shapes) for rng in rngs], dtype=np.int64)
            share = np.array([draw_share(mixing, self.num_points, rng) for rng in rngs])
            other = self._augmented(partner, rngs)
            for k, rng in enumerate(rngs):
                pos[k] = mix(mixing, pos[k], other[k], share[k], rng)
            weights = np.zeros((len(index), len(self.shapes.class_names)), dtype=np.float32)
            rows = np.arange(len(index))
            np.add.at(weights, (rows, labels), 1 - share)
            np.add.at(weights, (rows, self.shapes.labels[partner]), share)
            batch["label_weights"] = torch.from_numpy(weights)
        return {"pos": torch.from_numpy(pos), **batch}

    def _augmented(self, index: NDArray[np.int64], rngs: Sequence[Generator]) -> Points:
        """Returns one augmented cloud per index and generator, (B, N, 3)."""
        how, num_points = self.augmentation, self.num_points
        if how.random_points:
            stored = self.shapes.points.shape[1]
            chosen = np.stack([rng.permutation(stored)[:num_points] for rng in rngs])
        elif how.shuffle:
            chosen = np.stack([rng.permutation(num_points) for rng in rngs])
        else:
            chosen = np.broadcast_to(np.arange(num_points), (len(rngs), num_points))
        pos: Points = normalized(self.shapes.points[index[:, None], chosen], how.normalize)
        if how.rotate != "none":
            pos = pos @ np.stack([self._rotation(rng) for rng in rngs])
        if how.scale is not None:
            pos = pos * _stack([rng.uniform(*how.scale, size=(1, 3)) for rng in rngs])
        if how.shift:
            pos = pos + _stack([rng.uniform(-how.shift, how.shift, size=(1, 3)) for rng in rngs])
        if how.jitter:
            noise = _stack([rng.standard_normal((num_points, 3), np.float32) for rng in rngs])
            pos = pos + (how.jitter * noise.clip(-5, 5)).astype(np.float32)
        if how.dropout:
            for cloud, rng in zip(pos, rngs, strict=True):
                cloud[rng.random(num_points) < rng.uniform(0, how.dropout)] = cloud[0]
        return pos

    def _rotation(self, rng: Generator) -> NDArray[np.float32]:
        if self.augmentation.rotate == "so3":
            rotation = Rotation.from_quat(rng.standard_normal(4))
        else:
            rotation = Rotation.from_euler(self.shapes.up, rng.uniform(0, 2 * np.pi))
        return rotation.as_matrix().astype(np.float32)


def _stack(draws: Sequence[NDArray[np.floating[Any]]]) -> Points:
    return np.stack(draws).astype(np.float32)
