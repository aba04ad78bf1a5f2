"""`tenfold pages`: pages with captioned figures as files that recipes read.

Imports torch only when the command runs.
"""

from pathlib import Path
from typing import Literal

from .errors import note


def pages(
    input: Path | None = None,  # noqa: A002 - the word for it
    out: Path | None = None,
    format: Literal["html", "cnxml", "wikiweb2m", "jsonl"] = "html",  # noqa: A002
    to: Literal["jsonl", "wikiweb2m"] = "jsonl",
    image_side: int = 256,
    vocab_size: int = 8000,
    overwrite: bool = False,
) -> None:
    """Collect pages with captioned figures from HTML, CNXML or WikiWeb2M.

    `tenfold pages --input /usr/share/doc/manual --out data/manual` writes `pages.jsonl`, `images/`
    with small copies, and `tokenizer/`, learned from the pages' texts, for models without
    pretrained weights. Only pages with a figure are kept. `--to wikiweb2m` writes WikiWeb2M's own
    records instead, a file for each split: a tenth of the pages for testing, a twentieth for
    validation, by a hash of their names.

    Args:
        input: Folder or file to read.
        out: Folder to write.
        format: Of the input.
        to: What is written.
        image_side: Longest side of the copies, in pixels; 0 copies no image.
        vocab_size: Tokens of the tokenizer; 0 makes none.
        overwrite: Write into a folder that is not empty.

    Raises:
        ValueError: A folder is missing or not empty, a number is out of range, or there is no page
            with a figure.
    """
    if input is None or out is None:
        raise ValueError("pages needs what to read and where to write: --input DIR --out DIR")
    if image_side < 0 or vocab_size < 0:
        raise ValueError("--image-side and --vocab-size must be 0 or more")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty: choose another folder, or --overwrite")

    from ..datamodules.contextual_captions import (
        CnxmlPages,
        HtmlPages,
        JsonPages,
        PageSource,
        WikiWeb2MPages,
        write_pages,
    )
    from ..datamodules.contextual_captions.convert import (
        copy_images,
        readable_pages,
        write_splits,
    )
    from ..modules.ctrl_cic import train_tokenizer

    readers: dict[str, type[PageSource]] = {
        "html": HtmlPages,
        "cnxml": CnxmlPages,
        "wikiweb2m": WikiWeb2MPages,
        "jsonl": JsonPages,
    }
    source = readers[format](str(input))  # type: ignore[call-arg]
    found, errors = readable_pages(source)
    if errors:
        note(f"{len(errors)} pages cannot be read, first: {errors[0]}")
    if not found:
        raise ValueError(f"{input}: no page with a captioned figure")
    if image_side:
        found, missing = copy_images(source, found, out / "images", image_side)
        if missing:
            note(f"{len(missing)} images cannot be read, first: {missing[0]}")
        if not found:
            raise ValueError(f"{input}: not one figure's image can be read: {missing[0]}")
    number = sum(len(section.figures) for page in found for section in page.sections)
    if to == "wikiweb2m":
        for path in write_splits(found, out):
            note(f"wrote {path}")
    else:
        write_pages(found, out / "pages.jsonl")
        note(f"wrote {out / 'pages.jsonl'}")
    note(f"{number} figures on {len(found)} pages")
    if vocab_size:
        texts = [page.title for page in found]
        for page in found:
            for section in page.sections:
                texts += [section.title, section.text, *(f.caption for f in section.figures)]
        train_tokenizer(texts, vocab_size).save_pretrained(out / "tokenizer")
        note(f"wrote {out / 'tokenizer'}")
