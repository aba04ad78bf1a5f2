"""Copies of a network without quantizers, and what a file says so that it can be built again."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from .layers import KINDS, FakeQuantLayer

Library = Literal["transformers", "timm"]

PLAIN_KINDS = {kind: plain for plain, kind in KINDS.items()}


def library_of(network: nn.Module) -> Library | None:
    """Returns the library that can save and load a network; None for any other class."""
    if isinstance(network, PreTrainedModel):
        return "transformers"
    is_timm = type(network).__module__.startswith("timm.") and hasattr(network, "pretrained_cfg")
    return "timm" if is_timm else None


def plain_kind(layer: FakeQuantLayer) -> type[nn.Module]:
    """Returns the class that a fake-quantised layer had before."""
    return PLAIN_KINDS[type(layer)]


def plain_copy(network: nn.Module, weights: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copies a network without its quantizers; the copy shares every tensor but `weights`.

    Args:
        network: Left as it is; so it is when modules of the copy are replaced.
        weights: Identity (`id`) of a Parameter -> the values that the copy has in its place.
    """
    memo: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    for identity, weight in (weights or {}).items():
        memo[identity] = nn.Parameter(weight, requires_grad=False)
    for module in network.modules():
        if isinstance(module, FakeQuantLayer):
            memo[id(module._cached)] = None
    duplicate = copy.deepcopy(network, memo)
    for module in duplicate.modules():
        if isinstance(module, FakeQuantLayer):
            kind: type[nn.Module] = plain_kind(module)
            for name in ("weight_quantizer", "input_quantizer", "cache_weight", "_cached"):
                delattr(module, name)
            module.__class__ = kind  # type: ignore[assignment] # undoes `prepare_qat`
    return duplicate


def describe_network(network: nn.Module) -> dict[str, Any]:
    """Returns what `build_network` needs, as plain data."""
    description: dict[str, Any] = {
        "library": library_of(network),
        "class": type(network).__name__,
    }
    if isinstance(network, PreTrainedModel):
        description["config"] = network.config.to_dict()
        if network.can_generate():
            description["generation_config"] = network.generation_config.to_dict()
    return description


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """Builds what `describe_network` described, with random weights; the generator is restored.

    Raises:
        ValueError: Only its own code can build the network, or this transformers does not know it.
    """
    name = description["class"]
    if description["library"] != "transformers":
        raise ValueError(
            f"{name} is no model of transformers, so it cannot be built from its description: "
            "build it and pass it, as in load_quantized(folder, network)"
        )
    network_class = getattr(transformers, name, None)
    if network_class is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no {name}: use the version that the "
            f"network was trained with, {description['config'].get('transformers_version')}"
        )
    with torch.random.fork_rng(devices=[]):
        network: PreTrainedModel = network_class(
            network_class.config_class.from_dict(description["config"])
        )
    if "generation_config" in description:
        network.generation_config = GenerationConfig.from_dict(description["generation_config"])
    return network
