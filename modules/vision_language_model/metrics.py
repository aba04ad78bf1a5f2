"""Shares of right answers by kind of question and by group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

NAME_BYTES = 48  # of "group/kind"; longer names are cut


class AnswerAccuracy(Metric):
    """Counts right answers under names; also the loss of their tokens.

    What names there are need not be known before, and ranks may have met different ones: each
    answer is kept as a row of numbers, its name as bytes.

    `compute` returns `loss` (nats per answer token), `accuracy` of all answers, and one accuracy
    for each kind (`accuracy_what`), for each group and for each kind of each group
    (`accuracy/large`, `accuracy/large/what`).
    """

    full_state_update = False
    names: list[Tensor]
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("names", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(
        self,
        correct: Tensor,
        nats: Tensor,
        num_tokens: Tensor,
        groups: Sequence[str],
        kinds: Sequence[str],
    ) -> None:
        """Adds answers.

        Args:
            correct: Whether each is right, (B,) bool.
            nats: Cross-entropy of its tokens, summed, (B,).
            num_tokens: How many tokens that are, (B,).
            groups: What results are reported by, such as the size of what is asked about.
            kinds: Kind of each question.
        """
        rows = [f"{g}/{k}".encode()[:NAME_BYTES] for g, k in zip(groups, kinds, strict=True)]
        padded = torch.tensor([list(row.ljust(NAME_BYTES, b"\0")) for row in rows])
        self.names.append(padded.to(torch.uint8).to(nats.device))
        self.values.append(torch.stack((correct, nats, num_tokens), dim=1).double())

    def compute(self) -> dict[str, Tensor]:
        """Returns loss and accuracies; float64 scalars."""
        names = torch.cat([*self.names]) if isinstance(self.names, list) else self.names
        values = torch.cat([*self.values]) if isinstance(self.values, list) else self.values
        found = {"loss": values[:, 1].sum() / values[:, 2].sum()}
        cells = [bytes(row).rstrip(b"\0").decode() for row in names.tolist()]
        members: dict[str, list[int]] = {"accuracy": list(range(len(cells)))}
        for row, cell in enumerate(cells):
            group, _, kind = cell.partition("/")
            for name in (f"accuracy_{kind}", f"accuracy/{group}", f"accuracy/{cell}"):
                members.setdefault(name, []).append(row)
        for name in sorted(members):
            found[name] = values[members[name], 0].mean()
        return found
