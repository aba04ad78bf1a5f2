"""Tokens on disk: written once, checked whenever they are opened, read through memory maps.

A cache is a folder with `manifest.json`, `tokenizer.json` if the tokenizer was trained here, and
shards `<split>-<number>.bin`: token ids as little-endian uint16 or uint32, documents joined by
the id that ends one. It appears under its name only when it is complete.
"""

import hashlib
import json
import logging
import math
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.utils.data import Dataset

from .tokenizer import BPETokenizer, Tokenizer

FORMAT = 1
SPLITS = ("train", "val", "test")
SHARD_TOKENS = 2**27
TOKENIZER_FILE = "tokenizer.json"
_BATCH_BYTES = 2**22
_BPE_TRAINING_BYTES = 2**29

Manifest = dict[str, Any]
log = logging.getLogger(__name__)


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """Returns the split of a document, from the hash of its text.

    The text decides, not the name or the place: equal documents share a split, and a document
    stays in its split when others come, go or are renamed. Test documents depend on
    `test_fraction` alone, validation documents on `val_fraction` alone.

    Args:
        digest: SHA-256 of the text.
        val_fraction: Share of the documents for validation, in [0, 1).
        test_fraction: Share of the documents for testing, in [0, 1).
    """
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position >= 1 - val_fraction else "train"


