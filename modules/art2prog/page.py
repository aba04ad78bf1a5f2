"""A web page of programs: the picture, the program line by line, its steps, its layers.

One static file without a request to anywhere, which its content security policy also forbids.
`page.html#2/5/1` shows the third program after its fifth line, without its first layer.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..svg import Arc, Document, Fill, Group, Shape, Stroke, Subpath, write_svg
from .export import paper
from .language import Language, Program, pointers
from .layers import Outline, Picture, document, execute, picture_of, subpath

LINE_WIDTH, PEN_RADIUS = 0.08, 0.16  # of an open outline, in cells


@dataclass(frozen=True)
class Shown:
    """A program on the page.

    Attributes:
        name: Of the picture.
        program: A checked program.
        png: The picture as PNG in base64.
        note: A line about it.
    """

    name: str
    program: Program
    png: str
    note: str = ""


def programs_page(shown: Sequence[Shown], language: Language, title: str) -> str:
    """Returns the page as HTML."""
    items = [
        {
            "steps": step_pictures(each.program, language),
            "layers": len(picture_of(each.program)),
        }
        for each in shown
    ]
    sections = [_section(number, each, language) for number, each in enumerate(shown)]
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE,
        sections="\n".join(sections),
        # A script element ends at the first "</".
        items=json.dumps(items).replace("</", "<\\/"),
        script=_SCRIPT,
    )


def step_pictures(program: Program, language: Language) -> list[str]:
    """Returns what is on the paper before the first line and after each line, as SVG.

    Layers that wait to be blended lie over each other; an outline that is still open is drawn as a
    line with a dot at the pen. Layers are named by their place in the finished picture.
    """
    results, place = execute(program), layer_places(program)
    used_by = {p: n for n, line in enumerate(program.lines) for p in pointers(line)}
    steps = []
    for number in range(-1, len(program)):
        children: list[Shape | Group] = []
        for line in range(number + 1):
            result = results[line]
            if used_by.get(line, len(program)) <= number:
                continue
            if isinstance(result, Outline):
                children += _pen(result, language)
            else:
                children.append(_group(result, place[line], language))
        art = document((), language)
        # Open outlines above all layers.
        children.sort(key=lambda child: isinstance(child, Shape))
        steps.append(write_svg(Document(art.view_box, (paper(language), *children))))
    return steps


def layer_places(program: Program) -> dict[int, list[int]]:
    """Returns for each line that makes a picture which layers of the finished one are in it."""
    lowest: dict[int, int] = {len(program) - 1: 1}
    results = execute(program)
    places = {}
    for number in reversed(range(len(program))):
        result = results[number]
        if isinstance(result, Outline):
            continue
        first = lowest[number]
        places[number] = [first + layer for layer in range(len(result))]
        for pointer in pointers(program.lines[number]):
            part = results[pointer]
            if not isinstance(part, Outline):
                lowest[pointer] = first
                first += len(part)
    return places


def _group(picture: Picture, places: Sequence[int], language: Language) -> Group:
    shapes = document(picture, language).children
    named = [replace(s, name=f"layer-{p}") for s, p in zip(shapes, places, strict=True)]
    return Group(tuple(named))


def _pen(outline: Outline, language: Language) -> list[Shape]:
    """Returns an open outline and the dot at its pen."""
    line = subpath(outline, language.margin, closed=False)
    x, y = (part + language.margin for part in outline.pen)
    right, left = x + PEN_RADIUS, x - PEN_RADIUS
    halves = [Arc(PEN_RADIUS, PEN_RADIUS, 0.0, False, True, end, y) for end in (left, right)]
    dot = Shape((Subpath(right, y, tuple(halves), True),), fill=Fill(), name="pen")
    if not outline.edges:
        return [dot]
    return [Shape((line,), stroke=Stroke(width=LINE_WIDTH, cap="round"), name="outline"), dot]


def _section(number: int, shown: Shown, language: Language) -> str:
    lines = "\n".join(
        f'<li data-step="{step}">{html.escape(language.format_line(line))}</li>'
        for step, line in enumerate(shown.program.lines, 1)
    )
    picture = picture_of(shown.program)
    boxes = "\n".join(
        f'<label><input type="checkbox" data-layer="{place}" checked>'
        f'<span class="swatch" style="background:{_css(language, layer.color)}"></span>'
        f" layer {place}{'' if place == 1 else f', {layer.mode}'}</label>"
        for place, layer in enumerate(picture, 1)
    )
    last = len(shown.program)
    return f"""<section id="program-{number}" data-number="{number}">
