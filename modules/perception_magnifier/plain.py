"""Decoding from one stream of tokens: greedy and sampling."""

from typing import Any

from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from .contrastive import plausible
from .prompt import Question
from .strategy import Asked, DecodingStrategy, Session


class PlainSession(Session):
    """One branch.

    Args:
        asked: What is asked.
        questions: Asks these instead.
    """

    def __init__(self, asked: Asked, questions: list[Question] | None = None) -> None:
        self.branch = asked.branch(asked.questions if questions is None else questions)

    def next_logits(self, active_B: Tensor) -> Tensor:
        """See `Session`."""
        return self.branch.forward(active_B)

    def append(self, token_B: Tensor) -> None:
        """See `Session`."""
        self.branch.append(token_B)


class Greedy(DecodingStrategy):
    """The likeliest token, or as `generate` is told to sample: the reference of all others."""

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return PlainSession(asked)


class Sample(DecodingStrategy):
    """Tokens by chance: what contrastive decoders are often compared with.

    Args:
        temperature: Divides logits.
        top_p: Only the likeliest tokens of together this probability are drawn.
    """

    do_sample = True

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0) -> None:
        self.warpers: list[Any] = []
        if temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(temperature))
        if top_p != 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return PlainSession(asked)

    def process(self, scores_BV: Tensor) -> Tensor:
        """See `DecodingStrategy`."""
        for warper in self.warpers:
            scores_BV = warper(None, scores_BV)
        return scores_BV


class APCOnly(Sample):
    """Samples plausible tokens: the control that contrastive decoders have to beat.

    What they gain over plain sampling is often the plausibility constraint, which brings sampling
    near to greedy (arXiv 2504.10020).

    Args:
        beta: See `plausible`.
        temperature: See `Sample`.
        top_p: See `Sample`.
    """

    name = "apc_only"

    def __init__(self, beta: float = 0.1, temperature: float = 1.0, top_p: float = 1.0) -> None:
        super().__init__(temperature, top_p)
        self.beta = beta

    def process(self, scores_BV: Tensor) -> Tensor:
        """See `DecodingStrategy`."""
        return super().process(plausible(scores_BV, scores_BV, self.beta))
