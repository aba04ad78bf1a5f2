"""Duplicates: pairs that look or mean the same, joined into components of which one row stays."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .extras import require
from .sentences import words_of
from .vectors import Floats, Ints, Vectors, batches, exact_top

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
PAIRS_AT_A_TIME = 5_000_000


@dataclass(frozen=True)
class DuplicateFilter:
    """What counts as a duplicate.

    Two rows are joined if they look the same or if the cosine of their embeddings is at least
    `tau`; of what is joined, directly or through others, one row stays. RealSyn publishes neither
    thresholds nor rules: `tau: null` takes the share that it removes as the target.

    Attributes:
        tau: Cosine from which on two rows mean the same; null finds the one that removes
            `target_removed` of the rows, copies included, or as near to it as possible.
        target_removed: Share of the rows before this filter that is to go (RealSyn: 0.305 of the
            images, 0.276 of the sentences).
        tau_floor: Lowest cosine that an automatic `tau` may have: what is below means different
            things, whatever the share.
        neighbours: Each row is compared with so many nearest ones of its cluster.
        rows_per_cluster: Average size of the clusters inside of which rows are compared.
        max_hamming: Images look the same if so many of 64 bits of their pHash differ at most.
        min_jaccard: Sentences look the same if so large a share of their word triples is common,
            as MinHash estimates it; 0 switches it off.
    """

    tau: float | None = None
    target_removed: float = 0.305
    tau_floor: float = 0.85
    neighbours: int = 20
    rows_per_cluster: int = 2000
    max_hamming: int = 4
    min_jaccard: float = 0.8

    def __post_init__(self) -> None:
        for name in ("target_removed", "min_jaccard"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"duplicates: {name} must be in [0, 1), got {getattr(self, name)}")
        if self.tau is not None and not -1 <= self.tau <= 2:
            raise ValueError(f"duplicates: tau must be a cosine (2: off) or null, got {self.tau}")
        if self.neighbours < 1 or self.rows_per_cluster < 2 or not 0 <= self.max_hamming < 64:
            raise ValueError(
                "duplicates: neighbours must be 1, rows_per_cluster 2 or more, and max_hamming in "
                f"0 to 63, got {self.neighbours}, {self.rows_per_cluster} and {self.max_hamming}"
            )

    @property
    def least(self) -> float:
        """The lowest cosine that may join two rows."""
        return self.tau_floor if self.tau is None else self.tau


def components(pairs: Pairs, number: int) -> Ints:
    """The component of each row, numbered by their first rows (union-find).

    Args:
        pairs: (P, 2) rows that are joined.
        number: Rows in all.

    Returns:
        (number,) int64.
    """
    ones = np.ones(len(pairs), dtype=bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    labels = connected_components(graph, directed=False)[1]
    _, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(firsts))
    return order[inverse].astype(np.int64)


def representatives(labels: Ints, size: Ints) -> NDArray[np.bool_]:
    """Which rows stay: of each component the largest, of equal ones the first.

    Args:
        labels: (N,) component of each row.
        size: (N,) what counts as large; zeros keep the first row.
    """
    order = np.lexsort((np.arange(len(labels)), -size, labels))
    firsts = np.r_[True, np.diff(labels[order]) != 0][: len(labels)]
    kept = np.zeros(len(labels), bool)
    kept[order[firsts]] = True
    return kept


def choose_tau(scored: Pairs, scores: Floats, always: Pairs, number: int, num_kept: int) -> float:
    """The cosine from which on pairs are joined so that a given number of components is left.

    Args:
        scored: (P, 2) pairs of rows.
        scores: (P,) their cosines.
        always: (Q, 2) pairs that are joined in any case.
        number: Rows in all.
        num_kept: Components that shall be left.

    Returns:
        The lowest cosine among `scores` that leaves at least `num_kept`; above all of them, 2,
        where none does.
    """
    levels = np.unique(scores)
    low, high = 0, len(levels)  # the answer is levels[k] of some k in [low, high], 2 at the end
    while low < high:
        middle = (low + high) // 2
        joined = np.concatenate([always, scored[scores >= levels[middle]]])
        if components(joined, number).max(initial=-1) + 1 >= num_kept:
            high = middle
        else:
            low = middle + 1
    return float(levels[low]) if low < len(levels) else 2.0


def similar_pairs(vectors: Vectors, neighbours: int, least: float) -> tuple[Pairs, Floats]:
    """Pairs of rows of a cluster whose cosine is large.

    Args:
        vectors: (N, D) of a cluster.
        neighbours: Each row is joined with so many of its nearest at most.
        least: Lowest cosine.

    Returns:
        (P, 2) pairs, the smaller row first, each once, sorted; and their cosines.
    """
    found, values = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for rows in batches(len(vectors)):
        near, scores = exact_top(vectors[rows], vectors, neighbours + 1)
        here = np.arange(rows.start, rows.stop)[:, None]
        # A row is its own nearest, or one of many that are equal to it.
        others = near != here
        others &= np.cumsum(others, 1) <= neighbours
        left, place = np.nonzero(others & (scores >= least))
        found.append(np.stack([here[left, 0], near[left, place]], 1))
        values.append(scores[left, place])
    pairs, cosines = np.sort(np.concatenate(found), axis=1), np.concatenate(values)
    unique, firsts = np.unique(pairs, axis=0, return_index=True)
    return unique.reshape(-1, 2), cosines[firsts]


# Hashes of images


def near_hashes(hashes: Hashes, others: Hashes, max_hamming: int) -> NDArray[np.bool_]:
    """Which hashes differ from some of `others` in at most `max_hamming` bits."""
    near = np.zeros(len(hashes), bool)
    unique = np.unique(others)
    for rows in batches(len(hashes), max(1, PAIRS_AT_A_TIME // max(1, len(unique)))):
        differ = np.bitwise_count(hashes[rows, None] ^ unique[None, :])
        near[rows] = (differ <= max_hamming).any(1)
    return near


def hash_pairs(hashes: Hashes, max_hamming: int) -> Pairs:
    """Pairs of rows whose 64-bit hashes differ in at most `max_hamming` bits.

    Exact: of `max_hamming` + 1 bands of bits at least one is equal. Rows with the same hash are
    joined in a chain.

    Returns:
        (P, 2) pairs; what they join is what all such pairs would join.
    """
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    found = [np.stack([order[same], order[same + 1]], 1)]
    unique, firsts = np.unique(hashes, return_index=True)
    if max_hamming:
        for left, right in _band_candidates(unique, max_hamming + 1):
            differ = np.bitwise_count(unique[left] ^ unique[right])
            near = differ <= max_hamming
            found.append(np.stack([firsts[left[near]], firsts[right[near]]], 1))
    return np.concatenate(found).astype(np.int64)


def _band_candidates(hashes: Hashes, num_bands: int) -> Iterator[tuple[Ints, Ints]]:
    edges = np.linspace(0, 64, num_bands + 1).round().astype(int)
    for start, stop in itertools.pairwise(edges):
        mask = np.uint64(((1 << int(stop - start)) - 1) << int(start))
        yield from group_pairs(hashes & mask)


def group_pairs(keys: NDArray[Any]) -> Iterator[tuple[Ints, Ints]]:
    """All pairs of rows with the same key, some million at a time."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]][: len(order)])
    sizes = np.diff(np.r_[starts, len(order)])
    lefts, rights, waiting = [], [], 0
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        members = order[start : start + size]
        for row in range(size - 1):
            lefts.append(np.full(size - 1 - row, members[row]))
            rights.append(members[row + 1 :])
            waiting += size - 1 - row
            if waiting > PAIRS_AT_A_TIME:
                yield np.concatenate(lefts), np.concatenate(rights)
                lefts, rights, waiting = [], [], 0
    if lefts:
        yield np.concatenate(lefts), np.concatenate(rights)


