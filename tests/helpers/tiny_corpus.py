"""Pages with drawn pictures and made sentences: enough for every stage of RealSyn's pipeline."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]
SHAPES = ["circle", "square", "triangle", "stripe"]
VERBS = ["covers", "touches", "follows", "crosses", "shows", "hides", "meets", "frames"]
PLACES = ["corner", "border", "middle", "ground", "edge", "picture", "page", "margin"]
WORDS = ["small", "large", "bright", "dark", "soft", "narrow", "wide", "plain"]


def draw(colour: str, shape: str, shift: int, side: int = 128) -> Image.Image:
    """A shape in a colour on grey."""
    image = Image.new("RGB", (side, side), (40 + shift % 90, 90, 110))
    pen = ImageDraw.Draw(image)
    box = (10 + shift % 40, 12 + shift % 23, 70 + shift % 40, 84 + shift % 23)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=colour)
    else:
        pen.rectangle((0, box[1], side, box[1] + 12), fill=colour)
    return image


def sentence(random_: random.Random, colour: str, shape: str) -> str:
    """A sentence about it that passes the filters."""
    return (
        f"The {random_.choice(WORDS)} {colour} {shape} {random_.choice(VERBS)} the "
        f"{random_.choice(WORDS)} {random_.choice(PLACES)} and {random_.choice(VERBS)} a "
        f"{random_.choice(COLOURS)} {random_.choice(SHAPES)} near the {random_.choice(PLACES)}."
    )


def write_pages(folder: Path, number: int = 24, seed: int = 0, num_pictures: int = 3) -> Path:
    """HTML pages of some pictures each, with sentences around them and trouble in some."""
    random_ = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for page in range(number):
        parts = [f"<h1>Page {page}</h1>"]
        for place in range(num_pictures):
            colour, shape = random_.choice(COLOURS), random_.choice(SHAPES)
            name = f"{colour}-{shape}-{page}-{place}.png"
            draw(colour, shape, random_.randrange(200)).save(images / name)
            parts.append(f"<p>{sentence(random_, colour, shape)}</p>")
            parts.append(f'<img src="images/{name}" alt="a {colour} {shape}">')
            parts.append(f"<p>{sentence(random_, colour, shape)} Short one.</p>")
        if page % 4 == 0:
            parts.append("<p>See https://example.org for the small picture it shows.</p>")
            parts.append('<img src="images/tiny.png"><img src="images/broken.png">')
            parts.append('<img src="images/none.png"><img src="http://example.org/a.png">')
        if page % 5 == 0:
            parts.append('<img src="images/common.png" alt="a red circle">')
        (folder / f"page{page:03d}.html").write_text("".join(parts), encoding="utf-8")
    draw("red", "circle", 3, 64).save(images / "tiny.png")
    draw("red", "circle", 3).save(images / "common.png")
    whole = (images / "common.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder
