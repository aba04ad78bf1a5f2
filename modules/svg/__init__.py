"""Vector images: typed documents, safe reading, writing, drawing."""

from .document import (
    Arc,
    Cubic,
    Document,
    Fill,
    Group,
    Line,
    Shape,
    Stroke,
    Subpath,
)
from .geometry import normalized, without_arcs
from .parse import Limits, SvgError, parse_svg, read_svg
from .rendering import render
from .write import path_data, write_svg

__all__ = [
    "Arc",
    "Cubic",
    "Document",
    "Fill",
    "Group",
    "Limits",
    "Line",
    "Shape",
    "Stroke",
    "Subpath",
    "SvgError",
    "normalized",
    "parse_svg",
    "path_data",
    "read_svg",
    "render",
    "without_arcs",
    "write_svg",
]
