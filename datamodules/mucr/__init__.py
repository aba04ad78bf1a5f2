"""Pairs of cause and effect: MuCR's files, and pairs that are drawn."""

from .files import MuCRDataModule
from .synthetic import SyntheticMuCRDataModule

__all__ = ["MuCRDataModule", "SyntheticMuCRDataModule"]
