"""How much each token of a section has to do with a caption: highlights that nobody had to draw.

Shapes: N tokens of a section, M of a caption, D width of the scorer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from ..descriptions import Rebuildable
from ..words import WORD, content_stems, is_stop_word, stem
from .tokens import Tokens

Aggregation = Literal["mean", "max", "first", "last"]
Normalisation = Literal["fix_scale", "minmax", "none"]


class RelevanceScorer(Rebuildable, ABC):
    """Scores tokens of sections by captions. No part of the module that holds it.

    Args:
        normalisation: Of scores s: "fix_scale" s / 2 + 0.5, as in all released settings; "minmax"
            to [0, 1] in each section; "none".
    """

    def __init__(self, normalisation: Normalisation = "fix_scale") -> None:
        if normalisation not in get_args(Normalisation):
            raise ValueError(
                f"normalisation: {normalisation!r} is none of {', '.join(get_args(Normalisation))}"
            )
        self.normalisation: Normalisation = normalisation

    @abstractmethod
    def scores(self, sections: Sequence[Tokens], captions: Sequence[Tokens]) -> list[Tensor]:
        """Returns for each section the scores of its tokens, (N,) float32 in [-1, 1], on the CPU.

        Args:
            sections: Tokens of sections.
            captions: Of each section the caption that counts.
        """

    def relevance(self, sections: Sequence[Tokens], captions: Sequence[Tokens]) -> list[Tensor]:
        """Returns normalised scores, (N,) each."""
        found = self.scores(sections, captions)
        if self.normalisation == "fix_scale":
            return [scores / 2 + 0.5 for scores in found]
        if self.normalisation == "minmax":
            return [_minmax(scores) for scores in found]
        return found


class LexicalRelevance(RelevanceScorer):
    """Words that the caption has as well score 1, all others 0; needs no weights.

    Words are compared without case and common endings; stop words (scikit-learn's list) score 0.

    Args:
        normalisation: See `RelevanceScorer`.
    """

    def scores(self, sections: Sequence[Tokens], captions: Sequence[Tokens]) -> list[Tensor]:
        """See `RelevanceScorer`."""
        return [
            self._scores(section, caption)
            for section, caption in zip(sections, captions, strict=True)
        ]

    def _scores(self, section: Tokens, caption: Tokens) -> Tensor:
        wanted = content_stems(caption.text)
        scores_N = torch.zeros(len(section))
        spans = iter(section.spans)
        index, span = 0, next(spans, None)
        for found in WORD.finditer(section.text):
            if is_stop_word(found[0]) or stem(found[0]) not in wanted:
                continue
            while span is not None and span[1] <= found.start():
                index, span = index + 1, next(spans, None)
            while span is not None and span[0] < found.end():
                scores_N[index] = 1
                index, span = index + 1, next(spans, None)
        return scores_N


class EncoderRelevance(RelevanceScorer):
    """Cosine of a token's contextual embedding and the caption's, by a frozen encoder.

    That is the paper's: T5-large, the mean over the caption's tokens. Its vocabulary must be that
    of the captioning model, whose tokens are scored: that of T5 and LongT5 is the same.

    Args:
        model: Folder or hub id of a T5, mT5, UMT5 or LongT5, such as "google-t5/t5-large".
        aggregation: How tokens of the caption become one embedding.
        max_section: Tokens of a section, the end token included; what is beyond scores 0.
        max_caption: Tokens of a caption, likewise.
        device: "auto" is this process's current GPU, else the CPU.
        normalisation: See `RelevanceScorer`.

    Raises:
        ValueError: On first use: the model cannot be loaded, or has another vocabulary.
    """

    def __init__(
        self,
        model: str,
        aggregation: Aggregation = "mean",
        max_section: int = 512,
        max_caption: int = 128,
        device: str = "auto",
        normalisation: Normalisation = "fix_scale",
    ) -> None:
        super().__init__(normalisation)
        if aggregation not in get_args(Aggregation):
            raise ValueError(
                f"aggregation: {aggregation!r} is none of {', '.join(get_args(Aggregation))}"
            )
        self.model, self.aggregation = model, aggregation
        self.max_section, self.max_caption, self.device = max_section, max_caption, device

    @torch.no_grad()
    def scores(self, sections: Sequence[Tokens], captions: Sequence[Tokens]) -> list[Tensor]:
        """See `RelevanceScorer`."""
        self._load()
        states, lengths = self._states(sections, self.max_section)
        words, caption_lengths = self._states(captions, self.max_caption)
        found = []
        for row, section in enumerate(sections):
            caption_D = _aggregate(words[row, : caption_lengths[row]], self.aggregation)
            size = lengths[row] - 1  # the end token has no score
            cosine = cosine_similarity(states[row, :size], caption_D[None], dim=-1)
            scores_N = torch.zeros(len(section))
            scores_N[:size] = cosine.float().cpu()
            found.append(scores_N)
        return found

    def _states(self, texts: Sequence[Tokens], limit: int) -> tuple[Tensor, list[int]]:
        """Returns the encoder's states (B, L, D) and the lengths with end tokens."""
        rows = [torch.tensor([*text.ids[: limit - 1], self._eos]) for text in texts]
        ids_BL = pad_sequence(rows, batch_first=True).to(self._device)
        lengths = [len(row) for row in rows]
        ends_B1 = torch.tensor(lengths, device=self._device)[:, None]
        mask_BL = torch.arange(ids_BL.shape[1], device=self._device) < ends_B1
        output = self._encoder(input_ids=ids_BL, attention_mask=mask_BL.long())
        return output.last_hidden_state, lengths

    def check_vocabulary(self, vocabulary: dict[str, int]) -> None:
        """Refuses a captioning model with other tokens than this one's.

        Args:
            vocabulary: Of its tokenizer, which may have markers more.

        Raises:
            ValueError: A token of the scorer has another id there.
        """
        self._load()
        for piece, number in self._vocabulary.items():
            if vocabulary.get(piece, number) != number:
                raise ValueError(
                    f"relevance: {self.model} has {piece!r} as token {number}, the captioning "
                    f"model as {vocabulary[piece]}: take a scorer with the same vocabulary"
                )

    def _load(self) -> None:
        if "_encoder" in vars(self):
            return
        from .network import load_encoder
        from .tokens import load_tokenizer

        source = Path(self.model)
        tokenizer = load_tokenizer(source if source.is_dir() else self.model)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._eos = tokenizer.eos_token_id
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        encoder: Any = load_encoder(self.model)
        self._encoder = encoder.to(self._device).eval().requires_grad_(False)


def _aggregate(states_MD: Tensor, how: Aggregation) -> Tensor:
    if how == "mean":
        return states_MD.mean(0)
    if how == "max":
        return states_MD.amax(0)
    return states_MD[0 if how == "first" else -1]


def _minmax(scores: Tensor) -> Tensor:
    if not len(scores):
        return scores
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp(min=1e-9)
