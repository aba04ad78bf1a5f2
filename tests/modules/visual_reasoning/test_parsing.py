"""What is read from answers, and what is not."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenfold.modules.visual_reasoning import (
    lettered,
    letters,
    read_choice,
    read_choices,
    read_label,
)

# Of a busy machine's speed nothing is to be learned.
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OPTIONS = ["a red square", "a blue circle", "a dark red square", "nothing of these"]
IMAGES = [f"Image {number}" for number in range(1, 7)]

READ = {
    "Answer: B": 1,
    "The shapes are round.\nAnswer: B": 1,
    "Answer: A is tempting, but no.\nAnswer: B": 1,
    "The answer is B.": 1,
    "the answer is (B)": 1,
    "**Answer:** B": 1,
    "**Answer: B**": 1,
    "Answer: **B**.": 1,
    "Answer:\n\nB": 1,
    "Answer: option B": 1,
    "Answer: b": 1,
    "Answer: A because it fits": 0,
    "Answer: B because it fits": 1,
    "Answer: A.": 0,
    "Final answer: C) a dark red square": 2,
    "Answer: a blue circle": 1,
    "Answer: A red square": 0,
    "Answer: A dark red square.": 2,
    "B": 1,
    "(B)": 1,
    "[B].": 1,
    "It is round.\n\n**B**": 1,
    "so: \\boxed{B}": 1,
    "I see a blue circle there.": 1,
    "It must be a dark red square, surely.": 2,
    "What the answer is, I cannot say quickly.\n\nD": 3,
}


@pytest.mark.parametrize("text", READ)
def test_a_choice_is_read(text):
    parsed = read_choice(text, OPTIONS)
    assert (parsed.choices, parsed.status) == ((READ[text],), "ok")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "A man is seen with a hat.",
        "Answer: A man with a hat",
        "Answer: I think that it is hard to tell",
        "Answer: None",
        "Answer: none of the above, though I see a blue circle",
        "Answer: E",
        "Answer: A and B",
        "Answer: B or C",
        "A, B",
        "It is either a red square or a blue circle.",
        "Your question cannot be answered.",
        "The answer isn't clear",
        "E255",
        "Because",
    ],
)
def test_what_is_no_choice_never_becomes_one(text):
    parsed = read_choice(text, OPTIONS)
    assert (parsed.choices, parsed.status) == ((), "failed")


def test_a_lone_letter_is_a_choice_and_an_article_is_not():
    assert read_choice("A", OPTIONS).choices == (0,)
    assert read_choice("A square", OPTIONS).status == "failed"


@pytest.mark.parametrize(
    ("text", "choices", "warnings"),
    [
        ("Answer: B, D", (1, 3), ()),
        ("Answer: B and D", (1, 3), ()),
        ("Answer: [D, B]", (3, 1), ()),
        ("Answer: B", (1,), ("too_few",)),
        ("Answer: B, D, A", (1, 3), ("too_many",)),
        ("Answer: B, B, D", (1, 3), ()),
        ("Answer: B, Z, D", (1, 3), ("unknown",)),
        ("Answer: Images 2 and 4", (1, 3), ()),
        ("Answer: 2, 4", (1, 3), ()),
        ("B, D", (1, 3), ()),
        ("Image 2 has wings and Image 4 flies", (1, 3), ()),
        ("Answer: B, D because they fly", (1, 3), ()),
    ],
)
def test_several_choices(text, choices, warnings):
    parsed = read_choices(text, IMAGES, 2)
    assert (parsed.choices, parsed.warnings, parsed.status) == (choices, warnings, "ok")


@pytest.mark.parametrize("text", ["", "None of them.", "Answer: none", "Answer: 9", "A bird"])
def test_no_choices_at_all(text):
    assert read_choices(text, IMAGES, 2).status == "failed"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Verdict: correct", "correct"),
        ("Verdict: incorrect", "incorrect"),
        ("It is not correct.\n**Verdict: incorrect**", "incorrect"),
        ("verdict: correct\nOn reflection, verdict: incorrect.", "incorrect"),
        ("Incorrect.", "incorrect"),
        ("It is correct that there is a dog", None),
        ("", None),
    ],
)
def test_verdicts(text, label):
    assert read_label(text, ("correct", "incorrect")) == label


FORMS = ["Answer: {}", "the answer is {}.", "**Answer:** ({})", "{}", "Reason.\n{}", "Answer: {})"]


@PROPERTY
@given(st.integers(2, 12), st.data())
def test_every_letter_is_read_in_every_form(number, data):
    place = data.draw(st.integers(0, number - 1))
    form = data.draw(st.sampled_from(FORMS))
    options = [f"thing {word}" for word in ["one", "two", "three", "four", "five", "six", "seven"]]
    options = [*options, *(f"object {k}" for k in range(5))][:number]
    assert read_choice(form.format(letters(number)[place]), options).choices == (place,)


WORDS = ["the", "cat", "sat", "on", "my", "mat", "while", "it", "rained"]


@PROPERTY
@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_prose_without_letters_or_options_is_never_an_answer(words):
    assert read_choice(" ".join(words), OPTIONS).status == "failed"


@PROPERTY
@given(st.text(max_size=80), st.integers(1, 6))
def test_nothing_is_read_that_is_not_an_option(text, number):
    parsed = read_choices(text, IMAGES, number)
    assert len(set(parsed.choices)) == len(parsed.choices) <= number
    assert all(0 <= place < len(IMAGES) for place in parsed.choices)
    assert (parsed.status == "ok") == bool(parsed.choices)


def test_options_with_letters():
    assert lettered(OPTIONS[:2]) == "A. a red square\nB. a blue circle"
    with pytest.raises(ValueError, match="27 options"):
        letters(27)
