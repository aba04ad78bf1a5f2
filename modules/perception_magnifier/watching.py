"""Sees, and changes, what a language model attends to, whatever fused kernel it runs.

transformers looks attention up by the name in the config. `watched(network)` gives the decoder a
name of ours for a while: the same kernel, with `last_row_attention` beside it when a `Watch` asks
for it. Vision towers are left alone.

Shapes: B sequences, L their length so far, H heads, K keys.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...kernels.last_row_attention import last_row_attention

PREFIX = "watched_"
DEFAULT = "sdpa"  # beside models whose attention is their own code, "eager"


@dataclass
class Watch:
    """What is seen and changed in one forward pass. Layers count from 1, as papers do.

    Args:
        first_layer: Rows are kept from this layer on; None: of no layer.
        last_layer: And up to this one; None: to the last.
        gain: (B, L), how much closer the last query looks at a key, see `last_row_attention`.
        gain_layers: The first and the last layer in which it does.
        drop_after: After this layer, of `candidates` only those tokens can be seen that its last
            query attended to least.
        candidates: (B, L) bool, which tokens may be dropped.
        num_kept: (B,) int64, how many of them are kept.
        rows: By layer the attention of the last query, (B, H, K).
    """

    first_layer: int | None = None
    last_layer: int | None = None
    gain: Tensor | None = None
    gain_layers: tuple[int, int] = (1, 1)
    drop_after: int | None = None
    candidates: Tensor | None = None
    num_kept: Tensor | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)
    dropped: Tensor | None = None

    def keeps(self, layer: int) -> bool:
        """Says whether a layer's row is kept."""
        last = layer if self.last_layer is None else self.last_layer
        return self.first_layer is not None and self.first_layer <= layer <= last

    def gains(self, layer: int) -> bool:
        """Says whether the last query looks closer in a layer."""
        return self.gain is not None and self.gain_layers[0] <= layer <= self.gain_layers[1]


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(network: PreTrainedModel) -> Iterator[None]:
    """Lets watches see the decoder's attention while the block runs.

    Raises:
        ValueError: The decoder's attention cannot be exchanged.
    """
    decoder: Any = network.get_decoder()  # type: ignore[no-untyped-call]
    before = decoder.config._attn_implementation
    kernel = before if before in ALL_ATTENTION_FUNCTIONS else DEFAULT
    name = PREFIX + kernel
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:
        raise ValueError(
            f"{type(decoder).__name__}: its attention cannot be watched, because it does not use "
            "transformers' AttentionInterface; use a strategy that needs no attention"
        )
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Lets one watch see the forward passes of the block."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def check_seen(watch: Watch, network: PreTrainedModel) -> list[Tensor]:
    """Returns the rows that were seen, in the order of layers.

    Raises:
        ValueError: A layer has not told, such as one without attention weights.
    """
    num_layers = network.config.get_text_config().num_hidden_layers
    asked = [layer for layer in range(1, num_layers + 1) if watch.keeps(layer)]
    missing = [layer for layer in asked if layer not in watch.rows]
    if missing or not asked:
        raise ValueError(
            f"{type(network).__name__}: layers {missing or 'none'} of {num_layers} have no "
            "attention weights to look at; use a strategy that needs none, such as VCD"
        )
    return [watch.rows[layer] for layer in asked]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The kernel that the name of the config ends with, and what the watch asks for."""
    name = module.config._attn_implementation.removeprefix(PREFIX)
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[name]
    watch = _watch.get()
    if watch is None:
        return kernel(module, query, key, value, attention_mask, **kwargs)
    layer = module.layer_idx + 1
    if watch.dropped is not None:
        attention_mask = _without(watch.dropped, attention_mask, query, key)
    output, weights = kernel(module, query, key, value, attention_mask, **kwargs)

    def row(gain_BL: Tensor | None = None) -> Tensor:
        return last_row_attention(query, key, attention_mask, kwargs.get("scaling"), gain_BL)

    if watch.gains(layer):
        row_BHK = row(watch.gain)
        repeats = query.shape[1] // value.shape[1]
        seen = row_BHK[:, :, None].to(value.dtype) @ value.repeat_interleave(repeats, dim=1)
        output = torch.cat([output[:, :-1], seen.transpose(1, 2)], dim=1)
    if watch.keeps(layer):
        watch.rows[layer] = row_BHK if watch.gains(layer) else row()
    if layer == watch.drop_after:
        watch.dropped = _least_attended(row(), watch)
    return output, weights


def _least_attended(row_BHK: Tensor, watch: Watch) -> Tensor:
    """Marks the candidates that are dropped: all but those of least attention, (B, K) bool."""
    candidates_BK, num_kept_B = watch.candidates, watch.num_kept
    assert candidates_BK is not None
    assert num_kept_B is not None
    mean_BK = row_BHK.mean(dim=1).masked_fill(~candidates_BK, torch.inf)
    rank_BK = mean_BK.argsort(dim=1, stable=True).argsort(dim=1)
    return candidates_BK & (rank_BK >= num_kept_B[:, None])


def _without(dropped_BK: Tensor, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Hides keys in a mask of four axes, or of none."""
    kept = ~dropped_BK[:, None, None]
    if mask is None:
        num_queries, num_keys = query.shape[2], key.shape[2]
        causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        return causal.tril(num_keys - num_queries) & kept
    if mask.dtype == torch.bool:
        return mask & kept
    return mask.masked_fill(~kept, torch.finfo(mask.dtype).min)
