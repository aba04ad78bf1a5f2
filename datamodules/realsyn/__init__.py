"""RealSyn (arXiv 2502.13512): interleaved documents made image-text pairs, on any machines.

The parts can be used without the pipeline: readers, pure functions on Arrow tables
(`filter_images`, `filter_sentences`, `sample_balanced`, ...), `HierarchicalIndex`.
"""

from .documents import BrokenDocument, Document, DocumentReader, Picture
from .executors import Executor, LocalExecutor, RayExecutor
from .pages import HtmlFolder, MarkdownFolder
from .pipeline import STAGES, Pipeline, Settings

__all__ = [
    "STAGES",
    "BrokenDocument",
    "Document",
    "DocumentReader",
    "Executor",
    "HtmlFolder",
    "LocalExecutor",
    "MarkdownFolder",
    "Picture",
    "Pipeline",
    "RayExecutor",
    "Settings",
]
