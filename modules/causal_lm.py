"""Causal language models of transformers from plain settings, with misspelt keys refused."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from lightning.fabric.utilities.throughput import measure_flops
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Arguments that transformers' configs take without listing them as fields.
UNLISTED_KEYS = {
    "attn_implementation",
    "experts_implementation",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_theta",
}
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def build_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """Makes a transformers config from `model_type` (default llama) and its class's arguments.

    Special token ids are None unless given: the defaults of the class belong to the tokenizer of
    some published model, and a padding id would silence that row of the embedding.

    Raises:
        ValueError: If the type has no causal language model, a key is not an argument of its
            config class (transformers would ignore it), or a value is refused.
    """
    settings = {"model_type": "llama"} | settings
    model_type = settings["model_type"]
    check_keys("config.model_type", [model_type], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    config_class = type(AutoConfig.for_model(model_type))
    check_settings("config", settings, config_class)
    names = {field.name for field in fields(config_class)}
    return make_config({name: None for name in SPECIAL_TOKENS if name in names} | settings)


def check_settings(where: str, settings: dict[str, Any], config_class: type[Any]) -> None:
    """Refuses settings that a config class would silently ignore.

    Raises:
        ValueError: If a key is not an argument of the class.
    """
    names = {field.name for field in fields(config_class)}
    known = names | set(config_class.attribute_map) | UNLISTED_KEYS | {"model_type"}
    check_keys(where, settings, known)


def make_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """Makes the config of `model_type` with all other settings as arguments.

    Raises:
        ValueError: If its class refuses a value.
    """
    arguments = dict(settings)
    model_type = arguments.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **arguments)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"config: {' '.join(str(error).split())}") from error


def random_network(
    config: PreTrainedConfig, seed: int, auto_class: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Builds a network with random weights that depend on the seed alone.

    The global generator is left as it was: what follows does not depend on the size of the network
    either. Under `torch.device("meta")` there are no weights.

    Args:
        config: What to build.
        seed: Seed of the weights.
        auto_class: Which of transformers' Auto classes finds the network.
    """
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network: PreTrainedModel = auto_class.from_config(deepcopy(config))
    return network


def pretrained_network(source: str, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Loads a folder or hub repository in the default dtype; only shapes on the meta device.

    Args:
        source: Folder or hub id.
        auto_class: Which of transformers' Auto classes finds the network.

    Raises:
        ValueError: If there is no such folder or repository, or no model of that kind in it.
    """
    try:
        if torch.get_default_device().type == "meta":
            return random_network(AutoConfig.from_pretrained(source), 0, auto_class)
        network: PreTrainedModel = auto_class.from_pretrained(
            source, dtype=torch.get_default_dtype()
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"pretrained: cannot load {source!r}: {reason}") from error
    return network


def decoder_layers(network: PreTrainedModel) -> list[nn.Module]:
    """Returns the repeated layers, the units of compilation, recomputation and sharding."""
    return [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_activations(network: PreTrainedModel) -> None:
    """Lets each decoder layer recompute its activations in the backward pass."""
    # Renamed within transformers 5: the old name warns where the new one exists.
    name = "activation_checkpointing_enable"
    enable = getattr(network, name, None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def num_non_embedding_parameters(network: PreTrainedModel) -> int:
    """Counts parameters outside input and output embeddings: the N of scaling laws.

    Scales that a quantizer learns are not counted, so that N is that of the unquantised network.
    """
    ends = [network.get_input_embeddings()]
    ends.append(network.get_output_embeddings())  # type: ignore[no-untyped-call]
    embeddings = {id(p) for end in ends if end is not None for p in end.parameters()}
    return sum(
        p.numel()
        for name, p in network.named_parameters()
        if id(p) not in embeddings and "_quantizer." not in name
    )


def flops_per_token(config: PreTrainedConfig, length: int) -> float:
    """Counts floating-point operations per token, forward and backward, without recomputation.

    Measured on the meta device. A causal model is charged for full attention over `length` tokens,
    as is the custom for MFU, a mixture of experts for its active experts only.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        # Grouped kernels read group sizes from the data, which the meta device does not have.
        network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config), experts_implementation="batched_mm"
        )
        ids = torch.zeros(1, length, dtype=torch.long)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool)

    def forward() -> Tensor:
        logits: Tensor = network(ids, attention_mask=mask, use_cache=False).logits
        return logits

    return measure_flops(network, forward, Tensor.sum) / length


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a key that is not known, naming near ones.

    Raises:
        ValueError: If a key of `given` is not in `known`.
    """
    known = set(known)
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), sorted(known))
            hint = f"did you mean {' or '.join(near)}?" if near else "transformers has no such key"
            raise ValueError(f"{where}: unknown {key!r}; {hint}")
