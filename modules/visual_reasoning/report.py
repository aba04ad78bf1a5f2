"""A run as one page: every question with its images, what was asked on the way, and the answer."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..files import atomic_write
from .rows import Row
from .scores import Score

REPORT = "report.html"
DATA = "/*DATA*/null"  # what the page has in the place of its data
SHOWN = (
    *("id", "set", "question", "options", "names", "images", "pictures", "answers", "references"),
    *(
        "categories",
        "steps",
        "raw",
        "verdict_raw",
        "parsed",
        "status",
        "warnings",
        "value",
        "error",
    ),
    *("examples", "calls", "tokens", "seconds", "model"),
)


def write_report(rows: Sequence[Row], scores: Mapping[str, Score], run_dir: Path) -> Path:
    """Writes `report.html` into a run; it needs no network and no server.

    Pictures stay files of the run: move the folder, not the page alone.

    Args:
        rows: See `rows`.
        scores: Of these rows.
        run_dir: Where the rows' pictures are.

    Returns:
        The page.
    """
    data = {
        "title": run_dir.resolve().name,
        "rows": [{name: row[name] for name in SHOWN if name in row} for row in rows],
        "scores": [{"name": name, **_plain(score)} for name, score in scores.items()],
    }
    page = resources.files(__package__).joinpath(REPORT).read_text(encoding="utf-8")
    # What models say must not end the script that it stands in.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    with atomic_write(run_dir / REPORT, "w") as file:
        file.write(page.replace(DATA, text))
    return run_dir / REPORT


def _plain(score: Score) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in score._asdict().items()
    }
