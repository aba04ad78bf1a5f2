"""Decoders that compare two views of a question, and look at the image no closer.

With l_c the logits of the question as it is and l_u those of a worse view of it, tokens are chosen
by (1 + alpha) l_c - alpha l_u, of those that l_c finds plausible alone. Each view is a branch with
a cache of its own.

Shapes: B questions, L length, V vocabulary.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .branch import Branch
from .prompt import Question, SeenImage
from .strategy import Asked, DecodingStrategy, Session
from .watching import Watch

NUM_NOISE_STEPS = 1000
CONFUSED = (
    "You are a confused object detector to provide a fuzzy overview or impression of the image. "
)


def plausible(logits_BV: Tensor, scores_BV: Tensor, beta: float) -> Tensor:
    """Forbids tokens of less than beta times the probability of the likeliest one.

    Args:
        logits_BV: Which say what is plausible.
        scores_BV: Which are changed.
        beta: In [0, 1]; 0 forbids none.
    """
    if beta == 0:
        return scores_BV
    least_B1 = logits_BV.amax(dim=-1, keepdim=True) + torch.tensor(beta).log()
    return scores_BV.masked_fill(logits_BV < least_B1, -torch.inf)


class Contrastive(DecodingStrategy):
    """Compares the question with worse views of it. To be derived from.

    Args:
        alpha: Weight of the difference.
        beta: Of plausibility, see `plausible`.

    Raises:
        ValueError: beta is not in [0, 1].
    """

    def __init__(self, alpha: float, beta: float) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: {beta} is not in [0, 1]")
        self.alpha, self.beta = alpha, beta

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return _Compared(self, asked)

    @abstractmethod
    def worse(self, asked: Asked) -> list[list[Question]]:
        """Returns one or several worse views of the questions; their logits are averaged."""

    def watch(self, asked: Asked, branch: Branch) -> Watch | None:
        """Returns a watch for the passes of the question as it is; here none."""
        return None

    def worse_watch(self, asked: Asked, branch: Branch) -> Watch | None:
        """Returns a watch for the passes of a worse view; here none."""
        return None

    def combine(self, logits_BV: Tensor, worse_BV: Tensor, num_answered: int) -> Tensor:
        """Returns the logits of the next token.

        Args:
            logits_BV: Of the question.
            worse_BV: Of the worse view.
            num_answered: Tokens of the answer so far.
        """
        scores_BV = logits_BV + self.alpha * (logits_BV - worse_BV)
        return plausible(logits_BV, scores_BV, self.beta)


class _Compared(Session):
    """A branch for each view."""

    def __init__(self, strategy: Contrastive, asked: Asked) -> None:
        self.strategy, self.asked = strategy, asked
        self.branch = asked.branch(asked.questions)
        self.worse = [asked.branch(questions) for questions in strategy.worse(asked)]
        self.num_answered = 0

    def next_logits(self, active_B: Tensor) -> Tensor:
        """See `Session`."""
        strategy, asked = self.strategy, self.asked
        logits_BV = self.branch.forward(active_B, strategy.watch(asked, self.branch))
        worse = [b.forward(active_B, strategy.worse_watch(asked, b)) for b in self.worse]
        return strategy.combine(logits_BV, torch.stack(worse).mean(dim=0), self.num_answered)

    def append(self, token_B: Tensor) -> None:
        """See `Session`."""
        self.num_answered += 1
        for branch in (self.branch, *self.worse):
            branch.append(token_B)


class VCD(Contrastive):
    """Visual contrastive decoding (arXiv 2311.16922): the worse view is an image with noise.

    The noise is drawn once for a question, on normalised pixels.

    Args:
        alpha: Weight of the difference.
        beta: Of plausibility.
        noise_step: Of a diffusion process of 1,000, from 0.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 0.1, noise_step: int = 500) -> None:
        super().__init__(alpha, beta)
        if not 0 <= noise_step < NUM_NOISE_STEPS:
            raise ValueError(f"noise_step: {noise_step} is not in 0 ... {NUM_NOISE_STEPS - 1}")
        self.noise_step = noise_step

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        images = asked.originals("VCD")
        kept = float(signal_shares()[self.noise_step])
        owners = [row for row, some in enumerate(images) for _ in some]
        generators = asked.generators("noise")

        def noisy(pixels: Tensor, place: int) -> Tensor:
            noise = torch.randn(pixels.shape, generator=generators[owners[place]])
            return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise.to(pixels)

        seen = asked.see(images, range(len(images)), noisy)
        return [_with_images(asked, seen)]


def signal_shares() -> Tensor:
    """Returns how much of an image's variance is left at each step of VCD's noise, (1000,)."""
    betas = torch.linspace(-6, 6, NUM_NOISE_STEPS).sigmoid() * (5e-3 - 1e-5) + 1e-5
    shares: Tensor = (1 - betas).cumprod(dim=0)
    return shares


