"""How the law of `anneal-predict` was chosen, and how well it predicts (public curves, 3 sizes).

    python tests/benchmarks/annealing_law.py            about 3 minutes on one idle core

Prints the tables of recipes/model_merging/results/annealing_law.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from tenfold.modules.annealing_law import (
    LAWS,
    AnnealingLaw,
    MultiPowerLaw,
    RelaxationLaw,
    forecasting,
)
from tenfold.modules.annealing_law.curve import LossCurve
from tenfold.modules.annealing_law.fit import AlphaPrior, fit_law, fit_progress
from tenfold.modules.annealing_law.forecasting import fit_run, forecast
from tenfold.modules.annealing_law.prior import AnnealingPrior, PriorLaw, fit_prior

DATA = Path(__file__).parents[1] / "data" / "loss_curves"
PEAK, WARMUP = 3e-4, 2160
NAMES = (
    "constant_24000", "constant_72000", "cosine_24000", "cosine_72000",
    "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_9", "wsdcon_18",
)  # fmt: skip
ROWS = [(s, b, n) for s, b in ((25, 100), (100, 400)) for n in NAMES[4:6]]
COSINES = [(s, b, n) for s, b in ((25, 100), (100, 400)) for n in NAMES[2:4]]
HELD_OUT = [(s, b, n) for s, b in ((25, 100), (100, 400)) for n in NAMES[6:]]
GROUPS = {"wsd": NAMES[4:6], "wsdcon": NAMES[6:], "cosine": NAMES[2:4], "constant": NAMES[1:2]}
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")  # of the authors; they test on the others
TEST = tuple(name for name in NAMES if name not in TRAIN)
PUBLISHED = {
    25: MultiPowerLaw(
        L0=3.04045406, A=0.52468604, alpha=0.50786857, B=363.78751622,
        C=2.06560812, beta=0.58279013, gamma=0.64142257,
    ),
    100: MultiPowerLaw(
        L0=2.6514477, A=0.60115152, alpha=0.45295811, B=437.9464276,
        C=2.13245612, beta=0.59785199, gamma=0.65523644,
    ),
    400: MultiPowerLaw(
        L0=2.37474466, A=0.65421216, alpha=0.42878731, B=523.42464371,
        C=2.02462735, beta=0.59350493, gamma=0.63472457,
    ),
}  # fmt: skip


def schedule(name: str) -> np.ndarray:
    """The learning rate of every step, as the authors' code builds it."""
    steps = {"24000": 24001, "72000": 72001}.get(name.split("_")[1], 16001)
    if name.startswith("wsd") and not name.startswith("wsdcon"):
        steps = 24001
    s = np.arange(steps, dtype=np.float64)
    if name.startswith("cosine"):
        x = np.clip((s - WARMUP) / (steps - 1 - WARMUP), 0, 1)
        rates = 3e-5 + (PEAK - 3e-5) * (1 + np.cos(np.pi * x)) / 2
    elif name.startswith("wsdcon"):
        rates = np.where(s < 8000, PEAK, int(name.split("_")[1]) * 1e-5)
    elif name.startswith("wsd"):
        x = np.clip((s - 20000) / 4000, 0, 1)
        linear = PEAK * (1 - x) + 3e-5 * x
        rates = linear if name.startswith("wsdld") else PEAK ** (1 - x) * 3e-5**x
    else:
        rates = np.full(steps, PEAK)
    rates[:WARMUP] = np.linspace(0, PEAK, WARMUP)
    return rates


def load(size: int, name: str) -> LossCurve:
    """A public curve; points from step 24000 on are dropped, as the authors do."""
    table = np.loadtxt(DATA / f"csv_{size}" / f"{name}.csv", delimiter=",", skiprows=1)
    if "24000" in name:
        table = table[table[:, 0] < 24000]
    return LossCurve(f"{size}M {name}", schedule(name), table[:, 0].astype(np.int64), table[:, 2])


CURVES = {(size, name): load(size, name) for size in (25, 100, 400) for name in NAMES}


def training_curves(size: int) -> list[LossCurve]:
    """The three on which the authors fitted, whole."""
    return [CURVES[size, name] for name in TRAIN]


def mean_error(law: AnnealingLaw, size: int, names: Sequence[str]) -> float:
    """Mean absolute error, averaged over curves."""
    curves = [CURVES[size, name] for name in names]
    errors = [np.abs(law.predict(c.rates, c.steps) - c.losses).mean() for c in curves]
    return float(np.mean(errors))


def learn(law: type[AnnealingLaw], size: int, names: tuple[str, ...] = NAMES) -> AnnealingPrior:
    """A prior without the honest error, which takes longest."""
    curves = [CURVES[size, name].settled() for name in names]
    found = fit_law(law, curves)
    laws = {law.NAME: PriorLaw(found.law, found.r2, found.residual_std, 0.05)}
    return AnnealingPrior(laws, PEAK, 70000, [])


