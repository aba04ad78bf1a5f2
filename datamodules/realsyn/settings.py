"""All choices of the pipeline that are plain values."""

from dataclasses import asdict, dataclass, field

from .balance import BalanceSampling, SimilarityBand
from .clustering import Clustering
from .duplicates import DuplicateFilter
from .generation import Tagging
from .images import ImageFilter
from .retrieval import Retrieval
from .sentences import SentenceFilter


@dataclass(frozen=True)
class PartSizes:
    """How work is divided. None of it changes a result.

    Attributes:
        documents: Of a task that reads them.
        images: Of a block.
        sentences: Of a block.
        clustered_rows: Rows of the clusters of a task that searches them, at least one cluster.
        hashes: Rows of a part of the range of hashes.
        pairs: Of a file of the result.
    """

    documents: int = 64
    images: int = 1024
    sentences: int = 16384
    clustered_rows: int = 50_000
    hashes: int = 1_000_000
    pairs: int = 1024

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"parts: {name} must be 1 or more, got {value}")


@dataclass(frozen=True)
class Settings:
    """All choices of the pipeline that are plain values.

    Attributes:
        seed: Of held-out documents and of the sample that the sentence splitter is learned from.
        held_out: Share of the documents that is kept for evaluation, in [0, 1).
        strict: A broken document or image ends the run; otherwise it is counted and named.
        splitter_characters: From how much text the sentence splitter learns.
        images: Filter of images.
        sentences: Filter of sentences.
        duplicate_images: What counts as a duplicate image.
        duplicate_sentences: What counts as a duplicate sentence.
        text_clusters: Of the sentences, for retrieval.
        retrieval: How sentences are found.
        tags: Tags of images.
        band: Similarity of an image and its synthetic text.
        image_clusters: Of the images, for balance.
        balance: How many images of a cluster stay.
        pair_side: Shorter side in pixels of the pairs' images, where they are larger; null: they
            are written as they were found. Training decodes small ones many times faster.
        learned_texts: Texts that an encoder learns from, if it learns.
        learned_images: Images likewise.
        parts: How work is divided.
    """

    seed: int = 0
    held_out: float = 0.0
    strict: bool = False
    splitter_characters: int = 2_000_000
    images: ImageFilter = field(default_factory=ImageFilter)
    sentences: SentenceFilter = field(default_factory=SentenceFilter)
    duplicate_images: DuplicateFilter = field(default_factory=DuplicateFilter)
    duplicate_sentences: DuplicateFilter = field(
        default_factory=lambda: DuplicateFilter(target_removed=0.276)
    )
    text_clusters: Clustering = field(default_factory=Clustering)
    retrieval: Retrieval = field(default_factory=Retrieval)
    tags: Tagging = field(default_factory=Tagging)
    band: SimilarityBand = field(default_factory=SimilarityBand)
    image_clusters: Clustering = field(default_factory=lambda: Clustering(rows_per_cluster=168))
    balance: BalanceSampling = field(default_factory=BalanceSampling)
    pair_side: int | None = None
    learned_texts: int = 200_000
    learned_images: int = 20_000
    parts: PartSizes = field(default_factory=PartSizes)

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")
        if self.seed < 0 or min(self.splitter_characters, self.learned_texts) < 1:
            raise ValueError("seed must be 0 or more, splitter_characters and learned_texts 1")
        if self.pair_side is not None and self.pair_side < 1:
            raise ValueError(f"pair_side must be 1 or more, got {self.pair_side}")
