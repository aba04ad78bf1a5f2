"""MME's scores against counts made by hand and by a plain loop."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.metrics.mme import COGNITION, HALLUCINATION, MmeMetric, answer_of_mme


def scores(rows):
    """Updates one by one with (category, image, number, answer, text)."""
    metric = MmeMetric()
    for category, image, number, answer, text in rows:
        metric.update([number], [image], [category], [answer], [text])
    return {name: float(value) for name, value in metric.compute().items()}


def test_images_count_whole_whatever_the_order():
    # Image a: both right; b: one right; c: none, one of them not readable. By hand: 3 of 6 and
    # 1 of 3 images, 100 * (1 / 2 + 1 / 3).
    rows = [
        ("count", "a.jpg", 1, "yes", "Yes."),
        ("count", "b.jpg", 1, "yes", "yes, it is"),
        ("count", "c.jpg", 1, "yes", "No"),
        ("count", "b.jpg", 2, "no", "Yes"),
        ("count", "a.jpg", 2, "no", " no"),
        ("count", "c.jpg", 2, "no", "There is not"),
    ]
    for order in (rows, rows[::-1], rows + rows[:2]):
        found = scores(order)
        assert found["count/accuracy"] == 0.5
        assert found["count/accuracy_plus"] == pytest.approx(1 / 3)
        assert found["count/score"] == pytest.approx(100 * (1 / 2 + 1 / 3))
        assert found["count/unparsed_ratio"] == pytest.approx(1 / 6)
        assert "hallucination" not in found  # three of its categories have not been seen


outcomes = st.lists(
    st.tuples(
        st.sampled_from([*HALLUCINATION, *COGNITION]), st.sampled_from("abc"), st.integers(1, 2)
    ),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(outcomes, st.data())
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_a_plain_loop(keys, data):
    texts = data.draw(
        st.lists(st.sampled_from(["yes", "No"]), min_size=len(keys), max_size=len(keys))
    )
    answers = data.draw(
        st.lists(st.sampled_from(["yes", "no"]), min_size=len(keys), max_size=len(keys))
    )
    found = scores([(c, i, n, a, t) for (c, i, n), a, t in zip(keys, answers, texts, strict=True)])
    right = defaultdict(lambda: defaultdict(list))
    for (category, image, _), answer, text in zip(keys, answers, texts, strict=True):
        right[category][image].append(answer == text.lower())
    expected = {}
    for category, images in right.items():
        flat = [one for image in images.values() for one in image]
        whole = [all(image) for image in images.values()]
        expected[category] = 100 * sum(flat) / len(flat) + 100 * sum(whole) / len(whole)
        assert found[f"{category}/score"] == pytest.approx(expected[category])
        low, high = found[f"{category}/score_low"], found[f"{category}/score_high"]
        assert 0 <= low <= high <= 200
    for total, categories in (("hallucination", HALLUCINATION), ("cognition", COGNITION)):
        if set(categories) <= set(expected):
            assert found[total] == pytest.approx(sum(expected[name] for name in categories))
        else:
            assert total not in found
    assert "perception" not in found


def test_an_interval_is_that_of_the_binomial_where_it_is_one():
    # With both questions of an image right or both wrong a score is 200 times the share p of right
    # images, and resampled it has the standard deviation 200 * sqrt(p (1 - p) / 30).
    rows = [
        ("count", f"{image}.jpg", number, "yes", "yes" if image < 21 else "no")
        for image in range(30)
        for number in (1, 2)
    ]
    found = scores(rows)
    assert found["count/score"] == pytest.approx(140)
    deviation = 200 * (0.7 * 0.3 / 30) ** 0.5
    assert found["count/score_low"] == pytest.approx(140 - 1.96 * deviation, abs=8)
    assert found["count/score_high"] == pytest.approx(140 + 1.96 * deviation, abs=8)
    assert scores(rows) == found  # from a fixed seed
    sure = scores([(*row[:3], "yes", "yes") for row in rows])
    assert sure["count/score_low"] == sure["count/score_high"] == 200


def test_answers_are_read_by_how_they_begin():
    read = {
        "Yes": "yes",
        "yes, no": "yes",
        "NO.": "no",
        "None": "no",
        "It is": "other",
        "": "other",
    }
    assert {text: answer_of_mme(text) for text in read} == read
    with pytest.raises(ValueError, match="answers of MME are yes or no, got 'maybe'"):
        MmeMetric().update([1], ["a"], ["count"], ["maybe"], ["yes"])
    metric = MmeMetric()
    metric.update([], [], [], [], [])
    assert metric.compute() == {}
