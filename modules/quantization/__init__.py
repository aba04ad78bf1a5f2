"""Quantisation-aware training of any network.

`prepare_qat(network, QATConfig(...))` turns layers into their fake-quantised kind in place: their
Parameters, names and hooks stay, so optimizers, sharding, tied weights and plain checkpoints never
notice. Weights and inputs are rounded on the way into the layer's own product, forwards only.

Source: "Scaling Law for Quantization-Aware Training" (Chen et al. 2025, arXiv 2505.14302);
learnable scales: LSQ (Esser et al. 2020), LWC (OmniQuant), LAC (PrefixQuant).
"""

from .config import QATConfig, QuantizerConfig
from .layers import FakeQuantLayer, FakeQuantLinear, Quantizer
from .prepare import Preparation, prepare_qat, quantized_layers

__all__ = [
    "FakeQuantLayer",
    "FakeQuantLinear",
    "Preparation",
    "QATConfig",
    "Quantizer",
    "QuantizerConfig",
    "prepare_qat",
    "quantized_layers",
]
