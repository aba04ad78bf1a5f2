"""`tenfold anneal-predict`: what would a run score after a decay, from its loss curve alone.

Imports no torch, and numpy, scipy and matplotlib only when the command runs.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..modules.merge_weights import DecayShape

if TYPE_CHECKING:
    from ..modules.annealing_law import HypotheticalDecay, LawName
    from ..modules.annealing_law.curve import LossCurve
    from ..modules.annealing_law.forecasting import Forecast
    from ..modules.annealing_law.prior import AnnealingPrior


def anneal_predict(
    curve: str | None = None,
    prior: Path | None = None,
    fit_prior: list[str] | None = None,
    until: int | None = None,
    decay_ratio: float | None = None,
    decay_steps: int | None = None,
    shape: DecayShape = "1-sqrt",
    min_ratio: float = 0.0,
    laws: list[Literal["relaxation", "mpl", "tissue"]] | None = None,
    warmup: int | None = None,
    min_points: int = 20,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Predict the loss after a learning-rate decay from the constant part of a run.

    `tenfold anneal-predict --fit-prior small/*.csv --out small.json` learns from finished runs of a
    smaller model what annealing does; `tenfold anneal-predict --curve runs/large --prior small.json
    --decay-ratio 0.2` predicts.

    Args:
        curve: Run directory (with loss_curve.csv and lr_history.json), or CSV with columns
            step,lr,loss. Between the steps of a CSV the rate is interpolated.
        prior: File written by --fit-prior or by a run (annealing_law.json).
        fit_prior: Finished runs to learn from, as --curve: of one model, some with a decay.
        until: Optimizer steps of the run that are known; default: up to the last loss, or to the
            decay if the run has one. What came later is compared with the prediction.
        decay_ratio: Length of the decay as a fraction of the whole run, decay included (0.2).
        decay_steps: Length in optimizer steps instead.
        shape: Shape of the decay.
        min_ratio: Last rate as a fraction of the rate now.
        laws: Which laws; default: all.
        warmup: Steps of the linear warm-up of a CSV; default: up to its first loss.
        min_points: Losses that a fit needs, after twice the warm-up.
        out: Folder for prediction.json, prediction.csv and prediction.png; with --fit-prior the
            file to write.
        overwrite: Replace what is there.

    Raises:
        ValueError: A file is none, or what is asked is contradictory; one line with the fix.
    """
    # Before numpy is imported: matrices this small are slower with two threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if (curve is None) == (fit_prior is None):
        raise ValueError(
            "anneal-predict needs either --curve RUN (to predict) or --fit-prior RUN ... (to learn)"
        )
    names = [] if out is None else [out]
    if curve is not None and out is not None:
        names = [out / f"prediction.{kind}" for kind in ("json", "csv", "png")]
    for path in names:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: choose another --out or pass --overwrite")
    from ..modules.annealing_law import LAW_NAMES, HypotheticalDecay
    from ..modules.annealing_law.curve import read_curve

    chosen: list[LawName] = list(laws or LAW_NAMES)
    if fit_prior is not None:
        if out is None or out.suffix != ".json":
            raise ValueError("--fit-prior needs --out FILE.json, the prior to write")
        _fit_prior([read_curve(name, warmup) for name in fit_prior], chosen, out)
        return
    assert curve is not None
    if decay_ratio is None and decay_steps is None:
        decay_ratio = 0.2
    decay = HypotheticalDecay(None, decay_ratio, decay_steps, shape, min_ratio)
    from ..modules.annealing_law.prior import AnnealingPrior

    known = None if prior is None else AnnealingPrior.read(prior)
    _predict(read_curve(curve, warmup), known, until, decay, chosen, min_points, out)


def _fit_prior(curves: "list[LossCurve]", laws: "list[LawName]", out: Path) -> None:
    from ..modules.annealing_law.prior import fit_prior

    found = fit_prior(curves, laws)
    found.write(out)
    print(f"{'law':<12}{'R2':>9}{'residual':>10}{'error of B R':>14}")
    for name, law in found.laws.items():
        print(f"{name:<12}{law.r2:9.4f}{law.residual_std:10.4f}{law.gain_error:14.1%}")
    print(f"{out}: {len(curves)} curves, peak rate {found.peak:g}")
    if sum(curve.is_annealed for curve in curves) < 2:
        print("the error is a guess: a second run with a decay would tell")


def _predict(
    whole: "LossCurve",
    prior: "AnnealingPrior | None",
    until: int | None,
    decay: "HypotheticalDecay",
    laws: "list[LawName]",
    min_points: int,
    out: Path | None,
) -> None:
    import numpy as np

    from ..modules.annealing_law.forecasting import fit_run, forecast

    if until is None:
        until = min(whole.decay_start, int(whole.steps[-1]) + 1)
    if not 0 < until <= len(whole.rates):
        raise ValueError(f"--until {until}: the run has {len(whole.rates)} steps")
    curve = whole.until(until)
    futures = {decay.label: decay.rates(until, float(curve.rates[-1]))}
    actual = whole.rates[until : int(whole.steps[-1]) + 1] if len(whole.steps) else np.zeros(0)
    if len(actual) and actual[-1] < curve.rates[-1]:
        futures["actual"] = actual
    fits = [fit_run(name, curve, prior, min_points=min_points) for name in laws]
    forecasts = [
        forecast(fit, curve, name, future, prior)
        for name, future in futures.items()
        for fit in fits
    ]
    print(f"{whole.name}: {until} steps known, {len(curve)} losses, the last {_last(curve)}")
    _print(forecasts)
    if "actual" in futures:
        print(f"actual: {whole.losses[-1]:.4f} at step {whole.steps[-1]}")
    if out is not None:
        _write(out, whole, forecasts, until)
        print(f"{out}: prediction.json, prediction.csv, prediction.png")


def _last(curve: "LossCurve") -> str:
    return f"{curve.losses[-1]:.4f}" if len(curve) else "none"


def _print(forecasts: "list[Forecast]") -> None:
    width = max(len(found.decay) for found in forecasts) + 2
    print(f"{'law':<12}{'decay':<{width}}{'steps':>16}{'loss':>9}{'90 %':>19}  status")
    for found in forecasts:
        steps = f"{found.first_step}-{found.last_step}"
        numbers = f"{'-':>9}{'':>19}"
        if found.loss is not None:
            numbers = f"{found.loss:9.4f}{f'{found.low:.4f} to {found.high:.4f}':>19}"
        print(f"{found.law_name:<12}{found.decay:<{width}}{steps:>16}{numbers}  {found.status}")


def _write(out: Path, whole: "LossCurve", forecasts: "list[Forecast]", until: int) -> None:
    import csv
    from dataclasses import asdict

    from ..modules.annealing_law.figure import draw_annealing
    from ..modules.files import atomic_write, write_json

    rows = [{k: v for k, v in asdict(found).items() if k != "path"} for found in forecasts]
    content = {"curve": whole.name, "hash": whole.digest(), "known_steps": until}
    write_json(out / "prediction.json", content | {"predictions": rows})
    with atomic_write(out / "prediction.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(out / "prediction.png") as file:
        draw_annealing(whole, forecasts, split=until).savefig(file, format="png")
