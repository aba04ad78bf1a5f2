"""How similar texts are: BM25 as a vector and as a score, n-grams of characters, any encoder."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..encoders import Encoder

Array = np.ndarray[Any, np.dtype[np.float64]]


class TextSimilarity(ABC):
    """Compares texts with those that it was fitted to, and learns from nothing else."""

    @abstractmethod
    def fit(self, texts: Sequence[str]) -> None:
        """Takes the N texts of a pool."""

    @abstractmethod
    def similarities(self, queries: Sequence[str]) -> Array:
        """Returns how similar Q texts are to each of the pool's, (Q, N), in [-1, 1]."""


class BM25Cosine(TextSimilarity):
    """Cosine of BM25-weighted vectors of words, pool and query alike; in [0, 1].

    BM25 is a score and no encoder: here a text is the vector of what each of its words would add,
    idf(v) tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), idf and mean length those of
    the pool: idf(v) = ln(1 + (N - n + 0.5) / (n + 0.5)). Words are runs of letters and
    digits, in small letters, none left out; words that the pool does not have count for nothing.

    Args:
        k1: How fast a repeated word saturates.
        b: How much longer texts count less, in [0, 1].
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1, self.b = k1, b

    def fit(self, texts: Sequence[str]) -> None:
        """See `TextSimilarity`."""
        counts = [Counter(words(text)) for text in texts]
        self.columns = {
            word: place for place, word in enumerate(sorted({w for c in counts for w in c}))
        }
        containing = Counter(word for count in counts for word in count)
        n = np.array([containing[word] for word in self.columns], dtype=np.float64)
        self.idf = np.log1p((len(texts) - n + 0.5) / (n + 0.5))
        self.mean_length = max(1.0, float(np.mean([c.total() for c in counts]))) if counts else 1.0
        self.pool = _unit_rows(self._weigh(counts))

    def similarities(self, queries: Sequence[str]) -> Array:
        """See `TextSimilarity`."""
        vectors = _unit_rows(self._weigh([Counter(words(text)) for text in queries]))
        return np.asarray((vectors @ self.pool.T).todense(), dtype=np.float64)

    def _weigh(self, counts: Sequence[Counter[str]]) -> Any:
        rows, columns, values = [], [], []
        for row, count in enumerate(counts):
            length = self.k1 * (1 - self.b + self.b * count.total() / self.mean_length)
            for word, number in count.items():
                column = self.columns.get(word)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
                    weight = number * (self.k1 + 1) / (number + length)
                    values.append(self.idf[column] * weight)
        shape = (len(counts), len(self.columns))
        return sp.csr_matrix((values, (rows, columns)), shape=shape)


class BM25MinMax(BM25Cosine):
    """BM25's own scores, scaled for each query so that the pool's least is 0 and its most 1.

    Args:
        k1: See `BM25Cosine`.
        b: See `BM25Cosine`.
    """

    def fit(self, texts: Sequence[str]) -> None:
        """See `TextSimilarity`."""
        super().fit(texts)
        self.pool = self._weigh([Counter(words(text)) for text in texts])

    def similarities(self, queries: Sequence[str]) -> Array:
        """See `TextSimilarity`."""
        asked = sp.lil_matrix((len(queries), len(self.columns)))
        for row, text in enumerate(queries):
            for word, number in Counter(words(text)).items():
                if word in self.columns:
                    asked[row, self.columns[word]] = number
        scores = np.asarray((asked.tocsr() @ self.pool.T).todense(), dtype=np.float64)
        low = scores.min(axis=1, keepdims=True)
        spread = scores.max(axis=1, keepdims=True) - low
        scaled: Array = (scores - low) / np.where(spread > 0, spread, 1.0)
        return scaled


class CharacterNgrams(TextSimilarity):
    """Cosine of TF-IDF vectors of character n-grams within words; in [0, 1].

    Args:
        shortest: Characters of the shortest n-grams.
        longest: Characters of the longest.
    """

    def __init__(self, shortest: int = 3, longest: int = 5) -> None:
        self.shortest, self.longest = shortest, longest

    def fit(self, texts: Sequence[str]) -> None:
        """See `TextSimilarity`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(self.shortest, self.longest)
        )
        self.pool = self.vectorizer.fit_transform(texts)

    def similarities(self, queries: Sequence[str]) -> Array:
        """See `TextSimilarity`."""
        vectors = self.vectorizer.transform(queries)
        return np.asarray((vectors @ self.pool.T).todense(), dtype=np.float64)


class EncodedTexts(TextSimilarity):
    """Cosine of an encoder's embeddings.

    Args:
        encoder: With a text tower, such as `SentenceEncoder`.

    Raises:
        ValueError: It has no text tower.
    """

    def __init__(self, encoder: Encoder) -> None:
        if not encoder.supports_texts:
            raise ValueError(f"encoder: {type(encoder).__name__} has no text tower")
        self.encoder = encoder

    def fit(self, texts: Sequence[str]) -> None:
        """See `TextSimilarity`."""
        self.pool = self._encode(texts)

    def similarities(self, queries: Sequence[str]) -> Array:
        """See `TextSimilarity`."""
        return self._encode(queries) @ self.pool.T

    def _encode(self, texts: Sequence[str]) -> Array:
        return unit_rows(self.encoder.encode_texts(texts).double().numpy())


def words(text: str) -> list[str]:
    """Returns the words of a text, in small letters."""
    return re.findall(r"\w+", text.lower())


def unit_rows(vectors_ND: Array) -> Array:
    """Divides each row by its norm; rows of zeros stay."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Array = vectors_ND / np.where(norms > 0, norms, 1.0)
    return unit


def _unit_rows(matrix: Any) -> Any:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sp.diags(1 / np.where(norms > 0, norms, 1.0)) @ matrix
