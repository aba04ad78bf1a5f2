"""Writing what a network was trained to be: full precision, rounded, or packed."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..files import atomic_folder, write_json
from .compressed import write_compressed
from .layers import FakeQuantLayer
from .networks import describe_network, library_of, plain_copy
from .packed import CONFIG, TENSORS, require_finite, write_packed
from .prepare import quantized_layers

Format = Literal["hf", "fake", "int4", "compressed-tensors"]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: Where.
        format: How.
        precisions: How a layer's weight is rounded -> number of such layers.
        bytes_before: Of the network's own tensors, each counted once.
        bytes_after: Of the tensor files written.
        loading: Python that loads the folder.
        notes: What a user should know of the result, one line each.
    """

    folder: Path
    format: Format
    precisions: dict[str, int]
    bytes_before: int
    bytes_after: int
    loading: str
    notes: list[str] = field(default_factory=list)


def export_quantized(
    network: nn.Module,
    folder: str | Path,
    format: Format = "int4",  # noqa: A002 - the command line's name
    overwrite: bool = False,
) -> Export:
    """Writes a copy of a network that `prepare_qat` has made fake-quantised; it stays as it is.

    The folder is whole or absent: it is written under a temporary name and renamed.

    Args:
        network: A model of transformers or timm, or for "fake" and "int4" any other.
        folder: What to write.
        format: One of

            - "hf": weights in full precision, as the optimizer left them, in the layout of the
              network's library: `from_pretrained` loads it;
            - "fake": the same with rounded weights. For a network of no library, safetensors and
              a config.json;
            - "int4": codes and scales, see `packed`; `load_quantized` loads it;
            - "compressed-tensors": `pack-quantized`, for vLLM and transformers, see `compressed`.
        overwrite: Whether an earlier export in `folder` may be replaced.

    Returns:
        What was written.

    Raises:
        ValueError: The folder exists, nothing is quantised, or the format cannot hold the network.
        ImportError: The format needs a library that is not installed.
    """
    if format not in get_args(Format):
        raise ValueError(f"format: {format!r} is none of {', '.join(get_args(Format))}")
    folder = Path(folder)
    layers = {n: m for n, m in quantized_layers(network).items() if m.weight_quantizer is not None}
    if format != "hf" and not layers:
        raise ValueError(
            f"no weight of this {type(network).__name__} is quantised, so there is nothing to "
            f"export as {format}: train with a QAT overlay such as --config overlays/qat_w4a4, or "
            "use --format hf"
        )
    if "" in layers:
        raise ValueError("the network is a single layer without a name: put it into a module")
    refuse_existing(folder, overwrite)
    with atomic_folder(folder) as temporary:
        notes = _write(network, layers, temporary, format)
        size = sum(path.stat().st_size for path in temporary.glob("*.safetensors"))
    return Export(
        folder,
        format,
        dict(Counter(str(layer.roles()["weight"]) for layer in layers.values())),
        _num_bytes(network),
        size,
        _loading(network, folder, format),
        notes,
    )


def _write(
    network: nn.Module,
    layers: Mapping[str, FakeQuantLayer],
    folder: Path,
    format: Format,  # noqa: A002
) -> list[str]:
    """Writes the files into a folder; returns notes."""
    if format == "int4":
        write_packed(network, folder)
    elif format == "compressed-tensors":
        return write_compressed(network, layers, folder)
    elif format == "hf":
        _write_plain(plain_copy(network), folder)
    else:
        _write_plain(plain_copy(network, _rounded_weights(layers)), folder, rounded=True)
        if any(m.input_quantizer is not None for m in quantized_layers(network).values()):
            return ["weights are rounded; the network loaded from it does not round activations"]
    return []


def _rounded_weights(layers: Mapping[str, FakeQuantLayer]) -> dict[int, Tensor]:
    """Returns the rounded weight for the identity of each weight."""
    rounded: dict[int, Tensor] = {}
    for name, layer in layers.items():
        require_finite(name, layer)
        weight = rounded_weight(layer)
        if not torch.equal(rounded.setdefault(id(layer.weight), weight), weight):
            raise ValueError(
                f"{name} shares its weight with a layer that rounds it differently, which one "
                "tensor cannot hold: use --format int4"
            )
    return rounded


def _write_plain(network: nn.Module, folder: Path, rounded: bool = False) -> None:
    """Saves a network without quantizers as its library does."""
    library = library_of(network)
    if isinstance(network, PreTrainedModel):
        network.save_pretrained(folder)
    elif library == "timm":
        from timm.models import save_for_hf

        save_for_hf(network, str(folder), safe_serialization=True)
    elif rounded:
        save_model(network, str(folder / TENSORS))
        write_json(
            folder / CONFIG, {"format": "tenfold-fake", "network": describe_network(network)}
        )
    else:
        raise ValueError(
            f"{type(network).__name__} is a model of neither transformers nor timm, which --format "
            "hf is for: its checkpoint holds the same weights"
        )


def rounded_weight(layer: FakeQuantLayer) -> Tensor:
    """Returns the rounded weight of a layer, in its own layout, also while rounding is off."""
    assert layer.weight_quantizer is not None
    quantizer = copy.deepcopy(layer.weight_quantizer)
    quantizer.enabled = True
    with torch.no_grad():
        return layer.weight_from_rows(quantizer(layer.weight_rows(layer.weight))).contiguous()


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Refuses to replace a folder, unless it is an earlier export and may be overwritten.

    Raises:
        ValueError: It is there.
    """
    if folder.exists():
        if not overwrite:
            raise ValueError(f"{folder} exists: choose another folder, or pass --overwrite")
        if not (folder.is_dir() and (folder / CONFIG).is_file()):
            raise ValueError(f"{folder} holds no export, so it is not overwritten: delete it first")


def _num_bytes(network: nn.Module) -> int:
    """Counts the bytes of a network's tensors without its quantizers'; shared ones once."""
    tensors = plain_copy(network).state_dict(keep_vars=True).values()
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _loading(network: nn.Module, folder: Path, format: Format) -> str:  # noqa: A002
    """Returns the line of Python that loads an export."""
    library, name = library_of(network), type(network).__name__
    if format == "int4":
        given = "" if library == "transformers" else f", {name}(...)"
        return f'tenfold.modules.quantization.inference.load_quantized("{folder}"{given})'
    if library == "transformers":
        return f'transformers.{name}.from_pretrained("{folder}")'
    if library == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    return f'safetensors.torch.load_model({name}(...), "{folder / TENSORS}")'
