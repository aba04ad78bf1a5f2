"""The drawing language of Art2Prog: what a program may say, and how it is written and read.

    1 Create(1,1)               a new layer, the pen at a grid point
    2 Straight(6,1, 1)          the outline of line 1, prolonged straight to (6, 1)
    3 Circle(1,1,half,cw, 2)    ... and by an arc: end, radius, direction
    4 Fillcolor(2, 3)           closes the outline and fills it with colour 2 of the palette
    ...
    9 Multiply(4,8)             blends the layer of line 8 onto that of line 4

The last argument of a line, of a blend the last two, points to earlier lines: from 1 in text, from
0 in JSON and in Python. Coordinates are numbers of grid points, x to the right and y down. An arc
is the shorter one of its radius, in cells; a radius of less than half the chord counts as half the
chord, and so does `half`. Each result is used exactly once, but for the last line's: the picture.

Commands, grid and pointers follow "Learning to Synthesize Graphics Programs for Geometric
Artworks" (Qi, Zhang, Cai, ICPR 2024) as far as it is known; palette, radii, opacity, other blend
modes and more than two layers are ours.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

from ...kernels.compositing import BLEND_MODES, BlendMode

Color = tuple[int, int, int]  # sRGB, 0 to 255

PALETTE: tuple[Color, ...] = (
    (230, 60, 60),
    (60, 160, 75),
    (40, 110, 200),
    (250, 200, 60),
    (150, 80, 180),
    (240, 140, 50),
    (60, 190, 190),
    (90, 90, 90),
)
HALF = 0  # the radius that is always half the chord: too small for any
DIRECTIONS = {"cw": True, "ccw": False}


class ProgramError(ValueError):
    """A program is not in the language; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Create:
    """A new layer with an empty outline, the pen at (x, y)."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Straight:
    """The outline of line `outline`, prolonged by a straight edge to (x, y)."""

    x: int
    y: int
    outline: int


@dataclass(frozen=True, slots=True)
class Circle:
    """The outline of line `outline`, prolonged by a circular arc to (x, y).

    Attributes:
        x: End.
        y: End.
        radius: In cells; `HALF`, or less than half the chord: half the chord.
        clockwise: As seen, y being down.
        outline: Line of the outline, from 0.
    """

    x: int
    y: int
    radius: int
    clockwise: bool
    outline: int


@dataclass(frozen=True, slots=True)
class Fillcolor:
    """A layer: the outline of line `outline`, closed and filled with a colour of the palette."""

    color: int
    outline: int


@dataclass(frozen=True, slots=True)
class Opacity:
    """The filled layer of line `layer` with an opacity, a number in `Language.opacities`."""

    opacity: int
    layer: int


@dataclass(frozen=True, slots=True)
class Blend:
    """The layer of line `above`, a single one, blended onto that of line `below`."""

    mode: BlendMode
    below: int
    above: int


Line: TypeAlias = Create | Straight | Circle | Fillcolor | Opacity | Blend


@dataclass(frozen=True, slots=True)
class Program:
    """A program that `Language.check` has not refused. `Language.format` prints it."""

    lines: tuple[Line, ...]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class Language:
    """What programs may say.

    Args:
        grid: Points per axis, 2 to 32. The paper has at most 8.
        palette: Colours that Fillcolor knows, sRGB from 0 to 255.
        radii: Radii in cells that Circle knows beside `half`, increasing, 1 or more.
        blend_modes: Names of W3C Compositing; the paper has normal and multiply.
        opacities: Opacities below 1 that a command Opacity knows; none: there is no such command.
        max_layers: Most layers of a picture. The paper's grammar has two.
        max_lines: Most lines of a program.
        margin: Cells between the outermost grid points and the border of the canvas.

    Raises:
        ValueError: A number out of range, or an unknown blend mode.
    """

    grid: int = 8
    palette: tuple[Color, ...] = PALETTE
    radii: tuple[int, ...] = (1, 2, 3, 4)
    blend_modes: tuple[BlendMode, ...] = ("normal", "multiply")
    opacities: tuple[float, ...] = ()
    max_layers: int = 2
    max_lines: int = 24
    margin: float = 0.5

    MIN_LINES: ClassVar[int] = 4  # create, two edges, fill

    def __post_init__(self) -> None:
        for field in fields(self):  # lists, as they come from YAML and JSON
            if isinstance(value := getattr(self, field.name), list):
                plain = tuple(tuple(v) if isinstance(v, list) else v for v in value)
                object.__setattr__(self, field.name, plain)
        if not 2 <= self.grid <= 32:
            raise ValueError(f"language.grid: {self.grid}, expected 2 to 32 points per axis")
        if not self.palette or any(not 0 <= part <= 255 for c in self.palette for part in c):
            raise ValueError("language.palette: expected colours of three numbers from 0 to 255")
        increasing = all(a < b for a, b in zip((0, *self.radii), self.radii, strict=False))
        if not increasing:
            raise ValueError(f"language.radii: {list(self.radii)}, expected 1 or more, increasing")
        for mode in self.blend_modes:
            if mode not in BLEND_MODES:
                known = ", ".join(BLEND_MODES)
                raise ValueError(f"language.blend_modes: {mode!r} is none of {known}")
        if self.blend_modes[:1] != ("normal",):
            raise ValueError("language.blend_modes: the first must be normal")
        if any(not 0 < opacity < 1 for opacity in self.opacities):
            raise ValueError(
                f"language.opacities: {list(self.opacities)}, expected between 0 and 1"
            )
        if self.max_layers < 1 or self.max_lines < self.MIN_LINES:
            raise ValueError(
                f"language: {self.max_layers} layers of {self.max_lines} lines, expected 1 or more"
                f" and {self.MIN_LINES} or more"
            )
        if not 0 <= self.margin <= 2:
            raise ValueError(f"language.margin: {self.margin} cells, expected 0 to 2")

    @classmethod
    def of(cls, settings: "Language | Mapping[str, Any]") -> "Language":
        """Returns a language from what `settings` returned, or as it is."""
        return settings if isinstance(settings, Language) else cls(**settings)

    def settings(self) -> dict[str, Any]:
        """Returns the arguments as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """Names of all commands, in the order of their tokens."""
        plain = ("Create", "Straight", "Circle", "Fillcolor")
        optional = ("Opacity",) if self.opacities else ()
        return (*plain, *optional, *map(mode_command, self.blend_modes))

    # Text and JSON

    def format(self, program: Program) -> str:
        """Returns a program as text, a numbered line per command."""
        return "".join(
            f"{number} {self.format_line(line)}\n" for number, line in enumerate(program.lines, 1)
        )

    def format_line(self, line: Line) -> str:
        """Returns a line as text, without its number."""
        name, values = self._arguments(line)
        shown = [",".join(map(str, part)) for part in (values, [p + 1 for p in pointers(line)])]
        return f"{name}({', '.join(filter(None, shown))})"

    def parse(self, text: str, name: str = "program") -> Program:
        """Reads a program as `format` writes it; numbers of lines and `#` comments may be there.

        Args:
            text: The program.
            name: Of its file, for messages.

        Raises:
            ProgramError: With file and line; see `check`.
        """
        lines: list[Line] = []
        places: list[str] = []
        for number, raw in enumerate(text.splitlines(), 1):
            content = raw.partition("#")[0].strip()
            if not content:
                continue
            place = f"{name}:{number}"
            found = re.fullmatch(r"(?:(\d+)[\s.:]*)?([A-Za-z]+)\s*\(([^()]*)\)", content)
            if found is None:
                raise ProgramError(f"{place}: {content!r} is no Command(argument, ...)")
            if found[1] and int(found[1]) != len(lines) + 1:
                raise ProgramError(f"{place}: numbered {found[1]}, expected {len(lines) + 1}")
            values = [part.strip() for part in found[3].split(",")] if found[3].strip() else []
            lines.append(self._line(place, found[2], values, first=1))
            places.append(place)
        program = Program(tuple(lines))
        self.check(program, places, name)
        return program

    def to_json(self, program: Program) -> list[list[Any]]:
        """Returns a program as JSON values: a list per line, pointers from 0."""
        rows = ((*self._arguments(line), pointers(line)) for line in program.lines)
        return [[name, *values, *pointed] for name, values, pointed in rows]

    def from_json(self, rows: Any, name: str = "program") -> Program:
        """Reads what `to_json` returned.

        Args:
            rows: The lists.
            name: Of the file and line that they stand in, for messages.

        Raises:
            ProgramError: With file and line of the program; see `check`.
        """
        if not isinstance(rows, list):
            raise ProgramError(f"{name}: expected a list of lines, found {type(rows).__name__}")
        lines, places = [], [f"{name}: line {n + 1}" for n in range(len(rows))]
        for place, row in zip(places, rows, strict=True):
            if not (isinstance(row, list) and row and isinstance(row[0], str)):
                raise ProgramError(f"{place}: {row!r} is no list of a command and its arguments")
            lines.append(self._line(place, row[0], [str(value) for value in row[1:]], first=0))
        program = Program(tuple(lines))
        self.check(program, places, name)
        return program

    def _arguments(self, line: Line) -> tuple[str, list[int | float | str]]:
        """Returns command and arguments of a line without its pointers, as they are written."""
        match line:
            case Create(x, y) | Straight(x, y, _):
                return type(line).__name__, [x, y]
            case Circle(x, y, radius, clockwise, _):
                shown = "half" if radius == HALF else radius
                return "Circle", [x, y, shown, "cw" if clockwise else "ccw"]
            case Fillcolor(color, _):
                return "Fillcolor", [color]
            case Opacity(opacity, _):
                return "Opacity", [self.opacities[opacity]]
            case Blend(mode, _, _):
                return mode_command(mode), []

    def _line(self, place: str, command: str, values: Sequence[str], first: int) -> Line:
        """Reads one line; pointers count from `first`."""
        if command not in self.commands:
            known = ", ".join(self.commands)
            raise ProgramError(f"{place}: unknown command {command!r}: there are {known}")
        wanted = _SIGNATURES.get(command, ("below", "above"))
        if len(values) != len(wanted):
            raise ProgramError(
                f"{place}: {command} takes {len(wanted)} arguments ({', '.join(wanted)}),"
                f" got {len(values)}"
            )
        given: dict[str, Any] = {}
        for argument, text in zip(wanted, values, strict=True):
            if argument == "clockwise":
                if text not in DIRECTIONS:
                    raise ProgramError(f"{place}: direction {text!r}, expected cw or ccw")
                given[argument] = DIRECTIONS[text]
                continue
            if argument == "radius" and text == "half":
                given[argument] = HALF
                continue
            if argument == "opacity":
                if text not in (shown := [f"{value:g}" for value in self.opacities]):
                    raise ProgramError(f"{place}: opacity {text}, expected {' or '.join(shown)}")
                given[argument] = shown.index(text)
                continue
            if not re.fullmatch(r"-?\d+", text):
                raise ProgramError(f"{place}: {argument} {text!r} is no whole number")
            given[argument] = int(text) - (first if argument in _POINTERS else 0)
        if command in _CLASSES:
            line: Line = _CLASSES[command](**given)
            return line
        mode = next(mode for mode in self.blend_modes if mode_command(mode) == command)
        return Blend(mode, given["below"], given["above"])

    # Meaning that can be checked without drawing

    def check(
        self, program: Program, places: Sequence[str] | None = None, name: str = "program"
    ) -> None:
        """Refuses what is no program of this language.

        Args:
            program: To be checked.
            places: For messages, what to call each line; None: by its number.
            name: What to call the program.

        Raises:
            ProgramError: An argument out of range; a pointer to the line itself, a later one or
                none (dangling, a cycle), to a result of another kind or one that is used already;
                an edge without length; an outline that is not filled; a layer that is not used;
                too many lines or layers.
        """
        if places is None:
            places = [f"{name}: line {n + 1}" for n in range(len(program))]
        if not program.lines:
            raise ProgramError(f"{name}: no line; the shortest picture has {self.MIN_LINES}")
        if len(program) > self.max_lines:
            raise ProgramError(
                f"{name}: {len(program)} lines, at most {self.max_lines} are allowed"
            )
        open_: dict[int, _Open] = {}  # results that no later line has used
        for number, line in enumerate(program.lines):
            open_[number] = self._check_line(number, line, open_, places)
        *unused, last = open_
        if unused:
            place, result = places[unused[0]], open_[unused[0]]
            if result.kind == "outline":
                raise ProgramError(f"{place}: this outline is never filled: add a Fillcolor")
            raise ProgramError(f"{place}: this layer is never used: blend it with the others")
        if open_[last].kind == "outline":
            raise ProgramError(f"{places[last]}: this outline is never filled: add a Fillcolor")

    def _check_line(
        self, number: int, line: Line, open_: "dict[int, _Open]", places: Sequence[str]
    ) -> "_Open":
        """Checks one line, takes what it points to from the open results, returns its own."""
        place = places[number]

        def take(pointer: int, kind: str) -> _Open:
            if not 0 <= pointer < number:
                where = "itself" if pointer == number else f"line {pointer + 1}"
                why = "a later one or none" if pointer != number else "a cycle"
                raise ProgramError(f"{place}: points to {where}, {why}: point to an earlier line")
            if pointer not in open_:
                raise ProgramError(f"{place}: line {pointer + 1} is used already by another line")
            found = open_[pointer]
            if found.kind != kind:
                raise ProgramError(
                    f"{place}: line {pointer + 1} is no {kind} but {_NAMES[found.kind]}"
                )
            return open_.pop(pointer)

        def point(x: int, y: int) -> None:
            if not (0 <= x < self.grid and 0 <= y < self.grid):
                raise ProgramError(
                    f"{place}: point ({x}, {y}) is not on the grid, 0 to {self.grid - 1}"
                )

        match line:
            case Create(x, y):
                point(x, y)
                return _Open("outline", (x, y))
            case Straight(x, y, outline) | Circle(x, y, _, _, outline):
                if isinstance(line, Circle) and line.radius not in (HALF, *self.radii):
                    known = " ".join(map(str, self.radii))
                    raise ProgramError(f"{place}: radius {line.radius}, expected half {known}")
                point(x, y)
                before = take(outline, "outline")
                if before.pen == (x, y):
                    raise ProgramError(f"{place}: an edge from ({x}, {y}) to itself has no length")
                return _Open("outline", (x, y), before.num_edges + 1)
            case Fillcolor(color, outline):
                if not 0 <= color < len(self.palette):
                    raise ProgramError(
                        f"{place}: colour {color} is not in the palette, 0 to"
                        f" {len(self.palette) - 1}"
                    )
                if take(outline, "outline").num_edges == 0:
                    raise ProgramError(f"{place}: line {outline + 1} has no edge to be filled")
                return _Open("layer", is_plain=True, num_layers=1)
            case Opacity(_, layer):
                below = take(layer, "layer")
                if not below.is_plain:
                    raise ProgramError(f"{place}: line {layer + 1} is no Fillcolor")
                return _Open("layer", num_layers=1)
            case Blend(mode, below_line, above_line):
                if mode not in self.blend_modes:
                    raise ProgramError(f"{place}: {mode} is none of {', '.join(self.blend_modes)}")
                below, above = take(below_line, "layer"), take(above_line, "layer")
                if above.num_layers > 1:
                    raise ProgramError(
                        f"{place}: line {above_line + 1} is a blend already: it can only lie below"
                    )
                num_layers = below.num_layers + 1
                if num_layers > self.max_layers:
                    raise ProgramError(
                        f"{place}: {num_layers} layers, at most {self.max_layers} are allowed"
                    )
                return _Open("layer", num_layers=num_layers)


