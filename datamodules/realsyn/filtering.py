"""Filtering: works that drop images and sentences for what they are."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .duplicates import near_hashes
from .extraction import part
from .images import ImageFilter, filter_images
from .sentences import (
    SentenceFilter,
    Tagger,
    count_words,
    entropies,
    filter_by_meaning,
    filter_sentences,
    make_tagger,
    words_of,
)
from .steps import Stats, Task
from .tables import (
    Verdict,
    histogram,
    read_table,
    sample_by_reason,
    split_by_reason,
    write_table,
)

SIDES = [0, 50, 100, 150, 200, 300, 400, 500, 600, 800, 1000, 1500, 2000]
ASPECTS = [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 8]
WORDS = [*range(0, 85, 4), 90, 100, 120]
ENTROPIES = [round(0.05 * k, 2) for k in range(41)]
PERPLEXITIES = [0, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 3000, 10000]
IMAGE_EXAMPLE = ("source", "document", "width", "height")
TEXT_EXAMPLE = ("text", "document")


class TextScorer(Protocol):
    """What measures perplexities."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a score, as plain JSON."""

    def score(self, texts: Sequence[str]) -> Sequence[float]:
        """The perplexity of each text, which must not depend on the other ones."""


class SentenceHook(ABC):
    """A filter of the user's own, such as one for personal data."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides an answer, as plain JSON."""

    @abstractmethod
    def reason(self, text: str) -> str:
        """Why a sentence is dropped, in a word or two; "" to keep it."""


def _told(kind: str, verdict: Verdict, columns: Sequence[str]) -> Stats:
    """Counts, reasons and examples of a filter."""
    return Stats(
        counts={kind: len(verdict.kept)},
        reasons={kind: verdict.counts},
        examples={kind: sample_by_reason(verdict, columns)},
    )


@dataclass
class CollectHeldOut(Task):
    """Puts the images of held-out documents into one table: no training image may look like one.

    Writes `images.parquet`: the first reference to each image that passes the filter.

    Attributes:
        folder: Where to write.
        pages: Folder of `ExtractPages`.
        num_shards: Its number of tasks.
        settings: Which images count.
    """

    folder: str
    pages: str
    num_shards: int
    settings: ImageFilter

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        tables = []
        for shard in range(self.num_shards):
            images = read_table(part(self.pages, "images", shard))
            images = images.append_column("shard", pa.array([shard] * len(images), pa.int32()))
            tables.append(filter_images(images.filter(images["held_out"]), self.settings).kept)
        whole = pa.concat_tables(tables)
        seen: set[bytes] = set()
        firsts = []
        for digest in whole["sha256"].to_pylist():
            firsts.append(digest not in seen)
            seen.add(digest)
        whole = whole.filter(pa.array(firsts, pa.bool_()))
        write_table(whole, Path(self.folder) / "images.parquet")
        return Stats(counts={"rows": len(whole), "held-out images": len(whole)})


@dataclass
class FilterQuality(Task):
    """Drops images by size and looks, sentences by form and content; counts words.

    Writes `images-*`, `sentences-*`, `words-*`.

    Attributes:
        folder: Where to write.
        pages: Folder of `ExtractPages`.
        sentences_folder: Folder of `SplitSentences`.
        held_out: File of `CollectHeldOut`.
        images: Which images stay.
        sentences: Which sentences stay.
        hooks: More filters of sentences.
        max_hamming: An image is like a held-out one if no more bits of their hashes differ.
    """

    folder: str
    pages: str
    sentences_folder: str
    held_out: str
    images: ImageFilter
    sentences: SentenceFilter
    hooks: Sequence[SentenceHook]
    max_hamming: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        stats = self._images(task)
        stats.add(self._sentences(task))
        return stats

    def _images(self, task: int) -> Stats:
        images = read_table(part(self.pages, "images", task))
        images = images.filter(pc.invert(images["held_out"]))
        verdict = filter_images(images, self.images)
        others = read_table(Path(self.held_out), ["phash"])["phash"].to_numpy()
        mine = verdict.kept["phash"].to_numpy()
        near = near_hashes(mine, others, self.max_hamming)
        reasons = np.where(near, "like a held-out image", "")
        leaks = split_by_reason(verdict.kept, pa.array(reasons.tolist(), pa.string()))
        verdict = Verdict(leaks.kept, pa.concat_tables([verdict.dropped, leaks.dropped]))
        write_table(verdict.kept, part(self.folder, "images", task))
        stats = _told("images", verdict, IMAGE_EXAMPLE)
        for example in stats.examples["images"]:
            example["shard"] = task
        decoded = images.filter(pc.equal(images["problem"], ""))
        sides = np.stack([decoded["width"].to_numpy(), decoded["height"].to_numpy()])
        short, long = sides.min(0, initial=10**9), sides.max(0, initial=0)
        stats.edges = {"shorter side": list(map(float, SIDES)), "aspect": list(ASPECTS)}
        stats.histograms = {
            "shorter side": histogram(short, SIDES),
            "aspect": histogram(long / np.maximum(short, 1), ASPECTS),
        }
        stats.counts["rows"] = len(verdict.kept)
        return stats

    def _sentences(self, task: int) -> Stats:
        sentences = read_table(part(self.sentences_folder, "sentences", task))
        verdict = filter_sentences(sentences, self.sentences, self._tagger)
        for hook in self.hooks:
            more = split_by_reason(
                verdict.kept, [hook.reason(text) for text in verdict.kept["text"].to_pylist()]
            )
            verdict = Verdict(more.kept, pa.concat_tables([verdict.dropped, more.dropped]))
        write_table(verdict.kept, part(self.folder, "sentences", task))
        words = count_words(verdict.kept["text"].to_pylist())
        _write_counts(words, part(self.folder, "words", task))
        stats = _told("sentences", verdict, TEXT_EXAMPLE)
        lengths = [len(words_of(text)) for text in sentences["text"].to_pylist()]
        stats.histograms["words"] = histogram(lengths, WORDS)
        stats.edges["words"] = list(map(float, WORDS))
        return stats

    @property
    def _tagger(self) -> Tagger:
        if "_made" not in vars(self):
            self._made = make_tagger(self.sentences.tagger)
        return self._made


