"""Image and text towers of transformers and timm, from plain settings.

Shapes: B items, L tokens, C width of a tower, D width of the space that both share.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, SiglipTextConfig, SiglipTextModel

from ..causal_lm import (
    check_keys,
    check_settings,
    decoder_layers,
    make_config,
    pretrained_network,
    random_network,
    recompute_activations,
)
from ..encoders.transformers_model import masked_mean
from ..vision_language_model.conv_vision import register_conv_vision
from .tokenizers import CaptionTokenizer

# They see no padding: CLIP's text tower ends at its end-of-text token, SigLIP's was trained so.
_WITHOUT_MASK = {"clip_text_model", "siglip_text_model"}
_TIMM_LAYERS = ("blocks", "stages", "layers")


class Tower(nn.Module):
    """A network that ends in one vector, and a linear map into the shared space.

    Args:
        network: Of transformers or timm.
        width: C, of its vectors.
        embed_dim: D; None: no map, so that D = C.
    """

    def __init__(self, network: nn.Module, width: int, embed_dim: int | None) -> None:
        super().__init__()
        self.network = network
        self.width = width
        self.projection: nn.Module = nn.Identity()
        if embed_dim is not None:
            self.projection = nn.Linear(width, embed_dim, bias=False)
            nn.init.normal_(self.projection.weight, std=width**-0.5)

    def pool(self, *inputs: Tensor) -> Tensor:
        """Returns the network's own vectors, (B, C)."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor, project: bool = True) -> Tensor:
        """Returns vectors of any length, (B, D), or (B, C) before the map."""
        pooled_BC = self.pool(*inputs)
        return self.projection(pooled_BC) if project else pooled_BC

    def layers(self) -> list[nn.Module]:
        """The repeated layers: units of compilation, recomputation and sharding."""
        if isinstance(self.network, PreTrainedModel):
            return decoder_layers(self.network)
        for name in _TIMM_LAYERS:
            if isinstance(found := getattr(self.network, name, None), nn.Sequential):
                return list(found)
        return []

    def recompute_activations(self) -> None:
        """Lets each layer recompute its activations in the backward pass."""
        if isinstance(self.network, PreTrainedModel):
            recompute_activations(self.network)
        else:
            self.network.set_grad_checkpointing(True)  # type: ignore[operator] # timm's


class ImageTower(Tower):
    """See `Tower`."""

    @property
    def image_size(self) -> int:
        """Side of the images that it takes, in pixels."""
        if isinstance(self.network, PreTrainedModel):
            return int(self.network.config.image_size)
        # A network of timm knows the size that it was made for, whatever its defaults say.
        embedding: Any = getattr(self.network, "patch_embed", None)
        size = getattr(embedding, "img_size", None)
        settings: Any = self.network.pretrained_cfg
        return int(size[0] if size is not None else settings["input_size"][-1])

    def pool(self, *inputs: Tensor) -> Tensor:
        """Pools pictures (B, 3, H, W), already normalised."""
        (pixels_B3HW,) = inputs
        if not isinstance(self.network, PreTrainedModel):
            pooled: Tensor = self.network(pixels_B3HW)
            return pooled
        output = self.network(pixel_values=pixels_B3HW)
        pooler: Tensor | None = getattr(output, "pooler_output", None)
        if pooler is not None:
            return pooler.flatten(1)
        mean: Tensor = output.last_hidden_state.mean(dim=1)
        return mean


class TextTower(Tower):
    """See `Tower`."""

    def pool(self, *inputs: Tensor) -> Tensor:
        """Pools texts, ids and mask (B, L)."""
        input_ids_BL, mask_BL = inputs
        network: Any = self.network
        arguments = {"input_ids": input_ids_BL}
        if network.config.model_type not in _WITHOUT_MASK:
            arguments["attention_mask"] = mask_BL
        output = network(**arguments)
        pooler: Tensor | None = getattr(output, "pooler_output", None)
        return masked_mean(output.last_hidden_state, mask_BL) if pooler is None else pooler


