"""`tenfold fit-law`: scaling laws of quantised training, fitted to runs and used to predict.

`fit_law_report` writes the tables, `fit_law_figures` draws. Imports no torch, and numpy, scipy and
matplotlib only when the command runs.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..modules.run_table import Run
    from ..modules.scaling_law import Array, ScalingLaw

RANGE_EXAMPLE = "7e9, a list 1e9,7e9 or a range 1e8:1e10:5 (5 values, evenly on a log scale)"


def fit_law(
    runs: list[str] | None = None,
    metric: str = "val/loss",
    holdout: str | None = None,
    residual: Literal["log", "raw"] = "log",
    untied: bool = False,
    bootstrap: int = 1000,
    preset: str | None = None,
    predict: bool = False,
    num_parameters: str | None = None,
    num_tokens: str | None = None,
    group_size: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Fit the scaling law of quantisation error to runs, or predict with it.

    `tenfold fit-law runs.csv --holdout 'num_parameters>=9e8' --out laws/mine` fits;
    `tenfold fit-law --preset paper --predict --num-parameters 7e9 --num-tokens 1e12 --group-size
    128` predicts.

    Args:
        runs: Run tables (.csv, .jsonl), run directories, or folders of them; before all options.
        metric: The loss of a run directory, from `fit` in its metrics.json.
        holdout: Runs that only test the fit, such as 'num_parameters>=9e8'; several comparisons
            are separated by commas, and all must hold.
        residual: Fit log delta (Huber loss; drops runs with delta <= 0), or raw delta (least
            squares; keeps them).
        untied: Fit alpha and beta of the Chinchilla law apart.
        bootstrap: Resamples for the intervals.
        preset: Predict without runs: `paper`, or a law.json written before.
        predict: Print the predictions for --num-parameters, --num-tokens and --group-size.
        num_parameters: Non-embedding parameters: 7e9, 1e9,7e9 or 1e8:1e10:5.
        num_tokens: Training tokens, likewise.
        group_size: Elements that share a scale, likewise.
        out: Folder for law.json, runs.csv, figures/ and predictions.csv.
        overwrite: Replace what is there.

    Raises:
        ValueError: The runs cannot be read or fitted, or what is asked is contradictory; one line
            with the fix.
    """
    # Before numpy is imported. For matrices of a hundred rows, two threads on a busy machine of two
    # cores make a fit of 1.4 ms one of 12 to 200 ms (measured).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    points = _read_points(predict, num_parameters, num_tokens, group_size)
    if bool(runs) == (preset is not None):
        raise ValueError("fit-law needs either runs (`tenfold fit-law runs.csv`) or --preset paper")
    if bootstrap < 1:
        raise ValueError(f"--bootstrap must be at least 1, got {bootstrap}")
    if preset is not None and points is None:
        raise ValueError("--preset has nothing to fit: add --predict")
    written = [] if preset is not None else ["law.json", "runs.csv", "figures"]
    written += ["predictions.csv"] if points else []
    for path in (out / name for name in written) if out is not None else ():
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: choose another --out or pass --overwrite")
    with _plain_warnings():
        if preset is not None:
            from ..modules.scaling_law import load_laws

            laws: Mapping[str, ScalingLaw] = load_laws(preset)
        else:
            laws = _fit(runs or [], metric, holdout, residual, untied, bootstrap, out)
        if points is not None:
            _predict(laws, points, out)


@dataclass(frozen=True)
class Points:
    """What is to be predicted: every combination, each array of shape (num_points,)."""

    num_parameters: "Array"
    num_tokens: "Array"
    group_size: "Array"


def _fit(
    sources: list[str],
    metric: str,
    holdout: str | None,
    residual: Literal["log", "raw"],
    untied: bool,
    num_resamples: int,
    out: Path | None,
) -> "Mapping[str, ScalingLaw]":
    """Fits, prints and writes; returns precision -> law."""
    from ..modules.run_table import read_runs, write_runs
    from ..modules.scaling_law_analysis import analyze_runs
    from .fit_law_report import make_console, print_analysis, write_laws

    runs = read_runs(sources, metric)
    is_held_out = _holdout(holdout, runs)
    with make_console().status(f"fitting, with {num_resamples} resamples"):
        analysis = analyze_runs(
            runs,
            is_held_out=is_held_out,
            tied=not untied,
            residual=residual,
            num_resamples=num_resamples,
        )
    print_analysis(analysis, holdout)
    if not analysis.precisions:
        raise ValueError("no law could be fitted: see above what is missing for each precision")
    if out is not None:
        from .fit_law_figures import write_figures

        settings = {"runs": sources, "metric": metric, "holdout": holdout, "residual": residual}
        write_laws(out / "law.json", analysis, settings)
        write_runs(out / "runs.csv", runs)
        write_figures(out / "figures", analysis)
        print(f"{out}: law.json, runs.csv, figures/")
    return {precision: found.law for precision, found in analysis.precisions.items()}


def _holdout(text: str | None, runs: "list[Run]") -> "Callable[[Run], bool]":
    """Which runs only test the fit."""
    from ..modules.run_table import parse_comparisons

    if text is None:
        return lambda run: False
    try:
        is_held_out = parse_comparisons(text)
    except ValueError as error:
        raise ValueError(f"--holdout: {error}") from error
    if not any(is_held_out(run) for run in runs if not run.is_baseline):
        raise ValueError(f"--holdout '{text}' holds for no quantised run of the table")
    return is_held_out


def _predict(laws: "Mapping[str, ScalingLaw]", points: Points, out: Path | None) -> None:
    from .fit_law_report import print_predictions, tabulate_predictions, write_predictions

    asked = (points.num_parameters, points.num_tokens, points.group_size)
    rows = tabulate_predictions(laws, *asked)
    for law in laws.values():
        for sentence in law.fitted_range.departures(*asked):
            warnings.warn(sentence, stacklevel=2)
    print_predictions(rows)
    if out is not None:
        write_predictions(out / "predictions.csv", rows)
        print(f"{out}: predictions.csv")


def _read_points(predict: bool, *texts: str | None) -> Points | None:
    """All combinations of what the three options name; None without `--predict`."""
    flags = ("--num-parameters", "--num-tokens", "--group-size")
    given = [flag for flag, text in zip(flags, texts, strict=True) if text is not None]
    if not predict:
        if given:
            raise ValueError(f"{given[0]} is for predictions: add --predict")
        return None
    missing = [flag for flag in flags if flag not in given]
    if missing:
        raise ValueError(
            f"--predict needs {' and '.join(missing)}: a number such as {RANGE_EXAMPLE}"
        )
    import numpy as np

    values = [_numbers(flag, str(text)) for flag, text in zip(flags, texts, strict=True)]
    return Points(*(axis.reshape(-1) for axis in np.meshgrid(*values, indexing="ij")))


def _numbers(flag: str, text: str) -> "Array":
    """`7e9`, `1e9,7e9` or `low:high:count` as numbers."""
    import numpy as np

    try:
        if ":" in text:
            low, high, count = text.split(":")
            numbers = np.geomspace(float(low), float(high), int(count))
        else:
            numbers = np.array([float(part) for part in text.strip("[]").split(",")])
    except ValueError:
        numbers = np.array([])
    if not len(numbers) or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ValueError(f"{flag}: '{text}' is no positive number: give {RANGE_EXAMPLE}")
    return numbers


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows each warning once, as one line without a source location."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"warning: {message}", file=sys.stderr)
