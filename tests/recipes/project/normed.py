"""A user's network with everything that a second validation could disturb."""

import os
import shutil
import signal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric


class Normed(LightningModule):
    """BatchNorm, dropout, tied and frozen weights, an integer buffer, a metric, and books."""

    def __init__(self, lr: float = 0.01, warmup: int = 0, decay_at: int = 10**6) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.embed = nn.Linear(4, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.shared = nn.Parameter(torch.eye(8))
        self.head = nn.Linear(8, 1)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.long))
        self.val_loss = MeanMetric()
        self.best = float("inf")
        self.history: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.frozen(self.embed(x)))
        hidden = F.dropout(F.relu(F.linear(hidden, self.shared)), 0.2, self.training)
        return self.head(self.tied(hidden))

    def loss(self, batch: Tensor) -> Tensor:
        return (self(batch) - batch.mean(-1, keepdim=True)).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.num_calls += 1
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.val_loss.update(loss, len(batch))
        self.log("val/loss", self.val_loss)
        self.log("val/plain", loss)

    def on_validation_epoch_end(self) -> None:
        value = float(self.val_loss.compute())
        self.best = min(self.best, value)
        self.history.append(value)
        self.log("val/best", self.best)
        self.log("val/num", float(len(self.history)))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["books"] = {"best": self.best, "history": list(self.history)}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "books" in checkpoint:
            self.best = checkpoint["books"]["best"]
            self.history = list(checkpoint["books"]["history"])

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.hparams.lr)

        def rate(step: int) -> float:
            if step < self.hparams.warmup:
                return (step + 1) / (self.hparams.warmup + 1)
            return 0.5 if step >= self.hparams.decay_at else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class During(Callback):
    """Does something in the middle of a validation pass: of the first (1) or the second (2)."""

    def __init__(self, action: str, step: int, at_pass: int = 2) -> None:
        self.action, self.step, self.at_pass = action, step, at_pass

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.passes = 0
        if "validation_step" in vars(pl_module):
            return
        step = pl_module.validation_step

        def with_action(batch, batch_idx):
            self.passes += batch_idx == 0
            if trainer.global_step == self.step and self.passes == self.at_pass and batch_idx == 1:
                getattr(self, self.action)(trainer)
            return step(batch, batch_idx)

        pl_module.__dict__["validation_step"] = with_action

    def kill(self, trainer) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, trainer) -> None:
        raise RuntimeError("in the middle")

    def interrupt(self, trainer) -> None:
        raise KeyboardInterrupt

    def save(self, trainer) -> None:
        trainer.save_checkpoint("meanwhile.ckpt", weights_only=True)


class Lose(Callback):
    """Deletes a snapshot of the ring."""

    def __init__(self, step: int, snapshot: int) -> None:
        self.step, self.snapshot = step, snapshot

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            folder = f"merging/ring/step_{self.snapshot:08d}"
            shutil.rmtree(os.path.join(trainer.default_root_dir, folder))  # noqa: PTH118


class Poison(Callback):
    """A batch that is not a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            batch.fill_(float("nan"))
