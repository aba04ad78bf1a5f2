"""The law of RealSyn's figure 7, from the numbers that the paper prints."""

import numpy as np
import pytest
from tenfold.modules.log_law import LogLaw, fit_log_law

# Figure 7 and table of averages, ViT-B/32: millions of images -> score.
SIZES = [12, 15, 30, 60]
SCORES = {
    "linear probe": ([0.70, 0.714, 0.739, 0.75], 0.76),
    "transfer": ([0.45, 0.479, 0.521, 0.54], 0.56),
    "robustness": ([0.28, 0.315, 0.378, 0.41], 0.43),
}
# Coefficients as printed, and what the paper measured at 30 million.
PRINTED = {
    "linear probe": (LogLaw(0.21, 4.23, 0.80), 0.739),
    "transfer": (LogLaw(0.30, 5.68, 0.62), 0.521),
    "robustness": (LogLaw(0.60, 3.17, 0.56), 0.378),
}


@pytest.mark.parametrize("name", SCORES)
def test_it_foretells_the_papers_largest_run(name):
    scores, at_100 = SCORES[name]
    assert float(fit_log_law(SIZES, scores)(100)) == pytest.approx(at_100, abs=0.011)


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_coefficients_mean_the_natural_logarithm(name):
    law, at_30 = PRINTED[name]
    assert float(law(30)) == pytest.approx(at_30, abs=0.006)


@pytest.mark.parametrize(
    "law", [LogLaw(0.21, 4.23, 0.8), LogLaw(2.0, -30.0, 1.5), LogLaw(0.01, 10.9, 0)]
)
def test_it_is_found_again(law):
    sizes = [12, 13, 15, 20, 30, 60]
    found = fit_log_law(sizes, law(sizes))
    at = np.array([12, 25, 100, 1000])
    np.testing.assert_allclose(found(at), law(at), atol=2e-4 * max(1, law.a))


def test_no_other_law_of_the_family_fits_better():
    scores, _ = SCORES["transfer"]
    found = fit_log_law(SIZES, scores)
    error = np.sum((found(SIZES) - scores) ** 2)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        a, b, c = generator.uniform((0.5 * found.a, -50, 0), (2 * found.a, 10.9, 1))
        other = LogLaw(a, b, c)
        assert np.sum((other(SIZES) - scores) ** 2) >= error


@pytest.mark.parametrize(
    ("sizes", "scores", "message"),
    [
        ([1, 2], [0.1, 0.2], "3 or more sizes"),
        ([1, 2, 2], [0.1, 0.2, 0.3], "3 or more sizes"),
        ([1, 2, 3], [0.1, 0.2], "expected as many"),
        ([1, 2, 3], [0.3, 0.2, 0.1], "do not grow"),
        ([0, 2, 3], [0.3, 0.2, 0.1], "must be positive"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, scores, message):
    with pytest.raises(ValueError, match=message):
        fit_log_law(sizes, scores)


def test_beyond_its_pole_it_says_nothing_and_it_can_be_drawn():
    law = LogLaw(0.2, 4, 0.8)
    with pytest.raises(ValueError, match="above b"):
        law([5, 10])
    scores, _ = SCORES["linear probe"]
    (axes,) = fit_log_law(SIZES, scores).figure(SIZES, scores, 100).axes
    assert len(axes.lines) == 3
