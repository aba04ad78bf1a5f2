"""Pairs of cause and effect: MuCR's files, and pairs that are drawn."""

from .files import MuCRDataModule
from .questions import CausalQuestions
from .synthetic import SyntheticMuCRDataModule

__all__ = ["CausalQuestions", "MuCRDataModule", "SyntheticMuCRDataModule"]
