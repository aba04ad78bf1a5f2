"""SVG files as documents: read safely, or refused in one line that names the file and the reason.

Read is what flat vector art consists of: shapes, paths, groups, `use` and `symbol` of the same
file, transforms, presentation attributes, `style`, style sheets of simple selectors, solid colours,
opacity and the separable blend modes. Everything else that would change the picture - gradients,
masks, filters, text, images, dashes, markers, animation - is refused and not skipped, so that
a document shows what its file shows. What does not (metadata, titles, unused definitions, elements
of editors' own namespaces) is skipped. What a symbol draws outside of its view box is not cut off.

Files are not trusted: entities, scripts, event handlers and references to anything outside of the
file are refused; nothing is ever fetched, and `Limits` bound time and memory.

XML is read by defusedxml, CSS by tinycss2, path data and transforms by svgelements: the extra
`vector`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from ...kernels.compositing import BlendMode
from . import css
from .document import (
    Box,
    Cap,
    Color,
    Document,
    Fill,
    FillRule,
    Group,
    Join,
    Matrix,
    Shape,
    Stroke,
    Subpath,
)
from .geometry import cubic_subpath, fitted, product, transformed_shape
from .shapes import SHAPES, attribute_lengths, outline
from .values import IDENTITY, NUMBER, length, number_list, transform


class SvgError(ValueError):
    """A file that is refused: one line with its name and the reason."""


@dataclass(frozen=True)
class Limits:
    """How large a file may be; reading one within the defaults takes under a second and 200 MB.

    Attributes:
        bytes: Of the file.
        elements: Of the file, and again of the picture, where `use` repeats them.
        depth: Of elements inside each other.
        numbers: In path data and lists of points together, and again of the picture.
        style: Characters of CSS, in style sheets and attributes together.
        coordinate: The largest magnitude, in units of the view box.
    """

    bytes: int = 1 << 20
    elements: int = 2_000
    depth: int = 64
    numbers: int = 50_000
    style: int = 100_000
    coordinate: float = 1e6


DEFAULT_LIMITS = Limits()
SVG = "http://www.w3.org/2000/svg"
NEVER_DRAWN = {
    *("defs", "symbol", "title", "desc", "metadata", "style", "linearGradient", "radialGradient"),
    *("pattern", "clipPath", "mask", "filter", "marker"),
}
ANIMATIONS = {"animate", "animateTransform", "animateMotion", "animateColor", "set"}
SCRIPTS = {"script", "foreignObject", "iframe", "handler", "listener"}


def read_svg(
    path: str | Path,
    *,
    keep_arcs: bool = False,
    current_color: Color = (0.0, 0.0, 0.0),
    limits: Limits = DEFAULT_LIMITS,
) -> Document:
    """Reads a file as `parse_svg` does.

    Raises:
        SvgError: The file is refused; the message starts with its path.
        OSError: It cannot be opened.
    """
    path = Path(path)
    if (size := path.stat().st_size) > limits.bytes:
        raise SvgError(f"{path}: {size} bytes, more than the {limits.bytes} that are read")
    return parse_svg(
        path.read_bytes(),
        name=str(path),
        keep_arcs=keep_arcs,
        current_color=current_color,
        limits=limits,
    )


def parse_svg(
    text: str | bytes,
    *,
    name: str = "svg",
    keep_arcs: bool = False,
    current_color: Color = (0.0, 0.0, 0.0),
    limits: Limits = DEFAULT_LIMITS,
) -> Document:
    """Parses an SVG file: transforms applied, styles resolved, shapes as paths, in document order.

    Args:
        text: The file, as text or as bytes in the encoding that it declares.
        name: What error messages call it.
        keep_arcs: Whether arcs, and circles among them, stay arcs; else they become cubic curves.
        current_color: What `currentColor` means where the file does not say.
        limits: What is refused as too large.

    Returns:
        The document; without `viewBox` its view box is (0, 0, width, height). How it is fitted into
        a canvas is not kept: always evenly and centered, as `preserveAspectRatio` has it by
        default.

    Raises:
        SvgError: The file is broken, hostile, too large, or uses what is not supported.
        ImportError: The extra `vector` is not installed.
    """
    if len(text) > limits.bytes:
        raise SvgError(f"{name}: {len(text)} bytes, more than the {limits.bytes} that are read")
    try:
        root = _element_tree(text, limits)
        return _Reader(root, keep_arcs, current_color, limits).document()
    except RecursionError:
        raise SvgError(f"{name}: brackets inside each other, too deep") from None
    except ValueError as error:
        reason = " ".join(str(error).split())  # one line, whatever the file put into it
        raise SvgError(f"{name}: {reason[:300]}") from error


def _element_tree(text: str | bytes, limits: Limits) -> ElementTree.Element:
    """Returns the root; refuses entities, and what is too deep or too large while it is read."""
    try:
        import svgelements  # noqa: F401
        import tinycss2  # noqa: F401
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import XMLParser
    except ImportError as error:
        raise ImportError(f"SVG files need {error.name}: pip install 'tenfold[vector]'") from error

    class Builder(ElementTree.TreeBuilder):
        depth = elements = 0

        def start(self, tag: Any, attrs: Any) -> ElementTree.Element:
            self.depth += 1
            self.elements += 1
            if self.depth > limits.depth:
                raise ValueError(f"elements inside each other {limits.depth} deep and more")
            if self.elements > limits.elements:
                raise ValueError(f"more than {limits.elements} elements")
            return super().start(tag, attrs)

        def end(self, tag: Any) -> ElementTree.Element:
            self.depth -= 1
            return super().end(tag)

    parser = XMLParser(target=Builder(), forbid_dtd=False, forbid_entities=True)
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except DefusedXmlException as error:
        kind = type(error).__name__
        raise ValueError(f"declares entities or reads other files ({kind})") from None
    except (ElementTree.ParseError, LookupError, UnicodeError) as error:
        raise ValueError(f"is no well-formed XML ({error})") from None
    return root


def _local(tag: Any) -> str:
    """Returns the name of an SVG element or attribute, "" for one of another namespace."""
    if not isinstance(tag, str):
        return ""
    if tag[0] != "{":
        return tag
    namespace, _, name = tag[1:].partition("}")
    return name if namespace == SVG else ""


class _Reader:
    """One file on its way to a document."""

    def __init__(
        self, root: ElementTree.Element, keep_arcs: bool, current_color: Color, limits: Limits
    ) -> None:
        if _local(root.tag) != "svg":
            raise ValueError(f"the root element is <{str(root.tag)[:40]}>, not <svg>")
        self.root = root
        self.keep_arcs = keep_arcs
        self.limits = limits
        self.by_id: dict[str, ElementTree.Element] = {}
        self.sheet = css.StyleSheet(limits.style)
        self.initial = css.INITIAL | {"color": current_color}
        self.num_elements = self.num_numbers = self.depth = 0
        self.open_references: set[str] = set()
        for element in root.iter():
            self._inspect(element)

    def document(self) -> Document:
        self.view_box = self._view_box()
        style = self._style(self.root, self.initial)
        self._refuse_clip(style, "svg", IDENTITY)
        children = tuple(self._children(self.root, style, IDENTITY))
        return Document(self.view_box, self._grouped(children, style, ""))

    def _inspect(self, element: ElementTree.Element) -> None:
        """Refuses what is dangerous wherever it stands, and collects names and style sheets."""
        name = _local(element.tag)
        if name in SCRIPTS:
            raise ValueError(f"<{name}>: scripts and foreign content are not read")
        if name in ANIMATIONS:
            raise ValueError(f"<{name}> is not supported")
        for key, value in element.attrib.items():
            local = key.rpartition("}")[2]
            if local.lower().startswith("on") and key == local:
                raise ValueError(f"<{name} {local}>: scripts are not read")
            if local in ("href", "src") and name and not value.strip().startswith("#"):
                raise ValueError(f"<{name} {local}>: links out of the file are not followed")
        if "id" in element.attrib:
            self.by_id.setdefault(element.attrib["id"], element)
        if name == "style":
            self.sheet.add("".join(element.itertext()))

    def _view_box(self) -> Box:
        if text := self.root.get("viewBox"):
            box = number_list(text, "viewBox")
        else:
            size = [self.root.get("width"), self.root.get("height")]
            if None in size or any("%" in str(side) for side in size):
                raise ValueError("<svg> has neither a viewBox nor a width and a height")
            box = [0.0, 0.0, *(length(str(side), 0.0) for side in size)]
        if len(box) != 4 or not (box[2] > 0 and box[3] > 0):
            raise ValueError(f"viewBox {text!r} is no box of positive size")
        if max(map(abs, box)) > self.limits.coordinate or min(box[2:]) < 1e-6:
            raise ValueError(f"viewBox {text!r} is too large or too small")
        return cast(Box, tuple(box))

    def _style(self, element: ElementTree.Element, inherited: css.Style) -> css.Style:
        """Returns the computed style of an element; refuses what would be drawn otherwise."""
        name = _local(element.tag)
        style = self.sheet.computed(name, element.attrib, inherited)
        _refuse_others(style, name, "mask filter animation")
        if style["transform"] != "none":
            _refuse_others(style, name, "transform-origin")
        return style

    def _refuse_clip(self, style: css.Style, name: str, matrix: Matrix) -> None:
        """Refuses a clip path, but the whole view box, which design tools put around everything."""
        if matrix != IDENTITY or not self._is_view_box(style["clip-path"]):
            _refuse_others(style, name, "clip-path")

    def _is_view_box(self, value: str) -> bool:
        match = re.fullmatch(r"url\(\s*[\"']?#(.*?)[\"']?\s*\)", value)
        clip = self.by_id.get(match[1]) if match else None
        if clip is None or _local(clip.tag) != "clipPath" or len(clip) != 1:
            return False
        rectangle = clip[0]
        if _local(rectangle.tag) != "rect" or "transform" in {*rectangle.keys(), *clip.keys()}:
            return False
        x, y, width, height = attribute_lengths(rectangle.attrib, "x y width height", self.view_box)
        left, top, across, down = self.view_box
        return x <= left and y <= top and x + width >= left + across and y + height >= top + down

    def _children(
        self, parent: ElementTree.Element, style: css.Style, matrix: Matrix
    ) -> Iterator[Shape | Group]:
        for element in parent:
            if (name := _local(element.tag)) and name not in NEVER_DRAWN:
                yield from self._drawn(element, name, style, matrix)

    def _drawn(
        self, element: ElementTree.Element, name: str, inherited: css.Style, matrix: Matrix
    ) -> Iterator[Shape | Group]:
        """Yields what an element paints: nothing, a shape, or the children of a group."""
        self.num_elements += 1
        self.depth += 1
        if self.num_elements > self.limits.elements:
            raise ValueError(f"more than {self.limits.elements} elements, `use` repeating some")
        if self.depth > self.limits.depth:
            raise ValueError(f"<use> inside each other, {self.limits.depth} deep and more")
        style = self._style(element, inherited)
        matrix = product(matrix, transform(style["transform"]))
        self._refuse_clip(style, name, matrix)
        if style["display"] == "none":
            pass
        elif name in SHAPES:
            yield from self._shape(element, name, style, matrix)
        elif name in ("g", "a"):
            children = tuple(self._children(element, style, matrix))
            yield from self._grouped(children, style, element.get("id", ""))
        elif name == "use":
            children = tuple(self._used(element, style, matrix))
            yield from self._grouped(children, style, element.get("id", ""))
        else:
            raise ValueError(f"<{name}> is not supported")
        self.depth -= 1

    def _grouped(
        self, children: tuple[Shape | Group, ...], style: css.Style, name: str
    ) -> tuple[Shape | Group, ...]:
        """Returns the children, in a group if that makes a difference."""
        opacity, mode = css.number(style, "opacity"), _blend_mode(style)
        if opacity == 0 or not children:
            return ()
        if opacity == 1 and mode == "normal" and style["isolation"] != "isolate":
            return children
        return (Group(children, opacity, mode, name),)

    def _used(
        self, element: ElementTree.Element, style: css.Style, matrix: Matrix
    ) -> Iterator[Shape | Group]:
        link = next((value for key, value in element.items() if key.endswith("href")), "").strip()
        target = self.by_id.get(link[1:])
        if target is None:
            raise ValueError(f"<use>: nothing in the file has the id of {link!r}")
        if link in self.open_references:
            raise ValueError(f"<use>: {link!r} refers to itself")
        self.open_references.add(link)
        x, y, width, height = attribute_lengths(element.attrib, "x y width height", self.view_box)
        matrix = product(matrix, (1.0, 0.0, 0.0, 1.0, x, y))
        name = _local(target.tag)
        if name == "symbol":
            style = self._style(target, style)
            if box := target.get("viewBox"):
                values = number_list(box, "viewBox")
                if len(values) != 4 or min(values[2:]) <= 0:
                    raise ValueError(f"<symbol>: viewBox {box!r} is no box of positive size")
                if "width" not in element.attrib or "height" not in element.attrib:
                    width, height = self.view_box[2:]
                matrix = product(matrix, fitted(cast(Box, tuple(values)), width, height))
            self._refuse_clip(style, name, matrix)
            children = tuple(self._children(target, style, matrix))
            yield from self._grouped(children, style, target.get("id", ""))
        elif name and name not in NEVER_DRAWN:
            yield from self._drawn(target, name, style, matrix)
        self.open_references.remove(link)

    def _shape(
        self, element: ElementTree.Element, name: str, style: css.Style, matrix: Matrix
    ) -> Iterator[Shape]:
        if style["visibility"] != "visible":
            return
        fill, stroke = self._fill(style), self._stroke(style)
        opacity = css.number(style, "opacity")
        if (fill is None and stroke is None) or opacity == 0:
            return
        if name in ("path", "line", "polyline", "polygon"):
            _refuse_others(style, name, "marker-start marker-mid marker-end marker")
        if stroke:
            _refuse_others(style, name, "stroke-dasharray vector-effect")
        if stroke and fill:
            _refuse_others(style, name, "paint-order")
        data = element.get("d", "") + element.get("points", "")
        self._count(sum(1 for _ in NUMBER.finditer(data)))
        try:
            paths = outline(name, element.attrib, self.view_box)
            paths = [path for path in paths if path.segments or path.closed]
            shape = transformed_shape(Shape(tuple(paths), fill, stroke), matrix)
            stroke = shape.stroke if shape.stroke and shape.stroke.width > 0 else None
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"<{name}>{_identity(element)}: {error}") from error
        drawn = shape.subpaths if self.keep_arcs else tuple(map(cubic_subpath, shape.subpaths))
        numbers = [number for path in drawn for number in _coordinates(path)]
        self._count(len(numbers))
        largest = max(map(abs, numbers), default=0.0)
        width = stroke.width if stroke else 0.0
        if not max(largest, width) <= self.limits.coordinate:
            raise ValueError(
                f"<{name}>{_identity(element)}: coordinates beyond {self.limits.coordinate:g}"
            )
        if drawn and (fill or stroke):
            mode, identity = _blend_mode(style), element.get("id", "")
            yield Shape(drawn, fill, stroke, opacity, mode, identity)

    def _fill(self, style: css.Style) -> Fill | None:
        color, alpha = css.paint(style, "fill")
        opacity = alpha * css.number(style, "fill-opacity")
        if color is None or opacity == 0:
            return None
        return Fill(color, opacity, cast(FillRule, css.choice(style, "fill-rule", FillRule)))

    def _stroke(self, style: css.Style) -> Stroke | None:
        color, alpha = css.paint(style, "stroke")
        opacity = alpha * css.number(style, "stroke-opacity")
        diagonal = math.hypot(*self.view_box[2:]) / math.sqrt(2)
        width = length(style["stroke-width"], diagonal)
        if color is None or opacity == 0 or width == 0:
            return None
        if width < 0:
            raise ValueError(f"stroke-width: {width:g} is negative")
        cap = cast(Cap, css.choice(style, "stroke-linecap", Cap))
        join = cast(Join, css.choice(style, "stroke-linejoin", Join))
        limit = css.number(style, "stroke-miterlimit", largest=math.inf)
        return Stroke(color, width, opacity, cap, join, max(1.0, limit))

    def _count(self, numbers: int) -> None:
        self.num_numbers += numbers
        if self.num_numbers > 2 * self.limits.numbers:  # once as text, once as coordinates
            raise ValueError(f"more than {self.limits.numbers} numbers of paths")


def _coordinates(path: Subpath) -> Iterator[float]:
    yield from (path.x, path.y)
    for segment in path.segments:
        yield from segment


def _refuse_others(style: css.Style, element: str, names: str) -> None:
    """Refuses values of properties, but the one that changes nothing."""
    for name in names.split():
        if style[name] != css.INITIAL[name]:
            raise ValueError(f"<{element}>: {name} is not supported ({style[name][:40]!r})")


def _identity(element: ElementTree.Element) -> str:
    return f" {element.get('id')!r}" if element.get("id") else ""


def _blend_mode(style: css.Style) -> BlendMode:
    return cast(BlendMode, css.choice(style, "mix-blend-mode", BlendMode))
