"""WikiWeb2M's own records: pages of Wikipedia with sections and images (Burns et al. 2023)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .pages import Page, PageFigure, PageSection, PageSource
from .tfrecord import read_records, sequence_example, values_of, write_records

SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_NAME = 210  # characters of an image's file name that Ctrl-CIC keeps
IMAGE_LISTS = (
    *("section_image_url", "section_image_clean_ref_desc", "section_image_alt_text"),
    *("section_image_clean_attr_desc", "is_image_caption_sample"),
)


class WikiWeb2MPages(PageSource):
    """The files `wikiweb2m-*.tfrecord.gz`, and images in folders as Ctrl-CIC keeps them.

    Only JPEG and PNG count, and of equal addresses on a page the first. The image of a record is
    `<image_root>/<split>/<number of the record in its split>/<file name of its address>`.

    Args:
        path: Folder of the files, or one of them.
        image_root: Folder of the images; None: `images` beside the files.
        verify_crc: Whether to compare checksums (about 1 s per GB); needs crc32c.

    Raises:
        ValueError: There are no such files.
    """

    def __init__(self, path: str, image_root: str | None = None, verify_crc: bool = True) -> None:
        self.path, self.image_root, self.verify_crc = path, image_root, verify_crc
        if not self.files():
            raise ValueError(f"path: there is no wikiweb2m-*.tfrecord.gz (or .tfrecord) in {path}")

    def files(self) -> list[Path]:
        """See `PageSource`."""
        root = Path(self.path).expanduser()
        return [root] if root.is_file() else sorted(root.glob("wikiweb2m-*.tfrecord*"))

    def image_file(self, path: str) -> Path:
        """See `PageSource`."""
        given = self.image_root or self.files()[0].parent / "images"
        return Path(given).expanduser() / path

    def pages(self) -> Iterator[Page | ValueError]:
        """See `PageSource`."""
        numbers: dict[str, int] = {}
        for path in self.files():
            for index, record in enumerate(read_records(path, self.verify_crc)):
                if isinstance(record, ValueError):
                    yield record
                    continue
                try:
                    found = page_of_record(record, numbers, f"{path}: record {index}")
                except ValueError as error:
                    yield error
                    continue
                if found is not None:
                    yield found


def page_of_record(record: bytes, numbers: dict[str, int], where: str) -> Page | None:
    """Reads a record; None for a page without images.

    Args:
        record: A serialised SequenceExample.
        numbers: Records seen of each split; counted up.
        where: What the record is called in errors.

    Raises:
        ValueError: It is none, or its lists do not fit each other.
    """
    from google.protobuf.message import DecodeError

    try:
        example = sequence_example().FromString(record)
    except DecodeError as error:
        raise ValueError(f"{where}: no SequenceExample: {error}") from error
    context = {name: values_of(value) for name, value in example.context.feature.items()}
    if not {"split", "page_title", "page_url"} <= context.keys():
        raise ValueError(
            f"{where}: expected split, page_title and page_url, found {sorted(context)}"
        )
    split = _word(context["split"])
    number = numbers.get(split, 0)
    numbers[split] = number + 1
    if context.get("page_contains_images") == [0]:
        return None
    lists = {
        name: [values_of(feature) for feature in value.feature]
        for name, value in example.feature_lists.feature_list.items()
    }
    titles, texts = lists.get("section_title", []), lists.get("section_text", [])
    if len(titles) != len(texts):
        raise ValueError(f"{where}: {len(titles)} titles for {len(texts)} sections")
    seen: set[str] = set()
    sections = []
    for place, (title, text) in enumerate(zip(titles, texts, strict=True)):
        images = [_at(lists.get(name, []), place) for name in IMAGE_LISTS]
        if len({len(values) for values in images if values}) > 1:
            sizes = {name: len(v) for name, v in zip(IMAGE_LISTS, images, strict=True)}
            raise ValueError(f"{where}: lists of the images of section {place} differ: {sizes}")
        rows = zip(*(values or [b""] * len(images[0]) for values in images), strict=True)
        figures = []
        for url, caption, alt, credit, is_sample in rows:
            address = url.decode("utf-8", "replace")
            if address in seen or not urlsplit(address).path.lower().endswith(SUFFIXES):
                continue
            seen.add(address)
            words, other, whom = (v.decode("utf-8", "replace") for v in (caption, alt, credit))
            path = f"{split}/{number}/{image_name(address)}"
            figures.append(PageFigure(path, words, other, whom, bool(words) and is_sample == 1))
        sections.append(PageSection(_word(title), _word(text), tuple(figures)))
    url = _word(context["page_url"])
    return Page(
        f"{split}/{number}", _word(context["page_title"]), tuple(sections), url, split=split
    )


def image_name(url: str) -> str:
    """Returns the file name that an image's address gives, cut as Ctrl-CIC cuts it."""
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1][:MAX_NAME]


def _at(rows: list[list[Any]], place: int) -> list[Any]:
    return rows[place] if place < len(rows) else []


def _word(values: list[bytes]) -> str:
    return values[0].decode("utf-8", "replace") if values else ""


def write_wikiweb2m(pages: Iterable[Page], path: Path, compress: bool = True) -> int:
    """Writes pages as WikiWeb2M's records, with the features that are read here.

    Captions become reference descriptions, credits attributions; addresses are `file:` paths.

    Args:
        pages: With a split each.
        path: The file.
        compress: Whether it is gzipped, as the published ones are.

    Returns:
        How many.
    """
    return write_records((record_of_page(page) for page in pages), path, compress)


def record_of_page(page: Page) -> bytes:
    """Returns a page as a serialised SequenceExample."""
    example = sequence_example()()
    context = example.context.feature
    for name, text in (
        ("split", page.split), ("page_url", page.url or page.name), ("page_title", page.title),
    ):  # fmt: skip
        context[name].bytes_list.value.append(text.encode())
    figures = [figure for section in page.sections for figure in section.figures]
    context["page_contains_images"].int64_list.value.append(int(bool(figures)))
    lists = example.feature_lists.feature_list
    for index, section in enumerate(page.sections):
        for name, text in (("section_title", section.title), ("section_text", section.text)):
            lists[name].feature.add().bytes_list.value.append(text.encode())
        lists["section_index"].feature.add().int64_list.value.append(index)
        columns = {
            "section_image_url": [f"file:///{f.path}" for f in section.figures],
            "section_image_raw_ref_desc": [f.caption for f in section.figures],
            "section_image_clean_ref_desc": [f.caption for f in section.figures],
            "section_image_alt_text": [f.alt for f in section.figures],
            "section_image_raw_attr_desc": [f.credit for f in section.figures],
            "section_image_clean_attr_desc": [f.credit for f in section.figures],
            "section_image_captions": [
                ", ".join(filter(None, (f.alt, f.credit, f.caption))) for f in section.figures
            ],
        }
        for name, texts in columns.items():
            lists[name].feature.add().bytes_list.value.extend(text.encode() for text in texts)
        samples = [int(figure.is_sample) for figure in section.figures]
        lists["is_image_caption_sample"].feature.add().int64_list.value.extend(samples)
    data: bytes = example.SerializeToString(deterministic=True)
    return data
