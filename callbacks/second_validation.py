"""A second validation pass, of other weights, that leaves no trace in a run but its results.

Lightning's own loop would log the results under the names of the first pass, mix both passes in
metrics that are reset only afterwards, and overwrite what checkpoints are ranked by.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection

from .random_state import get_random_state, set_random_state

PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor)
CONTAINERS = (list, tuple, set, frozenset, deque)
# With a `state_dict`, but no counters of a module's own.
BIG = (nn.Module, Optimizer, LRScheduler, DataLoader, Trainer, LightningDataModule, Callback)


@contextmanager
def isolated(trainer: Trainer, module: LightningModule) -> Iterator["Results"]:
    """Lends a module copies of all it keeps books in, and puts the originals back afterwards.

    Lent are metrics (fresh ones), attributes of plain types, and attributes with a `state_dict`.
    Loggers are dummies, `log` collects. Random generators, those of data loaders included, and the
    training modes of all submodules are as before afterwards.

    Yields:
        What the module logs meanwhile.
    """
    results = Results(trainer, module)
    random_state = get_random_state()
    generators = [(g, g.get_state()) for g in _loader_generators(trainer)]
    modes = [(m, m.training) for m in module.modules()]
    loggers, stage = trainer.loggers, trainer.state.stage
    attributes = _bookkeeping(module)
    metrics = [
        (parent, name, child)
        for parent in module.modules()
        if not isinstance(parent, Metric | MetricCollection)
        for name, child in parent._modules.items()
        if isinstance(child, Metric | MetricCollection)
    ]
    try:
        module.__dict__.update(copy.deepcopy(attributes))
        for parent, name, child in metrics:
            parent._modules[name] = lent = copy.deepcopy(child)
            lent.reset()
        trainer.loggers = [DummyLogger()]
        module.__dict__["log"] = results.log
        yield results
    finally:
        module.__dict__.pop("log", None)
        trainer.loggers, trainer.state.stage = loggers, stage
        for parent, name, child in metrics:
            parent._modules[name] = child
        module.__dict__.update(attributes)
        for submodule, mode in modes:
            submodule.training = mode
        for generator, state in generators:
            generator.set_state(state)
        set_random_state(random_state)


class Results:
    """What a module logs in a validation pass, averaged and named as Lightning does.

    Lightning's own collection is private; tests/callbacks/test_second_validation.py notices when
    it moves.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self.hook = ""  # of validation, none at first
        self.collection = _ResultCollection(training=False)

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Stands in for `LightningModule.log`; not for values per step, nor those of training."""
        is_elsewhere = rank_zero_only and not self.trainer.is_global_zero
        if on_epoch is False or is_elsewhere or not self.hook:
            return
        if isinstance(value, Number):
            value = torch.tensor(value, device=self.module.device, dtype=torch.get_default_dtype())
        elif isinstance(value, Tensor):
            value = value.detach().clone()
        self.collection.log(
            self.hook,
            name,
            value,
            reduce_fx=reduce_fx,
            sync_dist=sync_dist,
            sync_dist_fn=self.trainer.strategy.reduce,
            sync_dist_group=sync_dist_group,
            add_dataloader_idx=add_dataloader_idx,
            batch_size=batch_size,
            metric_attribute=metric_attribute or name,
            rank_zero_only=rank_zero_only,
        )

    def values(self) -> dict[str, Tensor]:
        """The results so far, of the current data loader or of the end of the pass."""
        return dict(self.collection.metrics(on_step=False)["callback"])


def validate_again(
    trainer: Trainer,
    module: LightningModule,
    results: Results,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Runs one validation pass on the batches of the last one, inside `isolated`.

    Args:
        trainer: A Trainer that has just validated.
        module: Its module.
        results: Collects what the module logs.
        after_batch: Called after each batch; may raise to stop.

    Returns:
        The results, by the names that the module logs.
    """
    loaders = CombinedLoader(trainer.val_dataloaders, "sequential").flattened
    limits = trainer.num_val_batches
    # As Lightning decides it.
    takes_index = is_param_in_hook_signature(module.validation_step, "batch_idx", min_args=2)
    module.eval()
    trainer.state.stage = RunningStage.VALIDATING
    values: dict[str, Tensor] = {}
    collection = results.collection
    results.hook = "on_validation_epoch_start"
    module.on_validation_epoch_start()
    for loader_idx, (loader, limit) in enumerate(zip(loaders, limits, strict=True)):
        which = (loader_idx,) if len(loaders) > 1 else ()
        collection.dataloader_idx = loader_idx if which else None
        for batch_idx, batch in enumerate(loader):
            if batch_idx >= limit:
                break
            batch = _to_device(trainer, module, batch, loader_idx)
            collection.batch, collection.batch_size = batch, None
            index = (batch_idx,) if takes_index else ()
            results.hook = "on_validation_batch_start"
            module.on_validation_batch_start(batch, batch_idx, *which)
            results.hook = "validation_step"
            # The module's own method, not the strategy's: what wraps a module for training (DDP)
            # has nothing to add here, and would compare buffers that differ between ranks.
            with trainer.precision_plugin.val_step_context():
                output = module.validation_step(batch, *index, *which)
            results.hook = "on_validation_batch_end"
            module.on_validation_batch_end(output, batch, batch_idx, *which)
            after_batch()
        values |= results.values()
    collection.dataloader_idx = collection.batch = None
    results.hook = "on_validation_epoch_end"
    module.on_validation_epoch_end()
    return values | results.values()


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The layers whose evaluation uses statistics of the batches seen in training, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }


