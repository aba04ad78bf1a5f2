"""The last works: pairs as training reads them, and images of held-out documents beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .blocks import image_bytes, locate
from .embedding import VectorBlocks
from .extraction import part
from .images import ImageFilter, shrunk_image
from .steps import Stats, Task
from .tables import canonical_json, hash64, read_table, take_rows, write_table

METADATA_KEY = b"tenfold.realsyn"
ROW_GROUP = 256
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("texts", pa.list_(pa.string())),
        ("document", pa.string()),
        ("source", pa.string()),
        ("alt", pa.string()),
        ("nearest", pa.string()),
        ("scores", pa.list_(pa.float32())),
        ("synthetic", pa.string()),
    ]
)
NUM_SHOWN = 12


def _with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({METADATA_KEY: canonical_json(metadata).encode()})


def read_metadata(path: Path) -> dict[str, Any]:
    """What is written about the pairs of a file: `num_real`, `synthetic`, `encoder`."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}")
    return dict(json.loads(found))


@dataclass(frozen=True)
class PairImages:
    """How the images of pairs are written.

    Attributes:
        side: Shorter side in pixels of images that are larger; None: as they were found. Training
            decodes each image at each step, and small ones many times faster.
        max_pixels: Largest image that is decoded.
    """

    side: int | None = None
    max_pixels: int = ImageFilter.max_pixels

    def __call__(self, images: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """Returns encoded images as they shall be written."""
        if self.side is None:
            return images
        side, limit = self.side, self.max_pixels
        return pa.array([shrunk_image(x, side, limit) for x in images.to_pylist()], pa.binary())


@dataclass
class WritePairs(Task):
    """Writes a file of pairs: each image with its real sentences and the synthetic text.

    Attributes:
        folder: Where to write `part-*`.
        images: The images that are left.
        retrieved: The images that texts were retrieved for.
        texts: Folder of `CollectTexts`.
        generated: Folder of `WriteTexts`, or None.
        scores: Folder of `ScoreBlock`, or None.
        rows: Images of each block that are left.
        rows_per_file: Pairs of a file.
        metadata: Written into each file.
        written: How images are written.
    """

    folder: str
    images: VectorBlocks
    retrieved: VectorBlocks
    texts: str
    generated: str | None
    scores: str | None
    rows: Sequence[int]
    rows_per_file: int
    metadata: Mapping[str, Any]
    written: PairImages = PairImages()

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        start = task * self.rows_per_file
        tables = [
            self._block(block).slice(first, last - first)
            for block, first, last in locate(self.rows, start, start + self.rows_per_file)
        ]
        table = pa.concat_tables(tables)
        path = part(self.folder, "part", task)
        write_table(_with_metadata(table, self.metadata), path, row_group_size=ROW_GROUP)
        ids = table["id"].to_pylist()
        shown = sorted(range(len(ids)), key=lambda k: hash64(2, ids[k]))[:NUM_SHOWN]
        examples = table.select(["id", "source", "texts", "scores", "synthetic"])
        examples = examples.append_column("reason", pa.array(["pair"] * len(table)))
        return Stats(
            counts={"pairs": len(table), "texts": sum(map(len, table["texts"].to_pylist()))},
            examples={"pairs": take_rows(examples, sorted(shown)).to_pylist()},
        )

    def _block(self, block: int) -> pa.Table:
        table = self.images.table(block)
        places = {row: k for k, row in enumerate(self.retrieved.kept(block).tolist())}
        mine = pa.array([places[row] for row in self.images.kept(block).tolist()], pa.int64())
        found = read_table(part(self.texts, "texts", block)).take(mine)
        texts, scores = found["texts"].to_pylist(), found["scores"].to_pylist()
        label = [""] * len(table)
        if self.generated is not None and self.scores is not None:
            import numpy as np

            made = read_table(part(self.generated, "synthetic", block)).take(mine)["synthetic"]
            values = np.load(part(self.scores, "scores", block, "npy"))[mine.to_numpy()]
            for k, text in enumerate(made.to_pylist()):
                texts[k] = [*texts[k], text]
                scores[k] = [*scores[k], float(values[k]) if text else 0.0]
                label[k] = str(self.metadata["synthetic"]) if text else ""
        else:
            texts = [[*real, ""] for real in texts]
            scores = [[*real, 0.0] for real in scores]
        return pa.table(
            {
                "id": table["id"],
                "image": self.written(table["image"]),
                "texts": pa.array(texts, pa.list_(pa.string())),
                **{name: table[name] for name in ("document", "source", "alt", "nearest")},
                "scores": pa.array(scores, pa.list_(pa.float32())),
                "synthetic": pa.array(label, pa.string()),
            },
            schema=PAIRS,
        )


@dataclass
class WriteHeldOut(Task):
    """Writes a file of the images of held-out documents, with their alt texts.

    Attributes:
        folder: Where to write `part-*`.
        pages: Folder of `ExtractPages`.
        held_out: File of `CollectHeldOut`.
        rows_per_file: Images of a file.
        metadata: Written into each file.
        written: How images are written.
    """

    folder: str
    pages: str
    held_out: str
    rows_per_file: int
    metadata: Mapping[str, Any]
    written: PairImages = PairImages()

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        table = read_table(Path(self.held_out))
        table = table.slice(task * self.rows_per_file, self.rows_per_file)
        alts = table["alt"].to_pylist()
        written = pa.table(
            {
                "id": table["id"],
                "image": self.written(image_bytes(self.pages, table)),
                "texts": pa.array([[alt] if alt else [] for alt in alts], pa.list_(pa.string())),
                **{name: table[name] for name in ("document", "source", "alt", "nearest")},
                "scores": pa.array([[] for _ in alts], pa.list_(pa.float32())),
                "synthetic": pa.array([""] * len(alts), pa.string()),
            },
            schema=PAIRS,
        )
        path = part(self.folder, "part", task)
        write_table(_with_metadata(written, self.metadata), path, row_group_size=ROW_GROUP)
        return Stats(counts={"held-out images": len(written)})
