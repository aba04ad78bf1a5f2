"""Benchmarks of reasoning about images: WinoGAViL, Winoground, WHOOPS!, VCR, New Yorker, scenes."""

from .descriptions import DescriptionPairs
from .module import ReasoningDataModule, ReasoningItems
from .new_yorker import NewYorkerDataModule
from .scenes import SceneReasoningDataModule
from .vcr import VCRDataModule
from .whoops import WhoopsDataModule
from .winogavil import WinogavilDataModule
from .winoground import WinogroundDataModule

__all__ = [
    "DescriptionPairs",
    "NewYorkerDataModule",
    "ReasoningDataModule",
    "ReasoningItems",
    "SceneReasoningDataModule",
    "VCRDataModule",
    "WhoopsDataModule",
    "WinogavilDataModule",
    "WinogroundDataModule",
]
