"""Documents in the form of OBELICS: Parquet with lists of images and of texts."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.parquet as pq

from .documents import BrokenDocument, Document, DocumentReader, Picture, list_files

USER_AGENT = "tenfold (https://pypi.org/project/tenfold)"
ROWS_AT_A_TIME = 16


class ObelicsParquet(DocumentReader):
    """Parquet files with the columns of OBELICS (huggingface.co/datasets/HuggingFaceM4/OBELICS).

    `images` and `texts` are lists of the same length of which, at each place, one is null. An image
    is an address, a path below `image_folder`, bytes, or a struct with `bytes` and `path` as
    `datasets` writes it. `metadata`, a JSON list, may have `alt_text` of an image. `doc_id`, if it
    is there, must be unique; otherwise file and row number make the id.

    Args:
        root: A folder with .parquet files, or one such file.
        name: Put before the ids of documents; None: the folder's or file's name.
        image_folder: Where images given as paths are.
        download: Whether images given as addresses are fetched, each at most once per document. For
            some thousand documents; for more fetch them before (img2dataset) and give paths.
        timeout: Seconds that an image may take.
        max_bytes: Larger ones are not fetched.
        num_threads: Images that a process fetches at the same time.
    """

    def __init__(
        self,
        root: str,
        name: str | None = None,
        image_folder: str | None = None,
        download: bool = False,
        timeout: float = 10.0,
        max_bytes: int = 50_000_000,
        num_threads: int = 16,
    ) -> None:
        if timeout <= 0 or max_bytes < 1 or num_threads < 1:
            raise ValueError(
                "documents: timeout must be more than 0, max_bytes and num_threads 1 or more, got "
                f"{timeout}, {max_bytes} and {num_threads}"
            )
        self.root = root
        self.name = name
        self.image_folder = image_folder
        self.download = download
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.num_threads = num_threads

    @property
    def prefix(self) -> str:
        """What ids begin with."""
        return self.name or Path(self.root).resolve().stem

    @property
    def identity(self) -> dict[str, Any]:
        """See `DocumentReader`."""
        sizes = [f"{path.name} {path.stat().st_size}" for path in self._files()]
        return {
            "reader": type(self).__name__,
            "name": self.prefix,
            "download": self.download,
            "files": hashlib.sha256("\n".join(sizes).encode()).hexdigest(),
        }

    def units(self, size: int) -> list[tuple[str, int, int]]:
        """See `DocumentReader`: (file, first row, one after the last)."""
        found = []
        for path in self._files():
            number = _open(path).metadata.num_rows
            for start in range(0, number, size):
                found.append((str(path), start, min(start + size, number)))
        if not found:
            raise ValueError(f"documents: the files of {self.root!r} have no rows")
        return found

    def read(self, unit: tuple[str, int, int]) -> Iterator[Document | BrokenDocument]:
        """See `DocumentReader`."""
        path, first, last = Path(unit[0]), unit[1], unit[2]
        file = _open(path)
        here = 0
        for group in range(file.num_row_groups):
            number = file.metadata.row_group(group).num_rows
            start, stop = max(first - here, 0), min(last - here, number)
            if start < stop:
                row = here
                for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group]):
                    for values in batch.to_pylist():
                        if first <= row < last:
                            yield self._document(f"{path.stem}:{row:08d}", values)
                        row += 1
            here += number

    def _files(self) -> list[Path]:
        root = Path(self.root)
        return (
            [root] if root.is_file() else [root / name for name in list_files(root, [".parquet"])]
        )

    def _document(self, row: str, values: Mapping[str, Any]) -> Document | BrokenDocument:
        name = f"{self.prefix}/{values.get('doc_id') or row}"
        try:
            images, texts = values["images"] or [], values["texts"] or []
            if len(images) != len(texts):
                raise ValueError(f"{len(images)} images and {len(texts)} texts: not of one length")
            known = _metadata(values.get("metadata"), len(images))
            items: list[str | Picture] = []
            for place, (image, text) in enumerate(zip(images, texts, strict=True)):
                if image is not None and text is not None:
                    raise ValueError(f"an image and a text at place {place}")
                if image is not None:
                    items.append(self._picture(name, place, image, known[place]))
                elif text is not None:
                    items += [line.strip() for line in text.split("\n\n") if line.strip()]
        except (ValueError, TypeError) as error:
            return BrokenDocument(name, str(error))
        return Document(name, self._fetched(items) if self.download else items)

    def _picture(self, name: str, place: int, image: Any, known: Mapping[str, Any]) -> Picture:
        alt = " ".join(str(known.get("alt_text") or "").split())
        if isinstance(image, Mapping):
            source = image.get("path") or f"{name}#{place}"
            if image.get("bytes") is not None:
                return Picture(source, data=image["bytes"], alt=alt)
            image = image.get("path") or ""
        if isinstance(image, bytes):
            return Picture(str(known.get("src") or f"{name}#{place}"), data=image, alt=alt)
        if not image.startswith(("http://", "https://")) and self.image_folder is not None:
            root = Path(self.image_folder).resolve()
            path = (root / image).resolve()
            if path.is_relative_to(root) and path.is_file():
                return Picture(image, path, alt=alt)
        return Picture(image, alt=alt)

    def _fetched(self, items: Sequence[str | Picture]) -> list[str | Picture]:
        """The same items, with the bytes of the images that could be fetched."""
        wanted = {
            item.source: None
            for item in items
            if isinstance(item, Picture) and item.data is None and item.path is None
        }
        wanted = {source: None for source in wanted if source.startswith(("http://", "https://"))}
        with ThreadPoolExecutor(self.num_threads) as pool:
            found = dict(zip(wanted, pool.map(self._fetch, wanted), strict=True))
        return [
            Picture(item.source, data=found[item.source], alt=item.alt)
            if isinstance(item, Picture) and found.get(item.source) is not None
            else item
            for item in items
        ]

    def _fetch(self, address: str) -> bytes | None:
        try:
            request = Request(address, headers={"User-Agent": USER_AGENT})
            with urlopen(request, timeout=self.timeout) as answer:
                data: bytes = answer.read(self.max_bytes + 1)
        except (OSError, ValueError):  # gone, refused, too slow, or no address
            return None
        return data if len(data) <= self.max_bytes else None


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"documents: {path} is no Parquet file: {error}") from error
    missing = {"images", "texts"} - set(file.schema_arrow.names)
    if missing:
        raise ValueError(
            f"documents: {path} has no column {' or '.join(sorted(missing))}: expected those of "
            "OBELICS, images and texts"
        )
    return file


def _metadata(text: str | None, number: int) -> list[dict[str, Any]]:
    """What is known of each image; nothing where the JSON is missing or does not fit."""
    try:
        known = json.loads(text) if text else []
    except ValueError:
        known = []
    if not isinstance(known, list) or len(known) != number:
        known = [None] * number
    return [one if isinstance(one, dict) else {} for one in known]
