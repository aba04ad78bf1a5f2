"""The pictures of `tenfold fit-law`. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)
from numpy.typing import ArrayLike

from ..modules.files import atomic_write
from ..modules.run_table import DeltaTable
from ..modules.scaling_law import Array, ScalingLaw
from ..modules.scaling_law_analysis import Analysis, Decomposition, PrecisionAnalysis
from .fit_law_report import count_text

_WEIGHT, _ACTIVATION, _BOTH = "#0072B2", "#D55E00", "#444444"
_MAX_CURVES = 6
_DPI = 150


def write_figures(folder: Path, analysis: Analysis) -> None:
    """Writes every figure that there are data for, as PNG.

    Args:
        folder: Where `delta_<precision>.png`, `epm_<precision>.png` and `decomposition.png` go.
        analysis: What was found.
    """
    for name, figure in _figures(analysis):
        with atomic_write(folder / f"{name}.png") as file:
            figure.savefig(file, format="png")


def _figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    for precision, found in analysis.precisions.items():
        yield f"delta_{precision}", draw_delta(precision, found)
        if found.law.chinchilla is not None:
            yield f"epm_{precision}", draw_epm(precision, found)
    if analysis.decomposition is not None:
        yield "decomposition", draw_decomposition(analysis.decomposition)


# Error against model size, tokens and group size


@dataclass(frozen=True)
class _Axis:
    """A quantity of the law: column of the table, its letter and its place among the inputs."""

    column: str
    letter: str
    label: str

    def values(self, table: DeltaTable) -> Array:
        """Of every run."""
        found: Array = getattr(table, self.column)
        return found

    def text(self, value: float) -> str:
        """A value in words."""
        count = f"{value:g}" if self.letter == "G" else count_text(value)
        return f"{self.letter} = {count}"


_N = _Axis("num_parameters", "N", "N, non-embedding parameters")
_D = _Axis("num_tokens", "D", "D, training tokens")
_G = _Axis("group_size", "G", "G, elements that share a scale")


def draw_delta(precision: str, found: PrecisionAnalysis) -> Figure:
    """Draws the measured errors and the law against N, D and G.

    Args:
        precision: Which, for the title.
        found: Its law and its runs.
    """
    table = found.fitted.mean_over_seeds()
    held_out = found.held_out.mean_over_seeds()
    sigma = 0.0 if found.noise is None else found.noise.sigma
    sizes = np.unique(table.group_size)
    middle, longest = float(sizes[len(sizes) // 2]), float(table.num_tokens.max())
    panels = [(_N, _D, _G, middle), (_D, _N, _G, middle), (_G, _N, _D, longest)]
    figure = Figure(figsize=(12.0, 4.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for panel, (x, curves, fixed, value) in zip(axes, panels, strict=True):
        _DeltaPanel(panel, found.law, x, curves, fixed, value, sigma).draw(
            table, held_out, colormaps["viridis"]
        )
    if min(table.delta.min(), held_out.delta.min(initial=np.inf)) > sigma:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=20))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_locator(NullLocator())
    else:
        for panel in axes:
            panel.axhline(0, color="0.5", linewidth=1)
    axes[0].set_ylabel("delta (nats per token)")
    figure.suptitle(f"Loss that {precision} training adds to its baseline")
    figure.legend(
        handles=_line_styles(sigma > 0, len(held_out) > 0),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


def _line_styles(with_noise: bool, with_held_out: bool) -> list[Line2D]:
    points = "fitted on (bars: noise floor)" if with_noise else "fitted on"
    styles = [
        Line2D([], [], color="0.3", marker="o", linestyle="none", label=points),
        Line2D([], [], color="0.3", label="law, in the fitted range"),
    ]
    if with_held_out:
        hollow = Line2D([], [], color="0.3", marker="o", linestyle="none", label="held out")
        hollow.set_markerfacecolor("white")
        styles.insert(1, hollow)
        styles.append(Line2D([], [], color="0.3", linestyle="--", label="law, extrapolated"))
    return styles


@dataclass(frozen=True)
class _DeltaPanel:
    """Error against one quantity, a curve for each value of another, the third one fixed.

    Attributes:
        sigma: Noise floor, nats; 0 when it is not known.
    """

    panel: Axes
    law: ScalingLaw
    x: _Axis
    curves: _Axis
    fixed: _Axis
    value: float
    sigma: float

    def draw(self, table: DeltaTable, held_out: DeltaTable, colors: Colormap) -> None:
        """Draws points and curves."""
        chosen = self._at_fixed(table)
        tested = self._at_fixed(held_out)
        both = np.concatenate([self.curves.values(chosen), self.curves.values(tested)])
        levels = _spread(np.unique(both), _MAX_CURVES)
        every = np.concatenate([self.x.values(table), self.x.values(held_out)])
        self._set_axis(every)
        for index, level in enumerate(levels):
            color = colors(0.9 * index / max(len(levels) - 1, 1))
            self._draw_curve(level, color, self.x.values(table), every)
            for part, face in ((chosen, color), (tested, "white")):
                own = part.select(self.curves.values(part) == level)
                self.panel.errorbar(
                    self.x.values(own),
                    own.delta,
                    self.sigma or None,
                    fmt="o",
                    color=color,
                    markerfacecolor=face,
                    elinewidth=0.8,
                    zorder=3,
                )
        self.panel.set_title(self.fixed.text(self.value), fontsize=10)
        self.panel.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False, fontsize=8
        )

    def _at_fixed(self, table: DeltaTable) -> DeltaTable:
        return table.select(self.fixed.values(table) == self.value)

    def _draw_curve(
        self, level: float, color: tuple[float, ...], fitted: Array, every: Array
    ) -> None:
        low, high = getattr(self.law.fitted_range, self.curves.column)
        solid = (fitted.min(), fitted.max()) if low <= level <= high else None
        for ends, style in (((every.min(), every.max()), "--"), (solid, "-")):
            if ends is None:
                continue
            line = np.geomspace(*ends, 100)
            point: dict[str, ArrayLike] = {
                self.x.column: line,
                self.curves.column: level,
                self.fixed.column: self.value,
            }
            self.panel.plot(line, self.law.delta(**point), style, color=color, linewidth=1.4)
        self.panel.plot([], [], color=color, label=self.curves.text(level))

    def _set_axis(self, values: Array) -> None:
        self.panel.set_xscale("log")
        self.panel.set_xlabel(self.x.label)
        ticks = _spread(np.unique(values), 6)
        self.panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
        self.panel.xaxis.set_minor_locator(NullLocator())
        self.panel.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: self.x.text(value).partition("= ")[2])
        )
        _tidy(self.panel)


def _spread(values: Array, most: int) -> Array:
    """At most so many of the sorted values, from first to last."""
    if len(values) <= most:
        return values
    index = np.linspace(0, len(values) - 1, most).round().astype(np.int64)
    return np.asarray(values[index])


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_axisbelow(True)


# Effective parameters


def draw_epm(precision: str, found: PrecisionAnalysis) -> Figure:
    """Draws the effective parameter multiplier over (N, D) for the finest and coarsest groups.

    Args:
        precision: Which, for the title.
        found: Its law and its runs; the law has Chinchilla constants.
    """
    table, fitted = found.fitted, found.law.fitted_range
    sizes = np.unique(table.group_size)
    n = np.geomspace(fitted.num_parameters[0] / 2, fitted.num_parameters[1] * 20, 120)
    d = np.geomspace(fitted.num_tokens[0] / 2, fitted.num_tokens[1] * 20, 120)
    grid = np.meshgrid(n, d)
    maps = [found.law.effective_parameter_multiplier(*grid, size) for size in sizes[[0, -1]]]
    levels = _levels(maps)
    figure = Figure(figsize=(11.0, 4.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, size, epm in zip(axes, sizes[[0, -1]], maps, strict=True):
        shown = panel.contourf(*grid, epm, levels, cmap="viridis")
        lines = panel.contour(*grid, epm, levels, colors="white", linewidths=0.7)
        panel.clabel(lines, fmt=lambda level: f"{level:.3g}", fontsize=8)
        panel.plot(
            table.num_parameters,
            table.num_tokens,
            "o",
            color="white",
            markeredgecolor="black",
            markersize=4.5,
            label="fitted on",
        )
        panel.plot(
            found.held_out.num_parameters,
            found.held_out.num_tokens,
            "D",
            color="#E69F00",
            markeredgecolor="black",
            markersize=5,
            label="held out",
        )
        panel.add_patch(_box(fitted.num_parameters, fitted.num_tokens))
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
        panel.set_xlabel(_N.label)
        panel.set_title(_G.text(size), fontsize=10)
    axes[0].set_ylabel(_D.label)
    figure.colorbar(shown, ax=list(axes), label="effective parameter multiplier")
    figure.suptitle(f"Share of its parameters that a {precision} model is worth")
    handles, labels = axes[0].get_legend_handles_labels()
    keep = slice(None) if len(found.held_out) else slice(1)
    box = Line2D([], [], color="black", linestyle="--", label="fitted range")
    figure.legend(
        handles=[*handles[keep], box],
        labels=[*labels[keep], "fitted range"],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


def _levels(maps: Sequence[Array]) -> Array:
    """About ten round levels from the lowest to the highest value of all maps."""
    values = np.concatenate([epm[np.isfinite(epm)] for epm in maps])
    if not len(values):
        return np.linspace(0, 1, 11)
    return np.asarray(MaxNLocator(10).tick_values(float(values.min()), float(values.max())))


def _box(x: tuple[float, float], y: tuple[float, float]) -> Rectangle:
    return Rectangle(
        (x[0], y[0]), x[1] - x[0], y[1] - y[0], fill=False, linestyle="--", edgecolor="black"
    )


# Decomposition


def draw_decomposition(found: Decomposition) -> Figure:
    """Draws weight and activation error stacked, beside the error of both, for each group size.

    Args:
        found: The three errors at the same (N, D, G).
    """
    sizes = np.unique(found.group_size)
    means = [
        [float(delta[found.group_size == size].mean()) for size in sizes]
        for delta in (found.w4a16, found.w16a4, found.w4a4)
    ]
    weight, activation, both = (np.array(values) for values in means)
    figure = Figure(figsize=(1.5 + 1.3 * max(len(sizes), 3), 4.4), dpi=_DPI, layout="constrained")
    panel = figure.subplots()
    x = np.arange(len(sizes))
    panel.bar(x - 0.2, weight, 0.36, color=_WEIGHT, label="w4a16: weights")
    panel.bar(x - 0.2, activation, 0.36, weight, color=_ACTIVATION, label="w16a4: activations")
    panel.bar(x + 0.2, both, 0.36, color=_BOTH, label="w4a4: both")
    for place, ratio, height in zip(x, activation / weight, weight + activation, strict=True):
        panel.annotate(
            f"R = {ratio:.2f}",
            (place - 0.2, height),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    panel.axhline(0, color="0.5", linewidth=1)
    panel.set_xticks(x, [f"{size:g}" for size in sizes])
    panel.set_xlabel(_G.label)
    panel.set_ylabel("delta, mean over N and D (nats per token)")
    panel.set_title(f"w4a4 = {found.coefficient:.3f} (w4a16 + w16a4)", fontsize=10)
    _tidy(panel)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
