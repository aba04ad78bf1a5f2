"""A second validation pass gives what Lightning's own pass gives, and leaves nothing behind."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tenfold.callbacks.random_state import get_random_state
from tenfold.callbacks.second_validation import (
    batch_norms,
    isolated,
    recalibrate_batch_norm,
    validate_again,
)
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection, SumMetric


class Judge(LightningModule):
    """Logs in every way that Lightning knows; two data loaders, of uneven batches."""

    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.net[1].bias.requires_grad_(False)
        self.mean = MeanMetric()
        self.both = MetricCollection({"sum": SumMetric(), "other": MeanMetric()})
        self.automatic_optimization = automatic
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = self.net(batch).square().mean() + torch.rand(()) * 0 + self.current_epoch
        self.seen.append(batch_idx)
        self.mean(loss)
        self.both(loss)
        self.log("loss", loss)
        self.log("step_and_epoch", loss, on_step=True, on_epoch=True)
        self.log("step_only", loss, on_step=True, on_epoch=False)
        self.log("largest", loss, reduce_fx="max")
        self.log("weighted", loss, batch_size=7)
        self.log_dict({"sum": loss.sum(), "number": 3.0}, reduce_fx="sum")
        self.log(f"own/{dataloader_idx}", loss, add_dataloader_idx=False)
        self.log("metric", self.mean, add_dataloader_idx=True)
        if self.logger is not None:
            self.logger.experiment.add_scalar("twice", 1.0)

    def on_validation_epoch_end(self):
        self.log("num_seen", float(len(self.seen)))
        self.log_dict(self.both)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


class Again(Callback):
    """Repeats the validation with the same weights."""

    def __init__(self) -> None:
        self.passes: list[tuple[dict, dict]] = []

    def on_validation_start(self, trainer, pl_module) -> None:
        pl_module.seen = []

    def on_validation_end(self, trainer, pl_module) -> None:
        live = {n: v.clone() for n, v in trainer.callback_metrics.items()}
        state = get_random_state()
        books, metric = pl_module.seen, pl_module.mean
        with isolated(trainer, pl_module) as results:
            pl_module.seen = []
            again = validate_again(trainer, pl_module, results)
        assert pl_module.seen is books
        assert pl_module.mean is metric
        after = get_random_state()
        assert torch.equal(state["torch"], after["torch"])
        assert torch.equal(state["numpy"][0], after["numpy"][0])
        assert state["python"] == after["python"]
        self.passes.append((live, again))


def train(model: LightningModule, *callbacks: Callback, folder, limit=1.0, logger=False) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        limit_val_batches=limit,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    torch.manual_seed(0)
    data = torch.randn(22, 3)
    trainer.fit(
        model, DataLoader(data, 5, shuffle=True), [DataLoader(data, 8), DataLoader(data, 6)]
    )
    return trainer


@pytest.mark.parametrize("limit", [1.0, 2])
def test_the_same_weights_give_the_same_results_under_the_same_names(tmp_path, limit):
    """Also notices when the private parts of Lightning that this stands on have moved."""
    again = Again()
    train(Judge(), again, folder=tmp_path, limit=limit)
    assert len(again.passes) == 2
    for live, repeated in again.passes:
        live = {name: value for name, value in live.items() if not name.startswith("train/")}
        # A value for a step and for the epoch has three names; ours are those of the epoch.
        expected = {n for n in live if not n.startswith(("step_only", "step_and_epoch_step"))}
        expected = {n for n in expected if not n.startswith("step_and_epoch_epoch")}
        assert repeated.keys() == expected
        assert any(name.endswith("/dataloader_idx_1") for name in expected)
        for name in expected:
            assert torch.equal(repeated[name], live[name]), name


def test_loggers_see_one_pass(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    calls = []

    class Counting(TensorBoardLogger):
        def log_metrics(self, metrics, step=None):
            calls.extend(name for name in metrics if name.startswith("loss"))

    train(Judge(), Again(), folder=tmp_path, logger=Counting(tmp_path))
    assert sorted(calls) == ["loss/dataloader_idx_0"] * 2 + ["loss/dataloader_idx_1"] * 2


class Calibrate(Callback):
    """Takes BatchNorm statistics anew, of some layers."""

    def __init__(self, num_batches: int, with_norms: bool = True) -> None:
        self.num_batches, self.with_norms = num_batches, with_norms

    def on_validation_end(self, trainer, pl_module) -> None:
        norms = list(batch_norms(pl_module).values()) if self.with_norms else []
        with isolated(trainer, pl_module):
            recalibrate_batch_norm(trainer, pl_module, norms, self.num_batches)
            layer = pl_module.net[1]
            self.found = layer.running_mean.clone(), layer.running_var.clone()


@pytest.mark.parametrize("automatic", [True, False])
def test_statistics_are_means_over_training_batches(tmp_path, automatic):
    model, calibrate = Judge(automatic), Calibrate(num_batches=2)
    batches = []
    original = model.net.forward

    def spy(x):
        if model.net[1].momentum is None:
            batches.append(model.net[0](x).detach())
        return original(x)

    model.net.forward = spy
    train(model, calibrate, folder=tmp_path)
    batches = batches[-2:]
    mean = torch.stack([x.mean(0) for x in batches]).mean(0)
    var = torch.stack([x.var(0) for x in batches]).mean(0)
    assert torch.allclose(calibrate.found[0], mean, atol=1e-6)
    assert torch.allclose(calibrate.found[1], var, atol=1e-6)
    assert model.net[1].momentum == 0.1


def test_frozen_statistics_stay(tmp_path):
    model, calibrate = Judge(), Calibrate(2, with_norms=False)
    train(model, calibrate, folder=tmp_path)
    assert torch.equal(calibrate.found[0], model.net[1].running_mean)
