"""Makes a benchmark in MuCR's format: core captions, descriptions, pictures, annotations."""

from .builder import BenchmarkBuilder
from .images import DiffusersImageBackend, ImageBackend, ImageRequest, OpenAIImageBackend

__all__ = [
    "BenchmarkBuilder",
    "DiffusersImageBackend",
    "ImageBackend",
    "ImageRequest",
    "OpenAIImageBackend",
]
