"""Density, noise and PointCloud-C corruptions: what is drawn, moved, repeated or removed.

Every rule is a function of (cloud, severity 1..5, generator, num_points N) in float64. Counts that
the benchmark writes as N // k follow N; its fixed numbers, chosen for 1,024 points, are scaled by
`scaled`, so that at N = 1,024 the rules are the benchmark's. PointCloud-C counts its levels 0..4
where this package says 1..5.

Shapes: P points given, N points asked for, M points returned, k indices; the last axis is x, y, z.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]

REFERENCE_POINTS = 1024


def scaled(count: int, num_points: int) -> int:
    """A number of points that a benchmark fixes for 1,024, for another size; 1 or more."""
    return max(1, round(count * num_points / REFERENCE_POINTS))


def normalize_box(points_M3: Array) -> Array:
    """Centres the bounding box on the origin and scales its longest edge to 2.

    Raises:
        ValueError: All points coincide.
    """
    low, high = points_M3.min(axis=0), points_M3.max(axis=0)
    edge = (high - low).max()
    if edge == 0:
        raise ValueError("all points coincide, so that their bounding box cannot be scaled")
    normalized: Array = (points_M3 - (low + high) / 2) * (2 / edge)
    return normalized


def normalize_sphere(points_M3: Array) -> Array:
    """Centres the mean on the origin and scales the farthest point to distance 1.

    Raises:
        ValueError: All points coincide.
    """
    centred = points_M3 - points_M3.mean(axis=0)
    radius = np.linalg.norm(centred, axis=1).max()
    if radius == 0:
        raise ValueError("all points coincide, so that they cannot be scaled to the unit sphere")
    normalized: Array = centred / radius
    return normalized


def nearest(points_P3: Array, center: int, k: int) -> NDArray[np.int64]:
    """The indices of the k points nearest to one of them, nearest first, ties to the lower index.

    Sorted and not partitioned, because a partition breaks ties as the processor likes.
    """
    distances = ((points_P3 - points_P3[center]) ** 2).sum(axis=1)
    order: NDArray[np.int64] = np.argsort(distances, kind="stable")
    return order[:k]


# --- ModelNet40-C, density --------------------------------------------------------------------


def density_increase(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Keeps `severity` dense balls of the pool whole, and fills up from what is left of it."""
    pool, kept, ball = points_P3, [], scaled(100, num_points)
    for _ in range(severity):
        chosen = nearest(pool, int(rng.integers(len(pool))), ball)
        kept.append(pool[chosen])
        pool = np.delete(pool, chosen, axis=0)
    rest = rng.integers(len(pool), size=num_points - severity * ball)
    return np.concatenate([*kept, pool[rest]])


def density_decrease(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Thins `severity` balls of 100 points to a quarter."""
    ball, removed = scaled(100, num_points), scaled(75, num_points)
    for _ in range(severity):
        chosen = nearest(points_P3, int(rng.integers(len(points_P3))), ball)
        points_P3 = np.delete(points_P3, rng.choice(chosen, removed, replace=False), axis=0)
    return points_P3


def cutout(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Removes balls of 30 points."""
    for _ in range((2, 3, 5, 7, 10)[severity - 1]):
        chosen = nearest(points_P3, int(rng.integers(len(points_P3))), scaled(30, num_points))
        points_P3 = np.delete(points_P3, chosen, axis=0)
    return points_P3


# --- ModelNet40-C, noise ----------------------------------------------------------------------


def uniform(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Moves every coordinate by up to 0.01 `severity`."""
    bound = 0.01 * severity
    return normalize_box(points_P3 + rng.uniform(-bound, bound, points_P3.shape))


def gaussian(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Moves every coordinate by a normal number, and clips to [-1, 1]."""
    sigma = (0.01, 0.015, 0.02, 0.025, 0.03)[severity - 1]
    return np.clip(points_P3 + sigma * rng.standard_normal(points_P3.shape), -1, 1)


def impulse(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Moves some points by 0.1 in each coordinate, up or down."""
    return normalize_box(move_by_impulses(points_P3, severity, rng, num_points))


def move_by_impulses(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """The impulses of `impulse`, before the box is normalised."""
    count = num_points // (30, 25, 20, 15, 10)[severity - 1]
    moved = points_P3.copy()
    chosen = rng.choice(len(moved), count, replace=False)
    moved[chosen] += 0.1 * rng.choice((-1.0, 1.0), (count, 3))
    return moved


def upsampling(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Appends copies of some points, moved by up to 0.05."""
    count = num_points // (5, 4, 3, 2, 1)[severity - 1]
    chosen = rng.choice(len(points_P3), count, replace=False)
    copies = points_P3[chosen] + rng.uniform(-0.05, 0.05, (count, 3))
    return normalize_box(np.concatenate([points_P3, copies]))


def background(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Appends points anywhere in the box [-1, 1]^3."""
    count = num_points // (45, 40, 35, 30, 20)[severity - 1]
    return normalize_box(np.concatenate([points_P3, rng.uniform(-1, 1, (count, 3))]))


# --- PointCloud-C -----------------------------------------------------------------------------


def scale(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Stretches each axis by its own factor, and normalises to the unit sphere."""
    largest = (1.6, 1.7, 1.8, 1.9, 2.0)[severity - 1]
    return normalize_sphere(points_P3 * rng.uniform(1 / largest, largest, 3))


def jitter(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Moves every coordinate by a normal number of deviation 0.01 `severity`; no clipping."""
    moved: Array = points_P3 + 0.01 * severity * rng.standard_normal(points_P3.shape)
    return moved


def dropout_global(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Keeps a random 75, 62.5, 50, 37.5 or 25 % of the points."""
    kept = int(num_points * (0.75, 0.625, 0.5, 0.375, 0.25)[severity - 1])
    return points_P3[rng.choice(len(points_P3), kept, replace=False)]


def dropout_local(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Removes 100 `severity` points in one to seven balls."""
    for size in _cluster_sizes(severity, rng, num_points):
        chosen = nearest(points_P3, int(rng.integers(len(points_P3))), size)
        points_P3 = np.delete(points_P3, chosen, axis=0)
    return points_P3


def add_global(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Appends 10 `severity` points anywhere in the unit ball."""
    count = scaled(10 * severity, num_points)
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return np.concatenate([points_P3, direction * rng.uniform(size=(count, 1)) ** (1 / 3)])


def add_local(points_P3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Appends 100 `severity` points in normal clouds around one to seven points."""
    sizes = _cluster_sizes(severity, rng, num_points)
    centers = points_P3[rng.choice(len(points_P3), len(sizes), replace=False)]
    sigmas = rng.uniform(0.075, 0.125, len(sizes))
    spread = np.repeat(sigmas, sizes)[:, None] * rng.standard_normal((sizes.sum(), 3))
    added = np.repeat(centers, sizes, axis=0) + spread
    # The benchmark divides by the squared norm: what lies outside is mirrored into the unit ball.
    added /= np.maximum((added**2).sum(axis=1, keepdims=True), 1)
    return np.concatenate([points_P3, added])


def _cluster_sizes(severity: int, rng: Generator, num_points: int) -> NDArray[np.int64]:
    num_clusters = int(rng.integers(1, 8))
    total = scaled(100 * severity, num_points)
    return rng.multinomial(total, np.full(num_clusters, 1 / num_clusters))
