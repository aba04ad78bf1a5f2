"""Sentences of documents: cut out of paragraphs, and filtered one by one."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import regex

from .extras import require
from .tables import Verdict, split_by_reason

LEARNED_AT_ONCE = 100  # paragraphs
_WORDS = re.compile(r"[^\W_]+")
_URL = re.compile(r"\b(?:https?|ftp)://|\bwww\.\w", re.IGNORECASE)
# Shown as a picture by default, or asked to be: not (c), digits or arrows as they stand in texts.
_EMOJI = regex.compile(r"\p{Emoji_Presentation}|\p{Emoji}\ufe0f")
_AUXILIARIES = """
be am is are was were been being 's 're 'm have has had having 've do does did will would shall
should can could may might must ought
"""
AUXILIARIES = frozenset(_AUXILIARIES.split())


@dataclass(frozen=True)
class SentenceFilter:
    """Which sentences are worth keeping (RealSyn, section 3.1).

    Attributes:
        min_words: Fewest words, of letters and digits.
        max_words: Most words.
        drop_urls: Drop what has an address in it.
        drop_emoji: Drop what has an emoji in it.
        complexity: CAT's C: how many attributes or relations some object must have; 0: any.
        require_action: CAT's A: whether there must be a verb that is no auxiliary.
        tagger: Who finds parts of speech: "pattern" (a lexicon inside textblob; objects and their
            relations are guessed from neighbours), or the name of an installed spaCy model with a
            parser, such as "en_core_web_sm".
        min_entropy: Least sum of -p log p over the words, natural log (equation 1).
        min_perplexity: Of a language model, if the pipeline has one.
        max_perplexity: Likewise.
        perplexity_mode: "absolute": as given, meant for GPT2-large; "quantile": the limits are
            shares in [0, 1] of the sentences, for any other model.
    """

    min_words: int = 3
    max_words: int = 81
    drop_urls: bool = True
    drop_emoji: bool = True
    complexity: int = 1
    require_action: bool = True
    tagger: str = "pattern"
    min_entropy: float = 0.3
    min_perplexity: float = 30.0
    max_perplexity: float = 200.0
    perplexity_mode: Literal["absolute", "quantile"] = "absolute"

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                "sentences: min_words must be at least 1 and at most max_words, got "
                f"{self.min_words} and {self.max_words}"
            )
        if self.complexity < 0 or self.min_entropy < 0:
            raise ValueError("sentences: complexity and min_entropy must be 0 or more")
        low, high = self.min_perplexity, self.max_perplexity
        if not 0 <= low <= high or (self.perplexity_mode == "quantile" and high > 1):
            most = "1" if self.perplexity_mode == "quantile" else "max_perplexity"
            raise ValueError(
                "sentences: min_perplexity and max_perplexity must be in order, 0 or more, and at "
                f"most {most} for mode {self.perplexity_mode}, got {low} and {high}"
            )


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits: what counts as words everywhere in the pipeline."""
    return _WORDS.findall(text.lower())


def normalized(text: str) -> str:
    """What is left of a text without case, punctuation and spaces: equal for near copies."""
    return "".join(_WORDS.findall(text.casefold()))


# Paragraphs to sentences


def learn_splitter(paragraphs: Iterable[str]) -> str:
    """Learns abbreviations, collocations and sentence starters of a corpus (NLTK's Punkt).

    Punkt learns without labels, so that nothing is downloaded.

    Args:
        paragraphs: Texts in a fixed order.

    Returns:
        What was learned, as JSON that `SentenceSplitter` reads.
    """
    punkt = require("nltk.tokenize.punkt", "nltk")
    trainer = punkt.PunktTrainer()
    trainer.INCLUDE_ALL_COLLOCS = True
    texts = iter(paragraphs)
    while some := list(islice(texts, LEARNED_AT_ONCE)):  # each call looks for abbreviations anew
        trainer.train("\n\n".join(some), finalize=False)
    trainer.finalize_training()
    learned = trainer.get_params()
    return json.dumps(
        {
            "abbreviations": sorted(learned.abbrev_types),
            "collocations": sorted(map(list, learned.collocations)),
            "starters": sorted(learned.sent_starters),
            "context": dict(sorted(learned.ortho_context.items())),
        }
    )


