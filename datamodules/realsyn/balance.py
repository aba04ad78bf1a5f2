"""Balance: pairs in a band of similarity, then no more than a few of each kind of image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...modules.files import write_json
from .clustering import evenness
from .embedding import ImageTextEncoder, VectorBlocks
from .extraction import part
from .steps import Stats, Task
from .tables import hash64, histogram, read_table
from .vectors import Floats, Ints, exact_dots, read_array, to_unit, write_array

COSINES = [round(-0.2 + 0.03 * k, 2) for k in range(41)]
SIZES = [0, 1, 2, 5, 10, 20, 35, 50, 100, 180, 350, 1000, 10000]


@dataclass(frozen=True)
class SimilarityBand:
    """Which similarities of an image and its synthetic text are plausible.

    Above the band the text says what is written on the image, below it something else.

    Attributes:
        mode: "raw": `low` and `high` are cosines; "affine": they are (1 + cosine) / 2; "quantile":
            shares that are cut off below and kept up to, whatever the encoder's scale. RealSyn's
            0.51 to 0.61 hold for its own encoder only; it dropped 15 % of the pairs.
        low: Lowest that stays.
        high: Highest that stays.
    """

    mode: Literal["raw", "affine", "quantile"] = "quantile"
    low: float = 0.075
    high: float = 0.925

    def __post_init__(self) -> None:
        least = -1.0 if self.mode == "raw" else 0.0
        if not least <= self.low <= self.high <= 1:
            raise ValueError(
                f"band: low and high must be in order and in [{least:g}, 1] for mode {self.mode}, "
                f"got {self.low} and {self.high}"
            )

    def limits(self, cosines: Floats) -> tuple[float, float]:
        """The lowest and highest cosine that stay; quantiles are of the sorted values themselves.

        Args:
            cosines: (N,), of all pairs that have a synthetic text.
        """
        if self.mode == "raw":
            return self.low, self.high
        if self.mode == "affine":
            return 2 * self.low - 1, 2 * self.high - 1
        if not len(cosines):
            return -1.0, 1.0
        low, high = np.quantile(cosines, [self.low, self.high], method="inverted_cdf")
        return float(low), float(high)


@dataclass(frozen=True)
class BalanceSampling:
    """How many images of a cluster stay (RealSyn, section 3.4).

    Which ones depends on the seed and their ids alone: a set with a smaller cap is part of one
    with a larger cap.

    Attributes:
        mode: "cap": at most `cap`, those whose ids hash lowest; "bernoulli": each with probability
            cap / n, as MetaCLIP does; "random": `target_size` of all, the baseline; "none": all.
        cap: Images per cluster (RealSyn: 20, 35, 180 of 168 on average); null where `target_size`
            decides.
        target_size: Images in all: the largest cap that gives no more, and one more of some.
        seed: Of the draw.
        with_random: Also writes the folder `random`, as many pairs drawn at random, to compare.
    """

    mode: Literal["cap", "bernoulli", "random", "none"] = "cap"
    cap: int | None = 20
    target_size: int | None = None
    seed: int = 0
    with_random: bool = False

    def __post_init__(self) -> None:
        if self.mode in ("cap", "bernoulli") and (self.cap is None) == (self.target_size is None):
            raise ValueError("balance: give cap or target_size, and null for the other")
        if self.mode == "bernoulli" and self.cap is None:
            raise ValueError("balance: bernoulli wants cap: how many it gives is left to chance")
        if self.mode == "random" and self.target_size is None:
            raise ValueError("balance: random wants target_size")
        if any(number is not None and number < 1 for number in (self.cap, self.target_size)):
            raise ValueError(
                f"balance: cap and target_size must be 1 or more, got {self.cap} and "
                f"{self.target_size}"
            )


def cap_for(sizes: Ints, target_size: int) -> int:
    """The largest cap that keeps at most `target_size` rows; the largest size where all fit."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(sizes, middle).sum()) <= target_size:
            low = middle
        else:
            high = middle - 1
    return low


def sample_balanced(
    clusters: Ints, hashes: NDArray[np.uint64], settings: BalanceSampling
) -> NDArray[np.bool_]:
    """Which rows stay.

    Args:
        clusters: (N,) cluster of each row.
        hashes: (N,) number of each row that looks random, as of `hash64`.
        settings: How many stay.

    Returns:
        (N,) bool.
    """
    number = len(clusters)
    if settings.mode == "none" or not number:
        return np.ones(number, bool)
    if settings.mode == "random":
        assert settings.target_size is not None
        kept = np.zeros(number, bool)
        kept[np.argsort(hashes, kind="stable")[: settings.target_size]] = True
        return kept
    sizes = np.bincount(clusters)
    if settings.mode == "bernoulli":
        assert settings.cap is not None
        chance = np.minimum(1.0, settings.cap / sizes[clusters])
        return np.asarray((hashes / 2.0**64 < chance) | (chance == 1.0))
    order = np.lexsort((np.arange(number), hashes, clusters))
    starts = np.r_[0, np.cumsum(sizes)[:-1]]
    ranks = np.empty(number, np.int64)
    ranks[order] = np.arange(number) - np.repeat(starts, sizes)
    if settings.cap is not None:
        return ranks < settings.cap
    assert settings.target_size is not None
    cap = cap_for(sizes, settings.target_size)
    kept = ranks < cap
    following = np.flatnonzero(ranks == cap)  # of each cluster that has more, the next one
    chosen = following[np.argsort(hashes[following], kind="stable")]
    kept[chosen[: max(0, settings.target_size - int(kept.sum()))]] = True
    return kept


