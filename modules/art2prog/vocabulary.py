"""Programs as tokens, and which token may follow: the grammar mask.

A line is its command and its arguments, each a token of its own kind: coordinates (shared by x and
y), radii, directions, colours, opacities, pointers (lines, counted from the first). A program
begins with BOS, which is no target, and ends with EOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .geometry import effective_radius
from .language import (
    HALF,
    Blend,
    Circle,
    Create,
    Fillcolor,
    Language,
    Line,
    Opacity,
    Program,
    ProgramError,
    Straight,
    mode_command,
)
from .layers import Edge, Point

PAD, BOS, EOS = range(3)
MAX_SLOTS = 6  # of a line: command and five arguments
ARGUMENTS = {
    "Create": ("x", "y"),
    "Straight": ("x", "y", "pointer"),
    "Circle": ("x", "y", "radius", "direction", "pointer"),
    "Fillcolor": ("color", "pointer"),
    "Opacity": ("opacity", "pointer"),
}
BLEND_ARGUMENTS = ("pointer", "pointer")


class Place(NamedTuple):
    """Where in a program a token stands: its line from 0, and its slot, 0 for the command."""

    line: int
    slot: int


class Vocabulary:
    """The tokens of a language, by number.

    Args:
        language: Whose.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.radii = (HALF, *language.radii)
        self.modes = {mode_command(mode): mode for mode in language.blend_modes}
        self.arguments = ARGUMENTS | dict.fromkeys(self.modes, BLEND_ARGUMENTS)
        self._first: dict[str, int] = {}
        self._number: dict[str, int] = {}
        self.names = ["PAD", "BOS", "EOS"]
        for kind, names in (
            ("command", language.commands),
            ("coordinate", [f"N{n}" for n in range(language.grid)]),
            ("radius", ["half", *(f"R{r}" for r in language.radii)]),
            ("direction", ["CW", "CCW"]),
            ("color", [f"C{n}" for n in range(len(language.palette))]),
            ("opacity", [f"O{value:g}" for value in language.opacities]),
            ("pointer", [f"P{n}" for n in range(language.max_lines)]),
        ):
            self._first[kind], self._number[kind] = len(self.names), len(names)
            self.names += names
        self._first["x"] = self._first["y"] = self._first["coordinate"]
        self._number["x"] = self._number["y"] = language.grid

    def __len__(self) -> int:
        return len(self.names)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a program with EOS, without BOS."""
        return self.language.max_lines * MAX_SLOTS + 1

    def token(self, kind: str, number: int) -> int:
        """Returns the token of a kind ("command", "x", "color", ...) by its number among these."""
        assert 0 <= number < self._number[kind]
        return self._first[kind] + number

    def number(self, kind: str, token: int) -> int | None:
        """Returns the number of a token among those of a kind, None if it is of another kind."""
        number = token - self._first[kind]
        return number if 0 <= number < self._number[kind] else None

    def command(self, token: int) -> str | None:
        """Returns the command of a token, None if it is none."""
        number = self.number("command", token)
        return None if number is None else self.language.commands[number]

    def encode(self, program: Program) -> tuple[list[int], list[Place]]:
        """Returns the tokens of a program, EOS at the end, and where each stands."""
        tokens, places = [], []
        for number, line in enumerate(program.lines):
            row = self._line_tokens(line)
            tokens += row
            places += [Place(number, slot) for slot in range(len(row))]
        return [*tokens, EOS], [*places, Place(len(program), 0)]

    def decode(self, tokens: Sequence[int]) -> Program:
        """Returns the program of tokens, with or without EOS.

        Raises:
            ProgramError: They are no program of the language.
        """
        lines: list[Line] = []
        rest = [int(token) for token in tokens]
        rest = rest[: rest.index(EOS)] if EOS in rest else rest
        while rest:
            command = self.command(rest[0])
            if command is None:
                raise ProgramError(f"tokens: line {len(lines) + 1} begins with no command")
            kinds = self.arguments[command]
            values = [self.number(k, t) for k, t in zip(kinds, rest[1:], strict=False)]
            if len(values) < len(kinds) or None in values:
                raise ProgramError(f"tokens: line {len(lines) + 1}: arguments of {command} missing")
            lines.append(self.line(command, [value for value in values if value is not None]))
            rest = rest[1 + len(kinds) :]
        program = Program(tuple(lines))
        self.language.check(program, name="tokens")
        return program

    def line(self, command: str, numbers: Sequence[int]) -> Line:
        """Returns a line from its command and the numbers of its arguments' tokens."""
        match command:
            case "Create":
                return Create(*numbers)
            case "Straight":
                return Straight(*numbers)
            case "Circle":
                x, y, radius, direction, outline = numbers
                return Circle(x, y, self.radii[radius], direction == 0, outline)
            case "Fillcolor":
                return Fillcolor(*numbers)
            case "Opacity":
                return Opacity(*numbers)
            case _:
                return Blend(self.modes[command], *numbers)

    def _line_tokens(self, line: Line) -> list[int]:
        match line:
            case Create(x, y):
                command, numbers = "Create", [x, y]
            case Straight(x, y, outline):
                command, numbers = "Straight", [x, y, outline]
            case Circle(x, y, radius, clockwise, outline):
                numbers = [x, y, self.radii.index(radius), int(not clockwise), outline]
                command = "Circle"
            case Fillcolor(color, outline):
                command, numbers = "Fillcolor", [color, outline]
            case Opacity(opacity, layer):
                command, numbers = "Opacity", [opacity, layer]
            case Blend(mode, below, above):
                command, numbers = mode_command(mode), [below, above]
        tokens = [self.token("command", self.language.commands.index(command))]
        kinds = self.arguments[command]
        return tokens + [self.token(*pair) for pair in zip(kinds, numbers, strict=True)]


