import math
from functools import partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from tenfold.modules.optimization import (
    WarmupCosine,
    WarmupStableDecay,
    configure_optimizers,
    parameter_groups,
    save_plain_hyperparameters,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, num_steps: int) -> list[float]:
    values = []
    for _ in range(num_steps):
        values.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return values


class Regression(LightningModule):
    """One linear layer; remembers the learning rate of each step."""

    def __init__(self, lr_scheduler=None):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.make_optimizer = partial(torch.optim.SGD, lr=1.0)
        self.make_lr_scheduler = lr_scheduler
        self.rates: list[float] = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.0)

    def configure_optimizers(self):
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)


@pytest.fixture
def fit(tmp_path):
    def run(module, loader=None, ckpt_path=None, **kwargs):
        if loader is None:
            loader = DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=2)
        settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
        settings |= {"enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(default_root_dir=tmp_path, **(settings | kwargs))
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return trainer

    return run


# Parameter groups


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, kept = parameter_groups(module)
    assert {p.shape for p in decayed["params"]} == {(5, 4), (4, 4)}
    assert "weight_decay" not in decayed
    assert [tuple(p.shape) for p in kept["params"]] == [(4,), (4,), (4,)]
    assert kept["weight_decay"] == 0.0


def test_weight_decay_shrinks_matrices_and_leaves_vectors_alone():
    module = nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=0.5, weight_decay=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight, before["weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(module.bias, before["bias"])


def test_tied_parameters_appear_once_and_frozen_ones_not_at_all():
    module = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    module["head"].weight = module["embed"].weight
    module["frozen"] = nn.Linear(4, 4).requires_grad_(False)
    (group,) = parameter_groups(module)
    assert [p is module["embed"].weight for p in group["params"]] == [True]


def test_parameters_that_a_network_exempts_are_not_decayed():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
            self.proj = nn.Linear(8, 8, bias=False)

        def no_weight_decay(self):
            return {"pos_embed", "dist_token"}  # timm lists tokens that a variant lacks

    module = nn.Sequential(Vision())
    decayed, kept = parameter_groups(module)
    assert decayed["params"] == [module[0].proj.weight]
    assert kept["params"] == [module[0].pos_embed]


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="Linear has nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


# Schedules


@settings(deadline=None)
@given(st.data())
def test_warmup_stable_decay_is_transformers_schedule(data):
    total = data.draw(st.integers(1, 200))
    warmup = data.draw(st.integers(0, total))
    decay = data.draw(st.integers(0, total - warmup))
    decay_type = data.draw(st.sampled_from(["linear", "cosine", "1-sqrt"]))
    ratio = data.draw(st.floats(0, 1))
    ours = WarmupStableDecay(sgd(0.3), warmup, decay, decay_type, ratio, total)
    theirs = transformers.get_wsd_schedule(
        sgd(0.3), warmup, decay, total, decay_type=decay_type, min_lr_ratio=ratio
    )
    assert rates(ours, total + 3) == rates(theirs, total + 3)


@settings(deadline=None)
@given(st.data())
def test_warmup_cosine_is_transformers_schedule_and_stays_at_its_end(data):
    total = data.draw(st.integers(1, 200))
    warmup = data.draw(st.integers(0, total))
    ratio = data.draw(st.floats(0, 1))
    ours = rates(WarmupCosine(sgd(0.3), warmup, ratio, total), total + 4)
    theirs = rates(
        transformers.get_cosine_with_min_lr_schedule_with_warmup(
            sgd(0.3), warmup, total, min_lr_rate=ratio
        ),
        total + 1,
    )
    assert ours[: total + 1] == theirs
    assert ours[total:] == [theirs[-1]] * 4


def test_schedules_have_their_closed_form():
    peak, total = 0.2, 100
    wsd = rates(WarmupStableDecay(sgd(peak), 0.1, 0.2, "1-sqrt", 0.0, total), total + 1)
    assert wsd[0] == 0
    assert wsd[5] == pytest.approx(peak * 5 / 10)
    assert wsd[10:81] == [peak] * 71
    assert wsd[85] == pytest.approx(peak * (1 - math.sqrt(5 / 20)))
    assert wsd[100] == 0
    cosine = rates(WarmupCosine(sgd(peak), 10, 0.1, total), total + 1)
    assert cosine[55] == pytest.approx(peak * (0.1 + 0.9 / 2))
    assert cosine[100] == pytest.approx(peak * 0.1)


@pytest.mark.parametrize("make", [WarmupStableDecay, WarmupCosine])
def test_the_trainer_gives_the_length_of_the_run(fit, make):
    module = Regression(partial(make, warmup=0.5))
    fit(module, max_steps=8)
    assert module.rates == rates(make(sgd(), 0.5, num_training_steps=8), 8)


def test_accumulation_counts_optimizer_steps(fit):
    module = Regression(partial(WarmupCosine, warmup=1))
    fit(module, max_epochs=4, accumulate_grad_batches=2)
    assert module.rates[::2] == rates(WarmupCosine(sgd(), 1, num_training_steps=8), 8)


@pytest.mark.parametrize("make", [WarmupStableDecay, WarmupCosine])
def test_resume_is_exact_and_the_checkpoint_is_plain(fit, tmp_path, make):
    whole, resumed = (Regression(partial(make, warmup=0.2)) for _ in range(2))
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    fit(whole, max_steps=10, callbacks=[keep], enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["lr_schedulers"][0]
    assert saved["last_epoch"] == 3
    fit(resumed, max_steps=10, ckpt_path=tmp_path / "step=3.ckpt")
    assert resumed.rates == whole.rates[3:]


def test_a_resumed_run_may_be_given_more_steps():
    stopped = WarmupStableDecay(sgd(), 2, 0.5, num_training_steps=10)
    rates(stopped, 4)
    longer = WarmupStableDecay(sgd(), 2, 0.5, num_training_steps=40)
    longer.load_state_dict(stopped.state_dict())
    expected = rates(WarmupStableDecay(sgd(), 2, 0.5, num_training_steps=40), 40)
    assert rates(longer, 36)[1:] == expected[5:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(WarmupStableDecay, warmup=30, decay=40), r"warmup 30 \+ decay 40 .* run of 60"),
        (partial(WarmupCosine, warmup=61), r"warmup 61 steps .* run of 60"),
        (partial(WarmupCosine, warmup=1.5), r"init_args.warmup: 1.5 is neither"),
        (partial(WarmupStableDecay, decay=-1), r"init_args.decay: -1 is neither"),
        (partial(WarmupStableDecay, decay_type="square"), "square"),
    ],
)
def test_impossible_schedules_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(sgd(), num_training_steps=60)


def test_a_run_without_end_is_an_error(fit):
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(2)

    module = Regression(partial(WarmupCosine, warmup=2))
    with pytest.raises(ValueError, match=r"WarmupCosine needs the length of the run.*max_steps"):
        fit(module, DataLoader(Endless(), batch_size=2), max_steps=-1)


def test_a_schedule_of_unknown_length_refuses_to_step():
    schedule = WarmupCosine(sgd())
    schedule.optimizer.step()
    with pytest.raises(ValueError, match="num_training_steps is unknown"):
        schedule.step()


# What Lightning is told


def test_torch_schedules_step_as_they_are_meant(fit):
    one_cycle = Regression(partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=8))
    fit(one_cycle, max_epochs=2)
    assert len(set(one_cycle.rates)) == 8
    per_epoch = Regression(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    fit(per_epoch, max_epochs=3)
    assert per_epoch.rates == [1.0] * 4 + [0.5] * 4 + [0.25] * 4


def test_plateau_schedule_follows_its_metric(fit):
    module = Regression(partial(ReduceLROnPlateau, monitor="val/loss", patience=0, factor=0.5))
    fit(module, max_epochs=3)
    assert module.rates == [1.0] * 8 + [0.5] * 4  # val/loss is constant: no gain from epoch 2 on


def test_plateau_schedule_without_a_metric_is_an_error():
    module = Regression(torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau with init_args.monitor"):
        module.configure_optimizers()


def test_callables_become_class_path_and_arguments():
    class Holder(LightningModule):
        def __init__(self, width: int, make=None, other=None, third=None):
            super().__init__()
            self.save_hyperparameters()
            save_plain_hyperparameters(self)

    holder = Holder(3, partial(torch.optim.SGD, lr=0.1), WarmupCosine, lambda params: None)
    assert holder.hparams == {
        "width": 3,
        "make": {"class_path": "torch.optim.sgd.SGD", "init_args": {"lr": 0.1}},
        "other": {"class_path": "tenfold.modules.optimization.WarmupCosine", "init_args": {}},
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    assert Holder(3).hparams == {"width": 3, "make": None, "other": None, "third": None}
