"""Captioned images in their contexts: made records, and pages of several formats."""

from .examples import CaptionExample, Examples
from .facts import FactExamples
from .features import PixelEncoder
from .module import ContextualCaptionDataModule

__all__ = [
    "CaptionExample",
    "ContextualCaptionDataModule",
    "Examples",
    "FactExamples",
    "PixelEncoder",
]
