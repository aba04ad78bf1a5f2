"""Highlights for evaluation where nobody gave any: key phrases of a section, and a caption's words.

Phrases are scored as RAKE does (Rose et al. 2010): runs of words between stop words and marks; a
word counts by the length of the runs it is in over how often it occurs, a phrase by the sum of its
words. The paper asks GPT-4 for ten phrases instead; what is done with them is the same.
"""

import random
import re
from collections import Counter

from ...modules.words import WORD, content_stems, is_stop_word, stem

NUM_PHRASES = 10
MAX_WORDS = 3
MIN_CONTEXT = 100  # characters of titles and text; shorter sections get no highlights
SENTENCE = re.compile(r"[.,;:!?()\[\]\"\u201c\u201d\u2013\u2014\n]|\s-\s")


def key_phrases(text: str, number: int = NUM_PHRASES) -> list[str]:
    """Returns phrases that occur in a text word for word, the best first.

    None lies inside another. Of equally good ones the first in the text comes first.

    Args:
        text: Of a section.
        number: At most so many are looked at; fewer are returned where some lie in others.
    """
    runs = [run for part in SENTENCE.split(text) for run in _runs(part)]
    degree: Counter[str] = Counter()
    frequency: Counter[str] = Counter()
    for run in runs:
        words = [word.lower() for word in run.split()]
        frequency.update(words)
        for word in words:
            degree[word] += len(words)
    best: dict[str, float] = {}
    for run in runs:
        score = sum(degree[word] / frequency[word] for word in run.lower().split())
        if run in text:
            best.setdefault(run, score)
    chosen = sorted(best, key=lambda run: -best[run])[:number]
    return [
        phrase
        for phrase in chosen
        if not any(phrase != other and phrase in other for other in chosen)
    ]


def _runs(part: str) -> list[str]:
    """Returns runs of words that are no stop words, of at most three words each."""
    found: list[str] = []
    run: list[str] = []
    for word in [*part.split(), ""]:
        is_word = bool(WORD.search(word)) and not is_stop_word(word)
        if is_word and len(run) < MAX_WORDS:
            run.append(word)
            continue
        if run and not all(piece.isdigit() for piece in run):
            found.append(" ".join(run))
        run = [word] if is_word else []
    return found


def sample_highlights(
    phrases: list[str], text: str, num_highlights: int, num_phrases: int, seed: int
) -> list[tuple[str, ...]]:
    """Draws highlights from phrases as the released script does.

    Args:
        phrases: Of a section.
        text: Of the section, for the order of the phrases.
        num_highlights: How many.
        num_phrases: Phrases in each.
        seed: Of the drawing; the script counts images.

    Returns:
        Highlights, their phrases in the order of the text; none where there are not at least
        `num_highlights * num_phrases` phrases.
    """
    if len(phrases) < num_highlights * num_phrases:
        return []
    drawn = random.Random(seed).sample(phrases, num_highlights * num_phrases)
    groups = [drawn[k : k + num_phrases] for k in range(0, len(drawn), num_phrases)]
    return [tuple(sorted(group, key=text.find)) for group in groups]


def shared_words(caption: str, text: str, number: int) -> tuple[str, ...]:
    """Returns words of a section that its caption has too, in other forms perhaps.

    Args:
        caption: The caption.
        text: Of the section.
        number: At most so many: the longest, in the order of the text.
    """
    wanted = content_stems(caption)
    found: dict[str, str] = {}
    for match in WORD.finditer(text):
        if not is_stop_word(match[0]) and stem(match[0]) in wanted and len(match[0]) > 2:
            found.setdefault(stem(match[0]), match[0])
    kept = sorted(found.values(), key=lambda word: -len(word))[:number]
    return tuple(sorted(kept, key=text.find))


def drawn_phrases(sentence: str, number: int, most: int) -> list[str]:
    """Returns words in a row of a sentence, 1 to `most`, one of them at least no stop word.

    Args:
        sentence: Its hash decides what is drawn.
        number: How many are drawn; of equal ones one is returned, of a sentence of stop words none.
        most: Words at most.
    """
    words = list(WORD.finditer(sentence))
    telling = [k for k, word in enumerate(words) if not is_stop_word(word[0])]
    rng = random.Random(sentence)
    found: dict[str, None] = {}
    for _ in range(number if telling else 0):
        size, place = rng.randint(1, most), rng.choice(telling)
        first = rng.randint(max(0, place - size + 1), place)
        last = min(first + size, len(words)) - 1
        found[sentence[words[first].start() : words[last].end()]] = None
    return list(found)
