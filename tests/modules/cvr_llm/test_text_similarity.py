"""BM25 as vectors and as scores, n-grams, encoders: by hand, and against other programs."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenfold.modules.cvr_llm import BM25Cosine, BM25MinMax, CharacterNgrams, EncodedTexts
from tenfold.modules.encoders import Encoder

# Of a busy machine's speed nothing is to be learned.
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
POOL = ["a red dog runs", "a blue cat", "the dog and the cat and the dog", "nothing", ""]
TEXTS = st.lists(st.text("abcdefg ", max_size=16), min_size=1, max_size=6)


def weights(text, pool, k1=1.5, b=0.75):
    """The formula of the docstring, word by word."""
    docs = [t.split() for t in pool]
    mean = sum(map(len, docs)) / len(docs)
    found = {}
    for word, tf in Counter(text.split()).items():
        n = sum(word in doc for doc in docs)
        if n:
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            length = 1 - b + b * len(text.split()) / max(mean, 1)
            found[word] = idf * tf * (k1 + 1) / (tf + k1 * length)
    return found


def cosine(one, other):
    dot = sum(value * other.get(word, 0) for word, value in one.items())
    norms = [math.sqrt(sum(v * v for v in x.values())) for x in (one, other)]
    return dot / (norms[0] * norms[1]) if all(norms) else 0.0


@PROPERTY
@given(TEXTS, TEXTS)
def test_bm25_cosine_is_its_formula(pool, queries):
    similarity = BM25Cosine()
    similarity.fit(pool)
    found = similarity.similarities(queries)
    expected = [[cosine(weights(q, pool), weights(p, pool)) for p in pool] for q in queries]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@PROPERTY
@given(TEXTS, TEXTS)
def test_bm25_scores_are_those_of_the_formula_between_0_and_1(pool, queries):
    similarity = BM25MinMax(k1=1.2)
    similarity.fit(pool)
    found = similarity.similarities(queries)
    for query, row in zip(queries, found, strict=True):
        asked = Counter(query.split())
        raw = [sum(asked[w] * v for w, v in weights(p, pool, k1=1.2).items()) for p in pool]
        spread = max(raw) - min(raw)
        expected = [(x - min(raw)) / spread if spread > 1e-12 else 0 for x in raw]
        np.testing.assert_allclose(row, expected, atol=1e-9)


def test_a_text_is_most_similar_to_itself_and_case_does_not_matter():
    for similarity in (BM25Cosine(), CharacterNgrams(2, 4)):
        similarity.fit(POOL)
        table = similarity.similarities([text.upper() for text in POOL[:3]])
        assert table.argmax(axis=1).tolist() == [0, 1, 2]
        assert table.max() == pytest.approx(1)
        assert similarity.similarities(["zzz"]).max() == 0


class Letters(Encoder):
    """Counts letters."""

    supports_texts = True
    identity = {"encoder": "letters"}  # noqa: RUF012

    def encode_texts(self, texts):
        return torch.tensor([[text.count(x) for x in "abcdefgh"] for text in texts]).float()


def test_encoded_texts():
    similarity = EncodedTexts(Letters())
    similarity.fit(["aab", "ccc", ""])
    found = similarity.similarities(["aab", "bc"])
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / math.sqrt(10), 1 / math.sqrt(2), 0]])
    with pytest.raises(ValueError, match="no text tower"):
        EncodedTexts(Encoder.__new__(type("Blind", (Letters,), {"supports_texts": False})))
