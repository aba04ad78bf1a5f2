"""The packed format: integer codes and scales of quantised weights, all other tensors as they are.

A folder of two files. `model.safetensors` holds, for a quantised layer `name`:

- layout `int4_rows`: `name.weight_packed`, (R, K / 2) uint8, see `kernels.int4`;
- layout `int8`: `name.weight_codes`, (R, K) int8, one code in a byte;
- `name.weight_scale`, float32: (R, K / G), or (1, 1) when the tensor shares one scale.

R is the number of outputs, K what one output is summed over; `weight_rows` of the layer's kind says
how its weight is viewed so. A weight is `code * scale`, rounded once to its dtype: bit for bit what
training multiplied with. `config.json` has the format's name and version, the network, each layer
(what its weight was and how its input is rounded while the network runs), which names stand for the
same tensor, and the SHA-256 of `model.safetensors`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...kernels.fake_quant import dequantize
from ...kernels.int4 import pack_int4, unpack_int4
from ..files import sha256_of_file, write_json
from .layers import FakeQuantLayer
from .networks import describe_network, plain_kind
from .prepare import quantized_layers

FORMAT = "tenfold-packed"
VERSION = 1
TENSORS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class PackedNetwork:
    """What a folder holds.

    Attributes:
        folder: Where it was read.
        network: What `networks.build_network` needs.
        layers: Name of a quantised layer -> its `type`, its `weight` and its `input`; each of the
            latter None where it is not rounded.
        tied: Name of a tensor -> the name under which it is stored.
        tensors: What `model.safetensors` holds.
    """

    folder: Path
    network: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    tied: dict[str, str]
    tensors: dict[str, Tensor]


# Writing


def write_packed(network: nn.Module, folder: Path) -> None:
    """Writes a network with fake-quantised layers into an existing folder.

    Raises:
        ValueError: A weight is on the "fp4_e2m1" grid, or holds NaN or infinity.
    """
    layers = quantized_layers(network)
    tensors, tied = _plain_tensors(network, layers)
    described: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        activation = layer.input_quantizer
        described[name] = {
            "type": plain_kind(layer).__name__,
            "weight": None,
            "input": None if activation is None else asdict(activation.config),
        }
        if layer.weight_quantizer is not None:
            described[name]["weight"], packed = _pack(name, layer)
            tensors |= {f"{name}.{key}": value for key, value in packed.items()}
    path = folder / TENSORS
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "network": describe_network(network),
        "layers": described,
        "tied": tied,
        "sha256": sha256_of_file(path),
    }
    write_json(folder / CONFIG, content)


def weight_codes(name: str, layer: FakeQuantLayer) -> tuple[Tensor, Tensor]:
    """Returns the integer codes (R, K) int8 of a layer's weight and their scales.

    Raises:
        ValueError: There are none: the grid is "fp4_e2m1", or the weight holds NaN or infinity.
    """
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    if quantizer.config.grid != "int":
        raise ValueError(
            f"{name}: a weight on the grid {quantizer.config.grid} has no integer codes: use "
            "--format fake, which writes the rounded values"
        )
    require_finite(name, layer)
    with torch.no_grad():
        return quantizer.codes(layer.weight_rows(layer.weight))


def require_finite(name: str, layer: FakeQuantLayer) -> None:
    """Refuses a weight that no grid can hold.

    Raises:
        ValueError: It holds NaN or infinity.
    """
    if not bool(layer.weight.isfinite().all()):
        raise ValueError(
            f"{name}.weight holds NaN or infinity: training diverged; export an earlier checkpoint"
        )


def _pack(name: str, layer: FakeQuantLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what `config.json` says of a weight, and its tensors."""
    codes, scale = weight_codes(name, layer)
    assert layer.weight_quantizer is not None
    config = layer.weight_quantizer.config
    fits = config.bits == 4 and scale.dtype == torch.float32 and _group_size(codes, scale) % 2 == 0
    layout = "int4_rows" if fits else "int8"
    described = {
        "bits": config.bits,
        "group_size": config.group_size,
        "method": config.method,
        "divisor": config.divisor or 2.0 ** (config.bits - 1),
        "layout": layout,
        "shape": list(layer.weight.shape),
        "dtype": str(layer.weight.dtype).removeprefix("torch."),
    }
    stored = {"weight_packed": pack_int4(codes)} if fits else {"weight_codes": codes}
    return described, stored | {"weight_scale": scale}


