"""Optimizers and learning-rate schedules, shared by every LightningModule.

A module takes `optimizer: OptimizerCallable` and `lr_scheduler: LRSchedulerCallable | None` and its
`configure_optimizers` is one line:

    return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

What is decayed, how often a schedule steps, and over how many steps it runs is decided here, once.
"""

import math
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None = None,
) -> OptimizerLRScheduler:
    """Builds what `LightningModule.configure_optimizers` returns.

    Schedules of this file (and torch's OneCycleLR and CyclicLR) step after every optimizer step;
    Lightning's `ReduceLROnPlateau` steps when the metric it monitors is validated; torch's other
    schedules step once per epoch, as Lightning does by default. A scheduler class can say otherwise
    with an attribute `interval: "step" | "epoch"`.

    Args:
        module: The module to train, attached to a Trainer, its network built.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer. A schedule that still lacks its
            `num_training_steps` gets the Trainer's.

    Raises:
        ValueError: If nothing is trainable, or the schedule needs a number of steps that the
            Trainer does not know.
    """
    instance = optimizer(parameter_groups(module))
    if lr_scheduler is None:
        return {"optimizer": instance}
    scheduler = lr_scheduler(instance)
    if isinstance(scheduler, TrainingSchedule) and scheduler.num_training_steps is None:
        scheduler.set_num_training_steps(_estimated_steps(module, type(scheduler).__name__))
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        if not isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "lr_scheduler: torch's ReduceLROnPlateau does not say which metric it follows; use "
                "lightning.pytorch.cli.ReduceLROnPlateau with init_args.monitor, e.g. val/loss"
            )
        return {
            "optimizer": instance,
            "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor},
        }
    per_step = isinstance(scheduler, (OneCycleLR, CyclicLR))
    interval = getattr(scheduler, "interval", "step" if per_step else "epoch")
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": interval}
    return {"optimizer": instance, "lr_scheduler": config}


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Splits the trainable parameters so that only matrices are decayed.

    Norm gains, biases and other vectors get `weight_decay` 0; matrices, embeddings and stacked
    expert weights (two dimensions or more) take the optimizer's own. Tied parameters appear once,
    frozen ones not at all. Parameters that a submodule names in `no_weight_decay()` (timm's
    convention: positional embeddings, class tokens) are spared too.

    Raises:
        ValueError: If no parameter is trainable.
    """
    spared: set[nn.Parameter] = set()
    for submodule in module.modules():
        if callable(names := getattr(submodule, "no_weight_decay", None)):
            own = dict(submodule.named_parameters())
            spared.update(own[name] for name in names() if name in own)
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(module).__name__} has nothing to train: every parameter is frozen, or the "
            "network is not built yet (call configure_model first)"
        )
    decayed = [p for p in trainable if p.ndim >= 2 and p not in spared]
    kept = [p for p in trainable if p.ndim < 2 or p in spared]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class TrainingSchedule(LambdaLR):
    """A schedule over a whole training run, one step per optimizer step.

    With `num_training_steps=None` the length is open until `configure_optimizers` asks the Trainer,
    so that `--trainer.max_steps 60` is all it takes to shorten a run. A checkpoint holds the
    position in the schedule but not its shape, which is the recipe's: a resumed run may be given
    more steps.

    Args:
        optimizer: The optimizer whose learning rates are the peak rates.
        multiplier: Returns, for a number of training steps, the function from steps done to the
            fraction of the peak.
        num_training_steps: Optimizer steps of the whole run.
    """

    interval = "step"

    def __init__(
        self,
        optimizer: Optimizer,
        multiplier: Callable[[int], Callable[[int], float]],
        num_training_steps: int | None,
    ) -> None:
        self.num_training_steps = num_training_steps
        self._multiplier = multiplier
        super().__init__(optimizer, _peak_until_known)
        if num_training_steps is not None:
            self.set_num_training_steps(num_training_steps)

    def set_num_training_steps(self, num_training_steps: int) -> None:
        """Fixes the length of the run and sets the rate of its first step.

        Raises:
            ValueError: If warm-up and decay do not fit into the run.
        """
        multiplier = self._multiplier(num_training_steps)
        self.num_training_steps = num_training_steps
        # Past its end a cosine would rise again: hold the last value.
        super().__init__(self.optimizer, lambda step: multiplier(min(step, num_training_steps)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the schedule, in plain types."""
        shape = ("num_training_steps", "_multiplier")
        return {key: value for key, value in super().state_dict().items() if key not in shape}


