"""Yes and no as four papers read them; counts against scikit-learn and published tables."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from tenfold.modules.metrics.pope import (
    PopeMetric,
    answer_of_opera,
    answer_of_pope,
    answer_of_vcd,
    first_token_probabilities,
    probabilities_of,
    read_answer,
    yes_no_numbers,
)
from tenfold.modules.metrics.questions import ExactAnswers
from torch.multiprocessing.spawn import spawn

# What an answer is to each; of "vcd" for the label yes and for the label no.
READ = [
    ("Yes.", "yes", "yes", "yes", "yes"),
    ("No.", "no", "no", "no", "no"),
    ("no", "no", "no", "no", "no"),
    ("NO", "yes", "no", "no", "no"),
    ("No, there is none", "no", "no", "no", "no"),
    ("There is not.", "no", "no", "no", "no"),
    ("It isn't there", "yes", "no", "no", "yes"),
    ("", "yes", "yes", "no", "yes"),
    ("Yes, there is no doubt", "no", "no", "yes", "no"),
    ("Yes. There is no doubt", "yes", "no", "yes", "no"),
    ("I know it", "yes", "yes", "no", "no"),
    ("No\nmore", "yes", "yes", "no", "no"),  # a line break is part of a word
]


@pytest.mark.parametrize(("text", "pope", "opera", "vcd_yes", "vcd_no"), READ)
def test_answers_are_read_as_each_paper_does(text, pope, opera, vcd_yes, vcd_no):
    assert answer_of_pope(text) == pope
    assert answer_of_opera(text) == opera
    assert answer_of_vcd(text, "yes") == vcd_yes
    assert answer_of_vcd(text, "no") == vcd_no


words = st.sampled_from(["yes", "Yes", "no", "No", "NO", "not", "none", "don't", "know", "a", ""])
sentences = st.lists(st.tuples(words, st.sampled_from([" ", ". ", ", ", "\n"])), max_size=6)


@given(sentences)
@settings(max_examples=200)
def test_rules_relate_as_their_definitions_say(pieces):
    text = "".join(word + mark for word, mark in pieces)
    first = text.split(".")[0]
    assert answer_of_pope(text) == answer_of_pope(first)  # nothing counts after a period
    if answer_of_pope(text) == "no":
        assert answer_of_opera(text) == "no"  # it knows all words that POPE knows
    lower = text.lower()
    assert (answer_of_vcd(text, "yes") == "yes") == ("yes" in lower)
    assert (answer_of_vcd(text, "no") == "no") == ("no" in lower)
    for extractor in ("pope", "opera", "vcd"):
        for label in ("yes", "no"):
            _, says_something = read_answer(extractor, label, text)
            spoken = {"yes", "Yes", "no", "No", "NO", "not", "don't"}
            split = [w.strip(".,") for w in text.replace("\n", " ").split(" ")]
            assert says_something == bool(spoken & {part for w in split for part in w.split(".")})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Yes", " yes", "YES", "No", " no", "not", "the", "7"]),
            st.floats(0.0, 1.0),
        ),
        max_size=10,
    )
)
def test_the_likeliest_of_the_same_words_counts_alone(pairs):
    pairs = sorted(pairs, key=lambda pair: -pair[1])
    p_yes, p_no = probabilities_of(pairs)
    assert p_yes == max([p for t, p in pairs if t.strip().lower() == "yes"], default=0.0)
    assert p_no == max([p for t, p in pairs if t.strip().lower() == "no"], default=0.0)
    answer, says_something = read_answer("logits", "yes", "", (p_yes, p_no))
    assert answer == ("yes" if p_yes > p_no else "no")  # of equals no
    assert says_something == (p_yes > 0 or p_no > 0)


def test_probabilities_are_those_of_the_ten_likeliest_tokens():
    tokens = ["Yes", "yes ", "No", *(f"w{i}" for i in range(12))]
    logits = torch.full((2, len(tokens)), -30.0)
    logits[0, :3] = torch.tensor([2.0, 1.5, 1.0])
    logits[1, 3:] = torch.arange(12.0)  # yes and no are not among the ten likeliest
    found = first_token_probabilities(logits, tokens.__getitem__)
    total = sum(math.exp(x) for x in (2.0, 1.5, 1.0))
    expected = [[math.exp(2.0) / total, math.exp(1.0) / total], [0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)
    few = first_token_probabilities(logits[:, :3], tokens.__getitem__)
    assert few.shape == (2, 2)


# LLaVA-1.5-7B on POPE-COCO, greedy and sampled: counts and percentages computed by another program
# from the answers that the repository cd_rethink stores.
PUBLISHED = [
    ((1150, 40, 1460, 350), (87.00, 96.64, 76.67, 85.50, 39.67)),
    ((1094, 85, 1415, 406), (83.63, 92.79, 72.93, 81.67, 39.30)),
    ((1150, 73, 1427, 350), (85.90, 94.03, 76.67, 84.47, 40.77)),
    ((1075, 123, 1377, 425), (81.73, 89.73, 71.67, 79.69, 39.93)),
    ((1148, 148, 1352, 352), (83.33, 88.58, 76.53, 82.12, 43.20)),
    ((1114, 219, 1281, 386), (79.83, 83.57, 74.27, 78.64, 44.43)),
]


@pytest.mark.parametrize(("counts", "percentages"), PUBLISHED)
def test_numbers_of_llava_from_its_counts(counts, percentages):
    tp, fp, tn, fn = counts
    said = ["Yes"] * (tp + fp) + ["No"] * (tn + fn)
    true = ["yes"] * tp + ["no"] * (fp + tn) + ["yes"] * fn
    for extractor in ("pope", "opera", "vcd"):
        metric = PopeMetric(extractor)
        metric.update(["coco/random"] * 3000, range(3000), true, said)
        found = metric.compute()
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        numbers = [100 * float(found[f"coco/random/{name}"]) for name in names]
        assert numbers == pytest.approx(percentages, abs=0.0051)


outcomes = st.lists(
    st.tuples(
        st.sampled_from(["coco/random", "coco/popular", "gqa/random"]),
        st.booleans(),
        st.floats(0, 1),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=40,
)


@given(outcomes, st.data())
@settings(max_examples=50, deadline=None)
def test_numbers_are_those_of_scikit_learn_in_any_order_and_however_often(rows, data):
    metric = PopeMetric("logits")
    numbered = list(enumerate(rows))
    repeated = data.draw(st.lists(st.sampled_from(numbered), max_size=5))
    for number, (name, true, p_yes, p_no) in data.draw(st.permutations(numbered)) + repeated:
        pair = torch.tensor([[p_yes, p_no]], dtype=torch.float64)
        metric.update([name], [number], ["yes" if true else "no"], probabilities=pair)
    found = {name: float(value) for name, value in metric.compute().items()}
    datasets = {}
    for name in {row[0] for row in rows}:
        true = [row[1] for row in rows if row[0] == name]
        said = [row[2] > row[3] for row in rows if row[0] == name]
        expected = {
            "accuracy": accuracy_score(true, said),
            "precision": precision_score(true, said, zero_division=0),
            "recall": recall_score(true, said, zero_division=0),
            "f1": f1_score(true, said, zero_division=0),
            "yes_ratio": sum(said) / len(said),
        }
        for number, value in expected.items():
            assert found[f"{name}/{number}"] == pytest.approx(value)
        datasets.setdefault(name.split("/")[0], []).append(expected)
    means = {}
    for dataset, splits in datasets.items():
        means[dataset] = sum(split["f1"] for split in splits) / len(splits)
        assert found[f"{dataset}/f1"] == pytest.approx(means[dataset])
    assert found["f1"] == pytest.approx(sum(means.values()) / len(means))


def test_what_says_nothing_is_counted():
    metric = PopeMetric("pope")
    metric.update(["coco/random"] * 4, range(4), ["yes", "no"] * 2, ["", "Perhaps", "No.", "yes"])
    found = metric.compute()
    assert float(found["coco/random/unparsed_ratio"]) == 0.5
    assert float(found["yes_ratio"]) == 0.75
    pairs = torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    logits = PopeMetric("logits")
    logits.update(["coco/random"] * 2, range(2), ["yes", "no"], probabilities=pairs)
    assert float(logits.compute()["unparsed_ratio"]) == 0.5
    assert float(logits.compute()["yes_ratio"]) == 0.0


def test_nothing_was_asked():
    assert yes_no_numbers(0, 0, 0, 0) == dict.fromkeys(
        ("accuracy", "precision", "recall", "f1", "yes_ratio"), 0.0
    )


def test_one_word_answers():
    metric = ExactAnswers()
    texts, answers = ["7", "The 7", " Red.", "yes, it is", ""], ["7", "7", "red", "yes", "7"]
    metric.update(["tiny/what"] * 5, range(5), texts, answers)
    metric.update(["large/what"], [0], ["3"], ["3"])
    found = metric.compute()
    assert {k: float(v) for k, v in found.items()} == {
        "large/what/accuracy": 1.0,
        "tiny/what/accuracy": 0.6,
    }


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: PopeMetric("guess"), r"extractor: 'guess', expected one of logits, pope"),
        (lambda: PopeMetric("vcd").update(["a/b"], [1], ["maybe"], [""]), r"got 'maybe'"),
        (lambda: PopeMetric("vcd").update(["a/b"], [1], ["yes"]), r"'vcd' reads texts"),
        (lambda: PopeMetric().update(["a/b"], [1], ["yes"], ["yes"]), r"reads probabilities"),
        (lambda: PopeMetric("vcd").update(["a" * 129], [1], ["yes"], [""]), r"more than 128 bytes"),
    ],
)
def test_what_cannot_be_counted_is_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def _rank(rank: int, folder: str):
    file = Path(folder) / "rendezvous"
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    metric, only_one = PopeMetric("pope"), PopeMetric("pope")
    # Questions 0 to 2 and 2 to 4: number 2 was asked twice.
    numbers = [0, 1, 2] if rank == 0 else [2, 3, 4]
    texts = ["yes", "no", "yes"]
    labels = ["yes", "yes", "no"] if rank == 0 else ["no", "no", "yes"]
    metric.update(["coco/random"] * 3, numbers, labels, texts)
    if rank == 1:  # what only one rank has seen
        metric.update(["gqa/popular"], [0], ["no"], ["no"])
        only_one.update(["coco/random"], [0], ["no"], ["no"])
    found = {name: float(value) for name, value in metric.compute().items()}
    # Of yes, no, yes, no, yes for yes, yes, no, no, yes three are right.
    assert found["coco/random/accuracy"] == pytest.approx(3 / 5)
    assert found["coco/random/precision"] == pytest.approx(2 / 3)
    assert found["gqa/popular/accuracy"] == 1
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert float(only_one.compute()["accuracy"]) == 1
    assert PopeMetric("pope").compute() == {}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_count_each_question_once(tmp_path):
    spawn(_rank, (str(tmp_path),), nprocs=2)