class SentenceSplitter:
    """Cuts paragraphs into sentences by what `learn_splitter` has learned.

    Args:
        learned: Its result.
    """

    def __init__(self, learned: str) -> None:
        punkt = require("nltk.tokenize.punkt", "nltk")
        said = json.loads(learned)
        parameters = punkt.PunktParameters()
        parameters.abbrev_types = set(said["abbreviations"])
        parameters.collocations = set(map(tuple, said["collocations"]))
        parameters.sent_starters = set(said["starters"])
        parameters.ortho_context.update(said["context"])
        self._tokenizer = punkt.PunktSentenceTokenizer(parameters)

    def __call__(self, paragraph: str) -> list[str]:
        """The sentences of a paragraph."""
        return [str(sentence) for sentence in self._tokenizer.tokenize(paragraph)]


def split_paragraphs(paragraphs: pa.Table, splitter: SentenceSplitter) -> pa.Table:
    """Makes a table of sentences from one of paragraphs.

    Args:
        paragraphs: With `id`, `document`, `position` and `text`.
        splitter: Cuts a text.

    Returns:
        A row per sentence, in order, with the same columns; an id is the paragraph's with the
        number of the sentence.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("id", "document", "position", "text")}
    rows = zip(*(paragraphs[name].to_pylist() for name in found), strict=True)
    for paragraph, document, position, text in rows:
        for number, sentence in enumerate(splitter(text)):
            found["id"].append(f"{paragraph}.{number:03d}")
            found["document"].append(document)
            found["position"].append(position)
            found["text"].append(sentence)
    types = (pa.string(), pa.string(), pa.int32(), pa.string())
    return pa.table(
        {name: pa.array(found[name], kind) for name, kind in zip(found, types, strict=True)}
    )


# Quality


def filter_sentences(sentences: pa.Table, settings: SentenceFilter, tagger: "Tagger") -> Verdict:
    """Drops what has emoji or URLs, is too short or too long, or tells of nothing that happens.

    Args:
        sentences: With `text`.
        settings: What to keep.
        tagger: As `make_tagger` makes it.

    Returns:
        What is kept, and the reason for each of the others: "url", "emoji", "short", "long",
        "simple" or "no action".
    """
    return split_by_reason(
        sentences, [_quality_reason(t, settings, tagger) for t in sentences["text"].to_pylist()]
    )


def _quality_reason(text: str, settings: SentenceFilter, tagger: "Tagger") -> str:
    if settings.drop_urls and _URL.search(text):
        return "url"
    if settings.drop_emoji and _EMOJI.search(text):
        return "emoji"
    num_words = len(words_of(text))
    if num_words < settings.min_words:
        return "short"
    if num_words > settings.max_words:
        return "long"
    if settings.complexity or settings.require_action:
        content = tagger(text)
        if content.complexity < settings.complexity:
            return "simple"
        if settings.require_action and not content.has_action:
            return "no action"
    return ""


@dataclass(frozen=True)
class Content:
    """What CAT (arXiv 2301.02280) asks of a caption.

    Attributes:
        complexity: Most attributes and relations of one object.
        has_action: Whether there is a verb that is no auxiliary.
    """

    complexity: int
    has_action: bool


class Tagger:
    """Tells a sentence's `Content`."""

    def __call__(self, text: str) -> Content:
        """The content of a sentence."""
        raise NotImplementedError


class PatternTagger(Tagger):
    """Parts of speech from the lexicon and rules inside textblob; relations from neighbours.

    An object has those adjectives, numbers and nouns as attributes that stand directly before it,
    and a preposition or verb beside its group as a relation.
    """

    def __init__(self) -> None:
        self._tag = require("textblob.en", "textblob").tag

    def __call__(self, text: str) -> Content:
        """See `Tagger`."""
        return content_of_tags([(str(word), str(tag)) for word, tag in self._tag(text)])


