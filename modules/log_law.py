"""How a score grows with the size of the training set: RealSyn's law (its equation 3).

    L(x) = c - a / ln(x - b)

x in millions of images, a >= 0. It is the natural logarithm: with that to base 10 the coefficients
that the paper prints do not give the values that it prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class LogLaw:
    """L(x) = c - a / ln(x - b).

    Attributes:
        a: How much is still to be gained, 0 or more.
        b: Shift of the size; x > b + 1 everywhere.
        c: Score at infinite size.
    """

    a: float
    b: float
    c: float

    def __call__(self, size: float | Sequence[float] | Array) -> Array:
        """Returns the score at some sizes.

        Raises:
            ValueError: A size is not above b + 1, where the law has its pole.
        """
        sizes = np.asarray(size, dtype=np.float64)
        if np.any(sizes - self.b <= 1):
            raise ValueError(f"log law: sizes must be above b + 1 = {self.b + 1:.3g}")
        values: Array = self.c - self.a / np.log(sizes - self.b)
        return values

    def figure(self, sizes: Sequence[float], scores: Sequence[float], until: float) -> "Figure":
        """Draws scores, the law, and what it says up to a size.

        Args:
            sizes: Of what it was fitted to.
            scores: Their scores.
            until: Largest size to draw, of which the prediction is written beside the curve.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.add_subplot(xscale="log")
        drawn = np.geomspace(min(sizes), max(until, *sizes), 200)
        axes.plot(drawn, self(drawn), label=f"{self.c:.3f} - {self.a:.3f} / ln(x - {self.b:.2f})")
        axes.plot(sizes, scores, "o", label="measured")
        axes.plot([until], self([until]), "x", label=f"predicted: {float(self(until)):.3f}")
        axes.set(xlabel="training images (millions)", ylabel="score")
        axes.grid(which="both", alpha=0.3)
        axes.legend()
        return figure


def fit_log_law(sizes: Sequence[float], scores: Sequence[float]) -> LogLaw:
    """Fits the law by least squares.

    For given b it is linear in the others, so that b alone is searched for, everywhere below
    min(sizes) - 1: the best is found, whatever the data.

    Args:
        sizes: Three or more different ones, in millions of images.
        scores: As many.

    Raises:
        ValueError: There are fewer than three sizes, or scores that do not grow with them.
    """
    from scipy.optimize import minimize_scalar

    x, y = (np.asarray(values, dtype=np.float64) for values in (sizes, scores))
    if len(x) != len(y) or len(np.unique(x)) < 3:
        raise ValueError(
            f"log law: {len(x)} sizes and {len(y)} scores, expected as many, of 3 or more sizes"
        )
    if np.any(x <= 0) or not np.all(np.isfinite(x) & np.isfinite(y)):
        raise ValueError("log law: sizes must be positive, scores finite")

    def solve(gap: float) -> tuple[float, float, float, float]:
        """Squared error, a, b, c for a distance exp(gap) of the pole from the smallest size."""
        b = float(x.min() - 1 - np.exp(gap))
        columns = np.stack((-1 / np.log(x - b), np.ones_like(x)), axis=1)
        (a, c), *_ = np.linalg.lstsq(columns, y, rcond=None)
        error = float(np.sum((columns @ np.array([a, c]) - y) ** 2))
        return error, float(a), b, float(c)

    # The error may have several valleys: the lowest of a grid, then down to its bottom.
    grid = np.linspace(np.log(1e-3), np.log(1e3 * (x.max() - x.min())), 200)
    best = int(np.argmin([solve(gap)[0] for gap in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(lambda gap: solve(gap)[0], bounds=bounds, method="bounded")
    _, a, b, c = solve(float(found.x))
    if a <= 0:
        raise ValueError("log law: the scores do not grow with the sizes")
    return LogLaw(a, b, c)
