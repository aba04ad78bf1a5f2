"""Formulas over what the variants of a study have measured. Imports no torch.

    (constant:merged/val/loss - linear:val/loss) / constant:val/loss

An operand is VARIANT:METRIC. Names of metrics hold `/` and `-`, so operators stand between spaces.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .arguments import render

_TOKEN = re.compile(r"[()]|[^\s()]+")
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
_OPERAND = re.compile(r"([A-Za-z0-9][\w.+-]*):([^:]+)")
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_LEVELS = (("+", "-"), ("*", "/"))  # what binds least comes first
_ITEM = "VARIANT:METRIC, a number or ("


@dataclass(frozen=True)
class Operand:
    """What one variant has measured under one name."""

    variant: str
    metric: str


@dataclass(frozen=True)
class _Binary:
    sign: str
    left: "_Node"
    right: "_Node"


_Node = float | Operand | _Binary


@dataclass(frozen=True)
class Formula:
    """A number made of what variants have measured.

    Attributes:
        text: As the study writes it, on one line.
        root: What it says.
    """

    text: str
    root: _Node

    @classmethod
    def parse(cls, text: str) -> "Formula":
        """Reads operands, numbers, `+ - * /` with the usual precedence, and parentheses.

        Raises:
            ValueError: It is none, or it names no operand.
        """
        tokens = _TOKEN.findall(text)[::-1]  # read by pop(), from the end
        root = _read(tokens)
        if tokens and tokens[-1] == ")":
            raise ValueError("a ) closes no (")
        if tokens:
            raise ValueError(f"expected one of + - * / before '{tokens[-1]}', between spaces")
        formula = cls(" ".join(text.split()), root)
        if not formula.operands:
            raise ValueError("names no VARIANT:METRIC")
        return formula

    @property
    def operands(self) -> list[Operand]:
        """Each once, in the order of the text."""
        return list(dict.fromkeys(_operands(self.root)))

    @property
    def is_operand(self) -> bool:
        """Whether it is a measured number as it stands."""
        return isinstance(self.root, Operand)

    @property
    def kind(self) -> str:
        """What can stand on one axis: "values" (single operands), "differences" or "ratios"."""
        if self.is_operand:
            return "values"
        return "differences" if _degree(self.root) else "ratios"

    def evaluate(self, numbers: Mapping[Operand, float]) -> float:
        """The value for these operands; NaN where it divides by zero."""
        try:
            return _evaluate(self.root, numbers)
        except ZeroDivisionError:
            return math.nan


def parse_formulas(content: Mapping[Any, Any], where: str) -> dict[str, Formula]:
    """Reads a mapping of names to formulas.

    Raises:
        ValueError: One is none, or there are none; the message begins with `where` and its name.
    """
    if not content:
        raise ValueError(f"{where}: expected at least one row")
    formulas = {}
    for name, text in content.items():
        try:
            formulas[render(name)] = Formula.parse(str(text))
        except ValueError as error:
            raise ValueError(f"{where}: '{render(name)}': {error}") from error
    return formulas


def _read(tokens: list[str], level: int = 0) -> _Node:
    """Takes from the end of `tokens` what its operators bind at least as strongly as `level`."""
    if level == len(_LEVELS):
        return _read_item(tokens)
    node = _read(tokens, level + 1)
    while tokens and tokens[-1] in _LEVELS[level]:
        node = _Binary(tokens.pop(), node, _read(tokens, level + 1))
    return node


def _read_item(tokens: list[str]) -> _Node:
    token = tokens.pop() if tokens else None
    if token is None:
        raise ValueError(f"ends where {_ITEM} should follow")
    if token == "(":
        node = _read(tokens)
        if not tokens:
            raise ValueError("a ( is not closed")
        if tokens[-1] != ")":
            raise ValueError(f"expected ) or one of + - * / before '{tokens[-1]}', between spaces")
        tokens.pop()
        return node
    if _NUMBER.fullmatch(token):
        return float(token)
    if match := _OPERAND.fullmatch(token):
        return Operand(match[1], match[2])
    raise ValueError(f"found '{token}' where {_ITEM} should stand, with spaces around + - * /")


def _operands(node: _Node) -> Iterator[Operand]:
    if isinstance(node, Operand):
        yield node
    elif isinstance(node, _Binary):
        yield from _operands(node.left)
        yield from _operands(node.right)


def _degree(node: _Node) -> int:
    """The power of the unit of the operands: 1 for a sum of them, 0 for a quotient of two."""
    if not isinstance(node, _Binary):
        return int(isinstance(node, Operand))
    left, right = _degree(node.left), _degree(node.right)
    return {"*": left + right, "/": left - right}.get(node.sign, max(left, right))


def _evaluate(node: _Node, numbers: Mapping[Operand, float]) -> float:
    if isinstance(node, Operand):
        return numbers[node]
    if isinstance(node, float):
        return node
    left, right = _evaluate(node.left, numbers), _evaluate(node.right, numbers)
    return _OPERATORS[node.sign](left, right)
