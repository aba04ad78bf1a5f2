"""The weights of a module that a merge averages, and weighted sums of snapshots of them.

What each process holds is averaged in place: of a sharded parameter the local shard, which needs
no communication, since a merge is element by element.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchmetrics import Metric

COMPILED_PREFIX = "_orig_mod."


def mergeable_tensors(module: nn.Module, include_frozen: bool = False) -> dict[str, Tensor]:
    """The live tensors that a merge is about, by name, without the prefixes of `torch.compile`.

    Trainable parameters and persistent buffers, tied ones once; of sharded ones the local part.
    Frozen parameters are alike in all snapshots, and left out. Metrics are no weights.

    Args:
        module: The module, whose memory the tensors share.
        include_frozen: Keep frozen parameters.
    """
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    foreign = {id(t) for m in metrics for t in (*m.parameters(), *m.buffers())}
    stored = module.state_dict().keys()
    parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad or include_frozen]
    buffers = [(n, b) for n, b in module.named_buffers() if n in stored]
    return {
        name.replace(COMPILED_PREFIX, ""): local_tensor(tensor)
        for name, tensor in (*parameters, *buffers)
        if id(tensor) not in foreign
    }


def buffer_names(module: nn.Module) -> set[str]:
    """Names of buffers, as `mergeable_tensors` writes them."""
    return {name.replace(COMPILED_PREFIX, "") for name, _ in module.named_buffers()}


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory, without a gradient."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def weighted_sum(tensors: Sequence[Callable[[], Tensor]], weights: Sequence[float]) -> Tensor:
    """The sum of weights times tensors, in float32 or, where they are wider, in their own dtype.

    Computed as the newest plus weighted differences to it, as by `tenfold merge`: equal tensors
    come out as they went in, and rounding is that of the differences.

    Args:
        tensors: Read the tensors, all of one shape, oldest first; one is in memory at a time.
        weights: Their weights.
    """
    newest = tensors[-1]()
    newest = newest.to(torch.promote_types(newest.dtype, torch.float32))
    total = math.fsum(weights)
    # A scheme's weights sum to 1 but for rounding, which must not scale anything.
    merged = newest * (1.0 if math.isclose(total, 1, abs_tol=1e-9) else total)
    for read, weight in zip(tensors[:-1], weights, strict=False):
        merged.add_(read().to(newest.dtype) - newest, alpha=weight)
    return merged


class Trajectory:
    """How the parameters moved from snapshot to snapshot; summed up tensor by tensor.

    Args:
        num_snapshots: How many there are.
    """

    def __init__(self, num_snapshots: int) -> None:
        steps = num_snapshots - 1
        # Squares of each step, products of neighbouring steps, squares of the whole way, of the
        # merged and of the newest parameters: one tensor, so that shards are summed at once.
        self.sums = torch.zeros(steps + max(steps - 1, 0) + 3, dtype=torch.float64)
        self.num_steps = steps

    def add(self, tensors: Iterable[Tensor], merged: Tensor) -> None:
        """Adds one parameter.

        Args:
            tensors: Its value in each snapshot, oldest first; read one at a time.
            merged: Its merged value.
        """
        values = iter(tensors)
        first = previous = next(values).float()
        update = None
        for i, tensor in enumerate(values):
            value = tensor.float()
            step = value - previous
            self.sums[i] += _dot(step, step)
            if update is not None:
                self.sums[self.num_steps + i - 1] += _dot(update, step)
            previous, update = value, step
        whole = previous - first
        ends = (_dot(whole, whole), _dot(merged, merged), _dot(previous, previous))
        self.sums[-3:] += torch.tensor(ends, dtype=torch.float64)

    def statistics(self) -> dict[str, float]:
        """Returns what tells whether a merge gains.

        `drift_ratio`: length of the straight line over that of the path: 1 where the weights go
        straight on and a merge lags, about 1 / sqrt(steps) for a random walk, less where they
        bounce and a merge gains. `update_cosine`: mean cosine of neighbouring steps, likewise
        above, at or below 0. `norm_ratio`: norm of the merged over that of the newest parameters.
        """
        sums, steps = self.sums.tolist(), self.num_steps
        lengths = [math.sqrt(square) for square in sums[:steps]]
        pairs = zip(sums[steps:-3], lengths, lengths[1:], strict=False)
        cosines = [product / (a * b) for product, a, b in pairs if a * b > 0]
        way, merged, newest = (math.sqrt(square) for square in sums[-3:])
        statistics = {"drift_ratio": way / sum(lengths) if sum(lengths) else 0.0}
        if cosines:
            statistics["update_cosine"] = sum(cosines) / len(cosines)
        return statistics | {"norm_ratio": merged / newest if newest else 1.0}


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.float() * other.float()).sum(dtype=torch.float64))


class WeightSwap:
    """Other values in the live tensors of a module for a while, and the own ones surely back.

    Copied in place, since the optimizer, buckets of gradients and compiled graphs hold on to the
    tensors. `restore` can be repeated: the own values are never written to.

    Args:
        module: The module.
        tensors: Its live tensors, from `mergeable_tensors`.
    """

    def __init__(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        self.module = module
        self.tensors = tensors
        self.own: dict[str, Tensor] | None = None  # while other values may be in

    def put(self, values: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Puts other values in.

        Args:
            values: Yields names and values; names that it leaves out keep their own.
        """
        own = {
            # On the CPU, where there is room for a second copy; `clone` as `cpu` would only alias.
            name: tensor.cpu() if tensor.device.type != "cpu" else tensor.clone()
            for name, tensor in self.tensors.items()
        }
        self.own = own
        with _writing(self.module):
            for name, value in values():
                self.tensors[name].copy_(value)

    def restore(self) -> None:
        """Puts the own values back, bit for bit."""
        if self.own is None:
            return
        with _writing(self.module):
            for name, value in self.own.items():
                self.tensors[name].copy_(value)
        self.own = None


@contextmanager
def _writing(module: nn.Module) -> Iterator[None]:
    """Lets live tensors be written to, also during an evaluation and when they are sharded."""
    with torch.inference_mode(False), torch.no_grad():
        yield
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):  # or the next forward pass takes gathered old ones
            submodule.reshard()