def build_image_tower(settings: Mapping[str, Any], embed_dim: int | None, seed: int) -> ImageTower:
    """Builds an image tower.

    Args:
        settings: `model_type` of a transformers image model (clip_vision_model,
            siglip_vision_model, dinov2, vit, convnext, or `conv_vision` of this library) and
            arguments of its config class; or `timm`, an architecture, and arguments of
            `timm.create_model`; or `pretrained` alone, a folder or hub id of transformers.
        embed_dim: See `Tower`.
        seed: Of random weights.

    Raises:
        ValueError: No such model, an unknown setting, a missing package.
    """
    register_conv_vision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "timm" in settings:
            network, width = _timm_network(dict(settings))
        else:
            network = _transformers_network("image_tower", dict(settings), {}, seed)
            width = _width(network)
        return ImageTower(network, width, embed_dim)


def build_text_tower(
    settings: Mapping[str, Any],
    tokenizer: CaptionTokenizer,
    length: int,
    embed_dim: int | None,
    seed: int,
) -> TextTower:
    """Builds a text tower for a tokenizer.

    Args:
        settings: `model_type` of a transformers text model (clip_text_model, siglip_text_model,
            bert ...) and arguments of its config class; vocabulary, special tokens and positions
            are filled in. Or `pretrained` alone, a folder or hub id.
        tokenizer: What the ids mean.
        length: L, tokens of a text.
        embed_dim: See `Tower`.
        seed: Of random weights.

    Raises:
        ValueError: No such model, an unknown setting, or a pretrained tower with fewer ids or
            positions than are needed.
    """
    known: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": length,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the numbers of the image tower
        network = _transformers_network("text_tower", dict(settings), known, seed + 1)
        config: Any = network.config
        has = {name: getattr(config, name) for name in ("vocab_size", "max_position_embeddings")}
        for name, number in has.items():
            if number < known[name]:
                raise ValueError(
                    f"text_tower: it has {name} {number}, but {known[name]} are needed: choose "
                    "its own tokenizer and a text_length that it knows"
                )
        width = getattr(config, "projection_size", None) or _width(network)
        return TextTower(network, width, embed_dim)


def _transformers_network(
    where: str, settings: dict[str, Any], known: dict[str, Any], seed: int
) -> PreTrainedModel:
    source = settings.pop("pretrained", None)
    if source is not None:
        if settings:
            raise ValueError(f"{where}: pretrained has its own {', '.join(settings)}: give one")
        return pretrained_network(source, AutoModel)
    if "model_type" not in settings:
        raise ValueError(f"{where}: give model_type, timm (image towers) or pretrained")
    try:
        config_class = type(AutoConfig.for_model(settings["model_type"]))
    except ValueError as error:
        raise ValueError(
            f"{where}: transformers has no model_type {settings['model_type']!r}"
        ) from error
    check_settings(where, settings, config_class)
    config = make_config({**known, **settings})
    if isinstance(config, SiglipTextConfig):  # which AutoModel does not know
        return random_network(config, seed, _SiglipText)
    return random_network(config, seed, AutoModel)


class _SiglipText:
    """Stands in for an Auto class."""

    from_config = staticmethod(SiglipTextModel)


def _timm_network(settings: dict[str, Any]) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ValueError("image_tower: timm is missing: pip install 'tenfold[encoders]'") from error
    name = settings.pop("timm")
    check_keys("image_tower.timm", [name.split(".")[0]], timm.list_models())
    try:
        network: Any = timm.create_model(name, **{"num_classes": 0, **settings})
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"image_tower: timm: {' '.join(str(error).split())}") from error
    return network, int(network.num_features)


def _width(network: PreTrainedModel) -> int:
    """Width of what a network pools into."""
    config: Any = network.config
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)