@dataclass(frozen=True, slots=True)
class _Pen:
    """The outline that is being drawn."""

    line: int
    vertices: tuple[Point, ...]
    edges: tuple[Edge, ...] = ()

    @property
    def is_closed(self) -> bool:
        return len(self.edges) > 1 and self.vertices[0] == self.vertices[-1]


class Grammar:
    """Which token may come next in one program; what it allows is always a program in the end.

    One outline is drawn at a time and closed before it is filled; it passes no grid point twice and
    does not go straight back. Layers are blended two at a time, as long as lines last.

    Args:
        vocabulary: The tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.language = vocabulary.language
        self.lines: list[Line] = []
        self.is_finished = False
        self._pen: _Pen | None = None
        self._fills: list[int] = []  # lines of layers that are not used: fills without opacity,
        self._plain: list[int] = []  # other single layers
        self._stack: int | None = None  # and the blend
        self._num_layers = 0
        self._command = ""
        self._numbers: list[int] = []

    def copy(self) -> "Grammar":
        """Returns a grammar that goes on from here by itself."""
        twin = Grammar.__new__(Grammar)
        twin.__dict__.update(self.__dict__)
        for name in ("lines", "_fills", "_plain", "_numbers"):
            setattr(twin, name, [*getattr(self, name)])
        return twin

    @property
    def place(self) -> Place:
        """Where the next token stands."""
        slot = 1 + len(self._numbers) if self._command else 0
        return Place(len(self.lines), slot)

    @property
    def program(self) -> Program:
        """The lines that are complete."""
        return Program(tuple(self.lines))

    def allowed(self) -> NDArray[np.bool_]:
        """Returns which tokens may come next, (V,); PAD alone after EOS."""
        mask = np.zeros(len(self.vocabulary), dtype=np.bool_)
        if self.is_finished:
            mask[PAD] = True
        elif not self._command:
            commands = self.language.commands
            for number, command in enumerate(commands):
                mask[self.vocabulary.token("command", number)] = self._may_begin(command)
            mask[EOS] = self._pen is None and len(self._unused()) == 1
        else:
            kind = self.vocabulary.arguments[self._command][len(self._numbers)]
            for number in self._options(kind):
                mask[self.vocabulary.token(kind, number)] = True
        return mask

    def push(self, token: int) -> bool:
        """Appends an allowed token; returns whether it completes a line."""
        if token == EOS:
            self.is_finished = True
            return False
        if not self._command:
            self._command = self.vocabulary.command(token) or ""
            return False
        kinds = self.vocabulary.arguments[self._command]
        number = self.vocabulary.number(kinds[len(self._numbers)], token)
        assert number is not None
        self._numbers.append(number)
        if len(self._numbers) < len(kinds):
            return False
        line = self.vocabulary.line(self._command, self._numbers)
        self._command, self._numbers = "", []
        self._complete(line)
        return True

    def _unused(self) -> list[int]:
        return [*self._fills, *self._plain, *([] if self._stack is None else [self._stack])]

    def _lines_left(self) -> int:
        """Returns how many lines may follow the present one."""
        return self.language.max_lines - len(self.lines) - 1

    def _may_begin(self, command: str) -> bool:
        if self._lines_left() < 0:
            return False
        pen, waiting = self._pen, len(self._unused())
        match command:
            case "Create":
                room = self._lines_left() >= self.language.MIN_LINES - 1 + waiting
                return pen is None and self._num_layers < self.language.max_layers and room
            case "Straight" | "Circle":
                return pen is not None and bool(self._ends(command))
            case "Fillcolor":
                return pen is not None and pen.is_closed
            case "Opacity":
                room = self._lines_left() >= waiting - 1
                return pen is None and bool(self._fills) and room
            case _:
                return pen is None and waiting > 1

    def _ends(self, command: str) -> list[Point]:
        """Returns the points that an edge may go to."""
        pen = self._pen
        assert pen is not None
        if pen.is_closed:
            return []
        points: list[Point] = []
        spare = self._lines_left() - 1 - len(self._unused())  # after the fill and the blends
        start, *passed = pen.vertices
        if spare >= 1:
            every = ((x, y) for x in range(self.language.grid) for y in range(self.language.grid))
            points = [point for point in every if point != start and point not in passed]
        turns_back = len(pen.edges) == 1 and pen.edges[0].is_straight and command == "Straight"
        if pen.edges and not turns_back and spare >= 0:
            points.append(start)
        return points

    def _options(self, kind: str) -> Sequence[int]:
        """Returns the numbers that the next argument may have."""
        pen, numbers = self._pen, self._numbers
        is_edge = self._command in ("Straight", "Circle")
        match kind:
            case "x" | "y" if not is_edge:
                return range(self.language.grid)
            case "x":
                return sorted({x for x, _ in self._ends(self._command)})
            case "y":
                return sorted(y for x, y in self._ends(self._command) if x == numbers[0])
            case "radius":
                return range(len(self.vocabulary.radii))
            case "direction":
                return self._directions()
            case "color":
                return range(len(self.language.palette))
            case "opacity":
                return range(len(self.language.opacities))
            case _ if pen is not None:
                return [len(self.lines) - 1]
            case _ if self._command == "Opacity":
                return self._fills
            case _ if not numbers:  # what lies below; a blend cannot lie above
                return self._unused() if self._stack is None else [self._stack]
            case _:
                return [line for line in (*self._fills, *self._plain) if line != numbers[0]]

    def _directions(self) -> Sequence[int]:
        """Returns directions of an arc: not back along the first edge."""
        assert self._pen is not None
        x, y, radius = self._numbers
        start, *passed = self._pen.vertices
        if (x, y) == start and len(passed) == 1 and not self._pen.edges[0].is_straight:
            first = self._pen.edges[0]
            again = Edge(*passed[0], self.vocabulary.radii[radius])
            if effective_radius(start, again) == effective_radius(start, first):
                return [0 if first.clockwise else 1]
        return [0, 1]

    def _complete(self, line: Line) -> None:
        number = len(self.lines)
        self.lines.append(line)
        match line:
            case Create(x, y):
                self._pen = _Pen(number, ((x, y),))
                self._num_layers += 1
            case Straight(x, y, _) | Circle(x, y, _, _, _):
                assert self._pen is not None
                edge = Edge(x, y)
                if isinstance(line, Circle):
                    edge = Edge(x, y, line.radius, line.clockwise)
                vertices, edges = (*self._pen.vertices, (x, y)), (*self._pen.edges, edge)
                self._pen = _Pen(number, vertices, edges)
            case Fillcolor():
                self._pen = None
                self._fills.append(number)
            case Opacity(_, layer):
                self._fills.remove(layer)
                self._plain.append(number)
            case Blend(_, below, above):
                for used in (below, above):
                    for layers in (self._fills, self._plain):
                        if used in layers:
                            layers.remove(used)
                self._stack = number
