"""What a caption would be about, guessed from the context and the image alone (R-Ctrl's stage one).

Shapes: B sources, S tokens of a source, N tokens of a section.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .network import RelevanceNetwork, build_config, build_language_model, load_projection
from .parts import describe, make_part, tokenizer_of
from .relevance import LexicalRelevance, RelevanceScorer
from .tokens import ContextTokenizer, PageContext, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RelevancePredictor(ProgressModule):
    """Learns the relevance of each section token for a caption that it does not see.

    An encoder of T5's kind reads the source, image included; a linear layer gives each token of the
    section a number. Batches are those of `CtrlCIC`.

    Logged in training: `train/loss`. Validation and test: `loss`; `excess`, the loss minus the
    entropy of the targets, its least possible value; `excess_constant`, the same for the best
    constant; `auroc` of targets above 0.5, where there are such.

    Args:
        config: See `CtrlCIC`; the encoder's arguments count.
        pretrained: Folder or hub id to load the encoder from instead.
        vocabulary: See `CtrlCIC`.
        tokenizer: See `CtrlCIC`.
        relevance: Gives the targets; None: by words.
        loss: "bce", binary cross-entropy with soft targets, or "mse".
        image_dim: Width of image features.
        visual_projection: See `CtrlCIC`.
        max_source_length: Tokens of a source, the image's slot included.
        context: "section", or the whole "page".
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.

    Raises:
        ValueError: Settings that contradict each other, or unknown ones.
    """

    network: RelevanceNetwork

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        vocabulary: str | None = None,
        tokenizer: str | None = None,
        relevance: RelevanceScorer | None = None,
        loss: Literal["bce", "mse"] = "bce",
        image_dim: int = 768,
        visual_projection: bool | None = None,
        max_source_length: int = 512,
        context: PageContext = "section",
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=5e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["relevance"])
        save_plain_hyperparameters(self)
        self.relevance = make_part(RelevanceScorer, relevance, "relevance") or LexicalRelevance()
        self.save_hyperparameters({"relevance": describe(self.relevance)})
        self.pretrained, self.loss_name = pretrained, loss
        self.image_dim, self.visual_projection = image_dim, visual_projection
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        loaded = tokenizer_of(config, pretrained, vocabulary, tokenizer)
        self.contexts = ContextTokenizer(loaded, (), max_source_length, context)
        self.config = None if config is None else build_config(config, self.contexts)
        self.seed = torch.initial_seed()
        self.means = MeanMetric()  # of targets
        self.losses, self.entropies = MeanMetric(), MeanMetric()
        self.auroc = BinaryAUROC(thresholds=1000)
        self.progress = TrainingProgress(unit="images", loss_unit="nats / token")

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        source = self.pretrained if self.config is None else self.config
        assert source is not None
        language = build_language_model(source, self.contexts, self.seed, encoder=True)
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.network = RelevanceNetwork(language, self.image_dim, self.visual_projection)
            if self.pretrained is not None and device.type != "meta":
                load_projection(self.network, self.pretrained)
        self.network.train()
        self.shard_network()

    def shard_network(self) -> None:
        """Shards each layer where a strategy asks for it; callbacks change layers before."""
        shard_over_devices(self, [*self.network.layers(), self.network])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    def forward(self, source: Source, images: Tensor) -> Tensor:
        """Returns the logits of all tokens, (B, S); those of sections mean something."""
        logits: Tensor = self.network(source.ids, source.mask, images)
        return logits

    @torch.no_grad()
    def predicted(self, source: Source, images: Tensor) -> list[Tensor]:
        """Returns predicted relevance of section tokens, (N,) each; 0 for those cut off."""
        values_BS = self(source, images).float()
        if self.loss_name == "bce":
            values_BS = values_BS.sigmoid()
        found = []
        for row, section in enumerate(source.sections):
            value_N = values_BS.new_zeros(len(section.tokens))
            size = section.num_visible
            value_N[:size] = values_BS[row, section.start : section.start + size]
            found.append(value_N)
        return found

    def targets(self, batch: Mapping[str, Any], source: Source) -> tuple[Tensor, Tensor]:
        """Returns the relevance of tokens (B, S), and 1 where it is to be learned, else 0."""
        if batch.get("relevance") is not None:
            relevance = list(batch["relevance"])
        else:
            captions = [self.contexts.tokens(caption) for caption in batch["captions"]]
            relevance = self.relevance.relevance([s.tokens for s in source.sections], captions)
        zeros_BS = torch.zeros(source.ids.shape, device=self.device)
        ones = [torch.ones(len(section.tokens)) for section in source.sections]
        return (
            source.to_section_weights(relevance, zeros_BS),
            source.to_section_weights(ones, zeros_BS),
        )

    def _token_losses(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns losses, logits, targets and mask, (B, S) each."""
        source = self.contexts.encode(batch, self.device)
        targets_BS, mask_BS = self.targets(batch, source)
        logits_BS = self(source, batch["images"].to(self.device)).float()
        if self.loss_name == "bce":
            losses_BS = F.binary_cross_entropy_with_logits(logits_BS, targets_BS, reduction="none")
        else:
            losses_BS = (logits_BS - targets_BS) ** 2
        return losses_BS * mask_BS, logits_BS, targets_BS, mask_BS

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch, a mean over section tokens."""
        losses_BS, _, _, mask_BS = self._token_losses(batch)
        loss = losses_BS.sum() / (mask_BS.sum() + 1e-8)
        self.progress.step(loss.detach()[None], len(batch["captions"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            (mean,) = self.progress.mean_losses(self.trainer.strategy.reduce)
            self.log("train/loss", mean, prog_bar=True)
            self.log("train/images_per_second", self.progress.tokens_per_second())
        return loss

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the metrics."""
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds one batch to the metrics."""
        self._evaluate(batch)

    def _evaluate(self, batch: Mapping[str, Any]) -> None:
        losses_BS, logits_BS, targets_BS, mask_BS = self._token_losses(batch)
        is_learned_BS = mask_BS > 0
        targets = targets_BS[is_learned_BS]
        self.losses.update(losses_BS[is_learned_BS])
        self.means.update(targets)
        self.entropies.update(entropy(targets))
        self.auroc.update(logits_BS[is_learned_BS].sigmoid(), (targets > 0.5).long())

    def on_validation_epoch_end(self) -> None:
        """Logs the numbers and adds the loss to the history."""
        loss = self._finish("val")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", loss)

    def on_test_epoch_end(self) -> None:
        """Logs the numbers."""
        self._finish("test")

    def _finish(self, stage: str) -> float:
        loss = self.losses.compute().item()
        found = {"loss": loss}
        if self.loss_name == "bce":
            floor = self.entropies.compute().item()
            constant = entropy(self.means.compute()).item()
            found |= {"excess": loss - floor, "excess_constant": constant - floor}
        found["auroc"] = self.auroc.compute().item()
        for name, value in found.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", sync_dist=True)
        for metric in (self.losses, self.means, self.entropies, self.auroc):
            metric.reset()
        return loss

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Predicts a batch; returns a record of tokens and numbers for each image."""
        source = self.contexts.encode(batch, self.device)
        values = self.predicted(source, batch["images"].to(self.device))
        rows = zip(batch["ids"], source.sections, values, strict=True)
        return [
            {"id": name, "tokens": section.tokens.pieces, "relevance": value_N}
            for name, section, value_N in rows
        ]

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        return {
            "num_parameters": sum(p.numel() for p in self.network.parameters()),
            "images_seen": self.progress.tokens,
            "images_per_second": self.progress.mean_tokens_per_second(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns loss curves."""
        return {"loss": self.progress.figure()} if any(self.progress.curves.values()) else {}


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of yes-or-no questions in nats: the least loss of soft targets."""
    p = probabilities.double()
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