# Works


@dataclass
class ScoreBlock(Task):
    """Scores the synthetic texts of a block: `scores-*`, (N,) float64, NaN where there is none.

    Attributes:
        folder: Where to write.
        images: The images.
        generated: Folder of `WriteTexts`.
        encoder: Embeds the texts.
    """

    folder: str
    images: VectorBlocks
    generated: str
    encoder: ImageTextEncoder
    needs_model = True

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        texts = read_table(part(self.generated, "synthetic", task), ["synthetic"])
        strings = texts["synthetic"].to_pylist()
        vectors = to_unit(self.encoder.encode_texts(strings))
        images = self.images.read(task)
        scores = np.full(len(strings), np.nan)
        for row, text in enumerate(strings):
            if text:
                scores[row] = exact_dots(images[row : row + 1], vectors[row : row + 1])[0, 0]
        write_array(scores, part(self.folder, "scores", task, "npy"))
        scored = scores[np.isfinite(scores)]
        return Stats(
            counts={"scored": len(scored)},
            histograms={"cosine of image and synthetic text": histogram(scored, COSINES)},
            edges={"cosine of image and synthetic text": COSINES},
        )


@dataclass
class FilterBand(Task):
    """Drops pairs outside of the band; those without a synthetic text stay.

    Writes `kept.npy`, (N,) bool over all images, and `summary.json`.

    Attributes:
        folder: Where to write.
        images: The images.
        scores: Folder of `ScoreBlock`.
        settings: The band.
    """

    folder: str
    images: VectorBlocks
    scores: str
    settings: SimilarityBand

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        blocks = range(len(self.images.rows))
        arrays = [read_array(part(self.scores, "scores", b, "npy")) for b in blocks]
        scores = np.concatenate([np.zeros(0), *arrays])
        low, high = self.settings.limits(scores[np.isfinite(scores)])
        below, above = scores < low, scores > high
        rows = np.concatenate([self.images.kept(b) + self.images.start(b) for b in blocks])
        kept = np.zeros(sum(self.images.rows), bool)
        kept[rows[~below & ~above]] = True
        write_array(kept, Path(self.folder) / "kept.npy")
        write_json(Path(self.folder) / "summary.json", {"low": low, "high": high})
        return Stats(
            counts={"images": int(kept.sum())},
            reasons={
                "images": {
                    "text does not fit (below the band)": int(below.sum()),
                    "text is written on it (above the band)": int(above.sum()),
                }
            },
        )


@dataclass
class SelectBalanced(Task):
    """Chooses the images that stay: `kept.npy`, (N,) bool over all, and `summary.json`.

    `random.npy` marks as many that are drawn at random.

    Attributes:
        folder: Where to write.
        images: Those in the band.
        assigned: Folder of `AssignBlock`.
        num_clusters: K.
        settings: How many stay.
    """

    folder: str
    images: VectorBlocks
    assigned: str
    num_clusters: int
    settings: BalanceSampling

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        total = sum(self.images.rows)
        clusters, hashes = np.zeros(total, np.int64), np.zeros(total, np.uint64)
        rows: list[Ints] = [np.zeros(0, np.int64)]
        for block in range(len(self.images.rows)):
            mine = read_array(part(self.assigned, "rows", block, "npy"))
            clusters[mine] = read_array(part(self.assigned, "clusters", block, "npy"))
            here = self.images.kept(block) + self.images.start(block)
            names = self.images.table(block, ["id"])["id"].to_pylist()
            hashes[here] = [hash64(self.settings.seed, name) for name in names]
            rows.append(here)
        present = np.concatenate(rows)
        chosen = sample_balanced(clusters[present], hashes[present], self.settings)
        by_hash = present[np.argsort(hashes[present], kind="stable")[: int(chosen.sum())]]
        for name, some in (("kept", present[chosen]), ("random", by_hash)):
            marked = np.zeros(total, bool)
            marked[some] = True
            write_array(marked, Path(self.folder) / f"{name}.npy")
        before = np.bincount(clusters[present], minlength=self.num_clusters)
        after = np.bincount(clusters[present[chosen]], minlength=self.num_clusters)
        summary = {
            "before": evenness(before),
            "after": evenness(after),
            "random subset of the same size": evenness(
                np.bincount(clusters[by_hash], minlength=self.num_clusters)
            ),
            "largest cap": int(after.max(initial=0)),
        }
        write_json(Path(self.folder) / "summary.json", summary)
        sizes: Sequence[tuple[str, Ints]] = (("before", before), ("after", after))
        return Stats(
            counts={"images": int(chosen.sum())},
            reasons={"images": {"more than enough like it": int((~chosen).sum())}},
            histograms={
                f"images per cluster, {name}": histogram(values, SIZES) for name, values in sizes
            },
            edges={f"images per cluster, {name}": list(map(float, SIZES)) for name, _ in sizes},
        )
