"""English words without a dictionary: which matter, and which are forms of one another."""

import re

WORD = re.compile(r"[^\W_]+")
# What words may lose without becoming another word, longest first.
SUFFIXES = ("ings", "ing", "edly", "ies", "ed", "es", "ly", "s", "y")
MIN_STEM = 3


def stem(word: str) -> str:
    """Takes case and a common ending off a word, if three letters are left."""
    word = word.casefold()
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= MIN_STEM:
            return word.removesuffix(suffix)
    return word


def is_stop_word(word: str) -> bool:
    """Says whether a word is in scikit-learn's list of English stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return word.casefold() in ENGLISH_STOP_WORDS


def content_stems(text: str) -> set[str]:
    """Returns the stems of the words of a text that are no stop words."""
    return {stem(word) for word in WORD.findall(text) if not is_stop_word(word)}
