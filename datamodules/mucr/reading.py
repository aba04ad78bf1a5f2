"""Reads MuCR as it was released: two sets of keys, JSON lines with files or parquet with images.

2024: `caption_0`, `caption_1`, `link_id`, `causal_reason` (three). 2025: `cause`, `effect`, one
`causal_reason`, no links. `label` is the category, not an answer.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from ...modules.mucr.pair import CausalPair
from ..visual_questions.questions import read_entries
from .groups import Described, parse_links

log = logging.getLogger(__name__)

Version = Literal["auto", "2024", "2025"]
CAPTIONS = {"2024": ("caption_0", "caption_1"), "2025": ("cause", "effect")}
CATEGORIES = {"human": "person", "people": "person"}  # the figures' words for them
STYLES = {"photo": "photograph", "photos": "photograph", "comics": "comic"}
HUB = "hub:"
ANNOTATIONS, DESCRIPTIONS = "annotations.jsonl", "descriptions.jsonl"
ImageReader = Callable[[], tuple[Image.Image, Image.Image]]


class StoredPair:
    """A row of a file whose pictures are still on disk.

    Args:
        where: File and place, for messages.
        row: As it stands there, without its pictures.
        version: Whose keys it has.
        read_images: Reads its two pictures.
        descriptions: Of cause and effect; empty if there are none.

    Raises:
        ValueError: A key is missing, or the phrases are no choice.
    """

    def __init__(
        self,
        where: str,
        row: Mapping[str, Any],
        version: Version,
        read_images: ImageReader,
        descriptions: tuple[str, str] = ("", ""),
    ) -> None:
        self.where, self.read_images, self.descriptions = where, read_images, descriptions
        if version == "auto":
            version = "2024" if "caption_0" in row else "2025"
        first, second = CAPTIONS[version]
        self.captions = (_text(row, first, where), _text(row, second, where))
        self.id = str(_field(row, "id", where))
        self.links = parse_links(str(row.get("link_id") or ""))
        self.cue = _text(row, "cue", where)
        self.false_cues = tuple(_texts(row, "false_cue", where))
        self.references = tuple(_texts(row, "causal_reason", where))
        self.category = _normal(row, "label", CATEGORIES, where)
        self.style = _normal(row, "style", STYLES, where)
        phrases = [" ".join(phrase.lower().split()) for phrase in (self.cue, *self.false_cues)]
        if len(phrases) < 2 or "" in phrases or len(set(phrases)) != len(phrases):
            raise ValueError(
                f"{where}: cue {self.cue!r} and false_cue {list(self.false_cues)} are not several "
                "different phrases"
            )

    @property
    def described(self) -> Described:
        """What its group is found by."""
        return Described(self.id, self.links, self.captions, self.cue, self.category)

    def load(self) -> CausalPair:
        """Reads the pictures.

        Raises:
            ValueError: One of them cannot be read.
        """
        try:
            images = self.read_images()
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise ValueError(f"{self.where}: a picture cannot be read: {error}") from error
        return CausalPair(
            id=self.id,
            images=images,
            captions=self.captions,
            descriptions=self.descriptions,
            cue=self.cue,
            false_cues=self.false_cues,
            references=self.references,
            category=self.category,
            style=self.style,
        )


def read_pairs(
    root: str | Path, version: Version = "auto", strict: bool = True
) -> list[StoredPair]:
    """Reads the pairs of a folder or of the hub.

    Args:
        root: Folder with `annotations.jsonl` (or another .jsonl file) and the pictures beside it or
            in `images/`; or with .parquet files. `hub:OWNER/NAME` is a data set of the hub.
        version: Whose keys; "auto" looks.
        strict: Whether a bad row is an error; else it is left out, and how many were is a warning.

    Raises:
        ValueError: Nothing can be read, or with `strict` the first bad row.
    """
    found: list[StoredPair] = []
    errors: list[ValueError] = []
    for item in _rows(str(root), version):
        if isinstance(item, ValueError):
            if strict:
                raise item
            errors.append(item)
        else:
            found.append(item)
    if errors:
        log.warning("%s: left out %d pairs, the first: %s", root, len(errors), errors[0])
    seen: dict[str, str] = {}
    for pair in found:
        if pair.id in seen:
            raise ValueError(f"{pair.where}: the id {pair.id!r} is that of {seen[pair.id]} as well")
        seen[pair.id] = pair.where
    if not found:
        raise ValueError(f"{root}: not one pair that can be asked about")
    return found


def _rows(root: str, version: Version) -> Iterator[StoredPair | ValueError]:
    if root.startswith(HUB):
        yield from _dataset_rows(root, root.removeprefix(HUB), {}, version)
        return
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder} (with {ANNOTATIONS} and images, or .parquet files). "
            "Get MuCR: the root hub:Pinkygin/MuCR reads it from the hub; or make pairs: "
            f"tenfold scenes --format mucr --out {folder}"
        )
    tables = sorted(folder.rglob("*.parquet"))
    lines = folder / ANNOTATIONS
    if not lines.exists():
        others = sorted(set(folder.glob("*.jsonl")) - {folder / DESCRIPTIONS})
        if not tables and len(others) != 1:
            raise ValueError(
                f"{folder}: no {ANNOTATIONS}, no .parquet file and not one .jsonl file alone"
            )
        lines = others[0] if others else lines
    if lines.exists():
        yield from _line_rows(folder, lines, version)
    else:
        files = {"data_files": [str(path) for path in tables]}
        yield from _dataset_rows(str(folder), "parquet", files, version)


def _line_rows(folder: Path, lines: Path, version: Version) -> Iterator[StoredPair | ValueError]:
    described: dict[str, tuple[str, str]] = {}
    if (folder / DESCRIPTIONS).exists():
        for _, row in read_entries(folder / DESCRIPTIONS):
            if not isinstance(row, ValueError):
                described[str(row["id"])] = (row["description_0"], row["description_1"])
    for where, row in read_entries(lines):
        if isinstance(row, ValueError):
            yield row
            continue
        try:
            names = [_text(row, key, where) for key in ("image_0", "image_1")]
            paths = [_picture_path(folder, name, where) for name in names]
            texts = described.get(str(row.get("id")), ("", ""))
            yield StoredPair(where, row, version, _FileImages(paths), texts)
        except ValueError as error:
            yield error


def _dataset_rows(
    name: str, source: str, files: dict[str, Any], version: Version
) -> Iterator[StoredPair | ValueError]:
    """Rows of a data set of the hub or of parquet files, whose pictures stay in Arrow's files."""
    import datasets

    try:
        table = datasets.load_dataset(source, split="train", **files)
        for key in ("image_0", "image_1"):
            table = table.cast_column(key, datasets.Image(decode=False))
    except Exception as error:  # of the network, of Arrow, of the hub's client
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())[:300]}") from error
    plain = table.remove_columns(["image_0", "image_1"])
    for number, row in enumerate(plain):
        where = f"{name}:{number + 1}"
        try:
            yield StoredPair(where, row, version, _TableImages(table, number))
        except ValueError as error:
            yield error


