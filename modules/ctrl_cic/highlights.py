"""Highlights: words and phrases of a section that a caption should be about.

A phrase is a text, of which every occurrence counts, or a pair of first and last character in the
section's text (the last exclusive).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .tokens import Section, Tokens

Phrase = str | Sequence[int]
Pool = Literal["last", "max"]


def phrase_text(phrase: Phrase, section_text: str) -> str:
    """Returns the words of a phrase."""
    if isinstance(phrase, str):
        return phrase
    start, end = phrase
    return section_text[start:end]


def in_order(phrases: Sequence[Phrase], section_text: str) -> list[str]:
    """Returns the texts of phrases in the order of the section; what is not in it comes last."""

    def place(phrase: Phrase) -> int:
        found = section_text.find(phrase) if isinstance(phrase, str) else phrase[0]
        return found if found >= 0 else len(section_text)

    return [phrase_text(phrase, section_text) for phrase in sorted(phrases, key=place)]


def highlighted_tokens(
    section: Section, phrases: Sequence[Phrase], encode: Callable[[str], list[int]]
) -> Tensor:
    """Marks the tokens of phrases, (N,) bool.

    A phrase is turned into tokens alone and searched for as a whole, as the released code does: it
    is found where a word starts. What lies beyond the section's visible tokens is not found.

    Args:
        section: Where to look.
        phrases: What is highlighted.
        encode: Gives the ids of a text.
    """
    tokens, size = section.tokens, section.num_visible
    marked_N = torch.zeros(len(tokens), dtype=torch.bool)
    for phrase in phrases:
        if isinstance(phrase, str):
            wanted = encode(phrase)
            for start in range(size - len(wanted) + 1 if wanted else 0):
                if tokens.ids[start : start + len(wanted)] == wanted:
                    marked_N[start : start + len(wanted)] = True
        else:
            first, last = phrase
            for index, (start, end) in enumerate(tokens.spans[:size]):
                marked_N[index] |= start < last and end > first
    return marked_N


def starts_word(piece: str) -> bool:
    """Says whether a token is the first of a word."""
    return piece.startswith("▁")


def pooled_words(
    section: Section,
    scores: Tensor,
    threshold: float = 0.65,
    max_words: int = 40,
    pool: Pool = "last",
) -> list[str]:
    """Returns the words of a section whose tokens have high scores on average.

    Marks part words and are none; a word cut off at the end of what is visible is none either. Of a
    word that occurs again, the score of the last occurrence counts (as in the released code) or the
    largest. Upper and lower case are different words.

    Args:
        section: The section.
        scores: Of its tokens, (N,).
        threshold: A word is kept if its score is larger.
        max_words: Of more words, those with the highest scores are kept.
        pool: What counts of several occurrences.

    Returns:
        Words in the order of their first occurrence.
    """
    tokens, size = section.tokens, section.num_visible
    if size < len(tokens):
        while size and not starts_word(tokens.pieces[size]):
            size -= 1
    values = scores[:size].tolist()
    found: dict[str, float] = {}
    word, total, count = "", 0.0, 0
    for index in range(size):
        piece = tokens.pieces[index].removeprefix("▁")
        if piece.isalnum():
            word, total, count = word + piece, total + values[index], count + 1
        at_end = index + 1 == size or starts_word(tokens.pieces[index + 1])
        if word and (not piece.isalnum() or at_end):
            score = total / count
            found[word] = max(score, found.get(word, score)) if pool == "max" else score
            word, total, count = "", 0.0, 0
    kept = [word for word, score in found.items() if score > threshold]
    if len(kept) > max_words:
        best = sorted(kept, key=lambda word: -found[word])[:max_words]
        kept = [word for word in kept if word in set(best)]
    return kept


def words_of_tokens(tokens: Tokens) -> list[tuple[int, int]]:
    """Returns first and last token (exclusive) of each group that starts with a new word."""
    starts = [i for i, piece in enumerate(tokens.pieces) if i == 0 or starts_word(piece)]
    return [*pairwise([*starts, len(tokens)])]
