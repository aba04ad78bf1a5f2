"""Vectors as the pipeline keeps them, and sums of products that are exact.

Embeddings and centroids are stored in float16, with norms of about 1. A product of two float16
numbers is a multiple of 2^-48, and all sums of products of such vectors stay below 2^5: float64
holds each of them exactly. So a score has the same bits in whatever order, batch or library it is
summed, and what is decided by scores is the same on one process, on many, and on another machine.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...modules.files import atomic_write

Vectors = NDArray[np.float16]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_NORM = 2.0
# Candidates beyond those wanted, so that their rounding seldom matters.
SPARE = 4
ROWS_AT_A_TIME = 2048


def to_unit(embeddings: Any) -> Vectors:
    """Divides rows by their norms and rounds them to what is stored.

    Args:
        embeddings: (N, D), a tensor or array of floats.

    Returns:
        (N, D) float16; rows of zeros stay.

    Raises:
        ValueError: A number is not finite.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("an embedding is not finite: check the encoder's weights")
    # Row by row, so that no other row has a part in the rounding.
    norms = np.array([np.sqrt(np.square(row).sum()) for row in rows]).reshape(-1, 1)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float16)


def exact_dots(left_ND: Vectors, right_MD: Vectors | NDArray[np.float32]) -> Floats:
    """All scores of two sets of stored vectors, to the last bit (see the top of this file).

    Args:
        left_ND: (N, D) float16 of norm at most about 1, as is `right_MD`.
        right_MD: (M, D) float16.

    Returns:
        (N, M) float64.
    """
    return np.asarray(left_ND.astype(np.float64) @ right_MD.astype(np.float64).T)


def top_scores(scores_NM: Floats, number: int) -> Ints:
    """Places of the largest scores of each row, the largest first; of equal ones the first.

    Returns:
        (N, min(number, M)) int64.
    """
    order: Ints = np.argsort(-scores_NM, axis=1, kind="stable")
    return order[:, :number]


def exact_top(
    left_ND: Vectors, right_MD: Vectors | NDArray[np.float32], number: int
) -> tuple[Ints, Floats]:
    """The largest scores of each vector, as `top_scores` of `exact_dots` and several times faster.

    Products are scanned in float32, a few more candidates than are wanted are scored exactly, and
    where the error that float32 may have made reaches so far, all of them are.

    Args:
        left_ND: (N, D), as in `exact_dots`.
        right_MD: (M, D); given as float32, the same numbers need no conversion.
        number: Of each row.

    Returns:
        (N, min(number, M)) places, the largest score first and of equal ones the first place; their
        scores.
    """
    width, total = left_ND.shape[1], len(right_MD)
    spare = number + SPARE
    if total <= 4 * spare:
        scores = exact_dots(left_ND, right_MD)
        places = top_scores(scores, number)
        return places, np.take_along_axis(scores, places, 1)
    rough = left_ND.astype(np.float32) @ right_MD.astype(np.float32, copy=False).T
    found = np.sort(np.argpartition(rough, -spare, axis=1)[:, -spare:], axis=1)
    chosen = right_MD[found].astype(np.float64)
    scores = np.einsum("nd,nkd->nk", left_ND.astype(np.float64), chosen)
    order = top_scores(scores, number)  # places are sorted: of equal scores the first
    places = np.take_along_axis(found, order, 1)
    best = np.take_along_axis(scores, order, 1)
    # |sum in float32 - sum| <= D 2^-24 sum |x y|, and that sum is at most MAX_NORM.
    error = MAX_NORM * width * 2.0**-24
    least = np.take_along_axis(rough, found, 1).min(1).astype(np.float64)
    unsure = np.flatnonzero(least + error >= best[:, -1])
    if len(unsure):
        scores = exact_dots(left_ND[unsure], right_MD)
        places[unsure] = top_scores(scores, number)
        best[unsure] = np.take_along_axis(scores, places[unsure], 1)
    return places, best


def batches(number: int, size: int = ROWS_AT_A_TIME) -> Iterator[slice]:
    """Slices that together cover `range(number)`."""
    for start in range(0, number, size):
        yield slice(start, min(start + size, number))


def write_array(array: NDArray[Any], path: Path) -> None:
    """Writes a .npy, whole or not at all."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path, rows: slice | None = None) -> NDArray[Any]:
    """Reads a .npy, or only some of its rows from the disk."""
    if rows is None:
        return np.asarray(np.load(path, allow_pickle=False))
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[rows])


def ranges_of(counts: Sequence[int] | Ints, most: int) -> list[tuple[int, int]]:
    """Divides a row of things with sizes into runs of at most `most` together (or of one).

    Returns:
        (first, one after the last) of each run.
    """
    runs: list[tuple[int, int]] = []
    start, total = 0, 0
    for place, count in enumerate(counts):
        if place > start and total + count > most:
            runs.append((start, place))
            start, total = place, 0
        total += int(count)
    return [*runs, (start, len(counts))] if len(counts) else runs
