"""Captioned images in their contexts: made records, and pages of several formats."""

from .authors import CtrlCICFiles
from .cnxml import CnxmlPages
from .examples import CaptionExample, Examples
from .facts import FactExamples
from .features import PixelEncoder
from .html import HtmlPages
from .module import ContextualCaptionDataModule
from .pages import JsonPages, Page, PageFigure, PageSection, PageSource, write_pages
from .stored import PageExamples
from .wikiweb2m import WikiWeb2MPages, write_wikiweb2m

__all__ = [
    "CaptionExample",
    "CnxmlPages",
    "ContextualCaptionDataModule",
    "CtrlCICFiles",
    "Examples",
    "FactExamples",
    "HtmlPages",
    "JsonPages",
    "Page",
    "PageExamples",
    "PageFigure",
    "PageSection",
    "PageSource",
    "PixelEncoder",
    "WikiWeb2MPages",
    "write_pages",
    "write_wikiweb2m",
]
