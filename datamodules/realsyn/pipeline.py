"""RealSyn's pipeline: which steps there are, what each reads, and in which order they run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...modules.files import write_json
from .balance import FilterBand, ScoreBlock, SelectBalanced
from .blocks import FindFirsts, HashRows, KeepFirsts, MakeBlock
from .clustering import Clustering
from .deduplication import JoinDuplicates, LookAlikes, SignBlock, SimilarPairs
from .documents import DocumentReader
from .duplicates import NUM_BANDS, DuplicateFilter
from .embedding import (
    AssignBlock,
    EmbedBlock,
    ImageTextEncoder,
    LearnCentroids,
    VectorBlocks,
    cluster_sizes,
)
from .executors import Executor
from .extraction import ExtractPages, LearnSplitter, SplitSentences
from .filtering import (
    CollectHeldOut,
    FilterMeaning,
    FilterPerplexity,
    FilterQuality,
    SentenceHook,
    SumWords,
    TextScorer,
)
from .generation import Captioner, Fusion, MineTags, WriteTexts
from .learning import LearnEncoder, Learner
from .pairs import PairImages, WriteHeldOut, WritePairs
from .recall import MeasureRecall, SampleImages, SearchExactly
from .searching import CollectTexts, CountUses, ProbeBlock, SearchClusters
from .settings import Settings
from .steps import Finished, Progress, Step, Work, run_step
from .vectors import ranges_of, read_array, write_array

STAGES = ("extract", "filter", "cluster", "retrieve", "generate", "balance")


@dataclass
class Pipeline:
    """Runs the stages on a folder.

    Attributes:
        out: The folder: everything is below it.
        readers: Read the documents.
        encoder: Embeds images and texts.
        executor: Runs tasks.
        settings: All plain choices.
        make_item: Builds what `fusion` takes.
        fusion: Makes synthetic texts; None: there are none, and no pair is dropped for them.
        captioner: Describes images, or None.
        scorer: Measures perplexities, or None.
        hooks: More filters of sentences.
        overwrite: Make stages again whose settings have changed.
        progress: Called with a step's name, tasks done and tasks in all.
    """

    out: Path
    readers: Sequence[DocumentReader]
    encoder: ImageTextEncoder
    executor: Executor
    settings: Settings
    make_item: Callable[[str, str, str, Sequence[str]], Any]
    fusion: Fusion | None = None
    captioner: Captioner | None = None
    scorer: TextScorer | None = None
    hooks: Sequence[SentenceHook] = ()
    overwrite: bool = False
    progress: Progress = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._done: dict[str, Finished] = {}
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, last: str) -> dict[str, Finished]:
        """Runs all stages up to one; what is done already is read only.

        Args:
            last: One of `STAGES`.

        Returns:
            The finished steps by name, in the order of their work.

        Raises:
            ValueError: A setting, a file or a document is wrong; or stages were made by others.
        """
        stages: dict[str, Callable[[], None]] = {
            "extract": self._extract,
            "filter": self._filter,
            "cluster": self._cluster,
            "retrieve": self._retrieve,
            "generate": self._generate,
            "balance": self._balance,
        }
        for name in STAGES[: STAGES.index(last) + 1]:
            stages[name]()
        stats = {name: {"seconds": f.seconds, **vars(f.stats)} for name, f in self._done.items()}
        write_json(self.out / "stats.json", stats)
        return dict(self._done)

    # One step

    def _folder(self, name: str) -> str:
        return str(self.out / name)

    def _step(
        self,
        name: str,
        work: Work,
        num_tasks: int,
        after: Sequence[str],
        settings: Mapping[str, Any] | None = None,
    ) -> Finished:
        digests = [self._done[other].digest for other in after]
        step = Step(name, settings or {}, digests, work, num_tasks)
        finished = run_step(self.out, step, self.executor, self.overwrite, self.progress)
        self._done[name] = finished
        return finished

    # Extraction

    def _extract(self) -> None:
        settings, parts = self.settings, self.settings.parts
        units = [
            (number, unit)
            for number, reader in enumerate(self.readers)
            for unit in reader.units(parts.documents)
        ]
        work = ExtractPages(
            self._folder("extract/pages"),
            units,
            self.readers,
            settings.images,
            settings.held_out,
            settings.seed,
            settings.strict,
        )
        images = asdict(settings.images)
        pages = self._step(
            "extract/pages",
            work,
            len(units),
            [],
            {
                "documents": [reader.identity for reader in self.readers],
                "documents per task": parts.documents,
                "limits": [images["max_pixels"], images["max_bytes"]],
                "held_out": settings.held_out,
                "seed": settings.seed,
                "strict": settings.strict,
            },
        )
        self.num_shards = len(units)
        share = settings.splitter_characters / max(1, pages.stats.counts["characters"])
        splitter = LearnSplitter(
            self._folder("extract/splitter"),
            work.folder,
            self.num_shards,
            min(1.0, share),
            settings.seed,
        )
        characters = {"splitter_characters": settings.splitter_characters}
        self._step("extract/splitter", splitter, 1, ["extract/pages"], characters)
        sentences = SplitSentences(
            self._folder("extract/sentences"), work.folder, f"{splitter.folder}/splitter.json"
        )
        after = ["extract/pages", "extract/splitter"]
        self._step("extract/sentences", sentences, self.num_shards, after)

    # Filtering

    def _filter(self) -> None:
        self._filter_rows()
        self._make_blocks()
        self._embed()
        images = self._deduplicate("images", self.settings.duplicate_images)
        sentences = self._deduplicate("sentences", self.settings.duplicate_sentences)
        self.images, self.sentences = images, sentences

    def _filter_rows(self) -> None:
        settings, number = self.settings, self.num_shards
        pages = self._folder("extract/pages")
        held_out = CollectHeldOut(self._folder("filter/held_out"), pages, number, settings.images)
        images = {"images": asdict(settings.images)}
        self._step("filter/held_out", held_out, 1, ["extract/pages"], images)
        quality = FilterQuality(
            self._folder("filter/quality"),
            pages,
            self._folder("extract/sentences"),
            f"{held_out.folder}/images.parquet",
            settings.images,
            settings.sentences,
            self.hooks,
            settings.duplicate_images.max_hamming,
        )
        chosen = asdict(settings.sentences)
        names = ("min_words", "max_words", "drop_urls", "drop_emoji", "complexity")
        names += ("require_action", "tagger")  # type: ignore[assignment]
        self._step(
            "filter/quality",
            quality,
            number,
            ["extract/sentences", "filter/held_out"],
            images
            | {f"sentences.{name}": chosen[name] for name in names}
            | {"hooks": [hook.identity for hook in self.hooks], "hamming": quality.max_hamming},
        )
        words = SumWords(self._folder("filter/words"), quality.folder, number)
        self._step("filter/words", words, 1, ["filter/quality"])
        meaning = FilterMeaning(
            self._folder("filter/meaning"),
            quality.folder,
            f"{words.folder}/words.parquet",
            settings.sentences,
            self.scorer,
        )
        self.sentence_step = "filter/meaning"
        self._step(
            "filter/meaning",
            meaning,
            number,
            ["filter/quality", "filter/words"],
            {
                "sentences.min_entropy": settings.sentences.min_entropy,
                "perplexity": None if self.scorer is None else self.scorer.identity,
            },
        )
        if self.scorer is not None:
            perplexity = FilterPerplexity(
                self._folder("filter/perplexity"), meaning.folder, number, settings.sentences
            )
            names = ("min_perplexity", "max_perplexity", "perplexity_mode")  # type: ignore[assignment]
            limits = {f"sentences.{name}": chosen[name] for name in names}
            self.sentence_step = "filter/perplexity"
            self._step("filter/perplexity", perplexity, number, ["filter/meaning"], limits)

    def _make_blocks(self) -> None:
        parts, number = self.settings.parts, self.num_shards
        quality, sentences = self._folder("filter/quality"), self._folder(self.sentence_step)
        after = ["filter/quality", self.sentence_step]
        hashed = HashRows(self._folder("filter/hashes"), quality, sentences)
        finished = self._step("filter/hashes", hashed, number, after)
        counts = finished.stats.counts
        total = max(counts["images hashed"], counts["sentences hashed"])
        ranges = max(1, -(-total // parts.hashes))
        firsts = FindFirsts(self._folder("filter/firsts"), hashed.folder, number, ranges)
        found = self._step(
            "filter/firsts", firsts, ranges, ["filter/hashes"], {"hashes per task": parts.hashes}
        )
        distinct = KeepFirsts(
            self._folder("filter/distinct"), quality, sentences, firsts.folder, ranges
        )
        self._step("filter/distinct", distinct, number, ["filter/firsts"])
        rows = {kind: self._rows_of("filter/distinct", kind) for kind in ("images", "sentences")}
        for kind, numbers in rows.items():
            if not sum(numbers):
                raise ValueError(
                    f"no {kind} are left: {self._losses(kind)}; loosen the filter of {kind}"
                )
            assert sum(numbers) == found.stats.counts[kind]
        blocks = MakeBlock(
            self._folder("filter/blocks"),
            self._folder("extract/pages"),
            distinct.folder,
            rows["images"],
            rows["sentences"],
            parts.images,
            parts.sentences,
        )
        num_images, num_sentences = blocks.num_image_blocks, blocks.num_sentence_blocks
        sizes = {"images per block": parts.images, "sentences per block": parts.sentences}
        self._step("filter/blocks", blocks, num_images + num_sentences, ["filter/distinct"], sizes)
        self.block_rows = {
            "images": _equal_parts(sum(rows["images"]), parts.images),
            "sentences": _equal_parts(sum(rows["sentences"]), parts.sentences),
        }

    def _rows_of(self, name: str, kind: str) -> list[int]:
        """What each task of a step counted as rows of a kind."""
        folder = self.out / name / "_done"
        markers = sorted(folder.glob("*.json"))
        said = [json.loads(marker.read_text(encoding="utf-8")) for marker in markers]
        return [marker["stats"]["counts"][f"{kind} rows"] for marker in said]

    def _losses(self, kind: str) -> str:
        lost: dict[str, int] = {}
        for finished in self._done.values():
            for reason, count in finished.stats.reasons.get(kind, {}).items():
                lost[reason] = lost.get(reason, 0) + count
        most = sorted(lost, key=lost.__getitem__, reverse=True)[:3]
        said = [f"{reason} {lost[reason]:,}" for reason in most]
        return f"most were dropped as {', '.join(said)}" if said else "the documents have none"

    def _embed(self) -> None:
        blocks = self._folder("filter/blocks")
        after = ["filter/blocks"]
        if isinstance(self.encoder, Learner):
            learn = LearnEncoder(
                self.encoder,
                VectorBlocks("", blocks, "images", self.block_rows["images"]),
                VectorBlocks("", blocks, "sentences", self.block_rows["sentences"]),
                self.settings,
            )
            chosen = {
                "encoder": self.encoder.settings,
                "learned_texts": self.settings.learned_texts,
                "learned_images": self.settings.learned_images,
            }
            self._step("filter/encoder", learn, 1, after, chosen)
            after = [*after, "filter/encoder"]
        self.encoder_identity = self.encoder.identity
        for kind, rows in self.block_rows.items():
            work = EmbedBlock(
                self._folder(f"filter/{kind}_vectors"),
                blocks,
                kind,
                self.encoder,
                self.settings.images.max_pixels,
            )
            encoder = {"encoder": self.encoder_identity}
            self._step(f"filter/{kind}_vectors", work, len(rows), after, encoder)

    def _deduplicate(self, kind: str, settings: DuplicateFilter) -> VectorBlocks:
        rows = self.block_rows[kind]
        vectors, blocks = f"filter/{kind}_vectors", self._folder("filter/blocks")
        source = VectorBlocks(self._folder(vectors), blocks, kind, rows)
        clustering = Clustering(rows_per_cluster=settings.rows_per_cluster, num_iterations=10)
        name = f"filter/{kind}_duplicates"
        assigned, sizes = self._clusters(name, source, sum(rows), clustering, [vectors])
        runs = ranges_of(sizes, self.settings.parts.clustered_rows)
        similar = SimilarPairs(
            self._folder(f"{name}/similar"), self._folder(assigned), len(rows), runs, settings
        )
        near = {"neighbours": settings.neighbours, "least": settings.least, "runs": runs}
        self._step(f"{name}/similar", similar, len(runs), [assigned], near)
        marks, num_looks, marked = blocks, 1, "filter/blocks"
        if kind == "sentences":
            signed = SignBlock(self._folder(f"{name}/signatures"), blocks)
            marked = f"{name}/signatures"
            self._step(marked, signed, len(rows), ["filter/blocks"])
            marks, num_looks = signed.folder, NUM_BANDS if settings.min_jaccard else 0
        looks = LookAlikes(self._folder(f"{name}/looks"), kind, marks, len(rows), settings)
        limit = settings.max_hamming if kind == "images" else settings.min_jaccard
        self._step(f"{name}/looks", looks, num_looks, [marked], {"limit": limit})
        before = self._num_before(kind)
        join = JoinDuplicates(
            self._folder(f"{name}/join"),
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
        self._step(f"{name}/join", join, 1, after, {f"duplicate_{kind}": chosen})
        return VectorBlocks(source.vectors, blocks, kind, rows, f"{join.folder}/kept.npy")

    def _num_before(self, kind: str) -> int:
        """Rows before copies were dropped."""
        return self._done["filter/hashes"].stats.counts[f"{kind} hashed"]

    def _clusters(
        self,
        name: str,
        source: VectorBlocks,
        number: int,
        clustering: Clustering,
        after: Sequence[str],
    ) -> tuple[str, np.ndarray]:
        """Learns centroids and assigns rows; returns the step that did and the sizes."""
        learn = LearnCentroids(self._folder(f"{name}/centroids"), source, number, clustering)
        centroids = f"{learn.folder}/centroids.npy"
        self._step(f"{name}/centroids", learn, 1, after, {"clusters": asdict(clustering)})
        assign = AssignBlock(self._folder(f"{name}/assigned"), source, centroids)
        blocks = len(source.rows)
        self._step(f"{name}/assigned", assign, blocks, [f"{name}/centroids"])
        number = self._done[f"{name}/centroids"].stats.counts["clusters"]
        return f"{name}/assigned", cluster_sizes(assign.folder, blocks, number)

    # Retrieval

    def _cluster(self) -> None:
        number = self._done["filter/sentences_duplicates/join"].stats.counts["sentences"]
        after = ["filter/sentences_vectors", "filter/sentences_duplicates/join"]
        self.text_clusters, self.text_sizes = self._clusters(
            "cluster", self.sentences, number, self.settings.text_clusters, after
        )
        path = self.out / "cluster" / "sizes.npy"
        if not path.exists() or not np.array_equal(read_array(path), self.text_sizes):
            write_array(self.text_sizes, path)

    def _retrieve(self) -> None:
        settings, images = self.settings.retrieval, self.images
        number = len(images.rows)
        probes = ProbeBlock(
            self._folder("retrieve/probes"),
            images,
            self._folder("cluster/centroids/centroids.npy"),
            self._folder("cluster/sizes.npy"),
            settings,
        )
        searched = {"num_texts": settings.num_texts, "num_probes": settings.num_probes}
        after = [self.text_clusters, "filter/images_vectors", "filter/images_duplicates/join"]
        self._step("retrieve/probes", probes, number, after, searched)
        runs = ranges_of(self.text_sizes, self.settings.parts.clustered_rows)
        search = SearchClusters(
            self._folder("retrieve/search"),
            probes.folder,
            images,
            self._folder(self.text_clusters),
            len(self.sentences.rows),
            runs,
            settings.num_texts,
        )
        after = ["retrieve/probes", self.text_clusters]
        self._step("retrieve/search", search, len(runs), after, {"runs": runs})
        texts = CollectTexts(
            self._folder("retrieve/texts"),
            images,
            self.sentences,
            search.folder,
            len(runs),
            settings.num_texts,
        )
        self._step("retrieve/texts", texts, number, ["retrieve/search"])
        counts = self._done["filter/sentences_duplicates/join"].stats.counts
        uses = CountUses(
            self._folder("retrieve/uses"),
            texts.folder,
            probes.folder,
            number,
            len(self.text_sizes),
            counts["sentences"],
        )
        self._step("retrieve/uses", uses, 1, ["retrieve/texts"])
        if settings.num_recall:
            self._recall(texts.folder)

    def _recall(self, texts: str) -> None:
        settings, blocks = self.settings.retrieval, len(self.sentences.rows)
        sample = SampleImages(self._folder("retrieve/sample"), self.images, settings.num_recall)
        chosen = {"num_recall": settings.num_recall}
        after = ["filter/images_vectors", "filter/images_duplicates/join"]
        self._step("retrieve/sample", sample, 1, after, chosen)
        exact = SearchExactly(
            self._folder("retrieve/exact"), sample.folder, self.sentences, settings.num_texts
        )
        after = ["retrieve/sample", self.text_clusters]
        self._step("retrieve/exact", exact, blocks, after, {"num_texts": settings.num_texts})
        measure = MeasureRecall(
            self._folder("retrieve/recall"),
            sample.folder,
            exact.folder,
            blocks,
            texts,
            self.images,
            settings.num_texts,
        )
        self._step("retrieve/recall", measure, 1, ["retrieve/exact", "retrieve/texts"])

    # Generation

    def _generate(self) -> None:
        if self.fusion is None:
            return
        settings, tags = self.settings.tags, None
        after = ["retrieve/texts", "filter/images_vectors"]
        encoder = {"encoder": self.encoder_identity}
        if settings.per_image:
            counts = self._done["filter/sentences_duplicates/join"].stats.counts
            mine = MineTags(
                self._folder("generate/tags"),
                self.sentences,
                counts["sentences"],
                self.encoder,
                settings,
            )
            tags = mine.folder
            chosen = {k: v for k, v in asdict(settings).items() if k != "per_image"}
            before = ["filter/sentences_duplicates/join"]
            self._step("generate/tags", mine, 1, before, encoder | {"tags": chosen})
            after = [*after, "generate/tags"]
        texts = WriteTexts(
            self._folder("generate/texts"),
            self.images,
            self._folder("retrieve/texts"),
            tags,
            settings,
            self.fusion,
            self.make_item,
            self.captioner,
            self.settings.images.max_pixels,
        )
        chosen = {
            "tags.per_image": settings.per_image,
            "fusion": self.fusion.identity,
            "captioner": None if self.captioner is None else self.captioner.identity,
        }
        self._step("generate/texts", texts, len(self.images.rows), after, chosen)

    # Balance

    def _balance(self) -> None:
        retrieved, images = self.images, self.images
        after = ["filter/images_vectors", "retrieve/texts"]
        num_images = self._done["filter/images_duplicates/join"].stats.counts["images"]
        scores = None
        if self.fusion is not None:
            score = ScoreBlock(
                self._folder("balance/scores"),
                images,
                self._folder("generate/texts"),
                self.encoder,
            )
            scores = score.folder
            before = ["generate/texts", "filter/images_vectors"]
            encoder = {"encoder": self.encoder_identity}
            self._step("balance/scores", score, len(images.rows), before, encoder)
            band = FilterBand(
                self._folder("balance/band"), images, score.folder, self.settings.band
            )
            chosen = {"band": asdict(self.settings.band)}
            finished = self._step("balance/band", band, 1, ["balance/scores"], chosen)
            num_images = finished.stats.counts["images"]
            images = replace(images, mask=f"{band.folder}/kept.npy")
            after = [*after, "balance/band"]
        assigned, sizes = self._clusters(
            "balance/clusters", images, num_images, self.settings.image_clusters, after
        )
        select = SelectBalanced(
            self._folder("balance/select"),
            images,
            self._folder(assigned),
            len(sizes),
            self.settings.balance,
        )
        chosen = {"balance": asdict(self.settings.balance)}
        self._step("balance/select", select, 1, [assigned], chosen)
        masks = {"pairs": "kept"}
        if self.settings.balance.with_random:
            masks["random"] = "random"
        for name, mask in masks.items():
            marked = replace(images, mask=f"{select.folder}/{mask}.npy")
            self._write_pairs(name, marked, retrieved, scores)
        self._write_held_out()

    def _write_pairs(
        self, name: str, images: VectorBlocks, retrieved: VectorBlocks, scores: str | None
    ) -> None:
        parts = self.settings.parts
        rows = [len(images.kept(block)) for block in range(len(images.rows))]
        pairs = WritePairs(
            self._folder(name),
            images,
            retrieved,
            self._folder("retrieve/texts"),
            None if scores is None else self._folder("generate/texts"),
            scores,
            rows,
            parts.pairs,
            self._metadata(),
            self._pair_images(),
        )
        files = -(-sum(rows) // parts.pairs)
        self._step(name, pairs, files, ["balance/select"], self._pair_settings())

    def _write_held_out(self) -> None:
        parts = self.settings.parts
        held_out = WriteHeldOut(
            self._folder("held_out"),
            self._folder("extract/pages"),
            self._folder("filter/held_out/images.parquet"),
            parts.pairs,
            self._metadata(),
            self._pair_images(),
        )
        number = self._done["filter/held_out"].stats.counts["held-out images"]
        files = -(-number // parts.pairs)
        self._step("held_out", held_out, files, ["filter/held_out"], self._pair_settings())

    def _pair_images(self) -> PairImages:
        return PairImages(self.settings.pair_side, self.settings.images.max_pixels)

    def _pair_settings(self) -> dict[str, Any]:
        return {
            "pairs per file": self.settings.parts.pairs,
            "pair_side": self.settings.pair_side,
            "metadata": self._metadata(),
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "num_real": self.settings.retrieval.num_texts,
            "synthetic": "" if self.fusion is None else self.fusion.label,
            "encoder": str(self.encoder_identity.get("encoder", "")),
        }


def _equal_parts(number: int, size: int) -> list[int]:
    """Sizes of parts that together are `number`, all but the last of `size`."""
    return [min(size, number - start) for start in range(0, number, size)]
