"""CVR-LLM: reasoning about images with language models, and the floor under it."""

from .similarity import SimilarityModule
from .text_similarity import (
    BM25Cosine,
    BM25MinMax,
    CharacterNgrams,
    EncodedTexts,
    TextSimilarity,
)

__all__ = [
    "BM25Cosine",
    "BM25MinMax",
    "CharacterNgrams",
    "EncodedTexts",
    "SimilarityModule",
    "TextSimilarity",
]
