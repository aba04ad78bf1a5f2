"""Sentence encoders: transformers text models with the pooling they were trained with."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from .network import FLOATS, Inputs, NetworkEncoder
from .transformers_model import masked_mean
from .weights import LOAD_ERRORS, load_error, load_transformers, read_config, require_folder

TokenPooling = Literal["mean", "cls", "max", "last"]
SHORTEST = 16
# The names that sentence-transformers has used: until 5 one flag each, then a word.
_POOLINGS: dict[str, TokenPooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
}


class SentenceEncoder(NetworkEncoder):
    """A text model of a local folder, plain or as sentence-transformers saves it.

    Texts are padded to the next power of two, from 16 to `max_length` tokens: texts of a length
    share batches, and short ones do not pay for long ones.

    Args:
        model: A folder with weights and tokenizer.
        pooling: How tokens become one vector: "mean", "cls" (the first), "max" or "last". None:
            what the folder says; "mean" where it says nothing.
        max_length: Tokens per text; None: what the folder says, at most as many as there are
            positions.
        prompt: Put before each text, such as "query: ".
        kwargs: See `NetworkEncoder`.

    Raises:
        ValueError: See `NetworkEncoder`; or the folder wants something else than a transformer, a
            pooling and a normalisation.
    """

    supports_texts = True

    def __init__(
        self,
        model: str,
        pooling: TokenPooling | None = None,
        max_length: int | None = None,
        prompt: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if pooling is not None and pooling not in get_args(TokenPooling):
            raise ValueError(f"pooling: {pooling!r} is none of {', '.join(get_args(TokenPooling))}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        self.pooling: TokenPooling | None = pooling
        self.max_length = max_length
        self.prompt = prompt

    def _build(self) -> nn.Module:
        folder, pooling = self._read_modules(require_folder(self.model))
        self._pooling = self.pooling or pooling
        config = read_config(str(folder))
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except LOAD_ERRORS as error:
            raise load_error(self.model, error) from error
        said = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        positions = getattr(config, "max_position_embeddings", None)
        limits = [n for n in (said, positions, self._tokenizer.model_max_length) if n]
        self._length = self.max_length or min(limits)
        if positions is not None and self._length > positions:
            raise ValueError(f"max_length: {self._length}; {self.model} has {positions} positions")
        # What models have for the next-sentence task is not used here.
        return load_transformers(
            AutoModel, str(folder), config, FLOATS[self.dtype], self._random, spare="pooler."
        )

    def _read_modules(self, folder: Path) -> tuple[Path, TokenPooling]:
        """The folder of the transformer, and the pooling of sentence-transformers' files."""
        inner, pooling = folder, None
        for module in _read_json(folder / "modules.json") or []:
            kind, place = module["type"].rpartition(".")[2], folder / module["path"]
            if kind == "Transformer":
                inner = place
            elif kind == "Pooling":
                pooling = self._read_pooling(place / "config.json")
            elif kind != "Normalize":
                raise ValueError(
                    f"model: {self.model} has a {kind} layer, which is not read here: take a "
                    "sentence encoder of a transformer and a pooling"
                )
        return inner, pooling or "mean"

    def _read_pooling(self, path: Path) -> TokenPooling | None:
        """The pooling of sentence-transformers' file, where the user gave none."""
        if self.pooling is not None:
            return None
        said = _read_json(path)
        modes = [name for name, on in said.items() if name.startswith("pooling_mode_") and on]
        if "pooling_mode" in said:
            modes = (
                said["pooling_mode"]
                if isinstance(said["pooling_mode"], list)
                else [said["pooling_mode"]]
            )
        if len(modes) != 1 or modes[0] not in _POOLINGS or not said.get("include_prompt", True):
            raise ValueError(
                f"model: {self.model} pools in a way that is not read here ({', '.join(modes)}): "
                f"give pooling, one of {', '.join(get_args(TokenPooling))}"
            )
        return _POOLINGS[modes[0]]

    def _text_input(self, text: str) -> Inputs:
        tokens = self._tokenizer(self.prompt + text, truncation=True, max_length=self._length)
        length = SHORTEST
        while length < len(tokens["input_ids"]):
            length *= 2
        padded = self._tokenizer.pad(
            tokens, padding="max_length", max_length=min(length, self._length), return_tensors="pt"
        )
        return dict(padded)

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        tokens_BLD: Tensor = self._network(**inputs).last_hidden_state
        mask_BL = inputs["attention_mask"]
        if self._pooling == "mean":
            return masked_mean(tokens_BLD, mask_BL)
        if self._pooling == "max":
            hidden = mask_BL[..., None] == 0
            return tokens_BLD.masked_fill(hidden, -torch.inf).amax(1)
        places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        marked_BL = mask_BL if self._pooling == "cls" else mask_BL * places_L
        place_B = marked_BL.argmax(1)  # the first of the largest
        return tokens_BLD[torch.arange(len(tokens_BLD), device=mask_BL.device), place_B]


def _read_json(path: Path) -> Any:
    """What a file holds, {} where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path} is no JSON: {error}") from error
