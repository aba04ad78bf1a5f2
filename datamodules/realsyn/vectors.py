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


def exact_dots(left_ND: Vectors, right_MD: Vectors, device: str = "cpu") -> Floats:
    """All scores of two sets of stored vectors, to the last bit (see the top of this file).

    Args:
        left_ND: (N, D) float16 of norm at most 2, as is `right_MD`.
        right_MD: (M, D) float16.
        device: Where to multiply.

    Returns:
        (N, M) float64.
    """
    if device == "cpu":
        return np.asarray(left_ND.astype(np.float64) @ right_MD.astype(np.float64).T)
    import torch

    left, right = (torch.from_numpy(x).to(device).double() for x in (left_ND, right_MD))
    return np.asarray((left @ right.T).cpu().numpy())


def top_scores(scores_NM: Floats, number: int) -> Ints:
    """Places of the largest scores of each row, the largest first; of equal ones the first.

    Returns:
        (N, min(number, M)) int64.
    """
    number = min(number, scores_NM.shape[1])
    if number == 0:
        return np.zeros((len(scores_NM), 0), np.int64)
    if number == 1:
        first: Ints = scores_NM.argmax(1)[:, None]
        return first
    if number * 8 >= scores_NM.shape[1]:
        order: Ints = np.argsort(-scores_NM, axis=1, kind="stable")
        return order[:, :number]
    least = np.partition(scores_NM, -number, axis=1)[:, -number]
    found = np.empty((len(scores_NM), number), np.int64)
    for row, (scores, bound) in enumerate(zip(scores_NM, least, strict=True)):
        places = np.flatnonzero(scores >= bound)  # in order, with all that equal the last one
        found[row] = places[np.argsort(-scores[places], kind="stable")[:number]]
    return found


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
