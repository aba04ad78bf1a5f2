"""Laws of the loss under a falling learning rate: forms, fits, priors, forecasts."""

from .curve import LossCurve, read_curve, write_curve
from .fit import fit_law
from .forecasting import Forecast, RunFit, fit_run, forecast
from .laws import (
    LAW_NAMES,
    LAWS,
    AnnealingLaw,
    Array,
    HypotheticalDecay,
    LawName,
    LRHistory,
    MultiPowerLaw,
    RelaxationLaw,
    TissueLaw,
)
from .prior import AnnealingPrior, fit_prior

__all__ = [
    "LAWS",
    "LAW_NAMES",
    "AnnealingLaw",
    "AnnealingPrior",
    "Array",
    "Forecast",
    "HypotheticalDecay",
    "LRHistory",
    "LawName",
    "LossCurve",
    "MultiPowerLaw",
    "RelaxationLaw",
    "RunFit",
    "TissueLaw",
    "fit_law",
    "fit_prior",
    "fit_run",
    "forecast",
    "read_curve",
    "write_curve",
]
