"""Fully sharded training (FSDP2) of a LightningModule's networks."""

from collections.abc import Iterable

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
