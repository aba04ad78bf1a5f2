"""Documents as SVG text that browsers, Inkscape and resvg show alike."""

import math
from xml.sax.saxutils import quoteattr

from .document import Arc, Color, Cubic, Document, Group, Shape, Subpath


def write_svg(document: Document, precision: int = 3) -> str:
    """Returns a document as SVG: one `<path>` per shape, one `<g>` per group.

    Blend modes and isolation stand in `style`, as they are no attributes; nothing is written that
    is the default. `parse_svg(text, keep_arcs=True)` returns the document but for rounding.

    Args:
        document: What to write.
        precision: Digits after the point.

    Raises:
        ValueError: A number is not finite.
    """
    box = " ".join(_number(value, precision) for value in document.view_box)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">']
    for child in document.children:
        lines += _lines(child, precision, "  ")
    return "\n".join([*lines, "</svg>"]) + "\n"


def path_data(subpaths: tuple[Subpath, ...], precision: int = 3) -> str:
    """Returns subpaths as the `d` of a `<path>`, in absolute commands."""

    def command(letter: str, *values: float) -> str:
        return letter + " ".join(_number(value, precision) for value in values)

    parts = []
    for subpath in subpaths:
        parts.append(command("M", subpath.x, subpath.y))
        for segment in subpath.segments:
            letter = "C" if isinstance(segment, Cubic) else "A" if isinstance(segment, Arc) else "L"
            parts.append(command(letter, *segment))
        if subpath.closed:
            parts.append("Z")
    return "".join(parts)


def _lines(child: Shape | Group, precision: int, indent: str) -> list[str]:
    attributes = {"id": child.name} if child.name else {}
    style = [] if child.blend_mode == "normal" else [f"mix-blend-mode:{child.blend_mode}"]
    if child.opacity != 1:
        attributes["opacity"] = _number(child.opacity, 4)
    if isinstance(child, Group):
        attributes["style"] = ";".join([*style, "isolation:isolate"])
        inner = [line for each in child.children for line in _lines(each, precision, indent + "  ")]
        return [f"{indent}<g{_written(attributes)}>", *inner, f"{indent}</g>"]
    attributes["d"] = path_data(child.subpaths, precision)
    fill, stroke = child.fill, child.stroke
    attributes["fill"] = _color(fill.color) if fill else "none"
    if fill and fill.opacity != 1:
        attributes["fill-opacity"] = _number(fill.opacity, 4)
    if fill and fill.rule != "nonzero":
        attributes["fill-rule"] = fill.rule
    if stroke:
        attributes["stroke"] = _color(stroke.color)
        attributes["stroke-width"] = _number(stroke.width, precision)
        if stroke.opacity != 1:
            attributes["stroke-opacity"] = _number(stroke.opacity, 4)
        if stroke.cap != "butt":
            attributes["stroke-linecap"] = stroke.cap
        if stroke.join != "miter":
            attributes["stroke-linejoin"] = stroke.join
        if stroke.miter_limit != 4:
            attributes["stroke-miterlimit"] = _number(stroke.miter_limit, precision)
    if style:
        attributes["style"] = ";".join(style)
    return [f"{indent}<path{_written(attributes)}/>"]


def _written(attributes: dict[str, str]) -> str:
    return "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())


def _number(value: float, precision: int) -> str:
    if not math.isfinite(value):
        raise ValueError(f"svg: {value} is no number that a file can hold")
    text = f"{float(value):.{precision}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _color(color: Color) -> str:
    red, green, blue = (round(255 * min(max(value, 0.0), 1.0)) for value in color)
    return f"#{red:02x}{green:02x}{blue:02x}"
