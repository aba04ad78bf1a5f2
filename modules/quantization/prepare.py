"""Turning the layers of a network into fake-quantised ones."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ...kernels.backend import Backend, check_backend
from .config import QATConfig, QuantizerConfig, Role
from .layers import KINDS, FakeQuantLayer, Quantizer


@dataclass(frozen=True)
class Preparation:
    """What `prepare_qat` did.

    Attributes:
        layers: Dotted name -> how its weight and input are rounded.
        uncovered: Names of modules that match but hold weights of a kind that is not covered.
        indivisible: Names of layers left out because the group size does not divide them.
    """

    layers: dict[str, dict[Role, QuantizerConfig | None]]
    uncovered: list[str]
    indivisible: list[str]

    def table(self) -> list[str]:
        """Returns a line for each set of layers that differ only in a number of their name."""
        rows: dict[tuple[str, str], int] = {}
        for name, roles in self.layers.items():
            text = " · ".join(f"{role} {roles[role] or 'not quantised'}" for role in roles)
            key = (re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), text)
            rows[key] = rows.get(key, 0) + 1
        return [f"{name} ({count}): {text}" for (name, text), count in rows.items()]


def quantized_layers(network: nn.Module) -> dict[str, FakeQuantLayer]:
    """Returns the fake-quantised layers of a network by dotted name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, FakeQuantLayer)}


def prepare_qat(network: nn.Module, config: QATConfig, backend: Backend = "auto") -> Preparation:
    """Makes the layers of a network that the configuration names fake-quantised, in place.

    To be called before an optimizer is built and, for learned scales, before the network is
    sharded. Calling it again does nothing more.

    Args:
        network: Any module; layers of the types in `KINDS` are covered.
        config: Which layers, and how.
        backend: What computes the rounding.

    Raises:
        ValueError: A pattern matches nothing, a group size does not divide a layer's features, a
            layer shares its weight with one that stays as it is, or the backend is missing.
    """
    check_backend(backend)
    modules = {n: m for n, m in network.named_modules() if not isinstance(m, Quantizer)}
    names = _chosen(network, modules, config)
    layers: dict[str, dict[Role, QuantizerConfig | None]] = {}
    uncovered, indivisible = [], []
    for name in names:
        module = modules[name]
        roles = config.of_layer(name)
        if isinstance(module, FakeQuantLayer):
            if module.roles() != roles:
                raise ValueError(f"{name} is already quantised otherwise: {module.roles()}")
            layers[name] = roles
        elif type(module) not in KINDS:
            if _holds_matrices(module):
                uncovered.append(name)
        elif any(roles.values()):
            if problem := _indivisible(module, roles):
                if config.indivisible == "error":
                    raise ValueError(f"{name}: {problem}")
                indivisible.append(name)
            else:
                layers[name] = roles
    if indivisible and not layers:
        raise ValueError(
            f"nothing to quantise: the group size divides the features of no layer, such as "
            f"{indivisible[0]}: choose a smaller one, or per_channel and per_token"
        )
    if not layers:
        raise ValueError(
            f"nothing to quantise: {config.include} names no layer that is covered "
            f"({', '.join(kind.__name__ for kind in KINDS)})"
        )
    _refuse_tied(network, modules, layers)
    for name, roles in layers.items():
        if not isinstance(modules[name], FakeQuantLayer):
            _convert(modules[name], roles, backend)
    _share_input_quantizers(modules, layers)
    return Preparation(layers, uncovered, indivisible)


def _chosen(network: nn.Module, modules: dict[str, nn.Module], config: QATConfig) -> list[str]:
    """Returns the names that the patterns choose; each pattern must match one."""
    for pattern in [*config.include, *(config.exclude or []), *config.overrides]:
        if not any(re.search(pattern, name) for name in modules):
            raise ValueError(f"pattern {pattern!r} matches no module of {type(network).__name__}")
    included = [n for n in modules if any(re.search(pattern, n) for pattern in config.include)]
    if config.exclude is None:
        heads = _output_heads(modules)
        return [name for name in included if name not in heads]
    return [n for n in included if not any(re.search(pattern, n) for pattern in config.exclude)]


def _output_heads(modules: dict[str, nn.Module]) -> set[str]:
    """Names of the output embeddings of transformers' models."""
    finders = [getattr(module, "get_output_embeddings", None) for module in modules.values()]
    heads = [find() for find in finders if find is not None]
    return {name for name, module in modules.items() if any(module is head for head in heads)}


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a module multiplies by weights of its own; embeddings look rows up instead."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _indivisible(module: nn.Module, roles: dict[Role, QuantizerConfig | None]) -> str | None:
    """Says which group size does not divide the features of a layer."""
    features = KINDS[type(module)].num_grouped_features(module)
    for role, config in roles.items():
        size = None if config is None else config.group_size
        if isinstance(size, int) and features % size:
            return (
                f"{role} group_size {size} does not divide its {features} input features: choose "
                "a divisor, exclude the layer, or set indivisible: skip"
            )
    return None


def _refuse_tied(
    network: nn.Module,
    modules: dict[str, nn.Module],
    layers: dict[str, dict[Role, QuantizerConfig | None]],
) -> None:
    """Refuses a layer whose weight also serves a module that is not quantised."""
    owners: dict[int, dict[str, nn.Module]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), {})[name] = module
    converted = {id(modules[name]) for name in layers}
    for name in layers:
        for other, module in owners[id(modules[name].weight)].items():
            if id(module) not in converted:
                other = other or type(network).__name__
                raise ValueError(
                    f"{name} shares its weight with {other}, which is not quantised: add '{name}' "
                    "to exclude, or untie them"
                )


def _convert(
    module: nn.Module, roles: dict[Role, QuantizerConfig | None], backend: Backend
) -> None:
    """Turns a layer into its fake-quantised kind: the same object, of another class."""
    module.__class__ = KINDS[type(module)]
    assert isinstance(module, FakeQuantLayer)
    rows = module.weight_rows(module.weight)
    module.weight_quantizer = module.input_quantizer = None
    with torch.device(module.weight.device):
        if (config := roles["weight"]) is not None:
            num_rows, num_features = rows.shape
            module.weight_quantizer = Quantizer(config, num_features, num_rows, backend)
        if (config := roles["activation"]) is not None:
            module.input_quantizer = Quantizer(config, module.num_features, None, backend)
    module.initialize()
    module.cache_weight = False
    module.drop_cached_weight()


def _share_input_quantizers(modules: dict[str, nn.Module], names: Iterable[str]) -> None:
    """Gives neighbours one quantizer, so that an input they have in common is rounded once.

    Where nothing is learned, and for "identity", whose gradient needs nothing saved: so that it
    does not matter when the result was computed.
    """
    shared: dict[tuple[str, QuantizerConfig, int], Quantizer] = {}
    for name in names:
        layer = modules[name]
        assert isinstance(layer, FakeQuantLayer)
        quantizer = layer.input_quantizer
        if quantizer is None or quantizer.config.is_learned or quantizer.config.ste != "identity":
            continue
        key = (name.rpartition(".")[0], quantizer.config, quantizer.group_size)
        layer.input_quantizer = shared.setdefault(key, quantizer)
        layer.input_quantizer.is_shared = True
