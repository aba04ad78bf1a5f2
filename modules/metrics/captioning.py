"""Captions against references, against highlights, and against each other.

What is compared is said with each number: several programs compute numbers of these names from
differently prepared texts. Here texts are taken as they are unless something else is said.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score, sacre_bleu_score

from ..descriptions import Rebuildable
from ..encoders.encoder import Encoder

MAX_NGRAM = 4
SIGMA = 6.0
NGram = tuple[str, ...]
Vector = dict[NGram, float]
Tokenization = Literal["raw", "words"]
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class CiderD:
    """CIDEr-D (Vedantam et al. 2015), as the COCO caption evaluation computes it.

    n-grams are weighted by ln N - ln df, of N sets of references df of which have the n-gram.

    Args:
        references: Sets of references that the weights come from.
        tokenize: "raw": texts are split at blanks, so that case and marks matter, as in Ctrl-CIC's
            evaluation. "words": marks and case are left out.

    Raises:
        ValueError: There are no references.
    """

    def __init__(self, references: Sequence[Sequence[str]], tokenize: Tokenization = "raw") -> None:
        if not references:
            raise ValueError("CIDEr-D needs references to weight n-grams by")
        self.tokenize: Tokenization = tokenize
        self.log_sets = math.log(len(references))
        sets = [{n for text in texts for n in self._counts(text)} for texts in references]
        self.frequency = Counter(ngram for ngrams in sets for ngram in ngrams)

    def score(self, caption: str, references: Sequence[str]) -> float:
        """Returns the score of a caption, from 0 to 10."""
        own, own_length = self._vectors(caption)
        others = [self._vectors(text) for text in references]
        values = [_similarity(own, own_length, *other) for other in others]
        return 10 * fmean(values)

    def _counts(self, text: str) -> Counter[NGram]:
        words = text.split() if self.tokenize == "raw" else WORD.findall(text.lower())
        return Counter(
            tuple(words[start : start + n])
            for n in range(1, MAX_NGRAM + 1)
            for start in range(len(words) - n + 1)
        )

    def _vectors(self, text: str) -> tuple[list[Vector], int]:
        """Returns a vector of weighted n-grams for each n, and how many bigrams there are."""
        vectors: list[Vector] = [{} for _ in range(MAX_NGRAM)]
        num_bigrams = 0
        for ngram, count in self._counts(text).items():
            idf = self.log_sets - math.log(max(1, self.frequency[ngram]))
            vectors[len(ngram) - 1][ngram] = count * idf
            num_bigrams += count if len(ngram) == 2 else 0
        return vectors, num_bigrams


def _similarity(
    one: list[Vector], one_length: int, other: list[Vector], other_length: int
) -> float:
    total = 0.0
    for own, theirs in zip(one, other, strict=True):
        product = sum(min(v, theirs[k]) * theirs[k] for k, v in own.items() if k in theirs)
        norms = _norm(own) * _norm(theirs)
        total += product / norms if norms else 0.0
    # The reference's "length" is the number of bigrams.
    return total / MAX_NGRAM * math.exp(-((one_length - other_length) ** 2) / (2 * SIGMA**2))


def _norm(vector: Vector) -> float:
    return math.sqrt(sum(value * value for value in vector.values()))


def self_cider(captions: Sequence[str], cider: CiderD) -> float:
    """Diversity of the captions of one image (Wang and Chan 2019), from 0 (equal) to 1.

    From the eigenvalues e of the matrix of CIDEr-D between all pairs, m captions:
    -log_m(sqrt(e_max) / sum(sqrt(e))).

    Args:
        captions: At least two.
        cider: Weights of n-grams.
    """
    kernel = np.array([[cider.score(a, [b]) for b in captions] for a in captions])
    roots = np.sqrt(np.linalg.eigvalsh((kernel + kernel.T) / 2).clip(min=0))
    if not roots.sum():  # no caption has anything in it
        return 0.0
    return float(-np.log(roots.max() / roots.sum()) / np.log(len(captions))) + 0.0


def highlight_recall(
    caption: str, phrases: Sequence[str], match: Literal["substring", "word"] = "substring"
) -> float:
    """Returns the share of phrases that a caption has, without regard to case.

    Args:
        caption: The caption.
        phrases: At least one.
        match: "substring", as in Ctrl-CIC, where "category" has "cat"; or whole words.
    """
    text = caption.strip().lower()
    wanted = [phrase.strip().lower() for phrase in phrases]
    if match == "substring":
        return fmean(phrase in text for phrase in wanted)
    return fmean(bool(re.search(rf"(?<!\w){re.escape(p)}(?!\w)", text)) for p in wanted)


def distinct_ngrams(
    captions: Sequence[str], n: int, denominator: Literal["words", "chars"] = "words"
) -> float:
    """Div-n: different n-grams of the captions of one image, as a share.

    Args:
        captions: Those with fewer than n words are left out.
        n: Of the n-grams.
        denominator: Of all "words", the usual number; or of all "chars", as Ctrl-CIC's released
            code counts, about a sixth of it.
    """
    split = [words for words in (caption.split() for caption in captions) if len(words) >= n]
    ngrams = {tuple(words[i : i + n]) for words in split for i in range(len(words) - n + 1)}
    texts = [caption for caption in captions if len(caption.split()) >= n]
    total = sum(map(len, split)) if denominator == "words" else sum(map(len, texts))
    return len(ngrams) / total if total else 0.0


def repeated_bigrams(caption: str) -> float:
    """Returns the share of bigrams that stood in the caption before: a sign of broken text."""
    words = caption.lower().split()
    bigrams = [*pairwise(words)]
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def clip_scores(encoder: Encoder, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
    """CLIPScore as Ctrl-CIC computes it, (B,) float32: 250 times the cosine, not cut off at 0.

    Args:
        encoder: Of images and texts in one space; with ViT-L/14 the numbers are the paper's.
        images: B images.
        captions: B captions.
    """
    seen, said = encoder.encode_images(images), encoder.encode_texts(captions)
    return 250 * cosine_similarity(seen.float(), said.float(), dim=-1)


def sentence_clip_scores(
    encoder: Encoder, sentences: Sequence[Sequence[str]], captions: Sequence[str]
) -> Tensor:
    """CLIPScore-Sent of Ctrl-CIC, (B,) float32: cosine of captions and what is highlighted.

    Args:
        encoder: Of texts; with `normalize: false` the mean is that of the released code.
        sentences: For each caption the sentences with its highlight, see `sentences_with`.
        captions: B captions.
    """
    rows = [encoder.encode_texts(list(texts)).float().mean(0) for texts in sentences]
    return cosine_similarity(torch.stack(rows), encoder.encode_texts(captions).float(), dim=-1)


def sentences_with(text: str, phrases: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Returns the sentences of a text that have a phrase; else a title that has; else the text."""
    split = [part for part in SENTENCE_END.split(text) if part.strip()]
    for candidates in (split, titles):
        if found := [part for part in candidates if any(p in part for p in phrases)]:
            return found
    return [text or " ".join(titles)]


