"""Transformer layers of the decoders.

Shapes: N sequences, L positions of each, S at most, D width, H heads, M memory vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Heads = tuple[Tensor, Tensor]  # keys and values, (N, H, L, D / H) each


class Cache:
    """What a layer remembers while a sequence grows: its keys and values, and the memory's.

    Args:
        length: S.
    """

    def __init__(self, length: int) -> None:
        self.max_length, self.length = length, 0
        self.own: Heads | None = None
        self.memory: Heads | None = None

    def add(self, keys: Tensor, values: Tensor) -> Heads:
        """Adds one position (N, H, 1, D / H); returns all so far."""
        if self.own is None:
            size = (*keys.shape[:2], self.max_length, keys.shape[3])
            self.own = keys.new_empty(size), values.new_empty(size)
        self.length += 1
        for kept, new in zip(self.own, (keys, values), strict=True):
            kept[:, :, self.length - 1] = new[:, :, 0]
        return self.own[0][:, :, : self.length], self.own[1][:, :, : self.length]


class Attention(nn.Module):
    """Multi-head attention.

    Args:
        width: D.
        num_heads: H, a divisor of D.
        dropout: Of the attention weights, in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x_NLD: Tensor) -> Heads:
        """Returns what is attended to."""
        key, value = self.key_value(x_NLD).chunk(2, dim=-1)
        return self._heads(key), self._heads(value)

    def forward(self, x_NLD: Tensor, attended: Heads, causal: bool = False) -> Tensor:
        """Returns (N, L, D)."""
        mixed = F.scaled_dot_product_attention(
            self._heads(self.query(x_NLD)),
            *attended,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_NLD: Tensor) -> Tensor:
        N, L, _ = x_NLD.shape
        return x_NLD.view(N, L, self.num_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer layer that may be told one vector, and may look at a memory.

    To attend to a memory of one vector is to add a linear function of it, softmax over one key
    being 1: so `condition` is the cross-attention to a single embedding.

    Args:
        width: D.
        num_heads: H.
        hidden: Width of the MLP.
        dropout: After attention and MLP, in training.
        conditioned: Whether it is told a vector.
        with_memory: Whether it attends to a memory.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        conditioned: bool = False,
        with_memory: bool = False,
    ) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, num_heads, dropout)
        self.condition = nn.Linear(width, width) if conditioned else None
        self.memory_norm = nn.LayerNorm(width) if with_memory else None
        self.memory_attention = Attention(width, num_heads, dropout) if with_memory else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_NLD: Tensor,
        condition_ND: Tensor | None = None,
        memory_NMD: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """Returns (N, L, D); with a cache L is 1, the position after those in it."""
        normed = self.norm(x_NLD)
        attended = self.attention.keys_values(normed)
        if cache is not None:
            attended = cache.add(*attended)
        mixed = self.attention(normed, attended, causal and cache is None)
        x_NLD = x_NLD + self.dropout(mixed)
        if self.condition is not None:
            assert condition_ND is not None
            x_NLD = x_NLD + self.condition(condition_ND)[:, None]
        if self.memory_attention is not None and self.memory_norm is not None:
            assert memory_NMD is not None
            seen = cache.memory if cache is not None else None
            if seen is None:
                seen = self.memory_attention.keys_values(memory_NMD)
            if cache is not None:
                cache.memory = seen
            looked = self.memory_attention(self.memory_norm(x_NLD), seen)
            x_NLD = x_NLD + self.dropout(looked)
        out: Tensor = x_NLD + self.dropout(self.mlp(self.mlp_norm(x_NLD)))
        return out


class FourierFeatures(nn.Module):
    """Sines and cosines of coordinates: a linear layer of the coordinates alone learns slowly.

    Args:
        num_octaves: Frequencies, each twice the one before, the first of half a turn over [-1, 1].
    """

    def __init__(self, num_octaves: int) -> None:
        super().__init__()
        self.num_octaves = num_octaves

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., n * (1 + 2 * num_octaves)) of coordinates (..., n)."""
        octaves = torch.arange(self.num_octaves, device=x.device)
        angles = x[..., None] * (torch.pi / 2 * 2.0**octaves)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return torch.cat([x, waves], dim=-1)

    def width(self, num_args: int) -> int:
        """How many features there are of so many coordinates."""
        return num_args * (1 + 2 * self.num_octaves)
