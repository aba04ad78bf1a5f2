"""Figures of HTML pages: Sphinx, DocBook, MediaWiki, or any page that has them.

A page is read from top to bottom. A heading begins a section; text and figures belong to the last
one. Figures are `<figure>` with `<figcaption>`, and blocks of the class figure or thumb with
something of the class caption or title.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .pages import Page, PageFigure, PageSection, PageSource, split_credit, squeeze

HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
TEXTS = {"p", "li", "dd", "dt", "blockquote"}
SKIPPED = {"script", "style", "nav", "header", "footer", "table", "form", "pre", "math", "svg"}
CAPTION_CLASSES = ("caption", "title", "thumbcaption", "caption-text", "wp-caption-text")
FIGURE_CLASSES = ("figure", "thumb", "informalfigure", "wp-caption")
NUMBER = re.compile(r"^\s*(?:figure|fig\.?|abb\.?)\s*[A-Z]?[\d.\-]+\s*[.:\u2013-]?\s*", re.I)
RASTER = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


class HtmlPages(PageSource):
    """HTML files of a folder and below, or a single one.

    Args:
        path: The folder or file.
        pattern: Which files of the folder.

    Raises:
        ValueError: There is no such folder or file; lxml is missing.
    """

    def __init__(self, path: str, pattern: str = "*.html") -> None:
        self.path, self.pattern = path, pattern
        if not Path(path).expanduser().exists():
            raise ValueError(f"path: there is no folder or file {path}")
        _parser()

    def files(self) -> list[Path]:
        """See `PageSource`."""
        root = Path(self.path).expanduser()
        return [root] if root.is_file() else sorted(root.rglob(self.pattern))

    def image_file(self, path: str) -> Path:
        """See `PageSource`."""
        return self._root / path

    @property
    def _root(self) -> Path:
        root = Path(self.path).expanduser()
        return root.parent if root.is_file() else root

    def pages(self) -> Iterator[Page | ValueError]:
        """See `PageSource`."""
        for path in self.files():
            try:
                yield self._page(path)
            except ValueError as error:
                yield error

    def _page(self, path: Path) -> Page:
        name = path.relative_to(self._root).as_posix()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        title, sections = read_html(data, str(path))
        folder = path.relative_to(self._root).parent
        placed = tuple(
            PageSection(
                section.title,
                section.text,
                tuple(
                    PageFigure(_normal(folder / f.path), f.caption, f.alt, f.credit)
                    for f in section.figures
                ),
            )
            for section in sections
        )
        return Page(name, title, placed, url=name)


def read_html(data: bytes, where: str = "page") -> tuple[str, list[PageSection]]:
    """Returns title and sections of a page; paths of figures are as the page has them.

    Args:
        data: The file.
        where: What it is called in errors.

    Raises:
        ValueError: There is nothing that could be parsed.
    """
    parser, error_class = _parser()
    head = data[:2048].lower()
    encoding = None if b"charset" in head or b"<?xml" in head else "utf-8"
    try:
        from lxml import html

        root = html.document_fromstring(data, parser=parser(encoding=encoding))
    except (error_class, ValueError) as error:
        raise ValueError(f"{where}: no HTML: {error}") from error
    reader = _Reader()
    reader.read(root)
    reader.close_section()
    found = root.find(".//title")
    headings = (section.title for section in reader.sections)
    title = squeeze(found.text_content()) if found is not None else ""
    return title or next(filter(None, headings), ""), reader.sections


class _Reader:
    """Walks through the elements of a page in their order."""

    def __init__(self) -> None:
        self.sections: list[PageSection] = []
        self._title = ""
        self._texts: list[str] = []
        self._figures: list[PageFigure] = []

    def close_section(self) -> None:
        if self._title or self._texts or self._figures:
            text = squeeze(" ".join(self._texts))
            self.sections.append(PageSection(self._title, text, tuple(self._figures)))
        self._title, self._texts, self._figures = "", [], []

    def read(self, root: Any) -> None:
        # A stack and not a recursion: pages may be nested deeper than Python.
        stack = [root]
        while stack:
            element = stack.pop()
            if not isinstance(element.tag, str) or element.tag in SKIPPED:
                continue
            if element.tag in HEADINGS:
                self.close_section()
                self._title = squeeze(_plain_text(element)).rstrip("\u00b6#").strip()
            elif figure := _figure_of(element):
                self._figures.append(figure)
            elif element.tag in TEXTS and not _holds_blocks(element):
                self._texts.append(_plain_text(element))
            else:
                stack.extend(reversed(element))


def _holds_blocks(element: Any) -> bool:
    """Whether texts, headings or figures lie inside, which are then read by themselves."""
    return any(
        child.tag in TEXTS | HEADINGS or child.tag in ("figure", "div", "ul", "ol")
        for child in element.iterdescendants()
        if isinstance(child.tag, str)
    )


def _plain_text(element: Any) -> str:
    texts = element.xpath(".//text()[not(ancestor::script or ancestor::style)]")
    return squeeze("".join(texts))


def _figure_of(element: Any) -> PageFigure | None:
    classes = set((element.get("class") or "").split())
    if element.tag != "figure" and not (element.tag == "div" and classes & set(FIGURE_CLASSES)):
        return None
    images = [image for image in element.iter("img", "object") if _path_of(image) is not None]
    caption = _caption_of(element)
    if not images or not caption:
        return None
    path = _path_of(images[0])
    assert path is not None
    text, credit = split_credit(caption)
    alt = squeeze(images[0].get("alt") or "")
    return PageFigure(path, text, "" if alt in (text, path) else alt, credit)


def _caption_of(element: Any) -> str:
    for child in element.iterdescendants():
        if not isinstance(child.tag, str):
            continue
        classes = (child.get("class") or "").split()
        if child.tag == "figcaption" or any(name in CAPTION_CLASSES for name in classes):
            text = _plain_text(child).rstrip("\u00b6").strip()
            return NUMBER.sub("", text)
    return ""


def _path_of(image: Any) -> str | None:
    """Path of an image file beside the page; None for what lies elsewhere."""
    address = urlsplit((image.get("src") or image.get("data") or "").strip())
    path = unquote(address.path)
    if address.scheme or address.netloc or Path(path).suffix.lower() not in RASTER:
        return None
    return path


def _normal(path: Path) -> str:
    """Resolves `..` without looking at the disk; what would leave the root stays as it is."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _parser() -> tuple[Any, type[Exception]]:
    try:
        from lxml import etree, html
    except ImportError as error:
        raise ValueError("HtmlPages: lxml is missing: pip install 'tenfold[captions]'") from error
    error_class: type[Exception] = etree.LxmlError
    return html.HTMLParser, error_class
