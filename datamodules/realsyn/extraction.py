"""Extraction: documents to tables of images, of their bytes, of paragraphs and of sentences."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...modules.files import atomic_write
from .documents import BrokenDocument, Document, DocumentReader, Picture
from .images import ImageFilter, decode_image, perceptual_hash
from .sentences import SentenceSplitter, learn_splitter, split_paragraphs
from .steps import Stats, Task
from .tables import hash64, read_table, write_table

IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("document", pa.string()),
        ("position", pa.int32()),
        ("source", pa.string()),
        ("alt", pa.string()),
        ("nearest", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.binary(32)),
        ("phash", pa.uint64()),
        ("problem", pa.string()),
        ("held_out", pa.bool_()),
    ]
)
PARAGRAPHS = pa.schema(
    [
        ("id", pa.string()),
        ("document", pa.string()),
        ("position", pa.int32()),
        ("text", pa.string()),
        ("held_out", pa.bool_()),
    ]
)
BYTES = pa.schema([("sha256", pa.binary(32)), ("image", pa.binary())])
NEAREST_CHARACTERS = 500
NEAREST_WORDS = 3
# Of a shard of documents in memory at once: images beyond it are written as more row groups.
NUM_PROBLEMS = 20


def part(folder: str | Path, kind: str, task: int, suffix: str = "parquet") -> Path:
    """The file of a task."""
    return Path(folder) / f"{kind}-{task:05d}.{suffix}"


def is_held_out(document: str, share: float, seed: int) -> bool:
    """Whether a document is kept for evaluation: by its id, not by its place."""
    return hash64(seed, document) < share * 2.0**64


@dataclass
class ExtractPages(Task):
    """Reads a shard of documents.

    Writes `images-*` (a row per reference, whatever its image is), `bytes-*` (each image that can
    be decoded once per shard) and `paragraphs-*`.

    Attributes:
        folder: Where to write.
        units: (number of the reader, unit) of each task.
        readers: Read the documents.
        images: Limits of what is read and decoded.
        held_out: Share of the documents that is kept for evaluation.
        seed: Of that choice.
        strict: A broken document or image is an error.
    """

    folder: str
    units: Sequence[tuple[int, Any]]
    readers: Sequence[DocumentReader]
    images: ImageFilter
    held_out: float
    seed: int
    strict: bool

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        stats = Stats()
        shard = _Shard(self.images)
        reader, unit = self.units[task]
        problems: list[str] = []
        for document in self.readers[reader].read(unit):
            if isinstance(document, BrokenDocument):
                problems.append(f"{document.id}: {document.reason}")
                stats.counts["broken documents"] = stats.counts.get("broken documents", 0) + 1
                continue
            is_out = is_held_out(document.id, self.held_out, self.seed)
            problems += shard.add(document, is_out)
            for name in ["documents", *(["documents held out"] if is_out else [])]:
                stats.counts[name] = stats.counts.get(name, 0) + 1
        if problems and self.strict:
            raise ValueError(f"documents (strict): {problems[0]}")
        stats.problems = problems[:NUM_PROBLEMS]
        images, data, paragraphs = shard.tables()
        write_table(data, part(self.folder, "bytes", task), row_group_size=64)
        write_table(images, part(self.folder, "images", task))
        write_table(paragraphs, part(self.folder, "paragraphs", task))
        stats.counts |= {
            "rows": len(images),
            "image references": len(images),
            "image references held out": int(pc.sum(images["held_out"]).as_py() or 0),
            "paragraphs": len(paragraphs),
            "characters": int(pc.sum(pc.utf8_length(paragraphs["text"])).as_py() or 0),
        }
        return stats


class _Shard:
    """Rows of the documents of a task."""

    def __init__(self, settings: ImageFilter) -> None:
        self.settings = settings
        self.images: list[dict[str, Any]] = []
        self.paragraphs: list[dict[str, Any]] = []
        self.data: dict[bytes, bytes] = {}
        # Pages of a folder show the same files again and again.
        self._measured: dict[str, dict[str, Any]] = {}

    def add(self, document: Document, held_out: bool) -> list[str]:
        """Adds a document; returns a line for each image that cannot be used."""
        problems = []
        for position, item in enumerate(document.items):
            common = {"document": document.id, "position": position, "held_out": held_out}
            if isinstance(item, str):
                identity = f"{document.id}#{position:05d}"
                self.paragraphs.append({"id": identity, "text": item, **common})
                continue
            identity = f"{document.id}#i{position:05d}"
            measured = self._measure(item)
            if measured["problem"]:
                problems.append(f"{identity} ({item.source}): {measured['problem']}")
            nearest = nearest_paragraph(document.items, position)
            self.images.append(
                {
                    "id": identity,
                    "source": item.source,
                    "alt": item.alt,
                    "nearest": nearest,
                    **measured,
                    **common,
                }
            )
        return problems

    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Images, bytes, paragraphs."""
        data = [{"sha256": digest, "image": image} for digest, image in self.data.items()]
        return (
            pa.Table.from_pylist(self.images, IMAGES),
            pa.Table.from_pylist(data, BYTES),
            pa.Table.from_pylist(self.paragraphs, PARAGRAPHS),
        )

    def _measure(self, picture: Picture) -> dict[str, Any]:
        key = str(picture.path) if picture.path is not None else ""
        if key in self._measured:
            return self._measured[key]
        measured: dict[str, Any] = {"width": 0, "height": 0, "phash": 0, "sha256": None}
        measured["problem"] = ""
        try:
            data = picture.read(self.settings.max_bytes)
            image = decode_image(data, self.settings.max_pixels)
        except ValueError as error:
            measured["problem"] = str(error)
        else:
            digest = hashlib.sha256(data).digest()
            measured |= {"width": image.width, "height": image.height, "sha256": digest}
            measured["phash"] = perceptual_hash(image)
            self.data.setdefault(digest, data)
        if key:
            self._measured[key] = measured
        return measured


