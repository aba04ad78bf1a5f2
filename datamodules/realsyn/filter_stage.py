"""RealSyn's second stage: rows are filtered, those left embedded, and duplicates dropped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .blocks import FindFirsts, HashRows, KeepFirsts, MakeBlock
from .clustering import Clustering
from .deduplication import JoinDuplicates, LookAlikes, SignBlock, SimilarPairs
from .duplicates import NUM_BANDS, DuplicateFilter
from .embedding import EmbedBlock, ImageTextEncoder, VectorBlocks, cluster_rows
from .filtering import (
    CollectHeldOut,
    FilterMeaning,
    FilterPerplexity,
    FilterQuality,
    SentenceHook,
    SumWords,
    TextScorer,
)
from .learning import LearnEncoder, Learner
from .settings import Settings
from .steps import Steps
from .vectors import ranges_of


@dataclass
class FilterStage:
    """The steps below `filter/`.

    Attributes:
        steps: Runs them; those of extraction are done.
        settings: All plain choices.
        encoder: Embeds images and texts.
        num_shards: How many extraction wrote.
        scorer: Measures perplexities, or None.
        hooks: More filters of sentences.
    """

    steps: Steps
    settings: Settings
    encoder: ImageTextEncoder
    num_shards: int
    scorer: TextScorer | None
    hooks: Sequence[SentenceHook]

    def run(self) -> tuple[VectorBlocks, VectorBlocks, dict[str, Any]]:
        """Runs it; returns images and sentences that are left, and the encoder's identity."""
        rows = self._make_blocks(self._filter_rows())
        identity = self._embed(rows)
        chosen = self.settings
        images = self._deduplicate("images", rows["images"], chosen.duplicate_images)
        sentences = self._deduplicate("sentences", rows["sentences"], chosen.duplicate_sentences)
        return images, sentences, identity

    def _filter_rows(self) -> str:
        """Filters images and sentences; returns the last step that wrote sentences."""
        steps, settings, number = self.steps, self.settings, self.num_shards
        pages = steps.folder("extract/pages")
        held_out = CollectHeldOut(steps.folder("filter/held_out"), pages, number, settings.images)
        images = {"images": asdict(settings.images)}
        steps.run("filter/held_out", held_out, 1, ["extract/pages"], images)
        quality = FilterQuality(
            steps.folder("filter/quality"),
            pages,
            steps.folder("extract/sentences"),
            f"{held_out.folder}/images.parquet",
            settings.images,
            settings.sentences,
            self.hooks,
            settings.duplicate_images.max_hamming,
        )
        chosen = asdict(settings.sentences)
        names = ["min_words", "max_words", "drop_urls", "drop_emoji", "complexity"]
        names += ["require_action", "tagger"]
        steps.run(
            "filter/quality",
            quality,
            number,
            ["extract/sentences", "filter/held_out"],
            images
            | {f"sentences.{name}": chosen[name] for name in names}
            | {"hooks": [hook.identity for hook in self.hooks], "hamming": quality.max_hamming},
        )
        words = SumWords(steps.folder("filter/words"), quality.folder, number)
        steps.run("filter/words", words, 1, ["filter/quality"])
        meaning = FilterMeaning(
            steps.folder("filter/meaning"),
            quality.folder,
            f"{words.folder}/words.parquet",
            settings.sentences,
            self.scorer,
        )
        steps.run(
            "filter/meaning",
            meaning,
            number,
            ["filter/quality", "filter/words"],
            {
                "sentences.min_entropy": settings.sentences.min_entropy,
                "perplexity": None if self.scorer is None else self.scorer.identity,
            },
        )
        if self.scorer is None:
            return "filter/meaning"
        perplexity = FilterPerplexity(
            steps.folder("filter/perplexity"), meaning.folder, number, settings.sentences
        )
        names = ["min_perplexity", "max_perplexity", "perplexity_mode"]
        limits = {f"sentences.{name}": chosen[name] for name in names}
        steps.run("filter/perplexity", perplexity, number, ["filter/meaning"], limits)
        return "filter/perplexity"

    def _make_blocks(self, sentence_step: str) -> dict[str, list[int]]:
        """Divides what is left into blocks; returns the rows of each block, by kind."""
        steps, parts, number = self.steps, self.settings.parts, self.num_shards
        quality, sentences = steps.folder("filter/quality"), steps.folder(sentence_step)
        after = ["filter/quality", sentence_step]
        hashed = HashRows(steps.folder("filter/hashes"), quality, sentences)
        finished = steps.run("filter/hashes", hashed, number, after)
        counts = finished.stats.counts
        total = max(counts["images hashed"], counts["sentences hashed"])
        ranges = max(1, -(-total // parts.hashes))
        firsts = FindFirsts(steps.folder("filter/firsts"), hashed.folder, number, ranges)
        found = steps.run(
            "filter/firsts", firsts, ranges, ["filter/hashes"], {"hashes per task": parts.hashes}
        )
        distinct = KeepFirsts(
            steps.folder("filter/distinct"), quality, sentences, firsts.folder, ranges
        )
        steps.run("filter/distinct", distinct, number, ["filter/firsts"])
        rows = {kind: self._rows_of("filter/distinct", kind) for kind in ("images", "sentences")}
        for kind, numbers in rows.items():
            if not sum(numbers):
                raise ValueError(
                    f"no {kind} are left: {self._losses(kind)}; loosen the filter of {kind}"
                )
            assert sum(numbers) == found.stats.counts[kind]
        blocks = MakeBlock(
            steps.folder("filter/blocks"),
            steps.folder("extract/pages"),
            distinct.folder,
            rows["images"],
            rows["sentences"],
            parts.images,
            parts.sentences,
        )
        num_images, num_sentences = blocks.num_image_blocks, blocks.num_sentence_blocks
        sizes = {"images per block": parts.images, "sentences per block": parts.sentences}
        steps.run("filter/blocks", blocks, num_images + num_sentences, ["filter/distinct"], sizes)
        return {
            "images": _equal_parts(sum(rows["images"]), parts.images),
            "sentences": _equal_parts(sum(rows["sentences"]), parts.sentences),
        }

    def _rows_of(self, name: str, kind: str) -> list[int]:
        """What each task of a step counted as rows of a kind."""
        folder = self.steps.out / name / "_done"
        markers = sorted(folder.glob("*.json"))
        said = [json.loads(marker.read_text(encoding="utf-8")) for marker in markers]
        return [marker["stats"]["counts"][f"{kind} rows"] for marker in said]

    def _losses(self, kind: str) -> str:
        lost: dict[str, int] = {}
        for finished in self.steps.done.values():
            for reason, count in finished.stats.reasons.get(kind, {}).items():
                lost[reason] = lost.get(reason, 0) + count
        most = sorted(lost, key=lost.__getitem__, reverse=True)[:3]
        said = [f"{reason} {lost[reason]:,}" for reason in most]
        return f"most were dropped as {', '.join(said)}" if said else "the documents have none"

    def _embed(self, block_rows: dict[str, list[int]]) -> dict[str, Any]:
        """Embeds all blocks, by an encoder that is learned from them where it can be."""
        steps = self.steps
        blocks = steps.folder("filter/blocks")
        after = ["filter/blocks"]
        if isinstance(self.encoder, Learner):
            learn = LearnEncoder(
                self.encoder,
                VectorBlocks("", blocks, "images", block_rows["images"]),
                VectorBlocks("", blocks, "sentences", block_rows["sentences"]),
                self.settings,
            )
            chosen = {
                "encoder": self.encoder.settings,
                "learned_texts": self.settings.learned_texts,
                "learned_images": self.settings.learned_images,
            }
            steps.run("filter/encoder", learn, 1, after, chosen)
            after = [*after, "filter/encoder"]
        identity = self.encoder.identity
        for kind, rows in block_rows.items():
            work = EmbedBlock(
                steps.folder(f"filter/{kind}_vectors"),
                blocks,
                kind,
                self.encoder,
                self.settings.images.max_pixels,
            )
            steps.run(f"filter/{kind}_vectors", work, len(rows), after, {"encoder": identity})
        return identity

    def _deduplicate(self, kind: str, rows: list[int], settings: DuplicateFilter) -> VectorBlocks:
        steps = self.steps
        vectors, blocks = f"filter/{kind}_vectors", steps.folder("filter/blocks")
        source = VectorBlocks(steps.folder(vectors), blocks, kind, rows)
        clustering = Clustering(rows_per_cluster=settings.rows_per_cluster, num_iterations=10)
        name = f"filter/{kind}_duplicates"
        assigned, sizes = cluster_rows(steps, name, source, sum(rows), clustering, [vectors])
        runs = ranges_of(sizes, self.settings.parts.clustered_rows)
        similar = SimilarPairs(
            steps.folder(f"{name}/similar"),
            steps.folder(assigned),
            len(rows),
            runs,
            settings,
        )
        near = {"neighbours": settings.neighbours, "least": settings.least, "runs": runs}
        steps.run(f"{name}/similar", similar, len(runs), [assigned], near)
        marks, num_looks, marked = blocks, 1, "filter/blocks"
        if kind == "sentences":
            signed = SignBlock(steps.folder(f"{name}/signatures"), blocks)
            marked = f"{name}/signatures"
            steps.run(marked, signed, len(rows), ["filter/blocks"])
            marks, num_looks = signed.folder, NUM_BANDS if settings.min_jaccard else 0
        looks = LookAlikes(steps.folder(f"{name}/looks"), kind, marks, len(rows), settings)
        limit = settings.max_hamming if kind == "images" else settings.min_jaccard
        steps.run(f"{name}/looks", looks, num_looks, [marked], {"limit": limit})
        before = self._num_before(kind)
        join = JoinDuplicates(
            steps.folder(f"{name}/join"),
            source,
            looks.folder,
            num_looks,
            similar.folder,
            len(runs),
            before,
            settings,
        )
        chosen = {
            key: value
            for key, value in asdict(settings).items()
            if key in ("tau", "target_removed", "tau_floor")
        }
        after = [f"{name}/similar", f"{name}/looks"]
        steps.run(f"{name}/join", join, 1, after, {f"duplicate_{kind}": chosen})
        return VectorBlocks(source.vectors, blocks, kind, rows, f"{join.folder}/kept.npy")

    def _num_before(self, kind: str) -> int:
        """Rows before copies were dropped."""
        return self.steps.counts("filter/hashes")[f"{kind} hashed"]


def _equal_parts(number: int, size: int) -> list[int]:
    """Sizes of parts that together are `number`, all but the last of `size`."""
    return [min(size, number - start) for start in range(0, number, size)]
