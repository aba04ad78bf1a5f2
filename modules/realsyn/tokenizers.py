"""Texts as token ids of a fixed length, for text towers.

Shapes: B texts, L tokens of each.
"""

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer

# Words, and each other sign by itself.
_WORDS = re.compile(r"\w+|[^\w\s]")


class Tokens(NamedTuple):
    """Texts as a tower takes them: both (B, L) int64; the mask is 1 for tokens, 0 for padding."""

    input_ids: Tensor
    attention_mask: Tensor


class CaptionTokenizer(Protocol):
    """What a text tower needs to know of its tokenizer.

    Attributes:
        vocab_size: Number of ids.
        bos_token_id: Begins a text; None: texts begin with their first token.
        eos_token_id: Ends it.
        pad_token_id: Fills it up.
    """

    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """Returns ids, cut and filled up to L = `length`; a text that is cut keeps its end."""
        ...


class HashedWords:
    """Lower-cased words and punctuation, each numbered by its hash: for any corpus, without files.

    Different words may share a number; with V words and as many numbers about a third of them do.

    Args:
        vocab_size: Number of ids, three of them special.

    Raises:
        ValueError: Fewer than 8.
    """

    pad_token_id = 0

    def __init__(self, vocab_size: int = 8192) -> None:
        if vocab_size < 8:
            raise ValueError(f"vocab_size must be 8 or more, got {vocab_size}")
        self.vocab_size = vocab_size
        self.bos_token_id: int | None = vocab_size - 2
        self.eos_token_id = vocab_size - 1

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """See `CaptionTokenizer`."""
        ids_BL = torch.full((len(texts), length), self.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for row, text in enumerate(texts):
            words = _WORDS.findall(text.lower())[: length - 2]
            own = [1 + zlib.crc32(word.encode()) % (self.vocab_size - 3) for word in words]
            ids = [self.vocab_size - 2, *own, self.eos_token_id]
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = 1
        return Tokens(ids_BL, mask_BL)


class PretrainedTokenizer:
    """A tokenizer of transformers.

    Args:
        tokenizer: With an end-of-text token; where there is no padding token that one fills up.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:  # BERT and its relatives
            self.eos_token_id = int(tokenizer.sep_token_id)
            self.bos_token_id: int | None = tokenizer.cls_token_id
        else:
            self.eos_token_id = int(tokenizer.eos_token_id)
            self.bos_token_id = tokenizer.bos_token_id
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.pad_token_id = int(tokenizer.pad_token_id)
        self.vocab_size = len(tokenizer)

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """See `CaptionTokenizer`."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])


def build_tokenizer(name: str, vocab_size: int | None = None) -> CaptionTokenizer:
    """Makes a tokenizer.

    Args:
        name: "words" (`HashedWords`), "clip" (CLIP's 49,408 byte pairs, from the file inside of
            open_clip), or a folder or hub id of transformers.
        vocab_size: Of "words"; None: 8192.

    Raises:
        ValueError: There is none, a package is missing, or `vocab_size` has no meaning.
    """
    if name == "words":
        return HashedWords(8192 if vocab_size is None else vocab_size)
    if vocab_size is not None:
        raise ValueError(f"vocab_size: the tokenizer {name!r} has its own; set it to null")
    if name == "clip":
        return PretrainedTokenizer(clip_tokenizer())
    try:
        return PretrainedTokenizer(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer: cannot load {name!r}: {reason}") from error


def clip_tokenizer() -> Any:
    """Makes CLIP's tokenizer from the merges that open_clip brings along; nothing is downloaded.

    Raises:
        ValueError: open_clip is not installed.
    """
    try:
        from open_clip.tokenizer import bytes_to_unicode, default_bpe
    except ImportError as error:
        raise ValueError(
            "tokenizer: 'clip' needs open_clip: pip install 'tenfold[encoders]' (or take 'words')"
        ) from error
    with gzip.open(Path(default_bpe()), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # The file has more merges than CLIP was trained with, after a line that names its version.
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    make: Any = CLIPTokenizer
    return make(vocab=vocabulary, merges=merges)
