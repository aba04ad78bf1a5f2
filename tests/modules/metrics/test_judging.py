"""Judges on recorded responses: what they are asked, how they are read, what is made of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tenfold.modules.chat import ReplayBackend
from tenfold.modules.metrics.judging import (
    RelativeScore,
    ask_judge,
    read_pair,
    read_rules,
    read_vision_pairs,
    reference_request,
    vision_request,
)

RULE = {"role": "Assistant", "prompt": "Rate both from 1 to 10."}


def record(path, texts):
    lines = [json.dumps({"id": key, "text": text}) for key, text in texts.items()]
    path.write_text("\n".join(lines) + "\n")
    return ReplayBackend(path, key_field="id")


def test_a_judge_of_text_from_request_to_score(tmp_path):
    questions = ["q1", "q2", "q3"]
    requests = [
        reference_request(q, f"What of {q}?", "A cat.\n\ncat: [0, 0, 1, 1]", "ref", f"of {q}", RULE)
        for q in questions
    ]
    assert requests[0].messages[0].content == (
        "[Context]\nA cat.\n\ncat: [0, 0, 1, 1]\n\n[Question]\nWhat of q1?\n\n"
        "[Assistant 1]\nref\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nof q1\n\n[End of Assistant 2]\n\n"
        "[System]\nRate both from 1 to 10.\n\n"
    )
    assert (requests[0].temperature, requests[0].max_new_tokens) == (0.2, 1024)
    replies = {"q1": "8 6\nThe first is better.", "q2": "10, 9", "q3": "I cannot say"}
    pairs = ask_judge(record(tmp_path / "judge.jsonl", replies), requests, read_pair)
    assert pairs == [(8, 6), (10, 9), None]
    metric = RelativeScore()
    metric.update(questions, ["conv", "complex", "conv"], pairs)
    metric.update(questions[:1], ["conv"], [(1, 10)])  # asked twice: does not count
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {
        "conv/relative": pytest.approx(100 * 6 / 8),
        "conv/model": pytest.approx(60),
        "conv/other": pytest.approx(80),
        "complex/relative": pytest.approx(100 * 9 / 10),
        "complex/model": pytest.approx(90),
        "complex/other": pytest.approx(100),
        # Of means, not the mean of shares: 100 * 7.5 / 9.
        "relative": pytest.approx(100 * 7.5 / 9),
        "model": pytest.approx(75),
        "other": pytest.approx(90),
        "unparsed_ratio": pytest.approx(1 / 3),
    }


def test_a_judge_of_images_from_request_to_score(tmp_path):
    image = Image.new("RGB", (4, 4), "red")
    request = vision_request("q1", image, "What is {it}?", "{second} first", "other {question}")
    (message,) = request.messages
    assert message.images == [image]
    text = message.parts[1]
    assert "[Instruction]\nWhat is {it}?\n" in text
    assert "[Assistant 1]\n{second} first\n" in text  # what an answer says is no field
    assert "[Assistant 2]\nother {question}\n" in text
    own = vision_request("q1", image, "Q", "A", "B", prompt='{"q": "{question}"} {first}|{second}')
    assert own.messages[0].parts[1] == '{"q": "Q"} A|B'
    reply = "Accuracy: 7 9\nReason: it sees 3 cats.\n\n**Detailedness:** 5, 8.5\nReason: more."
    (pairs,) = ask_judge(record(tmp_path / "j.jsonl", {"q1": reply}), [request], read_vision_pairs)
    assert pairs == {"accuracy": (7, 9), "detailedness": (5, 8.5)}
    metric = RelativeScore()
    for name, pair in pairs.items():
        metric.update(["q1"], [name], [pair])
    found = metric.compute()
    assert float(found["accuracy/relative"]) == pytest.approx(900 / 7)
    assert float(found["detailedness/model"]) == 85


scores = st.one_of(st.integers(1, 10), st.sampled_from([1.5, 7.25, 9.0]))


@given(scores, scores, st.sampled_from([" ", ", ", ",", "\t"]), st.text(max_size=20))
def test_scores_are_read_back(first, second, between, rest):
    assert read_pair(f"{first}{between}{second}\n{rest}") == (first, second)
    text = (
        f"{rest}\nAccuracy: {first}{between}{second}\nReason: x\nDetailedness: {second} {first}\n"
    )
    if "accuracy" not in rest.lower():
        found = read_vision_pairs(text)
        assert found == {"accuracy": (first, second), "detailedness": (second, first)}


@pytest.mark.parametrize(
    "text",
    ["", "8", "8 9 7", "Scores: 8 9", "0 5", "8 11", "8/10 9/10", "eight nine"],
)
def test_what_is_no_pair_of_scores_is_not_read(text):
    assert read_pair(text) is None
    assert read_vision_pairs(f"Accuracy: {text}\nDetailedness: 5 5") is None
    assert read_vision_pairs(f"Accuracy: 5 5\n{text}") is None


def test_rules_are_those_of_the_file(tmp_path):
    path = tmp_path / "rule.json"
    path.write_text(json.dumps({"conv": {**RULE, "other": 1}}))
    assert read_rules(path) == {"conv": RULE}
    for bad in ("[]", "{", '{"conv": {"role": "x"}}'):
        path.write_text(bad)
        with pytest.raises(ValueError, match="expected an object of category"):
            read_rules(path)
