"""Pages of one format as pages of another, with small copies of their images."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..text.cache import split_of
from .pages import Page, PageSection, PageSource
from .wikiweb2m import write_wikiweb2m

TEST_FRACTION, VAL_FRACTION = 0.1, 0.05


def readable_pages(source: PageSource) -> tuple[list[Page], list[str]]:
    """Returns the pages that have a figure, and what is wrong with those that cannot be read."""
    pages, errors = [], []
    for page in source.pages():
        if isinstance(page, ValueError):
            errors.append(str(page))
        elif any(section.figures for section in page.sections):
            pages.append(page)
    return pages, errors


def copy_images(
    source: PageSource, pages: Sequence[Page], folder: Path, side: int
) -> tuple[list[Page], list[str]]:
    """Writes small JPEG copies of all figures, named by their content.

    Args:
        source: Where the figures are.
        pages: That have them.
        folder: Where copies go; paths of the figures become relative to its parent.
        side: Longest side in pixels.

    Returns:
        Pages with the figures that could be read, and what is wrong with the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies: dict[str, str | None] = {}
    errors: list[str] = []

    def copy(path: str) -> str | None:
        try:
            image = source.open_image(path)
        except ValueError as error:
            errors.append(str(error))
            return None
        image.thumbnail((side, side))
        name = f"{hashlib.sha256(image.tobytes()).hexdigest()[:20]}.jpg"
        image.save(folder / name, quality=90)
        return f"{folder.name}/{name}"

    kept = []
    for page in pages:
        sections = []
        for section in page.sections:
            figures = []
            for figure in section.figures:
                if figure.path not in copies:
                    copies[figure.path] = copy(figure.path)
                path = copies[figure.path]
                if path is not None:
                    figures.append(replace(figure, path=path))
            sections.append(PageSection(section.title, section.text, tuple(figures)))
        if any(section.figures for section in sections):
            kept.append(replace(page, sections=tuple(sections)))
    return kept, errors


def write_splits(pages: Sequence[Page], folder: Path) -> list[Path]:
    """Writes pages as WikiWeb2M's records, a file for each split; returns the files.

    Images are expected, and linked, where `WikiWeb2MPages` looks for them.
    """
    by_split: dict[str, list[Page]] = {"train": [], "val": [], "test": []}
    for page in pages:
        digest = hashlib.sha256((page.group or page.name).encode()).digest()
        split = page.split or split_of(digest, VAL_FRACTION, TEST_FRACTION)
        by_split[split].append(replace(page, split=split))
    written = []
    for split, chosen in by_split.items():
        for number, page in enumerate(chosen):
            for section in page.sections:
                for figure in section.figures:
                    copy, name = folder / figure.path, Path(figure.path).name
                    target = folder / "images" / split / str(number) / name
                    if copy.is_file() and not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.hardlink_to(copy)
        path = folder / f"wikiweb2m-{split}.tfrecord.gz"
        write_wikiweb2m(chosen, path)
        written.append(path)
    return written