def miss(
    law: type[AnnealingLaw], prior: AnnealingPrior, size: int, name: str
) -> tuple[float, float]:
    """Error at the end of a curve from its constant part alone, and the true drop; nats.

    A cosine has no constant part: it is predicted from constant_24000, another run.
    """
    prefix = constant_part(size, name)
    run = fit_run(law.NAME, prefix, prior, min_points=10, num_samples=2)
    return end_error(run.fit.law, size, name), drop(size, name)


def constant_part(size: int, name: str) -> LossCurve:
    """What is known of a run when its decay begins."""
    curve = CURVES[size, "constant_24000" if name.startswith("cosine") else name]
    return curve.until(8000 if name.startswith("wsdcon") else 20000)


def end_error(law: AnnealingLaw, size: int, name: str) -> float:
    """Predicted minus measured last loss."""
    end = CURVES[size, name].points(slice(-1, None))
    return float(law.predict(end.rates, end.steps)[0] - end.losses[0])


def drop(size: int, name: str) -> float:
    """Last loss of the constant part minus last loss."""
    return float(constant_part(size, name).losses[-1] - CURVES[size, name].losses[-1])


def variant(base: type[AnnealingLaw], **constants: float) -> type[AnnealingLaw]:
    """A law with another power or exponent, in the place of its base."""
    law = type(base.__name__, (base,), constants)
    LAWS[law.NAME] = law
    return law


def left_out(law: type[AnnealingLaw], size: int) -> tuple[float, float]:
    """Mean absolute error (steps >= 8000) and error at the end, of left-out kinds of schedule.

    The rows' own curves (wsd, wsdld of 100M and 400M) are never among those that are judged.
    """
    errors, ends = [], []
    for kind, names in GROUPS.items():
        if kind == "wsd" and size != 25:
            continue
        kept = [CURVES[size, name].settled() for name in NAMES if name not in names]
        fitted = fit_law(law, kept).law
        for name in names:
            curve = CURVES[size, name].points(CURVES[size, name].steps >= 8000)
            residuals = fitted.predict(curve.rates, curve.steps) - curve.losses
            errors.append(np.abs(residuals).mean())
            ends.append(abs(residuals[-3:].mean()))
    return float(np.mean(errors)), float(np.mean(ends))


def summary(law: type[AnnealingLaw], cases: list, priors: dict[int, AnnealingPrior]) -> list:
    """Errors as fractions of the drops."""
    found = [miss(law, priors[small], big, name) for small, big, name in cases]
    return [error / drop for error, drop in found]


def other_rules(prior: AnnealingPrior, size: int, name: str) -> dict[str, float]:
    """Error / drop of the relaxation law where B is scaled by other quantities of the prefix."""
    small, prefix = prior.laws["relaxation"].law, constant_part(size, name).settled()
    run = fit_progress(small, prefix, AlphaPrior(small.alpha)).law
    same_alpha = fit_progress(small, prefix, AlphaPrior(small.alpha, 1e-3)).law
    at = small.expose(prefix.rates, np.array([len(prefix.rates) - 1]))
    excess = [float(law.at_constant_rate(at)[0] - law.L0) for law in (small, run)]
    scales = {
        "A": run.A / small.A,
        "A, alpha kept": same_alpha.A / small.A,
        "A^2, alpha kept": (same_alpha.A / small.A) ** 2,
        "loss - L0": excess[1] / excess[0],
        "slope": excess[1] * run.alpha / (excess[0] * small.alpha),
    }
    laws = {rule: replace(run, B=small.B * scale) for rule, scale in scales.items()}
    return {rule: end_error(law, size, name) / drop(size, name) for rule, law in laws.items()}


def mean(errors: list[float]) -> float:
    """Mean of the sizes."""
    return float(np.mean(np.abs(errors)))


def percent(errors: list[float]) -> str:
    """Mean of the sizes, then each."""
    return f"{mean(errors):.1%}  ({', '.join(f'{e:+.1%}' for e in errors)})"


def show(name: str, law: type[AnnealingLaw]) -> None:
    """Prints the errors of one way to do it."""
    priors = {size: learn(law, size) for size in (25, 100)}
    held, cosines = (mean(summary(law, cases, priors)) for cases in (HELD_OUT, COSINES))
    print(f"  {name:<22}{held:7.1%}{cosines:7.1%}  {percent(summary(law, ROWS, priors))}")


