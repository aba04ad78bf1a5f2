"""Styles of SVG elements: what applies to one, and what a value means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from .document import Color

Style = dict[str, Any]  # computed values by property: text, and for "color" a Color

# Initial values of what is read; the properties of the first group are inherited.
_INHERITED: Style = {
    "color": (0.0, 0.0, 0.0),
    "fill": "black",
    "fill-opacity": "1",
    "fill-rule": "nonzero",
    "stroke": "none",
    "stroke-width": "1",
    "stroke-opacity": "1",
    "stroke-linecap": "butt",
    "stroke-linejoin": "miter",
    "stroke-miterlimit": "4",
    "stroke-dasharray": "none",
    "visibility": "visible",
    "paint-order": "normal",
    "marker-start": "none",
    "marker-mid": "none",
    "marker-end": "none",
    "marker": "none",
}
_OWN: Style = {
    "opacity": "1",
    "mix-blend-mode": "normal",
    "isolation": "auto",
    "display": "inline",
    "transform": "none",
    "transform-origin": "0 0",
    "vector-effect": "none",
    "clip-path": "none",
    "mask": "none",
    "filter": "none",
    "animation": "none",
}
INITIAL: Style = _INHERITED | _OWN
_MAX_RULES = 300
_MAX_COLOR = 64  # characters


@dataclass(frozen=True)
class _Rule:
    """Declarations for elements that a selector such as `path.outline` names."""

    element: str | None
    id: str | None
    classes: frozenset[str]
    declarations: list[tuple[str, str, bool]]  # property, value, important

    @property
    def specificity(self) -> tuple[int, int, int]:
        return int(self.id is not None), len(self.classes), int(self.element is not None)

    def applies(self, element: str, identity: str | None, classes: frozenset[str]) -> bool:
        return (
            self.element in (None, element)
            and self.id in (None, identity)
            and self.classes <= classes
        )


@dataclass
class StyleSheet:
    """The `<style>` elements of a file together.

    Attributes:
        budget: How many characters of style sheets and attributes are still read.
        rules: In the order of precedence.
    """

    budget: int
    rules: list[_Rule] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Adds the rules of a sheet.

        Raises:
            ValueError: It has a selector that is not simple, an at-rule, or too many rules.
        """
        import tinycss2

        self._spend(text)
        for rule in tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True):
            if rule.type != "qualified-rule":
                raise ValueError(f"<style>: {_shown(rule)} is not supported")
            declarations = _declarations(tinycss2.parse_blocks_contents(rule.content))
            for selector in _split(rule.prelude):
                self.rules.append(_Rule(*_selector(selector), declarations))
            if len(self.rules) > _MAX_RULES:
                raise ValueError(f"<style>: more than {_MAX_RULES} rules")
        self.rules.sort(key=lambda rule: rule.specificity)  # stable: of equal ones the last wins

    def computed(self, element: str, attributes: Mapping[str, str], inherited: Style) -> Style:
        """Returns all properties of an element.

        Args:
            element: Its name.
            attributes: Its attributes, `style` among them.
            inherited: The computed style of its parent.

        Raises:
            ValueError: A value refers to another file.
        """
        import tinycss2

        given = [(name, value, False) for name, value in attributes.items() if name in INITIAL]
        if self.rules:
            classes = frozenset(attributes.get("class", "").split())
            for rule in self.rules:
                if rule.applies(element, attributes.get("id"), classes):
                    given += rule.declarations
        if text := attributes.get("style"):
            self._spend(text)
            given += _declarations(tinycss2.parse_blocks_contents(text))
        given.sort(key=lambda declaration: declaration[2])  # what is important comes last
        style = {name: inherited[name] for name in _INHERITED} | _OWN
        for name, value, _ in given:
            value = value.strip()
            if value in ("inherit", "unset", "initial", "revert"):
                parent = value == "inherit" or (value == "unset" and name in _INHERITED)
                style[name] = (inherited if parent else INITIAL)[name]
            else:
                style[name] = value
        if isinstance(style["color"], str):
            color, _ = _color(style["color"], "color", inherited["color"])
            style["color"] = color
        return style

    def _spend(self, text: str) -> None:
        self.budget -= len(text)
        if self.budget < 0:
            raise ValueError("more style than is read")


