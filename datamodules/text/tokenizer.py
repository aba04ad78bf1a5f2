"""Three ways to turn text into numbers: bytes, a BPE trained on the corpus, a pretrained one."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

IdArray = np.ndarray[tuple[int], np.dtype[np.integer[Any]]]


class Tokenizer(Protocol):
    """What the data needs to know of a tokenizer.

    Attributes:
        vocab_size: Number of ids.
        eos_token_id: Id that ends a document.
        sha256: Hash of all that decides which ids a text gets.
    """

    vocab_size: int
    eos_token_id: int
    sha256: str

    def encode(self, texts: Sequence[str]) -> list[IdArray]:
        """Returns the ids of each text, (num_tokens,), without an end-of-document id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        ...


class ByteTokenizer:
    """The UTF-8 bytes of the text as ids, and byte 0 at the end of a document."""

    vocab_size = 256
    eos_token_id = 0
    sha256 = hashlib.sha256(b"UTF-8 bytes, documents end with 0").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[IdArray]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return bytes(ids).decode("utf-8", errors="replace")


class BPETokenizer:
    """Byte-level byte-pair encoding (GPT-2's): any text has ids, and they give it back exactly.

    Args:
        definition: The JSON text of a `tokenizers.Tokenizer` that `train` returned.
        vocab_size: Size it was trained for. A small corpus may yield fewer ids; the size stays.
    """

    eos_token_id = 0

    def __init__(self, definition: str, vocab_size: int) -> None:
        self.definition = definition
        self.vocab_size = vocab_size
        self.sha256 = hashlib.sha256(definition.encode()).hexdigest()
        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is but text

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learns the merges from `texts`.

        Raises:
            ValueError: `vocab_size` is less than 257: the bytes and the end of a document.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size of a BPE must be 257 or more, got {vocab_size}")
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = byte_level
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=byte_level.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(), vocab_size)

    def encode(self, texts: Sequence[str]) -> list[IdArray]:
        """See `Tokenizer`."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


class PretrainedTokenizer:
    """A tokenizer of `transformers`.

    Args:
        name: Folder or hub name.

    Raises:
        ValueError: It cannot be loaded, or has no id that ends a text.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"cannot load tokenizer {name!r} (expected bytes, bpe, or a folder or hub name for "
                f"transformers): {reason}"
            ) from error
        eos_token_id = tokenizer.eos_token_id
        if eos_token_id is None:
            eos_token_id = tokenizer.sep_token_id
        if eos_token_id is None:
            raise ValueError(f"tokenizer {name!r} has no eos_token and no sep_token")
        vocab = tokenizer.get_vocab()
        self.vocab_size: int = 1 + max(vocab.values())  # ids may have gaps, so not len(tokenizer)
        self.eos_token_id: int = eos_token_id
        if tokenizer.is_fast:
            definition = tokenizer.backend_tokenizer.to_str()
        else:
            definition = json.dumps([type(tokenizer).__name__, sorted(vocab.items())])
        self.sha256 = hashlib.sha256(definition.encode()).hexdigest()
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[IdArray]:
        """See `Tokenizer`."""
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        text: str = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text