def recalibrate_batch_norm(
    trainer: Trainer,
    module: LightningModule,
    norms: list[_BatchNorm],
    num_batches: int,
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Gives BatchNorm layers the statistics of the present weights, from training batches.

    Plain means over `num_batches` batches (and over ranks), augmented and with dropout as in
    training; inside `isolated`. The forward pass is that of `training_step`, or of
    `validation_step` where training steps the optimizer by hand.

    Args:
        trainer: A Trainer in `fit`.
        module: Its module.
        norms: Layers to calibrate; others (frozen ones) keep their statistics.
        num_batches: Batches at most.
        after_batch: Called after each batch; may raise to stop.
    """
    momenta = [norm.momentum for norm in norms]
    trainer.state.stage = RunningStage.TRAINING
    module.train()
    for norm in batch_norms(module).values():
        norm.train(norm in norms)
    step, context = module.training_step, trainer.precision_plugin.train_step_context
    if not module.automatic_optimization:
        step, context = module.validation_step, trainer.precision_plugin.val_step_context
    try:
        with torch.inference_mode(False), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            for batch_idx, batch in enumerate(_training_batches(trainer, module)):
                if batch_idx >= num_batches:
                    break
                batch = _to_device(trainer, module, batch, 0)
                with context():
                    step(batch, batch_idx)
                after_batch()
            for norm in norms:
                for statistic in (norm.running_mean, norm.running_var):
                    assert statistic is not None
                    statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _training_batches(trainer: Trainer, module: LightningModule) -> Iterator[Any]:
    """The training data under an iterator of its own."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined] # set at run time
    if datamodule is not None and is_overridden("train_dataloader", datamodule):
        loaders = datamodule.train_dataloader()
    elif is_overridden("train_dataloader", module):
        loaders = module.train_dataloader()
    else:
        loaders = apply_to_collection(trainer.train_dataloader, DataLoader, _without_workers)
    for batch, _, _ in CombinedLoader(loaders, "min_size"):
        yield batch


def _without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader, not sharing workers that persist."""
    loader = copy.copy(loader)
    loader._iterator = None
    return loader


def _to_device(trainer: Trainer, module: LightningModule, batch: Any, loader_idx: int) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    # Private, because the hook `on_before_batch_transfer` is called nowhere else.
    batch = module._on_before_batch_transfer(batch, dataloader_idx=loader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader_idx)


def _loader_generators(trainer: Trainer) -> set[torch.Generator]:
    loaders = [*CombinedLoader(trainer.val_dataloaders, "sequential").flattened]
    loaders += CombinedLoader(trainer.train_dataloader, "min_size").flattened
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    found = (getattr(owner, "generator", None) for owner in owners)
    return {generator for generator in found if isinstance(generator, torch.Generator)}


def _bookkeeping(module: LightningModule) -> dict[str, Any]:
    """The attributes of a module that may change in a validation pass, and can be copied."""
    inherited = vars(LightningModule()).keys()
    return {
        name: value
        for name, value in vars(module).items()
        if name not in inherited and (_is_plain(value) or _has_state(value))
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, CONTAINERS):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, nn.Parameter)


def _has_state(value: Any) -> bool:
    is_counter = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    return is_counter and not isinstance(value, BIG)
