"""The picture of a run and of what it would score after a decay."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .curve import LossCurve
from .forecasting import Forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"relaxation": "#D55E00", "mpl": "#009E73", "tissue": "#CC79A7"}
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class MergedLoss:
    """A merged model's loss.

    Attributes:
        scheme: Name of the merge.
        step: When it was measured.
        decay_start: When the decay that the merge emulates would have begun.
        loss: The loss, nats.
    """

    scheme: str
    step: int
    decay_start: int
    loss: float

    @property
    def decay_steps(self) -> int:
        """Length of the emulated decay."""
        return self.step + 1 - self.decay_start


def draw_annealing(
    curve: LossCurve,
    forecasts: Sequence[Forecast],
    merged: Sequence[MergedLoss] = (),
    split: int | None = None,
) -> "Figure":
    """Draws losses, merged losses, forecasts with their intervals, and the learning rate below.

    Args:
        curve: The run.
        forecasts: Predicted decays; those without a prediction are named in the legend.
        merged: Losses of merged models, in order.
        split: Step up to which the forecasts knew the run; later losses are drawn as what came.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 6.0), dpi=120, layout="constrained")
    panel, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    split = len(curve.rates) if split is None else split
    known = curve.steps < split
    panel.plot(curve.steps[known], curve.losses[known], color="#0072B2", label="loss")
    if not known.all():
        from_here = max(int(known.sum()) - 1, 0)
        panel.plot(
            curve.steps[from_here:],
            curve.losses[from_here:],
            color="black",
            label="loss afterwards",
        )
    for scheme in dict.fromkeys(point.scheme for point in merged):
        own = [point for point in merged if point.scheme == scheme]
        panel.plot(
            [point.step for point in own],
            [point.loss for point in own],
            ".-",
            markersize=4,
            linewidth=0.8,
            label=f"merged {scheme}: as if decaying for {own[-1].decay_steps} steps",
        )
    _draw_forecasts(panel, forecasts)
    _set_limits(panel, curve, forecasts)
    panel.set_ylabel("loss (nats)")
    panel.grid(alpha=0.25, linewidth=0.6)
    below.plot(curve.rates, color="0.3", linewidth=1)
    below.set_ylabel("learning rate")
    below.set_xlabel("optimizer step")
    below.set_ylim(bottom=0)
    below.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _draw_forecasts(panel: "Axes", forecasts: Sequence[Forecast]) -> None:
    decays = list(dict.fromkeys(forecast.decay for forecast in forecasts))
    refusals: dict[str, None] = {}
    for forecast in forecasts:
        label = f"{forecast.law_name}: {forecast.decay}"
        if forecast.path is None:
            refusals[f"{forecast.law_name}: {forecast.status}"] = None
            continue
        steps, losses, low, high = forecast.path.T
        color = _COLORS[forecast.law_name]
        style = _STYLES[decays.index(forecast.decay) % len(_STYLES)]
        panel.plot(steps, losses, style, color=color, label=f"{label}: {forecast.loss:.4f}")
        panel.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
    for reason in refusals:
        panel.plot([], [], " ", label=textwrap.fill(reason, 40))


def _set_limits(panel: "Axes", curve: LossCurve, forecasts: Sequence[Forecast]) -> None:
    """Leaves out the steep begin, beside which a decay would be a scratch."""
    if not len(curve):
        return
    start = len(curve.rates) // 3
    shown = curve.losses[curve.steps >= min(start, curve.steps[-1])]
    paths = [forecast.path[:, 1:] for forecast in forecasts if forecast.path is not None]
    values = np.concatenate([shown, *(path.reshape(-1) for path in paths)])
    margin = 0.04 * max(float(np.ptp(values)), 1e-6)
    panel.set_ylim(float(values.min()) - margin, float(values.max()) + margin)
    panel.set_xlim(left=start)
