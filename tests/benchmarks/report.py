"""How a benchmark reports its ratios: lines that people read and that `run_all.py` collects."""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE = re.compile(r"ratio \| ([^|]+) \| (\S+)(?: \| (at (?:least|most) \S+))?")


@dataclass(frozen=True)
class Ratio:
    """A measured ratio, and its target: "at least 3", "at most 1.5", or "" where none is stated.

    Four digits are printed; what is read from a line is judged by these.
    """

    name: str
    value: float
    target: str = ""

    @classmethod
    def parse(cls, line: str) -> Ratio | None:
        """Returns what a line reports, None for any other line."""
        if (match := LINE.fullmatch(line)) is None:
            return None
        name, value, target = match.groups(default="")
        return cls(name, float(value), target)

    @property
    def held(self) -> bool | None:
        """Whether the target is reached, None without one; NaN reaches none."""
        if not self.target:
            return None
        side, bound = self.target.rsplit(maxsplit=1)
        return self.value >= float(bound) if side == "at least" else self.value <= float(bound)

    def __str__(self) -> str:
        return " | ".join(filter(None, ("ratio", self.name, f"{self.value:.4g}", self.target)))


def ratio(
    name: str, value: float, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Prints one ratio.

    Args:
        name: What is divided by what, in this order, and of which case.
        value: The ratio.
        at_least: Its target, if one is stated and more is better.
        at_most: The same, if less is better.
    """
    assert "|" not in name
    assert at_least is None or at_most is None
    bounds = (("at least", at_least), ("at most", at_most))
    targets = [f"{side} {bound:g}" for side, bound in bounds if bound is not None]
    print(Ratio(name, value, *targets), flush=True)