def _write_counts(counts: Counter[str], path: Path) -> None:
    words = sorted(counts)
    numbers = [counts[word] for word in words]
    write_table(pa.table({"word": pa.array(words, pa.string()), "count": numbers}), path)


def read_counts(path: Path) -> dict[str, int]:
    """Words and how often they occur, as the pipeline stores them."""
    table = read_table(path)
    return dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))


@dataclass
class SumWords(Task):
    """Adds the word counts of all shards: the unigram model, `words.parquet`.

    Attributes:
        folder: Where to write.
        quality: Folder of `FilterQuality`.
        num_shards: Its number of tasks.
    """

    folder: str
    quality: str
    num_shards: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        total: Counter[str] = Counter()
        for shard in range(self.num_shards):
            total.update(read_counts(part(self.quality, "words", shard)))
        _write_counts(total, Path(self.folder) / "words.parquet")
        return Stats(counts={"words": sum(total.values()), "different words": len(total)})


@dataclass
class FilterMeaning(Task):
    """Drops sentences by their entropy, then, with a language model, measures the perplexity.

    Limits of the perplexity that are shares of the sentences are left to `FilterPerplexity`.
    Writes `sentences-*` with `entropy` and `perplexity`.

    Attributes:
        folder: Where to write.
        quality: Folder of `FilterQuality`.
        words: File of `SumWords`.
        settings: Which sentences stay.
        scorer: The language model, or None.
    """

    folder: str
    quality: str
    words: str
    settings: SentenceFilter
    scorer: TextScorer | None

    @property
    def needs_model(self) -> bool:  # type: ignore[override]
        """See `Work`."""
        return self.scorer is not None

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        sentences = read_table(part(self.quality, "sentences", task))
        if "_counts" not in vars(self):
            self._counts = read_counts(Path(self.words))
        values = entropies(sentences["text"].to_pylist(), self._counts)
        sentences = sentences.append_column("entropy", pa.array(values, pa.float64()))
        nothing = pa.nulls(len(sentences), pa.float64())
        verdict = filter_by_meaning(sentences.append_column("perplexity", nothing), self.settings)
        kept = verdict.kept
        if self.scorer is not None:
            scores = pa.array([float(s) for s in self.scorer.score(kept["text"].to_pylist())])
            kept = kept.set_column(kept.column_names.index("perplexity"), "perplexity", scores)
        write_table(kept, part(self.folder, "sentences", task))
        stats = _told("sentences", verdict, TEXT_EXAMPLE)
        stats.histograms["entropy"] = histogram(values, ENTROPIES)
        stats.edges["entropy"] = ENTROPIES
        stats.counts["rows"] = len(kept)
        return stats


@dataclass
class FilterPerplexity(Task):
    """Drops sentences by their perplexity.

    Attributes:
        folder: Where to write `sentences-*`.
        meaning: Folder of `FilterMeaning`.
        num_shards: Its number of tasks.
        settings: Which sentences stay.
    """

    folder: str
    meaning: str
    num_shards: int
    settings: SentenceFilter

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        sentences = read_table(part(self.meaning, "sentences", task))
        verdict = filter_by_meaning(sentences, self._limits)
        write_table(verdict.kept, part(self.folder, "sentences", task))
        stats = _told("sentences", verdict, TEXT_EXAMPLE)
        stats.histograms["perplexity"] = histogram(sentences["perplexity"], PERPLEXITIES)
        stats.edges["perplexity"] = list(map(float, PERPLEXITIES))
        stats.counts["rows"] = len(verdict.kept)
        return stats

    @property
    def _limits(self) -> SentenceFilter:
        if "_found" not in vars(self):
            self._found = self.settings
            if self.settings.perplexity_mode == "quantile":
                shards = [
                    read_table(part(self.meaning, "sentences", shard), ["perplexity"])
                    for shard in range(self.num_shards)
                ]
                values = pa.concat_tables(shards)["perplexity"].to_numpy()
                shares = [self.settings.min_perplexity, self.settings.max_perplexity]
                low, high = np.quantile(values, shares) if len(values) else (0.0, 0.0)
                self._found = replace(
                    self.settings,
                    perplexity_mode="absolute",
                    min_perplexity=float(low),
                    max_perplexity=float(high),
                )
        return self._found
