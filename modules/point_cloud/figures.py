"""Pictures of how a classifier fares under corruptions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..corruption_names import MODELNET40_C, POINTCLOUD_C, SEVERITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = {**MODELNET40_C, "PointCloud-C": POINTCLOUD_C}


def error_rate_figure(rates: Mapping[str, float]) -> "Figure":
    """Draws a table of error rates: a row for each corruption, by family, a column per severity.

    Args:
        rates: What `modules.metrics.corruption_errors` returns, `er/<corruption>/<severity>`,
            in [0, 1].
    """
    from matplotlib.figure import Figure

    rows = [
        (family, name)
        for family, names in FAMILIES.items()
        for name in names
        if any(f"er/{name}/{severity}" in rates for severity in SEVERITIES)
    ]
    nan = float("nan")
    cells = [[rates.get(f"er/{name}/{s}", nan) for s in SEVERITIES] for _, name in rows]
    means = [[sum(seen) / len(seen)] for row in cells if (seen := [v for v in row if v == v])]
    table = [[100 * v for v in (*row, *mean)] for row, mean in zip(cells, means, strict=True)]
    figure = Figure(figsize=(6.4, 1.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="YlOrRd", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                color = "white" if value > 60 else "black"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(SEVERITIES) + 1), [*map(str, SEVERITIES), "mean"])
    axes.set_yticks(range(len(rows)), [name for _, name in rows])
    axes.axvline(len(SEVERITIES) - 0.5, color="black", linewidth=1)
    for y in range(1, len(rows)):
        if rows[y][0] != rows[y - 1][0]:
            axes.axhline(y - 0.5, color="black", linewidth=1)
    summary = [
        f"{name.removeprefix('er_')} {100 * rate:.1f}"
        for name, rate in rates.items()
        if name.startswith("er_")
    ]
    axes.set(xlabel="severity")
    axes.set_title("error rate (%): " + " · ".join(summary), fontsize=9)
    figure.colorbar(image, ax=axes, label="error rate (%)")
    return figure
