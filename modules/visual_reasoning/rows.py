"""Answered questions as plain rows: what is on disk, scored again, and shown.

A row is JSON: `id` (with the set, unique), `set`, `task`, `question`, `options` (as shown), `names`
(of the options in the data), `permutation`, `images` (names), `pictures` (files in the run's
folder), `answers` (places of the right ones), `references`, `group`, `categories`, `counts`,
`metric`; `steps`, what was asked on the way, each with `step`, `image` (place or None), `prompt`
and `text`; `raw`, the final answer's text, `verdict_raw`, a judge's of a free answer; and what is
read from these two: `parsed` (places), `status`, `warnings`, `verdict`, `value`, `chance`. `error`
says why there is no answer. `calls`, `tokens`, `seconds` and `model` are what it took.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.stats import hypergeom

from ..files import atomic_write
from .parsing import Parsed, read_choice, read_choices, read_label
from .question import Question

Row = dict[str, Any]
PICTURES = "pictures"  # folder of the run
PICTURE_SIDE = 256
VERDICTS = ("correct", "incorrect")


def row_of(
    question: Question,
    raw: str,
    verdict_raw: str = "",
    steps: Sequence[dict[str, Any]] = (),
    pictures: Sequence[str | None] = (),
    error: str = "",
    calls: int = 1,
    tokens: int = 0,
    seconds: float = 0.0,
    model: str = "",
    **more: Any,
) -> Row:
    """Makes the row of an answered question, with its score.

    Args:
        question: As it was asked.
        raw: The final answer's text.
        verdict_raw: The judge's text about it.
        steps: What was asked on the way.
        pictures: Of each image the file that `save_picture` wrote.
        error: Why there is no answer.
        calls: How many requests it took.
        tokens: That were read and written.
        seconds: From requests to answers.
        model: As the server reports it.
        **more: Whatever else a method keeps.
    """
    row = {
        "id": f"{question.set}/{question.id}",
        "set": question.set,
        "task": question.task,
        "question": question.text,
        "options": question.shown_options,
        "names": list(question.options),
        "permutation": list(question.permutation),
        "images": list(question.images),
        "pictures": list(pictures),
        "answers": list(question.answers),
        "references": list(question.references),
        "group": question.group,
        "categories": dict(question.categories),
        "counts": [asdict(count) for count in question.counts],
        "metric": question.metric,
        "steps": list(steps),
        "raw": raw,
        "verdict_raw": verdict_raw,
        "error": error,
        "calls": calls,
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "model": model,
        **more,
    }
    return score_row(row)


def score_row(row: Row) -> Row:
    """Returns the row with its texts read (again) and scored, without any model.

    Raises:
        KeyError: It is no row.
    """
    options, answers = row["options"], row["answers"]
    verdict = ""
    if row["error"]:
        parsed = Parsed(status="error")
    elif options and row["metric"] == "jaccard":
        parsed = read_choices(row["raw"], options, len(answers))
    elif options:
        parsed = read_choice(row["raw"], options)
    else:
        verdict = read_label(row["verdict_raw"], VERDICTS) or ""
        parsed = Parsed(status="ok" if verdict else "failed")
    if not options:
        value = float(verdict == "correct")
    else:
        value = jaccard(parsed.choices, answers)
        value = value if row["metric"] == "jaccard" else float(value == 1.0)
    return {
        **row,
        "parsed": list(parsed.choices),
        "status": parsed.status,
        "warnings": list(parsed.warnings),
        "verdict": verdict,
        "value": value,
        "chance": chance_of(len(options), len(answers)),
    }


def jaccard(chosen: Sequence[int], right: Sequence[int]) -> float:
    """Shared elements of two sets as a share of all, in [0, 1]."""
    both = set(chosen) | set(right)
    return len(set(chosen) & set(right)) / len(both) if both else 0.0


def chance_of(num_options: int, num_answers: int) -> float | None:
    """What choosing by chance is worth: the mean overlap of `num_answers` of `num_options`.

    For one right option that is one in `num_options`; for several not their share, but the sum
    over how many of them are hit (WinoGAViL's metric). None for free answers.
    """
    if not num_options:
        return None
    if num_answers == 1:
        return 1 / num_options
    hits = hypergeom(num_options, num_answers, num_answers)
    whole = range(num_answers + 1)
    return math.fsum(float(hits.pmf(hit)) * hit / (2 * num_answers - hit) for hit in whole)


def save_picture(picture: Image.Image, run_dir: Path) -> str:
    """Writes an image small into the run's folder; returns the file's name there.

    Named by its pixels, so that each is there once.
    """
    small = picture.convert("RGB")
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    digest = hashlib.sha256(repr(small.size).encode() + small.tobytes()).hexdigest()[:20]
    name = f"{PICTURES}/{digest}.png"
    if not (run_dir / name).exists():
        with atomic_write(run_dir / name) as file:
            small.save(file, format="png")
    return name
