"""Quantisation-aware training as a switch: any recipe, any network, any strategy."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from ..kernels.backend import Backend
from ..modules.quantization import (
    FakeQuantLayer,
    Preparation,
    QATConfig,
    QuantizerConfig,
    prepare_qat,
    quantized_layers,
)

FORMAT = 1


class QuantizationAwareTraining(Callback):
    """Trains with the weights and inputs of layers rounded to a few bits (fake quantisation).

    The layers are changed in place before a checkpoint is restored and before optimizers exist, in
    every command, so that evaluation is rounded too. With AbsMax scales the state dict keeps its
    keys: a plain checkpoint loads into a quantised run and back. The live model is never
    converted; `tenfold export` writes what it was rounded to.

    A module that shards its network does so in a method `shard_network` that `configure_model`
    calls: layers are changed before it. Weights keep their full precision for the optimizer: under
    `bf16-true` small updates can be lost in rounding; use `bf16-mixed`.

    Args:
        weight: How weights are rounded; null leaves them (W16).
        activation: How the inputs of layers are rounded; null leaves them (A16).
        include: Regular expressions, searched for in dotted layer names: what to quantise.
        exclude: The same: what to leave. Null: the output head of a language model.
        overrides: Pattern -> what differs there: `{"down_proj$": {activation: {bits: 8}}}`.
        indivisible: Whether a layer whose features the group size does not divide is an "error" or
            a "skip" with a warning.
        start: When rounding begins: an optimizer step, or a fraction of the run when it is a float
            below 1. Until then training is plain. `validate`, `test` and `predict` always round.
        backend: "auto", "reference", "compile" or "triton".

    Raises:
        ValueError: The configuration contradicts itself or the network; or a resumed run was
            quantised otherwise.
    """

    def __init__(
        self,
        weight: QuantizerConfig | None = QuantizerConfig(),  # noqa: B008 - frozen
        activation: QuantizerConfig | None = QuantizerConfig(),  # noqa: B008 - frozen
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        overrides: dict[str, dict[str, dict[str, Any] | None]] | None = None,
        indivisible: Literal["error", "skip"] = "error",
        start: int | float = 0,
        backend: Backend = "auto",
    ) -> None:
        if start < 0 or (isinstance(start, float) and start >= 1):
            raise ValueError(
                f"start: {start} is neither a number of steps nor a fraction of the run below 1"
            )
        self.config = QATConfig(
            weight, activation, include or [".*"], exclude, overrides or {}, indivisible
        )
        self.start = start
        self.backend: Backend = backend
        self.preparation: Preparation | None = None
        self._layers: list[FakeQuantLayer] = []
        self._has_started = False
        self._may_cache = False
        self._step = -1

    # Preparing

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the layers now, or as soon as `configure_model` has built them."""
        prepare = functools.partial(self._prepare, trainer, pl_module)
        if not is_overridden("configure_model", pl_module):
            prepare()
            return
        if hasattr(pl_module, "shard_network"):
            _once(pl_module, "shard_network", before=prepare)
        _once(pl_module, "configure_model", after=prepare)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        is_learned = any(config.is_learned for config in self.config.quantizers())
        if is_sharded and is_learned and not hasattr(pl_module, "shard_network"):
            raise ValueError(
                f"{type(pl_module).__name__} has no method `shard_network`, before which learned "
                "scales could be added: use method absmax, or another strategy"
            )
        if str(trainer.precision) == "bf16-true":
            rank_zero_warn("QAT with bf16-true loses small updates of weights: use bf16-mixed")
        self._may_cache = not (is_sharded or isinstance(trainer.strategy, FSDPStrategy))
        preparation = prepare_qat(pl_module, self.config, self.backend)
        if self.preparation is None:
            _report(preparation)
        self.preparation = preparation
        self._layers = list(quantized_layers(pl_module).values())

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves layers plain until the start."""
        self._enable(self._has_started)
        self._cache(trainer.accumulate_grad_batches > 1)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins rounding when it is time; after an optimizer step, forgets rounded weights."""
        if not self._has_started and trainer.global_step >= self._first_step(trainer):
            self._has_started = True
            self._enable(True)
            for layer in self._layers:
                layer.initialize()
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            for layer in self._layers:
                layer.project()
                layer.drop_cached_weight()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rounds each weight once for the whole evaluation."""
        self._cache(True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to what training does."""
        self._cache(trainer.accumulate_grad_batches > 1)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rounds each weight once for the whole evaluation."""
        self._cache(True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rounds each weight once for the whole prediction."""
        self._cache(True)

    def _first_step(self, trainer: Trainer) -> float:
        if isinstance(self.start, int):
            return self.start
        return self.start * trainer.estimated_stepping_batches

    def _enable(self, enabled: bool) -> None:
        for layer in self._layers:
            layer.enable(enabled)

    def _cache(self, enabled: bool) -> None:
        for layer in self._layers:
            layer.cache_weight = enabled and self._may_cache
            layer.drop_cached_weight()

    # What a run leaves behind

    def state_dict(self) -> dict[str, Any]:
        """Returns the configuration, and whether rounding has begun."""
        return {"format": FORMAT, "config": asdict(self.config), "has_started": self._has_started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            ValueError: The checkpoint was trained with another configuration.
        """
        stored, current = state_dict["config"], asdict(self.config)
        differences = [
            f"{name} was {stored.get(name)}, is {current[name]}"
            for name in current
            if stored.get(name) != current[name]
        ]
        if differences:
            raise ValueError(
                "the checkpoint was quantised otherwise than this recipe says: "
                f"{'; '.join(differences)}; to go on from its weights alone use --init_from"
            )
        self._has_started = state_dict["has_started"]

    def run_info(self) -> dict[str, Any]:
        """Returns precision and group size, for `metrics.json` and the scaling law."""
        first = next(self.config.quantizers())
        sizes = Counter(layer.num_features for layer in self._layers)
        whole_row = sizes.most_common(1)[0][0]
        size = first.group_size if isinstance(first.group_size, int) else whole_row
        info = {
            "precision": self.config.precision,
            "group_size": size,
            "num_layers": len(self._layers),
            "start": self.start,
        }
        return {"quantization": info | asdict(self.config)}


def _once(
    module: LightningModule,
    name: str,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Lets the next call of a method without arguments do something more, and only that one."""
    method = getattr(module, name)

    @functools.wraps(method)
    def with_more() -> None:
        module.__dict__.pop(name, None)
        if before is not None:
            before()
        method()
        if after is not None:
            after()

    module.__dict__[name] = with_more


def _report(preparation: Preparation) -> None:
    """Says what is quantised, and what is not."""
    rank_zero_info("\n".join(["quantised layers:", *(f"  {x}" for x in preparation.table())]))
    if preparation.uncovered:
        rank_zero_warn(
            "not quantised, because layers of their kind are not covered: "
            + ", ".join(preparation.uncovered)
        )
    if preparation.indivisible:
        rank_zero_warn(
            "not quantised, because the group size does not divide their features: "
            + ", ".join(preparation.indivisible)
        )
