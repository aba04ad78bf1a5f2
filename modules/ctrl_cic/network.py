"""T5's kind of encoder and decoder with an image among the tokens and a weight for each of them.

Shapes: B sources, S tokens of a source, T tokens of a target, D width, V vocabulary, F width of
image features.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    LongT5EncoderModel,
    MT5EncoderModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from ..causal_lm import check_keys, check_settings, make_config, pretrained_network, random_network
from ..files import atomic_path
from .tokens import IMAGE_SLOT, ContextTokenizer

ENCODERS: dict[str, Any] = {
    "t5": T5EncoderModel,
    "longt5": LongT5EncoderModel,
    "mt5": MT5EncoderModel,
    "umt5": UMT5EncoderModel,
}
PROJECTION_FILE = "image_projection.safetensors"
LORA_TARGETS = ["q", "v"]


def build_config(settings: Mapping[str, Any], tokenizer: ContextTokenizer) -> PreTrainedConfig:
    """Makes the config of a model with random weights for a tokenizer.

    Args:
        settings: `model_type` (t5, longt5, mt5, umt5) and arguments of its config class. Embeddings
            are tied unless told otherwise.
        tokenizer: Gives the size of the vocabulary and the special tokens.

    Raises:
        ValueError: Another type, a key that is no argument of its config class, or a refused value.
    """
    model_type = settings.get("model_type", "t5")
    check_keys("config.model_type", [model_type], ENCODERS)
    check_settings("config", dict(settings), type(AutoConfig.for_model(model_type)))
    own = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.pad,
        "tie_word_embeddings": True,
    }
    return make_config({"model_type": model_type, **own, **settings})


def build_language_model(
    config: PreTrainedConfig | str, tokenizer: ContextTokenizer, seed: int, encoder: bool = False
) -> PreTrainedModel:
    """Builds or loads a model whose embeddings fit a tokenizer.

    Args:
        config: Of random weights, or a folder or hub id to load.
        tokenizer: With the markers.
        seed: Of random weights, those of new tokens included.
        encoder: Whether to build the encoder alone.

    Raises:
        ValueError: There is no such model.
    """
    if isinstance(config, PreTrainedConfig):
        auto = _FromConfig(ENCODERS[config.model_type]) if encoder else AutoModelForSeq2SeqLM
        return random_network(config, seed, auto)
    if torch.get_default_device().type == "meta":
        known: PreTrainedConfig = AutoConfig.from_pretrained(config)
        known.vocab_size = len(tokenizer)
        return build_language_model(known, tokenizer, seed, encoder)
    network: Any = (
        load_encoder(config) if encoder else pretrained_network(config, AutoModelForSeq2SeqLM)
    )
    check_keys("pretrained: model_type", [network.config.model_type], ENCODERS)
    if network.get_input_embeddings().num_embeddings != len(tokenizer):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.resize_token_embeddings(len(tokenizer))
    built: PreTrainedModel = network
    return built


def load_encoder(source: str) -> PreTrainedModel:
    """Loads the encoder of a T5, mT5, UMT5 or LongT5.

    Args:
        source: Folder or hub id.

    Raises:
        ValueError: There is no such model.
    """
    try:
        model_type = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load {source!r}: {reason}") from error
    check_keys(f"{source}: model_type", [model_type], ENCODERS)
    return pretrained_network(source, ENCODERS[model_type])


class _FromConfig:
    """Gives a model class the one method of Auto classes that builds from a config."""

    def __init__(self, model_class: Any) -> None:
        self.from_config = model_class


class ContextNetwork(nn.Module):
    """Encodes contexts with an image.

    Args:
        language: T5's kind of model, whole or encoder alone.
        image_dim: Width F of image features.
        visual_projection: Whether a linear layer brings them to width D; None: if F is not D. The
            paper's features have the model's width and are used as they are.

    Raises:
        ValueError: Features of another width shall be used as they are.
    """

    def __init__(
        self, language: PreTrainedModel, image_dim: int, visual_projection: bool | None = None
    ) -> None:
        super().__init__()
        self.language: Any = language
        width = self.language.config.d_model
        if visual_projection is None:
            visual_projection = image_dim != width
        if not visual_projection and image_dim != width:
            raise ValueError(
                f"visual_projection: image features of width {image_dim} do not fit a model of "
                f"width {width}; set it to true"
            )
        self.image_projection = nn.Linear(image_dim, width) if visual_projection else None

    def embed(self, ids_BS: Tensor, images_BF: Tensor) -> Tensor:
        """Embeds tokens and puts the image into its slot, (B, S, D)."""
        embedded_BSD = self.language.get_input_embeddings()(ids_BS)
        if self.image_projection is None:
            images_BD = images_BF
        else:
            images_BD = self.image_projection(images_BF.to(self.image_projection.weight.dtype))
        before, after = embedded_BSD[:, :IMAGE_SLOT], embedded_BSD[:, IMAGE_SLOT + 1 :]
        return torch.cat((before, images_BD[:, None].to(before.dtype), after), dim=1)

    def encode(
        self, ids_BS: Tensor, mask_BS: Tensor, images_BF: Tensor, weights_BS: Tensor | None = None
    ) -> Tensor:
        """Encodes sources, (B, S, D).

        Args:
            ids_BS: Tokens, the slot of the image included.
            mask_BS: 1 where there is something.
            images_BF: Features.
            weights_BS: What each token's state is multiplied by, keys and values of the decoder's
                cross-attention alike; None: by nothing.
        """
        embedded_BSD = self.embed(ids_BS, images_BF)
        states_BSD: Tensor = self.language.encoder(
            inputs_embeds=embedded_BSD, attention_mask=mask_BS
        ).last_hidden_state
        if weights_BS is None:
            return states_BSD
        return states_BSD * weights_BS[..., None].to(states_BSD.dtype)

    def layers(self) -> list[nn.Module]:
        """Returns the repeated layers, the units of compilation and sharding."""
        stacks = [self.language.encoder, getattr(self.language, "decoder", None)]
        return [block for stack in stacks if stack is not None for block in stack.block]


class CaptionNetwork(ContextNetwork):
    """Writes captions. `language` is a plain model of transformers, weights and all."""

    def forward(
        self,
        ids_BS: Tensor,
        mask_BS: Tensor,
        images_BF: Tensor,
        decoder_ids_BT: Tensor,
        weights_BS: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits of the tokens that follow `decoder_ids_BT`, (B, T, V)."""
        states_BSD = self.encode(ids_BS, mask_BS, images_BF, weights_BS)
        logits: Tensor = self.language(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD),
            attention_mask=mask_BS,
            decoder_input_ids=decoder_ids_BT,
            use_cache=False,
        ).logits
        return logits

    @torch.no_grad()
    def generate(
        self,
        ids_BS: Tensor,
        mask_BS: Tensor,
        images_BF: Tensor,
        weights_BS: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Writes tokens, (B, T); the states are weighted once, before the first token.

        Args:
            ids_BS: See `encode`.
            mask_BS: See `encode`.
            images_BF: See `encode`.
            weights_BS: See `encode`.
            settings: Arguments of transformers' `generate`.
        """
        states_BSD = self.encode(ids_BS, mask_BS, images_BF, weights_BS)
        tokens: Tensor = self.language.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD),
            attention_mask=mask_BS,
            **settings,
        )
        return tokens

    def register_generation(self) -> None:
        """Lets sharded parameters be gathered when `generate` is called, as they are in calls."""
        if isinstance(self, FSDPModule):
            register_fsdp_forward_method(self, "generate")


class RelevanceNetwork(ContextNetwork):
    """Predicts a number for each token of a source."""

    def __init__(
        self, language: PreTrainedModel, image_dim: int, visual_projection: bool | None = None
    ) -> None:
        super().__init__(language, image_dim, visual_projection)
        self.head = nn.Linear(self.language.config.d_model, 1)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor, images_BF: Tensor) -> Tensor:
        """Returns logits, (B, S)."""
        states_BSD = self.encode(ids_BS, mask_BS, images_BF)
        logits: Tensor = self.head(states_BSD.to(self.head.weight.dtype)).squeeze(-1)
        return logits


def add_lora(network: ContextNetwork, settings: Mapping[str, Any]) -> None:
    """Puts LoRA adapters into a network, in place.

    All other weights of the language model are frozen but its embeddings, where the markers are
    new; the projection of images stays trainable.

    Args:
        network: Gets the adapters.
        settings: Arguments of peft's `LoraConfig`. Without `target_modules`: queries and values.

    Raises:
        ValueError: If peft is missing, or refuses the settings.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora: peft is missing: pip install 'tenfold[vision]'") from error
    check_keys("lora", settings, inspect.signature(LoraConfig).parameters)
    try:
        config = LoraConfig(**({"target_modules": LORA_TARGETS} | dict(settings)))
        inject_adapter_in_model(config, network.language)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora: {' '.join(str(error).split())}") from error
    network.language.get_input_embeddings().requires_grad_(True)


def save_projection(network: ContextNetwork, folder: str | Path) -> None:
    """Writes the projection of images beside a language model; nothing where there is none."""
    if network.image_projection is not None:
        tensors = {n: t.contiguous() for n, t in network.image_projection.state_dict().items()}
        with atomic_path(Path(folder) / PROJECTION_FILE) as temporary:
            save_file(tensors, temporary)


def load_projection(network: ContextNetwork, folder: str) -> None:
    """Loads what `save_projection` wrote, where it is."""
    path = Path(folder) / PROJECTION_FILE
    if network.image_projection is not None and path.is_file():
        try:
            network.image_projection.load_state_dict(load_file(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"pretrained: {path} does not fit: {reason}") from error