def prepare_cache(
    folder: Path,
    read: Callable[[], Iterator[str | ValueError]],
    make_tokenizer: Callable[[Iterable[str]], Tokenizer],
    *,
    val_fraction: float,
    test_fraction: float,
    strict: bool = False,
    verify: bool = True,
) -> None:
    """Makes sure that `folder` holds an intact cache; a damaged one is named and made again.

    Several processes may do so at a time: the first to finish wins.

    Args:
        folder: Where the cache is or will be.
        read: Reads the corpus from its beginning: documents, and errors in place of bad records.
        make_tokenizer: Returns the tokenizer, given the training documents to learn from.
        val_fraction: See `split_of`.
        test_fraction: See `split_of`.
        strict: Whether a bad record is an error, or skipped and counted.
        verify: Whether to read an existing cache and compare its checksums (about 1 s per GB), or
            its file sizes only.

    Raises:
        ValueError: No document at all, or with `strict` a bad record.
    """
    if folder.exists():
        try:
            read_manifest(folder, verify)
            return
        except ValueError as error:
            log.warning("%s; it is made again", error)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):  # of processes that were killed
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        corpus = _Corpus(read, val_fraction, test_fraction, strict)
        texts = corpus.first_training_texts()
        _write(temporary, corpus, make_tokenizer(texts))
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path, verify: bool) -> Manifest:
    """Returns the manifest of a cache after a check of all that it lists.

    Args:
        folder: The cache.
        verify: Whether to compare checksums of the files too, not only their sizes.

    Raises:
        ValueError: Something is missing or damaged; the message says what.
    """
    try:
        manifest: Manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        checksum = manifest.pop("sha256")
        if checksum != _sha256_of(manifest):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"tokenised text {folder}: manifest.json is damaged ({error})") from error
    for name, entry in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != entry["num_bytes"]:
            found = "missing" if size is None else f"{size} bytes long"
            raise ValueError(
                f"tokenised text {folder}: {name} is {found}, expected {entry['num_bytes']} bytes"
            )
        if verify and _crc32_of(path) != entry["crc32"]:
            raise ValueError(f"tokenised text {folder}: the checksum of {name} differs")
    return manifest


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """The blocks of a split: L + 1 tokens each, of which the last is the next one's first.

    Blocks run on over the ends of documents, and not over those of shards.

    Args:
        folder: The cache.
        manifest: Its manifest.
        split: "train", "val" or "test".
        sequence_length: L, the tokens that are predicted in a block.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, sequence_length: int) -> None:
        self._arguments = (folder, manifest, split, sequence_length)
        info = manifest["splits"][split]
        self.sequence_length = sequence_length
        self.bytes_per_token = info["num_bytes"] / max(info["num_tokens"], 1)
        self._shards = [
            np.memmap(folder / name, dtype=manifest["dtype"], mode="r").view(np.ndarray)
            for name in info["shards"]
        ]
        num_blocks = [(len(shard) - 1) // sequence_length for shard in self._shards]
        self._ends = np.cumsum(num_blocks, dtype=np.int64)
        self._begins = self._ends - num_blocks
        self._offsets = np.arange(sequence_length + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map would be copied to a spawned worker; opened again it costs nothing.
        return TokenBlocks, self._arguments

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Returns one block, as `__getitems__` without the batch axis."""
        return {name: batched[0] for name, batched in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Returns blocks as one batch, read with one fancy index per shard.

        Returns:
            input_ids: (B, L) int64.
            labels: (B, L) int64, the token after each input.
            num_bytes: (B,) float32, UTF-8 bytes that the labels stand for: L times the bytes per
                token of the split, so that sums over a split are right for any tokenizer.
            index: (B,) int64, the place of the block in the split.
        """
        index = np.asarray(indices, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"block {indices} of {len(self)}")
        shard_of = np.searchsorted(self._ends, index, side="right")
        tokens = np.empty((len(index), self.sequence_length + 1), dtype=np.int64)
        for number in np.unique(shard_of):
            rows = shard_of == number
            begins = (index[rows] - self._begins[number]) * self.sequence_length
            tokens[rows] = self._shards[number][begins[:, None] + self._offsets]
        num_bytes = self.sequence_length * self.bytes_per_token
        return {
            "input_ids": torch.from_numpy(tokens[:, :-1].copy()),
            "labels": torch.from_numpy(tokens[:, 1:].copy()),
            "num_bytes": torch.full((len(index),), num_bytes, dtype=torch.float32),
            "index": torch.from_numpy(index),
        }


class _Corpus:
    """Documents with their split; bad records are counted, or raised if `strict`."""

    def __init__(
        self,
        read: Callable[[], Iterator[str | ValueError]],
        val_fraction: float,
        test_fraction: float,
        strict: bool,
    ) -> None:
        self._read = read
        self._fractions = (val_fraction, test_fraction)
        self._strict = strict
        self.num_skipped = 0
        self.first_error: ValueError | None = None

    def documents(self) -> Iterator[tuple[str, str, bytes]]:
        """Yields (text, split, SHA-256 of the text) of each document that is not empty."""
        self.num_skipped, self.first_error = 0, None
        for text in self._read():
            if isinstance(text, ValueError):
                if self._strict:
                    raise text
                self.num_skipped += 1
                self.first_error = self.first_error or text
            elif text:
                digest = hashlib.sha256(text.encode("utf-8")).digest()
                yield text, split_of(digest, *self._fractions), digest

    def first_training_texts(self) -> Iterator[str]:
        """Yields training documents, up to 512 MB: enough to learn a vocabulary from."""
        left = _BPE_TRAINING_BYTES
        for text, split, _ in self.documents():
            if split == "train" and left > 0:
                yield text
                left -= len(text)
            if left <= 0:
                return


class _SplitWriter:
    """Appends the tokens of one split to its shards."""

    def __init__(self, folder: Path, split: str, dtype: str) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.shards: dict[str, dict[str, int]] = {}
        self.num_documents = self.num_bytes = self.num_tokens = 0

    def write(self, ids: np.ndarray[Any, Any]) -> None:
        """Writes ids, beginning a new shard wherever one is full."""
        while len(ids):
            room = -self.num_tokens % SHARD_TOKENS or SHARD_TOKENS
            part, ids = ids[:room].astype(self.dtype), ids[room:]
            number = self.num_tokens // SHARD_TOKENS
            name = f"{self.split}-{number:05d}.bin"
            entry = self.shards.setdefault(name, {"num_bytes": 0, "crc32": 0})
            with (self.folder / name).open("ab") as file:
                file.write(part.tobytes())
            entry["num_bytes"] += part.nbytes
            entry["crc32"] = zlib.crc32(part.tobytes(), entry["crc32"])
            self.num_tokens += len(part)

    def summary(self) -> dict[str, Any]:
        """What the manifest says of the split."""
        return {
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "num_tokens": self.num_tokens,
            "shards": list(self.shards),
        }


def _write(folder: Path, corpus: _Corpus, tokenizer: Tokenizer) -> None:
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    writers = {split: _SplitWriter(folder, split, dtype) for split in SPLITS}
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    corpus_hash = hashlib.sha256()
    for batch in _in_batches(corpus.documents()):
        tokens: dict[str, list[np.ndarray[Any, Any]]] = {split: [] for split in SPLITS}
        encoded = tokenizer.encode([text for text, _, _ in batch])
        for (text, split, digest), ids in zip(batch, encoded, strict=True):
            corpus_hash.update(digest)
            writers[split].num_documents += 1
            writers[split].num_bytes += len(text.encode("utf-8"))
            tokens[split] += [ids, np.array([tokenizer.eos_token_id], dtype=np.uint32)]
        for split, parts in tokens.items():
            if parts:
                ids = np.concatenate(parts)
                writers[split].write(ids)
                if split == "train":
                    counts += np.bincount(ids, minlength=len(counts))
    if not any(writer.num_documents for writer in writers.values()):
        problem = f"; the first of {corpus.num_skipped} bad records is {corpus.first_error}"
        raise ValueError(f"the corpus has no text{problem if corpus.num_skipped else ''}")
    if corpus.num_skipped:
        log.warning("skipped %d bad records; first: %s", corpus.num_skipped, corpus.first_error)
    files = {name: entry for writer in writers.values() for name, entry in writer.shards.items()}
    if isinstance(tokenizer, BPETokenizer):
        path = folder / TOKENIZER_FILE
        path.write_text(tokenizer.definition, "utf-8")
        files[path.name] = {"num_bytes": path.stat().st_size, "crc32": _crc32_of(path)}
    manifest: Manifest = {
        "format": FORMAT,
        "corpus_sha256": corpus_hash.hexdigest(),
        "num_skipped": corpus.num_skipped,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": dtype,
        "splits": {split: writer.summary() for split, writer in writers.items()},
        "unigram": _unigram(counts, writers["train"].num_bytes),
        "files": files,
    }
    manifest["sha256"] = _sha256_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")


def _in_batches(
    documents: Iterator[tuple[str, str, bytes]],
) -> Iterator[list[tuple[str, str, bytes]]]:
    """Groups documents into batches of some megabytes, with a progress bar on a terminal."""
    columns = (TextColumn("tokenising"), DownloadColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None)
        batch: list[tuple[str, str, bytes]] = []
        size = 0
        for document in documents:
            batch.append(document)
            size += len(document[0])
            if size >= _BATCH_BYTES:
                yield batch
                bar.advance(task, size)
                batch, size = [], 0
        if batch:
            yield batch


def _publish(temporary: Path, folder: Path) -> None:
    """Renames a finished cache, unless an intact one came first; a damaged one makes way."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        try:
            read_manifest(folder, verify=True)
        except ValueError:
            damaged = temporary.with_suffix(".damaged.tmp")
            folder.rename(damaged)
            temporary.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)


def _unigram(counts: np.ndarray[Any, Any], num_bytes: int) -> dict[str, float]:
    """Entropy of the token frequencies: what a model reaches that knows nothing but these."""
    num_tokens = int(counts.sum())
    if num_tokens == 0:
        return {"nats_per_token": 0.0, "bits_per_byte": 0.0}
    frequencies = counts[counts > 0] / num_tokens
    entropy = float(-(frequencies * np.log(frequencies)).sum())
    return {
        "nats_per_token": entropy,
        "bits_per_byte": entropy * num_tokens / num_bytes / math.log(2),
    }


def _sha256_of(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _crc32_of(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
