"""Benchmarks of questions about images: POPE, TinyPOPE, MME, LLaVA-Bench, CHAIR's captions."""

from .build_pope import build_pope
from .captions import ChairDataModule
from .llava_bench import LlavaBenchDataModule
from .mme import MmeDataModule
from .module import QuestionDataModule, QuestionSet
from .pope import PopeDataModule, TinyPopeDataModule
from .questions import ImageFolder, ImageSource, VisualQuestion

__all__ = [
    "ChairDataModule",
    "ImageFolder",
    "ImageSource",
    "LlavaBenchDataModule",
    "MmeDataModule",
    "PopeDataModule",
    "QuestionDataModule",
    "QuestionSet",
    "TinyPopeDataModule",
    "VisualQuestion",
    "build_pope",
]