def _group_size(codes: Tensor, scale: Tensor) -> int:
    """Returns how many codes of a row share a scale."""
    return int(codes.shape[1] // scale.shape[1])


def _plain_tensors(
    network: nn.Module, layers: Mapping[str, FakeQuantLayer]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors that are stored as they are, and the names that share one of others."""
    packed = {f"{n}.weight" for n, layer in layers.items() if layer.weight_quantizer is not None}
    learned = {f"{n}.weight_quantizer.{p}" for n in layers for p in ("scale", "clip")}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name in packed or name in learned:
            first.setdefault(id(tensor), name)
        elif id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach()
    return tensors, tied


# Reading


def read_packed(folder: str | Path) -> PackedNetwork:
    """Reads and verifies a folder.

    Raises:
        ValueError: A file is missing or damaged, or another program or version wrote it.
    """
    folder = Path(folder)
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing: {folder} is no packed network; write one with "
                "`tenfold export --format int4`"
            )
    content = _read_config(folder / CONFIG)
    path = folder / TENSORS
    if sha256_of_file(path) != content["sha256"]:
        raise _damaged(path, f"its SHA-256 is not the one in {CONFIG}")
    found = PackedNetwork(
        folder, content["network"], content["layers"], content["tied"], load_file(path)
    )
    for name, layer in found.layers.items():
        try:
            _check_layer(found, name, layer)
        except KeyError as error:
            raise _damaged(folder / CONFIG, f"layer {name} lacks {error}") from error
    return found


def dequantized_state_dict(folder: str | Path) -> dict[str, Tensor]:
    """Returns the state dict of the plain network, weights rounded as training saw them.

    Raises:
        ValueError: The folder is damaged or no packed network.
    """
    return plain_state_dict(read_packed(folder))


def plain_state_dict(packed: PackedNetwork) -> dict[str, Tensor]:
    """Returns the tensors of the plain network under its own names, without those of quantizers."""
    quantized = {
        f"{name}.{part}"
        for name in packed.layers
        for part in ("weight_packed", "weight_codes", "weight_scale", "input_quantizer.clip")
    }
    state = {name: value for name, value in packed.tensors.items() if name not in quantized}
    for name, layer in packed.layers.items():
        if layer["weight"] is not None:
            state[f"{name}.weight"] = dequantized_weight(packed, name)
    for name, stored in packed.tied.items():
        if stored in state:  # else it belongs to a quantizer
            state[name] = state[stored]
    return state


def dequantized_weight(packed: PackedNetwork, name: str) -> Tensor:
    """Returns the weight of a layer in its own layout and dtype."""
    layer = packed.layers[name]
    weight, scale = layer["weight"], packed.tensors[f"{name}.weight_scale"]
    if weight["layout"] == "int4_rows":
        codes = unpack_int4(packed.tensors[f"{name}.weight_packed"])
    else:
        codes = packed.tensors[f"{name}.weight_codes"]
    groups = codes.view(scale.shape[0], -1)
    rows = dequantize(groups, scale, getattr(torch, weight["dtype"])).view(codes.shape)
    if layer["type"] == "Conv1D":
        return rows.t().contiguous()
    outputs, channels, *kernel = weight["shape"]
    return rows.view(outputs, *kernel, channels).movedim(-1, 1).contiguous()


def _read_config(path: Path) -> dict[str, Any]:
    """Reads `config.json`, which must be of this format and version."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form, version = content["format"], content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it does not describe a packed network ({error!r})") from error
    if form != FORMAT or version != VERSION:
        raise ValueError(
            f"{path}: format {form} version {version}, but this tenfold reads {FORMAT} version "
            f"{VERSION}: use the tenfold that wrote it, or export again"
        )
    missing = {"network", "layers", "tied", "sha256"} - content.keys()
    if missing:
        raise _damaged(path, f"it lacks {', '.join(sorted(missing))}")
    return content


def _check_layer(packed: PackedNetwork, name: str, layer: Mapping[str, Any]) -> None:
    """Refuses tensors that are not what `config.json` says of a layer."""
    path, weight = packed.folder / TENSORS, layer["weight"]
    if weight is None:
        expected: dict[str, tuple[int, ...] | None] = {"weight": None}
    else:
        num_rows = weight["shape"][1 if layer["type"] == "Conv1D" else 0]
        num_columns = math.prod(weight["shape"]) // num_rows
        is_packed = weight["layout"] == "int4_rows"
        codes = ("weight_packed", num_columns // 2) if is_packed else ("weight_codes", num_columns)
        size = weight["group_size"]
        num_groups = num_columns // size if isinstance(size, int) else 1
        scale = (1 if size == "per_tensor" else num_rows, num_groups)
        expected = {codes[0]: (num_rows, codes[1]), "weight_scale": scale}
    for key, shape in expected.items():
        tensor = packed.tensors.get(f"{name}.{key}")
        if tensor is None:
            raise _damaged(path, f"{name}.{key} is missing")
        if shape is not None and tensor.shape != shape:
            found = tuple(tensor.shape)
            raise _damaged(path, f"{name}.{key} has shape {found}, {CONFIG} says {shape}")


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(f"{path} is damaged: {problem}; copy the folder again, or export again")