# MinHash of sentences

NUM_PERMUTATIONS = 64
ROWS_PER_BAND = 4
SHINGLE = 3


NUM_BANDS = NUM_PERMUTATIONS // ROWS_PER_BAND


def minhashes(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures of the word triples of texts (datasketch).

    Returns:
        (N, 64) uint32.
    """
    datasketch = require("datasketch", "datasketch")
    shingles = []
    for text in texts:
        words = words_of(text)
        triples = range(max(1, len(words) - SHINGLE + 1))
        shingles.append([" ".join(words[k : k + SHINGLE]).encode() for k in triples])
    made = datasketch.MinHash.bulk(shingles, num_perm=NUM_PERMUTATIONS, seed=1)
    if not made:
        return np.zeros((0, NUM_PERMUTATIONS), np.uint32)
    return np.stack([signature.hashvalues for signature in made]).astype(np.uint32)


def band_pairs(signatures: NDArray[np.uint32], band: int, min_jaccard: float) -> Pairs:
    """Pairs of rows that meet in one band and of which so large a share of all numbers is equal.

    Of pairs at a Jaccard similarity of 0.8 99.98 % meet in one of the 16 bands, of those at 0.5
    64 %; those that meet are compared in full.

    Args:
        signatures: (N, 64); may be on the disk.
        band: 0 to 15.
        min_jaccard: That share.

    Returns:
        (P, 2) pairs.
    """
    start = band * ROWS_PER_BAND
    numbers = np.ascontiguousarray(signatures[:, start : start + ROWS_PER_BAND])
    keys = np.unique(numbers, axis=0, return_inverse=True)[1].reshape(-1)
    found = [np.zeros((0, 2), np.int64)]
    for left, right in group_pairs(keys):
        for rows in batches(len(left), 100_000):
            equal = (signatures[left[rows]] == signatures[right[rows]]).mean(1)
            near = equal >= min_jaccard
            found.append(np.stack([left[rows][near], right[rows][near]], 1))
    return np.concatenate(found)