def nearest_paragraph(items: Sequence[str | Picture], position: int) -> str:
    """The paragraph of three words or more that is nearest to an image, "" if there is none.

    Of two at the same distance the longer one.
    """
    for distance in range(1, len(items)):
        places = (position - distance, position + distance)
        around = [items[place] for place in places if 0 <= place < len(items)]
        texts = [item for item in around if isinstance(item, str)]
        texts = [text for text in texts if len(text.split()) >= NEAREST_WORDS]
        if texts:
            return max(texts, key=len)[:NEAREST_CHARACTERS]
    return ""


@dataclass
class LearnSplitter(Task):
    """Learns how the corpus ends its sentences, from as many of its paragraphs as are needed.

    Attributes:
        folder: Where to write `splitter.json`.
        pages: Folder of `ExtractPages`.
        num_shards: Its number of tasks.
        share: Of the paragraphs, chosen by their ids.
        seed: Of that choice.
    """

    folder: str
    pages: str
    num_shards: int
    share: float
    seed: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        learned = learn_splitter(
            text
            for shard in range(self.num_shards)
            for name, text in _rows(part(self.pages, "paragraphs", shard), "id", "text")
            if hash64(self.seed, name) < self.share * 2.0**64
        )
        with atomic_write(Path(self.folder) / "splitter.json", "w") as file:
            file.write(learned)
        return Stats()


def _rows(path: Path, *columns: str) -> Any:
    table = read_table(path, columns)
    return zip(*(table[column].to_pylist() for column in columns), strict=True)


@dataclass
class SplitSentences(Task):
    """Cuts the paragraphs of a shard into sentences; those of held-out documents are left out.

    Attributes:
        folder: Where to write `sentences-*`.
        pages: Folder of `ExtractPages`.
        splitter: File of `LearnSplitter`.
    """

    folder: str
    pages: str
    splitter: str

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        splitter = SentenceSplitter(Path(self.splitter).read_text(encoding="utf-8"))
        paragraphs = read_table(part(self.pages, "paragraphs", task))
        paragraphs = paragraphs.filter(pc.invert(paragraphs["held_out"]))
        sentences = split_paragraphs(paragraphs.drop_columns("held_out"), splitter)
        write_table(sentences, part(self.folder, "sentences", task))
        return Stats(counts={"rows": len(sentences), "sentences": len(sentences)})


def as_arrow(values: Any) -> pa.Array:
    """A numpy array of numbers as an Arrow array."""
    return pa.array(np.ascontiguousarray(values))
