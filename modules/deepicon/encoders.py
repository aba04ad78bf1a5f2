"""Networks that look at the picture of an icon: CLIP's image tower, timm's, a few convolutions.

Each is called with pictures (B, 3, S, S) in [0, 1] and returns `Seen`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Seen(NamedTuple):
    """What an encoder makes of pictures: one vector (B, F), and one for each patch (B, M, C)."""

    pooled: Tensor
    patches: Tensor


class IconEncoder(nn.Module):
    """What the encoders share.

    `build` makes the network, when the model is configured: on the meta device without weights.

    Attributes:
        out_features: F.
        patch_features: C.
        num_patches: M.
        frozen: Whether it is not trained.
    """

    out_features: int
    patch_features: int
    num_patches: int
    frozen: bool = False

    def build(self) -> None:
        """Makes the network, once."""


class ConvIconEncoder(IconEncoder):
    """Residual convolutions, each stage halving the picture; the vector is linear in all patches.

    A mean over patches, as is usual, would forget where things are.

    Args:
        image_size: Side of the pictures, a multiple of 2 ** number of stages.
        widths: Of the stages; the last is C.
        out_features: F.

    Raises:
        ValueError: The size cannot be halved so often, or a width is no multiple of 8.
    """

    def __init__(
        self,
        image_size: int = 64,
        widths: Sequence[int] = (32, 64, 128),
        out_features: int = 256,
    ) -> None:
        super().__init__()
        if image_size % 2 ** len(widths):
            raise ValueError(f"image_size {image_size} cannot be halved {len(widths)} times")
        if any(width % 8 for width in widths):
            raise ValueError(f"widths: {widths} are not all multiples of 8")
        side = image_size // 2 ** len(widths)
        self.image_size = image_size
        self.out_features, self.patch_features, self.num_patches = out_features, widths[-1], side**2
        # The largest pictures are the dearest: the first stage only halves.
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        layers += [_Stage(*pair) for pair in pairwise(widths)]
        self.stages = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(widths[-1], 32, 1)
        self.out = nn.Linear(32 * side**2, out_features)

    def forward(self, image_B3SS: Tensor) -> Seen:
        """See `Seen`."""
        if image_B3SS.shape[-1] != self.image_size:
            raise ValueError(
                f"image: side {image_B3SS.shape[-1]}, the encoder's image_size is {self.image_size}"
            )
        features = self.stages(1 - image_B3SS)  # ink is what there is to see
        pooled = self.out(F.gelu(self.squeeze(features)).flatten(1))
        return Seen(pooled, features.flatten(2).mT.contiguous())  # no view: FSDP2 minds


class _Stage(nn.Module):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.before = nn.GroupNorm(8, in_channels)
        self.down = nn.Conv2d(in_channels, width, 4, stride=2, padding=1)
        self.norm, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.gelu(self.before(x)))
        inner = self.first(F.gelu(self.norm(x)))
        out: Tensor = x + self.second(F.gelu(self.norm2(inner)))
        return out


class ClipIconEncoder(IconEncoder):
    """CLIP's image tower with its projection, of transformers.

    Args:
        pretrained: Folder or hub id of its weights, as `openai/clip-vit-base-patch32`; None: random
            ones.
        config: Settings of `CLIPVisionConfig` where they differ from ViT-B/32's; with `pretrained`
            those of the folder count, and these must agree with it.
        freeze: Whether it is not trained.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig

        self.pretrained, self.frozen = pretrained, freeze
        self.config = CLIPVisionConfig(**(config or {}))
        self.out_features = self.config.projection_dim
        self.patch_features = self.config.hidden_size
        self.image_size = int(cast(int, self.config.image_size))
        self.num_patches = (self.image_size // int(cast(int, self.config.patch_size))) ** 2

    def build(self) -> None:
        """See `IconEncoder`."""
        from transformers import CLIPVisionModelWithProjection

        if hasattr(self, "tower"):
            return
        if self.pretrained is None or torch.get_default_device().type == "meta":
            tower = CLIPVisionModelWithProjection(self.config)
        else:
            tower = CLIPVisionModelWithProjection.from_pretrained(self.pretrained)
            given = (self.out_features, self.patch_features, self.num_patches)
            found = tower.config
            sides = cast(int, found.image_size) // cast(int, found.patch_size)
            if given != (found.projection_dim, found.hidden_size, sides**2):
                raise ValueError(
                    f"encoder: '{self.pretrained}' is no ViT-B/32; give its projection_dim "
                    f"{found.projection_dim}, hidden_size {found.hidden_size}, image_size "
                    f"{found.image_size} and patch_size {found.patch_size} as config"
                )
        self.tower = tower.train().requires_grad_(not self.frozen)

    def forward(self, image_B3SS: Tensor) -> Seen:
        """See `Seen`."""
        pixels = _normalized(image_B3SS, self.image_size, CLIP_MEAN, CLIP_STD)
        output = self.tower(pixel_values=pixels)
        return Seen(output.image_embeds, output.last_hidden_state[:, 1:])


class TimmIconEncoder(IconEncoder):
    """Any image model of timm.

    Args:
        model: Name, as `vit_tiny_patch16_224`.
        pretrained: Whether to load timm's weights, from the hub.
        image_size: Side that pictures are resized to.
        freeze: Whether it is not trained.

    Raises:
        ImportError: timm is not installed.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        image_size: int = 224,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                "TimmIconEncoder needs timm: pip install 'tenfold[encoders]'"
            ) from error
        self.model, self.pretrained, self.frozen = model, pretrained, freeze
        self.image_size = image_size
        with torch.device("meta"):  # for its sizes alone
            network = timm.create_model(model, num_classes=0).eval()
        with torch.no_grad():
            seen = self._seen(network, torch.empty(1, 3, image_size, image_size, device="meta"))
        self.out_features = seen.pooled.shape[1]
        self.num_patches, self.patch_features = seen.patches.shape[1:]

    def build(self) -> None:
        """See `IconEncoder`."""
        import timm

        if hasattr(self, "network"):
            return
        weights = self.pretrained and torch.get_default_device().type != "meta"
        network = timm.create_model(self.model, pretrained=weights, num_classes=0)
        self.network = network.requires_grad_(not self.frozen)

    def forward(self, image_B3SS: Tensor) -> Seen:
        """See `Seen`."""
        pixels = _normalized(image_B3SS, self.image_size, IMAGENET_MEAN, IMAGENET_STD)
        return self._seen(self.network, pixels)

    @staticmethod
    def _seen(network: Any, pixels: Tensor) -> Seen:
        features = network.forward_features(pixels)
        pooled = network.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # (B, C, h, w)
            return Seen(pooled, features.flatten(2).mT)
        return Seen(pooled, features[:, int(getattr(network, "num_prefix_tokens", 0)) :])


def _normalized(
    image_B3SS: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    if image_B3SS.shape[-1] != size:
        image_B3SS = F.interpolate(image_B3SS, (size, size), mode="bicubic", antialias=True)
    shift, scale = (image_B3SS.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (image_B3SS - shift) / scale
