"""Fits, priors and forecasts: on curves made by a law, and on the public curves."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tenfold.modules.annealing_law.curve import LossCurve, read_curve, write_curve
from tenfold.modules.annealing_law.figure import MergedLoss, draw_annealing
from tenfold.modules.annealing_law.fit import AlphaPrior, fit_law, fit_progress, resample_progress
from tenfold.modules.annealing_law.forecasting import fit_run, forecast
from tenfold.modules.annealing_law.laws import (
    LAWS,
    AnnealingLaw,
    HypotheticalDecay,
    LRHistory,
    MultiPowerLaw,
    RelaxationLaw,
    TissueLaw,
)
from tenfold.modules.annealing_law.prior import AnnealingPrior, PriorLaw, fit_prior, scale_gain

PEAK = 3e-4
TRUE = {
    "relaxation": RelaxationLaw(L0=3.0, A=0.5, alpha=0.5, B=0.1, C=100.0, beta=1.5),
    "mpl": MultiPowerLaw(L0=3.0, A=0.5, alpha=0.5, B=400.0, C=2.0, beta=0.6, gamma=0.6),
    "tissue": TissueLaw(L0=3.0, A=0.5, alpha=0.5, B=0.4),
}


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    """The benchmark that chose the law; its numbers are those of the results file."""
    path = Path(__file__).parents[1] / "benchmarks" / "annealing_law.py"
    spec = importlib.util.spec_from_file_location("annealing_law_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(
    law: AnnealingLaw, constant=6000, decay=1500, shape="linear", end=0.1, noise=0.0, name="made"
) -> LossCurve:
    """A curve that follows a law, with a loss after every 50th step."""
    warm = np.concatenate([np.linspace(0, PEAK, 300), np.full(constant, PEAK)])
    rates = warm
    if decay:
        down = HypotheticalDecay(decay_steps=decay, shape=shape, min_ratio=end)
        rates = np.concatenate([warm, down.rates(len(warm), PEAK)])
    steps = np.arange(399, len(rates), 50)
    losses = law.predict(rates, steps)
    losses = losses + noise * np.random.default_rng(len(rates)).normal(size=len(losses))
    return LossCurve(name, rates, steps, losses)


def family(law: AnnealingLaw, noise=0.0) -> list[LossCurve]:
    return [
        made(law, 9000, 0, noise=noise, name="constant"),
        made(law, 6000, 1500, noise=noise, name="linear"),
        made(law, 3000, 3000, "cosine", noise=noise, name="cosine"),
        made(law, 4000, 800, "1-sqrt", 0.3, noise=noise, name="1-sqrt"),
    ]


# Curves made by a law


@pytest.mark.parametrize("name", LAWS)
def test_a_fit_finds_the_law_that_made_the_curves(name):
    curves = family(TRUE[name])
    found = fit_law(LAWS[name], curves)
    assert found.r2 > 0.99999
    for curve in [*curves, made(TRUE[name], 5000, 2500, "1-sqrt")]:
        predicted = found.law.predict(curve.rates, curve.steps)
        np.testing.assert_allclose(predicted, curve.losses, atol=5e-4)


@pytest.mark.parametrize("name", LAWS)
def test_a_fit_ends_in_the_same_place_every_time(name):
    curves = family(TRUE[name], noise=1e-3)
    assert fit_law(LAWS[name], curves) == fit_law(LAWS[name], curves)


def test_outliers_do_not_move_a_fit():
    curve = made(TRUE["tissue"], 6000, 0, noise=1e-4)
    losses = curve.losses.copy()
    losses[::10] += 0.3
    fits = [fit_progress(TRUE["tissue"], replace(curve, losses=v)) for v in (curve.losses, losses)]
    ends = [fit.law.predict(curve.rates, curve.steps[-1:])[0] for fit in fits]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_coefficients_are_never_negative():
    rising = made(TRUE["tissue"], 6000, 0)
    rising = replace(rising, losses=rising.losses[::-1].copy())
    law = fit_progress(TRUE["tissue"], rising).law
    assert law.A == 0
    assert law.L0 > 0


def test_a_prior_of_alpha_steadies_a_short_prefix():
    law = TRUE["relaxation"]
    whole, rng = made(law, 9000, 0), np.random.default_rng(0)
    truth = whole.losses[-1]
    misses: dict[AlphaPrior | None, list[float]] = {None: [], AlphaPrior(law.alpha): []}
    for _ in range(12):
        noisy = replace(whole, losses=whole.losses + 2e-2 * rng.normal(size=len(whole)))
        for prior, found in misses.items():
            fitted = fit_progress(law, noisy.until(1500), prior).law
            found.append(abs(fitted.predict(whole.rates, whole.steps[-1:])[0] - truth))
    without, with_prior = (np.mean(found) for found in misses.values())
    assert with_prior < without / 2
    # With much data it does not hold a run to another run's alpha.
    found = fit_progress(law, made(law, 9000, 0, noise=1e-4), AlphaPrior(0.7)).law
    assert found.alpha == pytest.approx(law.alpha, abs=0.02)


def test_resampled_laws_spread_as_refits_of_new_noise_do():
    law, rng = TRUE["relaxation"], np.random.default_rng(3)
    clean = made(law, 5000, 0)
    far = np.array([8000])
    rates = np.full(8001, PEAK)
    ends = []
    for _ in range(30):
        noisy = replace(clean, losses=clean.losses + 1e-3 * rng.normal(size=len(clean)))
        fit = fit_progress(law, noisy, AlphaPrior(0.5))
        ends.append(fit.law.predict(rates, far)[0])
    samples = resample_progress(fit, noisy, AlphaPrior(0.5), 60, np.random.default_rng(0))
    spread = np.std([sample.predict(rates, far)[0] for sample in samples])
    assert np.std(ends) / 2 < spread < 2.5 * np.std(ends)


def test_what_cannot_be_fitted_is_said():
    constant = made(TRUE["mpl"], 6000, 0)
    with pytest.raises(ValueError, match="mpl: the learning rate falls in no curve"):
        fit_law(MultiPowerLaw, [constant])
    with pytest.raises(ValueError, match="5 points for the 7 constants of mpl"):
        fit_law(MultiPowerLaw, [constant.points(slice(5))])
    with pytest.raises(ValueError, match="made: 3 losses for 3 constants"):
        fit_progress(TRUE["mpl"], constant.points(slice(3)))


# Priors


def test_a_prior_survives_its_file(tmp_path):
    prior = fit_prior(family(TRUE["relaxation"], noise=1e-3), ["relaxation", "tissue"])
    prior.write(tmp_path / "small.json")
    assert AnnealingPrior.read(tmp_path / "small.json") == prior
    assert prior.longest_decay == 2999
    assert prior.peak == PEAK
    assert [curve["name"] for curve in prior.curves] == ["constant", "linear", "cosine", "1-sqrt"]
    assert 0 < prior.laws["relaxation"].gain_error < 0.05  # the law that made them
    assert prior.laws["tissue"].gain_error > prior.laws["relaxation"].gain_error


def test_one_annealed_curve_gives_no_small_error():
    prior = fit_prior([made(TRUE["relaxation"])], ["relaxation"])
    assert prior.laws["relaxation"].gain_error == 0.1


def test_a_file_that_is_no_prior_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no annealing prior '.*none.json': write one with"):
        AnnealingPrior.read(tmp_path / "none.json")
    for content in ("{", "[]", '{"format": "other"}', '{"laws": {}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=r"bad.json: no annealing prior \("):
            AnnealingPrior.read(tmp_path / "bad.json")


def test_curves_of_two_peak_rates_make_no_prior():
    one = made(TRUE["tissue"])
    other = replace(one, rates=one.rates * 2)
    with pytest.raises(ValueError, match=r"one peak learning rate, got 0.0003 to 0.0006"):
        fit_prior([one, other])


def test_gain_grows_with_the_inverse_square_of_the_loss():
    small = TRUE["relaxation"]
    large = replace(small, L0=2.0)
    rates = np.full(4000, PEAK)
    ratio = small.predict(rates, np.array([3999]))[0] / large.predict(rates, np.array([3999]))[0]
    assert scale_gain(small, large, rates) == pytest.approx(small.B * ratio**2)
    assert scale_gain(small, large, rates, 0.0) == small.B
    assert scale_gain(TRUE["mpl"], replace(TRUE["mpl"], L0=2.0), rates) == TRUE["mpl"].B


# Forecasts


def prior_of(law: AnnealingLaw, **changes) -> AnnealingPrior:
    laws = {law.NAME: PriorLaw(law, 1.0, 1e-3, 0.05)}
    return replace(AnnealingPrior(laws, PEAK, 3000, []), **changes)


@pytest.mark.parametrize("name", LAWS)
def test_the_decay_of_a_run_is_foretold_from_its_constant_part(name):
    curve = made(TRUE[name], 6000, 1500, "1-sqrt", noise=5e-4)
    prefix = curve.until(6300)
    prior = prior_of(TRUE[name])
    run = fit_run(name, prefix, prior)
    found = forecast(run, prefix, "real", curve.rates[6300:], prior)
    assert (run.status, found.status) == ("prior", "prior")
    assert (found.first_step, found.last_step) == (6300, 7799)
    truth = TRUE[name].predict(curve.rates, np.array([7799]))[0]
    assert found.loss == pytest.approx(truth, abs=2e-3)
    assert found.low < truth < found.high
    assert found.path[-1].tolist() == [7799, found.loss, found.low, found.high]
    assert found.path[0, 1] == pytest.approx(prefix.losses[-1], abs=3e-3)
    again = forecast(fit_run(name, prefix, prior), prefix, "real", curve.rates[6300:], prior)
    assert (again.loss, again.low, again.high) == (found.loss, found.low, found.high)


def test_without_a_prior_a_constant_rate_foretells_nothing():
    curve = made(TRUE["mpl"], 6000, 0)
    run = fit_run("mpl", curve)
    assert run.status == "no decay seen yet: give prior_path, the law of a smaller run"
    found = forecast(run, curve, "any", np.linspace(PEAK, 0, 1000))
    assert (found.loss, found.low, found.path) == (None, None, None)
    assert found.status == run.status


def test_an_earlier_decay_of_the_run_stands_in_for_a_prior():
    law = TRUE["relaxation"]
    probe = made(law, 3000, 800, "linear", 0.1)
    rates = np.concatenate([probe.rates, np.full(4000, PEAK)])
    future = PEAK * np.linspace(1, 0.1, 1000)
    steps = np.arange(399, len(rates), 50)
    curve = LossCurve("probed", rates, steps, law.predict(rates, steps))
    run = fit_run("relaxation", curve)
    found = forecast(run, curve, "again", future)
    assert run.status == "own decay"
    everything = np.concatenate([rates, future])
    truth = law.predict(everything, np.array([len(everything) - 1]))[0]
    assert found.loss == pytest.approx(truth, abs=3e-3)


@pytest.mark.parametrize(
    ("changes", "future", "status"),
    [
        ({}, np.full(7000, PEAK), "horizon of 13300 steps is more than twice the 6300 done"),
        (
            {"longest_decay": 500},
            np.linspace(PEAK, 0, 900),
            "decay to 0 over 899 steps, the prior knows 500",
        ),
        ({"peak": 1e-3}, np.linspace(PEAK, 0, 900), "prior of peak rate 0.001, the run has 0.0003"),
        ({"laws": {}}, np.linspace(PEAK, 0, 900), "the prior has no law relaxation"),
    ],
)
def test_a_law_is_not_asked_beyond_what_it_knows(changes, future, status):
    curve = made(TRUE["relaxation"], 6000, 0)
    prior = prior_of(TRUE["relaxation"], **changes)
    run = fit_run("relaxation", curve, prior, num_samples=4)
    found = forecast(run, curve, "far", future, prior)
    assert found.status == status
    assert found.loss is None


def test_bad_fits_and_short_runs_have_a_status():
    prior = prior_of(TRUE["relaxation"])
    curve = made(TRUE["relaxation"], 6000, 0)
    assert fit_run("relaxation", curve.until(1000), prior).status == (
        "waiting for losses (9 of 20)"
    )
    noise = np.random.default_rng(0).normal(size=len(curve))
    noisy = replace(curve, losses=curve.losses + 0.2 * noise)
    assert "the law does not fit (R2 0." in fit_run("relaxation", noisy, prior).status


def test_the_figure_shows_losses_merges_and_forecasts():
    curve = made(TRUE["tissue"], 6000, 1500)
    prefix, prior = curve.until(6300), prior_of(TRUE["tissue"])
    runs = [fit_run("tissue", prefix, prior, num_samples=8), fit_run("mpl", prefix, prior)]
    forecasts = [forecast(run, prefix, "real", curve.rates[6300:], prior) for run in runs]
    merged = [MergedLoss("sma", step, step - 499, 3.3) for step in (5000, 6000)]
    figure = draw_annealing(curve, forecasts, merged, split=6300)
    labels = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert labels == [
        "loss",
        "loss afterwards",
        "merged sma: as if decaying for 500 steps",
        f"tissue: real: {forecasts[0].loss:.4f}",
        "mpl: the prior has no law mpl",
    ]
    low, high = figure.axes[0].get_ylim()
    assert low < forecasts[0].low
    assert high < curve.losses[0]  # the steep begin is left out


# Files of curves


def test_a_run_directory_gives_back_what_was_written(tmp_path):
    curve = made(TRUE["tissue"])
    points = [
        (int(s), float(curve.rates[s]), float(v))
        for s, v in zip(curve.steps, curve.losses, strict=True)
    ]
    write_curve(tmp_path, points, LRHistory.of(curve.rates))
    found = read_curve(tmp_path)
    np.testing.assert_array_equal(found.rates, curve.rates)
    np.testing.assert_array_equal(found.steps, curve.steps)
    np.testing.assert_array_equal(found.losses, curve.losses)
    assert found.digest() == curve.digest()
    assert len(json.loads((tmp_path / "lr_history.json").read_text())["values"]) < 1810


def test_a_csv_is_interpolated_after_its_warmup(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,lr,loss,split\n10,0.1,3.0,val\n14,0.1,9,train\n20,0.2,2.5,val\n")
    curve = read_curve(path)
    assert curve.rates[:11].tolist() == [*np.linspace(0, 0.1, 10), 0.1]
    assert curve.rates[15] == pytest.approx(0.15)
    assert curve.losses.tolist() == [3.0, 2.5]
    assert read_curve(path, warmup=0).rates[:11].tolist() == [0.1] * 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,2\n", "no column lr; expected step,lr,loss"),
        ("step,lr,loss\n", "no losses in it"),
        ("step,lr,loss\n1,0.1,x\n", "a value is no number"),
        ("step,lr,loss\n5,0.1,2\n5,0.1,2\n", "run: the steps are not increasing"),
        ("step,lr,loss\n1,0.1,nan\n", "run: a loss is not a positive number"),
    ],
)
def test_a_wrong_table_is_one_line(text, message, tmp_path):
    (tmp_path / "run.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_curve(tmp_path / "run.csv")


def test_a_folder_without_a_history_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no lr_history.json there; a run writes it with"):
        read_curve(tmp_path)
    with pytest.raises(ValueError, match=r"no file and no run directory 'nothing.csv'"):
        read_curve("nothing.csv")


# The public curves


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("constant_72000", 0.001580),
        ("cosine_72000", 0.007445),
        ("wsd_20000_24000", 0.003408),
        ("wsdld_20000_24000", 0.003136),
        ("wsdcon_3", 0.004487),
        ("wsdcon_18", 0.002505),
    ],
)
def test_published_constants_give_the_published_errors(name, error, bench):
    assert bench.mean_error(bench.PUBLISHED[25], 25, [name]) == pytest.approx(error, abs=2e-6)


@pytest.mark.parametrize(("size", "error"), [(25, 0.00376), (100, 0.00435), (400, 0.00484)])
def test_published_constants_give_the_published_average(size, error, bench):
    average = bench.mean_error(bench.PUBLISHED[size], size, bench.TEST)
    assert average == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("size", [25, 100, 400])
def test_our_fit_of_the_multi_power_law_is_better_than_the_published_one(size, bench):
    curves = bench.training_curves(size)

    def cost(law: AnnealingLaw) -> float:
        residuals = [np.log(law.predict(c.rates, c.steps) / c.losses) for c in curves]
        size_ = np.abs(np.concatenate(residuals))
        return float(np.where(size_ <= 1e-3, size_**2 / 2, 1e-3 * (size_ - 5e-4)).sum())

    fitted = fit_law(MultiPowerLaw, curves).law
    assert cost(fitted) < cost(bench.PUBLISHED[size])
    for name in bench.TRAIN:
        ours, theirs = (
            bench.mean_error(law, size, [name]) for law in (fitted, bench.PUBLISHED[size])
        )
        assert ours < theirs * 1.05


@pytest.mark.parametrize(("size", "error"), [(25, 0.00732), (100, 0.00622), (400, 0.00658)])
def test_the_tissue_fit_agrees_with_the_specification(size, error, bench):
    fitted = fit_law(TissueLaw, bench.training_curves(size)).law
    assert bench.mean_error(fitted, size, bench.TEST) == pytest.approx(error, rel=0.05)


@pytest.fixture(scope="session")
def learned(bench) -> dict[int, AnnealingPrior]:
    """What the nine curves of a size teach about the relaxation law."""
    curves = {size: [bench.CURVES[size, name] for name in bench.NAMES] for size in (25, 100)}
    return {size: fit_prior(family_, ["relaxation"]) for size, family_ in curves.items()}


def test_the_annealed_loss_of_the_next_size_is_foretold_within_3_percent_of_the_drop(
    bench, learned
):
    errors = bench.summary(RelaxationLaw, bench.ROWS, learned)
    assert np.mean(np.abs(errors)) < 0.03
    # The curves by which the exponent of the gain was chosen.
    held_out = bench.summary(RelaxationLaw, bench.HELD_OUT, learned)
    assert np.mean(np.abs(held_out)) < 0.02


@pytest.mark.slow
def test_intervals_cover_and_published_forms_are_no_better(bench, learned):
    for small, big, name in bench.ROWS + bench.HELD_OUT:
        curve = bench.CURVES[big, name]
        start = 8000 if name.startswith("wsdcon") else 20000
        prefix = curve.until(start)
        run = fit_run("relaxation", prefix, learned[small], min_points=10)
        future = curve.rates[start : int(curve.steps[-1]) + 1]
        found = forecast(run, prefix, name, future, learned[small])
        assert found.low < curve.losses[-1] < found.high
    priors = {size: bench.learn(MultiPowerLaw, size) for size in (25, 100)}
    ours, theirs = (
        np.mean(np.abs(bench.summary(law, bench.ROWS, p)))
        for law, p in ((RelaxationLaw, learned), (MultiPowerLaw, priors))
    )
    assert ours < theirs


@pytest.mark.slow
def test_left_out_schedules_choose_the_relaxation_law(bench):
    for size in (25, 100, 400):
        ours, theirs = (bench.left_out(law, size)[0] for law in (RelaxationLaw, MultiPowerLaw))
        assert ours < theirs
