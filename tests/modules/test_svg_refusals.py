"""What `parse_svg` refuses: hostile and broken files, in one line, in time, in little memory."""

import math
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.svg import Limits, SvgError, parse_svg, read_svg

XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def svg(content: str, attributes: str = 'viewBox="0 0 24 24"') -> str:
    return f"<svg {XMLNS} {attributes}>{content}</svg>"


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 9))
USES = "".join(
    f'<g id="a{i}">{f"""<use xlink:href="#a{i - 1}"/>""" * 10}</g>' for i in range(1, 12)
)
CHAIN = "".join(
    f'<g id="a{i}">{"<g>" * 9}<use href="#a{i - 1}"/>{"</g>" * 9}</g>' for i in range(1, 60)
)
PATH = '<path d="M0 0h1"/>'
HOSTILE = {
    "entity bomb": (
        f'<!DOCTYPE s [<!ENTITY e0 "ha">{BOMB}]>{svg("<title>&e8;</title>")}',
        "declares entities",
    ),
    "long entity": (
        f'<!DOCTYPE s [<!ENTITY a "{"a" * 100000}">]>{svg("<title>" + "&a;" * 9999 + "</title>")}',
        "declares entities",
    ),
    "local file": (
        f'<!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]>{svg("&a;")}',
        "declares entities",
    ),
    "use of itself": (svg('<g id="a"><use href="#a"/></g>'), "'#a' refers to itself"),
    "use in a circle": (
        svg('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>'),
        "refers to itself",
    ),
    "use bomb": (
        svg(f'<path id="a0" d="M0 0h1"/>{USES}'),
        "more than 2000 elements, `use` repeating",
    ),
    "deep use": (
        svg(f'<defs><path id="a0" d="M0 0h1"/>{CHAIN}</defs><use href="#a59"/>'),
        "64 deep and more",
    ),
    "remote use": (svg('<use href="https://example.com/a.svg#b"/>'), "links out of the file"),
    "remote image": (
        svg('<image xlink:href="http://example.com/a.png"/>'),
        "links out of the file",
    ),
    "remote style": (
        svg("<style>@import url(http://example.com/a.css);</style>"),
        "@import is not supported",
    ),
    "remote paint": (svg('<path d="M0 0h1" fill="url(http://example.com#a)"/>'), "fill: gradients"),
    "data link": (svg('<image href="data:image/png;base64,AAAA"/>'), "links out of the file"),
    "script": (svg("<script>alert(1)</script>"), "scripts"),
    "script in defs": (svg("<defs><script/></defs>"), "scripts"),
    "handler": (svg("", 'viewBox="0 0 1 1" onload="alert(1)"'), "onload>: scripts"),
    "script link": (svg('<a xlink:href=" javascript:alert(1)"/>'), "links out of the file"),
    "html": (
        svg('<foreignObject><b xmlns="http://www.w3.org/1999/xhtml"/></foreignObject>'),
        "foreign content",
    ),
    "huge number": (svg('<path d="M0 0L1e30 1"/>'), r"coordinates beyond 1e\+06"),
    "infinite number": (svg('<path d="M0 0L1e999 1"/>'), r"coordinates beyond 1e\+06"),
    "huge transform": (
        svg('<path transform="scale(1e300)" d="M0 0L1e30 1"/>'),
        "coordinates beyond",
    ),
    "infinite transform": (
        svg(f'<g transform="scale(1e999)">{PATH}</g>'),
        "transform 'scale.1e999.' is too large",
    ),
    "huge stroke": (
        svg('<path d="M0 0h1" stroke="red" stroke-width="1e30"/>'),
        "coordinates beyond",
    ),
    "huge view box": (svg("", 'viewBox="0 0 1e300 1e300"'), "viewBox .* is too large"),
    "deep nesting": (svg("<g>" * 100000 + "</g>" * 100000), "64 deep and more"),
    "many elements": (svg("<g/>" * 200000), "more than 2000 elements"),
    "giant path": (svg(f'<path d="M0 0{"L1 1" * 200000}"/>'), "more than 50000 numbers"),
    "giant arcs": (svg(f'<path d="M0 0{"a1 1 0 0 1 1 1" * 60000}"/>'), "more than 50000 numbers"),
    "giant file": (
        svg(f'<path d="M0 0{"L1 1" * 2000000}"/>'),
        "more than the 1048576 that are read",
    ),
    "digits": (svg(f'<polygon points="{"1" * 900000}x"/>'), "is no list of numbers"),
    "spaces": (svg(f'<rect width="1{" " * 900000}x"/>'), "is no length"),
    "transforms": (
        svg(f'<path transform="{"rotate(1)" * 90000}" d="M0 0h1"/>'),
        "up to 100 transforms",
    ),
    "rules": (svg(f"<style>{'.a{fill:red}' * 50000}</style>"), "more style than is read"),
    "brackets": (
        svg(f'<path style="fill:{"(" * 50000}" d="M0 0h1"/>'),
        "brackets inside each other, too deep",
    ),
    "long colour": (svg(f'<path fill="rgb({"1," * 300000})" d="M0 0h1"/>'), "is no colour"),
}
BROKEN = {
    "empty": ("", "is no well-formed XML"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is no well-formed XML"),
    "cut off": (svg(PATH)[:-20], "is no well-formed XML"),
    "encoding": (b'<?xml version="1.0" encoding="klingon"?><svg/>', "is no well-formed XML"),
    "other root": ("<html/>", "the root element is <html>, not <svg>"),
    "no size": (svg("", ""), "neither a viewBox nor"),
    "relative size": (svg("", 'width="100%" height="100%"'), "neither a viewBox nor"),
    "empty box": (svg("", 'viewBox="0 0 0 9"'), "no box of positive size"),
    "text for a box": (svg("", 'viewBox="a b"'), "viewBox 'a b' is no list of numbers"),
    "a word in a path": (
        svg('<path id="x" d="M0 0 hello"/>'),
        "<path> 'x': path data h 'e' is no list of numbers",
    ),
    "a path without M": (svg('<path d="L1 1"/>'), "first command is no M"),
    "too few numbers": (svg('<path d="M0 0C1 1 2 2"/>'), "path data C1 1 2 2: 4 numbers"),
    "no number": (svg('<path d="M0 0H"/>'), "path data H: 0 numbers"),
    "half an arc": (svg('<path d="M0 0a1 1 0 0 1 2"/>'), "not what its commands need"),
    "a flag that is none": (svg('<path d="M0 0a1 1 0 2 1 2 2"/>'), "not what its commands need"),
    "odd points": (svg('<polygon points="1 2 3"/>'), "3 numbers are no pairs"),
    "unit": (svg('<rect width="2em" height="1"/>'), "'2em' is no length in px"),
    "transform": (svg(f'<g transform="warp(3)">{PATH}</g>'), "is no list of"),
    "transform numbers": (
        svg(f'<g transform="scale()">{PATH}</g>'),
        "transform scale.*: 0 numbers",
    ),
    "colour": (svg('<path d="M0 0h1" fill="reddish"/>'), "fill: 'reddish' is no colour"),
    "opacity": (svg('<path d="M0 0h1" opacity="much"/>'), "opacity: 'much' is no number"),
    "cap": (svg('<path d="M0 0h1" stroke="red" stroke-linecap="flat"/>'), "'flat' is none of butt"),
    "mode": (svg('<path d="M0 0h1" style="mix-blend-mode:hue"/>'), "'hue' is none of normal"),
    "use of nothing": (svg('<use href="#a"/>'), "nothing in the file has the id of '#a'"),
    "gradient": (svg('<path d="M0 0h1" fill="url(#g)"/>'), "gradients and patterns are not"),
    "mask": (svg(f'<g mask="url(#m)">{PATH}</g>'), "mask is not supported"),
    "filter": (svg(f'<g style="filter:blur(3px)">{PATH}</g>'), "filter is not supported"),
    "dashes": (
        svg('<path d="M0 0h1" stroke="red" stroke-dasharray="2"/>'),
        "stroke-dasharray is not",
    ),
    "text": (svg("<text>x</text>"), "<text> is not supported"),
    "image": (svg('<image href="#a"/>'), "<image> is not supported"),
    "nested": (svg("<svg/>"), "<svg> is not supported"),
    "animation": (svg('<path d="M0 0h1"><animate attributeName="d"/></path>'), "<animate> is not"),
    "combinator": (svg(f"<style>g path{{fill:red}}</style>{PATH}"), "selector 'g path' is not"),
    "at rule": (svg(f"<style>@media print{{a{{fill:red}}}}</style>{PATH}"), "@media is not"),
}


@pytest.mark.parametrize("name", [*HOSTILE, *BROKEN])
def test_one_line_names_the_file_and_the_reason(name):
    text, reason = (HOSTILE | BROKEN)[name]
    with pytest.raises(SvgError, match=reason) as refusal:
        parse_svg(text, name=name)
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert len(message) < 400


MEASURE = """
    import resource, sys, time, pathlib
    from tenfold.modules.svg import SvgError, read_svg
    read_svg(sys.argv[1])  # imports what it needs
    for path in sys.argv[2:]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        try:
            read_svg(path)
        except SvgError as error:
            assert str(error).startswith(path), error
        else:
            raise AssertionError(path)
        seconds = time.process_time() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(seconds, grown)
"""


def test_hostile_files_take_under_a_second_and_200_megabytes(tmp_path):
    good = tmp_path / "good.svg"
    good.write_text(svg('<style>.a{fill:red}</style><path class="a" d="M0 0h1"/>'))
    files = []
    for number, (text, _) in enumerate(HOSTILE.values()):
        files.append(tmp_path / f"{number}.svg")
        files[-1].write_text(text)
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), good, *files]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not finished.returncode, finished.stderr[-2000:]
    lines = finished.stdout.splitlines()
    assert len(lines) == len(HOSTILE)
    for name, line in zip(HOSTILE, lines, strict=True):
        seconds, megabytes = map(float, line.split())
        assert seconds < 1, name
        assert megabytes < 200, name


