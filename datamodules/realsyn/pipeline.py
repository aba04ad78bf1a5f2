"""RealSyn's pipeline: which steps there are, what each reads, and in which order they run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...modules.files import write_json
from .balance import FilterBand, ScoreBlock, SelectBalanced
from .documents import DocumentReader
from .embedding import ImageTextEncoder, VectorBlocks, cluster_rows
from .executors import Executor
from .extraction import ExtractPages, LearnSplitter, SplitSentences
from .filter_stage import FilterStage
from .filtering import SentenceHook, TextScorer
from .generation import Captioner, Fusion, MineTags, WriteTexts
from .pairs import PairImages, WriteHeldOut, WritePairs
from .recall import MeasureRecall, SampleImages, SearchExactly
from .searching import CollectTexts, CountUses, ProbeBlock, SearchClusters
from .settings import Settings
from .steps import Finished, Progress, Steps
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
        self.out.mkdir(parents=True, exist_ok=True)
        self.steps = Steps(self.out, self.executor, self.overwrite, self.progress)
        for name in STAGES[: STAGES.index(last) + 1]:
            stages[name]()
        done = self.steps.done
        stats = {name: {"seconds": f.seconds, **vars(f.stats)} for name, f in done.items()}
        write_json(self.out / "stats.json", stats)
        return done

    # Extraction

    def _extract(self) -> None:
        settings, parts = self.settings, self.settings.parts
        units = [
            (number, unit)
            for number, reader in enumerate(self.readers)
            for unit in reader.units(parts.documents)
        ]
        work = ExtractPages(
            self.steps.folder("extract/pages"),
            units,
            self.readers,
            settings.images,
            settings.held_out,
            settings.seed,
            settings.strict,
        )
        images = asdict(settings.images)
        pages = self.steps.run(
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
            self.steps.folder("extract/splitter"),
            work.folder,
            self.num_shards,
            min(1.0, share),
            settings.seed,
        )
        characters = {"splitter_characters": settings.splitter_characters}
        self.steps.run("extract/splitter", splitter, 1, ["extract/pages"], characters)
        sentences = SplitSentences(
            self.steps.folder("extract/sentences"), work.folder, f"{splitter.folder}/splitter.json"
        )
        after = ["extract/pages", "extract/splitter"]
        self.steps.run("extract/sentences", sentences, self.num_shards, after)

    # Filtering

    def _filter(self) -> None:
        stage = FilterStage(
            self.steps, self.settings, self.encoder, self.num_shards, self.scorer, self.hooks
        )
        self.images, self.sentences, self.encoder_identity = stage.run()

    # Retrieval

    def _cluster(self) -> None:
        number = self.steps.counts("filter/sentences_duplicates/join")["sentences"]
        after = ["filter/sentences_vectors", "filter/sentences_duplicates/join"]
        self.text_clusters, self.text_sizes = cluster_rows(
            self.steps, "cluster", self.sentences, number, self.settings.text_clusters, after
        )
        path = self.out / "cluster" / "sizes.npy"
        if not path.exists() or not np.array_equal(read_array(path), self.text_sizes):
            write_array(self.text_sizes, path)

    def _retrieve(self) -> None:
        settings, images = self.settings.retrieval, self.images
        number = len(images.rows)
        probes = ProbeBlock(
            self.steps.folder("retrieve/probes"),
            images,
            self.steps.folder("cluster/centroids/centroids.npy"),
            self.steps.folder("cluster/sizes.npy"),
            settings,
        )
        searched = {"num_texts": settings.num_texts, "num_probes": settings.num_probes}
        after = [self.text_clusters, "filter/images_vectors", "filter/images_duplicates/join"]
        self.steps.run("retrieve/probes", probes, number, after, searched)
        runs = ranges_of(self.text_sizes, self.settings.parts.clustered_rows)
        search = SearchClusters(
            self.steps.folder("retrieve/search"),
            probes.folder,
            images,
            self.steps.folder(self.text_clusters),
            len(self.sentences.rows),
            runs,
            settings.num_texts,
        )
        after = ["retrieve/probes", self.text_clusters]
        self.steps.run("retrieve/search", search, len(runs), after, {"runs": runs})
        texts = CollectTexts(
            self.steps.folder("retrieve/texts"),
            images,
            self.sentences,
            search.folder,
            len(runs),
            settings.num_texts,
        )
        self.steps.run("retrieve/texts", texts, number, ["retrieve/search"])
        counts = self.steps.counts("filter/sentences_duplicates/join")
        uses = CountUses(
            self.steps.folder("retrieve/uses"),
            texts.folder,
            probes.folder,
            number,
            len(self.text_sizes),
            counts["sentences"],
        )
        self.steps.run("retrieve/uses", uses, 1, ["retrieve/texts"])
        if settings.num_recall:
            self._recall(texts.folder)

    def _recall(self, texts: str) -> None:
        settings, blocks = self.settings.retrieval, len(self.sentences.rows)
        sample = SampleImages(
            self.steps.folder("retrieve/sample"), self.images, settings.num_recall
        )
        chosen = {"num_recall": settings.num_recall}
        after = ["filter/images_vectors", "filter/images_duplicates/join"]
        self.steps.run("retrieve/sample", sample, 1, after, chosen)
        exact = SearchExactly(
            self.steps.folder("retrieve/exact"), sample.folder, self.sentences, settings.num_texts
        )
        after = ["retrieve/sample", self.text_clusters]
        self.steps.run("retrieve/exact", exact, blocks, after, {"num_texts": settings.num_texts})
        measure = MeasureRecall(
            self.steps.folder("retrieve/recall"),
            sample.folder,
            exact.folder,
            blocks,
            texts,
            self.images,
            settings.num_texts,
        )
        self.steps.run("retrieve/recall", measure, 1, ["retrieve/exact", "retrieve/texts"])

    # Generation

    def _generate(self) -> None:
        if self.fusion is None:
            return
        settings, tags = self.settings.tags, None
        after = ["retrieve/texts", "filter/images_vectors"]
        encoder = {"encoder": self.encoder_identity}
        if settings.per_image:
            counts = self.steps.counts("filter/sentences_duplicates/join")
            mine = MineTags(
                self.steps.folder("generate/tags"),
                self.sentences,
                counts["sentences"],
                self.encoder,
                settings,
            )
            tags = mine.folder
            chosen = {k: v for k, v in asdict(settings).items() if k != "per_image"}
            before = ["filter/sentences_duplicates/join"]
            self.steps.run("generate/tags", mine, 1, before, encoder | {"tags": chosen})
            after = [*after, "generate/tags"]
        texts = WriteTexts(
            self.steps.folder("generate/texts"),
            self.images,
            self.steps.folder("retrieve/texts"),
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
        self.steps.run("generate/texts", texts, len(self.images.rows), after, chosen)

    # Balance

    def _balance(self) -> None:
        retrieved, images = self.images, self.images
        after = ["filter/images_vectors", "retrieve/texts"]
        num_images = self.steps.counts("filter/images_duplicates/join")["images"]
        scores = None
        if self.fusion is not None:
            score = ScoreBlock(
                self.steps.folder("balance/scores"),
                images,
                self.steps.folder("generate/texts"),
                self.encoder,
            )
            scores = score.folder
            before = ["generate/texts", "filter/images_vectors"]
            encoder = {"encoder": self.encoder_identity}
            self.steps.run("balance/scores", score, len(images.rows), before, encoder)
            band = FilterBand(
                self.steps.folder("balance/band"), images, score.folder, self.settings.band
            )
            chosen = {"band": asdict(self.settings.band)}
            finished = self.steps.run("balance/band", band, 1, ["balance/scores"], chosen)
            num_images = finished.stats.counts["images"]
            images = replace(images, mask=f"{band.folder}/kept.npy")
            after = [*after, "balance/band"]
        assigned, sizes = cluster_rows(
            self.steps, "balance/clusters", images, num_images, self.settings.image_clusters, after
        )
        select = SelectBalanced(
            self.steps.folder("balance/select"),
            images,
            self.steps.folder(assigned),
            len(sizes),
            self.settings.balance,
        )
        chosen = {"balance": asdict(self.settings.balance)}
        self.steps.run("balance/select", select, 1, [assigned], chosen)
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
            self.steps.folder(name),
            images,
            retrieved,
            self.steps.folder("retrieve/texts"),
            None if scores is None else self.steps.folder("generate/texts"),
            scores,
            rows,
            parts.pairs,
            self._metadata(),
            self._pair_images(),
        )
        files = -(-sum(rows) // parts.pairs)
        self.steps.run(name, pairs, files, ["balance/select"], self._pair_settings())

    def _write_held_out(self) -> None:
        parts = self.settings.parts
        held_out = WriteHeldOut(
            self.steps.folder("held_out"),
            self.steps.folder("extract/pages"),
            self.steps.folder("filter/held_out/images.parquet"),
            parts.pairs,
            self._metadata(),
            self._pair_images(),
        )
        number = self.steps.counts("filter/held_out")["held-out images"]
        files = -(-number // parts.pairs)
        self.steps.run("held_out", held_out, files, ["filter/held_out"], self._pair_settings())

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
