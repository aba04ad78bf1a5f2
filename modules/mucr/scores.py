"""Shares of right answers about pairs, and how far they can be trusted.

Pairs of a group share statement and options, so that they are not independent: intervals resample
groups, not pairs.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics.questions import QuestionMetric

NUM_RESAMPLES = 2000
CODE_BITS = 48  # of a group's name: exact in float64
Array = np.ndarray[Any, np.dtype[Any]]


class PairScores(QuestionMetric):
    """Counts right answers by task, category and style; each pair once, on any number of ranks.

    `compute` returns, float64, for each task:

    - `<task>/accuracy`, with `low` and `high`, its 95 % interval by a bootstrap over groups;
    - `<task>/group_accuracy`: the share of groups of which all pairs are right, where a group has
      several;
    - `<task>/pairs` and `<task>/groups`;
    - `<task>/category/<name>/accuracy` and `.../pairs`, and the same for each style.
    """

    def __init__(self) -> None:
        super().__init__(num_values=2)

    def update(
        self,
        task: str,
        ids: Sequence[str],
        groups: Sequence[str],
        categories: Sequence[str],
        styles: Sequence[str],
        right: Tensor,
    ) -> None:
        """Adds answers.

        Args:
            task: What they are reported under.
            ids: Of the pairs.
            groups: Names of their groups.
            categories: Of the pairs.
            styles: Of the pairs.
            right: (B,), 1 for right ones.
        """
        codes_B = torch.tensor([_code(group) for group in groups], dtype=torch.float64)
        rows_B2 = torch.stack([right.double().cpu(), codes_B], dim=1)
        self.add([task] * len(ids), ids, rows_B2)
        for kind, names in (("category", categories), ("style", styles)):
            self.add([f"{task}/{kind}/{name}" for name in names], ids, rows_B2)

    def compute(self) -> dict[str, Tensor]:
        """Returns shares and numbers."""
        found: dict[str, float] = {}
        for name, rows in self.rows().items():
            right, groups = rows.cpu().numpy().T
            found[f"{name}/accuracy"] = right.mean()
            found[f"{name}/pairs"] = len(right)
            if "/" in name:
                continue
            low, high = clustered_interval(right, groups)
            found |= {f"{name}/low": low, f"{name}/high": high}
            members, sums = _by_group(right, groups)
            found[f"{name}/groups"] = len(members)
            if (members > 1).any():
                several = members > 1
                found[f"{name}/group_accuracy"] = (sums == members)[several].mean()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def clustered_interval(
    values: Array, groups: Array, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile interval of a mean when whole groups are drawn again.

    Args:
        values: (n,).
        groups: (n,), equal numbers for values of one group.
        level: Share of the resamples inside.
        seed: Of the draws.
    """
    members, sums = _by_group(values, groups)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), NUM_RESAMPLES)
    means = (drawn @ sums) / (drawn @ members)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _by_group(values: Array, groups: Array) -> tuple[Array, Array]:
    """Returns for each group how many values it has and their sum.

    Groups are sorted by what they hold, so that the draws do not depend on their names.
    """
    _, places = np.unique(groups, return_inverse=True)
    members = np.bincount(places).astype(float)
    sums = np.bincount(places, weights=values)
    order = np.lexsort((sums, members))
    return members[order], sums[order]


def _code(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[: CODE_BITS // 8], "big")
