"""Captions side by side: a figure, and a page for a browser."""

import base64
import hashlib
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files import atomic_write
from .evaluation import Example

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES = 6  # in the figure
THUMBNAIL = 192  # side in pixels
BLUE, GREY = "#0b5394", "#666666"
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Captions by highlight</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222 }}
article {{ display: grid; grid-template-columns: 13rem 1fr; gap: 1.5rem; padding: 1.2rem 0;
  border-top: 1px solid #ddd }}
img {{ width: 12rem; image-rendering: auto; border-radius: 4px }}
h2 {{ font-size: 1.05rem; margin: 0 0 .5rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }}
th {{ font-weight: 600; width: 12rem }}
mark {{ background: #fff2a8; padding: 0 .15em }}
details {{ color: #555; margin-top: .6rem }}
</style>
<h1>Captions by highlight</h1>
{cards}
</html>
"""


def captions_figure(examples: Sequence[Example]) -> "Figure":
    """Draws images with a caption for each highlight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.9 * len(examples)), layout="constrained")
    grid = figure.add_gridspec(len(examples), 2, width_ratios=[1, 5])
    for row, example in enumerate(examples):
        picture, words = figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])
        if example.picture is not None:
            picture.imshow(np.asarray(example.picture.convert("RGB")))
        picture.axis("off")
        words.axis("off")
        lines = [("without", example.plain, GREY)] if example.plain else []
        lines += [(", ".join(phrases), text, BLUE) for phrases, text in example.captions[:4]]
        words.set_title(textwrap.shorten(example.title, 80), loc="left", fontsize=9)
        for number, (phrases, text, colour) in enumerate(lines):
            y = 0.95 - number / max(len(lines), 4)
            shown: dict[str, Any] = {"transform": words.transAxes, "va": "top", "fontsize": 8.5}
            words.text(0, y, textwrap.shorten(phrases, 32), color=colour, weight="bold", **shown)
            words.text(0.3, y, textwrap.shorten(text or "(nothing)", 90), **shown)
    return figure


def sweep_figure(values: Mapping[str, float]) -> "Figure":
    """Draws how often captions have what is highlighted, by how much it is raised.

    Args:
        values: With `delta_<d>/recall` and `delta_<d>/any`.
    """
    from matplotlib.figure import Figure

    deltas = sorted(
        float(name.split("/")[0].removeprefix("delta_"))
        for name in values
        if name.startswith("delta_") and name.endswith("/recall")
    )
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, label in (
        ("recall", "the highlighted phrases"),
        ("any", "any of the image"),
    ):
        shares = [values[f"delta_{delta:g}/{number}"] for delta in deltas]
        axes.plot(deltas, shares, "o-", label=label)
    axes.set(xlabel="delta", ylabel="share in captions", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def thumbnail(picture: Image.Image | None) -> str:
    """Returns a small copy as a data address, "" for None."""
    if picture is None:
        return ""
    small = picture.convert("RGB")
    if max(small.size) < THUMBNAIL // 2:  # a digit of 8 x 8 pixels
        factor = THUMBNAIL // max(small.size)
        size = (small.width * factor, small.height * factor)
        small = small.resize(size, Image.Resampling.NEAREST)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_card(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the part of the gallery that shows one record of `CtrlCIC.predict_step`."""
    name = hashlib.sha256(record["id"].encode()).hexdigest()[:16]
    with atomic_write(folder / "cards" / f"{name}.html", "w") as file:
        file.write(card(record))


def card(record: Mapping[str, Any]) -> str:
    """Returns a record as HTML, all its texts escaped."""
    rows = [("without a highlight", record["caption"])] if record["caption"] else []
    rows += [("<mark>" + html.escape(" · ".join(given["phrases"])) + "</mark>", given["caption"])
             for given in record["highlighted"]]  # fmt: skip
    if record["reference"]:
        rows.append(("the document's own", record["reference"]))
    cells = "\n".join(
        f"<tr><th>{name}</th><td>{html.escape(text) or '(nothing)'}</td></tr>"
        for name, text in rows
    )
    titles = " / ".join(filter(None, (record["page_title"], record["section_title"])))
    image = f'<img src="{record["picture"]}" alt="">' if record["picture"] else "<span></span>"
    return (
        f"<article>{image}<div><h2>{html.escape(titles)}</h2>\n<table>{cells}</table>\n"
        f"<details><summary>section</summary>{html.escape(record['section_text'])}</details>"
        "</div></article>\n"
    )


def join_cards(run_dir: Path) -> None:
    """Joins the cards of a prediction to `figures/gallery.html`."""
    folder = run_dir / "predictions" / "cards"
    if not folder.is_dir():
        return
    cards = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.html"))]
    with atomic_write(run_dir / "figures" / "gallery.html", "w") as file:
        file.write(PAGE.format(cards="".join(cards)))
