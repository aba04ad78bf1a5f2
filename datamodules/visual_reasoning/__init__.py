"""Benchmarks of reasoning about images."""

from .module import ReasoningDataModule, ReasoningItems
from .winogavil import WinogavilDataModule

__all__ = [
    "ReasoningDataModule",
    "ReasoningItems",
    "WinogavilDataModule",
]
