"""Drawing programs: drawn at random, read from files, or only the pictures of a user."""

from .module import ProgramDataModule
from .sampler import ProgramSampler

__all__ = ["ProgramDataModule", "ProgramSampler"]
