"""Numbers, lengths and transforms of SVG attributes.

What is no such value raises a ValueError. Texts may be long: each is read in one pass.
"""

import math
import re
from typing import cast

from .document import Matrix

# Possessive (`++`): nothing is tried twice where a text does not match.
NUMBER = re.compile(r"[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?")
LENGTH = re.compile(rf"({NUMBER.pattern})\s*+(px|pt|pc|mm|cm|in|%)?")
TRANSFORM = re.compile(r"(matrix|translate|scale|rotate|skewX|skewY)\s*+\(([^()]*+)\)")
ARGUMENTS = {"matrix": (6,), "translate": (1, 2), "scale": (1, 2), "rotate": (1, 3)}
MAX_TRANSFORMS = 100
SEPARATORS = " \t\r\n\f,"
UNITS = {"px": 1, "pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96}
IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def number_list(text: str, name: str) -> list[float]:
    """Returns the numbers of a list; `name` is what an error calls it."""
    if NUMBER.sub("", text).strip(SEPARATORS):
        raise ValueError(f"{name} {text[:40]!r} is no list of numbers")
    return [float(match[0]) for match in NUMBER.finditer(text)]


def length(text: str, relative: float) -> float:
    """Returns a length in user units; a share of `relative` where it is in per cent."""
    match = LENGTH.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no length in px, pt, pc, mm, cm, in or %")
    value = float(match[1])
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} is too large")
    return value * relative / 100 if match[2] == "%" else value * UNITS[match[2] or "px"]


def transform(text: str) -> Matrix:
    """Returns the product of a list of transforms."""
    if text == "none":
        return IDENTITY
    import svgelements

    calls = TRANSFORM.findall(text)
    if TRANSFORM.sub("", text).strip(SEPARATORS) or len(calls) > MAX_TRANSFORMS:
        raise ValueError(f"transform {text[:40]!r} is no list of up to {MAX_TRANSFORMS} transforms")
    for name, arguments in calls:
        numbers = number_list(arguments.replace("px", "").replace("deg", ""), name)
        if len(numbers) not in ARGUMENTS.get(name, (1,)):
            raise ValueError(f"transform {name}({arguments[:40]}): {len(numbers)} numbers")
    matrix = svgelements.Matrix(text)
    values = tuple(float(getattr(matrix, letter)) for letter in "abcdef")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"transform {text[:40]!r} is too large")
    return cast(Matrix, values)