<h2>{html.escape(shown.name)}</h2>
<p class="note">{html.escape(shown.note)}</p>
<div class="row">
<figure><img alt="the picture" src="data:image/png;base64,{shown.png}">
<figcaption>the picture</figcaption></figure>
<figure><div class="canvas"></div>
<figcaption>after line <output>{last}</output> of {last}</figcaption>
<input type="range" min="0" max="{last}" value="{last}" aria-label="line"></figure>
<div class="text"><ol>
{lines}
</ol>
<div class="layers">
{boxes}
</div></div>
</div>
</section>"""


def _css(language: Language, color: int) -> str:
    red, green, blue = language.palette[color]
    return f"rgb({red},{green},{blue})"


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222; }
section { border-top: 1px solid #ccc; padding: 1rem 0; }
h2 { font-size: 1.1rem; margin: 0; } .note { color: #666; margin: 0 0 .6rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
figure { margin: 0; width: 18rem; } figcaption { color: #666; }
img, .canvas svg { width: 18rem; height: 18rem; display: block; border: 1px solid #ddd; }
img { image-rendering: pixelated; } input[type=range] { width: 100%; }
ol { font: 13px/1.5 ui-monospace, monospace; margin: 0 0 .8rem; padding-left: 2.6rem; }
li { cursor: pointer; padding: 0 .4rem; } li.done { color: #222; } li { color: #aaa; }
li.now { background: #fff3bf; } .layers label { display: block; }
.swatch { display: inline-block; width: .9rem; height: .9rem; vertical-align: -2px; }
"""

_SCRIPT = """
const items = JSON.parse(document.getElementById("items").textContent);
const [chosen, step, hidden] = location.hash.slice(1).split("/");
document.querySelectorAll("section").forEach((section, number) => {
  const item = items[number];
  const canvas = section.querySelector(".canvas");
  const slider = section.querySelector("input[type=range]");
  const boxes = section.querySelectorAll("[data-layer]");
  function draw() {
    const now = Number(slider.value);
    canvas.innerHTML = item.steps[now];
    section.querySelector("output").textContent = now;
    section.querySelectorAll("li").forEach((line) => {
      line.classList.toggle("done", Number(line.dataset.step) <= now);
      line.classList.toggle("now", Number(line.dataset.step) === now);
    });
    boxes.forEach((box) => {
      const layer = canvas.querySelector("#layer-" + box.dataset.layer);
      if (layer) layer.style.display = box.checked ? "" : "none";
    });
  }
  slider.addEventListener("input", draw);
  boxes.forEach((box) => box.addEventListener("change", draw));
  section.querySelectorAll("li").forEach((line) => line.addEventListener("click", () => {
    slider.value = line.dataset.step;
    draw();
  }));
  if (String(number) === chosen) {
    if (step) slider.value = step;
    (hidden || "").split(",").forEach((layer) => {
      boxes.forEach((box) => { if (box.dataset.layer === layer) box.click(); });
    });
    section.scrollIntoView();
  }
  draw();
});
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>Move the slider, or click on a line, to see the picture after it; switch layers on and off.</p>
{sections}
<script type="application/json" id="items">{items}</script>
<script>{script}</script>
</body>
</html>
"""


def page_item(record: dict[str, Any], language: Language, png: str, place: str) -> Shown:
    """Returns what a record of `Art2Prog.predict_step` shows.

    Args:
        record: As it stands in the manifest.
        language: Of the program.
        png: The picture as PNG in base64.
        place: File and line of the record, for messages.

    Raises:
        ValueError: The record holds no program of the language.
    """
    if not isinstance(record, dict) or not {"id", "lines"} <= record.keys():
        raise ValueError(f"{place}: expected a record with id and lines")
    program = language.from_json(record["lines"], place)
    note = f"{len(program)} lines"
    if isinstance(record.get("mse"), int | float):
        note += f", mean square error {record['mse']:.2g}"
    if record.get("expected") is not None:
        same = record["expected"] == language.format(program)
        note += ", the very program that drew it" if same else ", not the program that drew it"
    return Shown(str(record["id"]), program, png, note)
