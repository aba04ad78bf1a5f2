"""Programs as files that a person opens: text, SVG, OpenRaster."""

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..files import atomic_write
from ..svg import Document, Fill, Group, Line, Shape, Subpath, write_svg
from .language import Language, Program
from .layers import document, picture_of
from .openraster import write_ora

LANGUAGE = "language.json"  # beside programs that were written


def program_svg(program: Program, language: Language) -> str:
    """Returns a program as SVG: a path per layer, real arcs, blend modes; white paper below."""
    art = document(picture_of(program), language)
    # A group of its own: layers are multiplied by each other, not by the paper.
    return write_svg(Document(art.view_box, (paper(language), Group(art.children, name="art"))))


def paper(language: Language) -> Shape:
    """Returns what lies below all layers: a white square as large as the canvas."""
    _, _, width, height = document((), language).view_box
    corners = (Line(width, 0), Line(width, height), Line(0, height))
    return Shape((Subpath(0, 0, corners, True),), fill=Fill((1.0, 1.0, 1.0)), name="paper")


def export_program(program: Program, language: Language, stem: str | Path) -> list[Path]:
    """Writes `<stem>.a2p`, `.svg` and `.ora`.

    Args:
        program: A checked program.
        language: Its language.
        stem: Path of the files without their ending.

    Returns:
        The files.
    """
    paths = [Path(f"{stem}{ending}") for ending in (".a2p", ".svg", ".ora")]
    for path, text in zip(
        paths, (language.format(program), program_svg(program, language)), strict=False
    ):
        with atomic_write(path, "w") as file:
            file.write(text)
    write_ora(paths[2], picture_of(program), language)
    return paths


def png_base64(image: Tensor) -> str:
    """Returns an image (3, H, W) uint8 as PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
