"""How a highlight reaches a caption: not at all, by a prompt, or by the weights of tokens.

Shapes: B sources, S tokens of a source, N tokens of a section's text.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..descriptions import Rebuildable
from .highlights import Phrase, Pool, highlighted_tokens, in_order, pooled_words
from .tokens import Source

MASK, SEPARATOR, CAPTION = "<MSK>", "<SEP>", "<CPT>"
Mode = Literal["add", "overwrite", "fixed", "oracle"]


class Control(Rebuildable, ABC):
    """A controller. What training needs comes from weak highlights, of which nobody drew any."""

    markers: tuple[str, ...] = ()  # special tokens that the decoder gets
    needs_relevance = False  # whether it trains on relevance scores

    @property
    def needs_predictor(self) -> bool:
        """Whether captions need predicted weights."""
        return False

    def training_words(self, source: Source, relevance: Sequence[Tensor]) -> list[list[str]] | None:
        """Returns for each source the words that stand before its caption; None: no prompts."""
        return None

    def prompt_words(
        self, source: Source, highlights: Sequence[Sequence[Phrase]]
    ) -> list[list[str]] | None:
        """Returns for each source the phrases of the prompt; None: no prompts."""
        return None

    def training_weights(self, source: Source, relevance: Sequence[Tensor]) -> Tensor | None:
        """Returns the weights of tokens, (B, S); None: no weights."""
        return None


class NoControl(Control):
    """Contextual captioning without a highlight: the baseline."""


class PromptControl(Control):
    """P-Ctrl: words of the highlight stand before the caption, `<MSK> a <SEP> b <CPT> caption`.

    In training these are words of the section with high relevance; a user's phrases are forced.
    Without any the model writes words of its own first.

    Args:
        threshold: Relevance that a word must exceed in training.
        max_words: Words at most in training.
        pool: What counts of a word that occurs again: its "last" relevance, as in the released
            code, or the "max".
        prefix_dropout: Probability with which each word is left out in training.
        split_phrases: Whether a user's phrases become single words, as in training; the released
            code does not.
        loss_on_prefix: Whether the model also learns to write the words.

    Raises:
        ValueError: A probability out of range.
    """

    markers = (MASK, SEPARATOR, CAPTION)
    needs_relevance = True

    def __init__(
        self,
        threshold: float = 0.65,
        max_words: int = 40,
        pool: Pool = "last",
        prefix_dropout: float = 0.0,
        split_phrases: bool = False,
        loss_on_prefix: bool = True,
    ) -> None:
        if not 0 <= prefix_dropout < 1:
            raise ValueError(f"prefix_dropout must be in [0, 1), got {prefix_dropout}")
        self.threshold, self.max_words, self.pool = threshold, max_words, pool
        self.prefix_dropout, self.split_phrases = prefix_dropout, split_phrases
        self.loss_on_prefix = loss_on_prefix

    def training_words(self, source: Source, relevance: Sequence[Tensor]) -> list[list[str]]:
        """See `Control`."""
        found = []
        for section, scores in zip(source.sections, relevance, strict=True):
            words = pooled_words(section, scores, self.threshold, self.max_words, self.pool)
            if self.prefix_dropout:
                kept = (torch.rand(len(words)) >= self.prefix_dropout).tolist()
                words = [word for word, keep in zip(words, kept, strict=True) if keep]
            found.append(words)
        return found

    def prompt_words(
        self, source: Source, highlights: Sequence[Sequence[Phrase]]
    ) -> list[list[str]]:
        """See `Control`."""
        rows = []
        for section, phrases in zip(source.sections, highlights, strict=True):
            texts = in_order(phrases, section.tokens.text)
            rows.append([w for t in texts for w in t.split()] if self.split_phrases else texts)
        return rows


class Recalibration(Control):
    """R-Ctrl: the encoder's state of each token is multiplied by a weight.

    In training the weights of section tokens are their relevance. For captions a predictor gives
    the weights q, and a highlight changes those of its tokens. All other tokens weigh 1, captions
    of other images `other_weight`, padding 0.

    Args:
        delta: What a highlight adds to a weight, or stands for: see `mode`.
        mode: "add": q + delta, the released setting. "overwrite": 0.5 + delta in place of q.
            "fixed": 0.5 + delta, and 0.5 elsewhere in the section; needs no predictor. "oracle":
            the relevance for a reference caption, which a user has not; for measuring only.
        sweep: Further deltas that a test compares.
        other_weight: Of captions of other images. The released code has 0.5 for fix_scale, 0.4 for
            minmax, 0.2 for none.
        clamp_max: Largest weight; None: not limited, as in the released code.
        weight_jitter: In training, up to so much is added to or taken from each token's weight at
            random.

    Raises:
        ValueError: There is no such mode, or a negative number.
    """

    needs_relevance = True

    def __init__(
        self,
        delta: float = 0.1,
        mode: Mode = "add",
        sweep: list[float] | None = None,
        other_weight: float = 0.5,
        clamp_max: float | None = None,
        weight_jitter: float = 0.0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode: {mode!r} is none of {', '.join(get_args(Mode))}")
        if weight_jitter < 0 or other_weight < 0:
            raise ValueError("weight_jitter and other_weight must be 0 or more")
        self.delta, self.mode, self.sweep = delta, mode, list(sweep or [])
        self.other_weight, self.clamp_max, self.weight_jitter = (
            other_weight,
            clamp_max,
            weight_jitter,
        )

    @property
    def needs_predictor(self) -> bool:
        """See `Control`."""
        return self.mode in ("add", "overwrite")

    def training_weights(self, source: Source, relevance: Sequence[Tensor]) -> Tensor:
        """See `Control`."""
        if self.weight_jitter:
            relevance = [
                (r + self.weight_jitter * (2 * torch.rand_like(r) - 1)).clamp(min=0)
                for r in relevance
            ]
        return source.to_section_weights(relevance, self._elsewhere(source))

    def flat(self, source: Source) -> list[Tensor]:
        """Returns the weights of sections about which nothing is known, (N,) each."""
        return [torch.full((len(section.tokens),), 0.5) for section in source.sections]

    def weights(
        self,
        source: Source,
        values: Sequence[Tensor],
        highlights: Sequence[Sequence[Phrase]],
        encode: Callable[[str], list[int]],
        delta: float | None = None,
    ) -> Tensor:
        """Returns the weights for captions, (B, S).

        Args:
            source: Contexts.
            values: Weights of section tokens without a highlight, (N,) each.
            highlights: Of each source.
            encode: Gives the ids of a text.
            delta: In place of the controller's.
        """
        delta = self.delta if delta is None else delta
        changed = []
        for section, value_N, phrases in zip(source.sections, values, highlights, strict=True):
            marked_N = highlighted_tokens(section, phrases, encode).to(value_N.device)
            base_N = value_N if self.mode == "add" else torch.full_like(value_N, 0.5)
            weight_N = torch.where(marked_N, base_N + delta, value_N)
            changed.append(weight_N.clamp(max=self.clamp_max) if self.clamp_max else weight_N)
        return source.to_section_weights(changed, self._elsewhere(source))

    def _elsewhere(self, source: Source) -> Tensor:
        weights_BS = source.mask.float()
        return torch.where(source.is_other, self.other_weight * weights_BS, weights_BS)
