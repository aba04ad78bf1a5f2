"""POPE's numbers (Li et al. 2023), and the four ways in which papers read yes or no.

They do not agree: what one calls yes is no to another. Name the one that was used.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .questions import QuestionMetric

Extractor = Literal["logits", "pope", "opera", "vcd"]
EXTRACTORS: tuple[Extractor, ...] = get_args(Extractor)
Answer = Literal["yes", "no"]
NUM_CANDIDATES = 10  # first tokens that Perception Magnifier looks at
NEGATIVE_WORDS = {"pope": {"No", "no", "not"}, "opera": {"No", "no", "not", "NO"}}
NUMBERS = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed_ratio")


def answer_of_pope(text: str) -> Answer:
    """Reads an answer as POPE's own evaluation: no, if a word up to the first period says so.

    "No", "no" and "not" do, commas left out. All else is yes, also an empty answer.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIVE_WORDS["pope"].intersection(words) else "yes"


def answer_of_opera(text: str) -> Answer:
    """Reads an answer as OPERA: no, if a word anywhere says so.

    "No", "no", "not", "NO" and words that end in "n't" do, commas and periods left out; so "No.1"
    is the word "No1", and a period does not end what is read.
    """
    words = text.replace(".", "").replace(",", "").split(" ")
    is_negative = NEGATIVE_WORDS["opera"].intersection(words)
    return "no" if is_negative or any(word.endswith("n't") for word in words) else "yes"


def answer_of_vcd(text: str, label: str) -> Answer:
    """Reads an answer as VCD: right, if it has the label anywhere in it.

    The label counts: "not" and "know" hold a "no", and what holds both is always right.
    """
    is_right = label in text.lower()
    return "yes" if is_right == (label == "yes") else "no"


def answer_of_logits(p_yes: float, p_no: float) -> Answer:
    """Reads probabilities as Perception Magnifier: yes, if it is more probable; of equals, no."""
    return "yes" if p_yes > p_no else "no"


