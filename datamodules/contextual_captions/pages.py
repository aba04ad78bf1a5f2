"""Pages with sections and captioned figures: what all readers give, and its JSON lines.

A line is `{"page_title", "url", "group", "split", "sections": [{"title", "text", "images":
[{"path", "caption", "alt", "credit"}]}]}`; only titles, texts, paths and captions must be there.
"""

import gzip
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...modules.descriptions import Rebuildable
from ...modules.files import atomic_write

CREDIT_WORDS = r"(?:image\s+|photo\s+)?(?:credit|source|modification of|courtesy)"
CREDIT = re.compile(rf"\s*\({CREDIT_WORDS}\b.*\)\s*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class PageFigure:
    """A captioned image of a page.

    Args:
        path: Of its file, as the source opens it.
        caption: What is written under it.
        alt: Its description for people who cannot see it.
        credit: Whom it is from.
        is_sample: Whether a caption is to be written for it; else it is context for others.
    """

    path: str
    caption: str
    alt: str = ""
    credit: str = ""
    is_sample: bool = True


@dataclass(frozen=True)
class PageSection:
    """A section of a page, without the sections inside it."""

    title: str
    text: str
    figures: tuple[PageFigure, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        name: Unique in its source.
        title: Of the page.
        sections: In their order.
        url: Address, or "".
        group: What must not be split between training and test; "" is the page itself.
        split: "train", "val" or "test" where the source decides; else "".
    """

    name: str
    title: str
    sections: tuple[PageSection, ...] = field(default=())
    url: str = ""
    group: str = ""
    split: str = ""


class PageSource(Rebuildable, ABC):
    """Reads pages of some format."""

    @abstractmethod
    def pages(self) -> Iterator[Page | ValueError]:
        """Yields pages, and what is wrong in place of those that cannot be read."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Returns the files that pages come from."""

    @abstractmethod
    def image_file(self, path: str) -> Path:
        """Returns the file of a figure."""

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, and names, sizes and times of the files."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
        settings = json.loads(json.dumps(self.__getstate__(), default=str))
        return {"source": type(self).__name__, **settings, "files": digest}

    def open_image(self, path: str) -> Image.Image:
        """Opens a figure.

        Raises:
            ValueError: It cannot be read.
        """
        file = self.image_file(path)
        try:
            with Image.open(file) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {file} cannot be read: {error}") from error


class JsonPages(PageSource):
    """Pages in JSON lines, see above; as `tenfold pages` writes them.

    Args:
        path: The file, `.jsonl` or `.jsonl.gz`, or a folder with `pages.jsonl`. Image paths are
            relative to its folder.

    Raises:
        ValueError: There is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _existing(path, ("pages.jsonl", "pages.jsonl.gz"))

    def files(self) -> list[Path]:
        """See `PageSource`."""
        return [_existing(self.path, ("pages.jsonl", "pages.jsonl.gz"))]

    def image_file(self, path: str) -> Path:
        """See `PageSource`."""
        return self.files()[0].parent / path

    def pages(self) -> Iterator[Page | ValueError]:
        """See `PageSource`."""
        (path,) = self.files()
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield page_of_json(line, f"{path}:{number}", name=str(number))


def _existing(path: str, names: Iterable[str]) -> Path:
    given = Path(path).expanduser()
    candidates = [given, *(given / name for name in names)]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f"path: there is no file {given}, nor {' or '.join(names)} in it")
    return found


def page_of_json(line: bytes, where: str, name: str) -> Page | ValueError:
    """Reads a line; returns what is wrong with it if it is no page."""
    try:
        found = json.loads(line)
        sections = tuple(
            PageSection(
                _text(section, "title"),
                _text(section, "text"),
                tuple(_figure(image) for image in section.get("images", [])),
            )
            for section in found["sections"]
        )
        return Page(
            name,
            _text(found, "page_title"),
            sections,
            *(str(found.get(key) or "") for key in ("url", "group", "split")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        return ValueError(f"{where}: expected a page with page_title and sections: {said}")


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise TypeError(f"{key!r} is no text but {value!r}")
    return value


def _figure(entry: Mapping[str, Any]) -> PageFigure:
    others = {key: str(entry.get(key) or "") for key in ("alt", "credit")}
    return PageFigure(
        _text(entry, "path"),
        _text(entry, "caption"),
        **others,
        is_sample=bool(entry.get("is_sample", True)),
    )


def json_of_page(page: Page) -> dict[str, Any]:
    """Returns a page as its JSON object."""
    found: dict[str, Any] = {"page_title": page.title}
    found |= {key: value for key in ("url", "group", "split") if (value := getattr(page, key))}
    found["sections"] = [
        {
            "title": section.title,
            "text": section.text,
            "images": [
                {key: value for key, value in vars(figure).items() if value not in ("", True)}
                for figure in section.figures
            ],
        }
        for section in page.sections
    ]
    return found


def write_pages(pages: Iterable[Page], path: Path) -> int:
    """Writes pages as JSON lines; returns how many."""
    number = 0
    with atomic_write(path, "w") as file:
        for page in pages:
            file.write(json.dumps(json_of_page(page), ensure_ascii=False) + "\n")
            number += 1
    return number


def split_credit(caption: str) -> tuple[str, str]:
    """Splits "(credit: ...)" off a caption's end."""
    found = CREDIT.search(caption)
    if found is None:
        return caption.strip(), ""
    return caption[: found.start()].strip(), found[0].strip()


def squeeze(text: str) -> str:
    """Returns a text with single blanks."""
    return " ".join(text.split())
