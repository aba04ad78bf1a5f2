"""Paired comparisons against scipy and against enumeration."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score
from tenfold.modules.metrics.paired import PairedAnswers

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8)


def compare(rows):
    """Of (first is right, second is right, the answer is yes)."""
    metric = PairedAnswers(["one", "two"])
    right = torch.tensor([[float(a), float(b)] for a, b, _ in rows])
    labels = ["yes" if yes else "no" for _, _, yes in rows]
    metric.update(["set"] * len(rows), range(len(rows)), right, labels)
    return {name: float(value) for name, value in metric.compute().items()}


def f1(right, is_yes):
    said = [r == y for r, y in zip(right, is_yes, strict=True)]
    return f1_score(is_yes, said, zero_division=0)


@given(OUTCOMES)
@settings(deadline=None, max_examples=15)
def test_numbers_are_those_of_the_definitions(rows):
    found = compare(rows)
    first, second, is_yes = zip(*rows, strict=True)
    assert found["set/two/difference"] == pytest.approx(np.mean(second) - np.mean(first))
    gained = sum(b and not a for a, b, _ in rows)
    lost = sum(a and not b for a, b, _ in rows)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1
    assert found["set/two/p"] == pytest.approx(p)
    difference = f1(second, is_yes) - f1(first, is_yes)
    assert found["set/two/f1_difference"] == pytest.approx(difference)
    # Every way to swap the answers, each as probable.
    all_swaps = []
    for swaps in product([False, True], repeat=len(rows)):
        ones = [b if s else a for (a, b, _), s in zip(rows, swaps, strict=True)]
        twos = [a if s else b for (a, b, _), s in zip(rows, swaps, strict=True)]
        all_swaps.append(abs(f1(twos, is_yes) - f1(ones, is_yes)) >= abs(difference) - 1e-9)
    assert found["set/two/f1_p"] == pytest.approx(np.mean(all_swaps), abs=0.03)


def test_words_have_no_f1_and_more_ways_have_a_row_each():
    metric = PairedAnswers(["one", "two", "three"])
    right = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    metric.update(["s", "s"], ["a", "b"], right, ["7", "3"])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {
        "s/two/difference": -0.5,
        "s/two/p": 1.0,
        "s/three/difference": 0.5,
        "s/three/p": 1.0,
    }
