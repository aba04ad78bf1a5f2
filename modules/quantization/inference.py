"""Networks that run on packed weights, read from what `tenfold export --format int4` wrote."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.backend import Backend, check_backend
from ...kernels.int4 import dequantize_int4, int4_linear
from .config import QATConfig
from .layers import Quantizer
from .networks import build_network
from .packed import PackedNetwork, plain_state_dict, read_packed
from .prepare import prepare_qat, quantized_layers


class Int4Linear(nn.Module):
    """A linear layer on a weight of 4-bit codes, whose input is rounded as it was in training.

    For inference, and for adapters on top of it: no gradient reaches the weight. `.to(dtype)`
    rounds scales as well; load the network in the dtype it was trained in for exact weights.

    Args:
        packed: (N, K / 2) uint8, see `kernels.int4`.
        scale: (N, K / G) float32, or (1, 1): one for the whole weight.
        bias: (N,), or None.
        input_quantizer: Rounds the input; None leaves it.
        dtype: Of the weight that the codes stand for.
        backend: What computes the product.

    Shapes:
        x: (..., K); returns (..., N).
    """

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        input_quantizer: Quantizer | None = None,
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape[0], 2 * packed.shape[1]
        self.dtype = dtype
        self.backend: Backend = backend
        # The product takes a scale for each row.
        scale = scale.expand(self.out_features, -1).contiguous()
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.input_quantizer = input_quantizer

    @property
    def weight(self) -> Tensor:
        """The dequantised weight (N, K), made anew each time: for code that looks at it."""
        return dequantize_int4(self.weight_packed, self.weight_scale, self.dtype, self.backend)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., N) for (..., K)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return int4_linear(x, self.weight_packed, self.weight_scale, self.bias, self.backend)

    def extra_repr(self) -> str:
        """Shows the sizes in the printed network."""
        group_size = self.in_features // self.weight_scale.shape[1]
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, G={group_size}"
        )


def load_quantized(
    folder: str | Path, network: nn.Module | None = None, backend: Backend = "auto"
) -> nn.Module:
    """Loads a packed network for inference, on the CPU.

    Linear layers of 4 bits become `Int4Linear` and stay packed in memory; convolutions and other
    widths are dequantised once, here. Inputs are rounded while the network runs, as in training.

    Args:
        folder: What `tenfold export --format int4` wrote.
        network: The plain network, freshly built, for one that is not of transformers; it is
            changed in place.
        backend: What computes rounding and products.

    Returns:
        The network in evaluation mode, without gradients for its parameters.

    Raises:
        ValueError: The folder is damaged, or the network is not the one that was exported.
    """
    check_backend(backend)
    packed = read_packed(folder)
    if network is None:
        network = build_network(packed.network)
    _fill(network, packed)
    _round_inputs(network, packed, backend)
    _pack_linears(network, packed, backend)
    return network.eval().requires_grad_(False)


def _fill(network: nn.Module, packed: PackedNetwork) -> None:
    """Gives the tensors of a network the exported values and dtypes; tied ones stay tied."""
    own, state = network.state_dict(keep_vars=True), plain_state_dict(packed)
    shapes = [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    for names, problem in (
        (own.keys() - state.keys(), "lacks"),
        (state.keys() - own.keys(), "has unknown"),
        (shapes, "has other shapes for"),
    ):
        if names:
            raise ValueError(
                f"{packed.folder} {problem} {len(names)} tensors of this "
                f"{type(network).__name__}, such as {min(names)}: build the network that was "
                f"exported, a {packed.network['class']}"
            )
    for name, tensor in state.items():
        own[name].data = tensor


def _round_inputs(network: nn.Module, packed: PackedNetwork, backend: Backend) -> None:
    """Lets layers round their inputs as in training."""
    inputs = {name: layer["input"] for name, layer in packed.layers.items() if layer["input"]}
    if not inputs:
        return
    overrides = {f"^{re.escape(name)}$": {"activation": inputs[name]} for name in inputs}
    config = QATConfig(None, None, include=list(overrides), exclude=[], overrides=overrides)
    prepare_qat(network, config, backend)
    for name, layer in quantized_layers(network).items():
        if layer.input_quantizer is not None and layer.input_quantizer.clip is not None:
            layer.input_quantizer.clip.data = packed.tensors[f"{name}.input_quantizer.clip"]


def _pack_linears(network: nn.Module, packed: PackedNetwork, backend: Backend) -> None:
    """Replaces linear layers whose codes are packed, under each name that they have."""
    replaced: dict[nn.Module, Int4Linear] = {}
    for name, layer in packed.layers.items():
        weight = layer["weight"]
        if weight and weight["layout"] == "int4_rows" and layer["type"] in ("Linear", "Conv1D"):
            dense: Any = network.get_submodule(name)
            replaced[dense] = Int4Linear(
                packed.tensors[f"{name}.weight_packed"],
                packed.tensors[f"{name}.weight_scale"],
                dense.bias,
                getattr(dense, "input_quantizer", None),
                getattr(torch, weight["dtype"]),
                backend,
            )
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in replaced:
            network.set_submodule(name, replaced[module])