def probabilities_of(candidates: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Returns the probabilities of yes and of no among the likeliest first tokens.

    Spaces and capitals do not count; of several tokens that are the same word the likeliest does
    alone (nothing is summed). What is not among them has probability 0.

    Args:
        candidates: Token and probability, the likeliest first.
    """
    found: dict[str, float] = {}
    for token, probability in candidates:
        found.setdefault(token.strip().lower(), probability)
    return found.get("yes", 0.0), found.get("no", 0.0)


def first_token_probabilities(
    logits_BV: Tensor, decode: Callable[[int], str], num_candidates: int = NUM_CANDIDATES
) -> Tensor:
    """Takes the probabilities of yes and no from the scores of the first token.

    Args:
        logits_BV: Scores of the first token of each answer, (B, V).
        decode: Text of a token id, such as `lambda i: tokenizer.decode([i])`.
        num_candidates: The likeliest tokens are looked at, no more than there are.

    Returns:
        (B, 2) float64 on the CPU: p(yes), p(no), of a softmax over all V in float32.
    """
    probabilities = logits_BV.detach().float().softmax(dim=-1)
    best = probabilities.topk(min(num_candidates, probabilities.shape[-1]), dim=-1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    pairs = [
        probabilities_of([(decode(i), p) for i, p in zip(ids, ps, strict=True)]) for ids, ps in rows
    ]
    return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def read_answer(
    extractor: Extractor, label: str, text: str, probabilities: Sequence[float] = ()
) -> tuple[Answer, bool]:
    """Reads one answer; returns it, and whether it said anything.

    "logits" without yes or no among the candidates has said nothing; a text, if none of its words
    is "yes", "no" or "not" or ends in "n't".

    Args:
        extractor: How it is read.
        label: What is right; only "vcd" looks at it.
        text: What the model said; "logits" does not look at it.
        probabilities: Of yes and of no, for "logits".
    """
    if extractor == "logits":
        p_yes, p_no = probabilities
        return answer_of_logits(p_yes, p_no), p_yes > 0 or p_no > 0
    words = re.findall(r"[a-z']+", text.lower())
    says_something = any(word in ("yes", "no", "not") or word.endswith("n't") for word in words)
    if extractor == "vcd":
        return answer_of_vcd(text, label), says_something
    return (answer_of_pope if extractor == "pope" else answer_of_opera)(text), says_something


class PopeMetric(QuestionMetric):
    """Accuracy, precision, recall, F1 of yes, and how often yes was said.

    `compute` returns, as float64 shares in [0, 1], for each set `<dataset>/<split>/<number>` with
    the numbers `accuracy`, `precision`, `recall`, `f1`, `yes_ratio` and `unparsed_ratio`; for each
    data set `<dataset>/<number>`, the plain mean of its splits; and `<number>`, the plain mean of
    the data sets. A share of nothing is 0.

    Args:
        extractor: How answers are read: "logits" (probabilities of the first token, as Perception
            Magnifier), or the rule of "pope", "opera" or "vcd" on the text.

    Raises:
        ValueError: There is no such extractor.
    """

    def __init__(self, extractor: Extractor = "logits") -> None:
        super().__init__(num_values=3)
        if extractor not in EXTRACTORS:
            raise ValueError(f"extractor: {extractor!r}, expected one of {', '.join(EXTRACTORS)}")
        self.extractor = extractor

    def update(
        self,
        sets: Sequence[str],
        question_ids: Sequence[str | int],
        labels: Sequence[str],
        texts: Sequence[str] | None = None,
        probabilities: Tensor | None = None,
    ) -> None:
        """Adds answers.

        Args:
            sets: "dataset/split" of each question.
            question_ids: Unique in a set.
            labels: "yes" or "no".
            texts: What the model said; the rules need them.
            probabilities: Of yes and of no, (B, 2); "logits" needs them.

        Raises:
            ValueError: A label that is neither, or nothing that the extractor can read.
        """
        given = probabilities if self.extractor == "logits" else texts
        if given is None:
            missing = "probabilities" if self.extractor == "logits" else "texts"
            raise ValueError(f"the extractor {self.extractor!r} reads {missing}: give them")
        said: list[Any] = [""] * len(labels) if texts is None else list(texts)
        pairs: list[Any] = [()] * len(labels) if probabilities is None else probabilities.tolist()
        rows = []
        for label, text, pair in zip(labels, said, pairs, strict=True):
            if label not in ("yes", "no"):
                raise ValueError(f"labels of POPE are yes or no, got {label!r}")
            answer, says_something = read_answer(self.extractor, label, text, pair)
            rows.append((answer == "yes", label == "yes", not says_something))
        self.add(sets, question_ids, torch.tensor(rows))

    def compute(self) -> dict[str, Tensor]:
        """Returns all numbers."""
        found: dict[str, dict[str, float]] = {}
        datasets: dict[str, list[dict[str, float]]] = {}
        for name, rows in self.rows().items():
            said, true, unparsed = rows.bool().unbind(1)
            numbers = yes_no_numbers(
                *(int((said & true).sum()), int((said & ~true).sum())),
                *(int((~said & ~true).sum()), int((~said & true).sum())),
            )
            found[name] = {**numbers, "unparsed_ratio": float(unparsed.double().mean())}
            datasets.setdefault(name.partition("/")[0], []).append(found[name])
        means = {name: _mean(splits) for name, splits in datasets.items()}
        found |= means
        named = {f"{name}/{k}": v for name, numbers in found.items() for k, v in numbers.items()}
        named |= _mean(list(means.values())) if means else {}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}


def yes_no_numbers(tp: int, fp: int, tn: int, fn: int) -> dict[str, float]:
    """Returns accuracy, precision, recall, F1 and yes ratio of counts; yes is positive."""
    total = tp + fp + tn + fn
    return {
        "accuracy": (tp + tn) / total if total else 0.0,
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
        "yes_ratio": (tp + fp) / total if total else 0.0,
    }


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in NUMBERS}
