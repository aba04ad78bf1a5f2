"""Text for language models: any corpus, tokenised once, in exactly resumable batches."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import default_collate

from ..loading import ResumableDataLoader
from .cache import FORMAT, TOKENIZER_FILE, Manifest, TokenBlocks, prepare_cache, read_manifest
from .corpus import find_files, read_dataset, read_files, standard_library_files
from .tokenizer import BPETokenizer, ByteTokenizer, PretrainedTokenizer, Tokenizer

__all__ = ["TextDataModule"]

_NOT_SET_UP = "call prepare_data() and setup() first; a Trainer does so itself"


class TextDataModule(LightningDataModule):
    """Batches of tokens from text files, a `datasets` dataset, or the embedded corpus.

    Without `files` and `dataset` the corpus is the source of the running Python's own standard
    library, about 11 MB of text that needs no download. It differs from one Python version to the
    next; `run_info` tells its hash and the version.

    A document (a file, a line of JSON, a row) belongs as a whole to one split, which the hash of
    its text decides: equal documents share a split, and adding documents moves none. The tokens
    are written to a cache once, keyed by corpus (names, sizes and times of files), tokenizer and
    split, and checked at each start. In a split, documents are joined by the end-of-text id and
    cut into blocks of L + 1 tokens, each block beginning with the last token of the one before.

    A batch is a dict: input_ids (B, L) int64; labels (B, L) int64, the token after each input, -100
    for none; num_bytes (B,) float32, the UTF-8 bytes that the labels stand for; index (B,) int64.

    Args:
        files: Files, folders and glob patterns: text in any suffix (.txt, .md, .py ...), JSON lines
            (.jsonl), Parquet; `.gz` and `.zst` are decompressed. A document is held in memory.
        dataset: Hub name or local path of a dataset for `datasets`. A hub dataset is read again
            only when its cache has been deleted.
        dataset_config: Configuration of the dataset, if it has several.
        dataset_split: Its split to read, slices such as "train[:1%]" included.
        text_key: Name of the text in JSON, Parquet and `dataset`.
        document_separator: What divides the documents of a text file, such as "<|endoftext|>".
            None makes each file one document, which leaves nothing to split in a single file.
        tokenizer: "bytes" (UTF-8, 256 ids), "bpe" (byte-level, trained on the training split), or
            a folder or hub name of a tokenizer of `transformers`.
        vocab_size: Size of the "bpe" vocabulary; the other tokenizers have their own.
        sequence_length: L, tokens predicted per sequence.
        batch_size: Sequences per batch and device.
        val_fraction: Share of the documents for validation, in [0, 1).
        test_fraction: Share of the documents for testing, in [0, 1).
        num_workers: Processes that read batches; 0 reads in the main process, which does for text.
        seed: Seed of the order of the training sequences; None takes that of `seed_everything`. The
            splits do not depend on it.
        prompts: What `predict` continues. None takes the beginnings of `num_prompts` test blocks.
        num_prompts: How many test blocks, evenly spaced, `predict` continues.
        prompt_length: Tokens of a test block that `predict` gets, at most `sequence_length`.
        strict: Whether a bad record (no text, broken JSON, not UTF-8) is an error; else such are
            skipped, counted in `run_info`, and the first is named.
        verify_cache: Whether to compare the checksums of an existing cache at the start (about 1 s
            per GB), or only file sizes. A damaged cache is made again.
        cache_dir: Where caches are; by default `$TENFOLD_CACHE`, else `~/.cache/tenfold`.

    Raises:
        ValueError: From the constructor an impossible argument; from `prepare_data` a corpus that
            cannot be read; from the loaders a split too short for one sequence.
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        text_key: str = "text",
        document_separator: str | None = None,
        tokenizer: str = "bytes",
        vocab_size: int = 4096,
        sequence_length: int = 256,
        batch_size: int = 32,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        num_workers: int = 0,
        seed: int | None = None,
        prompts: list[str] | None = None,
        num_prompts: int = 8,
        prompt_length: int = 64,
        strict: bool = False,
        verify_cache: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if files is not None and dataset is not None:
            raise ValueError("files and dataset are both given: the corpus is one or the other")
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"{name} must be in [0, 1), got {fraction}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be less than 1, got "
                f"{val_fraction} + {test_fraction}: nothing is left to train on"
            )
        counts = {
            "sequence_length": sequence_length,
            "batch_size": batch_size,
            "num_prompts": num_prompts,
            "prompt_length": prompt_length,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if document_separator == "":
            raise ValueError("document_separator must not be empty (null: a file is a document)")
        self.files = [files] if isinstance(files, str) else files
        self.dataset = dataset
        self.dataset_config = dataset_config
        self.dataset_split = dataset_split
        self.text_key = text_key
        self.document_separator = document_separator
        self.tokenizer_name = tokenizer
        self.bpe_vocab_size = vocab_size
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.num_workers = num_workers
        self.seed = torch.initial_seed() if seed is None else seed
        self.prompts = prompts
        self.num_prompts = num_prompts
        self.prompt_length = prompt_length
        self.strict = strict
        self.verify_cache = verify_cache
        self.cache_dir = cache_dir
        self._tokenizer: Tokenizer | None = None
        self._manifest: Manifest | None = None

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the size of the embedding that a model needs."""
        return self.bpe_vocab_size if self.tokenizer_name == "bpe" else self.tokenizer.vocab_size

    @property
    def eos_token_id(self) -> int:
        """Id at the end of each document."""
        is_bpe = self.tokenizer_name == "bpe"
        return BPETokenizer.eos_token_id if is_bpe else self.tokenizer.eos_token_id

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; "bpe" exists once the data is prepared."""
        if self._tokenizer is None:
            if self.tokenizer_name == "bpe":
                raise RuntimeError(_NOT_SET_UP)
            is_bytes = self.tokenizer_name == "bytes"
            self._tokenizer = (
                ByteTokenizer() if is_bytes else PretrainedTokenizer(self.tokenizer_name)
            )
        return self._tokenizer

    def prepare_data(self) -> None:
        """Tokenises the corpus, unless an intact cache has it; Lightning does so once per node."""
        prepare_cache(
            self.folder,
            self._read,
            self._make_tokenizer,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            strict=self.strict,
            verify=self.verify_cache,
        )

    def setup(self, stage: str | None = None) -> None:
        """Opens the cache that `prepare_data` left."""
        if not self.folder.exists():
            raise RuntimeError(_NOT_SET_UP)
        self._manifest = read_manifest(self.folder, verify=False)
        if self.tokenizer_name == "bpe":
            definition = (self.folder / TOKENIZER_FILE).read_text("utf-8")
            self._tokenizer = BPETokenizer(definition, self.bpe_vocab_size)

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads the training blocks, in an order of its own in each epoch."""
        return self._loader(self.blocks("train"), shuffle=True, drop_last=True)

    def val_dataloader(self) -> ResumableDataLoader | list[Any]:
        """Loads the validation blocks in order; no loader if `val_fraction` is 0."""
        return self._loader(self.blocks("val")) if self.val_fraction else []

    def test_dataloader(self) -> ResumableDataLoader:
        """Loads the test blocks in order."""
        return self._loader(self.blocks("test"))

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the prompts: batches as in training, cut to `prompt_length`.

        Own prompts have lengths of their own and come one by one. An empty one becomes the
        end-of-text id, after which a new document begins.
        """
        if self.prompts is not None:
            prompts = [self._prompt(index) for index in range(len(self.prompts))]
            return self._loader(prompts, batch_size=1)
        blocks = self.blocks("test")
        num_prompts = min(self.num_prompts, len(blocks))
        places = [k * len(blocks) // num_prompts for k in range(num_prompts)]
        return self._loader([self._beginning(blocks, place) for place in places])

    @cached_property
    def folder(self) -> Path:
        """Where the cache of this corpus, tokenizer and split is, or will be."""
        root = self.cache_dir or os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold"
        is_bpe = self.tokenizer_name == "bpe"
        key = {
            "format": FORMAT,
            "corpus": self._source(),
            "tokenizer": ["bpe", self.bpe_vocab_size] if is_bpe else self.tokenizer.sha256,
            "fractions": [self.val_fraction, self.test_fraction],
            "strict": self.strict,
        }
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return Path(root).expanduser() / "text" / digest[:16]

    def blocks(self, split: str) -> TokenBlocks:
        """Returns the blocks of a split.

        Args:
            split: "train", "val" or "test".

        Raises:
            ValueError: The split is too short for one block.
        """
        info = self.manifest["splits"][split]
        blocks = TokenBlocks(self.folder, self.manifest, split, self.sequence_length)
        if len(blocks) == 0:
            raise ValueError(
                f"the {split} split has {info['num_documents']} documents of together "
                f"{info['num_tokens']} tokens, too few for one sequence of {self.sequence_length} "
                "+ 1 (use more text, a larger fraction, a smaller sequence_length, or "
                "document_separator to cut a file into documents)"
            )
        return blocks

    @property
    def manifest(self) -> Manifest:
        """What the cache tells about itself.

        Raises:
            RuntimeError: `setup` has not been called.
        """
        if self._manifest is None:
            raise RuntimeError(_NOT_SET_UP)
        return self._manifest

    def decode(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Adds text to a record: for each `<name>_ids`, a list or tensor of ids, `<name>`."""
        texts = {}
        for name, ids in record.items():
            if name.endswith("_ids"):
                ids = ids.tolist() if isinstance(ids, Tensor) else ids
                texts[name.removesuffix("_ids")] = self.tokenizer.decode(ids)
        return {**record, **texts}

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values.

        The unigram entropy of the training split is what a model reaches that knows only how
        frequent each token is.
        """
        manifest = self.manifest
        splits = manifest["splits"]
        info = {
            "data_hash": manifest["corpus_sha256"],
            "tokenizer": self.tokenizer_name,
            "tokenizer_hash": manifest["tokenizer_sha256"],
            "vocab_size": self.vocab_size,
            "sequence_length": self.sequence_length,
            **{f"num_{split}_tokens": splits[split]["num_tokens"] for split in splits},
            **{f"num_{split}_documents": splits[split]["num_documents"] for split in splits},
            "num_train_bytes": splits["train"]["num_bytes"],
            "num_skipped_records": manifest["num_skipped"],
            "unigram_entropy": manifest["unigram"]["nats_per_token"],
            "unigram_bits_per_byte": manifest["unigram"]["bits_per_byte"],
        }
        if self.files is None and self.dataset is None:
            info["python_version"] = platform.python_version()
        return info

    def state_dict(self) -> dict[str, Any]:
        """Returns the hashes by which a checkpoint knows its data again."""
        return {name: self.manifest[f"{name}_sha256"] for name in ("corpus", "tokenizer")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hashes of a checkpoint with those of this data.

        Raises:
            ValueError: The tokenizer differs, so that ids mean something else; or in `fit` the
                corpus differs, so that the run cannot go on where it stopped.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        for name in ("tokenizer", "corpus") if fitting else ("tokenizer",):
            then, now = state_dict[name], self.manifest[f"{name}_sha256"]
            if then != now:
                raise ValueError(
                    f"the checkpoint was trained with another {name} (SHA-256 {then[:12]}, here "
                    f"{now[:12]}): use the data settings of its run"
                    + (", or load only the weights" if name == "corpus" else "")
                )

    def _source(self) -> list[Any]:
        """What the cache knows the corpus by, found without reading it."""
        if self.dataset is not None:
            files = find_files([self.dataset]) if Path(self.dataset).exists() else []
            name = [self.dataset, self.dataset_config, self.dataset_split, self.text_key]
        else:
            files = self._files()
            name = [self.text_key, self.document_separator]
        stats = [(path, path.stat()) for path in files]
        return [name, [[str(p.absolute()), stat.st_size, stat.st_mtime_ns] for p, stat in stats]]

    def _files(self) -> list[Path]:
        return standard_library_files() if self.files is None else find_files(self.files)

    def _read(self) -> Iterator[str | ValueError]:
        if self.dataset is not None:
            return read_dataset(
                self.dataset, self.dataset_config, self.dataset_split, self.text_key
            )
        return read_files(self._files(), self.text_key, self.document_separator)

    def _make_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        if self.tokenizer_name == "bpe":
            return BPETokenizer.train(texts, self.bpe_vocab_size)
        return self.tokenizer

    def _loader(
        self,
        dataset: Any,
        shuffle: bool = False,
        drop_last: bool = False,
        batch_size: int | None = None,
    ) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return ResumableDataLoader(
            dataset,
            batch_size=batch_size or self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
            **(shard or {}),
        )

    def _prompt(self, index: int) -> dict[str, Tensor]:
        """Returns a prompt of the user as a sample: a batch without its first axis."""
        assert self.prompts is not None
        text = self.prompts[index]
        ids = self.tokenizer.encode([text])[0].tolist() or [self.eos_token_id]
        num_bytes = len(text.encode("utf-8")) * (len(ids) - 1) / len(ids)
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor([*ids[1:], -100]),
            "num_bytes": torch.tensor(num_bytes),
            "index": torch.tensor(index),
        }

    def _beginning(self, blocks: TokenBlocks, index: int) -> dict[str, Tensor]:
        """Returns the first `prompt_length` tokens of a block as a sample."""
        sample, length = blocks[index], min(self.prompt_length, self.sequence_length)
        return {
            "input_ids": sample["input_ids"][:length],
            "labels": sample["labels"][:length],
            "num_bytes": sample["num_bytes"] * (length / self.sequence_length),
            "index": sample["index"],
        }


def _collate(samples: Any) -> Any:
    """Passes on what is a batch already, as `TokenBlocks` reads them."""
    return samples if isinstance(samples, dict) else default_collate(samples)
