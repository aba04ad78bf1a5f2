"""Corruptions that move all points together: rotation, shear, free-form and RBF deformation.

Sums go through `einsum` and not through a matrix product: the rounding of BLAS depends on its
threads, on which clouds must not, and where it starts threads for so little it is slow.

Shapes: N points, Q = 125 control points; the last axis is x, y, z. Points are row vectors.
"""

import functools

import numpy as np
from numpy.random import Generator
from scipy.linalg import lu_factor, lu_solve
from scipy.spatial.distance import cdist

from .rules import Array, normalize_box

CONTROL_POINTS = np.stack(
    np.meshgrid(*[np.linspace(-1, 1, 5)] * 3, indexing="ij"), axis=-1
).reshape(-1, 3)


def rotation(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Turns about x, then y, then z, by up to 15 degrees each."""
    return normalize_box(_weighted_sums(points_N3, rotation_matrix(severity, rng)))


def rotation_matrix(severity: int, rng: Generator) -> Array:
    """Draws Rx Ry Rz of `rotation`, (3, 3), for row vectors."""
    middle = (2.5, 5, 7.5, 10, 15)[severity - 1]
    angles = np.deg2rad(rng.uniform(middle - 2.5, middle + 2.5, 3) * rng.choice((-1, 1), 3))
    return axis_rotation(0, angles[0]) @ axis_rotation(1, angles[1]) @ axis_rotation(2, angles[2])


def axis_rotation(axis: int, angle: float) -> Array:
    """The rotation about one axis, (3, 3), by an angle in radians, for column vectors."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i] = np.sin(angle)
    matrix[i, j] = -matrix[j, i]
    return matrix


def rotate(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Turns by Rz Ry Rx with angles of up to 6 `severity` degrees (PointCloud-C); no scaling."""
    bound = severity * np.pi / 30
    x, y, z = (axis_rotation(axis, rng.uniform(-bound, bound)) for axis in range(3))
    return _weighted_sums(points_N3, z @ y @ x)


def shear(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Adds multiples of other coordinates to x and z; y stays."""
    return normalize_box(_weighted_sums(points_N3, shear_matrix(severity, rng)))


def shear_matrix(severity: int, rng: Generator) -> Array:
    """Draws the matrix of `shear`, (3, 3), for row vectors."""
    middle = (0.05, 0.1, 0.15, 0.2, 0.25)[severity - 1]
    b, d, e, f = rng.uniform(middle - 0.05, middle + 0.05, 4) * rng.choice((-1, 1), 4)
    return np.array([[1, 0, b], [d, 1, e], [f, 0, 1]])


def distortion(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Free-form deformation by 5 x 5 x 5 control points, each moved by up to 0.2 `severity`."""
    bound = 0.1 * severity
    weights = rng.uniform(-bound, bound, (5, 5, 5, 3))
    return normalize_box(deform_free_form(points_N3, weights))


def deform_free_form(points_N3: Array, weights_5553: Array) -> Array:
    """Moves points inside [-1, 1]^3 by Bezier polynomials of degree 4 (Sederberg and Parry 1986).

    Args:
        points_N3: Points, (N, 3); those outside the box stay.
        weights_5553: Displacements of the control points, (5, 5, 5, 3), in units of the edge 2.

    Returns:
        The points, (N, 3).
    """
    inside = (np.abs(points_N3) <= 1).all(axis=1)
    u = (points_N3[inside] + 1) / 2
    degree = np.arange(5)
    binomial = np.array([1, 4, 6, 4, 1])
    basis_n35 = binomial * u[:, :, None] ** degree * (1 - u[:, :, None]) ** (4 - degree)
    x, y, z = basis_n35.transpose(1, 0, 2)
    basis = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
    moved = points_N3.copy()
    moved[inside] += 2 * _weighted_sums(basis.reshape(-1, 125), weights_5553.reshape(-1, 3))
    return moved


def distortion_rbf(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """Moves 5 x 5 x 5 control points; multi-quadric radial basis functions move the rest."""
    return normalize_box(deform_rbf(points_N3, _displacements(severity, rng), inverse=False))


def distortion_rbf_inv(points_N3: Array, severity: int, rng: Generator, num_points: int) -> Array:
    """As `distortion_rbf`, with inverse multi-quadric functions."""
    return normalize_box(deform_rbf(points_N3, _displacements(severity, rng), inverse=True))


def deform_rbf(points_N3: Array, displacements_Q3: Array, inverse: bool) -> Array:
    """Moves points so that the control points move as given (de Boer et al. 2007).

    The interpolant of the moved control points is the identity plus that of their displacements,
    since its affine part reproduces the identity; so that no displacement moves nothing.

    Args:
        points_N3: Points, (N, 3).
        displacements_Q3: How far each of `CONTROL_POINTS` moves, (125, 3).
        inverse: Whether the kernel is 1 / sqrt(r^2 + 0.25) instead of sqrt(r^2 + 0.25).

    Returns:
        The points, (N, 3).
    """
    weights = _weighted_sums(_solution(inverse), displacements_Q3)
    basis = np.hstack([_kernel(points_N3, inverse), np.ones((len(points_N3), 1)), points_N3])
    return points_N3 + _weighted_sums(basis, weights)


def _displacements(severity: int, rng: Generator) -> Array:
    """Draws moves of the control points: of one length, in directions denser near the poles."""
    length = 0.025 * severity
    alpha, gamma = rng.uniform(-np.pi, np.pi, (2, len(CONTROL_POINTS)))
    sine = np.sin(gamma)
    return length * np.stack([np.cos(alpha) * sine, np.sin(alpha) * sine, np.cos(gamma)], axis=1)


def _kernel(points_N3: Array, inverse: bool) -> Array:
    root = np.sqrt(cdist(points_N3, CONTROL_POINTS, "sqeuclidean") + 0.25)
    return 1 / root if inverse else root


@functools.cache
def _solution(inverse: bool) -> Array:
    """What turns displacements into weights, (129, 125): it depends on the kernel alone."""
    ones = np.ones((len(CONTROL_POINTS), 1))
    affine = np.hstack([ones, CONTROL_POINTS])
    system = np.block([[_kernel(CONTROL_POINTS, inverse), affine], [affine.T, np.zeros((4, 4))]])
    return lu_solve(lu_factor(system), np.eye(len(system)))[:, : len(CONTROL_POINTS)]


def _weighted_sums(basis_NQ: Array, weights_Q3: Array) -> Array:
    """The product of two matrices without BLAS; several times faster with the long axis last."""
    sums: Array = np.einsum("nq,aq->na", basis_NQ, np.ascontiguousarray(weights_Q3.T))
    return sums
