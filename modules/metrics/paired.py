"""Pairs of ways to answer the same questions: which one answers more of them right?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from .questions import QuestionMetric

NUM_SWAPS = 10_000
Array = np.ndarray[Any, np.dtype[np.float64]]


class PairedAnswers(QuestionMetric):
    """Differences to the first of several ways, each with a test of whether it is by chance.

    `compute` returns for each set and way but the first, float64:

    - `<set>/<way>/difference` of accuracy, in [-1, 1], and `<set>/<way>/p`: McNemar's exact test,
      two-sided. Of the questions that one way alone answers right, equal ways have a half each.
    - For questions for yes or no, `<set>/<way>/f1_difference` and `<set>/<way>/f1_p`, of the F1 of
      yes: the share of 10,000 random swaps of the two ways' answers, question by question, that
      differ as much (at least 1 / 10,001).

    Args:
        ways: Their names, at least one; the first is what others are compared with.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        super().__init__(num_values=len(ways) + 1)
        self.ways = list(ways)

    def update(
        self,
        sets: Sequence[str],
        question_ids: Sequence[str | int],
        right: Tensor,
        labels: Sequence[str],
    ) -> None:
        """Adds questions.

        Args:
            sets: What each is reported under.
            question_ids: Unique in a set.
            right: (B, ways), 1 where a way has answered right.
            labels: What is right.
        """
        codes = [float(label == "yes") if label in ("yes", "no") else -1.0 for label in labels]
        code_B1 = torch.tensor(codes, dtype=torch.float64).reshape(-1, 1)
        self.add(sets, question_ids, torch.cat([right.double(), code_B1], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Returns differences and probabilities."""
        found: dict[str, float] = {}
        for name, rows in self.rows().items():
            table = rows.cpu().numpy()
            first, code = table[:, 0], table[:, -1]
            for column, way in enumerate(self.ways[1:], start=1):
                second, prefix = table[:, column], f"{name}/{way}"
                gained, lost = int((second > first).sum()), int((second < first).sum())
                found[f"{prefix}/difference"] = (gained - lost) / len(table)
                changed = gained + lost
                found[f"{prefix}/p"] = binomtest(gained, changed).pvalue if changed else 1.0
                if (code >= 0).all():
                    difference, p = _compare_f1(first, second, code)
                    found[f"{prefix}/f1_difference"], found[f"{prefix}/f1_p"] = difference, p
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def _compare_f1(first: Array, second: Array, is_yes: Array) -> tuple[float, float]:
    """Returns the difference of two F1 and how probable one as large is by chance."""

    def f1(true_positives: Any, wrong: Any) -> Any:
        return 2 * true_positives / np.maximum(2 * true_positives + wrong, 1)

    changed = first != second
    both = first[~changed]
    hits, errors = float((both * is_yes[~changed]).sum()), float((1 - both).sum())
    yes, gains = is_yes[changed], second[changed]
    rng = np.random.default_rng(0)
    # Of the questions that one way alone answers right: those that are the second's. The real ones
    # come first, then random ones.
    swapped = rng.random((NUM_SWAPS, len(gains))) < 0.5
    owned = np.vstack([gains, np.where(swapped, 1 - gains, gains)])
    second_f1 = f1(hits + owned @ yes, errors + (1 - owned).sum(axis=1))
    first_f1 = f1(hits + (1 - owned) @ yes, errors + owned.sum(axis=1))
    differences = second_f1 - first_f1
    as_large = np.abs(differences[1:]) >= abs(differences[0]) - 1e-12
    return float(differences[0]), float((as_large.sum() + 1) / (NUM_SWAPS + 1))
