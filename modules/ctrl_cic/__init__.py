"""Captions of images in their contexts, steered by a highlight (Ctrl-CIC)."""

from .control import Control, NoControl, PromptControl, Recalibration
from .module import CtrlCIC
from .predictor import RelevancePredictor
from .relevance import EncoderRelevance, LexicalRelevance, RelevanceScorer
from .tokens import ContextTokenizer, train_tokenizer

__all__ = [
    "ContextTokenizer",
    "Control",
    "CtrlCIC",
    "EncoderRelevance",
    "LexicalRelevance",
    "NoControl",
    "PromptControl",
    "Recalibration",
    "RelevancePredictor",
    "RelevanceScorer",
    "train_tokenizer",
]
