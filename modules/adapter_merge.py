"""Merging LoRA adapters by what they add to a network: the products B A, not the factors.

The average of products, sum_i w_i B_i A_i, has a rank of up to N r. It equals [w_1 B_1 ... w_N B_N]
times the stacked A_i, so its best approximation of rank r (Eckart-Young) follows from QR
factorisations of these two thin matrices and the SVD of an (N r, N r) one: the product is never
formed. What the truncation drops is reported.
"""

import math
import re
from collections.abc import Callable, Generator, Iterable, Sequence

import torch
from torch import Tensor

from .checkpoint_files import Checkpoint, StoredTensor
from .checkpoint_merge import MergedTensor, merge_blocks

_FACTOR = re.compile(r"^(?P<before>.*\blora_(?:embedding_)?)(?P<factor>[AB])(?P<after>\..*)?$")
# What must be the same for factors or products to have a meaning in common.
_SHARED_SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
)


def check_adapters(checkpoints: Sequence[Checkpoint], by_delta: bool) -> None:
    """Refuses adapters that cannot be merged.

    Args:
        checkpoints: PEFT adapters.
        by_delta: Whether products are averaged.

    Raises:
        ValueError: They are no LoRA, their settings differ, or products do not describe them.
    """
    newest = checkpoints[-1]
    if newest.settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{newest.path}: only LoRA adapters are merged")
    if by_delta and newest.settings.get("use_dora"):
        raise ValueError(f"{newest.path}: DoRA rescales B A, so use --lora-mode factors")
    for checkpoint in checkpoints[:-1]:
        for key in _SHARED_SETTINGS:
            mine, other = (c.settings.get(key) for c in (checkpoint, newest))
            if mine != other:
                raise ValueError(
                    f"adapters differ: {key} is {mine} in {checkpoint.path}, {other} in "
                    f"{newest.path}"
                )


def merge_products(
    tensors: Iterable[MergedTensor],
    dropped: dict[str, float],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> Generator[Tensor, None, None]:
    """Yields the tensors of an adapter with averaged products, all others averaged as they are.

    Args:
        tensors: All of the adapter, in the order wanted.
        dropped: Takes for each pair of factors the Frobenius norm of what the truncation drops,
            relative to the norm of the average.
        progress: Called with bytes read, now and then.

    Raises:
        ValueError: A factor has no partner, or a number is not finite.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    done: dict[str, Tensor] = {}
    for name, tensor in by_name.items():
        match = _FACTOR.match(name)
        if match is None:
            yield from merge_blocks([tensor], progress)
            continue
        if name not in done:
            before, after = match["before"], match["after"] or ""
            pair = [f"{before}{factor}{after}" for factor in "AB"]
            a, b = (by_name.get(other) for other in pair)
            if a is None or b is None:
                raise ValueError(f"{tensor.origins[-1]}: '{name}' has no partner")
            new_a, new_b, dropped[before + after] = _average_product(a, b)
            progress(sum(source.num_bytes for source in (*a.sources, *b.sources)))
            done |= {pair[0]: new_a.to(a.dtype), pair[1]: new_b.to(b.dtype)}
        yield done.pop(name).reshape(-1)


def _average_product(a: MergedTensor, b: MergedTensor) -> tuple[Tensor, Tensor, float]:
    """New factors in float64, shaped like the old ones, and the relative error."""
    rank = a.shape[0]
    stacked_a = [_load(a, i).reshape(rank, -1) for i in range(len(a.sources))]
    stacked_b = [_load(b, i).reshape(-1, rank) * w for i, w in enumerate(b.weights)]
    basis_b, small_b = torch.linalg.qr(torch.cat(stacked_b, 1))
    basis_a, small_a = torch.linalg.qr(torch.cat(stacked_a, 0).mT)
    u, values, vh = torch.linalg.svd(small_b @ small_a.mT, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    new_a = torch.zeros(rank, basis_a.shape[0], dtype=torch.float64)
    new_b = torch.zeros(basis_b.shape[0], rank, dtype=torch.float64)
    new_a[:kept] = root[:, None] * (vh[:kept] @ basis_a.mT)
    new_b[:, :kept] = (basis_b @ u[:, :kept]) * root
    norm = values.norm().item()
    error = values[kept:].norm().item() / norm if norm else 0.0
    return new_a.reshape(a.shape), new_b.reshape(b.shape), error


def _load(tensor: MergedTensor, index: int) -> Tensor:
    """One checkpoint's tensor in float64."""
    source: StoredTensor = tensor.sources[index]
    raw = torch.empty(source.num_bytes, dtype=torch.uint8)
    source.read(0, source.num_elements, raw)
    values = raw.view(source.dtype).double().view(source.shape)
    if not math.isfinite(values.sum()):
        raise ValueError(f"{tensor.origins[index]}: '{tensor.name}' holds NaN or infinity")
    return values
