"""Pairs of ways to answer the same questions: which one answers more of them right?"""

from collections.abc import Sequence

import torch
from scipy.stats import binomtest
from torch import Tensor

from .questions import QuestionMetric


class PairedAccuracy(QuestionMetric):
    """Differences of accuracy to the first of several ways, with McNemar's exact test.

    `compute` returns for each set `<set>/<way>/difference`, in [-1, 1], and `<set>/<way>/p`, the
    two-sided probability that ways which answer as well differ so much: of the questions that one
    of them alone answers right, a half is either's.

    Args:
        ways: Their names, at least one; the first is what others are compared with.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        super().__init__(num_values=len(ways))
        self.ways = list(ways)

    def update(self, sets: Sequence[str], question_ids: Sequence[str | int], right: Tensor) -> None:
        """Adds questions.

        Args:
            sets: What each is reported under.
            question_ids: Unique in a set.
            right: (B, ways), 1 where a way has answered right.
        """
        self.add(sets, question_ids, right)

    def compute(self) -> dict[str, Tensor]:
        """Returns differences and probabilities, float64."""
        found = {}
        for name, rows in self.rows().items():
            for column, way in enumerate(self.ways[1:], start=1):
                gained = int((rows[:, column] > rows[:, 0]).sum())
                lost = int((rows[:, column] < rows[:, 0]).sum())
                changed = gained + lost
                p = binomtest(gained, changed).pvalue if changed else 1.0
                difference = (rows[:, column] - rows[:, 0]).mean()
                found[f"{name}/{way}/difference"] = difference
                found[f"{name}/{way}/p"] = torch.tensor(p, dtype=torch.float64)
        return found
