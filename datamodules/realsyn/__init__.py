"""RealSyn (arXiv 2502.13512): interleaved documents made image-text pairs, on any machines.

The parts can be used without the pipeline: readers, pure functions on Arrow tables
(`filter_images`, `filter_sentences`, `sample_balanced`, ...), `HierarchicalIndex`.
"""

from .docstrings import DocstringPages
from .documents import BrokenDocument, Document, DocumentReader, Picture
from .executors import Executor, LocalExecutor, RayExecutor
from .obelics import ObelicsParquet
from .pages import HtmlFolder, MarkdownFolder
from .pipeline import STAGES, Pipeline
from .settings import Settings

__all__ = [
    "STAGES",
    "BrokenDocument",
    "DocstringPages",
    "Document",
    "DocumentReader",
    "Executor",
    "HtmlFolder",
    "LocalExecutor",
    "MarkdownFolder",
    "ObelicsParquet",
    "Picture",
    "Pipeline",
    "RayExecutor",
    "Settings",
]
