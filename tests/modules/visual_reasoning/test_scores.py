"""Questions, rows and scores: against enumeration, closed forms and another program."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from tenfold.modules.visual_reasoning import (
    Count,
    Question,
    ReasoningScores,
    chance_of,
    jaccard,
    logged,
    row_of,
    score_row,
)

# Of a busy machine's speed nothing is to be learned.
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DATA = Path(__file__).parents[2] / "data" / "winogavil"


def choice(number, right, raw, **more):
    more = {"set": "set", "options": ("x1", "x2", "x3", "x4"), **more}
    return row_of(Question(id=str(number), text="?", answers=(right,), **more), raw=raw)


def compute(rows):
    scores = ReasoningScores()
    for begin in range(0, len(rows), 3):
        scores.update(rows[begin : begin + 3])
    return scores.compute()


def test_jaccard_of_hand_made_rows():
    options = ("bee", "ant", "cow", "dog", "owl")
    expected = {"Answer: A, B": 1.0, "Answer: A, C": 1 / 3, "Answer: C, D": 0.0, "Answer: B": 0.5}
    expected |= {"Answer: B, A, C, D": 1.0, "Answer: E, Z, A": 1 / 3, "no idea": 0.0}
    for raw, value in expected.items():
        question = Question("1", "s", "?", options=options, answers=(0, 1), metric="jaccard")
        assert row_of(question, raw=raw)["value"] == pytest.approx(value), raw
    assert jaccard([], [1, 2]) == 0


@pytest.mark.parametrize(("number", "right"), [(5, 2), (6, 3), (6, 4), (12, 2), (10, 4), (4, 1)])
def test_chance_is_the_mean_over_all_subsets(number, right):
    subsets = list(itertools.combinations(range(number), right))
    mean = np.mean([jaccard(subset, range(right)) for subset in subsets])
    if right == 1:
        mean = np.mean([subset == (0,) for subset in subsets])
    assert chance_of(number, right) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(("split", "chance"), [("5_6", 30.1), ("10_12", 14.2), ("swow", 38.5)])
def test_chance_on_the_real_games_is_the_known_one(split, chance):
    """The number of games by candidates and answers, counted in the whole files."""
    counts = json.loads((DATA / "counts.json").read_text())[split]
    cells = [(count, *map(int, cell.split("/"))) for cell, count in counts.items()]
    mean = sum(n * chance_of(*cell) for n, *cell in cells) / sum(n for n, *_ in cells)
    assert 100 * mean == pytest.approx(chance, abs=0.05)


@PROPERTY
@given(st.integers(2, 7), st.data())
def test_options_keep_their_images_captions_and_truth_in_any_order(number, data):
    order = data.draw(st.permutations(range(number)))
    names = tuple(f"n{k}" for k in range(number))
    right = tuple(sorted(data.draw(st.sets(st.integers(0, number - 1), min_size=1))))
    question = Question(
        *("1", "s", "?"),
        images=("shown", *names),
        options=names,
        option_images=tuple(range(1, number + 1)),
        captions=("c", *(f"c{name}" for name in names)),
        answers=right,
        metric="jaccard",
    )
    moved = question.reordered(order)
    assert moved.images[0] == "shown"
    assert moved.option_images == question.option_images
    for place, option in enumerate(moved.options):
        assert moved.images[moved.option_images[place]] == option
        assert moved.captions[moved.option_images[place]] == f"c{option}"
        assert question.options[moved.permutation[place]] == option
    assert {moved.options[k] for k in moved.answers} == {names[k] for k in right}
    back = [moved.permutation.index(k) for k in range(number)]
    assert moved.reordered(back).options == names
    assert question.shuffled(3) == question.shuffled(3)


def test_shuffling_puts_the_right_option_everywhere():
    questions = [
        Question(str(k), "s", "?", options=tuple("abcd"), answers=(0,)) for k in range(800)
    ]
    places = np.bincount([q.shuffled(0).answers[0] for q in questions], minlength=4)
    assert (abs(places - 200) < 4 * math.sqrt(800 * 3 / 16)).all()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answers": ()}, "no right answer"),
        ({"answers": (4,)}, "right answers"),
        ({"answers": (0, 1)}, "metric 'jaccard'"),
        ({"option_images": (0,)}, "1 images of 2 options"),
        ({"images": ("a",), "captions": ("x", "y")}, "2 captions, 1 images"),
    ],
)
def test_questions_that_do_not_fit_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        Question(
            **{"id": "7", "set": "s", "text": "?", "options": ("a", "b"), "answers": (0,)} | changed
        )


def test_scores_of_single_questions():
    raws = ["Answer: A", "Answer: B", "What?", "Answer: A"]
    found = compute([choice(k, 0, raw) for k, raw in enumerate(raws)])
    score = found["set/accuracy"]
    assert (score.value, score.n, score.chance) == (0.5, 4, 0.25)
    assert score.stderr == pytest.approx(math.sqrt(0.25 / 4))
    assert found["set/parse_fail_rate"].value == 0.25
    assert found["set/error_rate"].value == 0


def test_an_error_is_wrong_and_counted_as_such():
    question = Question("1", "set", "?", options=("a", "b"), answers=(0,))
    found = compute([row_of(question, raw="", error="status 500")])
    assert found["set/accuracy"].value == 0
    assert found["set/error_rate"].value == 1
    assert found["set/parse_fail_rate"].value == 0


def unit(number, name, raw, size=2):
    counts = (Count(name, f"{number}{name}"), Count("both", str(number), size))
    return choice(f"{number}{name}", 0, raw, options=("y", "n"), group=str(number), counts=counts)


def test_questions_of_one_unit_are_right_together():
    rows = [unit(1, "p", "Answer: A"), unit(1, "q", "Answer: A")]
    rows += [unit(2, "p", "Answer: A"), unit(2, "q", "Answer: B")]
    rows += [unit(3, "p", "Answer: A")]  # its other half was not asked
    found = compute(rows)
    assert (found["set/p"].value, found["set/p"].n) == (1, 3)
    assert (found["set/both"].value, found["set/both"].n) == (0.5, 2)
    assert found["set/both"].chance == 0.25


def test_categories_and_repeated_rows():
    rows = [
        choice(k, 0, "Answer: A", categories={"style": "comic" if k else "photo"}) for k in range(4)
    ]
    found = compute([*rows, *rows])
    assert found["set/accuracy"].n == 4
    assert found["set/style=comic/accuracy"].n == 3
    assert "set/style=comic/accuracy" not in logged(found)
    assert logged(found)["set/accuracy_chance"] == 0.25


def test_intervals_draw_groups_and_agree_with_scipy():
    rng = np.random.default_rng(0)
    right = rng.random(120) < 0.6
    alone = compute(
        [choice(k, 0, "Answer: A" if ok else "Answer: B") for k, ok in enumerate(right)]
    )
    interval = bootstrap(
        (right.astype(float),), np.mean, method="percentile", rng=1
    ).confidence_interval
    score = alone["set/accuracy"]
    assert (score.low, score.high) == pytest.approx(tuple(interval), abs=0.015)
    # Four questions with one fate each: a quarter of the evidence, twice the width.
    rows = [choice(4 * k + j, 0, "Answer: A" if ok else "Answer: B", group=str(k))
            for k, ok in enumerate(right) for j in range(4)]  # fmt: skip
    grouped = compute(rows)["set/accuracy"]
    assert grouped.high - grouped.low == pytest.approx(score.high - score.low, rel=0.05)
    assert grouped.stderr == pytest.approx(score.stderr / 2, rel=0.01)


def test_free_answers_have_a_verdict_or_failed():
    question = Question("1", "set", "Why?", references=("Because.",))
    texts = {
        "Verdict: correct": (1.0, "ok"),
        "Verdict: incorrect": (0.0, "ok"),
        "": (0.0, "failed"),
    }
    for text, (value, status) in texts.items():
        row = row_of(question, raw="So.", verdict_raw=text)
        assert (row["value"], row["status"], row["chance"]) == (value, status, None)
    found = compute([row])
    assert math.isnan(found["set/accuracy"].chance)
    assert "set/accuracy_chance" not in logged(found)


def test_a_row_read_from_disk_is_scored_the_same():
    row = choice(1, 2, "I think so.\nAnswer: C")
    again = score_row(json.loads(json.dumps(row)))
    assert again == row
    assert row["value"] == 1.0
    assert score_row({**row, "raw": "Answer: B"})["value"] == 0.0