def paint(style: Style, name: str) -> tuple[Color | None, float]:
    """Returns the colour of a fill or stroke, None for none, and its alpha.

    Raises:
        ValueError: It is a gradient or pattern, or no colour.
    """
    value: str = style[name]
    if value == "none":
        return None, 0.0
    if value.startswith("url("):
        raise ValueError(f"{name}: gradients and patterns are not supported ({value[:40]})")
    return _color(value, name, style["color"])


def number(style: Style, name: str, largest: float = 1.0) -> float:
    """Returns a number or percentage, cut to 0 and the largest value.

    Raises:
        ValueError: It is none.
    """
    text: str = style[name]
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{name}: {text[:40]!r} is no number") from None
    if math.isnan(value):
        raise ValueError(f"{name}: {text[:40]!r} is no number")
    return min(max(value, 0.0), largest)


def choice(style: Style, name: str, values: Any) -> str:
    """Returns a keyword.

    Raises:
        ValueError: It is none of the values, a Literal.
    """
    value: str = style[name]
    if value not in get_args(values):
        raise ValueError(f"{name}: {value[:40]!r} is none of {', '.join(get_args(values))}")
    return value


def _color(text: str, name: str, current: Color) -> tuple[Color, float]:
    from tinycss2.color4 import parse_color

    color = parse_color(text) if len(text) <= _MAX_COLOR else None
    if color is None:
        raise ValueError(f"{name}: {text[:40]!r} is no colour")
    if color == "currentcolor":
        return current, 1.0
    red, green, blue = (min(max(value or 0.0, 0.0), 1.0) for value in color.to("srgb").coordinates)
    return (red, green, blue), color.alpha


def _declarations(nodes: list[Any]) -> list[tuple[str, str, bool]]:
    """Returns property, value and importance of the declarations that are read."""
    import tinycss2

    result = []
    for node in nodes:
        if node.type == "declaration" and node.lower_name in INITIAL:
            value = tinycss2.serialize(node.value).strip()
            result.append((node.lower_name, value, node.important))
        elif node.type not in ("declaration", "whitespace", "comment"):
            raise ValueError(f"style: {_shown(node)} is no declaration")
    return result


def _split(tokens: list[Any]) -> list[list[Any]]:
    """Cuts the tokens of a selector list at its commas."""
    selectors: list[list[Any]] = [[]]
    for token in tokens:
        if token.type == "literal" and token.value == ",":
            selectors.append([])
        elif token.type != "comment":
            selectors[-1].append(token)
    return selectors


def _selector(tokens: list[Any]) -> tuple[str | None, str | None, frozenset[str]]:
    """Returns element, id and classes of a selector without combinators."""
    import tinycss2

    while tokens and tokens[0].type == "whitespace":
        tokens = tokens[1:]
    while tokens and tokens[-1].type == "whitespace":
        tokens = tokens[:-1]
    element = identity = None
    classes = set()
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if token.type == "ident" and element is None and token is tokens[0]:
            element = token.value
        elif token.type == "hash" and token.is_identifier and identity is None:
            identity = token.value
        elif token.type == "literal" and token.value == "*" and token is tokens[0]:
            continue
        elif token.type == "literal" and token.value == "." and rest and rest[0].type == "ident":
            classes.add(rest.pop(0).value)
        else:
            text = tinycss2.serialize(tokens)
            raise ValueError(
                f"<style>: selector {text[:40]!r} is not supported; use element, .class and #id"
            )
    if not tokens:
        raise ValueError("<style>: a rule has no selector")
    return element, identity, frozenset(classes)


def _shown(node: Any) -> str:
    keyword = getattr(node, "at_keyword", None)
    return f"@{keyword}" if keyword else repr(getattr(node, "message", node.type))
