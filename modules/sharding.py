"""Fully sharded training (FSDP2) of a LightningModule's networks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_over_devices(owner: LightningModule, parts: Iterable[nn.Module]) -> None:
    """Splits parameters over the devices of `owner.device_mesh`; does nothing where there is none.

    Args:
        owner: The module, in its `configure_model`; `ModelParallelStrategy` has set its mesh.
        parts: Its modules, inner ones first: the parameters of each, but for those of parts before
            it, are gathered when it is called and dropped when it returns.

    Raises:
        ValueError: The mesh has a dimension of tensor parallelism.
    """
    if owner.device_mesh is None:
        return
    if owner.device_mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"trainer.strategy: {type(owner).__name__} is sharded over data-parallel devices; "
            "set tensor_parallel_size: 1 and data_parallel_size: <number of devices>"
        )
    for part in parts:
        if not isinstance(part, FSDPModule):  # fit, then test: both configure the model
            fully_shard(part, mesh=owner.device_mesh["data_parallel"])


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Keeps the whole parameters of a sharded network on this device for a while.

    For loops whose length depends on the data, such as generation: inside, no rank waits for
    another one. All ranks enter together. Does nothing for a network that is not sharded.
    """
    parts = [part for part in network.modules() if isinstance(part, FSDPModule)]
    if isinstance(network, FSDPModule):
        # Private: else the first inner module that is called would take itself for the root, and
        # the network could not be called as a whole any more. A test of Art2Prog's (test_sharded)
        # notices when it moves.
        network._get_fsdp_state()._lazy_init()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