class WarmupStableDecay(TrainingSchedule):
    """Linear warm-up, constant rate, then decay (`transformers.get_wsd_schedule`).

    The constant phase can be branched or prolonged at will; only the decay is tied to the end of
    the run.

    Args:
        optimizer: The optimizer whose learning rates are the peak rates.
        warmup: Length of the warm-up: optimizer steps, or a fraction of the run when it is a float
            below 1.
        decay: Length of the decay at the end of the run, given like `warmup`.
        decay_type: Shape of the decay; "1-sqrt" falls fastest at first.
        min_lr_ratio: Last rate as a fraction of the peak. The warm-up starts there as well.
        num_training_steps: Optimizer steps of the whole run. None: what the Trainer is set to.

    Raises:
        ValueError: If warm-up and decay do not fit into the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int | float = 0.01,
        decay: int | float = 0.2,
        decay_type: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt",
        min_lr_ratio: float = 0.0,
        num_training_steps: int | None = None,
    ) -> None:
        def multiplier(total: int) -> Callable[[int], float]:
            from transformers import get_wsd_schedule

            phases = _phase_lengths(total, warmup=warmup, decay=decay)
            schedule = get_wsd_schedule(
                _unit_optimizer(),
                num_warmup_steps=phases["warmup"],
                num_decay_steps=phases["decay"],
                num_training_steps=total,
                decay_type=decay_type,
                min_lr_ratio=min_lr_ratio,
            )
            curve: Callable[[int], float] = schedule.lr_lambdas[0]
            return curve

        super().__init__(optimizer, multiplier, num_training_steps)


class WarmupCosine(TrainingSchedule):
    """Linear warm-up from 0, then half a cosine down to `min_lr_ratio` at the end of the run.

    The arithmetic is `transformers.get_cosine_with_min_lr_schedule_with_warmup`.

    Args:
        optimizer: The optimizer whose learning rates are the peak rates.
        warmup: Length of the warm-up: optimizer steps, or a fraction of the run when it is a float
            below 1.
        min_lr_ratio: Last rate as a fraction of the peak.
        num_training_steps: Optimizer steps of the whole run. None: what the Trainer is set to.

    Raises:
        ValueError: If the warm-up does not fit into the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int | float = 0.01,
        min_lr_ratio: float = 0.1,
        num_training_steps: int | None = None,
    ) -> None:
        def multiplier(total: int) -> Callable[[int], float]:
            from transformers import get_cosine_with_min_lr_schedule_with_warmup

            schedule = get_cosine_with_min_lr_schedule_with_warmup(
                _unit_optimizer(),
                num_warmup_steps=_phase_lengths(total, warmup=warmup)["warmup"],
                num_training_steps=total,
                min_lr_rate=min_lr_ratio,
            )
            curve: Callable[[int], float] = schedule.lr_lambdas[0]
            return curve

        super().__init__(optimizer, multiplier, num_training_steps)


