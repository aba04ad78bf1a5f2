"""How much of an exact search the hierarchical one has found, on a sample of the images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...modules.files import write_json
from .embedding import VectorBlocks
from .extraction import part
from .retrieval import best_candidates
from .steps import Stats, Task
from .tables import hash64, read_table
from .vectors import exact_top, read_array, write_array


@dataclass
class SampleImages(Task):
    """Draws the images whose ids hash lowest: `rows.npy`, `vectors.npy`.

    Attributes:
        folder: Where to write.
        images: All of them.
        number: How many.
    """

    folder: str
    images: VectorBlocks
    number: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        hashed: list[tuple[int, int, int]] = []
        for block in range(len(self.images.rows)):
            ids = self.images.table(block, ["id"])["id"].to_pylist()
            here = [(hash64(1, name), block, place) for place, name in enumerate(ids)]
            hashed = sorted(hashed + here)[: self.number]
        rows, vectors = [], []
        for block in sorted({block for _, block, _ in hashed}):
            places = np.array(sorted(place for _, b, place in hashed if b == block))
            rows.append(self.images.kept(block)[places] + self.images.start(block))
            vectors.append(self.images.read(block)[places])
        write_array(np.concatenate(rows), Path(self.folder) / "rows.npy")
        write_array(np.concatenate(vectors), Path(self.folder) / "vectors.npy")
        return Stats(counts={"sampled images": len(hashed)})


@dataclass
class SearchExactly(Task):
    """Compares a block of sentences with all sampled images: `rows-*`, `scores-*`, (S, k).

    Attributes:
        folder: Where to write.
        sample: Folder of `SampleImages`.
        sentences: The sentences.
        num_texts: k.
    """

    folder: str
    sample: str
    sentences: VectorBlocks
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        queries = read_array(Path(self.sample) / "vectors.npy")
        rows = self.sentences.kept(task) + self.sentences.start(task)
        places, scores = exact_top(queries, self.sentences.read(task), self.num_texts)
        write_array(rows[places], part(self.folder, "rows", task, "npy"))
        write_array(scores, part(self.folder, "scores", task, "npy"))
        return Stats(counts={"scores": len(queries) * len(rows)})


@dataclass
class MeasureRecall(Task):
    """Compares what was retrieved with the exact result: `summary.json`.

    Attributes:
        folder: Where to write.
        sample: Folder of `SampleImages`.
        exact: Folder of `SearchExactly`.
        num_exact: Its number of tasks.
        texts: Folder of `CollectTexts`.
        images: All images.
        num_texts: k.
    """

    folder: str
    sample: str
    exact: str
    num_exact: int
    texts: str
    images: VectorBlocks
    num_texts: int

    def __call__(self, task: int) -> Stats:
        """See `Work`."""
        sampled = read_array(Path(self.sample) / "rows.npy")
        exact = [read_array(part(self.exact, "rows", t, "npy")) for t in range(self.num_exact)]
        scores = [read_array(part(self.exact, "scores", t, "npy")) for t in range(self.num_exact)]
        rows_SC, scores_SC = np.concatenate(exact, 1), np.concatenate(scores, 1)
        queries = np.repeat(np.arange(len(sampled)), rows_SC.shape[1])
        best = best_candidates(queries, rows_SC.ravel(), scores_SC.ravel(), self.num_texts)
        found: dict[int, tuple[list[int], list[float]]] = {}
        for block in range(len(self.images.rows)):
            start = self.images.start(block)
            kept = self.images.kept(block) + start
            places = np.flatnonzero(np.isin(kept, sampled))
            if len(places):
                table = read_table(part(self.texts, "texts", block), ["rows", "scores"])
                table = table.take(places)
                pairs = zip(table["rows"].to_pylist(), table["scores"].to_pylist(), strict=True)
                found |= dict(zip(kept[places].tolist(), pairs, strict=True))
        hits, total, gap = 0, 0, 0.0
        for number, row in enumerate(sampled.tolist()):
            mine = best[queries[best] == number]
            rows, values = found[row]
            hits += len(set(rows) & set(rows_SC.ravel()[mine].tolist()))
            total += len(mine)
            gap += float(scores_SC.ravel()[mine].sum()) - float(np.sum(values))
        summary = {
            "retrieval/recall_vs_exact": hits / max(1, total),
            "retrieval/cosine_gap": gap / max(1, total),
            "sampled images": len(sampled),
        }
        write_json(Path(self.folder) / "summary.json", summary)
        return Stats(counts={"sampled images": len(sampled)})
