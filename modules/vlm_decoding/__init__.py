"""Benchmarks of vision-language models under several ways of decoding."""

from .module import VLMDecodingModule
from .scorers import ChairScorer, JudgeScorer, MmeScorer, PopeScorer, Scorer

__all__ = [
    "ChairScorer",
    "JudgeScorer",
    "MmeScorer",
    "PopeScorer",
    "Scorer",
    "VLMDecodingModule",
]
