"""`tenfold corrupt`: the test sets of ModelNet40-C and PointCloud-C, made from any clean split.

Imports numpy only when the command runs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..modules.corruption_names import NEEDS_MESH, SEVERITIES
from .errors import note, num_cores

WORDS = ("all", "mesh_free", "pointcloud_c")


def corrupt(
    input: str = "furniture",  # noqa: A002
    out: Path | None = None,
    corruptions: list[str] | None = None,
    severities: list[int] | None = None,
    num_points: int = 1024,
    split: Literal["train", "test"] = "test",
    seed: int = 2021,
    jobs: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write corrupted copies of a test set, as ModelNet40-C stores them.

    `tenfold corrupt --input data/modelnet40 --out data/modelnet40_c` writes
    data_<corruption>_<severity>.npy, label.npy and a manifest. Each cloud depends on seed,
    corruption, severity and its number alone: not on --jobs, and not on what else is made. The
    same command goes on where it was stopped. Clouds made here are comparable with the published
    files, not equal to them: call such results self-generated.

    Args:
        input: Clean shapes: a folder of meshes, ModelNet40 as HDF5 or OFF, an .npz with x and y, or
            `furniture`, the set that is part of this package.
        out: Folder to write.
        corruptions: Names, `all` (the 15 of ModelNet40-C, the default), `mesh_free` (13 of them)
            or `pointcloud_c` (the 7 of PointCloud-C; levels 1 to 5 are its 0 to 4).
        severities: Of 1 to 5; default: all.
        num_points: Points of each cloud that are corrupted, at least 64.
        split: Which shapes.
        seed: Seed of the random numbers, 0 or more.
        jobs: Processes; default: one for each core.
        overwrite: Replace what an earlier run with other settings wrote.

    Raises:
        ValueError: The shapes cannot be read or used, or the folder holds other files; one line
            with the fix.
    """
    if out is None:
        raise ValueError("corrupt needs a folder to write: --out DIR")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    levels = list(dict.fromkeys(SEVERITIES if severities is None else severities))
    if not levels or not set(levels) <= set(SEVERITIES):
        raise ValueError(f"--severities must be of 1, 2, 3, 4, 5, got {levels}")
    asked = ["all"] if corruptions is None else corruptions

    from ..datamodules.corruptions import resolve_corruptions
    from ..datamodules.corruptions.files import write_suite
    from ..datamodules.point_clouds.readers import load_split

    names = resolve_corruptions(asked)
    workers = jobs or num_cores()
    # The rule for growing density draws from twice the points that it returns.
    shapes = load_split(input, split, num_points=2 * num_points, num_workers=workers)
    left_out: dict[str, str] = {}
    if shapes.meshes is None:
        left_out = {name: "requires meshes" for name in names if name in NEEDS_MESH}
        for name in left_out:
            if name in asked:
                raise ValueError(f"{name} requires meshes, and {input} has points only")
            note(f"{name} requires meshes, and {input} has points only: left out")
    cells = [(name, level) for name in names if name not in left_out for level in levels]
    for line in shapes.skipped:
        note(f"skipped: {line}")
    try:
        with _progress(len(cells) * len(shapes)) as (say, advance):
            written = write_suite(
                shapes,
                out,
                cells,
                source=f"{input} ({split})",
                seed=seed,
                num_points=num_points,
                jobs=workers,
                overwrite=overwrite,
                left_out=left_out,
                say=say,
                advance=advance,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on in {out}") from None
    rate = f" ({written.num_clouds / written.seconds:,.0f}/s)" if written.num_clouds else ""
    print(
        f"{out}: {len(written.made)} files written, {len(written.kept)} were there; "
        f"{written.num_clouds:,} clouds in {written.seconds:.1f} s{rate}"
    )


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Gives what prints a line for each file, and what moves a bar, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr), lambda num_clouds: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("corrupt", total=total)
        yield progress.console.print, lambda num_clouds: progress.advance(task, num_clouds)
