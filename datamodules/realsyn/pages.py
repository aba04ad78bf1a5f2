"""Documents from folders of HTML and of Markdown."""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from .documents import BrokenDocument, Document, DocumentReader, Picture, list_files
from .extras import require

# Ends of a text: a paragraph never runs across one of these.
_BLOCK_NAMES = """
address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure
form h1 h2 h3 h4 h5 h6 header hr li main ol option p section summary table tbody td tfoot th thead
title tr ul
"""
BLOCKS = frozenset(_BLOCK_NAMES.split())
DROPPED = ("script", "style", "nav", "header", "footer", "pre", "head", "noscript", "template")
HTML = (".html", ".htm", ".xhtml")
MARKDOWN = (".md", ".markdown")
MAX_PAGE_BYTES = 50_000_000
_SPACES = re.compile(r"\s+")
# Sphinx's link to a headline, which would end its text.
_PILCROWS = re.compile("[¶\uf0c1]")


class HtmlFolder(DocumentReader):
    """All HTML pages below a folder, with the images in it that they show.

    Only files below `root` are read: images of other hosts are references without an image, and a
    page cannot reach out of the folder. Vector graphics are left out: there is nothing to see in
    their bytes.

    Args:
        root: The folder.
        name: Put before the ids of documents and the sources of images; None: the folder's name.
        drop: Names of elements of which nothing is read.
    """

    suffixes: Sequence[str] = HTML

    def __init__(self, root: str, name: str | None = None, drop: Sequence[str] = DROPPED) -> None:
        self.root = root
        self.name = name
        self.drop = drop

    @property
    def prefix(self) -> str:
        """What ids and sources begin with."""
        return self.name or Path(self.root).resolve().name

    @property
    def identity(self) -> dict[str, Any]:
        """See `DocumentReader`."""
        root = Path(self.root)
        names = list_files(root, self.suffixes)
        sizes = [f"{name} {(root / name).stat().st_size}" for name in names]
        return {
            "reader": type(self).__name__,
            "name": self.prefix,
            "drop": sorted(self.drop),
            "files": hashlib.sha256("\n".join(sizes).encode()).hexdigest(),
        }

    def units(self, size: int) -> list[list[str]]:
        """See `DocumentReader`: lists of file names."""
        names = list_files(Path(self.root), self.suffixes)
        return [names[start : start + size] for start in range(0, len(names), size)]

    def read(self, unit: Sequence[str]) -> Iterator[Document | BrokenDocument]:
        """See `DocumentReader`."""
        for name in unit:
            document = f"{self.prefix}/{name}"
            path = Path(self.root) / name
            try:
                if path.stat().st_size > MAX_PAGE_BYTES:
                    raise ValueError(f"the page has more than {MAX_PAGE_BYTES:,} bytes")
                yield Document(document, self._items(name, path.read_bytes()))
            except (OSError, ValueError) as error:
                yield BrokenDocument(document, " ".join(str(error).split()))

    def _items(self, name: str, data: bytes) -> list[str | Picture]:
        items = list(read_html(data, frozenset(self.drop)))
        return [item if isinstance(item, str) else self._find(name, *item) for item in items]

    def _find(self, page: str, address: str, alt: str) -> Picture:
        """The picture that a page calls `address`."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            return Picture(address, alt=alt)
        root = Path(self.root).resolve()
        # A file is looked up by its name as it is written, then without %-escapes.
        for written in dict.fromkeys((parts.path, unquote(parts.path))):
            relative = PurePosixPath(page).parent / written
            try:
                path = (root / str(relative).lstrip("/")).resolve()
                inside = path.is_relative_to(root) and path.is_file()
            except (OSError, ValueError):  # a name that no file can have
                continue
            if inside:
                source = f"{self.prefix}/{path.relative_to(root).as_posix()}"
                return Picture(source, path, alt=alt)
        return Picture(address, alt=alt)


class MarkdownFolder(HtmlFolder):
    """All Markdown files below a folder, with the images in it that they show.

    CommonMark with tables; HTML inside it is read as HTML.

    Args:
        root: The folder.
        name: Put before the ids of documents and the sources of images; None: the folder's name.
        drop: Names of elements of which nothing is read.
    """

    suffixes = MARKDOWN

    def _items(self, name: str, data: bytes) -> list[str | Picture]:
        from markdown_it import MarkdownIt

        page = MarkdownIt("commonmark").enable("table").render(data.decode("utf-8", "replace"))
        return super()._items(name, page.encode())


def read_html(
    data: bytes, drop: frozenset[str] = frozenset(DROPPED)
) -> Iterator[str | tuple[str, str]]:
    """Reads texts and images of an HTML page in their order.

    Args:
        data: The page; its encoding is what it declares, else UTF-8.
        drop: Names of elements of which nothing is read.

    Yields:
        A paragraph, its spaces made one each; or (address, alt text) of an image.

    Raises:
        ValueError: The page is empty or no HTML at all.
    """
    html = require("lxml.html", "lxml")
    declared = re.search(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", data[:4096])
    encoding = _known_encoding(declared[1].decode("ascii", "replace")) if declared else "utf-8"
    text = data.decode(encoding, "replace").lstrip("\ufeff").replace("\0", "")
    # lxml takes a declaration of XML for one of bytes, and refuses text that has it.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        raise ValueError("the page is empty")
    try:
        page = html.document_fromstring(text, parser=html.HTMLParser(huge_tree=False))
    except Exception as error:  # lxml's errors have no common class but Exception
        raise ValueError(f"no HTML: {error}") from error
    words: list[str] = []
    for event in _walk(page, drop):
        if isinstance(event, str):
            words.append(event)
            continue
        paragraph = _SPACES.sub(" ", _PILCROWS.sub("", "".join(words))).strip()
        words.clear()
        if paragraph:
            yield paragraph
        if event is not None:
            yield event


def _known_encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def _walk(page: Any, drop: frozenset[str]) -> Iterator[str | tuple[str, str] | None]:
    """Yields texts, images, and None where a block begins or ends; no recursion, pages are deep."""
    stack: list[tuple[Any, bool]] = [(page, False)]
    while stack:
        element, is_end = stack.pop()
        name = element.tag if isinstance(element.tag, str) else ""  # comments have none
        is_block = name in BLOCKS
        if is_end:
            if is_block:
                yield None
            yield element.tail or ""
            continue
        if not name or name in drop:
            yield element.tail or ""
            continue
        if is_block:
            yield None
        if name == "img" and (address := _address(element)):
            yield address, _SPACES.sub(" ", element.get("alt") or "").strip()
        yield element.text or ""
        stack.append((element, True))
        stack += [(child, False) for child in reversed(element)]
    yield None


def _address(image: Any) -> str:
    """Where an `img` is: `src`, else the largest of `srcset`, of its own or of its `picture`."""
    for name in ("src", "data-src"):
        address = (image.get(name) or "").strip()
        if address and not address.startswith("data:"):
            return str(address)
    sets = [image.get("srcset") or image.get("data-srcset") or ""]
    # libxml2 takes what follows a `source` for its content: neither is always the other's sibling.
    for picture in image.iterancestors("picture"):
        sets += [source.get("srcset") or "" for source in picture.iter("source")]
    for candidates in filter(None, sets):
        sized = [candidate.split() for candidate in candidates.split(",") if candidate.split()]
        return str(max(sized, key=_candidate_size)[0])
    return ""


def _candidate_size(candidate: Sequence[str]) -> float:
    try:
        return float(candidate[1].rstrip("wx"))
    except (IndexError, ValueError):
        return 1.0
