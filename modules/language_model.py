"""Next-token training of any causal language model of transformers.

Shapes: B batch, L sequence length, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import Metric
from transformers import GenerationConfig, PreTrainedModel

from .causal_lm import (
    build_config,
    check_keys,
    decoder_layers,
    flops_per_token,
    num_non_embedding_parameters,
    pretrained_network,
    random_network,
    recompute_activations,
)
from .optimization import configure_optimizers, save_plain_hyperparameters
from .sharding import shard_over_devices
from .training_progress import ProgressModule, TrainingProgress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED = -100  # label of a position that is not predicted


class CausalLanguageModel(ProgressModule):
    """Trains a causal language model from scratch or from pretrained weights.

    `network` is the plain transformers model, built in `configure_model`; nothing is wrapped or
    renamed by compilation, checkpointing or sharding, so `network.save_pretrained(folder)` and
    state dict keys `network.*` hold everywhere. In a notebook:

        module = CausalLanguageModel(config={"hidden_size": 128, "vocab_size": 256})
        module.configure_model()
        module.loss(batch).backward()

    A batch is a dict: `input_ids` (B, L) int64; `labels` (B, L) int64, already shifted, so that
    `labels[:, t]` is the token after `input_ids[:, t]`, and -100 where nothing is predicted. For
    evaluation also `num_bytes` (B,) float32, the UTF-8 bytes that the labels stand for, and `index`
    (B,) int64, the position of the sample in its split.

    Logged while training, as means over the steps since the last logging step: `train/loss` (nats
    per token) and, for a mixture of experts, `train/aux_loss` (load balance: the number of experts
    per token when perfectly even); also `train/tokens` (seen so far by all devices),
    `train/tokens_per_second` and, where the device's peak is known, `train/mfu`. Logged by
    validation and test: `loss`, `perplexity`, `bits_per_byte` over all tokens of the split.

    Args:
        config: Architecture for random initialisation: `model_type` (any causal language model of
            transformers: llama, olmoe, mixtral, ...; default llama) and arguments of its config
            class. The weights depend on the seed alone, not on random numbers drawn before.
        pretrained: Folder or hub id to load instead of `config`. Weights are 32 bit unless
            `trainer.precision` is a true half precision.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the learning-rate schedule, e.g. `WarmupStableDecay`.
        compile: Compiles each decoder layer with `torch.compile`. The first steps take longer.
        activation_checkpointing: Recomputes each decoder layer's activations in the backward pass:
            about a third more compute for memory of one layer instead of all.
        generation: Arguments of transformers' `generate` for `predict`, e.g. `max_new_tokens`,
            `do_sample`, `temperature`. Default: 64 tokens, greedy.

    Raises:
        ValueError: If not exactly one of `config` and `pretrained` is given, or one of their keys
            or values is wrong.
    """

    network: PreTrainedModel

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-3, weight_decay=0.1),
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,  # noqa: A002 - the name users know
        activation_checkpointing: bool = False,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        save_plain_hyperparameters(self)
        if (config is None) == (pretrained is None):
            raise ValueError(
                "give exactly one of model.init_args.config (random weights) and .pretrained "
                "(a folder or hub id); set the other to null"
            )
        self.config = None if config is None else build_config(config)
        self.pretrained = pretrained
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.compile_layers = compile
        self.activation_checkpointing = activation_checkpointing
        self.generation = {"max_new_tokens": 64, "do_sample": False} | (generation or {})
        check_keys("generation", self.generation, vars(GenerationConfig()))  # type: ignore[no-untyped-call]
        self.seed = torch.initial_seed()
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        self.val_metrics = LanguageModelMetrics()
        self.test_metrics = LanguageModelMetrics()
        self.progress = TrainingProgress(num_losses=2)
        self._peak_flops: float | None = None
        self._flops_per_token: float | None = None
        self._ids_checked = False

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        if self.pretrained is not None:
            network = pretrained_network(self.pretrained)
        else:
            assert self.config is not None
            network = random_network(self.config, self.seed)
        self.network = network.train()  # loading leaves it in evaluation mode
        if self.activation_checkpointing:
            recompute_activations(self.network)
        if self.compile_layers:  # layer by layer: one short compilation serves them all
            for layer in decoder_layers(self.network):
                layer.compile()
        self.shard_network()

    def shard_network(self) -> None:
        """Shards each layer where a strategy asks for it; callbacks change layers before."""
        shard_over_devices(self, [*decoder_layers(self.network), self.network])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    # Losses

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Returns transformers' output for (B, L) tokens; `.logits` is (B, L, V)."""
        return self.network(input_ids, use_cache=False, **kwargs)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns what training minimises.

        Cross-entropy in nats per predicted token; for a mixture of experts plus the load-balancing
        loss times `router_aux_loss_coef` of its config.
        """
        cross_entropy, balance = self._losses(batch)
        return cross_entropy + self._balance_weight * balance

    def token_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the cross-entropy of each token in nats, (B, L) float32, 0 where ignored."""
        self._check_token_ids(batch)
        return _cross_entropy(self(batch["input_ids"]).logits, batch["labels"])

    def _losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns mean cross-entropy and load-balancing loss (0 for a dense model)."""
        self._check_token_ids(batch)
        routed = {"output_router_logits": True} if self._balance_weight else {}
        output = self(batch["input_ids"], **routed)
        num_tokens = (batch["labels"] != IGNORED).sum().clamp(min=1)
        cross_entropy = _cross_entropy(output.logits, batch["labels"]).sum() / num_tokens
        return cross_entropy, output.aux_loss if routed else torch.zeros_like(cross_entropy)

    @property
    def tokens_seen(self) -> int:
        """Tokens that all devices together have trained on."""
        return self.progress.tokens

    @property
    def _balance_weight(self) -> float:
        return float(getattr(self.network.config, "router_aux_loss_coef", 0.0))

    # Training

    def on_train_start(self) -> None:
        """Looks up the device's peak for the training precision."""
        precisions = {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}
        dtype = precisions.get(str(self.trainer.precision)[:2], torch.float32)
        self._peak_flops = get_available_flops(self.device, dtype)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        cross_entropy, balance = self._losses(batch)
        num_tokens = batch["input_ids"].numel() * self.trainer.world_size
        self.progress.step(torch.stack((cross_entropy, balance)), num_tokens)
        if self.is_logging_step(batch_idx):
            self._log_progress(batch["input_ids"].shape[1])
        return cross_entropy + self._balance_weight * balance

    def _log_progress(self, length: int) -> None:
        """Logs the steps since the last call; only here does training wait for the device."""
        loss, balance = self.progress.mean_losses(self.trainer.strategy.reduce)
        self.log("train/loss", loss, prog_bar=True)
        if self._balance_weight:
            self.log("train/aux_loss", balance)
        # As float64: Lightning's float32 would round above 16.7 million.
        self.log("train/tokens", torch.tensor(self.progress.tokens, dtype=torch.float64))
        speed = self.progress.tokens_per_second()
        self.log("train/tokens_per_second", speed)
        if self._peak_flops:
            if self._flops_per_token is None:
                self._flops_per_token = flops_per_token(self.network.config, length)
            self.log("train/mfu", self._mfu(speed))

    def _mfu(self, tokens_per_second: float) -> float:
        """Returns the share of the devices' peak that the model's own operations use, 0 to 1."""
        assert self._peak_flops is not None
        assert self._flops_per_token is not None
        peak = self._peak_flops * self.trainer.world_size
        return self._flops_per_token * tokens_per_second / peak

    # Evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch to the validation metrics."""
        self.val_metrics.update(*self._sequence_sums(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        values = self._log_metrics("val", self.val_metrics)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", values["loss"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Adds one batch to the test metrics; returns a record for each sequence."""
        sums = self._sequence_sums(batch)
        self.test_metrics.update(*sums)
        rows = zip(batch["index"].tolist(), *(values.tolist() for values in sums), strict=True)
        return {
            "records": [
                {
                    "id": str(index),
                    "row": "test",
                    "group": str(index),
                    "loss": nats / num_tokens,
                    "bits_per_byte": nats / math.log(2) / num_bytes,
                }
                for index, nats, num_tokens, num_bytes in rows
                if num_tokens and num_bytes
            ]
        }

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test", self.test_metrics)

    def _sequence_sums(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns nats, predicted tokens and bytes of each sequence, (B,) each."""
        nats_B = self.token_losses(batch).sum(dim=1, dtype=torch.float64)
        return nats_B, (batch["labels"] != IGNORED).sum(dim=1), batch["num_bytes"]

    def _log_metrics(self, stage: str, metrics: "LanguageModelMetrics") -> dict[str, float]:
        values = {name: value.item() for name, value in metrics.compute().items()}
        metrics.reset()
        for name, value in values.items():
            # Equal on all devices already; sync_dist only tells Lightning so.
            self.log(f"{stage}/{name}", value, prog_bar=name != "perplexity", sync_dist=True)
        return values

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Continues each sequence of `input_ids` by `generation`; returns a record for each."""
        self._check_token_ids(batch)
        prompts_BL = batch["input_ids"]
        # Lengths differ from token to token: compiled layers would be compiled over and over.
        with torch.compiler.set_stance("force_eager"):
            outputs = self.network.generate(  # type: ignore[operator]
                prompts_BL, attention_mask=torch.ones_like(prompts_BL), **self.generation
            )
        completions = outputs[:, prompts_BL.shape[1] :]
        end = self.network.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        rows = zip(batch["index"].tolist(), prompts_BL.tolist(), completions.tolist(), strict=True)
        return [
            {"id": str(index), "prompt_ids": prompt, "completion_ids": _until(ends, completion)}
            for index, prompt, completion in rows
        ]

    # What a run leaves behind

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        speed = self.progress.mean_tokens_per_second()
        return {
            "num_parameters": sum(p.numel() for p in self.network.parameters()),
            "num_parameters_non_embedding": num_non_embedding_parameters(self.network),
            "tokens_seen": self.progress.tokens,
            "tokens_per_second": speed,
            "mfu": self._mfu(speed) if speed and self._flops_per_token else None,
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns training and validation loss against tokens, once there is any."""
        return {"loss": self.progress.figure()} if any(self.progress.curves.values()) else {}

    def _check_token_ids(self, batch: dict[str, Tensor]) -> None:
        """Refuses token ids beyond the vocabulary, looking at the first batch only."""
        if self._ids_checked:
            return
        largest = int(max(batch[key].max() for key in ("input_ids", "labels") if key in batch))
        vocab_size = self.network.config.get_text_config().vocab_size
        if largest >= vocab_size:
            raise ValueError(
                f"token id {largest} is outside the model's vocabulary of {vocab_size}: set "
                f"model.init_args.config.vocab_size to the tokenizer's size (at least "
                f"{largest + 1}), or with pretrained weights use their own tokenizer"
            )
        self._ids_checked = True


class LanguageModelMetrics(Metric):
    """Loss, perplexity and bits per byte over all tokens of a split, exact for uneven batches.

    Bits per byte compares models with different tokenizers.
    """

    full_state_update = False
    nats: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "num_tokens", "num_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats_B: Tensor, num_tokens_B: Tensor, num_bytes_B: Tensor) -> None:
        """Adds sequences: summed cross-entropy in nats, predicted tokens, bytes; (B,) each."""
        self.nats += nats_B.sum(dtype=torch.float64)
        self.num_tokens += num_tokens_B.sum()
        self.num_bytes += num_bytes_B.sum(dtype=torch.float64)

    def compute(self) -> dict[str, Tensor]:
        """Returns `loss` (nats per token), `perplexity` and `bits_per_byte`."""
        loss = self.nats / self.num_tokens
        bits_per_byte = self.nats / math.log(2) / self.num_bytes
        return {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": bits_per_byte}


def _cross_entropy(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Returns cross-entropy in nats, (B, L) float32 whatever the dtype of the logits."""
    logits = logits_BLV.float().flatten(0, 1)
    losses = F.cross_entropy(logits, labels_BL.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels_BL)


def _until(ends: list[int | None], ids: list[int]) -> list[int]:
    """Returns the ids up to and including the first end token; padding follows it."""
    length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:length]
