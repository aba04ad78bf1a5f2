"""Solved examples for a question: CVR-ICL (section 3.2 of the paper) and what it is compared with.

CVR-ICL adds two similarities, of what is seen and of what is said: s = alpha s_m + s_t.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..encoders import Blip2Encoder, Encoder
from .text_similarity import BM25Cosine, TextSimilarity, unit_rows

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Example:
    """A question as selectors see it.

    Args:
        id: Unique.
        kind: Only examples of the query's kind are chosen.
        group: No example of the query's group is chosen.
        images: Names; no example that shares one with the query is chosen.
        text: The task with descriptions in the place of its images.
        vector: Of images and text together, (D,), of norm 1; None where there is no encoder.
    """

    id: str
    kind: str
    group: str
    images: frozenset[str]
    text: str
    vector: Array | None = None


class ExampleSelector(ABC):
    """Chooses solved examples from a pool.

    Args:
        encoder: Of images; `Blip2Encoder` sees image and text together, as the paper's does.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self.pool: list[Example] = []

    def fit(self, pool: Sequence[Example]) -> None:
        """Takes the pool."""
        self.pool = list(pool)

    @abstractmethod
    def scores(self, queries: Sequence[Example]) -> Array:
        """Returns how much each of the pool's N examples fits each of Q queries, (Q, N)."""

    def select(self, queries: Sequence[Example], k: int) -> list[list[int]]:
        """Returns for each query the places of its k best examples, the best last.

        So the most similar one stands next to the question. Of equal ones the first in the pool is
        better. Fewer than k where there are not as many.
        """
        if not k or not self.pool or not queries:
            return [[] for _ in queries]
        chosen = []
        for query, row in zip(queries, self.scores(queries), strict=True):
            order = np.argsort(-row, kind="stable")
            fitting = (int(place) for place in order if _may_show(query, self.pool[place]))
            best = [place for place, _ in zip(fitting, range(k), strict=False)]
            chosen.append(best[::-1])
        return chosen


class RandomSelector(ExampleSelector):
    """Examples by chance (RICL), for each query its own, whatever else is asked.

    Args:
        seed: Of the choice.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def scores(self, queries: Sequence[Example]) -> Array:
        """See `ExampleSelector`."""
        rows = []
        for query in queries:
            digest = hashlib.sha256(f"{self.seed}\0{query.id}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            rows.append(generator.random(len(self.pool)))
        return np.array(rows)


class TextKNNSelector(ExampleSelector):
    """The examples of the most similar texts (KATE).

    Args:
        text: How texts are compared; None: `BM25Cosine`.
    """

    def __init__(self, text: TextSimilarity | None = None) -> None:
        super().__init__()
        self.text = text or BM25Cosine()

    def fit(self, pool: Sequence[Example]) -> None:
        """See `ExampleSelector`."""
        super().fit(pool)
        self.text.fit([example.text for example in pool])

    def scores(self, queries: Sequence[Example]) -> Array:
        """See `ExampleSelector`."""
        return self.text.similarities([query.text for query in queries])


class MultimodalKNNSelector(ExampleSelector):
    """The examples whose images and texts are together most similar (after MMICL)."""

    def scores(self, queries: Sequence[Example]) -> Array:
        """See `ExampleSelector`."""
        return _vectors(queries) @ _vectors(self.pool).T


class CVRICLSelector(TextKNNSelector):
    """CVR-ICL: alpha times the similarity of images with texts, and the similarity of texts.

    Args:
        encoder: Of images and texts together.
        alpha: Weight of the former; the paper's is 1.
        text: How texts are compared; None: `BM25Cosine`.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        alpha: float = 1.0,
        text: TextSimilarity | None = None,
    ) -> None:
        super().__init__(text)
        self.encoder, self.alpha = encoder, alpha

    def scores(self, queries: Sequence[Example]) -> Array:
        """See `ExampleSelector`."""
        return self.alpha * (_vectors(queries) @ _vectors(self.pool).T) + super().scores(queries)


def joint_vectors(
    encoder: Encoder, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]
) -> Array:
    """Encodes questions, images and text of each together, (Q, D) of norm 1.

    `Blip2Encoder` encodes each image with the text; of others, image and text are encoded by
    themselves and added, or the image alone where there is no text tower. Several images of a
    question become their mean.

    Args:
        encoder: Of images.
        images: Of each question, at least one.
        texts: Of each question.
    """
    flat = [(image, text) for shown, text in zip(images, texts, strict=True) for image in shown]
    if isinstance(encoder, Blip2Encoder):
        vectors = unit_rows(encoder.encode_pairs(flat).double().numpy())
    else:
        vectors = unit_rows(encoder.encode_images([image for image, _ in flat]).double().numpy())
    ends = np.cumsum([len(shown) for shown in images])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
    if not isinstance(encoder, Blip2Encoder) and encoder.supports_texts:
        means = unit_rows(means) + unit_rows(encoder.encode_texts(list(texts)).double().numpy())
    return unit_rows(means)


def _may_show(query: Example, example: Example) -> bool:
    """Whether an example tells nothing about the query that it should not."""
    return (
        example.kind == query.kind
        and example.id != query.id
        and example.group != query.group
        and not (example.images & query.images)
    )


def _vectors(examples: Sequence[Example]) -> Array:
    vectors = [example.vector for example in examples if example.vector is not None]
    if len(vectors) != len(examples):
        raise ValueError(
            "selector: it compares images, and there is no encoder or there are no images: give "
            "selector.init_args.encoder, or take TextKNNSelector"
        )
    return np.stack(vectors)
