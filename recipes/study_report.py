"""The results of a study on the screen and as files: tables and figures. Imports no torch."""

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modules.files import atomic_write
from .arguments import render
from .study_file import RECORDS, Study, Table
from .study_plan import Run
from .study_table import SEED, Line, collect_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")


def report(study: Study, runs: Sequence[Run], folder: Path, console: "Console") -> None:
    """Writes table.csv, values.csv, table.md and figures/ into `folder` and prints the table.

    Raises:
        ValueError: A metric or the reference row is nowhere, though every run has finished.
    """
    if study.table is None:
        return
    lines = collect_lines(study, study.table, runs)
    if all(line.mean is None for line in lines):
        console.print("no table yet: nothing that it compares has finished", highlight=False)
        return
    missing = [run.id for run in runs if not run.finished]
    texts = {
        "table.csv": _table_csv(study.table, lines),
        "values.csv": _values_csv(lines),
        "table.md": _markdown(study, study.table, lines, missing),
    }
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as file:
            file.write(text)
    for block, own in _blocks(study.table, lines).items():
        name = re.sub(r"[^\w.+-]+", "_", block).strip("_")
        with atomic_write(folder / "figures" / f"{name}.png") as file:
            draw_metric(study.table, own, _positions(study, study.table)).savefig(
                file, format="png"
            )
    _print_table(study.table, lines, console)
    unfinished = f" (without {len(missing)} unfinished runs)" if missing else ""
    console.print(
        f"{folder / 'table.md'}{unfinished}", markup=False, highlight=False, soft_wrap=True
    )


def _block(table: Table, line: Line) -> str:
    """What shares an axis and a number of digits: a metric, or a kind of formula."""
    return table.formulas[line.row].kind if table.formulas else line.metric


def _blocks(table: Table, lines: Sequence[Line]) -> dict[str, list[Line]]:
    blocks: dict[str, list[Line]] = {}
    for line in lines:
        blocks.setdefault(_block(table, line), []).append(line)
    return blocks


def _is_own_difference(table: Table, line: Line) -> bool:
    """Whether the row is a difference or a ratio by itself, to be compared with zero."""
    return line.row in table.formulas and not table.formulas[line.row].is_operand


def _reference(table: Table, line: Line) -> str | None:
    return "zero" if _is_own_difference(table, line) else table.against


# Numbers


def _table_csv(table: Table, lines: Sequence[Line]) -> str:
    """One line per metric and row, in full precision; what there is not is empty."""
    header = "metric group row n num_runs num_planned mean sd"
    header += " against num_pairs difference low high p method"
    rows = []
    for line in lines:
        row = [line.metric, line.group, line.row, line.n, line.num_runs, line.num_planned]
        rows.append([*row, line.mean, line.sd, *_difference_fields(table, line)])
    return _csv(header.split(), rows)


def _difference_fields(table: Table, line: Line) -> list[Any]:
    if line.difference is None:
        return [None] * 7
    interval = line.difference.interval
    ends = [interval.low, interval.high, interval.p, interval.method]
    return [_reference(table, line), line.difference.n, line.difference.mean, *ends]


