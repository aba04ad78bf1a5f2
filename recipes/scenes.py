"""`tenfold scenes`: made scenes as files in the formats of the benchmarks.

Imports numpy only when the command runs.
"""

from pathlib import Path
from typing import Literal

from .errors import note


def scenes(
    format: Literal["pope", "mucr", "winoground"] = "pope",  # noqa: A002 - the word for it
    out: Path | None = None,
    number: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write scenes with questions in the format of a benchmark.

    `tenfold scenes --format pope --out data/tinypope` writes images, POPE's three question files
    and four of controls: digits on tiny coloured tiles. `mucr`: pairs of cause and effect in groups
    of four. `winoground`: pairs of images and captions in which two shapes change places. What is
    written depends on format, number and seed alone. Scores on it are no scores of the benchmark.

    Args:
        format: Whose.
        out: Folder to write.
        number: How many images (pope, 500), groups (mucr, 100) or examples (winoground, 400).
        seed: 0 or more.
        overwrite: Write into a folder that is not empty.

    Raises:
        ValueError: The folder is missing or not empty, or a number is out of range.
    """
    if out is None:
        raise ValueError("scenes needs a folder to write: --out DIR")
    if number is not None and number < 1:
        raise ValueError(f"--number must be 1 or more, got {number}")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty: choose another folder, or --overwrite")

    from ..datamodules.scenes import CauseEffectScenes, ObjectScenes
    from ..datamodules.scenes.files import write_mucr, write_pope, write_winoground

    if format == "pope":
        written = write_pope(ObjectScenes(seed=seed), out, number or 500)
    elif format == "mucr":
        written = [write_mucr(CauseEffectScenes(seed=seed, canvas=96), out, number or 100)]
    else:
        written = [write_winoground(ObjectScenes.caid(seed=seed), out, number or 400)]
    for path in written:
        note(f"wrote {path}")
