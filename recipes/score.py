"""`tenfold score`: the scores of a run again, from what was said, without any model.

Imports torch only when the command runs.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import note

if TYPE_CHECKING:
    from ..modules.visual_reasoning import Score

PLACES = ("predictions.jsonl", "predictions/manifest.jsonl")


def score(run: Path, report: bool = False) -> None:
    """Score what a run's models have said again, and show it as a page.

    `tenfold score runs/cvr_llm/quickstart/version_0 --report` reads predictions.jsonl, reads each
    answer again, writes scores.json, and prints scores with 95 % intervals and chance. No model is
    asked.

    Args:
        run: Run directory of a `tenfold test` or `tenfold predict` that asked for reasoning.
        report: Also write report.html: each question with its images, what was asked on the way,
            the answer and the verdict.

    Raises:
        ValueError: There are no such predictions; one line with the fix.
    """
    rows = _read(run)
    from ..modules.files import write_json
    from ..modules.visual_reasoning import ReasoningScores, score_row
    from ..modules.visual_reasoning.module import SCORES
    from ..modules.visual_reasoning.report import write_report

    try:
        rows = [score_row(row) for row in rows]
        metric = ReasoningScores()
        metric.update(rows)
        scores = metric.compute()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{run}: predictions that are no answers to questions about images ({error!r})"
        ) from error
    write_json(run / SCORES, {name: found._asdict() for name, found in scores.items()})
    print(table(scores))
    if report:
        note(f"wrote {write_report(rows, scores, run)}")


def table(scores: dict[str, "Score"]) -> str:
    """Returns scores as lines of text, in %; breakdowns are left out."""
    lines = [f"{'':<40} {'%':>6}  {'95 % interval':>15} {'chance':>7} {'n':>6}"]
    for name, found in scores.items():
        if "=" in name:
            continue
        interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        chance = "" if math.isnan(found.chance) else f"{100 * found.chance:.1f}"
        line = f"{name:<40} {100 * found.value:>6.1f}  {interval:>15} {chance:>7} {found.n:>6}"
        lines.append(line)
    return "\n".join(lines)


def _read(run: Path) -> list[dict[str, Any]]:
    paths = [run / place for place in PLACES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"there is no {paths[0]}: name the run directory of a `tenfold test`")
    rows = []
    # Not `splitlines`, which also splits at characters that a model may have said.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: no JSON: {error}") from error
    return rows
