"""What `tenfold fit-law` has found, on the screen and as files. Imports no torch."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..modules.files import atomic_write, write_json
from ..modules.scaling_law import Array, ScalingLaw, error_ratio
from ..modules.scaling_law_analysis import (
    MIN_CLUSTERS,
    Analysis,
    Constant,
    Decomposition,
    PrecisionAnalysis,
)

FORMAT_VERSION = 1
_FEW_CLUSTERS = 10


# The fit


def print_analysis(analysis: Analysis, holdout: str | None) -> None:
    """Prints constants, errors and what stands in the way of trusting them.

    Args:
        analysis: What was found.
        holdout: Which runs only tested the fit, as the user wrote it.
    """
    console = make_console()
    _print_table(
        console,
        ["law", "constant", "value", "95 % interval", "sign"],
        list(_constant_rows(analysis)),
    )
    console.print()
    tested = f"hold-out ({holdout})" if holdout else "leave-one-out"
    _print_table(
        console,
        ["precision", "law", "of", "constants", "runs", "error in sample", f"error {tested}"],
        list(_error_rows(analysis)),
    )
    _say(console, "error: mean of |predicted - true| / true over the cells (N, D, G), delta > 0")
    console.print()
    _print_table(console, _TRUST_HEADER, list(_trust_rows(analysis)))
    console.print()
    for line in _remarks(analysis):
        _say(console, line)


def _constant_rows(analysis: Analysis) -> Iterator[list[str]]:
    laws = {"chinchilla": analysis.chinchilla_constants}
    laws |= {name: found.constants for name, found in analysis.precisions.items()}
    for law, constants in laws.items():
        for constant in constants:
            value = _value_text(constant)
            yield [law, constant.name, value, _interval_text(constant), constant.sign]


def _value_text(constant: Constant) -> str:
    if math.isclose(constant.value, constant.unconstrained, rel_tol=1e-3, abs_tol=1e-12):
        return f"{constant.value:.4g}"
    return f"{constant.value:.4g} (free {constant.unconstrained:.4g})"


def _interval_text(constant: Constant) -> str:
    if constant.low is None or constant.high is None:
        return ""
    return f"[{constant.low:.4g}, {constant.high:.4g}]"


def _error_rows(analysis: Analysis) -> Iterator[list[str]]:
    for precision, found in analysis.precisions.items():
        for error in found.errors:
            out = "" if error.out_of_sample is None else _percent(error.out_of_sample)
            counts = [str(error.num_constants), str(len(found.fitted))]
            place = [precision, error.law, error.inputs]
            yield [*place, *counts, _percent(error.in_sample), out]


_TRUST_HEADER = [
    "precision",
    "noise floor",
    "cells below 2 sigma",
    "signs established",
    "not established",
    "iso-delta slope",
]


def _trust_rows(analysis: Analysis) -> Iterator[list[str]]:
    for precision, found in analysis.precisions.items():
        noise = found.noise
        exponents = [constant for constant in found.constants if constant.sign]
        yield [
            precision,
            "unknown" if noise is None else f"{noise.sigma:.2g} nats",
            "" if noise is None else f"{noise.num_below} of {noise.num_cells}",
            ", ".join(f"{c.name} {c.sign}" for c in exponents if c.sign in ("+", "-")) or "none",
            ", ".join(c.name for c in exponents if c.sign not in ("+", "-")),
            f"{found.law.error.iso_delta_slope:.3g}",
        ]


def _remarks(analysis: Analysis) -> Iterator[str]:
    """What the tables mean and lack."""
    yield (
        "noise floor sigma: standard deviation of delta over seeds; iso-delta slope: decades of "
        "tokens that cost as much as a decade of parameters gains (gamma_n / gamma_d)"
    )
    every = analysis.precisions.values()
    if any(found.noise is None for found in every):
        yield "an unknown noise floor: no cell (N, D, G) has two seeds; signs rest on the fit alone"
    if any("free" in _value_text(constant) for found in every for constant in found.constants):
        yield "free: fitted without bounds on the signs, as the intervals are"
    for precision, found in analysis.precisions.items():
        if found.num_clusters < MIN_CLUSTERS:
            yield (
                f"{precision}: no intervals: the runs share {found.num_clusters} baselines, and "
                f"{MIN_CLUSTERS} (N, D, seed) are the least that can establish a sign"
            )
        elif found.num_clusters < _FEW_CLUSTERS:
            yield (
                f"{precision}: the runs share only {found.num_clusters} baselines: expect the "
                "intervals too narrow"
            )
    if analysis.decomposition is not None:
        yield from _decomposition_text(analysis.decomposition)
    for name, problem in analysis.problems.items():
        law = "no Chinchilla law, and so no EPM" if name == "chinchilla" else f"{name}: no law"
        yield f"{law}: {problem}"


def _decomposition_text(found: Decomposition) -> Iterator[str]:
    yield (
        f"decomposition: delta_w4a4 = {found.coefficient:.3f} (delta_w4a16 + delta_w16a4) over "
        f"{len(found.w4a4)} cells (N, D, G)"
    )
    for size in np.unique(found.group_size):
        is_own = found.group_size == size
        mean = error_ratio(found.w16a4[is_own].mean(), found.w4a16[is_own].mean())
        ratios = found.ratio[is_own]
        yield (
            f"R = delta_w16a4 / delta_w4a16 at G = {size:g}: {mean:.2f}, in single cells "
            f"{ratios.min():.2f} to {ratios.max():.2f}"
        )


def write_laws(path: Path, analysis: Analysis, settings: Mapping[str, Any]) -> None:
    """Writes `law.json`: the laws for `--preset`, and how sure they are.

    Args:
        path: The file.
        analysis: What was found.
        settings: How: what the user chose.
    """
    found = analysis.precisions
    content = {
        "format_version": FORMAT_VERSION,
        "settings": dict(settings),
        "laws": {name: one.law.as_dict() for name, one in found.items()},
        "analysis": {
            "chinchilla": [asdict(constant) for constant in analysis.chinchilla_constants],
            **{name: _analysis_dict(one) for name, one in found.items()},
        },
        "problems": analysis.problems,
    }
    if analysis.decomposition is not None:
        content["decomposition_coefficient"] = analysis.decomposition.coefficient
    write_json(path, content)


def _analysis_dict(found: PrecisionAnalysis) -> dict[str, Any]:
    return {
        "constants": [asdict(constant) for constant in found.constants],
        "relative_errors": [asdict(error) for error in found.errors],
        "noise_floor": None if found.noise is None else asdict(found.noise),
        "num_runs": len(found.fitted),
        "num_held_out": len(found.held_out),
        "num_clusters": found.num_clusters,
    }


# Predictions


@dataclass(frozen=True)
class Prediction:
    """One row of the table of predictions; None where a law has no such number.

    Attributes:
        precision: Which law.
        num_parameters: N.
        num_tokens: D.
        group_size: G.
        delta: Error of quantisation, nats.
        delta_low: Lower end of its 95 % interval.
        delta_high: Upper end.
        baseline_loss: Loss without quantisation.
        loss: Loss with it.
        epm: Effective parameter multiplier.
    """

    precision: str
    num_parameters: float
    num_tokens: float
    group_size: float
    delta: float
    delta_low: float | None
    delta_high: float | None
    baseline_loss: float | None
    loss: float | None
    epm: float | None


def tabulate_predictions(
    laws: Mapping[str, ScalingLaw], num_parameters: Array, num_tokens: Array, group_size: Array
) -> list[Prediction]:
    """Every law at every point.

    Args:
        laws: Precision -> law.
        num_parameters: (num_points,).
        num_tokens: (num_points,).
        group_size: (num_points,).
    """
    point = (num_parameters, num_tokens, group_size)
    rows = []
    for precision, law in laws.items():
        columns: list[Any] = [*point, law.delta(*point)]
        unknown = [None] * len(num_parameters)
        columns += law.delta_interval(*point) or (unknown, unknown)
        if law.chinchilla is None:
            columns += [unknown] * 3
        else:
            columns += [law.chinchilla.loss(num_parameters, num_tokens), law.loss(*point)]
            columns.append(law.effective_parameter_multiplier(*point))
        for values in zip(*columns, strict=True):
            numbers = (None if value is None else float(value) for value in values)
            rows.append(Prediction(precision, *numbers))  # type: ignore[arg-type]
    return rows


def print_predictions(rows: Sequence[Prediction]) -> None:
    """Prints the table of predictions; columns that would be empty are left out."""
    header = ["precision", "N", "D", "G", "delta", "95 % interval", "bf16 loss", "loss", "EPM"]
    body = []
    for row in rows:
        interval = (
            ""
            if row.delta_low is None or row.delta_high is None
            else f"[{row.delta_low:.4f}, {row.delta_high:.4f}]"
        )
        counts = [count_text(row.num_parameters), count_text(row.num_tokens), f"{row.group_size:g}"]
        rest = [_four(value) for value in (row.baseline_loss, row.loss, row.epm)]
        body.append([row.precision, *counts, f"{row.delta:.4f}", interval, *rest])
    console = make_console()
    _print_table(console, header, body)
    _say(
        console,
        "N non-embedding parameters, D training tokens, G group size; losses and delta in nats per "
        "token; EPM: the share of N that an unquantised model of the same loss needs",
    )


def write_predictions(path: Path, rows: Sequence[Prediction]) -> None:
    """Writes the table as CSV, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in fields(Prediction)])
    writer.writerows(astuple(row) for row in rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


# Words


def count_text(count: float) -> str:
    """A count as the field writes it: 74M, 1.5B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            return f"{count / unit:.3g}{letter}"
    return f"{count:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def make_console() -> Console:
    """The terminal, or a wide page where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _print_table(console: Console, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    shown = Table(box=None, pad_edge=False)
    keep = [index for index in range(len(header)) if any(row[index] for row in body)]
    for index in keep:
        shown.add_column(Text(header[index]), overflow="fold")
    for row in body:
        shown.add_row(*(Text(row[index]) for index in keep))
    console.print(shown)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