def test_files_at_the_limits_are_read_in_time():
    content = "".join(
        f'<g class="a b c"><path d="M0 0{"c1 1 2 2 3 3" * 8}" fill="rgb({i % 255},0,0)"'
        ' style="stroke-linecap:round;stroke-width:2px"/></g>'
        for i in range(990)
    )
    rules = "".join(f".a{i}{{fill:red}}" for i in range(290))
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    document = parse_svg(svg(f"<style>{rules}</style>{content}"))
    assert len(document.children) == 990
    assert time.process_time() - start < 3
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_limits_can_be_set():
    many = PATH * 30
    with pytest.raises(SvgError, match="more than 20 elements"):
        parse_svg(svg(many), limits=Limits(elements=20))
    assert len(parse_svg(svg(many)).children) == 30


def test_a_broken_file_is_named(tmp_path: Path):
    path = tmp_path / "icon.svg"
    path.write_text(svg(PATH)[:-3])
    with pytest.raises(SvgError, match=r"icon\.svg: is no well-formed XML"):
        read_svg(path)
    path.write_bytes(b" " * (1 << 21))
    with pytest.raises(SvgError, match=r"icon\.svg: 2097152 bytes, more than"):
        read_svg(path)


@given(st.text(max_size=60) | st.text("MmLlCcZzAaQqHhVvSsTt0123456789.,-+eE \n", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_path_data_is_read_or_refused(data):
    escaped = data.replace("&", "").replace("<", "").replace('"', "")
    try:
        document = parse_svg(svg(f'<path d="{escaped}"/>'))
    except SvgError:
        return
    for shape in document.shapes():
        for subpath in shape.subpaths:
            for segment in subpath.segments:
                assert all(map(math.isfinite, segment))
