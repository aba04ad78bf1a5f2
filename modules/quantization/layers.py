"""Fake-quantised layers: the layer's own Parameters, rounded on the way into its product."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kernels.backend import Backend
from ...kernels.fake_quant import StraightThrough, fake_quantize, quantize
from .config import QuantizerConfig, Role

MIN_CLIP = 1e-3  # least learned clipping factor


class Quantizer(nn.Module):
    """Rounds a tensor along its last dimension, by a scale that is computed or learned.

    Layers that get the same input (q_proj, k_proj and v_proj) may have one quantizer: with
    `is_shared` it rounds a tensor once and returns the same result for as long as that tensor
    lives, unchanged. That costs no memory: the layers keep it for the backward pass anyway.

    Args:
        config: How.
        num_features: K, size of the last dimension.
        num_rows: Rows of a weight, each of which has scales of its own; None for an activation,
            whose rows (tokens, positions) share what is learned.
        backend: What computes it.

    Shapes:
        x: (num_rows, K) for a weight, (..., K) for an activation; returns the same.
    """

    def __init__(
        self,
        config: QuantizerConfig,
        num_features: int,
        num_rows: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = backend
        self.enabled = True
        self.is_shared = False
        self._last: tuple[weakref.ref[Tensor], tuple[int, bool], Tensor] | None = None
        self.per_tensor = config.group_size == "per_tensor"
        size = config.group_size
        self.group_size = size if isinstance(size, int) else num_features
        shape: tuple[int, ...] = (1,)
        if not self.per_tensor:
            groups = num_features // self.group_size
            shape = (groups,) if num_rows is None else (num_rows, groups)
        self.clip: nn.Parameter | None = None
        self.scale: nn.Parameter | None = None
        if config.method in ("lwc", "lac"):
            # OmniQuant starts near 1, PrefixQuant at 0.95.
            start = 1.0 if config.method == "lwc" else 0.95
            self.clip = nn.Parameter(torch.full(shape, start))
        elif config.method == "lsq":
            self.scale = nn.Parameter(torch.ones(shape))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay would destroy."""
        return {"clip", "scale"}

    @torch.no_grad()
    def initialize(self, weight_RK: Tensor) -> None:
        """Sets learned scales from a weight (R, K): 2 mean|w| / sqrt(qmax) (LSQ, section 2.1)."""
        if self.scale is not None:
            self.scale.copy_(self.initial_scale(weight_RK))

    def initial_scale(self, weight_RK: Tensor) -> Tensor:
        """Returns the scales that training starts from, shaped like `scale`."""
        assert self.scale is not None
        groups = weight_RK.detach().abs().float().reshape(*self.scale.shape, -1)
        return (2 * groups.mean(dim=-1) / math.sqrt(self.config.qmax)).clamp(min=self.config.eps)

    @torch.no_grad()
    def project(self) -> None:
        """Brings what was learned back into its range, after an optimizer step."""
        if self.clip is not None:
            self.clip.clamp_(MIN_CLIP, 1.0)
        if self.scale is not None:
            self.scale.clamp_(min=self.config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds x, or returns it as it is while not `enabled`."""
        if self.enabled:
            remembers = self.is_shared and not (torch.compiler.is_compiling() or x.is_inference())
            return self._round_once(x) if remembers else self._round(x)
        # A parameter without a gradient would stop distributed training.
        return x if self._param is None else x + self._param.sum().to(x.dtype) * 0

    def clips(self, x: Tensor) -> Tensor:
        """Returns where x lies beyond the ends of the grid, as bool."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (passed,) = torch.autograd.grad(self._round(x, "clipped", "reference").sum(), x)
        return passed == 0

    def _round_once(self, x: Tensor) -> Tensor:
        state = (x._version, torch.is_grad_enabled())
        if self._last is not None and self._last[0]() is x and self._last[1] == state:
            return self._last[2]
        y = self._round(x)
        self._last = (weakref.ref(x, self._forget), state, y)
        return y

    def _forget(self, _: Any) -> None:
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the last tensor out of copies."""
        return self.__dict__ | {"_last": None}

    def _round(
        self, x: Tensor, ste: StraightThrough | None = None, backend: Backend | None = None
    ) -> Tensor:
        rows = x.reshape(1, -1) if self.per_tensor else x
        y = fake_quantize(
            rows,
            rows.shape[-1] if self.per_tensor else self.group_size,
            bits=self.config.bits,
            grid=self.config.grid,
            ste=ste or self.config.ste,
            backend=backend or self.backend,
            **self.scales(x.shape),
        )
        return y.view(x.shape)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns int8 codes shaped like x and the scale of each group; for the "int" grid."""
        rows = x.reshape(1, -1) if self.per_tensor else x
        group_size = rows.shape[-1] if self.per_tensor else self.group_size
        codes, scales = quantize(
            rows, group_size, bits=self.config.bits, backend=self.backend, **self.scales(x.shape)
        )
        return codes.view(x.shape), scales

    def scales(self, shape: torch.Size) -> dict[str, Any]:
        """Returns where the scales come from, as arguments of the kernels.

        A learned scale gets LSQ's gradient, times 1 / sqrt(elements of a group * qmax), so that it
        moves as fast, relative to its size, as the weights do.
        """
        found: dict[str, Any] = {"divisor": self.config.divisor, "eps": self.config.eps}
        if self.clip is not None:
            # Not torch.clamp alone, which gives no gradient at 1, where LWC starts.
            inside = self.clip.detach().clamp(MIN_CLIP, 1.0)
            found["clip"] = self.clip + (inside - self.clip.detach())
        if self.scale is not None:
            elements = shape.numel() / self.scale.numel()
            factor = 1 / math.sqrt(elements * self.config.qmax)
            scaled = self.scale * factor
            found["scale"] = self.scale.detach() + (scaled - scaled.detach())
        return found

    @property
    def _param(self) -> nn.Parameter | None:
        return self.scale if self.clip is None else self.clip

    def extra_repr(self) -> str:
        """Shows the configuration in the printed network."""
        return str(self.config)


# Layers


class FakeQuantLayer(nn.Module):
    """What fake-quantised layers share; a mixin before the layer's own class.

    `enabled` quantizers round the weight along the features that the product sums over, and the
    input along the same. While `cache_weight` is on, a rounded weight is kept until the weight
    changes or `drop_cached_weight` is called: for gradient accumulation and evaluation.
    """

    weight: Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    cache_weight: bool
    _cached: tuple[Any, Tensor] | None
    feature_dim = -1  # of the input

    @property
    def num_features(self) -> int:
        """Size of the input's feature dimension."""
        return self.num_grouped_features(self)

    @staticmethod
    def num_grouped_features(layer: Any) -> int:
        """Returns how many neighbouring features are summed over: what groups must divide."""
        return int(layer.in_features)

    def weight_rows(self, weight: Tensor) -> Tensor:
        """Views a weight as (outputs, K), K what one output is summed over."""
        return weight

    def weight_from_rows(self, rows: Tensor) -> Tensor:
        """Undoes `weight_rows`."""
        return rows

    def quantized_weight(self) -> Tensor:
        """Returns the rounded weight, in the weight's own layout."""
        quantizer = self.weight_quantizer
        if quantizer is None:
            return self.weight
        if not self.cache_weight or quantizer.config.is_learned or torch.compiler.is_compiling():
            return self.weight_from_rows(quantizer(self.weight_rows(self.weight)))
        state = (self.weight._version, self.weight.data_ptr(), quantizer.enabled)
        if self._cached is None or self._cached[0] != state:
            with torch.no_grad():
                rows = quantizer(self.weight_rows(self.weight))
            self._cached = (state, self.weight_from_rows(rows))
        rounded: Tensor = _StraightThrough.apply(self.weight, self._cached[1])
        return rounded

    def quantizers(self) -> list[Quantizer]:
        """Returns the quantizers that the layer has."""
        return [q for q in (self.weight_quantizer, self.input_quantizer) if q is not None]

    def roles(self) -> dict[Role, QuantizerConfig | None]:
        """Returns how weight and input are rounded."""
        weight, activation = self.weight_quantizer, self.input_quantizer
        return {
            "weight": None if weight is None else weight.config,
            "activation": None if activation is None else activation.config,
        }

    def enable(self, enabled: bool) -> None:
        """Rounds from now on, or leaves weight and input as they are."""
        for quantizer in self.quantizers():
            quantizer.enabled = enabled

    def initialize(self) -> None:
        """Sets a learned weight scale from the weight as it is."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.initialize(self.weight_rows(self.weight))

    def project(self) -> None:
        """Brings learned parameters back into their range."""
        for quantizer in self.quantizers():
            quantizer.project()

    def drop_cached_weight(self) -> None:
        """Forgets the rounded weight: for changes that its version does not show (`.data`)."""
        self._cached = None

    def quantized_input(self, x: Tensor) -> Tensor:
        """Returns the rounded input."""
        quantizer = self.input_quantizer
        if quantizer is None:
            return x
        if self.feature_dim == -1:  # the tensor itself, which neighbours share
            rounded: Tensor = quantizer(x)
            return rounded
        rounded = quantizer(x.movedim(self.feature_dim, -1))
        return rounded.movedim(-1, self.feature_dim)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Overridden, though private, because it is torch's documented place for what depends on
        # the loaded values. A plain checkpoint has no learned scales: they start from its weights.
        weight = state_dict.get(f"{prefix}weight")
        for role in ("weight_quantizer", "input_quantizer"):
            quantizer: Quantizer | None = getattr(self, role)
            if quantizer is None or weight is None:
                continue
            if quantizer.clip is not None:
                state_dict.setdefault(f"{prefix}{role}.clip", quantizer.clip.detach().clone())
            if quantizer.scale is not None and f"{prefix}{role}.scale" not in state_dict:
                scale = quantizer.initial_scale(self.weight_rows(weight))
                state_dict[f"{prefix}{role}.scale"] = scale
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _StraightThrough(torch.autograd.Function):
    """Returns the second tensor, and hands its gradient to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class FakeQuantLinear(FakeQuantLayer, nn.Linear):
    """A linear layer whose weight and input are rounded."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the layer's own name
        """Returns (..., out_features) for (..., in_features)."""
        return F.linear(self.quantized_input(input), self.quantized_weight(), self.bias)


class FakeQuantConv1D(FakeQuantLayer, Conv1D):  # type: ignore[misc] # a Tensor that is a Parameter
    """transformers' Conv1D (GPT-2), a linear layer whose weight is (in, out), rounded."""

    @staticmethod
    def num_grouped_features(layer: Any) -> int:
        """Returns the input width."""
        return int(layer.nx)

    def weight_rows(self, weight: Tensor) -> Tensor:
        """Transposes to (out, in)."""
        return weight.t()

    def weight_from_rows(self, rows: Tensor) -> Tensor:
        """Transposes to (in, out)."""
        return rows.t()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out) for (..., in)."""
        return F.linear(self.quantized_input(x), self.quantized_weight().t(), self.bias)


class FakeQuantConv(FakeQuantLayer, nn.modules.conv._ConvNd):
    """What the convolutions share: groups run along the channels, at each place of the kernel."""

    @property
    def num_features(self) -> int:
        """Number of input channels."""
        return self.in_channels

    @staticmethod
    def num_grouped_features(layer: Any) -> int:
        """Returns the input channels that one output sees."""
        return int(layer.in_channels // layer.groups)

    def weight_rows(self, weight: Tensor) -> Tensor:
        """Puts the channels last: (out, kernel places * in_channels / groups)."""
        return weight.movedim(1, -1).flatten(1)

    def weight_from_rows(self, rows: Tensor) -> Tensor:
        """Puts the channels second."""
        out, channels, *kernel = self.weight.shape
        return rows.view(out, *kernel, channels).movedim(-1, 1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the layer's own name
        """Returns the convolution of the rounded input with the rounded weight."""
        # torch's own (and its quantised layers') hook for a weight that is not the Parameter.
        convolve: Callable[..., Tensor] = self._conv_forward
        return convolve(self.quantized_input(input), self.quantized_weight(), self.bias)


class FakeQuantConv1d(FakeQuantConv, nn.Conv1d):
    """A 1D convolution, rounded."""

    feature_dim = -2


class FakeQuantConv2d(FakeQuantConv, nn.Conv2d):
    """A 2D convolution, rounded."""

    feature_dim = -3


class FakeQuantConv3d(FakeQuantConv, nn.Conv3d):
    """A 3D convolution, rounded."""

    feature_dim = -4


KINDS: dict[type[nn.Module], type[FakeQuantLayer]] = {
    nn.Linear: FakeQuantLinear,
    Conv1D: FakeQuantConv1D,
    nn.Conv1d: FakeQuantConv1d,
    nn.Conv2d: FakeQuantConv2d,
    nn.Conv3d: FakeQuantConv3d,
}
