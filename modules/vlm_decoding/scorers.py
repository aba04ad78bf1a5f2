"""How answers to a benchmark's questions are scored; a scorer for each strategy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..chat import ChatBackend
from ..metrics.chair import ChairMetric
from ..metrics.judging import RelativeScore, ask_judge, read_pair, read_rules, reference_request
from ..metrics.mme import MmeMetric, answer_of_mme
from ..metrics.pope import Extractor, PopeMetric, read_answer
from ..metrics.questions import ExactAnswers, first_word
from .answers import Answer

POPE_SPLITS = ("random", "popular", "adversarial")


class Scorer(nn.Module, ABC):
    """Scores answers. Its metrics are attributes, so that they follow the module's device."""

    @abstractmethod
    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """Adds answers.

        Args:
            answers: Records, see `answers`.
            batch: Their questions, as `QuestionDataModule` gives them.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Returns all numbers, over all ranks."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets all answers."""

    def is_right(self, answer: Answer) -> bool | None:
        """Says whether an answer is right; None where there is no right or wrong."""
        return None


class _MetricScorer(Scorer):
    """A scorer of one metric."""

    metric: Any

    def compute(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        found: dict[str, Tensor] = self.metric.compute()
        return found

    def reset(self) -> None:
        """See `Scorer`."""
        self.metric.reset()


class PopeScorer(Scorer):
    """POPE and questions of its kind: yes or no, and answers of one word.

    POPE's numbers are means of its three splits and of data sets; other questions for yes or no
    have numbers of their own (`<set>/accuracy` and the like), and so have words.

    Args:
        extractor: How yes and no are read, see `PopeMetric`.
    """

    def __init__(self, extractor: Extractor = "logits") -> None:
        super().__init__()
        self.extractor = extractor
        self.pope, self.others = PopeMetric(extractor), PopeMetric(extractor)
        self.words = ExactAnswers()

    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """See `Scorer`."""
        for metric, rows in (
            (self.pope, [a for a in answers if _is_yes_no(a) and _is_pope(a)]),
            (self.others, [a for a in answers if _is_yes_no(a) and not _is_pope(a)]),
        ):
            if rows:
                metric.update(
                    [a["set"] for a in rows],
                    [a["question_id"] for a in rows],
                    [a["label"] for a in rows],
                    [a["text"] for a in rows],
                    torch.tensor([[a["p_yes"], a["p_no"]] for a in rows], dtype=torch.float64),
                )
        if rows := [a for a in answers if not _is_yes_no(a)]:
            self.words.update(
                [a["set"] for a in rows],
                [a["question_id"] for a in rows],
                [a["text"] for a in rows],
                [a["label"] for a in rows],
            )

    def compute(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        # Of sets alone: means over questions of different kinds say nothing.
        others = {n: v for n, v in self.others.compute().items() if n.count("/") > 1}
        return {**self.pope.compute(), **others, **self.words.compute()}

    def reset(self) -> None:
        """See `Scorer`."""
        for metric in (self.pope, self.others, self.words):
            metric.reset()

    def is_right(self, answer: Answer) -> bool | None:
        """See `Scorer`."""
        label = answer["label"]
        if not _is_yes_no(answer):
            return first_word(answer["text"]) == first_word(label) if label else None
        pair = (answer["p_yes"], answer["p_no"])
        said, _ = read_answer(self.extractor, label, answer["text"], pair)
        return bool(said == label)


class MmeScorer(_MetricScorer):
    """MME's scores, see `MmeMetric`."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = MmeMetric()

    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """See `Scorer`."""
        self.metric.update(
            [a["question_id"] for a in answers],
            [a["image"] for a in answers],
            [a["category"] for a in answers],
            [a["label"] for a in answers],
            [a["text"] for a in answers],
        )

    def is_right(self, answer: Answer) -> bool | None:
        """See `Scorer`."""
        return bool(answer_of_mme(answer["text"]) == answer["label"])


class ChairScorer(_MetricScorer):
    """What captions hallucinate, see `ChairMetric`.

    Args:
        synonyms: The authors' `synonyms.txt`.
    """

    def __init__(self, synonyms: str) -> None:
        super().__init__()
        self.metric = ChairMetric(synonyms)

    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """See `Scorer`."""
        self.metric.update(
            [a["question_id"] for a in answers],
            [a["text"] for a in answers],
            [extra["objects"] for extra in batch["extras"]],
            [extra["references"] for extra in batch["extras"]],
        )


class JudgeScorer(_MetricScorer):
    """LLaVA-Bench: a judge of text compares answers with references, see `RelativeScore`.

    Args:
        backend: The judge; wrap it into a `CachedBackend` to ask nothing twice.
        rules: LLaVA-Bench's `rule.json`.
    """

    def __init__(self, backend: ChatBackend, rules: str) -> None:
        super().__init__()
        self.backend, self.rules = backend, read_rules(rules)
        self.metric = RelativeScore()

    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """See `Scorer`."""
        requests = []
        for answer, extra in zip(answers, batch["extras"], strict=True):
            if answer["category"] not in self.rules:
                raise ValueError(
                    f"rules: no category {answer['category']!r}, only {', '.join(self.rules)}"
                )
            requests.append(
                reference_request(
                    answer["question_id"],
                    answer["prompt"],
                    extra["context"],
                    extra["reference"],
                    answer["text"],
                    self.rules[answer["category"]],
                )
            )
        pairs = ask_judge(self.backend, requests, read_pair)
        ids = [a["question_id"] for a in answers]
        self.metric.update(ids, [a["category"] for a in answers], pairs)


def _is_yes_no(answer: Answer) -> bool:
    return answer["label"] in ("yes", "no")


def _is_pope(answer: Answer) -> bool:
    """Says whether a question is of one of POPE's own splits: `coco/random@rucaibox`."""
    return answer["set"].rpartition("/")[2].partition("@")[0] in POPE_SPLITS
