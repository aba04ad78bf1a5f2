"""Scores as a picture."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .scores import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 24


def scores_figure(scores: Mapping[str, Score]) -> "Figure":
    """Draws scores with their 95 % intervals and a mark where chance is.

    Breakdowns and rates are left out.

    Args:
        scores: By name, at least one.
    """
    from matplotlib.figure import Figure

    names = [n for n in scores if "=" not in n and not n.endswith("_rate")][:MOST_BARS]
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        score = scores[name]
        error = [[score.value - score.low], [score.high - score.value]]
        axes.barh(place, 100 * score.value, color="#4c72b0", height=0.6)
        axes.errorbar(
            *(100 * score.value, place),
            xerr=[[100 * side[0]] for side in error],
            color="black",
            capsize=3,
        )
        if not math.isnan(score.chance):
            axes.plot([100 * score.chance] * 2, [place - 0.4, place + 0.4], color="#c62828")
    labels = [f"{name}  (n = {scores[name].n})" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("%, with 95 % interval; red: chance")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
