"""CVR-LLM: context-aware descriptions, solved examples, and a judge that compares step by step."""

from .blip2_captioner import Blip2Captioner
from .comparison import ChainOfComparisonModule
from .module import CVRLLMModule
from .prompts import Prompts
from .scene_reasoner import SceneReasoner
from .selection import (
    CVRICLSelector,
    Example,
    ExampleSelector,
    MultimodalKNNSelector,
    RandomSelector,
    TextKNNSelector,
)
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
    "Blip2Captioner",
    "CVRICLSelector",
    "CVRLLMModule",
    "ChainOfComparisonModule",
    "CharacterNgrams",
    "EncodedTexts",
    "Example",
    "ExampleSelector",
    "MultimodalKNNSelector",
    "Prompts",
    "RandomSelector",
    "SceneReasoner",
    "SimilarityModule",
    "TextKNNSelector",
    "TextSimilarity",
]