def _values_csv(lines: Sequence[Line]) -> str:
    """What the table is made of: each repetition with its difference to the reference row."""
    rows = []
    for line in lines:
        differences = line.difference.points if line.difference else {}
        for repetition, value in line.points.items():
            place = [line.metric, line.group, line.row, repetition]
            rows.append([*place, value, differences.get(repetition)])
    return _csv(["metric", "group", "row", "repetition", "value", "difference"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


# Text


def _number_format(lines: Sequence[Line]) -> str:
    """For one metric: two digits of a typical standard error, else four of the number itself."""
    errors = [line.sd / math.sqrt(line.n) for line in lines if line.sd and math.isfinite(line.sd)]
    sizes = [abs(line.mean) for line in lines if line.mean and math.isfinite(line.mean)]
    if errors:
        digits = 1 - math.floor(math.log10(sorted(errors)[len(errors) // 2]))
    else:
        digits = 3 - math.floor(math.log10(max(sizes, default=1.0)))
    return f".{min(max(digits, 0), 8)}f"


def _texts(table: Table, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table; columns that would be empty are left out."""
    references = dict.fromkeys(str(_reference(table, line)) for line in lines if line.difference)
    minus = f"minus {' or '.join(references)} [95 %]"
    header = ["metric", "group", "row", "mean ± sd", "n", minus, "p"]
    forms = {block: _number_format(own) for block, own in _blocks(table, lines).items()}
    body = []
    for line in lines:
        form = forms[_block(table, line)]
        place = ["" if table.formulas else line.metric, line.group, line.row]
        numbers = [_mean_text(line, form), _count_text(line), *_difference_texts(line, form)]
        body.append([*place, *numbers])
    return _without_empty(header, body)


def _without_empty(
    header: Sequence[str], body: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    keep = [i for i in range(len(header)) if any(row[i] for row in body)]
    return [header[i] for i in keep], [[row[i] for i in keep] for row in body]


def _mean_text(line: Line, form: str) -> str:
    if line.mean is None:
        return "missing"
    return f"{line.mean:{form}}" + ("" if line.sd is None else f" ± {line.sd:{form}}")


def _count_text(line: Line) -> str:
    if line.num_runs == line.num_planned:
        return str(line.n)
    runs = f"{line.num_runs} of {line.num_planned}"
    return runs if line.n == line.num_runs else f"{line.n} ({runs} runs)"


def _difference_texts(line: Line, form: str) -> list[str]:
    """Difference with its interval, and p."""
    if line.difference is None:
        return ["", ""]
    interval = line.difference.interval
    text = f"{line.difference.mean:+{form}}"
    if interval.low is None or interval.high is None:
        return [f"{text} ({interval.method})", ""]
    p = "" if interval.p is None else "< 0.001" if interval.p < 0.001 else f"{interval.p:.3f}"
    return [f"{text} [{interval.low:+{form}}, {interval.high:+{form}}]", p]


def _legend(table: Table, lines: Sequence[Line]) -> str:
    """How the numbers came about."""
    over = f"over {table.over}" if table.over else "of one run each"
    methods = dict.fromkeys(
        line.difference.interval.method
        for line in lines
        if line.difference is not None and line.difference.interval.low is not None
    )
    intervals = f"; differences with a 95 % interval: {' / '.join(methods)}" if methods else ""
    return f"mean ± standard deviation {over}{intervals}"


def _print_table(table: Table, lines: Sequence[Line], console: "Console") -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    header, body = _texts(table, lines)
    shown = RichTable(box=None, pad_edge=False)
    for name in header:
        shown.add_column(Text(name), overflow="fold")
    for row in body:
        shown.add_row(*map(Text, row))
    console.print(shown)
    console.print(_legend(table, lines), markup=False, highlight=False)


def _markdown(study: Study, table: Table, lines: Sequence[Line], missing: Sequence[str]) -> str:
    parts = [
        f"# {study.method}/{study.path.stem}",
        f"`tenfold study --config {study.config}`: {_legend(table, lines)}.",
        _markdown_table(*_texts(table, lines)),
    ]
    if table.formulas:
        texts = {row: f"`{formula.text}`" for row, formula in table.formulas.items()}
        parts.append("\n".join(f"- {_escape(row)}: {text}" for row, text in texts.items()))
    for block, own in _blocks(table, lines).items():
        parts += _markdown_differences(table, block, own)
    if missing:
        parts.append(f"Unfinished, and nothing stands in for them: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _markdown_differences(table: Table, block: str, lines: Sequence[Line]) -> list[str]:
    """Every paired difference of one block, when there are several to a row."""
    found = [(line, line.difference.points) for line in lines if line.difference is not None]
    repetitions = list(dict.fromkeys(name for _, points in found for name in points))
    if len(repetitions) < 2:
        return []
    form = _number_format(lines)
    body = [
        [line.group, line.row]
        + [f"{points[name]:+{form}}" if name in points else "missing" for name in repetitions]
        for line, points in found
    ]
    over = SEED if table.over == RECORDS else table.over
    if _is_own_difference(table, lines[0]):
        title = block.capitalize()
    elif table.formulas:
        title = f"{block.capitalize()} minus {table.against}"
    else:
        title = f"`{block}` minus that of {table.against}"
    title = f"{title}, for each {over}:"
    return [title, _markdown_table(*_without_empty(["group", "row", *repetitions], body))]


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows)


def _escape(cell: str) -> str:
    return cell.replace("|", r"\|").replace("<", "&lt;")


# Figures


def _positions(study: Study, table: Table) -> dict[str, float] | None:
    """Where each row stands on a number line; None when rows are names."""
    axes = [found[table.rows] for found in study.axes.values() if table.rows in found]
    values = [value for axis in axes for value in axis.values]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not numbers or len(numbers) < len(values):
        return None
    return {render(number): float(number) for number in numbers}


def draw_metric(
    table: Table, lines: Sequence[Line], positions: dict[str, float] | None = None
) -> "Figure":
    """Draws one metric: every repetition and the means, and beside them the paired differences.

    Rows that are differences or ratios by themselves stand alone, with intervals and the zero.

    Args:
        table: The table of the study.
        lines: Its lines for this metric, or for this kind of formula.
        positions: Row -> number, to draw curves over these numbers. None: one strip for each row.
    """
    from matplotlib.figure import Figure

    block = _block(table, lines[0])
    if _is_own_difference(table, lines[0]):
        columns = [(f"{block} (95 % interval)", True)]
    else:
        columns = [(block, False)]
        if any(line.difference is not None for line in lines):
            columns.append((f"difference to {table.against} (95 % interval)", True))
    groups = list(dict.fromkeys(line.group for line in lines))
    # Values of several groups may lie so far apart that on one axis their rows would coincide.
    stacks = [[group] for group in groups] if table.formulas and block == "values" else [groups]
    height = 1.0 + 0.36 * (len(lines) + (len(groups) if len(groups) > 1 else 0))
    height = 3.6 if positions else height + 0.5 * (len(stacks) - 1)
    figure = Figure(figsize=(1.4 + 3.8 * len(columns), height), dpi=150, layout="constrained")
    panels = figure.subplots(len(stacks), len(columns), squeeze=False)
    for row, stack in zip(panels, stacks, strict=True):
        own = [line for line in lines if line.group in stack]
        for panel, (name, of_differences) in zip(row, columns, strict=True):
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25, linewidth=0.6)
            panel.set_axisbelow(True)
            if of_differences:
                zero = panel.axhline if positions else panel.axvline
                zero(0, color="0.5", linewidth=1)
            if positions:
                _draw_curves(panel, own, stack, positions, of_differences=of_differences)
                panel.set_xlabel(table.rows)
                panel.set_ylabel(name)
            else:
                _draw_strips(panel, own, stack, of_differences=of_differences)
                panel.set_xlabel(name if stack is stacks[-1] else "")
        if len(stacks) > 1:
            row[0].set_title(stack[0], loc="left", fontsize="medium", fontweight="bold")
        for panel in row[1:]:
            panel.tick_params(labelleft=bool(positions))
    if positions and len(groups) > 1:
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(len(groups), 4),
            frameon=False,
        )
    return figure


@dataclass(frozen=True)
class _Mark:
    """What is drawn of one line: its repetitions, their mean, and the ends of an interval."""

    points: list[float]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, line: Line, of_differences: bool) -> "_Mark | None":
        """None when there is nothing to draw."""
        if not of_differences:
            if line.mean is None:
                return None
            return cls(list(line.points.values()), line.mean, line.mean, line.mean)
        if line.difference is None:
            return None
        mean, interval = line.difference.mean, line.difference.interval
        low = mean if interval.low is None else interval.low
        high = mean if interval.high is None else interval.high
        return cls(list(line.difference.points.values()), mean, low, high)


def _point_style(color: str) -> dict[str, Any]:
    """A repetition: light, so that many of them do not hide the mean."""
    return {"color": color, "alpha": 0.55, "markersize": 5.5, "markeredgecolor": "white"}


def _draw_strips(
    panel: "Axes", lines: Sequence[Line], groups: Sequence[str], *, of_differences: bool
) -> None:
    """One horizontal strip per row, under a heading for each group when there are several."""
    from matplotlib.ticker import MaxNLocator

    ticks: list[str] = []
    for group in groups:
        if len(groups) > 1:
            ticks.append(group)
        for line in (line for line in lines if line.group == group):
            mark, y = _Mark.of(line, of_differences), len(ticks)
            ticks.append(line.row)
            if mark is None:
                continue
            panel.plot([mark.low, mark.high], [y, y], color="0.3", linewidth=1.4)
            panel.plot(mark.points, [y] * len(mark.points), "o", **_point_style(_COLORS[0]))
            panel.plot(mark.mean, y, "|", color="0.1", markersize=15, markeredgewidth=2)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_yticks(range(len(ticks)), ticks)
    panel.set_ylim(len(ticks) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    for label in panel.get_yticklabels():
        if len(groups) > 1 and label.get_text() in groups:
            label.set_fontweight("bold")


def _draw_curves(
    panel: "Axes",
    lines: Sequence[Line],
    groups: Sequence[str],
    positions: dict[str, float],
    *,
    of_differences: bool,
) -> None:
    """One curve per group over the numbers that rows are."""
    numbers = sorted(set(positions.values()))
    first, last = numbers[0], numbers[-1]
    is_log = first > 0 and last / first > 8
    if is_log:
        panel.set_xscale("log")
        panel.minorticks_off()
    for index, (group, color) in enumerate(zip(groups, itertools.cycle(_COLORS), strict=False)):
        aside = 0.012 * (index - (len(groups) - 1) / 2)  # so that groups do not hide each other
        drawn = []
        for line in sorted(lines, key=lambda line: positions[line.row]):
            x, mark = positions[line.row], _Mark.of(line, of_differences)
            if line.group == group and mark is not None:
                x = x * (last / first) ** aside if is_log else x + (last - first) * aside
                drawn.append((x, mark))
        for x, mark in drawn:
            panel.plot([x, x], [mark.low, mark.high], color=color, linewidth=1.4)
            panel.plot([x] * len(mark.points), mark.points, "o", **_point_style(color))
        xs, means = [x for x, _ in drawn], [mark.mean for _, mark in drawn]
        panel.plot(xs, means, color=color, linewidth=1.4, label=group)
        panel.plot(xs, means, "_", color=color, markersize=9, markeredgewidth=2)
    if len(numbers) <= 8:
        panel.set_xticks(numbers, [f"{number:g}" for number in numbers])