@dataclass(frozen=True, slots=True)
class _Open:
    """What is known of a result that is not used yet."""

    kind: str
    pen: tuple[int, int] = (0, 0)
    num_edges: int = 0
    is_plain: bool = False  # a fill without opacity
    num_layers: int = 0


_CLASSES: dict[str, Any] = {
    cls.__name__: cls for cls in (Create, Straight, Circle, Fillcolor, Opacity)
}
_SIGNATURES = {name: tuple(field.name for field in fields(cls)) for name, cls in _CLASSES.items()}
_NAMES = {"outline": "an outline", "layer": "a layer"}
_POINTERS = {"outline", "layer", "below", "above"}


def mode_command(mode: BlendMode) -> str:
    """Returns the command of a blend mode: color-dodge is ColorDodge."""
    return mode.title().replace("-", "")


def pointers(line: Line) -> tuple[int, ...]:
    """Returns the lines that a line points to, in the order of its arguments."""
    match line:
        case Create():
            return ()
        case Straight() | Circle() | Fillcolor():
            return (line.outline,)
        case Opacity():
            return (line.layer,)
        case Blend():
            return (line.below, line.above)


def repointed(line: Line, places: Mapping[int, int]) -> Line:
    """Returns a line whose pointers are replaced, old by new."""
    match line:
        case Create():
            return line
        case Straight() | Circle() | Fillcolor():
            return replace(line, outline=places[line.outline])
        case Opacity():
            return replace(line, layer=places[line.layer])
        case Blend():
            return replace(line, below=places[line.below], above=places[line.above])