class OneCycle(TrainingSchedule):
    """Half a cosine up, then half a cosine down: torch's `OneCycleLR` with constant betas.

    torch's own moves beta1 of AdamW between 0.95 and 0.85 unless `cycle_momentum` is false, and has
    to be told the number of steps.

    Args:
        optimizer: The optimizer whose learning rates are the peak rates.
        warmup: Share of the run that rises, in (0, 1).
        div_factor: The first rate is the peak divided by this.
        final_div_factor: The last rate is the first divided by this.
        num_training_steps: Optimizer steps of the whole run. None: what the Trainer is set to.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.1,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        num_training_steps: int | None = None,
    ) -> None:
        if not 0 < warmup < 1 or div_factor < 1 or final_div_factor < 1:
            raise ValueError(
                f"lr_scheduler: OneCycle with warmup {warmup}, div_factor {div_factor}, "
                f"final_div_factor {final_div_factor}: expected (0, 1), and 1 or more"
            )
        first = 1 / div_factor
        last = first / final_div_factor

        def multiplier(total: int) -> Callable[[int], float]:
            top = max(warmup * total - 1, 1e-9)
            bottom = max(total - 1, top + 1e-9)

            def curve(step: int) -> float:
                if step <= top:
                    return _cosine(first, 1.0, step / top)
                return _cosine(1.0, last, min(1.0, (step - top) / (bottom - top)))

            return curve

        super().__init__(optimizer, multiplier, num_training_steps)


def save_plain_hyperparameters(module: LightningModule) -> None:
    """Rewrites the callables among a module's saved hyperparameters as class path and arguments.

    To be called right after `self.save_hyperparameters()`. LightningCLI stores plain types already;
    a module made by hand holds `functools.partial` objects, which a checkpoint that must load with
    `weights_only=True` cannot. The result has the CLI's form, so that `load_from_checkpoint`
    instantiates both alike. A callable that is neither a class nor a `partial` of one (a lambda) is
    left out: loading then gives the constructor's default.
    """
    callables = {name: value for name, value in module.hparams.items() if callable(value)}
    if not callables:
        return
    specs = {name: _class_spec(value) for name, value in callables.items()}
    plain: dict[str, Any] = {name: spec for name, spec in specs.items() if spec is not None}
    plain["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    module.save_hyperparameters(plain, ignore=[name for name in specs if name not in plain])


def _class_spec(factory: Callable[..., Any]) -> dict[str, Any] | None:
    """Returns class path and arguments of a class or of a partial with keywords only."""
    parts = [factory.func, *factory.args] if isinstance(factory, partial) else [factory]
    cls = parts[-1]  # jsonargparse's own partials carry the class behind a function of theirs
    if not isinstance(cls, type):
        return None
    init_args = dict(factory.keywords) if isinstance(factory, partial) else {}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def _estimated_steps(module: LightningModule, schedule: str) -> int:
    """Returns the optimizer steps of the Trainer's run."""
    steps = module.trainer.estimated_stepping_batches
    if not 0 < steps < inf:
        raise ValueError(
            f"lr_scheduler: {schedule} needs the length of the run, which the Trainer does not "
            "know; set trainer.max_steps, or max_epochs with a sized dataset, or "
            "lr_scheduler.init_args.num_training_steps"
        )
    return int(steps)


def _phase_lengths(total: int, **phases: int | float) -> dict[str, int]:
    """Turns phase lengths given as steps or as fractions of `total` into steps."""
    lengths: dict[str, int] = {}
    for name, value in phases.items():
        if value < 0 or (isinstance(value, float) and value >= 1):
            raise ValueError(
                f"lr_scheduler.init_args.{name}: {value} is neither a whole number of steps nor a "
                "fraction of the run (a float from 0 to below 1)"
            )
        lengths[name] = round(value * total) if isinstance(value, float) else value
    if sum(lengths.values()) > total:
        phases_in_words = " + ".join(f"{name} {steps}" for name, steps in lengths.items())
        raise ValueError(
            f"lr_scheduler: {phases_in_words} steps do not fit into a run of {total} steps; "
            "give them as fractions of the run (floats below 1), or raise trainer.max_steps"
        )
    return lengths


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _unit_optimizer() -> Optimizer:
    """Returns an optimizer that exists only to ask transformers for a schedule's function."""
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def _peak_until_known(step: int) -> float:
    if step:
        raise ValueError(
            "lr_scheduler: num_training_steps is unknown; pass it to the schedule, or let "
            "tenfold.modules.optimization.configure_optimizers build the schedule"
        )
    return 1.0
