"""Records of captioned figures from pages, written once, read through memory maps."""

import hashlib
import json
import logging
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...modules.files import atomic_folder, write_json
from ..text.cache import split_of
from .examples import SPLITS, CaptionExample, Examples, Split
from .pages import Page, PageSource
from .phrases import MIN_CONTEXT, drawn_phrases, key_phrases, sample_highlights, shared_words

log = logging.getLogger(__name__)

Given = Literal["own", "phrases", "both", "none"]
Targets = Literal["captions", "caption_sentences", "text_phrases"]
FORMAT = 3
NUM_OWN = 5
NUM_AROUND = 1
PER_SENTENCE, PHRASE_WORDS = 3, 8
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"(])")


class PageExamples(Examples):
    """Every captioned figure of a source of pages.

    Records are written to the cache when a run first needs them, and again when the source's files
    change. Pages that cannot be read, and images that are not there, are counted, the first is
    named, in a warning and in `manifest.json` of the cache.

    Args:
        source: Where pages come from.
        val_fraction: Share of the groups (pages or books) for validation, by a hash of their names,
            where the source has no splits of its own.
        test_fraction: Likewise for testing.
        min_caption_words: Shorter captions are left out.
        targets: What is to be written. "captions"; "caption_sentences", each sentence of 4 to 30
            words of a caption, at most three of a figure: shorter, and several for one image;
            "text_phrases", three phrases of one to eight words of each such sentence of a section
            with a figure, the context being this sentence, the one before and the one after. These
            are for a warm-up: there are many more of them, and all their words are there to be
            highlighted, so that a model learns to write what it is told to.
        require_text: Whether figures of sections without text are left out.
        missing_image: Whether a figure without a file is left out ("skip") or kept, black.
        highlights: Of validation and test: "own", up to five words that the caption shares with
            the section, with the caption as reference; "phrases", key phrases of the section;
            "both"; "none".
        num_highlights: How many of key phrases.
        num_phrases: Phrases in each of these.
        strict: Whether the first bad page is an error.
        cache_dir: Where caches are; None: `$TENFOLD_CACHE`, else `~/.cache/tenfold`.

    Raises:
        ValueError: A number out of range. From `prepare`: with `strict` the first bad page; there
            is no record at all.
    """

    def __init__(
        self,
        source: PageSource,
        val_fraction: float = 0.05,
        test_fraction: float = 0.1,
        min_caption_words: int = 1,
        targets: Targets = "captions",
        require_text: bool = True,
        missing_image: Literal["skip", "black"] = "skip",
        highlights: Given = "both",
        num_highlights: int = 3,
        num_phrases: int = 1,
        strict: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        for name, share in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}")
        if num_highlights < 1 or num_phrases < 1:
            raise ValueError("num_highlights and num_phrases must be 1 or more")
        self.source = source
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.min_caption_words = min_caption_words
        self.targets: Targets = targets
        self.require_text, self.missing_image = require_text, missing_image
        self.highlights: Given = highlights
        self.num_highlights, self.num_phrases = num_highlights, num_phrases
        self.strict, self.cache_dir = strict, cache_dir

    @property
    def identity(self) -> dict[str, Any]:
        """See `Examples`."""
        if "_identity" not in vars(self):
            own = {"source", "cache_dir", "strict"}
            settings = {n: v for n, v in self.__getstate__().items() if n not in own}
            self._identity = {"format": FORMAT, "source": self.source.identity, **settings}
        return dict(self._identity)

    @property
    def folder(self) -> Path:
        """Where the records are."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        root = self.cache_dir or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold"
        return Path(root).expanduser() / "contextual_captions" / digest[:32]

    def prepare(self) -> None:
        """See `Examples`."""
        if (self.folder / "manifest.json").is_file():
            return
        with atomic_folder(self.folder) as folder:
            writer = _Writer(folder)
            for page in self.source.pages():
                if isinstance(page, ValueError):
                    if self.strict:
                        raise page
                    writer.errors.append(str(page))
                    continue
                for split, example, path in self._examples(page, writer):
                    writer.add(split, example, path)
            manifest = writer.close()
            if not any(manifest["records"].values()):
                first = f"; first problem: {writer.errors[0]}" if writer.errors else ""
                raise ValueError(
                    f"examples: no captioned figure in {type(self.source).__name__}{first}"
                )
            write_json(folder / "manifest.json", manifest)
        for name, count in manifest["left_out"].items():
            log.warning("%s: %d, first: %s", name, count["number"], count["first"])

    def _examples(
        self, page: Page, writer: "_Writer"
    ) -> Iterator[tuple[Split, CaptionExample, str]]:
        group = page.group or page.name
        split = page.split or split_of(
            hashlib.sha256(group.encode()).digest(), self.val_fraction, self.test_fraction
        )
        if split not in SPLITS:
            writer.errors.append(f"page {page.name}: split {split!r} is none of {SPLITS}")
            return
        for place, section in enumerate(page.sections):
            if self.require_text and not section.text:
                continue
            others = tuple(
                (other.title, other.text, tuple(f.caption for f in other.figures))
                for k, other in enumerate(page.sections)
                if k != place
            )
            for number, figure in enumerate(section.figures):
                if not figure.is_sample or len(figure.caption.split()) < self.min_caption_words:
                    continue
                missing = not self.source.image_file(figure.path).is_file()
                if missing and self.missing_image == "skip":
                    writer.missing.append(str(self.source.image_file(figure.path)))
                    continue
                siblings = [f for k, f in enumerate(section.figures) if k != number]
                for part, (caption, text) in enumerate(self._pairs(figure.caption, section.text)):
                    name = f"{page.name}#{place}.{number}" + (f".{part}" if part else "")
                    given = self._highlights(page, section.title, text, caption, writer)
                    example = CaptionExample(
                        id=name,
                        caption=caption,
                        image=-1,
                        page_title=page.title,
                        section_title=section.title,
                        section_text=text,
                        other_captions=tuple(f.caption for f in siblings if f.caption),
                        group=group,
                        highlights=() if split == "train" else tuple(h for h, _ in given),
                        references=() if split == "train" else tuple(r for _, r in given),
                        page_url=page.url,
                        other_sections=() if self._of_text else others,
                    )
                    yield split, example, figure.path
                if self._of_text:
                    break  # one figure stands for the section

    def _pairs(self, caption: str, text: str) -> Iterator[tuple[str, str]]:
        """Yields what is to be written, with the text of its section."""
        if self.targets == "captions":
            yield caption, text
            return
        sentences = SENTENCE_END.split(text if self._of_text else caption)
        chosen = [k for k, s in enumerate(sentences) if 4 <= len(s.split()) <= 30]
        if not self._of_text:
            yield from ((sentences[k], text) for k in chosen[:3])
            return
        for k in chosen:
            around = " ".join(sentences[max(0, k - NUM_AROUND) : k + NUM_AROUND + 1])
            for phrase in drawn_phrases(sentences[k], PER_SENTENCE, PHRASE_WORDS):
                yield phrase, around

    @property
    def _of_text(self) -> bool:
        return self.targets == "text_phrases"

    def _highlights(
        self, page: Page, title: str, text: str, caption: str, writer: "_Writer"
    ) -> list[tuple[tuple[str, ...], str]]:
        """Returns highlights with their references."""
        found = []
        if self.highlights in ("own", "both") and (own := shared_words(caption, text, NUM_OWN)):
            found.append((own, caption))
        if self.highlights in ("phrases", "both") and len(page.title + title + text) >= MIN_CONTEXT:
            writer.num_asked += 1
            phrases = key_phrases(text)
            drawn = sample_highlights(
                phrases, text, self.num_highlights, self.num_phrases, writer.num_asked
            )
            found += [(phrases, "") for phrases in drawn]
        return found

    def split(self, name: Split) -> Sequence[CaptionExample]:
        """See `Examples`."""
        return StoredSplit(self.folder, name)

    @property
    def num_images(self) -> int:
        """See `Examples`."""
        return len(self._paths())

    def image(self, number: int) -> Image.Image:
        """See `Examples`."""
        return self.source.open_image(self._paths()[number])

    def _paths(self) -> list[str]:
        if "_images" not in vars(self):
            text = (self.folder / "images.json").read_text(encoding="utf-8")
            self._images: list[str] = json.loads(text)
        return self._images


class _Writer:
    """Writes records of all splits into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: (folder / f"{name}.jsonl").open("wb") for name in SPLITS}
        self.offsets: dict[str, list[int]] = {name: [0] for name in SPLITS}
        self.images: dict[str, int] = {}
        self.errors: list[str] = []
        self.missing: list[str] = []
        self.num_asked = 0

    def add(self, split: Split, example: CaptionExample, path: str) -> None:
        number = self.images.setdefault(path, len(self.images))
        row = vars(example) | {"image": number}
        data = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self.files[split].write(data)
        self.offsets[split].append(self.offsets[split][-1] + len(data))

    def close(self) -> dict[str, Any]:
        for name, file in self.files.items():
            file.close()
            np.save(self.folder / f"{name}.npy", np.array(self.offsets[name], dtype=np.int64))
        write_json(self.folder / "images.json", [*self.images])
        left_out = {
            "pages that cannot be read": self.errors,
            "images that are missing": self.missing,
        }
        return {
            "records": {name: len(offsets) - 1 for name, offsets in self.offsets.items()},
            "left_out": {
                name: {"number": len(rows), "first": rows[0]}
                for name, rows in left_out.items()
                if rows
            },
        }


class StoredSplit(Sequence[CaptionExample]):
    """Records of a split in a cache.

    Args:
        folder: Of the cache.
        name: Of the split.
    """

    def __init__(self, folder: Path, name: Split) -> None:
        self.folder, self.name = folder, name
        self._offsets = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # a worker opens the files itself

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if "_map" not in vars(self):
            with (self.folder / f"{self.name}.jsonl").open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        row = json.loads(self._map[start:end])
        for key in ("other_captions", "references", "depicted"):
            row[key] = tuple(row[key])
        row["highlights"] = tuple(tuple(phrases) for phrases in row["highlights"])
        row["other_sections"] = tuple((t, x, tuple(c)) for t, x, c in row["other_sections"])
        return CaptionExample(**row)