class _FileImages:
    """Reads two files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __call__(self) -> tuple[Image.Image, Image.Image]:
        cause, effect = (Image.open(path).convert("RGB") for path in self.paths)
        return cause, effect


class _TableImages:
    """Reads the two pictures of a row of a table."""

    def __init__(self, table: Any, number: int) -> None:
        self.table, self.number = table, number

    def __call__(self) -> tuple[Image.Image, Image.Image]:
        row = self.table[self.number]
        stored = [row[key]["bytes"] for key in ("image_0", "image_1")]
        cause, effect = (Image.open(io.BytesIO(data)).convert("RGB") for data in stored)
        return cause, effect


def _picture_path(folder: Path, name: str, where: str) -> Path:
    paths = [folder / "images" / name, folder / name]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"{where}: there is no picture {paths[0]}")
    return path


def _field(row: Mapping[str, Any], key: str, where: str) -> Any:
    if row.get(key) is None:
        raise ValueError(f"{where}: no {key!r}; keys: {', '.join(row)}")
    return row[key]


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _field(row, key, where)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} is {value!r}, expected a text")
    return value.strip()


def _texts(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """One text or several."""
    value = _field(row, key, where)
    values = [value] if isinstance(value, str) else list(value)
    if not values or not all(isinstance(item, str) and item.strip() for item in values):
        raise ValueError(f"{where}: {key} is {value!r}, expected texts")
    return [item.strip() for item in values]


def _normal(row: Mapping[str, Any], key: str, words: Mapping[str, str], where: str) -> str:
    word = _text(row, key, where).lower()
    return words.get(word, word)
