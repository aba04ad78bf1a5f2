"""RealSyn's pipeline: documents per second by 1 and 2 processes, memory at 1x and 4x documents.

    python tests/benchmarks/realsyn_pipeline.py                       made pages
    python tests/benchmarks/realsyn_pipeline.py --root FOLDER         a folder of HTML

Speed: the extraction of the same documents by 1 and by 2 processes, in turns, from a cold start of
each process to the last shard. Made pages have as many sentences as those of a manual, and are as
many as such manuals have (`realsyn/pipeline_docs`: 77 sentences on each of 2,012). Memory: the
largest resident memory of a worker in each stage, for small pages once and four times as many, with
the same sizes of parts. Nothing is asserted about time.
"""

import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.realsyn import HtmlFolder, LocalExecutor, Pipeline, Settings
from tenfold.datamodules.realsyn.clustering import Clustering
from tenfold.datamodules.realsyn.settings import PartSizes

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from tiny_corpus import write_pages


class Peaks:
    """Follows the memory of worker processes, by the step that is under way."""

    def __init__(self) -> None:
        self.step, self.found, self.over = "", {}, False  # type: ignore[var-annotated]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.over:
            for process in me.children(recursive=True):
                try:
                    size = process.memory_info().rss
                except psutil.Error:
                    continue
                stage = self.step.split("/")[0]
                self.found[stage] = max(self.found.get(stage, 0), size)
            time.sleep(0.02)


def run(root: Path, out: Path, last: str, processes: int, peaks: Peaks | None = None) -> float:
    """Runs a pipeline; returns the seconds it took."""
    # Worker processes import this file anew, and need no torch to read pages.
    from tenfold.modules.encoders import CorpusEncoder
    from tenfold.modules.text_fusion import TemplateFusion
    from tenfold.recipes.realsyn_build import make_item

    settings = Settings(
        parts=PartSizes(documents=16, images=128, sentences=1024, clustered_rows=2000),
        text_clusters=Clustering(num_clusters=32, max_points=4096),
        image_clusters=Clustering(num_clusters=16, max_points=4096),
        learned_texts=4000,
        learned_images=500,
    )
    executor = LocalExecutor(processes)
    pipeline = Pipeline(
        out,
        [HtmlFolder(str(root), name="docs")],
        CorpusEncoder(str(out / "encoder"), dimensions=16, min_count=2, num_features=256),
        executor,
        settings,
        make_item=make_item,
        fusion=TemplateFusion(),
    )

    def progress(name: str, done: int, total: int) -> None:
        if peaks is not None:
            peaks.step = name

    pipeline.progress = progress
    start = time.perf_counter()
    try:
        pipeline.run(last)
    finally:
        executor.close()
    return time.perf_counter() - start


def benchmark(root: Path | None = None, pages: int = 1000, rounds: int = 3) -> None:
    """Prints ratios of speed, and peaks of memory.

    Args:
        root: A folder of HTML, for speed alone; None: made pages.
        pages: How many are made for memory; twice as many, and longer ones, for speed.
        rounds: Each number of processes is timed so often.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = root or write_pages(folder / "site", 2 * pages, num_pictures=26)
        number = len(list(site.rglob("*.html")))
        times: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(rounds):
            for processes in times:
                out = folder / f"speed-{processes}-{turn}"
                times[processes].append(run(site, out, "extract", processes))
                shutil.rmtree(out)
        one, two = (statistics.median(times[k]) for k in (1, 2))
        print(
            f"extraction: {number / one:.1f} documents/s with 1 process, {number / two:.1f} with "
            f"2: {one / two:.2f}x"
        )
        ratio("documents/s of extraction, 2 processes / 1", one / two, at_least=1.7)
        if root is not None:
            return
        peaks: dict[int, dict[str, int]] = {}
        for times_as_many in (1, 4):
            watch = Peaks()
            site = write_pages(folder / f"site-{times_as_many}", pages * times_as_many)
            run(site, folder / f"memory-{times_as_many}", "balance", 1, watch)
            watch.over = True
            peaks[times_as_many] = watch.found
        for stage, small in peaks[1].items():
            large = peaks[4].get(stage, 0)
            print(
                f"{stage or 'start':<10} {small / 1e6:6.0f} MB at 1x, {large / 1e6:6.0f} MB at 4x: "
                f"{large / small:.2f}x"
            )
            ratio(f"peak memory of {stage or 'start'}, 4x / 1x documents", large / small)


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