def main() -> None:
    """Prints all tables."""
    print("noise: standard deviation of a loss between two runs, steps 16000 to 24000, nats")
    for size in (25, 100, 400):
        a, b = (
            dict(zip(c.steps.tolist(), c.losses, strict=True))
            for c in (CURVES[size, n] for n in NAMES[:2])
        )
        gaps = [a[s] - b[s] for s in a if s in b and s >= 16000]
        print(f"  {size}M {np.sqrt(np.mean(np.square(gaps)) / 2):.5f}")

    print("fit of the three training curves: mean |error|, on them and on the other six")
    for size in (25, 100, 400):
        fits = {law.NAME: fit_law(law, training_curves(size)).law for law in LAWS.values()}
        for name, law in {"published mpl": PUBLISHED[size], **fits}.items():
            parts = [mean_error(law, size, names) for names in (TRAIN, TEST)]
            print(f"  {size}M {name:<14} {parts[0]:.5f} {parts[1]:.5f}")

    print("left-out kinds of schedule: mean |error|, |error at the end| (25M, 100M, 400M)")
    laws = {"tissue": LAWS["tissue"], "mpl": MultiPowerLaw}
    laws |= {
        f"relaxation, power {power}": variant(RelaxationLaw, PROGRESS_POWER=power)
        for power in (1.0, 0.75, 0.6, 0.5, 0.4)
    }
    for name, law in laws.items():
        cells = [left_out(law, size) for size in (25, 100, 400)]
        print(f"  {name:<22}" + "".join(f"  {mean:.5f} {end:.5f}" for mean, end in cells))

    print("transfer: exponent; wsdcon from 8000 steps | 100M alone, 400M alone | cosine | rows")
    for base in (RelaxationLaw, MultiPowerLaw, LAWS["tissue"]):
        LAWS[base.NAME] = base
        priors = {size: learn(base, size) for size in (25, 100)}
        for exponent in (0.0, 1.0, 1.5, 2.0, 2.5, 3.0):
            law = variant(base, GAIN_EXPONENT=exponent)
            retyped = {}
            for size, prior in priors.items():
                found = prior.laws[law.NAME]
                same = law.from_dict(found.law.to_dict())
                retyped[size] = replace(prior, laws={law.NAME: replace(found, law=same)})
            held = summary(law, HELD_OUT, retyped)
            sizes = [mean(part) for part in (held[:3], held[3:])]
            print(
                f"  {base.NAME:<11}{exponent:4.1f}  {mean(held):6.1%} |"
                f" {sizes[0]:.1%} {sizes[1]:.1%} | {mean(summary(law, COSINES, retyped)):.1%}"
                f" | {percent(summary(law, ROWS, retyped))}"
            )
        LAWS[base.NAME] = base

    print("cosine_24000 and cosine_72000 by the law fitted to all nine of their own size, nats")
    for size in (25, 100, 400):
        law = learn(RelaxationLaw, size).laws["relaxation"].law
        print(f"  {size}M", *(f"{end_error(law, size, name):+.4f}" for name in NAMES[2:4]))

    print("other rules: wsdcon, cosine, rows")
    priors = {size: learn(RelaxationLaw, size) for size in (25, 100)}
    found = [
        [other_rules(priors[small], big, name) for small, big, name in cases]
        for cases in (HELD_OUT, COSINES, ROWS)
    ]
    for rule in found[0][0]:
        cells = [f"{mean([errors[rule] for errors in part]):7.1%}" for part in found]
        print(f"  {rule:<18}" + "".join(cells))

    print("choices of the fit: wsdcon, cosine, rows")
    for power in (0.4, 0.45, 0.55, 0.6):
        show(f"power {power}", variant(RelaxationLaw, PROGRESS_POWER=power))
    show("as it is", variant(RelaxationLaw))
    LAWS["relaxation"] = RelaxationLaw
    for first in (3000, 4000, 6000):
        cut = patch.object(LossCurve, "settled", lambda c, first=first: c.points(c.steps >= first))
        with cut:
            show(f"begin cut at {first}", RelaxationLaw)
    for spread in (0.03, 0.05, 0.2, 5.0):
        prior = partial(AlphaPrior, spread=spread)
        with patch.object(forecasting, "AlphaPrior", prior):
            show(f"spread of alpha {spread}", RelaxationLaw)

    print("rows by what the prior was fitted on")
    kinds = {
        "all nine": NAMES,
        "without wsd, wsdld": tuple(n for n in NAMES if n not in GROUPS["wsd"]),
        "without cosine": tuple(n for n in NAMES if n not in GROUPS["cosine"]),
        "the authors' three": TRAIN,
    }
    for kind, names in kinds.items():
        priors = {size: learn(RelaxationLaw, size, names) for size in (25, 100)}
        print(f"  {kind:<20}{percent(summary(RelaxationLaw, ROWS, priors))}")

    print("coverage of the 90 % interval, every decay of the larger size, four lengths of prefix")
    whole = {size: fit_prior([CURVES[size, n] for n in NAMES]) for size in (25, 100)}
    for law_name in LAWS:
        inside, z = 0, []
        for small, big, name in ROWS + HELD_OUT:
            curve, start = CURVES[big, name], 8000 if name.startswith("wsdcon") else 20000
            for share in (1.0, 0.9, 0.8, 0.7):
                prefix = curve.until(int(share * start))
                future = curve.rates[int(share * start) : int(curve.steps[-1]) + 1]
                run = fit_run(law_name, prefix, whole[small], min_points=8)
                far = forecast(run, prefix, name, future, whole[small])
                if far.loss is None:  # wsdcon from less than 8000 steps: too far ahead
                    continue
                inside += far.low <= curve.losses[-1] <= far.high
                z.append((far.loss - curve.losses[-1]) / (far.high - far.low) * 3.29)
        rms = np.sqrt(np.mean(np.square(z)))
        print(f"  {law_name:<11} {inside}/{len(z)}, rms error {rms:.2f} standard deviations")


if __name__ == "__main__":
    main()
