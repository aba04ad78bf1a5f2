"""The `pack-quantized` checkpoint of compressed-tensors, which vLLM and transformers load.

It holds integer weights with a scale for each group or output; inputs are not rounded. Scales have
the dtype of the network. Written by the library's own compressor and configuration classes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .layers import FakeQuantLayer, FakeQuantLinear
from .networks import plain_copy, plain_kind
from .packed import weight_codes

FORMAT = "pack-quantized"
BITS = (4, 8)
VLLM_GROUP_SIZES = (32, 64, 128)  # of its Marlin kernels, besides a whole row


@dataclass(frozen=True)
class Scheme:
    """How the weight of a layer is rounded, as compressed-tensors sees it.

    Attributes:
        bits: 4 or 8.
        group_size: Columns that share a scale; None: a whole row ("channel").
    """

    bits: int
    group_size: int | None


def write_compressed(
    network: nn.Module, layers: Mapping[str, FakeQuantLayer], folder: Path
) -> list[str]:
    """Writes a transformers model with fake-quantised linear layers into an existing folder.

    Args:
        network: The model.
        layers: Those of its layers whose weight is rounded, by name.
        folder: Where.

    Returns:
        What a user should know of the result, one line each.

    Raises:
        ImportError: compressed-tensors is not installed.
        ValueError: The network or a layer is none that the format holds.
    """
    quantization = _library("quantization")
    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"--format compressed-tensors is for models of transformers, not "
            f"{type(network).__name__}: use --format int4"
        )
    schemes = {name: _scheme(name, layer) for name, layer in layers.items()}
    duplicate = plain_copy(network)
    assert isinstance(duplicate, PreTrainedModel)
    ignored = _not_quantized(duplicate, layers)
    groups = _config_groups(schemes, quantization)
    tensors: dict[str, Tensor] = duplicate.state_dict()
    for name, layer in layers.items():
        del tensors[f"{name}.weight"]
        for key, value in _compress(name, layer, groups[schemes[name]]).items():
            tensors[f"{name}.{key}"] = value
    config = quantization.QuantizationConfig(
        config_groups={f"group_{i}": group for i, group in enumerate(groups.values())},
        format=FORMAT,
        quantization_status="compressed",
        ignore=ignored,
    )
    duplicate.config.quantization_config = config.model_dump()
    duplicate.save_pretrained(folder, state_dict=tensors)
    return list(_notes(network, layers, schemes.values()))


def _library(module: str) -> Any:
    """Imports a module of compressed-tensors."""
    try:
        return import_module(f"compressed_tensors.{module}")
    except ImportError as error:
        raise ImportError(
            "--format compressed-tensors needs the library of that name: "
            "pip install 'tenfold[export]'"
        ) from error


def _scheme(name: str, layer: FakeQuantLayer) -> Scheme:
    """Returns the scheme of a layer."""
    assert layer.weight_quantizer is not None
    config = layer.weight_quantizer.config
    if not isinstance(layer, FakeQuantLinear):
        raise ValueError(
            f"{name}: compressed-tensors holds nn.Linear weights, this is a "
            f"{plain_kind(layer).__name__}: use --format int4"
        )
    if config.grid != "int" or config.bits not in BITS:
        raise ValueError(
            f"{name}: compressed-tensors holds 4 or 8 bit integer weights, this one is {config}: "
            "use --format int4 for other widths, --format fake for other grids"
        )
    return Scheme(config.bits, config.group_size if isinstance(config.group_size, int) else None)


def _config_groups(schemes: Mapping[str, Scheme], quantization: Any) -> dict[Scheme, Any]:
    """Returns the library's description of each scheme, with the layers that have it.

    One scheme is written as vLLM's own models are: for all that is Linear, but what is ignored.
    """
    distinct = list(dict.fromkeys(schemes.values()))
    groups = {}
    for scheme in distinct:
        weights = quantization.QuantizationArgs(
            num_bits=scheme.bits,
            type="int",
            symmetric=True,
            strategy="channel" if scheme.group_size is None else "group",
            group_size=scheme.group_size,
        )
        names = [name for name, other in schemes.items() if other == scheme]
        targets = ["Linear"] if len(distinct) == 1 else names
        groups[scheme] = quantization.QuantizationScheme(targets=targets, weights=weights)
    return groups


def _not_quantized(network: nn.Module, layers: Iterable[str]) -> list[str]:
    """Names what a loader must not take for quantised: other linear layers, fused experts."""
    chosen = set(layers)
    ignored = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if name not in chosen:
                ignored.append(name)
        elif any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            ignored.append(rf"re:{re.escape(name)}.*")
    return ignored


def _compress(name: str, layer: FakeQuantLayer, scheme: Any) -> dict[str, Tensor]:
    """Returns the tensors of a layer's weight; the codes are those of training."""
    codes, scale = weight_codes(name, layer)
    rows = scale.expand(codes.shape[0], -1)  # one scale for the whole tensor is one for each row
    # In float32 the compressor's division gives the codes back, whatever dtype scales are kept in.
    grouped = codes.view(*rows.shape, -1).float() * rows.float().unsqueeze(-1)
    compressor = _library("compressors").BaseCompressor.get_value_from_registry(FORMAT)
    state = {"weight": grouped.view(codes.shape), "weight_scale": rows.float().contiguous()}
    compressed: dict[str, Tensor] = compressor.compress(state, scheme)
    return compressed | {"weight_scale": compressed["weight_scale"].to(layer.weight.dtype)}


def _notes(
    network: PreTrainedModel, layers: Mapping[str, FakeQuantLayer], schemes: Iterable[Scheme]
) -> Iterable[str]:
    if any(layer.input_quantizer is not None for layer in layers.values()):
        yield "the run rounded activations too; this format holds weights only"
    if network.dtype != torch.float32:
        yield f"scales are rounded to {network.dtype}, the network's dtype"
    sizes = {scheme.group_size for scheme in schemes if scheme.group_size is not None}
    for size in sorted(sizes - set(VLLM_GROUP_SIZES)):
        yield f"vLLM has no fast kernel for groups of {size}: only of {VLLM_GROUP_SIZES} and rows"