class VDD(Contrastive):
    """Debiased decoding of LLaVA-Align (arXiv 2403.05262): the worse view has no image.

    Args:
        alpha: Weight of the difference.
        beta: Of plausibility.
        reference: "none" leaves the image out, "unk" puts the tokenizer's unknown token in its
            place, "both" averages the logits of these two; "same" is the question as it is, for
            tests.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        reference: Literal["none", "unk", "both", "same"] = "none",
    ) -> None:
        super().__init__(alpha, beta)
        self.reference = reference

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        if self.reference == "same":
            return [asked.questions]
        views = []
        if self.reference in ("none", "both"):
            views.append(without_images(asked))
        if self.reference in ("unk", "both"):
            unknown = None if asked.processor is None else asked.processor.tokenizer.unk_token_id
            if unknown is None:
                raise ValueError(
                    f"vdd: reference {self.reference!r} needs generate(..., processor=...) with a "
                    "tokenizer that has an unknown token; use reference: none"
                )
            views.append(without_images(asked, [unknown]))
        return views


class ICD(Contrastive):
    """Instruction contrastive decoding (arXiv 2403.18715): the worse view has a confusing prompt.

    Args:
        alpha: Weight of the difference.
        beta: Of plausibility.
        prefix: Stands before the question.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 0.2, prefix: str = CONFUSED) -> None:
        super().__init__(alpha, beta)
        self.prefix = prefix

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        words = asked.words(self.prefix)
        return [[question.with_words(asked.image_token, words) for question in asked.questions]]


class SID(Contrastive):
    """Self-introspective decoding (arXiv 2408.02032): the worse view sees what matters least.

    After an early layer only those image tokens stay visible that the last query attended to least.

    Args:
        alpha: Weight of the difference.
        beta: Of plausibility.
        layer: The early layer, from 1.
        kept: Share of image tokens that stay, by default 100 of LLaVA-1.5's 576.
    """

    needs_attention = True

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.2, layer: int = 2, kept: float = 100 / 576
    ) -> None:
        super().__init__(alpha, beta)
        if not 0 < kept <= 1:
            raise ValueError(f"kept: {kept} is not a share in (0, 1]")
        self.layer, self.kept = layer, kept

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        num_layers = asked.network.config.get_text_config().num_hidden_layers
        if not 1 <= self.layer < num_layers:
            raise ValueError(f"sid: layer {self.layer} is not in 1 ... {num_layers - 1}")
        return [asked.questions]

    def worse_watch(self, asked: Asked, branch: Branch) -> Watch | None:
        """See `Contrastive`."""
        counts_B = branch.is_image.sum(dim=1)
        num_kept = (counts_B * self.kept).round().long().clamp(min=1)
        return Watch(drop_after=self.layer, candidates=branch.is_image, num_kept=num_kept)


class M3ID(Contrastive):
    """M3ID (arXiv 2403.14003): the longer the answer, the more it counts what the image adds.

    While the model is not sure, log p_c + (1 - g) / g (log p_c - log p_u) with g = exp(-decay t),
    t the number of the token from 1, and p_u without the image.

    Args:
        decay: Of what the model remembers of the image, per token.
        threshold: It is sure from this probability of the likeliest token on.
    """

    def __init__(self, decay: float = 0.02, threshold: float = 0.4) -> None:
        super().__init__(1.0, 0.0)
        self.decay, self.threshold = decay, threshold

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        return [without_images(asked)]

    def combine(self, logits_BV: Tensor, worse_BV: Tensor, num_answered: int) -> Tensor:
        """See `Contrastive`."""
        log_p_BV, log_u_BV = logits_BV.log_softmax(dim=-1), worse_BV.log_softmax(dim=-1)
        remembered = torch.tensor(-self.decay * (num_answered + 1)).exp()
        is_unsure_B1 = log_p_BV.amax(dim=-1, keepdim=True).exp() < self.threshold
        weight = (1 - remembered) / remembered
        return log_p_BV + is_unsure_B1 * weight * (log_p_BV - log_u_BV)


class PAI(Contrastive):
    """Pay attention to image (arXiv 2407.21771): the last query looks closer at the image.

    Its products s with image keys become s + gain |s|; then gamma (log p_c - log p_u) + log p_u,
    with p_u without the image.

    Args:
        gain: Of attention.
        gamma: Weight of the image, 1 for no comparison.
        beta: Of plausibility.
        first_layer: That looks closer, from 1 (the released code's 2 counts from 0).
        last_layer: None: the model's last.
    """

    needs_attention = True

    def __init__(
        self,
        gain: float = 0.2,
        gamma: float = 1.1,
        beta: float = 0.1,
        first_layer: int = 3,
        last_layer: int | None = None,
    ) -> None:
        super().__init__(gamma - 1, beta)
        self.gain, self.first_layer, self.last_layer = gain, first_layer, last_layer

    def worse(self, asked: Asked) -> list[list[Question]]:
        """See `Contrastive`."""
        return [without_images(asked)]

    def watch(self, asked: Asked, branch: Branch) -> Watch | None:
        """See `Contrastive`."""
        last = self.last_layer or asked.network.config.get_text_config().num_hidden_layers
        layers = (self.first_layer, last)
        return Watch(gain=self.gain * branch.is_image.float(), gain_layers=layers)

    def combine(self, logits_BV: Tensor, worse_BV: Tensor, num_answered: int) -> Tensor:
        """See `Contrastive`."""
        return super().combine(logits_BV.log_softmax(-1), worse_BV.log_softmax(-1), num_answered)


def without_images(asked: Asked, instead: Sequence[int] = ()) -> list[Question]:
    """Returns the questions without images, or with tokens in their place."""
    return [q.without_images(asked.image_token, instead) for q in asked.questions]


def _with_images(asked: Asked, seen: Sequence[Sequence[SeenImage]]) -> list[Question]:
    pairs = zip(asked.questions, seen, strict=True)
    return [question.with_images(images) for question, images in pairs]
