"""What a run would score after a decay that it has not done: with an interval, or why not."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from .curve import LossCurve
from .fit import AlphaPrior, LawFit, fit_law, fit_progress, resample_progress
from .laws import LAWS, AnnealingLaw, Array, LawName
from .prior import ERROR_OF_ONE, AnnealingPrior, scale_gain

LOWEST_R2 = 0.97
PEAK_TOLERANCE = 0.1  # relative; constants are not those of another rate
PROBE_DROP = 0.3  # of the peak: a smaller fall of the rate identifies nothing
PROBE_POINTS = 10
COVERAGE = 0.9
NUM_SAMPLES = 100
PATH_POINTS = 60


@dataclass(frozen=True)
class RunFit:
    """A law fitted to a run so far.

    Attributes:
        law_name: Which law.
        status: "prior": the response to annealing is that of a prior. "own decay": it was learned
            from an earlier decay of this run. Else why there is none.
        fit: None without one.
        samples: Laws that the data would allow as well.
    """

    law_name: str
    status: str
    fit: LawFit | None = None
    samples: Sequence[AnnealingLaw] = field(default=(), repr=False)


@dataclass(frozen=True)
class Forecast:
    """The loss after a hypothetical decay.

    Attributes:
        law_name: Which law.
        decay: Name of the decay.
        status: As of `RunFit`, or why the law is not asked so far ahead.
        first_step: First step of the decay.
        last_step: Its last step.
        loss: Predicted loss after it, nats; None without a prediction.
        low: Lower end of the interval of 90 %.
        high: Its upper end.
        path: (n, 4) step, loss, low and high along the way; None without a prediction.
    """

    law_name: str
    decay: str
    status: str
    first_step: int
    last_step: int
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    path: Array | None = field(default=None, repr=False)


def fit_run(
    law_name: LawName,
    curve: LossCurve,
    prior: AnnealingPrior | None = None,
    *,
    min_points: int = 20,
    num_samples: int = NUM_SAMPLES,
) -> RunFit:
    """Fits a law to a run so far; a constant rate needs a prior.

    The order: a prior; an earlier decay in the run; nothing. To calibrate a law on the losses of
    merged models instead is left out on purpose: a merge lags behind the decay that it emulates, by
    25-45 % of its gain in runs as short as could be measured, and the law would inherit that.

    Args:
        law_name: Which law.
        curve: The run, to the step that it has reached.
        prior: Laws of a smaller model, or of an earlier run of this one.
        min_points: Losses that a fit needs, after the begin is cut off.
        num_samples: Laws for the interval.
    """
    law = LAWS[law_name]
    settled = curve.settled()
    if len(settled) < min_points:
        return RunFit(law_name, f"waiting for losses ({len(settled)} of {min_points})")
    known = prior.laws.get(law_name) if prior is not None else None
    if prior is not None and known is None:
        return RunFit(law_name, f"the prior has no law {law_name}")
    generator = np.random.default_rng(0)
    if prior is not None and known is not None:
        peak = float(curve.rates.max())
        if abs(peak / prior.peak - 1) > PEAK_TOLERANCE:
            return RunFit(law_name, f"prior of peak rate {prior.peak:g}, the run has {peak:g}")
        status, gain_error = "prior", known.gain_error
        alpha_prior = AlphaPrior(known.law.alpha)
        annealed = known.law
        for _ in range(2):  # the second time with the B that the first one found
            fit = fit_progress(annealed, settled, alpha_prior)
            annealed = replace(known.law, B=scale_gain(known.law, fit.law, settled.rates))
    elif has_probe_decay(settled):
        status, gain_error, alpha_prior = "own decay", ERROR_OF_ONE, None
        fit = fit_law(law, [settled])
    else:
        return RunFit(law_name, "no decay seen yet: give prior_path, the law of a smaller run")
    if fit.r2 < LOWEST_R2:
        return RunFit(law_name, f"the law does not fit (R2 {fit.r2:.3f} < {LOWEST_R2})", fit)
    samples = []
    exponents = law.GAIN_EXPONENT + law.EXPONENT_SPREAD * _normals(num_samples, generator)
    errors = np.exp(gain_error * _normals(num_samples, generator))
    laws = resample_progress(fit, settled, alpha_prior, num_samples, generator)
    for sample, exponent, error in zip(laws, exponents, errors, strict=True):
        gain = sample.B
        if known is not None:
            gain = scale_gain(known.law, sample, settled.rates, exponent)
        samples.append(_with_gain(sample, gain * error, settled.rates))
    return RunFit(law_name, status, fit, samples)


def forecast(
    run: RunFit,
    curve: LossCurve,
    decay: str,
    future: Array,
    prior: AnnealingPrior | None = None,
) -> Forecast:
    """Predicts the loss at the end of a decay that begins now.

    Args:
        run: By `fit_run` of the same curve.
        curve: The run, to the step that it has reached.
        decay: Its name.
        future: Rates of the steps to come.
        prior: As for `fit_run`.
    """
    first, last = len(curve.rates), len(curve.rates) + len(future) - 1
    if run.fit is None or not run.samples:
        return Forecast(run.law_name, decay, run.status, first, last)
    if refusal := _refusal(curve, future, prior):
        return Forecast(run.law_name, decay, refusal, first, last)
    rates = np.concatenate([curve.rates, future])
    steps = np.unique(np.linspace(first - 1, last, PATH_POINTS).round().astype(np.int64))
    exposure = run.fit.law.expose(rates, steps)
    centre = run.fit.law.evaluate(exposure)
    # A measured loss has noise of its own, which no law can know.
    noise = run.fit.residual_std * _normals(len(run.samples), np.random.default_rng(1))[:, None]
    others = np.stack([sample.evaluate(exposure) for sample in run.samples]) + noise
    tails = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    low, high = np.quantile(others, tails, axis=0)
    return Forecast(
        run.law_name,
        decay,
        run.status,
        first,
        last,
        loss=float(centre[-1]),
        low=float(low[-1]),
        high=float(high[-1]),
        path=np.stack([steps, centre, low, high], axis=1),
    )


def _normals(count: int, generator: np.random.Generator) -> Array:
    """Standard normal quantiles in random order: the tails of few draws, without their luck."""
    return generator.permutation(stats.norm.ppf((np.arange(count) + 0.5) / count))


def _with_gain(law: AnnealingLaw, gain: float, rates: Array) -> AnnealingLaw:
    """The law with another B that predicts the same loss now."""
    exposure = law.expose(rates, np.array([len(rates) - 1]))
    response = float(law.respond(exposure, law.shape)[0])
    return replace(law, B=gain, L0=law.L0 + (gain - law.B) * response)


def _refusal(curve: LossCurve, future: Array, prior: AnnealingPrior | None) -> str | None:
    """Why a law should not be asked so far ahead."""
    done, total = len(curve.rates), len(curve.rates) + len(future)
    if total > 2 * done:
        return f"horizon of {total} steps is more than twice the {done} done"
    falling = int(np.sum(np.diff(future) < 0))
    reaches_zero = future[-1] < 0.05 * curve.rates.max()
    if prior is not None and reaches_zero and falling > prior.longest_decay:
        return f"decay to 0 over {falling} steps, the prior knows {prior.longest_decay}"
    return None


def has_probe_decay(curve: LossCurve) -> bool:
    """Whether the rate has fallen enough, with enough losses since, to learn the response."""
    low = np.flatnonzero(curve.rates[curve.warmup :] <= (1 - PROBE_DROP) * curve.rates.max())
    return len(low) > 0 and int(np.sum(curve.steps >= curve.warmup + low[0])) >= PROBE_POINTS
