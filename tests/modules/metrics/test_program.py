"""Metrics of programs: against closed forms, scikit-image-like definitions and plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import LANGUAGE, square
from tenfold.datamodules.programs import ProgramSampler
from tenfold.modules.art2prog.drawing import Renderer
from tenfold.modules.art2prog.evaluation import program_facts
from tenfold.modules.art2prog.layers import program_of
from tenfold.modules.metrics.program import (
    ProgramScores,
    TokenScores,
    compare_programs,
    exec_match,
    goal_reached,
    line_edit,
)
from torchmetrics.functional.image import peak_signal_noise_ratio

RICH = replace(LANGUAGE, opacities=(0.5,))
RENDERER = Renderer(RICH, 64)


def facts(*layers):
    return program_facts([program_of(layers)], RICH, RENDERER)[0]


def compare(found, target):
    return compare_programs(facts(*found), facts(*target))


BELOW, ABOVE = square(0, 0, 4), square(2, 2, 4, color=1)


def test_a_program_is_like_itself():
    values = compare((BELOW, ABOVE), (BELOW, ABOVE))
    ones = {"ssim", "exec_match", "goal_reached", "exact_match", "length_ratio", "layer_count"}
    ones |= {"layer_iou", "visible_iou", "mode", "order", "color", "opacity"}
    assert {name for name, value in values.items() if value == pytest.approx(1, abs=1e-5)} == ones
    assert values["mse"] == values["line_edit"] == 0
    assert values["blank_mse"] > 0.05


def test_what_is_wrong_is_what_is_counted():
    target = (BELOW, ABOVE)
    mode = compare((BELOW, replace(ABOVE, mode="multiply")), target)
    assert (mode["mode"], mode["color"], mode["layer_iou"]) == (0, 1, 1)
    assert mode["line_edit"] == pytest.approx(1 / 13)
    order = compare((ABOVE, BELOW), target)
    assert (order["order"], order["mode"], order["color"]) == (-1, 1, 1)
    color = compare((BELOW, replace(ABOVE, color=3)), target)
    assert (color["color"], color["mode"]) == (0.5, 1)
    half = compare((replace(BELOW, opacity=0), ABOVE), target)
    assert (half["opacity"], half["exact_match"]) == (0.5, 0)
    missing = compare((BELOW,), target)
    assert missing["layer_count"] == 0
    assert missing["layer_iou"] == pytest.approx(0.5)
    assert "mode" not in missing
    assert "order" not in missing
    moved = compare((BELOW, square(3, 2, 4, color=1)), target)
    assert moved["layer_iou"] == pytest.approx((1 + 12 / 20) / 2, abs=1e-3)
    hidden = compare((square(0, 0, 4), square(1, 1, 4, color=1)), (BELOW, square(1, 1, 4, color=2)))
    assert hidden["visible_iou"] == hidden["layer_iou"] == pytest.approx(1, abs=1e-5)


def test_pairs_that_hardly_overlap_are_not_asked_about():
    apart = compare((BELOW, square(5, 5, 2, color=1)), (BELOW, square(5, 5, 2, color=1)))
    assert not {"mode", "order", "opacity"} & apart.keys()


def test_thresholds_of_matches():
    target = torch.full((3, 100, 100), 0.5)
    image = target.clone()
    image[0, :5, :10] = 0.6  # 50 of 10,000 pixels
    assert exec_match(image, target)
    image[1, 50, 50] = 0.6
    assert not exec_match(image, target)
    assert exec_match(target + 7.9 / 255, target)
    assert not exec_match(target + 8.1 / 255, target)
    # Mean log-density above 0.99 of its maximum, by the formula itself.
    for error in np.linspace(0.001, 0.04, 40):
        density = math.exp(-(error**2) / 0.02) / (0.1 * math.sqrt(2 * math.pi))
        highest = 1 / (0.1 * math.sqrt(2 * math.pi))
        expected = math.log(density) > 0.99 * math.log(highest)
        assert goal_reached(target + error, target) == expected


def levenshtein(a, b):
    rows = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        previous, rows = rows, [i]
        for j, y in enumerate(b, 1):
            rows.append(min(previous[j] + 1, rows[-1] + 1, previous[j - 1] + (x != y)))
    return rows[-1]


def test_distance_of_lines_is_that_of_levenshtein():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = ([f"line {n}" for n in rng.integers(0, 4, rng.integers(1, 9))] for _ in "ab")
        assert line_edit(a, b) == pytest.approx(levenshtein(a, b) / max(len(a), len(b)))


def test_scores_are_means_over_all_and_by_layers():
    sampler = ProgramSampler(LANGUAGE, layer_probs=[0.4, 0.3, 0.3])
    programs = [sampler.program(np.random.default_rng(seed)) for seed in range(24)]
    found = program_facts(programs, LANGUAGE, Renderer(LANGUAGE, 32))
    pairs = list(zip(found, found[1:] + found[:1], strict=True))
    values = [compare_programs(*pair) for pair in pairs]
    layers = [len(target.colors) for _, target in pairs]
    whole, parts = ProgramScores(), [ProgramScores(), ProgramScores()]
    whole.update(values, layers)
    for part, rows in zip(parts, (slice(0, 10), slice(10, 24)), strict=True):
        part.update(values[rows], layers[rows])
    for name in ("sums", "counts"):  # what reduction over ranks does
        setattr(parts[0], name, getattr(parts[0], name) + getattr(parts[1], name))
    one, other = whole.compute(), parts[0].compute()
    assert one.keys() == other.keys()
    assert all(float(one[name]) == pytest.approx(float(other[name])) for name in one)
    by_hand = [v["mse"] for v, n in zip(values, layers, strict=True) if n == 2]
    assert float(one["mse/2_layers"]) == pytest.approx(np.mean(by_hand))
    images = [torch.stack([facts.image for facts in side]) for side in zip(*pairs, strict=True)]
    assert float(one["psnr"]) == pytest.approx(
        float(peak_signal_noise_ratio(*images, data_range=1.0)), rel=1e-4
    )


def test_tokens_are_counted_by_kind():
    scores = TokenScores(("a", "b", "c"))
    loss = torch.tensor([1.0, 2.0, 3.0, 6.0])
    right = torch.tensor([True, False, True, True])
    scores.update(loss, right, torch.tensor([0, 0, 1, 1]))
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found == {
        "loss": 3.0,
        "token_accuracy": 0.75,
        "token_accuracy_a": 0.5,
        "token_accuracy_b": 1.0,
    }
