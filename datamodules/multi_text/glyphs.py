"""Pairs that every machine has: letters and signs of matplotlib's fonts, and their names.

Unicode names are sentences of a kind ("latin small letter a with grave"): what is learned from some
letters can be tried on letters never seen. Drawn on the user's machine; nothing is shipped.
"""

import hashlib
import io
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from ...modules.files import atomic_folder

GLYPHS = "glyphs"  # as a root

SIDE = 32  # of an image, in pixels
MARGIN = 2
VERSION = 1  # of the drawing
SPLITS = {0: "held_out", 1: "val"}  # of ten parts; the others train
ROW_GROUP = 256
MIN_CLASS_SIZE = 40  # code points

STYLES = {
    "DejaVuSans": "plain sans-serif type",
    "DejaVuSans-Bold": "bold sans-serif type",
    "DejaVuSerif": "plain serif type",
    "DejaVuSerif-Bold": "bold serif type",
    "DejaVuSerif-Italic": "italic serif type",
    "DejaVuSansMono": "plain typewriter type",
}
CATEGORIES = {
    "Lu": "capital letter",
    "Ll": "small letter",
    "Lm": "modifier",
    "Lo": "letter",
    "Nd": "digit",
    "Nl": "number",
    "No": "number",
    "Pd": "dash",
    "Ps": "opening bracket",
    "Pe": "closing bracket",
    "Po": "punctuation mark",
    "Sm": "mathematical sign",
    "Sc": "currency sign",
    "So": "sign",
}
KINDS = {
    "ARROW": "arrow",
    "BRAILLE PATTERN": "braille pattern",
    "BOX DRAWINGS": "box drawing",
    "TRIANGLE": "triangle",
    "CIRCLED": "circled sign",
}


def prepare_glyphs(cache: Path) -> Path:
    """Draws the pairs unless they are there; takes some 5 s at the first time.

    Args:
        cache: Where the folder is made. Its name tells the fonts and Python's version of Unicode.

    Returns:
        A folder with `pairs`, `val` and `held_out`: Parquet with the columns id, image (PNG), texts
        (three, and a fourth fused from them by a template), caption (the third text, which no other
        image has), document (the code point) and class (null for rare ones). Code points are
        divided 8 : 1 : 1, all styles of one together.
    """
    folder = _fonts()
    key = [VERSION, unicodedata.unidata_version, *(_digest(folder / f"{n}.ttf") for n in STYLES)]
    root = cache / f"glyphs-{hashlib.sha256(str(key).encode()).hexdigest()[:12]}"
    if root.exists():
        return root
    rows: dict[str, list[dict[str, Any]]] = {"pairs": [], "val": [], "held_out": []}
    for row in _draw(folder):
        rows[SPLITS.get(zlib.crc32(row["document"].encode()) % 10, "pairs")].append(row)
    letters = {row["document"]: row["class"] for part in rows.values() for row in part}
    sizes = Counter(letters.values())
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.binary()),
            ("texts", pa.list_(pa.string())),
            ("caption", pa.string()),
            ("document", pa.string()),
            ("class", pa.string()),
        ]
    )
    with atomic_folder(root) as temporary:
        for split, part in rows.items():
            part.sort(key=lambda row: zlib.crc32(row["id"].encode()))  # styles and scripts mixed
            for row in part:
                if sizes[row["class"]] < MIN_CLASS_SIZE:
                    row["class"] = None
            (temporary / split).mkdir()
            pq.write_table(
                pa.Table.from_pylist(part, schema),
                temporary / split / "part-00000.parquet",
                row_group_size=ROW_GROUP,
            )
    return root


def describe(letter: str, style: str) -> tuple[list[str], str]:
    """Returns the texts of a letter or sign, and its class.

    Args:
        letter: One code point with a Unicode name.
        style: What type it is set in.
    """
    name = unicodedata.name(letter)
    category = CATEGORIES[unicodedata.category(letter)]
    kind = next((kind for word, kind in KINDS.items() if word in name), None)
    script = name.split()[0].lower()
    is_letter = category.endswith("letter")
    class_name = f"{script} {category}" if is_letter else kind or category
    general = f"a {category} of the {script} script" if is_letter else f"a {class_name}"
    lower = name.lower()
    return [
        lower,
        f"{general}, set in {style}",
        f"{lower} in {style}",
        f"a picture of {general}: {lower}, in {style}",
    ], class_name


def _draw(folder: Path) -> Iterator[dict[str, Any]]:
    from matplotlib.ft2font import FT2Font

    for file, style in STYLES.items():
        font = ImageFont.truetype(folder / f"{file}.ttf", 64)
        for code in sorted(FT2Font(str(folder / f"{file}.ttf")).get_charmap()):
            letter = chr(code)
            if unicodedata.category(letter) not in CATEGORIES or not unicodedata.name(letter, ""):
                continue
            image = _picture(letter, font)
            if image is None:
                continue
            texts, class_name = describe(letter, style)
            yield {
                "id": f"{code:05X}-{file}",
                "image": image,
                "texts": texts,
                "caption": texts[2],
                "document": f"U+{code:04X}",
                "class": class_name,
            }


def _picture(letter: str, font: ImageFont.FreeTypeFont) -> bytes | None:
    """A letter in black on white, as large as fits; None for one without ink."""
    left, top, right, bottom = map(int, font.getbbox(letter))
    side = max(right - left, bottom - top)
    if side < 1 or side > 400:
        return None
    # All of one size, but for those that would not fit: a dot stays small beside a letter.
    scale = (SIDE - 2 * MARGIN) / max(side, 66)
    large = Image.new("L", (right - left, bottom - top), 255)
    ImageDraw.Draw(large).text((-left, -top), letter, fill=0, font=font)
    size = [max(1, round(length * scale)) for length in large.size]
    small = large.resize((size[0], size[1]), Image.Resampling.BOX)
    image = Image.new("L", (SIDE, SIDE), 255)
    image.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    if image.getextrema()[0] == 255:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _fonts() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
