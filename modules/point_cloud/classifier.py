"""Classification of point clouds, as the ModelNet40-C benchmark trains and tests it.

Shapes: B clouds, N points, C channels, K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchmetrics import MaxMetric, MeanMetric, Metric

from ..corruption_names import CLEAN
from ..influence import outlier_influence, permutation_residual
from ..metrics.corruption_errors import CorruptionErrorRates
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .figures import error_rate_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PointCloudClassifier(ProgressModule):
    """Classifies point clouds; tests them clean and corrupted.

    A batch is a dict: `pos` (B, N, 3) float; `label` (B,) int64; `index` (B,) int64, the number of
    the shape; optionally `mask` (B, N) bool, True for real points, and in training `label_weights`
    (B, K), a distribution over the classes of clouds mixed from several; in evaluation
    `corruption`, a name ("clean" for none), and `severity`, 0 to 5, of the whole batch.

    Validation logs `val/loss` and `val/accuracy` of the clean clouds, and error rates `val/er_...`
    where there are corrupted ones; testing logs the error rates of
    `modules.metrics.corruption_errors` as `test/er...`, and of the first clean batch
    `test/outlier_influence`, how far one point at (1, 1, 1) moves the features, as a share of them,
    and `test/permutation_residual`, the largest change of a feature when points are shuffled.

    A step whose gradient is not finite is left out, as in the benchmark, and counted. (fp16 leaves
    this to its loss scaler.)

    Args:
        backbone: Maps coordinates and mask to (features (B, C), penalty), C its `out_channels`:
            one of `modules.point_cloud`.
        num_classes: K.
        head_widths: Channels after each hidden layer of the head.
        dropout: In the head, after each hidden layer; a number, or one for each layer.
        activation: Of the head.
        label_smoothing: E: the target is 1 - E for the true class and E / (K - 1) for each other
            one, as in the benchmark; torch's own smoothing spreads E over all K.
        penalty_weight: What the backbone's penalty is multiplied by (PointNet: 0.001).
        outlier_filter: In evaluation says, from coordinates and mask, which points to keep, such as
            `modules.outlier_filter.InDegreeFilter`; None: all. Training takes clouds as they are.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the schedule. `ReduceLROnPlateau` with `monitor: train/epoch_loss`
            follows the training loss, as the benchmark's does.

    Raises:
        ValueError: From the constructor a number out of range; from a step a label beyond the
            classes, or coordinates that are not finite.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        head_widths: Sequence[int] = (512, 256),
        dropout: float | Sequence[float] = 0.5,
        activation: Literal["relu", "leaky_relu"] = "relu",
        label_smoothing: float = 0.2,
        penalty_weight: float = 0.001,
        outlier_filter: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "outlier_filter"])
        save_plain_hyperparameters(self)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.penalty_weight = penalty_weight
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.backbone = backbone
        self.outlier_filter = outlier_filter
        width = int(backbone.out_channels)  # type: ignore[arg-type] # documented of backbones
        self.head = make_head(width, num_classes, head_widths, dropout, activation)
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        self.val_errors = CorruptionErrorRates()
        self.test_errors = CorruptionErrorRates(self.num_classes)
        self.val_loss = MeanMetric()
        self.outlier_influence = MeanMetric()
        self.permutation_residual = MaxMetric()
        self.progress = TrainingProgress(unit="clouds", loss_unit="nats")
        self.skipped_steps = 0
        self._test_rates: dict[str, float] = {}

    def configure_model(self) -> None:
        """Shards the networks, which the constructor has built."""
        self.shard_network()

    def shard_network(self) -> None:
        """Shards them where a strategy asks for it; callbacks change layers before."""
        shard_over_devices(self, [self.backbone, self.head])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    def forward(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Returns the logits of clouds, (B, K)."""
        logits, _ = self._logits_and_penalty({"pos": pos_BN3, "mask": mask_BN})
        return logits

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Returns what training minimises: smoothed cross-entropy in nats and the penalty."""
        logits_BK, penalty = self._logits_and_penalty(batch)
        return self._cross_entropy(logits_BK, batch).mean() + self.penalty_weight * penalty

    def _logits_and_penalty(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        features_BC, penalty = self._encode(batch["pos"], batch.get("mask"))
        return self.head(features_BC), penalty

    def _encode(self, pos_BN3: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns features (B, C) and the backbone's penalty."""
        if self.outlier_filter is not None and not self.training:
            mask_BN = self.outlier_filter(pos_BN3, mask_BN)
        encoded: tuple[Tensor, Tensor] = self.backbone(pos_BN3, mask_BN)
        return encoded

    def _cross_entropy(self, logits_BK: Tensor, batch: dict[str, Any]) -> Tensor:
        """Returns the smoothed cross-entropy of each cloud, (B,)."""
        # torch's smoothing gives the true class 1 - s + s / K: the same targets for this s.
        smoothing = self.label_smoothing * self.num_classes / (self.num_classes - 1)
        target = batch.get("label_weights", batch["label"])
        return F.cross_entropy(
            logits_BK.float(), target, label_smoothing=smoothing, reduction="none"
        )

    # Training

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Checks the first batch of a run, which would otherwise fail far from the cause."""
        if self.progress.tokens == 0:
            check_batch(batch, self.num_classes)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self.loss(batch)
        self.progress.step(loss.detach()[None], len(batch["pos"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            reduce = self.trainer.strategy.reduce
            self.log("train/loss", self.progress.mean_losses(reduce)[0], prog_bar=True)
            self.log("train/clouds_per_second", self.progress.tokens_per_second())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves out a step whose gradient is not finite."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if str(self.trainer.precision).startswith("16") or not gradients:
            return
        if not torch.isfinite(nn.utils.get_total_norm(gradients)):
            optimizer.zero_grad(set_to_none=True)  # parameters without gradient are not stepped
            self.skipped_steps += 1
            if self.skipped_steps == 1:
                rank_zero_warn(
                    f"step {self.trainer.global_step} is left out: its gradient is not finite. "
                    "Further ones are counted as skipped_steps in metrics.json"
                )

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the epoch, which a schedule may follow."""
        epoch_loss = self.progress.epoch_mean_loss(self.trainer.strategy.reduce)
        self.log("train/epoch_loss", epoch_loss, sync_dist=True)

    # Evaluation

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the validation metrics."""
        logits_BK, _ = self._logits_and_penalty(batch)
        corruption, severity = batch.get("corruption", CLEAN), batch.get("severity", 0)
        self.val_errors.update(logits_BK.argmax(dim=1), batch["label"], corruption, severity)
        if corruption == CLEAN:
            self.val_loss.update(self._cross_entropy(logits_BK, batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        rates = self.val_errors.compute()
        loss = self.val_loss.compute()
        values = {"loss": loss, "accuracy": 1 - rates["er_clean"]}
        values |= {name: rate for name, rate in rates.items() if name.startswith("er_")}
        self.val_errors.reset()
        self.val_loss.reset()
        for name, value in values.items():
            # Equal on all devices already; sync_dist only tells Lightning so.
            self.log(f"val/{name}", value, prog_bar=name in ("loss", "accuracy"), sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", loss.item())

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Adds one batch to the error rates; returns a record for each cloud."""
        corruption, severity = batch.get("corruption", CLEAN), batch.get("severity", 0)
        if batch_idx == 0 and corruption == CLEAN and "mask" not in batch:
            self._probe(batch["pos"])
        predictions_B = self(batch["pos"], batch.get("mask")).argmax(dim=1)
        self.test_errors.update(predictions_B, batch["label"], corruption, severity)
        wrong_B = (predictions_B != batch["label"]).float()
        return {
            "records": [
                {
                    "id": f"{corruption}/{severity}/{index}",
                    "row": corruption,
                    "group": str(index),
                    "error": error,
                }
                for index, error in zip(batch["index"].tolist(), wrong_B.tolist(), strict=True)
            ]
        }

    def _probe(self, pos_BN3: Tensor) -> None:
        """Measures what one outlier and a shuffle do to the features."""

        def encode(pos_BN3: Tensor) -> Tensor:
            return self._encode(pos_BN3)[0]

        corner_B13 = torch.ones_like(pos_BN3[:, :1])
        self.outlier_influence.update(outlier_influence(encode, pos_BN3, corner_B13))
        # A generator of its own: the global ones are the run's.
        shuffles = torch.Generator().manual_seed(0)
        self.permutation_residual.update(permutation_residual(encode, pos_BN3, shuffles))

    def on_test_epoch_end(self) -> None:
        """Logs the error rates, and what was probed."""
        values = {name: rate.item() for name, rate in self.test_errors.compute().items()}
        self.test_errors.reset()
        self._test_rates = dict(values)
        for name in ("outlier_influence", "permutation_residual"):
            probe: Metric = getattr(self, name)
            if probe.update_called:
                values[name] = probe.compute().item()
                probe.reset()
        for name, value in values.items():
            self.log(f"test/{name}", value, sync_dist=True)

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Returns class and probability of each cloud, by its name where the batch has `name`."""
        probabilities_BK = self(batch["pos"], batch.get("mask")).softmax(dim=1)
        probability_B, label_B = probabilities_BK.max(dim=1)
        ids = batch["name"] if "name" in batch else map(str, batch["index"].tolist())
        rows = zip(ids, label_B.tolist(), probability_B.tolist(), strict=True)
        return [
            {"id": id_, "label": label, "probability": probability}
            for id_, label, probability in rows
        ]

    # What a run leaves behind

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores counts and loss curves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_progress"]["skipped_steps"] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them; a checkpoint without them (merged, converted) starts at zero."""
        super().on_load_checkpoint(checkpoint)
        if "training_progress" in checkpoint:
            self.skipped_steps = checkpoint["training_progress"]["skipped_steps"]

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        return {
            "num_parameters": sum(p.numel() for p in self.parameters()),
            "samples_seen": self.progress.tokens,
            "samples_per_second": self.progress.mean_tokens_per_second(),
            "skipped_steps": self.skipped_steps,
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns the loss curves, and after a test of corrupted clouds a table of its errors."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if any(name.startswith("er_cor") for name in self._test_rates):
            found["error_rates"] = error_rate_figure(self._test_rates)
        return found


def make_head(
    in_channels: int,
    num_classes: int,
    widths: Sequence[int],
    dropout: float | Sequence[float],
    activation: Literal["relu", "leaky_relu"],
) -> nn.Sequential:
    """Builds hidden layers with BatchNorm, activation and dropout, and the layer of the logits.

    Raises:
        ValueError: A width is below 1, or the dropouts are not one for each hidden layer in [0, 1).
    """
    shares = [float(dropout)] * len(widths) if isinstance(dropout, (int, float)) else [*dropout]
    if len(shares) != len(widths) or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"dropout: {dropout}, expected one number in [0, 1) for each of {widths}")
    if min(widths, default=1) < 1:
        raise ValueError(f"head_widths: {widths}, expected numbers of at least 1")
    layers: list[nn.Module] = []
    for width, share in zip(widths, shares, strict=True):
        activate = nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.2)
        linear = nn.Linear(in_channels, width)
        layers += [linear, nn.BatchNorm1d(width), activate, nn.Dropout(share)]
        in_channels = width
    return nn.Sequential(*layers, nn.Linear(in_channels, num_classes))


def check_batch(batch: dict[str, Any], num_classes: int) -> None:
    """Refuses a batch that no classifier of so many classes can learn from.

    Raises:
        ValueError: The coordinates are not (B, N, 3) or not finite, or a label is out of range.
    """
    pos, label = batch["pos"], batch["label"]
    if pos.ndim != 3 or pos.shape[-1] != 3:
        raise ValueError(f"pos: shape {tuple(pos.shape)}, expected (B, N, 3)")
    real = pos if batch.get("mask") is None else pos[batch["mask"]]
    if not torch.isfinite(real).all():
        raise ValueError("pos: coordinates are not finite (NaN or infinity); clean the data")
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"label {int(label.max())} is outside of the model's {num_classes} classes: set "
            "model.init_args.num_classes to the number of classes of the data"
        )
