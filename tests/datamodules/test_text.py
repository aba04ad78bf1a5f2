"""Text data: readers, tokenizers, the cache, blocks, and what a run remembers of them."""

import gzip
import itertools
import json
import logging
import math
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from tenfold.datamodules.text import TextDataModule, cache
from tenfold.datamodules.text.cache import TokenBlocks, prepare_cache, read_manifest
from tenfold.datamodules.text.corpus import find_files, standard_library_files
from tenfold.datamodules.text.tokenizer import BPETokenizer, ByteTokenizer, PretrainedTokenizer
from torch import Tensor


def documents(num: int = 40) -> list[str]:
    """Texts of different lengths, some of them beyond ASCII."""
    words = ["alpha", "beta", "gamma", "d\u00e9lta", "\u4e16\u754c", "\U0001f642", "x = 1\n"]
    return [
        f"document {i}: " + " ".join(words[j % 7] for j in range(i, 3 * i + 9)) for i in range(num)
    ]


def write_files(folder: Path, texts: list[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    return str(folder)


def module(tmp_path: Path, prepare: bool = True, **options: Any) -> TextDataModule:
    options = {
        "sequence_length": 16,
        "batch_size": 4,
        "cache_dir": str(tmp_path / "cache"),
        **options,
    }
    if "dataset" not in options:
        options.setdefault("files", str(tmp_path / "files"))
    data = TextDataModule(**options)
    if prepare:
        data.prepare_data()
        data.setup()
    return data


def tokens_of(data: TextDataModule, split: str) -> list[int]:
    """The tokens of a split, read without the code under test."""
    manifest = json.loads((data.folder / "manifest.json").read_text())
    shards = sorted(data.folder.glob(f"{split}-*.bin"))
    return list(itertools.chain(*(np.fromfile(p, manifest["dtype"]).tolist() for p in shards)))


def documents_of(data: TextDataModule, *splits: str) -> list[str]:
    texts = [bytes(tokens_of(data, split)).decode().split("\0")[:-1] for split in splits]
    return list(itertools.chain(*texts))


def all_batches(loader: Any) -> dict[str, Tensor]:
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


# Readers


def write_corpus(kind: str, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Writes the documents in a format; returns the arguments that read it."""
    folder.mkdir()
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    if kind == "jsonl":
        (folder / "a.jsonl").write_text(lines + "\n")
    elif kind == "jsonl.gz":
        with gzip.open(folder / "a.jsonl.gz", "wt") as file:
            file.write(lines)
    elif kind == "jsonl.zst":  # of two frames, as tools that append write it
        zstandard = pytest.importorskip("zstandard")
        halves = lines[:500].encode(), lines[500:].encode()
        frames = b"".join(zstandard.ZstdCompressor().compress(half) for half in halves)
        (folder / "a.jsonl.zst").write_bytes(frames)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    elif kind == "text with separator":
        (folder / "a.md").write_bytes("<|endoftext|>".join(texts).encode())
        return {"files": str(folder), "document_separator": "<|endoftext|>"}
    elif kind == "glob":
        write_files(folder / "b" / "c", texts)
        (folder / "b" / "other.log").write_text("left out")
        return {"files": [f"{folder}/**/*.txt", f"{folder}/b/c/000.txt"]}
    elif kind == "dataset folder":
        pyarrow.parquet.write_table(table, folder / "train.parquet")
        return {"dataset": str(folder)}
    elif kind == "saved dataset":
        import datasets

        datasets.Dataset(table).save_to_disk(folder / "saved")
        return {"dataset": str(folder / "saved")}
    return {"files": str(folder)}


@pytest.mark.parametrize(
    "kind",
    [
        "jsonl",
        "jsonl.gz",
        "jsonl.zst",
        "parquet",
        "text with separator",
        "glob",
        "dataset folder",
        "saved dataset",
    ],
)
def test_every_format_gives_the_same_corpus(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    texts = documents()
    write_files(tmp_path / "files", texts)
    want = module(tmp_path)
    data = module(tmp_path, **write_corpus(kind, tmp_path / "corpus", texts))
    assert data.folder != want.folder
    assert data.run_info() == want.run_info()
    for split in cache.SPLITS:
        assert tokens_of(data, split) == tokens_of(want, split)
    assert sorted(documents_of(data, *cache.SPLITS)) == sorted(texts)
    digests = b"".join(sha256(text.encode()).digest() for text in texts)
    assert data.run_info()["data_hash"] == sha256(digests).hexdigest()


def test_a_separator_is_found_across_the_blocks_of_a_long_file(tmp_path: Path) -> None:
    texts = [f"{i}" * 700_001 for i in range(5)]
    (tmp_path / "long.txt").write_text("--".join(texts))
    data = module(
        tmp_path, files=str(tmp_path / "long.txt"), document_separator="--", val_fraction=0.0
    )
    assert sorted(documents_of(data, "train", "test")) == texts


def test_hidden_files_are_left_out_and_missing_ones_named(tmp_path: Path) -> None:
    write_files(tmp_path / "files", ["a", "b"])
    (tmp_path / "files" / ".hidden").write_text("c")
    (tmp_path / "files" / ".git").mkdir()
    (tmp_path / "files" / ".git" / "config").write_text("d")
    names = [path.name for path in find_files([str(tmp_path / "files")])]
    assert names == ["000.txt", "001.txt"]
    with pytest.raises(ValueError, match=r"no file at '.*/nothing/\*.txt' \(expected a file"):
        find_files([f"{tmp_path}/nothing/*.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file at '.*/empty'"):
        find_files([str(tmp_path / "empty")])


def test_the_embedded_corpus_is_the_standard_library_without_tests(tmp_path: Path) -> None:
    names = {path.name for path in standard_library_files()}
    assert {"argparse.py", "decoder.py", "__init__.py"} <= names
    assert not {"test_argparse.py", "pytest.py"} & names
    data = module(tmp_path, files=None)
    info = data.run_info()
    assert info["num_train_bytes"] > 5_000_000
    assert info["python_version"].startswith("3.")
    argparse = next(p for p in standard_library_files() if p.name == "argparse.py")
    assert sum(argparse.read_text() in documents_of(data, split) for split in cache.SPLITS) == 1


BAD_RECORDS = {
    "broken.jsonl": (b'{"text": "good"}\n{"text": \n', r"broken.jsonl:2: not a line of JSON"),
    "key.jsonl": (b'{"text": "good"}\n{"id": 1}\n', r"key.jsonl:2: no key 'text' \(found: id\)"),
    "list.jsonl": (b'{"text": "good"}\n[1]\n', r"list.jsonl:2: no key 'text' \(found: list\)"),
    "type.jsonl": (b'{"text": "good"}\n{"text": 5}\n', r"type.jsonl:2: 'text' is no text but int"),
    "half.jsonl": (b'{"text": "good"}\n{"text": "\\ud800"}\n', r"half.jsonl:2: .* not Unicode"),
    "bytes.txt": (b"ab\xff", r"bytes.txt: not UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named_and_counted_or_fails_a_strict_run(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, message = BAD_RECORDS[name]
    write_files(tmp_path / "files", documents())
    (tmp_path / "files" / name).write_bytes(content)
    data = module(tmp_path)
    assert data.run_info()["num_skipped_records"] == 1
    assert [r.getMessage() for r in caplog.records if "skipped 1 bad record" in r.getMessage()]
    num_good = len(documents()) + name.endswith("jsonl")
    assert len(documents_of(data, *cache.SPLITS)) == num_good
    with pytest.raises(ValueError, match=message):
        module(tmp_path, strict=True)


def test_a_corpus_of_bad_records_only_is_an_error_that_shows_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"no text; the first of 2 bad records is .*a.jsonl:1: "):
        module(tmp_path, files=str(tmp_path / "a.jsonl"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"the corpus has no text$"):
        module(tmp_path, files=str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_container_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    if name.endswith("zst"):
        pytest.importorskip("zstandard")
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        module(tmp_path, files=str(tmp_path / name))


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    content = gzip.compress("".join(documents()).encode())
    (tmp_path / "a.txt.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*a\.txt\.gz"):
        module(tmp_path, files=str(tmp_path / "a.txt.gz"))


def test_missing_columns_datasets_and_packages_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), parquet)
    with pytest.raises(ValueError, match=r"a.parquet has no column 'text' \(columns: id, body\)"):
        module(tmp_path, files=str(parquet))
    with pytest.raises(ValueError, match=r"cannot load dataset '.*', config None, split 'nope': "):
        module(
            tmp_path,
            dataset=write_corpus("dataset folder", tmp_path / "d", ["x"])["dataset"],
            dataset_split="nope",
        )
    (tmp_path / "a.jsonl.zst").touch()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"zstandard: pip install tenfold\[text\]"):
        module(tmp_path, files=str(tmp_path / "a.jsonl.zst"))


# Splits


def test_a_document_stays_in_its_split_when_others_come_go_and_are_renamed(tmp_path: Path) -> None:
    texts = documents(120)
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    before = module(tmp_path, files=write_files(tmp_path / "a", texts[:80]), **options)
    more = list(reversed(texts[10:])) + texts[50:60]
    after = module(tmp_path, files=write_files(tmp_path / "b", more), **options)
    place = {text: split for split in cache.SPLITS for text in documents_of(after, split)}
    for split in cache.SPLITS:
        assert len(documents_of(before, split)) >= 8
        assert all(place.get(text, split) == split for text in documents_of(before, split))
    counts = Counter(documents_of(after, *cache.SPLITS))
    assert counts == Counter(more)


def test_the_test_split_does_not_depend_on_the_validation_fraction(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents(100))
    few, many = (module(tmp_path, val_fraction=fraction) for fraction in (0.05, 0.5))
    assert tokens_of(few, "test") == tokens_of(many, "test")
    assert set(documents_of(few, "val")) < set(documents_of(many, "val"))


# Tokenizers


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_bytes_give_the_text_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode([text])
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids.tolist()) == text


BPE = BPETokenizer.train([*documents(), "<|endoftext|>"] * 3, 400)


@given(st.text())
@example("a <|endoftext|> b\n<|endoftext|>")
@settings(max_examples=100, deadline=None)
def test_bpe_gives_the_text_back_and_never_ends_it_early(text: str) -> None:
    (ids,) = BPE.encode([text])
    assert BPE.decode(ids.tolist()) == text
    assert BPE.eos_token_id not in ids


def test_bpe_is_trained_on_the_training_split_alone_and_the_same_each_time(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents(60))
    data = module(tmp_path, tokenizer="bpe", vocab_size=300, val_fraction=0.3)
    by_bytes = module(tmp_path, val_fraction=0.3)
    again = BPETokenizer.train(documents_of(by_bytes, "train"), 300)
    assert data.tokenizer.sha256 == again.sha256
    assert data.tokenizer.decode(tokens_of(data, "val")).split("<|endoftext|>")[:-1] == (
        documents_of(by_bytes, "val")
    )
    assert data.vocab_size == 300
    assert len(tokens_of(data, "train")) < len(tokens_of(by_bytes, "train"))
    with pytest.raises(ValueError, match="257 or more, got 256"):
        module(tmp_path, tokenizer="bpe", vocab_size=256)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = tokenizers.Tokenizer.from_str(BPE.definition)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        folder
    )
    return str(folder)


def test_a_pretrained_tokenizer_is_used_as_it_is(pretrained: str, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(pretrained)
    for text in [*documents(5), "a <|endoftext|> b", ""]:
        assert tokenizer.encode([text])[0].tolist() == BPE.encode([text])[0].tolist()
        assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text
    write_files(tmp_path / "files", documents())
    data = module(tmp_path, tokenizer=pretrained)
    assert (data.vocab_size, data.eos_token_id) == (tokenizer.vocab_size, 0)
    assert data.run_info()["tokenizer_hash"] == tokenizer.sha256
    with pytest.raises(ValueError, match=r"cannot load tokenizer '.*missing' \(expected bytes"):
        module(tmp_path, tokenizer=str(tmp_path / "missing"))


# Blocks and batches


@pytest.mark.parametrize("length", [1, 7, 16])
def test_blocks_follow_one_another_and_never_cross_shards(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD_TOKENS", 500)
    texts = documents()
    write_files(tmp_path / "files", texts)
    data = module(tmp_path, val_fraction=0.0, test_fraction=0.0, sequence_length=length)
    stream = "".join(text + "\0" for text in texts).encode()
    shards = [stream[i : i + 500] for i in range(0, len(stream), 500)]
    assert len(shards) > 3
    want = [
        list(shard[i : i + length + 1])
        for shard in shards
        for i in range(0, len(shard) - length, length)
    ]
    blocks = data.blocks("train")
    assert len(blocks) == len(want)
    batch = all_batches(data._loader(blocks))
    assert torch.cat([batch["input_ids"], batch["labels"][:, -1:]], dim=1).tolist() == want
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert batch["index"].tolist() == list(range(len(want)))
    middle = blocks[len(want) // 2]
    assert middle["input_ids"].tolist() == want[len(want) // 2][:-1]
    with pytest.raises(IndexError):
        blocks[len(want)]


def test_batches_have_the_promised_types_and_own_their_memory(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents())
    batch = next(iter(module(tmp_path, batch_size=1).train_dataloader()))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "input_ids": ((1, 16), torch.int64),
        "labels": ((1, 16), torch.int64),
        "num_bytes": ((1,), torch.float32),
        "index": ((1,), torch.int64),
    }
    before = batch["input_ids"].clone()
    batch["labels"][:] = -100
    assert torch.equal(batch["input_ids"], before)


def test_large_vocabularies_keep_their_ids(tmp_path: Path) -> None:
    class Wide:
        vocab_size, eos_token_id, sha256 = 70_000, 69_999, "wide"

        def encode(self, texts: list[str]) -> list[Any]:
            return [np.array([ord(c) + 60_000 for c in text], dtype=np.uint32) for text in texts]

        def decode(self, ids: list[int]) -> str:
            return "".join(chr(i - 60_000) for i in ids)

    def read() -> Iterator[str | ValueError]:
        return iter(["ab\u2000", "c"])

    prepare_cache(
        tmp_path / "wide", read, lambda texts: Wide(), val_fraction=0.0, test_fraction=0.0
    )
    blocks = TokenBlocks(tmp_path / "wide", read_manifest(tmp_path / "wide", True), "train", 5)
    assert blocks[0]["input_ids"].tolist() == [60_097, 60_098, 68_192, 69_999, 60_099]
    assert blocks[0]["labels"][-1] == 69_999


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bits_per_byte_of_a_split_are_right_for_any_tokenizer(
    tokenizer: str, tmp_path: Path
) -> None:
    texts = documents(200)
    write_files(tmp_path / "files", texts)
    data = module(tmp_path, tokenizer=tokenizer, vocab_size=300, sequence_length=8)
    batch = all_batches(data.test_dataloader())
    by_bytes = module(tmp_path)
    raw = {split: len("".join(documents_of(by_bytes, split)).encode()) for split in cache.SPLITS}
    tokens = {split: tokens_of(data, split) for split in cache.SPLITS}

    # A model that gives every token 2 nats, over all targets of the test split
    num_targets = batch["labels"].numel()
    got = 2 * num_targets / batch["num_bytes"].double().sum().item() / math.log(2)
    assert got == pytest.approx(2 * len(tokens["test"]) / raw["test"] / math.log(2), rel=1e-6)
    assert num_targets == (len(tokens["test"]) - 1) // 8 * 8

    counts = Counter(tokens["train"])
    total = len(tokens["train"])
    entropy = -sum(c / total * math.log(c / total) for c in counts.values())
    info = data.run_info()
    assert info["unigram_entropy"] == pytest.approx(entropy, rel=1e-12)
    want = entropy * total / raw["train"] / math.log(2)
    assert info["unigram_bits_per_byte"] == pytest.approx(want, rel=1e-12)
    assert info["num_train_tokens"] == total


def test_workers_and_pickling_change_nothing(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents())
    first, second = (
        all_batches(module(tmp_path, num_workers=workers).train_dataloader()) for workers in (0, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    blocks = module(tmp_path).blocks("train")
    pickled = pickle.dumps(blocks)
    assert len(pickled) < 3000
    assert torch.equal(pickle.loads(pickled)[3]["labels"], blocks[3]["labels"])


def test_training_order_follows_the_seed_and_the_splits_do_not(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents())
    first, second = (module(tmp_path, seed=seed) for seed in (0, 1))
    assert first.folder == second.folder
    orders = [all_batches(data.train_dataloader())["index"].tolist() for data in (first, second)]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == len(orders[0]) == len(first.blocks("train")) // 4 * 4
    assert all_batches(first.val_dataloader())["index"].tolist() == list(
        range(len(first.blocks("val")))
    )


def test_predict_continues_test_blocks_or_own_prompts(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents(200))
    data = module(tmp_path, num_prompts=3, prompt_length=5)
    batch = all_batches(data.predict_dataloader())
    num_blocks = len(data.blocks("test"))
    assert batch["index"].tolist() == [0, num_blocks // 3, 2 * num_blocks // 3]
    want = [data.blocks("test")[i]["input_ids"][:5].tolist() for i in batch["index"].tolist()]
    assert batch["input_ids"].tolist() == want
    assert batch["labels"].shape == (3, 5)

    data = module(tmp_path, prompts=["ab\u00e9", "", "z"])
    batches = list(data.predict_dataloader())
    ids = [batch["input_ids"].tolist() for batch in batches]
    assert ids == [[list("ab\u00e9".encode())], [[0]], [[122]]]
    assert batches[0]["labels"].tolist() == [[*"b\u00e9".encode(), -100]]
    assert [batch["num_bytes"].item() for batch in batches] == [3, 0, 0]
    record = {"id": "0", "prompt_ids": batches[0]["input_ids"][0], "completion_ids": [99, 100]}
    decoded = data.decode(record)
    assert (decoded["prompt"], decoded["completion"]) == ("ab\u00e9", "cd")
    assert set(record) == {"id", "prompt_ids", "completion_ids"}


# The cache


def test_a_cache_is_made_once_for_each_corpus_tokenizer_and_split(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents())
    first = module(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert module(tmp_path, sequence_length=3, seed=9, batch_size=1).folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times

    folders = [
        first.folder,
        module(tmp_path, tokenizer="bpe", vocab_size=300).folder,
        module(tmp_path, tokenizer="bpe", vocab_size=301).folder,
        module(tmp_path, val_fraction=0.1).folder,
        module(tmp_path, test_fraction=0.1).folder,
    ]
    (tmp_path / "files" / "000.txt").write_text("changed")
    changed = module(tmp_path)
    folders.append(changed.folder)
    assert len(set(folders)) == len(folders)
    assert changed.run_info()["data_hash"] != first.run_info()["data_hash"]
    assert sorted(path.name for path in first.folder.parent.iterdir()) == sorted(
        folder.name for folder in folders
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def miscount(path: Path) -> None:
    text = path.read_text()
    assert '"num_skipped": 0' in text
    path.write_text(text.replace('"num_skipped": 0', '"num_skipped": 1'))


DAMAGE = {
    "train-00000.bin flipped": (flip, r"the checksum of train-00000.bin differs"),
    "val-00000.bin cut": (
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        r"val-00000.bin is \d+ bytes",
    ),
    "test-00000.bin gone": (Path.unlink, r"test-00000.bin is missing"),
    "manifest.json flipped": (flip, r"manifest.json is damaged"),
    "manifest.json miscounts": (miscount, r"manifest.json is damaged \(its checksum differs\)"),
    "manifest.json gone": (Path.unlink, r"manifest.json is damaged"),
    "tokenizer.json flipped": (flip, r"the checksum of tokenizer.json differs"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path / "files", documents())
    options: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 300}
    first = module(tmp_path, **options)
    files = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    harm, message = DAMAGE[damage]
    harm(first.folder / damage.split()[0])
    with caplog.at_level(logging.WARNING):
        module(tmp_path, **options)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "\n" not in warning
    with pytest.raises(ValueError, match=message):
        raise ValueError(warning)
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == files
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_without_verification_only_sizes_are_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path / "files", documents())
    shard = module(tmp_path).folder / "train-00000.bin"
    flip(shard)
    flipped = shard.read_bytes()
    module(tmp_path, verify_cache=False)
    assert shard.read_bytes() == flipped
    assert not caplog.records
    shard.write_bytes(flipped[:-2])
    module(tmp_path, verify_cache=False)
    assert len(shard.read_bytes()) == len(flipped)


def test_an_interrupted_build_leaves_nothing_and_processes_may_race(tmp_path: Path) -> None:
    def prepare(read: Any) -> None:
        prepare_cache(
            tmp_path / "cache" / "text",
            read,
            lambda texts: ByteTokenizer(),
            val_fraction=0.1,
            test_fraction=0.1,
        )

    def interrupted() -> Iterator[str]:
        yield "text" * (2**20)
        yield "more"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted)
    assert list((tmp_path / "cache").iterdir()) == []

    barrier = threading.Barrier(4)
    errors = []

    def slow() -> Iterator[str]:
        yield from documents()
        barrier.wait()  # all have begun before one can finish

    def run() -> None:
        try:
            prepare(slow)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["text"]
    manifest = read_manifest(tmp_path / "cache" / "text", verify=True)
    assert sum(split["num_documents"] for split in manifest["splits"].values()) == 40


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "files", documents())
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "elsewhere"))
    assert module(tmp_path, cache_dir=None).folder.parent == tmp_path / "elsewhere" / "text"


# Arguments and checkpoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"test_fraction": -0.1}, r"test_fraction must be in \[0, 1\), got -0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"must be less than 1, got 0.5 \+ 0.5"),
        ({"sequence_length": 0}, "sequence_length must be 1 or more, got 0"),
        ({"files": "a", "dataset": "b"}, "files and dataset are both given"),
        ({"document_separator": ""}, "document_separator must not be empty"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextDataModule(**options)


def test_a_split_too_short_for_a_sequence_is_refused_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one file is one document " * 10)
    data = module(tmp_path, files=str(tmp_path / "one.txt"), val_fraction=0.001, test_fraction=0.0)
    assert len(data.train_dataloader()) > 0
    message = (
        r"the val split has 0 documents of together 0 tokens, .* sequence of 16 .* document_sep"
    )
    with pytest.raises(ValueError, match=message):
        data.val_dataloader()
    assert (
        module(tmp_path, files=str(tmp_path / "one.txt"), val_fraction=0.0).val_dataloader() == []
    )


def test_using_it_before_setup_says_what_to_call(tmp_path: Path) -> None:
    write_files(tmp_path / "files", documents())
    data = module(tmp_path, prepare=False, tokenizer="bpe", vocab_size=300)
    assert (data.vocab_size, data.eos_token_id) == (300, 0)
    for use in (data.setup, data.train_dataloader, data.run_info, lambda: data.tokenizer):
        with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
            use()


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(300))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.weight[batch["labels"]].square().mean()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/index", batch["index"].float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_knows_its_corpus_and_its_tokenizer_again(tmp_path: Path) -> None:
    def trainer(max_steps: int) -> Trainer:
        return Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    write_files(tmp_path / "files", documents(100))
    write_files(tmp_path / "other", documents(110))
    files, other = str(tmp_path / "files"), str(tmp_path / "other")
    fitted = trainer(3)
    fitted.fit(Model(), datamodule=module(tmp_path, prepare=False))
    fitted.save_checkpoint(tmp_path / "last.ckpt")

    def go_on(command: str, **options: Any) -> int:
        again = trainer(5)
        run = getattr(again, command)
        data = module(tmp_path, prepare=False, **options)
        run(Model(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        return again.global_step

    assert go_on("fit", files=files) == 5
    with pytest.raises(ValueError, match=r"another corpus \(SHA-256 [0-9a-f]{12}, here"):
        go_on("fit", files=other)
    go_on("test", files=other)
    with pytest.raises(ValueError, match="another tokenizer"):
        go_on("test", files=files, tokenizer="bpe", vocab_size=300)


def test_the_command_line_understands_the_arguments() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextDataModule, "data")
    arguments = [
        "--data=tenfold.datamodules.text.TextDataModule",
        "--data.files=[a.txt, b.txt]",
        "--data.prompts=[x]",
    ]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert (data.files, data.prompts, data.tokenizer_name) == (["a.txt", "b.txt"], ["x"], "bytes")
