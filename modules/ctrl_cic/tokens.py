"""Contexts of images as tokens, of which each knows what part of the context it is from.

A source is one sequence:

    [ImageToken] <image> [PageTitle] t [SectionTitle] t [SectionText] text [ImageCaption] c ... </s>

The slot of the image, index 1, holds an image feature once tokens are embedded. Prefix, section
text and the rest are turned into tokens separately, so that every token's part is known. Shapes:
B sources, S tokens of a source with the slot, N tokens of a section's text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Tokenizer

MARKERS = (
    *("[ImageToken]", "[SectionIndex]", "[SectionTitle]", "[SectionText]"),
    *("[PageURL]", "[PageTitle]", "[ImageCaption]"),
)
IMAGE_SLOT = 1
PageContext = Literal["section", "page"]


@dataclass(frozen=True)
class Tokens:
    """A text and its tokens, without special ones.

    Args:
        text: The text.
        ids: Of its tokens.
        pieces: The tokens; one that starts a word begins with "▁" (SentencePiece).
        spans: First and last character of each, the last exclusive.
    """

    text: str
    ids: list[int]
    pieces: list[str]
    spans: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Section:
    """The text of a section inside a source.

    Args:
        tokens: Of the whole text.
        start: Index of the first one in the source.
        num_visible: How many of them are in the source; the others were cut off.
    """

    tokens: Tokens
    start: int
    num_visible: int


class Source(NamedTuple):
    """A batch of sources.

    Attributes:
        ids: (B, S) int64, padded; the slot of the image has the padding id.
        mask: (B, S) int64, 1 where there is a token or the image.
        is_other: (B, S) bool: captions of other images, with their markers.
        sections: Of each source.
    """

    ids: Tensor
    mask: Tensor
    is_other: Tensor
    sections: list[Section]

    def rows(self, rows: Sequence[int]) -> "Source":
        """Returns chosen sources, some perhaps several times."""
        places = torch.tensor(rows, device=self.ids.device)
        sections = [self.sections[row] for row in rows]
        return Source(self.ids[places], self.mask[places], self.is_other[places], sections)

    def to_section_weights(self, values: Sequence[Tensor], elsewhere: Tensor) -> Tensor:
        """Puts values of section tokens into a tensor over all tokens.

        Args:
            values: Of each source, (N,) or more: those of tokens that were cut off are left out.
            elsewhere: (B, S), copied.
        """
        weights_BS = elsewhere.clone()
        for row, (section, value_N) in enumerate(zip(self.sections, values, strict=True)):
            end = section.start + section.num_visible
            visible = value_N[: section.num_visible]
            weights_BS[row, section.start : end] = visible.to(weights_BS)
        return weights_BS


class ContextTokenizer:
    """Turns contexts, captions and highlights into tokens and back.

    Args:
        tokenizer: A tokenizer of transformers that ends texts with an end token, as T5's.
        extra_markers: Further special tokens.
        max_length: Tokens of a source, the slot of the image included.
        context: "section": what stands above. "page": the rest of the page follows the section's
            captions, as [SectionIndex] i [SectionTitle] t [SectionText] t [ImageCaption] c ...

    Raises:
        ValueError: The tokenizer has no end or padding token, or splits a marker.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        extra_markers: Sequence[str] = (),
        max_length: int = 512,
        context: PageContext = "section",
    ) -> None:
        self.tokenizer: Any = tokenizer
        if self.tokenizer.eos_token_id is None or self.tokenizer.pad_token_id is None:
            raise ValueError("tokenizer: it has no end token or no padding token; take one of T5's")
        if max_length < 16:
            raise ValueError(f"max_source_length must be 16 or more, got {max_length}")
        markers = [*MARKERS, *extra_markers]
        known = self.tokenizer.get_vocab()
        new = [marker for marker in markers if marker not in known]
        self.tokenizer.add_special_tokens(
            {"additional_special_tokens": new}, replace_extra_special_tokens=False
        )
        for marker in markers:
            ids = self.tokenizer.encode(marker, add_special_tokens=False)
            if len(ids) != 1:
                raise ValueError(f"tokenizer: it splits {marker} into {len(ids)} tokens")
        self.max_length, self.context = max_length, context
        self.eos, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.tokenizer)

    def tokens(self, text: str) -> Tokens:
        """Returns the tokens of a text."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        pieces = self.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        return Tokens(text, encoded["input_ids"], pieces, encoded["offset_mapping"])

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text's tokens."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found

    def marker(self, marker: str) -> int:
        """Returns the id of a marker."""
        found: int = self.tokenizer.convert_tokens_to_ids(marker)
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        decoded: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded.strip()

    def encode(self, batch: Mapping[str, Any], device: torch.device | str = "cpu") -> Source:
        """Turns the contexts of a batch into sources.

        Args:
            batch: `page_titles`, `section_titles`, `section_texts`: B strings each;
                `other_captions`: B lists of strings. For `context="page"` also `page_urls`: B
                strings; `other_sections`: B lists of (title, text, captions).
            device: Of the tensors.
        """
        size = len(batch["section_texts"])
        rows = [self._row({name: batch[name][row] for name in batch}) for row in range(size)]
        length = max(len(ids) for ids, _, _ in rows)
        ids_BS = torch.full((size, length), self.pad)
        mask_BS = torch.zeros((size, length), dtype=torch.int64)
        is_other_BS = torch.zeros((size, length), dtype=torch.bool)
        for row, (ids, first_other, _) in enumerate(rows):
            ids_BS[row, : len(ids)] = torch.tensor(ids)
            mask_BS[row, : len(ids)] = 1
            is_other_BS[row, first_other : len(ids) - 1] = True  # the last is the end token
        sections = [section for _, _, section in rows]
        return Source(ids_BS.to(device), mask_BS.to(device), is_other_BS.to(device), sections)

    def _row(self, item: Mapping[str, Any]) -> tuple[list[int], int, Section]:
        """Returns the ids of one source, where other captions begin, and its section."""
        parts = []
        if self.context == "page" and item.get("page_urls"):
            parts.append(f"[PageURL] {item['page_urls']}")
        parts += [f"[PageTitle] {item['page_titles']}", f"[SectionTitle] {item['section_titles']}"]
        text = item["section_texts"]
        if text:
            parts.append("[SectionText]")
        others = _captions(item["other_captions"])
        if self.context == "page":
            for index, (title, words, captions) in enumerate(item["other_sections"]):
                others += [f"[SectionIndex] {index} [SectionTitle] {title} [SectionText] {words}"]
                others += _captions(captions)
        # The slot of the image comes after the first token.
        prefix = [self.marker(MARKERS[0]), self.pad, *self.ids(" ".join(parts))]
        tokens = self.tokens(text)
        ids = [*prefix, *tokens.ids, *self.ids(" ".join(others)), self.eos]
        if len(ids) > self.max_length:
            ids = [*ids[: self.max_length - 1], self.eos]
        end = min(len(prefix) + len(tokens), len(ids) - 1)
        start = min(len(prefix), len(ids) - 1)
        return ids, end, Section(tokens, start, end - start)


def _captions(captions: Sequence[str]) -> list[str]:
    return [f"[ImageCaption] {caption}" for caption in captions if caption]


def word_tokenizer(vocabulary: str) -> PreTrainedTokenizerBase:
    """Makes a tokenizer of T5's kind of whole words, for texts that have no others.

    Args:
        vocabulary: The words and marks, with blanks between them. All that stands between blanks
            in a text must be among them.

    Raises:
        ValueError: There is no word.
    """
    words = list(dict.fromkeys(vocabulary.split()))
    if not words:
        raise ValueError("vocabulary: it has no words; list all that occur, with blanks between")
    return _t5_tokenizer([("▁", -20.0), *((f"▁{word}", -1.0) for word in words)])


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Learns a tokenizer of T5's kind (SentencePiece's unigram model) from texts.

    Args:
        texts: To learn from.
        vocab_size: Number of tokens.
    """
    learner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=vocab_size,
        unk_token="<unk>",
        special_tokens=["<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    found = json.loads(learner.to_str())["model"]["vocab"]
    return _t5_tokenizer([(piece, score) for piece, score in found[3:]])


def _t5_tokenizer(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerBase:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    make: Any = T5Tokenizer
    tokenizer: PreTrainedTokenizerBase = make(vocab=[*special, *pieces], extra_ids=0)
    return tokenizer


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub repository.

    Raises:
        ValueError: There is none, or none that tells where a token stands in its text.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer: cannot load {str(source)!r}: {reason}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: {str(source)!r} has no fast tokenizer, which is needed here")
    return tokenizer
