"""One stream of tokens through a model, with a cache of its own.

Decoders that compare two views of a question hold two branches; sharing one cache between them is
the known mistake of released code.

Shapes: B questions, L length so far, V vocabulary.
"""

import inspect
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .prompt import Padded
from .watching import Watch, watching


@dataclass
class Costs:
    """What answers have cost, each (B,) int64; each of several beams counts.

    Args:
        prefills: Forward passes of the whole sequence so far.
        cached_steps: Forward passes of one token.
        encoded_images: Images through the vision tower.
        rounds: Passes with hidden tokens, which also count as one of the first two.
        tokens: Of the answer.
    """

    prefills: Tensor
    cached_steps: Tensor
    encoded_images: Tensor
    rounds: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, count: int) -> "Costs":
        """Nothing yet."""
        return cls(*(torch.zeros(count, dtype=torch.int64) for _ in fields(cls)))

    def row(self, index: int) -> dict[str, int]:
        """Those of one question, by name."""
        return {part.name: int(getattr(self, part.name)[index]) for part in fields(self)}


class Branch:
    """Forward passes of a batch of questions and of what was answered so far.

    Args:
        network: The model.
        padded: The questions.
        costs: Counts passes; None: they are not counted.
        rows: int64, which rows of `costs` the questions are; None: all in order.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        padded: Padded,
        costs: Costs | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.network, self.costs = network, costs
        self.embeds, self.mask, self.positions = padded.embeds, padded.mask, padded.positions
        self.is_image = padded.is_image
        self.rows = torch.arange(len(self.mask)) if rows is None else rows.cpu()
        self.cache: Any = DynamicCache()
        # It has another name since transformers 5.23.
        names = inspect.signature(network.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._num_cached = self._num_last = 0
        # Columns before any row's first image: they look the same whatever images show or hide.
        self._prefix = int(self.is_image.int().argmax(dim=1).min())

    def start_like(self, other: "Branch") -> None:
        """Takes over what another branch knows of the tokens before the images.

        Args:
            other: Has the same tokens before its images, in the rows of `costs` that this one has.
        """
        size = min(self._prefix, other._prefix, other._num_cached)
        if size:
            places = torch.cat([(other.rows == row).nonzero()[:, 0] for row in self.rows])
            self.cache = other._cached(places.to(self.mask.device), size)
            self._num_cached = size

    def append(self, token_B: Tensor) -> None:
        """Appends a token to each row; the next forward pass runs it."""
        embeds_B1D = self.network.get_input_embeddings()(token_B[:, None])
        self.embeds = torch.cat([self.embeds, embeds_B1D], dim=1)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self.is_image = F.pad(self.is_image, (0, 1), value=False)
        # After an image in a grid, the largest of its three positions goes on.
        last = self.positions.amax(dim=-1, keepdim=True)
        last = last.amax(dim=0, keepdim=True).expand_as(last) if last.dim() == 3 else last
        self.positions = torch.cat([self.positions, last + 1], dim=-1)

    def forward(self, active_B: Tensor, watch: Watch | None = None, *, keep: bool = True) -> Tensor:
        """Runs what was not run yet; returns the logits of the next token, (B, V) float32.

        Args:
            active_B: bool, the questions that are not yet answered; others cost nothing.
            watch: Sees attention.
            keep: Whether the branch goes on later; else what is not needed is not cached.
        """
        length, begin = self.mask.shape[1], self._num_cached
        self._num_last = length - begin
        cache = self.cache if keep or begin else None
        logits = self._run(self.mask, slice(begin, length), watch, cache)
        self._count(active_B, begin <= self._prefix)
        self._num_cached = 0 if cache is None else length
        return logits

    def look_again(
        self, hidden_BL: Tensor, active_B: Tensor, watch: Watch, *, whole: bool = False
    ) -> Tensor:
        """Repeats the last forward pass with hidden tokens; the branch stays as it was.

        After the pass of the whole prompt, this hides them from all queries; later from the last
        tokens alone, whose cached past still knows of them, as in the released code.

        Args:
            hidden_BL: bool.
            active_B: bool, the questions that are asked.
            watch: Sees attention.
            whole: Runs the whole sequence, also later.

        Returns:
            Logits (B, V) float32. Those of questions that are not asked, and their rows in the
            watch, are 0 or anything.
        """
        length, size = self.mask.shape[1], self._num_last
        mask_BL = self.mask.masked_fill(hidden_BL, 0)
        whole = whole or length - size <= self._prefix
        self._count(active_B, whole)
        if self.costs is not None:
            rows = self.rows[active_B.cpu()]
            self.costs.rounds.index_add_(0, rows, torch.ones_like(rows))
        if whole:
            begin = min(self._prefix, self._num_cached)
            cache = self._cached(active_B, begin) if begin else None
            logits = self._run(mask_BL, slice(begin, length), watch, cache, active_B)
            for layer, row_BHK in watch.rows.items():
                watch.rows[layer] = _expanded(row_BHK, active_B)
            return _expanded(logits, active_B)
        tails = [
            (layer.keys[:, :, -size:], layer.values[:, :, -size:]) for layer in self.cache.layers
        ]
        self.cache.crop(-size)
        logits = self._run(mask_BL, slice(length - size, length), watch, self.cache)
        self.cache.crop(-size)
        for index, (keys, values) in enumerate(tails):
            self.cache.update(keys, values, index)
        return logits

    def select(self, places: Tensor) -> None:
        """Goes on with some of the rows, in this order; one may come more than once.

        Args:
            places: int64, of rows of this branch.
        """
        self.embeds, self.mask = self.embeds[places], self.mask[places]
        self.positions, self.is_image = self.positions[..., places, :], self.is_image[places]
        self.rows = self.rows[places.cpu()]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[places], layer.values[places]

    def join(self, other: "Branch") -> None:
        """Takes up the rows of another branch that has run as much, after its own."""
        self.embeds = torch.cat([self.embeds, other.embeds])
        self.mask = torch.cat([self.mask, other.mask])
        self.positions = torch.cat([self.positions, other.positions], dim=-2)
        self.is_image = torch.cat([self.is_image, other.is_image])
        self.rows = torch.cat([self.rows, other.rows])
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, its.keys])
            mine.values = torch.cat([mine.values, its.values])

    def _cached(self, rows: Tensor, size: int) -> DynamicCache:
        """Returns a cache of the first columns of some rows."""
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[rows, :, :size], layer.values[rows, :, :size], index)
        return cache

    def _count(self, active_B: Tensor, whole: bool) -> None:
        if self.costs is not None:
            passes = self.costs.prefills if whole else self.costs.cached_steps
            rows = self.rows[active_B.cpu()]
            passes.index_add_(0, rows, torch.ones_like(rows))

    def _run(
        self,
        mask_BL: Tensor,
        part: slice,
        watch: Watch | None,
        cache: DynamicCache | None,
        of_B: Tensor | None = None,
    ) -> Tensor:
        rows = slice(None) if of_B is None else of_B
        with watching(watch):
            output = self.network(
                inputs_embeds=self.embeds[rows, part],
                attention_mask=mask_BL[rows],
                position_ids=self.positions[..., rows, part],
                use_cache=cache is not None,
                logits_to_keep=1,
                **({} if cache is None else {self._cache_name: cache}),
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _expanded(values: Tensor, rows_B: Tensor) -> Tensor:
    """Puts rows where they belong among all; others are 0."""
    whole = values.new_zeros(len(rows_B), *values.shape[1:])
    whole[rows_B] = values
    return whole
