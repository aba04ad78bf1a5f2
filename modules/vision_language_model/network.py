"""Image-text-to-text models of transformers from plain settings, their features, their adapters.

Shapes: B batch, L sequence length, D width of the language model, F image features in all.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..causal_lm import check_keys, check_settings, make_config, pretrained_network, random_network
from ..files import atomic_path
from .conv_vision import register_conv_vision

PARTS = ("text_config", "vision_config")
LANGUAGE_LAYERS = r".*(language|text)_model\..*_proj"


def build_config(settings: Mapping[str, Any], token_ids: Mapping[str, int]) -> PreTrainedConfig:
    """Makes a transformers config from `model_type` and nested settings.

    Args:
        settings: `model_type` and arguments of its config class; `text_config` and `vision_config`
            are settings too. `conv_vision` is a `model_type` of vision configs here.
        token_ids: Special tokens of the tokenizer by the names of config arguments, and its
            `vocab_size`; settings win.

    Raises:
        ValueError: If the type is no image-text-to-text model, a key is not an argument of its
            config class (transformers would ignore it), or a value is refused.
    """
    register_conv_vision()
    if "model_type" not in settings:
        raise ValueError("config: model_type is missing, e.g. llava, idefics3 or qwen2_5_vl")
    model_type = settings["model_type"]
    check_keys("config.model_type", [model_type], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    config_class = type(AutoConfig.for_model(model_type))
    check_settings("config", dict(settings), config_class)
    own = {
        name: value
        for name, value in token_ids.items()
        if name.endswith("_token_id") and hasattr(config_class(), name)
    }
    text = {"vocab_size": token_ids["vocab_size"]}
    text |= {f"{name}_token_id": token_ids[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    nested = {"text_config": text | settings.get("text_config", {})}
    config = make_config({**own, **settings, **nested})
    for part in PARTS:
        if part in settings:
            check_settings(f"config.{part}", settings[part], type(getattr(config, part)))
    return config


def build_network(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Builds a network with random weights that depend on the seed alone."""
    register_conv_vision()
    return random_network(config, seed, AutoModelForImageTextToText)


def load_network(source: str) -> PreTrainedModel:
    """Loads a folder or hub repository in the default dtype; only shapes on the meta device.

    Raises:
        ValueError: If there is no such folder or repository, or no such model in it.
    """
    register_conv_vision()
    return pretrained_network(source, AutoModelForImageTextToText)


def add_lora(network: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Puts LoRA adapters into a network, in place, and freezes all other weights.

    Args:
        network: Gets the adapters; its class and the names of its own weights' modules stay.
        settings: Arguments of peft's `LoraConfig`. Without `target_modules`: all linear layers of
            the language model.

    Raises:
        ValueError: If peft is missing, or refuses the settings.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora: peft is missing: pip install 'tenfold[vision]'") from error
    check_keys("lora", settings, inspect.signature(LoraConfig).parameters)
    try:
        config = LoraConfig(**({"target_modules": LANGUAGE_LAYERS} | dict(settings)))
        inject_adapter_in_model(config, network)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora: {' '.join(str(error).split())}") from error


def save_lora(network: PreTrainedModel, folder: str | Path) -> None:
    """Writes the adapters of `add_lora` as peft does, for `PeftModel.from_pretrained`."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(network)
    config = network.peft_config["default"]
    prefixed = {f"base_model.model.{name}": w.contiguous() for name, w in weights.items()}
    with atomic_path(Path(folder) / "adapter_model.safetensors") as temporary:
        save_file(prefixed, temporary, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def image_features(network: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Encodes the images of `inputs` as the language model sees them, (F, D).

    Args:
        network: Any image-text-to-text model with `get_image_features`.
        inputs: What its processor returned; token inputs are ignored.
    """
    return torch.cat(features_of_images(network, inputs))


def features_of_images(network: PreTrainedModel, inputs: Mapping[str, Any]) -> list[Tensor]:
    """As `image_features`, in the parts that the model returns: images, or conversations."""
    encode: Any = network.base_model.get_image_features
    known = inspect.signature(encode).parameters
    return split_features(encode(**{k: value for k, value in inputs.items() if k in known}))


def split_features(output: Any) -> list[Tensor]:
    """Splits what `get_image_features` returns into its parts, (F, D) each."""
    # transformers before 5 returned the features themselves.
    features = getattr(output, "pooler_output", output)
    return [part.flatten(0, -2) for part in features]


def with_features(
    network: PreTrainedModel, inputs: Mapping[str, Any], features_FD: Tensor
) -> dict[str, Any]:
    """Returns `inputs` in which image features replace the pixels, for `network(...)`.

    So images are encoded once and used often, or changed on the way. The features are put into the
    token embeddings here, which works in every version of transformers (5.23 and later could take
    them as `mm_encoder_outputs`); positions that a model derives from token ids are added.

    Args:
        network: The model.
        inputs: What its processor returned.
        features_FD: As from `image_features`, in order.

    Raises:
        ValueError: The number of features is not that of the places for them.
    """
    ids_BL = inputs["input_ids"]
    embeddings_BLD = network.get_input_embeddings()(ids_BL)
    places_BL = ids_BL == network.config.image_token_id
    if int(places_BL.sum()) != len(features_FD):
        raise ValueError(f"{len(features_FD)} image features for {int(places_BL.sum())} places")
    pixels = {"pixel_values", "pixel_attention_mask", "image_sizes"}
    kept = {name: value for name, value in inputs.items() if name not in pixels | {"input_ids"}}
    embeddings_BLD = embeddings_BLD.masked_scatter(
        places_BL[..., None], features_FD.to(embeddings_BLD.dtype)
    )
    return {**kept, **_positions(network, inputs), "inputs_embeds": embeddings_BLD}


def _positions(network: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns `position_ids` of models that derive them from token ids (Qwen's M-RoPE)."""
    derive = getattr(network.base_model, "get_rope_index", None)
    if derive is None or "position_ids" in inputs:
        return {}
    known = inspect.signature(derive).parameters
    positions, _ = derive(**{name: value for name, value in inputs.items() if name in known})
    return {"position_ids": positions}
