"""What the modules of Ctrl-CIC build alike: exchangeable parts, tokenizers, losses."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..descriptions import Rebuildable, build_described
from .tokens import load_tokenizer, word_tokenizer

IGNORED = -100
T = TypeVar("T", bound=Rebuildable)


def describe(part: Rebuildable) -> dict[str, Any]:
    """Returns class path and arguments of a part, for a checkpoint's hyperparameters."""
    cls = type(part)
    path = f"{cls.__module__}.{cls.__qualname__}"
    return {"class_path": path, "init_args": part.__getstate__()}


def make_part(kind: Callable[..., T], part: Any, name: str) -> T | None:
    """Returns a part that is given as itself, as what `describe` returns, or not at all."""
    described: Any = kind
    made: T | None = build_described(described, part, name) if isinstance(part, Mapping) else part
    return made


def tokenizer_of(
    config: Mapping[str, Any] | None,
    pretrained: str | None,
    vocabulary: str | None,
    tokenizer: str | None,
) -> PreTrainedTokenizerBase:
    """Makes or loads the tokenizer of a model.

    Raises:
        ValueError: Not exactly one of config and pretrained is given, or no tokenizer.
    """
    if (config is None) == (pretrained is None):
        raise ValueError(
            "give exactly one of model.init_args.config (random weights) and .pretrained "
            "(a folder or hub id); set the other to null"
        )
    if tokenizer is not None or pretrained is not None:
        if vocabulary is not None:
            raise ValueError("vocabulary: the tokenizer has its own; set it to null")
        return load_tokenizer(str(tokenizer or pretrained))
    if vocabulary is None:
        raise ValueError(
            "config: give model.init_args.vocabulary (all words that occur) or .tokenizer (a "
            "folder, as `tenfold pages` writes it, or a hub id)"
        )
    return word_tokenizer(vocabulary)


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns cross-entropy in nats, (B, T) float32, 0 where labels are -100."""
    losses = F.cross_entropy(
        logits_BTV.float().flatten(0, 1),
        labels_BT.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.view_as(labels_BT)
