"""Benchmarks of questions about images: POPE, TinyPOPE, MME, LLaVA-Bench, CHAIR's captions."""

from .module import QuestionDataModule, QuestionSet
from .pope import PopeDataModule, TinyPopeDataModule
from .questions import ImageFolder, ImageSource, VisualQuestion

__all__ = [
    "ImageFolder",
    "ImageSource",
    "PopeDataModule",
    "QuestionDataModule",
    "QuestionSet",
    "TinyPopeDataModule",
    "VisualQuestion",
]