class CaptionScore(Rebuildable, ABC):
    """A number that compares captions with references."""

    @abstractmethod
    def compute(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Returns numbers by name.

        Args:
            captions: At least one.
            references: Of each caption one or more.
        """


class Bleu(CaptionScore):
    """`bleu_1` to `bleu_<n_gram>`: corpus BLEU, sacrebleu's 13a tokens, case matters, in [0, 1].

    Args:
        n_gram: The largest n. Ctrl-CIC reports 4.
    """

    def __init__(self, n_gram: int = 4) -> None:
        self.n_gram = n_gram

    def compute(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """See `CaptionScore`."""
        # torchmetrics wants equally many references for all: repeating one changes nothing.
        most = max(map(len, references))
        texts = [[*row, *[row[-1]] * (most - len(row))] for row in references]
        return {
            f"bleu_{n}": sacre_bleu_score(captions, texts, n_gram=n, tokenize="13a").item()
            for n in range(1, self.n_gram + 1)
        }


class RougeL(CaptionScore):
    """`rouge_l`: F1 of the longest common subsequence, mean over captions, in [0, 1].

    Words are letters and digits in small letters, as in rouge_score; no stemming.
    """

    def compute(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """See `CaptionScore`."""
        texts = [list(row) for row in references]
        found: Any = rouge_score(list(captions), texts, rouge_keys="rougeL", accumulate="best")
        return {"rouge_l": found["rougeL_fmeasure"].item()}


class Cider(CaptionScore):
    """`cider_d`: see `CiderD`; the weights come from the references that are given.

    Args:
        tokenize: See `CiderD`.
    """

    def __init__(self, tokenize: Tokenization = "raw") -> None:
        if tokenize not in get_args(Tokenization):
            raise ValueError(
                f"tokenize: {tokenize!r} is none of {', '.join(get_args(Tokenization))}"
            )
        self.tokenize: Tokenization = tokenize

    def compute(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """See `CaptionScore`."""
        cider = CiderD(references, self.tokenize)
        pairs = zip(captions, references, strict=True)
        return {"cider_d": fmean(cider.score(caption, texts) for caption, texts in pairs)}


class Meteor(CaptionScore):
    """`meteor`: nltk's METEOR (alpha 0.9, beta 3, gamma 0.5), mean over captions, in [0, 1].

    Words are split at blanks and marks, in small letters.

    Args:
        wordnet: Folder with WordNet's files (`data.noun`, ...), as Debian's `wordnet-base` has in
            /usr/share/wordnet; None: the corpus that nltk finds.

    Raises:
        ValueError: From `compute`: nltk is missing, or WordNet.
    """

    def __init__(self, wordnet: str | None = None) -> None:
        self.wordnet = wordnet

    def compute(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """See `CaptionScore`."""
        score, wordnet = self._load()
        pairs = zip(captions, references, strict=True)
        values = [
            score([_marks_apart(text) for text in texts], _marks_apart(caption), wordnet=wordnet)
            for caption, texts in pairs
        ]
        return {"meteor": fmean(values)}

    def _load(self) -> tuple[Callable[..., float], Any]:
        try:
            from nltk.corpus import wordnet as installed
            from nltk.corpus.reader import WordNetCorpusReader
            from nltk.translate.meteor_score import meteor_score
        except ImportError as error:
            raise ValueError("Meteor: nltk is missing: pip install 'tenfold[captions]'") from error
        if "_reader" not in vars(self):
            try:
                if self.wordnet is None:
                    installed.ensure_loaded()
                    self._reader: Any = installed
                else:
                    self._reader = WordNetCorpusReader(str(Path(self.wordnet)), None)
            except (LookupError, OSError) as error:
                raise ValueError(
                    "Meteor: WordNet is missing: apt-get install wordnet-base and give wordnet: "
                    "/usr/share/wordnet, or python -m nltk.downloader wordnet"
                ) from error
        return meteor_score, self._reader


def _marks_apart(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


class CaptionMetrics(Metric):
    """All numbers of the captions that one way of writing gives, over all ranks.

    A caption is counted once, however often its id comes. `compute` returns floats:

    - With highlights: `recall` (phrases as substrings), `recall_words` (as whole words), `any`
      (share of captions with a phrase of any highlight of their image), and over images with
      several captions `div_1`, `div_2` (by words), `div_1_chars`, `div_2_chars` (as the released
      code, times 100) and `self_cider`.
    - With references: those of `scores`, and `num_references`.
    - With what only the image tells: `depicted`, the share of it in captions.
    - `num_words` and `repeated_bigrams`, means that broken text betrays itself by.

    Args:
        scores: What captions are compared with references by.
    """

    full_state_update = False
    texts: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, scores: Sequence[CaptionScore]) -> None:
        super().__init__()
        self.scores = list(scores)
        self.add_state("texts", [], dist_reduce_fx="cat")  # UTF-8 of JSON
        self.add_state("lengths", [], dist_reduce_fx="cat")

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds captions.

        Args:
            rows: Each with `id`, `image` (several captions may have one), `caption`, `reference`
                ("" if there is none), `phrases` of its highlight, `alternatives`: phrases of all
                highlights of its image, `depicted`: phrases that only the image tells.
        """
        encoded = [json.dumps(row).encode() for row in rows]
        joined = np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)
        self.texts.append(torch.from_numpy(joined).to(self.device))
        self.lengths.append(torch.tensor([len(row) for row in encoded], device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the captions of all ranks; one without any brings none."""
        if isinstance(self.lengths, list) and not self.lengths:
            self.texts.append(torch.empty(0, dtype=torch.uint8, device=self.device))
            self.lengths.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the captions, each once, in the order of their ids."""
        texts, lengths = (_whole(part) for part in (self.texts, self.lengths))
        joined, start = texts.cpu().numpy().tobytes(), 0
        found: dict[str, dict[str, Any]] = {}
        for length in lengths.tolist():
            row = json.loads(joined[start : start + length])
            found.setdefault(row["id"], row)
            start += length
        return [found[name] for name in sorted(found)]

    def compute(self) -> dict[str, float]:
        """Returns the numbers."""
        rows = self.rows()
        if not rows:
            return {}
        found: dict[str, float] = {}
        highlighted = [row for row in rows if row["phrases"]]
        referenced = [row for row in rows if row["reference"]]
        references = [[row["reference"]] for row in referenced]
        if highlighted:
            found |= self._about_highlights(highlighted, references)
        if referenced:
            captions = [row["caption"] for row in referenced]
            for score in self.scores:
                found |= score.compute(captions, references)
            found["num_references"] = len(referenced)
        depicted = [row for row in rows if row["depicted"]]
        if depicted:
            found["depicted"] = _mean_recall(depicted, "depicted")
        found["num_words"] = fmean(len(row["caption"].split()) for row in rows)
        found["repeated_bigrams"] = fmean(repeated_bigrams(row["caption"]) for row in rows)
        return found

    def _about_highlights(
        self, rows: list[dict[str, Any]], references: list[list[str]]
    ) -> dict[str, float]:
        found = {
            "recall": _mean_recall(rows, "phrases"),
            "recall_words": fmean(
                highlight_recall(row["caption"], row["phrases"], "word") for row in rows
            ),
            "any": fmean(
                any(highlight_recall(row["caption"], [p]) for p in row["alternatives"])
                for row in rows
            ),
        }
        images: dict[str, list[str]] = {}
        for row in rows:
            images.setdefault(row["image"], []).append(row["caption"])
        several = [captions for captions in images.values() if len(captions) > 1]
        if several:
            for n in (1, 2):
                found[f"div_{n}"] = fmean(distinct_ngrams(c, n) for c in several)
                by_chars = (distinct_ngrams(c, n, "chars") for c in several)
                found[f"div_{n}_chars"] = 100 * fmean(by_chars)
            texts = references or [[caption] for captions in several for caption in captions]
            cider = CiderD(texts)
            found["self_cider"] = fmean(self_cider(captions, cider) for captions in several)
        return found


def _mean_recall(rows: Iterable[dict[str, Any]], of: str) -> float:
    return fmean(highlight_recall(row["caption"], row[of]) for row in rows)


def _whole(parts: list[Tensor] | Tensor) -> Tensor:
    """Joins a state, which is one tensor after a reduction over ranks."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
