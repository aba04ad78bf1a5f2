"""Generation: tags that are seen on images, and a synthetic text made of what is known."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from .embedding import ImageTextEncoder, Opened, VectorBlocks
from .extraction import part
from .extras import require
from .steps import Stats, Task
from .tables import hash64, read_table, write_table
from .vectors import batches, exact_top, read_array, to_unit, write_array

NOUNS = ("NN", "NNS")
SHORTEST_TAG = 3


class Fusion(Protocol):
    """What makes synthetic texts."""

    @property
    def label(self) -> str:
        """Who writes: stands beside each text."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a text, as plain JSON."""

    def fuse(self, items: Sequence[Any]) -> list[str]:
        """A text of each item, "" where there is none."""


class Captioner(Protocol):
    """What describes images."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a caption, as plain JSON."""

    def caption(self, ids: Sequence[str], images: Any) -> list[str]:
        """A caption of each image, "" where there is none."""


@dataclass(frozen=True)
class Tagging:
    """Tags of images, found without training: words of the corpus whose embedding is near.

    Attributes:
        num_tags: Nouns of the sentences that may be tags, the most frequent ones (RealSyn mines
            4,000).
        per_image: Tags of an image; 0: none.
        max_sentences: From how many sentences nouns are taken.
        prompt: What is embedded of a tag.
    """

    num_tags: int = 4000
    per_image: int = 5
    max_sentences: int = 200_000
    prompt: str = "{tag}"

    def __post_init__(self) -> None:
        if self.num_tags < 1 or self.per_image < 0 or self.max_sentences < 1:
            raise ValueError(
                "tags: num_tags and max_sentences must be 1 or more and per_image 0 or more, got "
                f"{self.num_tags}, {self.max_sentences} and {self.per_image}"
            )
        if "{tag}" not in self.prompt:
            raise ValueError(f"tags: prompt: there is no {{tag}} in {self.prompt!r}")


@dataclass
class MineTags(Task):
    """Finds the nouns of the corpus: `tags.parquet` and their embeddings, `tags.npy`.

    Attributes:
        folder: Where to write.
        sentences: All of them.
        num_sentences: How many stay.
        encoder: Embeds tags.
        settings: How many.
    """

    folder: str
    sentences: VectorBlocks
    num_sentences: int
    encoder: ImageTextEncoder
    settings: Tagging
    needs_model = True

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        share = min(1.0, self.settings.max_sentences / max(1, self.num_sentences))
        tag = require("textblob.en", "textblob").tag
        counts: Counter[str] = Counter()
        for block in range(len(self.sentences.rows)):
            table = self.sentences.table(block, ["id", "text"])
            for name, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
                if hash64(0, name) < share * 2.0**64:
                    words = {str(w).lower() for w, kind in tag(text) if kind in NOUNS}
                    counts.update(w for w in words if len(w) >= SHORTEST_TAG and w.isalpha())
        found = sorted(counts, key=lambda word: (-counts[word], word))[: self.settings.num_tags]
        if not found:
            raise ValueError("tags: the sentences have no nouns: set tags.per_image to 0")
        vectors = to_unit(
            self.encoder.encode_texts([self.settings.prompt.format(tag=word) for word in found])
        )
        # Tags that the encoder knows nothing about would be near to everything or to nothing.
        known = np.flatnonzero((vectors != 0).any(1))
        write_table(
            pa.table(
                {"tag": [found[k] for k in known], "count": [counts[found[k]] for k in known]}
            ),
            Path(self.folder) / "tags.parquet",
        )
        write_array(vectors[known], Path(self.folder) / "tags.npy")
        return Stats(counts={"tags": len(known)})


@dataclass
class WriteTexts(Task):
    """Makes the synthetic text of each image of a block: `synthetic-*`.

    Attributes:
        folder: Where to write.
        images: The images.
        texts: Folder of `CollectTexts`.
        tags: Folder of `MineTags`, or None.
        settings: Tags per image.
        fusion: Makes the texts.
        make_item: Builds what `fusion` takes, from id, sentence, caption and tags.
        captioner: Describes the images, or None.
        max_pixels: Limit of what is decoded.
    """

    folder: str
    images: VectorBlocks
    texts: str
    tags: str | None
    settings: Tagging
    fusion: Fusion
    make_item: Callable[[str, str, str, Sequence[str]], Any]
    captioner: Captioner | None
    max_pixels: int
    needs_model = True

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        table = read_table(part(self.texts, "texts", task), ["id", "texts"])
        ids = table["id"].to_pylist()
        sentences = [texts[0] for texts in table["texts"].to_pylist()]
        captions = [""] * len(ids)
        if self.captioner is not None:
            data = self.images.table(task, ["image"])["image"]
            captions = self.captioner.caption(ids, Opened(data, self.max_pixels))
        tags = self._tags(task, len(ids))
        parts = zip(ids, sentences, captions, tags, strict=True)
        made = self.fusion.fuse([self.make_item(*known) for known in parts])
        written = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "synthetic": pa.array(made, pa.string()),
                "caption": pa.array(captions, pa.string()),
                "tags": pa.array(tags, pa.list_(pa.string())),
            }
        )
        write_table(written, part(self.folder, "synthetic", task))
        shown = sorted(range(len(ids)), key=lambda k: hash64(0, ids[k]))[:12]
        examples = [
            {
                "id": ids[k],
                "reason": self.fusion.label,
                "text": made[k],
                "sentence": sentences[k],
                "caption": captions[k],
                "tags": ", ".join(tags[k]),
            }
            for k in sorted(shown)
        ]
        return Stats(
            counts={"images": len(ids), "synthetic texts": sum(map(bool, made))},
            reasons={"synthetic texts": {"no answer": sum(not text for text in made)}},
            examples={"synthetic": examples},
        )

    def _tags(self, task: int, number: int) -> list[list[str]]:
        if self.tags is None:
            return [[] for _ in range(number)]
        words = np.array(read_table(Path(self.tags) / "tags.parquet")["tag"].to_pylist(), object)
        vectors = read_array(Path(self.tags) / "tags.npy")
        images = self.images.read(task)
        places = [
            exact_top(images[rows], vectors, self.settings.per_image)[0]
            for rows in batches(len(images))
        ]
        return [[str(word) for word in words[row]] for block in places for row in block]
