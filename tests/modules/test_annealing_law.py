"""The laws against their definitions and closed forms, and the schedules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.annealing_law.laws import (
    LAWS,
    AnnealingLaw,
    HypotheticalDecay,
    LRHistory,
    MultiPowerLaw,
    RelaxationLaw,
    TissueLaw,
    decay_start,
    warmup_steps,
)
from tenfold.modules.optimization import WarmupStableDecay
from torch import zeros
from torch.optim import SGD

MPL = MultiPowerLaw(L0=3.0, A=0.5, alpha=0.5, B=400.0, C=2.0, beta=0.6, gamma=0.6)
TISSUE = TissueLaw(L0=3.0, A=0.5, alpha=0.5, B=0.4)
RELAXATION = RelaxationLaw(L0=3.0, A=0.5, alpha=0.5, B=0.1, C=100.0, beta=1.5)
PEAK = 3e-4


def wsd(warmup=50, constant=400, decay=150, end=0.1) -> np.ndarray:
    down = PEAK * np.linspace(1, end, decay)
    return np.concatenate([np.linspace(0, PEAK, warmup), np.full(constant, PEAK), down])


# Definitions, written as double sums


def mpl_by_definition(law: MultiPowerLaw, rates: np.ndarray, step: int) -> float:
    drop = 0.0
    for k in range(1, step + 1):
        since = rates[k : step + 1].sum()
        x = law.C * max(rates[k], 1e-10) ** -law.gamma * since
        drop += (rates[k - 1] - rates[k]) * (1 - (1 + x) ** -law.beta)
    return law.L0 + law.A * rates[: step + 1].sum() ** -law.alpha - law.B * drop


def relaxation_by_definition(law: RelaxationLaw, rates: np.ndarray, step: int) -> float:
    peak, top = rates.max(), int(rates.argmax())
    progress = peak * sum(math.sqrt(rate / peak) for rate in rates[: step + 1])
    response = 0.0
    for k in range(top + 1, step + 1):
        since = rates[k : step + 1].sum()
        fall = (rates[k - 1] - rates[k]) / peak
        response += fall * (1 - (1 + law.C * since) ** -law.beta)
    return law.L0 + law.A * progress**-law.alpha - law.B * response


def tissue_by_definition(law: TissueLaw, rates: np.ndarray, step: int) -> float:
    rates = np.where(np.arange(len(rates)) < rates.argmax(), rates.max(), rates)
    response = sum(
        (rates[k - 1] - rates[k]) * 0.999 ** (i - k)
        for i in range(1, step + 1)
        for k in range(1, i + 1)
    )
    return law.L0 + law.A * rates[: step + 1].sum() ** -law.alpha - law.B * response


@pytest.mark.parametrize(
    ("law", "definition"),
    [
        (MPL, mpl_by_definition),
        (RELAXATION, relaxation_by_definition),
        (TISSUE, tissue_by_definition),
    ],
    ids=lambda value: getattr(value, "NAME", ""),
)
def test_a_law_is_its_double_sum(law, definition):
    rates = wsd()
    steps = np.array([60, 449, 500, 599])
    expected = [definition(law, rates, int(step)) for step in steps]
    np.testing.assert_allclose(law.predict(rates, steps), expected, rtol=2e-7)


@pytest.mark.parametrize("law", [MPL, RELAXATION], ids=lambda law: law.NAME)
def test_long_decays_are_taken_in_pieces_without_a_visible_error(law):
    rates = wsd(2000, 8000, 4000)
    step = 13999
    changes = np.flatnonzero(np.diff(rates, prepend=rates[0]))
    areas = np.cumsum(rates)
    if law is RELAXATION:
        changes = changes[changes > 2000]
        assert law.expose(rates, np.array([step])).areas.shape[1] < len(changes)
    speed = law.C * (rates[changes] ** -law.gamma if law is MPL else 1.0)
    falls = (rates[changes - 1] - rates[changes]) / (1.0 if law is MPL else PEAK)
    response = falls @ (1 - (1 + speed * (areas[step] - areas[changes - 1])) ** -law.beta)
    power = 1.0 if law is MPL else 0.5
    progress = PEAK * ((rates[: step + 1] / PEAK) ** power).sum()
    expected = law.L0 + law.A * progress**-law.alpha - law.B * response
    assert law.predict(rates, np.array([step]))[0] == pytest.approx(expected, abs=1e-5)


def test_relaxation_is_the_noise_of_sgd_on_a_quadratic():
    """Its response is what the variance of SGD does, averaged over gamma-distributed curvatures."""
    beta, scale = 1.5, 40.0
    curvatures = np.random.default_rng(0).gamma(beta, scale, size=20000)
    rates = wsd(0, 300, 300, 0.2)
    variance = np.full_like(curvatures, rates[0])
    for rate in rates:  # continuous limit of v <- (1 - h eta)^2 v + h eta^2: towards v = eta
        variance = rate + (variance - rate) * np.exp(-curvatures * rate)
    gain = 1 - variance.mean() / rates[0]
    law = RelaxationLaw(0.0, 0.0, 0.5, 1.0, C=scale, beta=beta)
    assert -law.predict(rates, np.array([599]))[0] == pytest.approx(gain, rel=0.02)


def test_a_rate_of_zero_gives_a_number():
    rates = np.concatenate([wsd(), np.zeros(50)])
    for law in (MPL, RELAXATION, TISSUE):
        assert np.isfinite(law.predict(rates, np.array([len(rates) - 1]))[0])


def test_at_constant_rate_only_progress_counts_and_warmup_conventions_differ():
    rates = wsd(100, 500, 0)
    at = np.array([599])
    assert RELAXATION.predict(rates, at)[0] == pytest.approx(
        3.0 + 0.5 * (PEAK * (np.sqrt(np.linspace(0, 1, 100)).sum() + 500)) ** -0.5
    )
    assert TISSUE.predict(rates, at)[0] == pytest.approx(3.0 + 0.5 * (PEAK * 600) ** -0.5)
    assert MPL.predict(rates, at)[0] > 3.0 + 0.5 * rates.sum() ** -0.5  # its rises raise it


def test_a_step_outside_the_schedule_is_an_error():
    with pytest.raises(ValueError, match="steps 0 to 600 are not all within the 600 steps"):
        MPL.predict(wsd(), np.array([0, 600]))


@pytest.mark.parametrize("law", [MPL, RELAXATION, TISSUE], ids=lambda law: law.NAME)
def test_a_law_survives_its_file_and_refuses_another_convention(law):
    content = law.to_dict()
    assert AnnealingLaw.from_dict(content) == law
    with pytest.raises(ValueError, match="fit it again"):
        AnnealingLaw.from_dict(content | {"convention": "warm-up left out"})
    with pytest.raises(ValueError, match="expected the parameters L0, A, alpha, B"):
        AnnealingLaw.from_dict(content | {"parameters": {"L0": 1.0}})
    with pytest.raises(ValueError, match="'chinchilla' is none of relaxation, mpl, tissue"):
        AnnealingLaw.from_dict(content | {"law": "chinchilla"})
    assert LAWS[law.NAME] is type(law)


# Schedules


@given(st.lists(st.sampled_from([1e-4, 2e-4, 3e-4, 0.0]), max_size=60))
def test_run_lengths_are_the_rates(rates):
    history = LRHistory.of(rates)
    assert history.rates().tolist() == rates
    assert len(history) == len(rates)
    assert all(a != b for a, b in zip(history.values, history.values[1:], strict=False))


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_a_hypothetical_decay_is_that_of_the_schedule(shape):
    optimizer = SGD([zeros(1)], lr=PEAK)
    schedule = WarmupStableDecay(optimizer, 10, 0.2, shape, 0.1, num_training_steps=500)
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    decay = HypotheticalDecay(decay_ratio=0.2, shape=shape, min_ratio=0.1)
    np.testing.assert_allclose(decay.rates(400, PEAK), rates[400:], rtol=1e-9)


@settings(max_examples=50)
@given(
    st.integers(1, 3000), st.floats(0.01, 0.9), st.sampled_from(["linear", "cosine", "exp"]),
    st.floats(0, 0.9),
)  # fmt: skip
def test_a_decay_falls_from_the_rate_to_its_floor(num_steps, ratio, shape, floor):
    decay = HypotheticalDecay(decay_ratio=ratio, shape=shape, min_ratio=floor)
    rates = decay.rates(num_steps, PEAK)
    assert len(rates) / (num_steps + len(rates)) == pytest.approx(ratio, abs=1 / num_steps)
    assert np.all(np.diff(rates) <= 0)
    assert floor * PEAK <= rates[-1] <= rates[0] <= PEAK


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "needs either decay_ratio or decay_steps"),
        ({"decay_ratio": 0.1, "decay_steps": 5}, "needs either decay_ratio or decay_steps"),
        ({"decay_ratio": 1.0}, "decay_ratio: 1.0 is not between 0 and 1"),
        ({"decay_steps": 0}, "decay_steps: 0 is not at least 1"),
        ({"decay_steps": 5, "shape": "sqrt"}, "shape: 'sqrt' is none of linear, cosine"),
        ({"decay_steps": 5, "min_ratio": 1.0}, "min_ratio: 1.0 is not from 0 to below 1"),
    ],
)
def test_a_wrong_decay_is_one_line(settings_, message):
    with pytest.raises(ValueError, match=message):
        HypotheticalDecay(**settings_)


def test_names_of_decays():
    assert HypotheticalDecay(decay_ratio=0.2).label == "1-sqrt_20%"
    assert HypotheticalDecay(decay_steps=50, min_ratio=0.1).label == "1-sqrt_50steps_to_0.1"
    assert HypotheticalDecay("mine", decay_steps=50).label == "mine"


def test_phases_of_a_schedule():
    rates = wsd(50, 400, 150)
    assert warmup_steps(rates) == 49  # the last step of the warm-up is at the peak
    assert decay_start(rates) == 451  # the first rate of the decay is the peak still
    assert decay_start(rates[:300]) == 300
    probed = np.concatenate([rates, np.full(100, PEAK)])
    assert decay_start(probed) == len(probed)
