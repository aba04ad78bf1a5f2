"""Figures of OpenStax books: CNXML modules as their repositories have them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .pages import Page, PageFigure, PageSection, PageSource, split_credit, squeeze

CNXML = "{http://cnx.rice.edu/cnxml}"
SKIPPED = {"exercise", "table", "media", "glossary", "metadata", "label"}
TEXTS = {"para", "item"}


class CnxmlPages(PageSource):
    """Modules of a book: `modules/m*/index.cnxml`, images in `media/` beside `modules/`.

    Args:
        path: The book's repository.

    Raises:
        ValueError: There are no modules; lxml is missing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not self.files():
            raise ValueError(f"path: there is no modules/*/index.cnxml in {path}")
        _parse(b"<document/>", "")

    def files(self) -> list[Path]:
        """See `PageSource`."""
        return sorted(Path(self.path).expanduser().glob("modules/*/index.cnxml"))

    def image_file(self, path: str) -> Path:
        """See `PageSource`."""
        return Path(self.path).expanduser() / path

    def pages(self) -> Iterator[Page | ValueError]:
        """See `PageSource`."""
        for path in self.files():
            try:
                yield read_cnxml(path.read_bytes(), path.parent.name, str(path))
            except (ValueError, OSError) as error:
                yield ValueError(str(error))


def read_cnxml(data: bytes, name: str, where: str = "module") -> Page:
    """Reads a module; paths of figures are relative to the repository.

    Args:
        data: The file.
        name: Of the module, such as m46047.
        where: What it is called in errors.

    Raises:
        ValueError: It is no XML, or no module.
    """
    root = _parse(data, where)
    if root.tag != f"{CNXML}document":
        raise ValueError(f"{where}: expected a CNXML document, found {root.tag}")
    content = root.find(f"{CNXML}content")
    title = _text(root.find(f"{CNXML}title"))
    sections = [] if content is None else [*_sections(content, title, name)]
    return Page(name, title, tuple(sections), url=name)


def _sections(element: Any, title: str, name: str) -> Iterator[PageSection]:
    """Yields a section and then those inside it."""
    texts: list[str] = []
    figures: list[PageFigure] = []
    inside: list[Any] = []
    stack = [*reversed(element)]
    while stack:
        child = stack.pop()
        if not isinstance(child.tag, str):
            continue
        tag = child.tag.removeprefix(CNXML)
        if tag == "section":
            inside.append(child)
        elif tag == "figure":
            figures += _figures(child, name)
        elif tag in TEXTS and child.find(f".//{CNXML}figure") is None:
            texts.append(_text(child))
        elif tag not in SKIPPED:
            stack.extend(reversed(child))
    if texts or figures:
        yield PageSection(title, " ".join(filter(None, texts)), tuple(figures))
    for child in inside:
        yield from _sections(child, _text(child.find(f"{CNXML}title")) or title, name)


def _figures(element: Any, name: str) -> list[PageFigure]:
    caption, credit = split_credit(_text(element.find(f"{CNXML}caption")))
    media = element.find(f".//{CNXML}media")
    image = element.find(f".//{CNXML}image")
    if image is None or not image.get("src") or not caption:
        return []
    path = image.get("src").replace("../../", "", 1)
    alt = squeeze((media.get("alt") if media is not None else "") or "")
    return [PageFigure(path, caption, alt, credit)]


def _text(element: Any) -> str:
    return "" if element is None else squeeze("".join(element.itertext()))


def _parse(data: bytes, where: str) -> Any:
    try:
        from lxml import etree
    except ImportError as error:
        raise ValueError("CnxmlPages: lxml is missing: pip install 'tenfold[captions]'") from error
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"{where}: no XML: {error}") from error