def content_of_tags(tagged: Sequence[tuple[str, str]]) -> Content:
    """Guesses the content of a sentence from its Penn Treebank tags."""
    most, attributes, relation, has_action = 0, 0, 0, False
    has_object = False
    group: list[str] = []
    for word, tag in [*tagged, ("", "")]:
        verb = tag.startswith("VB") and word.lower() not in AUXILIARIES
        has_action |= verb
        if tag.startswith(("NN", "JJ", "CD", "PRP$")) or tag in ("DT", "VBN"):
            if tag != "DT":
                group.append(tag)
            if tag.startswith("NN"):
                has_object = True
                attributes = len(group) - 1
            continue
        after = int(verb or tag in ("IN", "TO"))
        if has_object:
            most = max(most, attributes + relation + after)
        group, attributes, has_object = [], 0, False
        relation = after
    return Content(most, has_action)


# spaCy's dependents that tell something about the noun they hang on, and what a noun hangs on when
# it takes part in an action.
_ATTRIBUTES = frozenset(["amod", "compound", "nummod", "poss", "prep", "acl", "relcl"])
_ROLES = frozenset(["nsubj", "nsubjpass", "dobj", "obj"])


def content_of_parse(
    parts: Sequence[str], dependencies: Sequence[str], heads: Sequence[int]
) -> Content:
    """The content of a parsed sentence.

    Args:
        parts: Universal part of speech of each token, as spaCy's `pos_`.
        dependencies: Relation of each token to its head, as spaCy's `dep_`.
        heads: Place of each token's head.
    """
    relations: Counter[int] = Counter()
    for token, (dependency, head) in enumerate(zip(dependencies, heads, strict=True)):
        if dependency in _ATTRIBUTES and parts[head] in ("NOUN", "PROPN"):
            relations[head] += 1
        is_object = parts[token] in ("NOUN", "PROPN")
        if is_object and dependency in _ROLES and parts[head] == "VERB":
            relations[token] += 1
    return Content(max(relations.values(), default=0), "VERB" in parts)


class SpacyTagger(Tagger):
    """The parser of an installed spaCy model.

    Args:
        model: Its name.
    """

    def __init__(self, model: str) -> None:
        try:
            import spacy

            self._parse = spacy.load(model, exclude=["ner", "lemmatizer"])
        except (ImportError, OSError) as error:
            raise ValueError(
                f"sentences: tagger: no spaCy model {model!r} is installed "
                f"(pip install spacy, python -m spacy download {model}): or take 'pattern'"
            ) from error

    def __call__(self, text: str) -> Content:
        """See `Tagger`."""
        parsed = self._parse(text)
        return content_of_parse(
            [token.pos_ for token in parsed],
            [token.dep_ for token in parsed],
            [token.head.i for token in parsed],
        )


def make_tagger(name: str) -> Tagger:
    """Makes the tagger of that name: "pattern", or a spaCy model.

    Raises:
        ValueError: It is not installed.
    """
    return PatternTagger() if name == "pattern" else SpacyTagger(name)


# Meaning


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    return counts


def entropies(texts: Iterable[str], counts: Mapping[str, int]) -> list[float]:
    """The information entropy of sentences: -sum of p(w) ln p(w) over their words (equation 1).

    Each occurrence counts; it is no entropy of a distribution.

    Args:
        texts: Sentences, whose words are all counted.
        counts: Of the words of the whole corpus.
    """
    total = sum(counts.values())
    terms: dict[str, float] = {}
    found = []
    for text in texts:
        value = 0.0
        for word in words_of(text):
            if word not in terms:
                probability = counts[word] / total
                terms[word] = -probability * float(np.log(probability))
            value += terms[word]
        found.append(value)
    return found


def filter_by_meaning(sentences: pa.Table, settings: SentenceFilter) -> Verdict:
    """Drops what is too predictable or too strange.

    Args:
        sentences: With `entropy` and `perplexity` (null: not measured).
        settings: What to keep; limits of the perplexity are absolute here.

    Returns:
        What is kept, and the reason for each of the others: "entropy" or "perplexity".
    """
    low, high = settings.min_perplexity, settings.max_perplexity
    measured = zip(
        sentences["entropy"].to_pylist(), sentences["perplexity"].to_pylist(), strict=True
    )
    reasons = [
        "entropy"
        if entropy < settings.min_entropy
        else "perplexity"
        if perplexity is not None and not low <= perplexity <= high
        else ""
        for entropy, perplexity in measured
    ]
    return split_by_reason(sentences, reasons)
