"""What a quantised layer is: bits, groups, where scales come from, and which layers."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ...kernels.fake_quant import Grid, StraightThrough, grid_bounds

GroupSize = int | Literal["per_token", "per_channel", "per_tensor"]
Method = Literal["absmax", "lsq", "lwc", "lac"]
Role = Literal["weight", "activation"]

METHODS: dict[Role, tuple[str, ...]] = {
    "weight": ("absmax", "lsq", "lwc"),
    "activation": ("absmax", "lac"),
}
WHOLE_ROW: dict[Role, str] = {"weight": "per_channel", "activation": "per_token"}


@dataclass(frozen=True)
class QuantizerConfig:
    """How one tensor is rounded.

    Args:
        bits: Width of the integer grid, 2 to 8.
        group_size: Consecutive input features that share a scale; or "per_channel" (weights: one
            scale per output), "per_token" (activations: one per token or position), "per_tensor".
        method: Where the scale comes from. "absmax": the group's largest magnitude. "lsq"
            (weights): a learned scale per group. "lwc" (weights), "lac" (activations): the largest
            magnitude times a learned factor in (0, 1], for activations shared by all tokens.
        grid: "int", or "fp4_e2m1" with 4 bits.
        divisor: Grid value that the largest magnitude is mapped to; null: 2^(bits-1), the paper's
            (section 3), or 6 for "fp4_e2m1". 7.5 is torchao's symmetric mapping at 4 bits.
        ste: Gradient of rounding: "identity", "clipped" (none where clamped) or "through_scale"
            (through the scale as well). See `tenfold.kernels.fake_quant.fake_quantize`.
        eps: Least scale.

    Raises:
        ValueError: A value is outside its range.
    """

    bits: int = 4
    group_size: GroupSize = 128
    method: Method = "absmax"
    grid: Grid = "int"
    divisor: float | None = None
    ste: StraightThrough = "identity"
    eps: float = 1e-8

    def __post_init__(self) -> None:
        grid_bounds(self.bits, self.grid)
        for name, kind in (("method", Method), ("ste", StraightThrough)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {known}")
        if isinstance(self.group_size, int):
            if self.group_size < 1:
                raise ValueError(f"group_size must be 1 or more, got {self.group_size}")
        elif self.group_size not in ("per_token", "per_channel", "per_tensor"):
            raise ValueError(
                f"group_size: {self.group_size!r} is neither a number of features nor per_channel "
                "(weights), per_token (activations) or per_tensor"
            )
        for name in ("divisor", "eps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def qmax(self) -> float:
        """The largest value of the grid."""
        return grid_bounds(self.bits, self.grid)[1]

    @property
    def is_learned(self) -> bool:
        """Whether the quantizer has a parameter of its own."""
        return self.method != "absmax"

    def __str__(self) -> str:
        name = f"{self.bits} bit" if self.grid == "int" else self.grid
        group = self.group_size if isinstance(self.group_size, str) else f"G={self.group_size}"
        return f"{name} {group} {self.method}"


@dataclass(frozen=True)
class QATConfig:
    """Which layers of a network are quantised, and how.

    Patterns are regular expressions, searched for in the dotted names of layers.

    Args:
        weight: How weights are rounded; None leaves them.
        activation: How the inputs of layers are rounded; None leaves them.
        include: Layers to quantise.
        exclude: Layers to leave; None: the output head of a language model.
        overrides: Pattern -> what differs there, such as
            `{"down_proj$": {"activation": {"bits": 8}}}`; None instead of a mapping leaves the
            tensor as it is. Of several patterns that match a layer, the later ones win.
        indivisible: Whether a layer whose input features the group size does not divide is an
            "error" or a "skip" with a warning.
    """

    weight: QuantizerConfig | None = field(default_factory=QuantizerConfig)
    activation: QuantizerConfig | None = field(default_factory=QuantizerConfig)
    include: list[str] = field(default_factory=lambda: [".*"])
    exclude: list[str] | None = None
    overrides: dict[str, dict[str, dict[str, Any] | None]] = field(default_factory=dict)
    indivisible: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        for pattern in [*self.include, *(self.exclude or []), *self.overrides]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
        if self.weight is None and self.activation is None and not self.overrides:
            raise ValueError("weight and activation are both null: there is nothing to quantise")
        self.of_layer("", self.overrides)

    def of_layer(
        self, name: str, patterns: Iterable[str] | None = None
    ) -> dict[Role, QuantizerConfig | None]:
        """Returns how the weight and the input of a layer are rounded.

        Args:
            name: Dotted name of the layer.
            patterns: Overrides to apply; None: those that match the name.
        """
        found: dict[Role, QuantizerConfig | None] = {
            "weight": self.weight,
            "activation": self.activation,
        }
        if patterns is None:
            patterns = [pattern for pattern in self.overrides if re.search(pattern, name)]
        for pattern in patterns:
            for key, change in self.overrides[pattern].items():
                role = _role(key, pattern)
                found[role] = _changed(found[role], change, f"overrides[{pattern!r}].{key}")
        for role, config in found.items():
            _check_role(config, role)
        return found

    def quantizers(self) -> Iterator[QuantizerConfig]:
        """Yields every quantizer there may be: the general ones, then those of overrides."""
        for patterns in ((), *((pattern,) for pattern in self.overrides)):
            yield from (c for c in self.of_layer("", patterns).values() if c is not None)

    @property
    def precision(self) -> str:
        """A short name: `w4a4`, `w4a16`, `w4a4[down_proj$:a8]`."""
        text = "".join(f"{role[0]}{_width(c)}" for role, c in self.of_layer("", ()).items())
        changes = []
        for pattern, roles in self.overrides.items():
            found = self.of_layer("", [pattern])
            widths = [f"{role[0]}{_width(found[_role(role, pattern)])}" for role in roles]
            changes.append(f"{pattern}:{''.join(widths)}")
        return f"{text}[{','.join(changes)}]" if changes else text


def _width(config: QuantizerConfig | None) -> str:
    if config is None:
        return "16"
    return str(config.bits) if config.grid == "int" else "fp4"


def _role(key: str, pattern: str) -> Role:
    if key not in METHODS:
        raise ValueError(f"overrides[{pattern!r}]: {key!r} is neither weight nor activation")
    return key


def _changed(
    base: QuantizerConfig | None, change: Mapping[str, Any] | None, where: str
) -> QuantizerConfig | None:
    """Returns `base` with the fields in `change` replaced."""
    if change is None:
        return None
    names = [item.name for item in fields(QuantizerConfig)]
    for key in change:
        if key not in names:
            raise ValueError(f"{where}: unknown key {key!r}; there are {', '.join(names)}")
    try:
        return replace(base or QuantizerConfig(), **change)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_role(config: QuantizerConfig | None, role: Role) -> None:
    """Refuses what makes sense for the other kind of tensor only."""
    if config is None:
        return
    if config.method not in METHODS[role]:
        raise ValueError(f"{role}: method {config.method!r} is not for a {role}: {METHODS[role]}")
    groups = (WHOLE_ROW[role], "per_tensor")
    if isinstance(config.group_size, str) and config.group_size not in groups:
        raise ValueError(
            f"{role}: group_size {config.group_size!r} is not for a {role}: use a number, "
            f"{' or '.join(groups)}"
        )
