"""Vectors of short phrases, learned from nothing, for any words."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class HashedPhrases(nn.Module):
    """A phrase is the mean of the vectors of its letter triples, as in fastText.

    There is no vocabulary: triples are hashed, so that new words have vectors as well.

    Args:
        width: D.
        num_buckets: Vectors that the triples share.
    """

    def __init__(self, width: int, num_buckets: int = 4096) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.vectors = nn.EmbeddingBag(num_buckets, width, mode="mean")

    def forward(self, phrases: Sequence[Sequence[str]]) -> Tensor:
        """Returns the vectors of N lists of P phrases, (N, P, D)."""
        bags = [self._buckets(text) for row in phrases for text in row]
        starts = [0]
        for bag in bags[:-1]:
            starts.append(starts[-1] + len(bag))
        device = self.vectors.weight.device
        flat = torch.tensor([bucket for bag in bags for bucket in bag], device=device)
        vectors: Tensor = self.vectors(flat, torch.tensor(starts, device=device))
        return vectors.reshape(len(phrases), len(phrases[0]), -1)

    def _buckets(self, text: str) -> list[int]:
        """Places of the triples of a text, with marks at the ends of words."""
        marked = f" {' '.join(text.lower().split())} "
        triples = {marked[i : i + 3] for i in range(max(1, len(marked) - 2))}
        return sorted(zlib.crc32(triple.encode()) % self.num_buckets for triple in triples)
