"""The drawing language: written, read, refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import LANGUAGE, another_order
from tenfold.datamodules.programs import ProgramSampler
from tenfold.modules.art2prog.language import Language, ProgramError
from tenfold.modules.art2prog.vocabulary import EOS, PAD, Grammar, Vocabulary

RICH = Language(
    blend_modes=("normal", "multiply", "screen", "color-dodge"),
    opacities=(0.25, 0.5),
    max_layers=3,
    max_lines=33,
)
SAMPLER = ProgramSampler(RICH, layer_probs=[0.2, 0.4, 0.4], guards=False)
TEXT = """\
1 Create(1,1)
2 Straight(6,1, 1)
3 Straight(6,5, 2)      # the pen is at (6, 5)
4 Straight(1,1, 3)
5 Fillcolor(2, 4)

6 Create(2,3)
7 Straight(6,3, 6)
8 Straight(6,5, 7)
9 Circle(2,5,2,cw, 8)
10 Straight(2,3, 9)
11 Fillcolor(0, 10)
12 Multiply(5,11)
"""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_text_tokens_and_json_round_trip(seed):
    rng = np.random.default_rng(seed)
    program = another_order(SAMPLER.program(rng), rng)
    assert RICH.parse(RICH.format(program)) == program
    assert RICH.from_json(RICH.to_json(program)) == program
    vocabulary = Vocabulary(RICH)
    tokens, places = vocabulary.encode(program)
    assert vocabulary.decode(tokens) == program
    assert len(places) == len(tokens)
    assert places[-1].line == len(program)


def test_the_example_of_the_docstring_is_read_with_comments_and_without_numbers():
    program = Language().parse(TEXT)
    bare = "\n".join(line.split(maxsplit=1)[-1] for line in TEXT.splitlines() if line)
    assert Language().parse(bare) == program
    assert Language().to_json(program)[8] == ["Circle", 2, 5, 2, "cw", 7]
    assert Language().format(program).splitlines()[8] == "9 Circle(2,5,2,cw, 8)"


SQUARE = "Create(1,1)\nStraight(5,1, 1)\nStraight(5,5, 2)\nStraight(1,1, 3)\nFillcolor(1, 4)\n"
BAD = {
    "Squiggle(1,1)": "p.a2p:1: unknown command 'Squiggle': there are Create, Straight",
    "Create(1)": "p.a2p:1: Create takes 2 arguments (x, y), got 1",
    "Create(8,1)": "p.a2p:1: point (8, 1) is not on the grid, 0 to 7",
    "Create(1,a)": "p.a2p:1: y 'a' is no whole number",
    "draw a house": "p.a2p:1: 'draw a house' is no Command(argument, ...)",
    "2 Create(1,1)": "p.a2p:1: numbered 2, expected 1",
    "": "p.a2p: no line",
    "Create(1,1)\n\nStraight(2,2, 9)": "p.a2p:3: points to line 9, a later one or none",
    "Create(1,1)\nStraight(2,2, 2)": "p.a2p:2: points to itself, a cycle",
    "Create(1,1)\nStraight(2,2, 3)\nStraight(3,2, 2)": "p.a2p:2: points to line 3, a later one",
    "Create(1,1)\nStraight(1,1, 1)": "p.a2p:2: an edge from (1, 1) to itself has no length",
    "Create(1,1)\nCircle(3,1,9,cw, 1)": "p.a2p:2: radius 9, expected half 1 2 3 4",
    "Create(1,1)\nCircle(3,1,2,left, 1)": "p.a2p:2: direction 'left', expected cw or ccw",
    "Create(1,1)\nFillcolor(1, 1)": "p.a2p:2: line 1 has no edge to be filled",
    "Create(1,1)\nStraight(3,1, 1)": "p.a2p:2: this outline is never filled",
    "Create(1,1)\nStraight(3,1, 1)\n" + SQUARE.replace(", ", ", 1").replace("1", "1"): "p.a2p:",
    SQUARE + "Straight(3,3, 5)": "p.a2p:6: line 5 is no outline but a layer",
    SQUARE + "Fillcolor(1, 4)": "p.a2p:6: line 4 is used already by another line",
    SQUARE.replace("Fillcolor(1", "Fillcolor(8"): "p.a2p:5: colour 8 is not in the palette, 0 to 7",
    SQUARE + "Create(1,1)\nStraight(3,1, 6)\nCircle(1,1,half,cw, 7)\nFillcolor(0, 8)": (
        "p.a2p:5: this layer is never used"
    ),
    "Create(1,1)\n" * 41: "p.a2p: 41 lines, at most 40 are allowed",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_programs_get_one_line_with_its_number(text):
    with pytest.raises(ProgramError) as refused:
        LANGUAGE.parse(text, "p.a2p")
    assert str(refused.value).startswith(BAD[text])
    assert "\n" not in str(refused.value)


def test_bad_json_is_refused_with_its_line():
    good = LANGUAGE.to_json(LANGUAGE.parse(SQUARE))
    for rows, message in (
        ("text", "x: expected a list of lines, found str"),
        ([*good[:-1], 7], "x: line 5: 7 is no list of a command and its arguments"),
        ([*good[:-1], ["Fillcolor", 1.5, 3]], "x: line 5: color '1.5' is no whole number"),
    ):
        with pytest.raises(ProgramError, match=message.split(":")[1]) as refused:
            LANGUAGE.from_json(rows, "x")
        assert str(refused.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 1}, "language.grid: 1"),
        ({"radii": [2, 2]}, "language.radii"),
        ({"blend_modes": ["normal", "mix"]}, "'mix' is none of normal, multiply"),
        ({"blend_modes": ["multiply"]}, "the first must be normal"),
        ({"opacities": [1.0]}, "language.opacities"),
        ({"palette": [[1, 2, 300]]}, "language.palette"),
        ({"max_lines": 3}, "language: 2 layers of 3 lines"),
    ],
)
def test_a_language_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Language(**settings)


def test_a_language_is_rebuilt_from_its_settings():
    assert Language.of(RICH.settings()) == RICH


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 5, 9, 14, 33]), st.sampled_from([1, 2, 3]))
def test_whatever_the_mask_allows_ends_in_a_program(seed, max_lines, max_layers):
    """Random walks through allowed tokens: never stuck, never too long, always checked."""
    rng = np.random.default_rng(seed)
    language = Language(
        grid=int(rng.integers(2, 6)),
        radii=(1, 2),
        blend_modes=RICH.blend_modes,
        opacities=RICH.opacities,
        max_layers=max_layers,
        max_lines=max_lines,
    )
    grammar = Grammar(vocabulary := Vocabulary(language))
    tokens = []
    while not grammar.is_finished:
        allowed = grammar.allowed()
        assert allowed.any()
        assert grammar.place.slot < 6
        tokens.append(int(rng.choice(np.flatnonzero(allowed))))
        grammar.push(tokens[-1])
    assert len(tokens) <= vocabulary.max_tokens
    assert vocabulary.decode(tokens) == grammar.program
    assert grammar.allowed()[PAD]
    assert grammar.allowed().sum() == 1


def test_the_mask_allows_every_canonical_program():
    vocabulary = Vocabulary(RICH)
    for seed in range(50):
        tokens, places = vocabulary.encode(SAMPLER.program(np.random.default_rng(seed)))
        grammar = Grammar(vocabulary)
        for token, place in zip(tokens, places, strict=True):
            assert grammar.place == place
            assert grammar.allowed()[token]
            grammar.push(token)
        assert grammar.is_finished


def test_tokens_that_are_no_program_are_refused():
    vocabulary = Vocabulary(LANGUAGE)
    tokens, _ = vocabulary.encode(LANGUAGE.parse(SQUARE))
    for broken in (tokens[1:], tokens[:5] + tokens[6:], tokens[:8], [EOS]):
        with pytest.raises(ProgramError, match="tokens"):
            vocabulary.decode(broken)
