"""Pictures of the report: the funnel, and distributions with the thresholds drawn in."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...modules.files import atomic_write
from .funnel import Level
from .steps import Finished

COLOURS = {"images": "#3b6ea5", "sentences": "#c98a2b"}
COLUMNS = 3
# These counts span orders of magnitude.
LOGARITHMIC = ("size of duplicate groups", "uses of a sentence", "images per cluster")


def draw_funnel(levels: Sequence[Level], path: Path) -> None:
    """Draws what each stage leaves as bars, images beside sentences."""
    figure = Figure(figsize=(10, 0.55 * len(levels) + 1.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), COLOURS, strict=True):
        numbers = [getattr(level, kind) for level in levels]
        first = next((n for n in numbers if n), 1)
        for place, number in enumerate(numbers):
            if number is None:
                continue
            axes.barh(place, number, color=COLOURS[kind])
            share = f"{number:,}  ({number / first:.1%})"
            axes.text(number, place, " " + share, va="center", fontsize=9)
        axes.set_xlim(0, first * 1.45)
        axes.set_title(kind, fontsize=11)
        axes.set_yticks(range(len(levels)), [level.stage for level in levels])
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    if levels:
        figure.axes[0].invert_yaxis()  # shared by both
    _save(figure, path)


def draw_distributions(
    finished: Mapping[str, Finished], thresholds: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Draws every histogram that steps have counted."""
    histograms: dict[str, tuple[Sequence[int], Sequence[float]]] = {}
    for step in finished.values():
        for name, bins in step.stats.histograms.items():
            if sum(bins):
                histograms[name] = (bins, step.stats.edges[name])
    rows = -(-len(histograms) // COLUMNS)
    figure = Figure(figsize=(12, 2.4 * max(1, rows)), layout="constrained")
    if histograms:
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes, (name, (counts, edges)) in zip(grid, histograms.items(), strict=False):
            _draw(axes, name, np.asarray(counts), edges, thresholds.get(name, ()))
        for axes in grid[len(histograms) :]:
            axes.set_visible(False)
    _save(figure, path)


def _draw(
    axes: Any, name: str, counts: Any, edges: Sequence[float], limits: Sequence[float]
) -> None:
    filled = np.flatnonzero(counts)
    first, last = max(0, filled[0] - 1), min(len(counts), filled[-1] + 2)
    places = np.arange(first, last)
    colour = COLOURS["sentences" if "sentence" in name or name in _OF_TEXT else "images"]
    # Bins have the same width on paper, whatever they span.
    axes.bar(places + 0.5, counts[first:last], width=0.94, color=colour)
    ticks = places[:: max(1, len(places) // 6)]
    axes.set_xticks(ticks, [f"{edges[t]:g}" for t in ticks], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(name, fontsize=10)
    if name.startswith(LOGARITHMIC):
        axes.set_yscale("log")
    for limit in limits:
        place = np.interp(limit, edges, np.arange(len(edges)))
        axes.axvline(place, color="#b02a2a", linewidth=1.4)
    axes.spines[["top", "right"]].set_visible(False)


_OF_TEXT = ("words", "entropy", "perplexity")


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
