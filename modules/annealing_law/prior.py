"""What finished runs of a family teach about annealing, in a file for the runs that follow."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from .curve import LossCurve
from .fit import fit_law
from .laws import LAWS, AnnealingLaw, Array

FORMAT = "tenfold annealing prior 1"
ERROR_OF_ONE = 0.1  # gain_error of a prior with one annealed curve, at least
SMALLEST_GAIN = 0.01  # nats; below it the relative error of a gain means nothing


@dataclass(frozen=True)
class PriorLaw:
    """A law fitted to the curves of a prior.

    Attributes:
        law: The law.
        r2: Of the fit.
        residual_std: Of one loss, nats.
        gain_error: Typical error of B R: root mean square, over the annealed curves, of the error
            of their last loss as a fraction of B R, each curve being left out of the fit.
    """

    law: AnnealingLaw
    r2: float
    residual_std: float
    gain_error: float


@dataclass(frozen=True)
class AnnealingPrior:
    """Laws with what they were fitted to.

    Attributes:
        laws: By name.
        peak: Highest learning rate of the curves.
        longest_decay: Most steps for which the rate fell in one of them.
        curves: Name, hash and number of steps of each.
    """

    laws: dict[str, PriorLaw]
    peak: float
    longest_decay: int
    curves: list[dict[str, Any]]

    def write(self, path: str | Path) -> None:
        """Writes the JSON file that `read` reads."""
        laws = {
            name: found.law.to_dict() | {quality: getattr(found, quality) for quality in _QUALITY}
            for name, found in self.laws.items()
        }
        content = {"format": FORMAT, "laws": laws} | {
            name: value for name, value in asdict(self).items() if name != "laws"
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: str | Path) -> "AnnealingPrior":
        """Reads a prior.

        Raises:
            ValueError: There is no such file, or it is something else.
        """
        hint = "write one with `tenfold anneal-predict --fit-prior RUN ... --out small.json`"
        if not Path(path).is_file():
            raise ValueError(f"no annealing prior '{path}': {hint}")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r} is not {FORMAT!r}")
            laws = {
                name: PriorLaw(AnnealingLaw.from_dict(found), **{k: found[k] for k in _QUALITY})
                for name, found in content["laws"].items()
            }
            return cls(laws, content["peak"], content["longest_decay"], content["curves"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no annealing prior ({error}): {hint}") from error


_QUALITY = ("r2", "residual_std", "gain_error")


def fit_prior(curves: Sequence[LossCurve], laws: Sequence[str] = tuple(LAWS)) -> AnnealingPrior:
    """Fits laws to the curves of one model, the rate of some of which falls.

    Args:
        curves: Finished runs of one model with the same peak rate, batch size and data. The more
            kinds of decay among them, the better; two runs with a decay are needed for an honest
            `gain_error`.
        laws: Names of the laws.

    Raises:
        ValueError: The peak rates differ, the rate falls in no curve, or a curve is too short.
    """
    peaks = [float(curve.rates.max()) for curve in curves]
    if max(peaks) > 1.001 * min(peaks):
        raise ValueError(
            f"a prior needs runs with one peak learning rate, got {min(peaks):g} to {max(peaks):g}"
        )
    settled = [curve.settled() for curve in curves]
    for curve in settled:
        if not len(curve):
            raise ValueError(f"{curve.name}: no losses after twice the warm-up")
    found = {}
    for name in laws:
        fit = fit_law(LAWS[name], settled)
        error = _gain_error(LAWS[name], settled, fit.law)
        found[name] = PriorLaw(fit.law, fit.r2, fit.residual_std, error)
    return AnnealingPrior(
        found,
        peak=max(peaks),
        longest_decay=max(int(np.sum(np.diff(c.rates[c.warmup :]) < 0)) for c in curves),
        curves=[{"name": c.name, "hash": c.digest(), "steps": len(c.rates)} for c in curves],
    )


def _gain_error(law: type[AnnealingLaw], curves: Sequence[LossCurve], whole: AnnealingLaw) -> float:
    """See `PriorLaw`; of one annealed curve the fit itself says too little."""
    annealed = [curve for curve in curves if curve.is_annealed]
    errors = []
    for curve in annealed:
        others = [other for other in curves if other is not curve]
        fitted = fit_law(law, others, start=whole).law if len(annealed) > 1 else whole
        ends = law.expose(curve.rates, np.array([curve.decay_start - 1, curve.steps[-1]]))
        before, after = whole.B * whole.respond(ends, whole.shape)
        if after - before >= SMALLEST_GAIN:
            last = curve.points(slice(-3, None))
            miss = np.mean(fitted.predict(last.rates, last.steps) - last.losses)
            errors.append(float(miss / (after - before)))
    if not errors:
        return 1.0
    error = float(np.sqrt(np.mean(np.square(errors))))
    return error if len(annealed) > 1 else max(error, ERROR_OF_ONE)


def scale_gain(
    prior: AnnealingLaw, run: AnnealingLaw, rates: Array, exponent: float | None = None
) -> float:
    """B of a run: the prior's times (prior's loss / run's loss)^exponent.

    Both losses are those at constant rate after the steps that the run has done. Larger models gain
    more from annealing at the same rate: about a fifth for four times the parameters. A rule from
    data, without a theory: see `recipes/model_merging/results/annealing_law.md`.

    Args:
        prior: The smaller model's law.
        run: The run's own law, of which L0, A and alpha count.
        rates: The run's rates so far.
        exponent: None: `GAIN_EXPONENT` of the law.
    """
    exponent = prior.GAIN_EXPONENT if exponent is None else exponent
    exposure = prior.expose(rates, np.array([len(rates) - 1]))
    ratio = prior.at_constant_rate(exposure) / run.at_constant_rate(exposure)
    return float(prior.B * ratio[0] ** exponent)
