"""One way of decoding, and all that is measured of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..metrics.questions import QuestionMeans
from ..perception_magnifier import DecodingStrategy
from .answers import Answer
from .scorers import Scorer

COSTS = ("prefills", "cached_steps", "encoded_images", "rounds", "tokens", "seconds")


class Way(nn.Module):
    """A strategy under its name, with metrics of its own.

    Args:
        label: What reports call it.
        strategy: How it decodes.
        scorer: Scores its answers.
    """

    def __init__(self, label: str, strategy: DecodingStrategy, scorer: Scorer) -> None:
        super().__init__()
        self.label, self.strategy, self.scorer = label, strategy, scorer
        self.costs, self.pointing = QuestionMeans(len(COSTS)), QuestionMeans(1)
        self.peak_bytes = 0

    def update(self, answers: Sequence[Answer], batch: Mapping[str, Any]) -> None:
        """Adds answers, see `Scorer.update`."""
        self.scorer.update(answers, batch)
        self.costs.update(
            ["all"] * len(answers),
            [f"{a['set']}/{a['question_id']}" for a in answers],
            torch.tensor([[a[name] for name in COSTS] for a in answers], dtype=torch.float64),
        )
        looked = [a for a in answers if a["hit"] is not None]
        self.pointing.update(
            [a["set"] for a in looked],
            [a["question_id"] for a in looked],
            torch.tensor([[float(a["hit"])] for a in looked]).reshape(-1, 1),
        )
        self.peak_bytes = max(self.peak_bytes, *(a["peak_bytes"] for a in answers))

    def compute(self) -> dict[str, float]:
        """Returns all numbers, over all ranks, and forgets the answers."""
        found = {name: float(value) for name, value in self.scorer.compute().items()}
        for name, value in self.pointing.compute().items():
            found[f"{name}/pointing"] = float(value)
        means = dict(zip(COSTS, self.costs.compute()["all"].tolist(), strict=True))
        found |= {name: means[name] for name in ("encoded_images", "rounds")}
        found["prefills_per_token"] = means["prefills"] / means["tokens"]
        found["tokens_per_second"] = means["tokens"] / means["seconds"]
        if self.peak_bytes:
            found["peak_memory_gib"] = self.peak_bytes / 2**30
        for metric in (self.scorer, self.pointing, self.costs):
            metric.reset()
        return found
