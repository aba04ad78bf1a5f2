"""Perplexity of texts under a causal language model of transformers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from .descriptions import Rebuildable
from .encoders.network import FLOATS, Inputs, NetworkEncoder
from .encoders.weights import LOAD_ERRORS, load_error, load_transformers, read_config

SHORTEST = 16


class CausalPerplexity(Rebuildable):
    """exp of the mean negative log-likelihood of a text's tokens (RealSyn, equation 2).

    The tokenizer's first token (GPT-2's <|endoftext|>) is put before a text, so that each of its
    tokens counts. Texts are padded to powers of two, and a score depends on its text alone.

    Args:
        model: A folder with weights and tokenizer.
        max_length: Tokens of a text that count at most.
        batch_size: 1, or a multiple of 16.
        seed: Draws random weights in place of the model's; for tests.
        dtype: Of weights and arithmetic.
        device: "auto" is this process's current GPU, else the CPU.

    Raises:
        ValueError: A value is out of range; on first use, the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        max_length: int = 256,
        batch_size: int = 16,
        seed: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str = "auto",
    ) -> None:
        if max_length < 2:
            raise ValueError(f"max_length must be 2 or more, got {max_length}")
        self.model = model
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed
        self.dtype: Literal["float32", "bfloat16", "float16"] = dtype
        self.device = device

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a score, as plain JSON: files by content."""
        return self._likelihood.identity | {"scorer": type(self).__name__}

    def score(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each text; of one without a token, infinity."""
        losses: Tensor = self._likelihood.encode_texts(texts)[:, 0].double()
        return [float(loss) for loss in losses.exp()] if len(texts) else []

    @property
    def _likelihood(self) -> "_Likelihood":
        if "_made" not in vars(self):
            self._made = _Likelihood(
                self.model,
                self.max_length,
                batch_size=self.batch_size,
                seed=self.seed,
                dtype=self.dtype,
                device=self.device,
                normalize=False,
            )
        return self._made


class _Likelihood(NetworkEncoder):
    """The mean negative log-likelihood of a text as a vector of one number."""

    supports_texts = True

    def __init__(self, model: str, max_length: int, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.max_length = max_length

    def _build(self) -> nn.Module:
        config = read_config(self.model)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.model)
        except LOAD_ERRORS as error:
            raise load_error(self.model, error) from error
        first = self._tokenizer.bos_token_id
        self._first = self._tokenizer.eos_token_id if first is None else first
        if self._first is None:
            raise ValueError(f"model: the tokenizer of {self.model} has neither bos nor eos token")
        return load_transformers(
            AutoModelForCausalLM, self.model, config, FLOATS[self.dtype], self._random
        )

    def _text_input(self, text: str) -> Inputs:
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [self._first, *tokens[: self.max_length]]
        length = SHORTEST
        while length < len(ids):
            length *= 2
        padding = length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self._first] * padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
        }

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        logits_BLV: Tensor = self._network(**inputs).logits[:, :-1].float()
        targets_BL = inputs["input_ids"][:, 1:]
        mask_BL = inputs["attention_mask"][:, 1:]
        losses_BL = cross_entropy(logits_BLV.transpose(1, 2), targets_BL, reduction="none")
        # A text without a token has nothing to predict: as improbable as can be said in a number.
        sums_B = (losses_BL * mask_BL).sum(1)
        counts_B = mask_BL.sum(1)
        return torch.where(counts_B > 0, sums_B / counts_B.clamp(min=1), 1e4)[:, None]
