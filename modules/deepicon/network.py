"""The whole network: picture -> embedding -> paths.

Shapes: B icons, S side of the pictures, D width, M patches.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .commands import Term
from .decoders import DecoderSizes
from .encoders import IconEncoder, Seen
from .representation import IconTensors


class IconDecoder(Protocol):
    """What `HierarchicalDecoder` and `FlatDecoder` have in common."""

    blocks: list[nn.Module]
    loss_names: tuple[str, ...]
    report_names: tuple[str, ...]

    def build(self, width: int, sizes: DecoderSizes) -> None:
        """Makes the networks, once."""

    def losses(
        self, image_BD: Tensor, memory_BMD: Tensor | None, batch: dict[str, Any]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Returns the losses by name, and what is only reported."""
        ...

    def generate(
        self,
        image_BD: Tensor,
        memory_BMD: Tensor | None,
        threshold: float,
        temperature: float,
        stop_early: bool,
    ) -> IconTensors:
        """Returns icons."""
        ...


class DeepIconNetwork(nn.Module):
    """Encoder, the MLP that makes one embedding of what it has seen, and decoder.

    Args:
        encoder: Of pictures.
        decoder: Of paths.
        width: D.
        sizes: Of the icons.
    """

    def __init__(
        self, encoder: IconEncoder, decoder: nn.Module, width: int, sizes: DecoderSizes
    ) -> None:
        super().__init__()
        encoder.build()
        self.encoder = encoder
        self.embed = nn.Sequential(
            nn.Linear(encoder.out_features, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )
        self.patch, self.patch_positions = None, None
        if sizes.with_memory:
            self.patch = nn.Sequential(
                nn.Linear(encoder.patch_features, width), nn.LayerNorm(width)
            )
            self.patch_positions = nn.Parameter(torch.randn(encoder.num_patches, width) * 0.02)
        self.decoder = decoder
        self.icon_decoder.build(width, sizes)

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"patch_positions"} if self.patch_positions is not None else set()

    @property
    def icon_decoder(self) -> IconDecoder:
        """The decoder, as what it can do."""
        return cast(IconDecoder, self.decoder)

    def encode(self, image_B3SS: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the embedding (B, D) and the memory (B, M, D), if there is one."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder.frozen):
            seen: Seen = self.encoder(image_B3SS)
        image_BD = self.embed(seen.pooled)
        if self.patch is None:
            return image_BD, None
        return image_BD, self.patch(seen.patches) + self.patch_positions

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Term], dict[str, Term]]:
        """Returns losses and reports; see the decoders."""
        return self.icon_decoder.losses(*self.encode(batch["image"]), batch)

    def generate(
        self,
        image_B3SS: Tensor,
        threshold: float = 0.5,
        temperature: float = 0.0,
        stop_early: bool = True,
    ) -> IconTensors:
        """Returns icons; see the decoders."""
        return self.icon_decoder.generate(
            *self.encode(image_B3SS), threshold, temperature, stop_early
        )
