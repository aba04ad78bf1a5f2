"""Every checkpoint that is written is one to go on from, exactly."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from tenfold.callbacks.checkpointing import (
    AtomicCheckpointIO,
    RunCheckpoint,
    is_intact,
    newest_intact_checkpoint,
)
from tenfold.callbacks.random_state import RandomState, get_random_state, set_random_state
from tenfold.datamodules.loading import ResumableDataLoader
from torch import nn
from torch.utils.data import Dataset

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Points(Dataset):
    def __len__(self):
        return 37

    def __getitem__(self, index):
        return torch.full((4,), index / 37) + 0.1 * torch.randn(4)


class Data(LightningDataModule):
    """Nine training batches in an epoch, one sample left over."""

    def train_dataloader(self):
        return ResumableDataLoader(
            Points(), batch_size=4, seed=3, shuffle=True, drop_last=True, randomness=True
        )

    def val_dataloader(self):
        return ResumableDataLoader(Points(), batch_size=10, seed=3, randomness=True)


class Net(LightningModule):
    """Dropout in training, random numbers in validation; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.seen = []

    def step(self, name, batch):
        loss = self.net(batch).square().mean()
        self.log(f"{name}/loss", loss)
        self.seen.append((name, self.trainer.global_step, loss.item(), batch.sum().item()))
        return loss

    def training_step(self, batch, batch_idx):
        return self.step("train", batch)

    def validation_step(self, batch, batch_idx):
        torch.rand(3)
        self.step("val", batch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 40)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Keeping(RunCheckpoint):
    """Keeps a copy of every `last.ckpt`."""

    def __init__(self, keep: Path | None, **kwargs):
        super().__init__(**kwargs)
        self.keep = keep

    def _save(self, trainer, value=None):
        super()._save(trainer, value)
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if self.keep is not None and last.exists():
            self.keep.mkdir(exist_ok=True)
            shutil.copy(last, self.keep / f"{trainer.global_step}.ckpt")


def fit(folder, settings, ckpt_path=None, keep=None, **checkpoint):
    seed_everything(0, verbose=False)
    module = Net()
    checkpoint = {"every_n_train_steps": 1, **checkpoint}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[RandomState(), Keeping(keep, **checkpoint)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def differences(a, b, path=""):
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [
            d
            for i, pair in enumerate(zip(a, b, strict=True))
            for d in differences(*pair, f"{path}/{i}")
        ]
    return [] if a == b or a != a else [f"{path}: {a} != {b}"]


def seen_after(module, step):
    """Training from `step` on, and validation after it (not Lightning's sanity check)."""
    return [s for s in module.seen if s[1] > step or (s[0] == "train" and s[1] == step)]


SETTINGS = {
    "validation inside the epoch": {"max_steps": 30, "val_check_interval": 4},
    "epochs, validation inside": {"max_epochs": 3, "val_check_interval": 4},
    "validation at epoch ends": {"max_steps": 30},
    "validation across epochs": {
        "max_steps": 30,
        "val_check_interval": 7,
        "check_val_every_n_epoch": None,
    },
    "validation every second epoch": {"max_epochs": 4, "check_val_every_n_epoch": 2},
    "accumulation": {"max_steps": 12, "accumulate_grad_batches": 2, "val_check_interval": 4},
    "validation inside an accumulation": {
        "max_epochs": 3,
        "accumulate_grad_batches": 4,
        "val_check_interval": 3,
    },
    "no validation": {"max_epochs": 3, "limit_val_batches": 0},
    "no validation, steps": {"max_steps": 30, "limit_val_batches": 0},
}
FAST = ("validation inside the epoch", "accumulation", "no validation, steps")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SETTINGS]
)
def test_every_checkpoint_resumes_exactly(name, tmp_path):
    """Batches, losses, and the whole state at the end: weights, optimizer, counters, generators."""
    settings = SETTINGS[name]
    whole, _ = fit(tmp_path / "whole", settings, keep=tmp_path / "keep")
    kept = sorted(tmp_path.glob("keep/*.ckpt"), key=lambda path: int(path.stem))
    assert len(kept) >= 9
    for checkpoint in kept:
        step = int(checkpoint.stem)
        resumed, trainer = fit(tmp_path / f"from_{step}", settings, ckpt_path=checkpoint)
        assert seen_after(resumed, step) == seen_after(whole, step), step
        if trainer.global_step > step:
            state = last(tmp_path / f"from_{step}")
            assert differences(last(tmp_path / "whole"), state) == [], step


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS])
def test_a_resumed_run_can_be_resumed_again(name, tmp_path):
    settings = SETTINGS[name]
    whole, _ = fit(tmp_path / "whole", settings, keep=tmp_path / "keep")
    steps = sorted(int(path.stem) for path in tmp_path.glob("keep/*.ckpt"))
    for first in steps[3::5]:
        checkpoint = tmp_path / "keep" / f"{first}.ckpt"
        fit(tmp_path / f"a{first}", settings, ckpt_path=checkpoint, keep=tmp_path / f"keep{first}")
        for again in sorted(tmp_path.glob(f"keep{first}/*.ckpt"))[::4]:
            step = int(again.stem)
            module, _ = fit(tmp_path / f"b{first}_{step}", settings, ckpt_path=again)
            assert seen_after(module, step) == seen_after(whole, step), (first, step)
            assert differences(whole.state_dict(), module.state_dict()) == []


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"max_steps": 18}, {"max_steps": 30}),
        ({"max_steps": 13}, {"max_steps": 30}),
        ({"max_epochs": 2}, {"max_epochs": 3}),
        ({"max_epochs": 2, "limit_val_batches": 0}, {"max_epochs": 3, "limit_val_batches": 0}),
        ({"max_steps": 18, "limit_val_batches": 0}, {"max_steps": 30, "limit_val_batches": 0}),
    ],
)
def test_a_finished_run_can_be_prolonged(short, long, tmp_path):
    whole, _ = fit(tmp_path / "whole", long)
    _, trainer = fit(tmp_path / "short", short, every_n_train_steps=None)
    step = trainer.global_step
    checkpoint = tmp_path / "short" / "checkpoints" / "last.ckpt"
    prolonged, _ = fit(tmp_path / "long", long, ckpt_path=checkpoint)
    assert seen_after(prolonged, step) == seen_after(whole, step)
    assert differences(whole.state_dict(), prolonged.state_dict()) == []


def test_validating_more_often_does_not_change_training(tmp_path):
    often, _ = fit(tmp_path / "often", {"max_steps": 20, "val_check_interval": 2})
    never, _ = fit(tmp_path / "never", {"max_steps": 20, "limit_val_batches": 0})
    assert [s for s in often.seen if s[0] == "train"] == never.seen


def test_keeps_the_best_and_the_one_before_the_last(tmp_path):
    settings = {"max_steps": 18, "val_check_interval": 3, "check_val_every_n_epoch": None}
    _, trainer = fit(tmp_path, settings, monitor="val/loss", save_top_k=2, every_n_train_steps=None)
    checkpoint = trainer.checkpoint_callback
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", *checkpoint.best}
    assert len(checkpoint.best) == 2
    values = {
        step: sum(x[2] for x in trainer.lightning_module.seen if x[:2] == ("val", step))
        for step in range(3, 19, 3)
    }
    best = sorted(values, key=values.get)[:2]
    assert {f"step_{step:08d}.ckpt" for step in best} == set(checkpoint.best)
    assert checkpoint.best_checkpoint == f"step_{best[0]:08d}.ckpt"


def test_the_best_survive_a_resume_and_nan_is_the_worst(tmp_path):
    checkpoint = RunCheckpoint(monitor="val/acc", mode="max", save_top_k=3)
    checkpoint.load_state_dict({"best": {"a": 0.5, "b": float("nan"), "c": 0.7}})
    assert checkpoint.best_checkpoint == "c"
    other = RunCheckpoint(monitor="val/acc", mode="max")
    other.load_state_dict(checkpoint.state_dict())
    assert other.best.keys() == {"a", "b", "c"}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3), "b": Unpicklable()}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert is_intact(path)
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"].sum() == 3


@pytest.mark.parametrize("position", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_any_flipped_bit_in_the_weights_or_cut_is_noticed(position, tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.rand(5000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * position)])
    assert not is_intact(path)
    start = content.index(b"data/0") + 200
    at = start + int(position * 19000)
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    assert not is_intact(path)
    assert newest_intact_checkpoint(tmp_path) is None


def test_random_state_round_trips_through_a_checkpoint_file(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()  # noqa: NPY002

    random.gauss(0, 1), np.random.randn()  # noqa: NPY002 (leaves half a pair of normals behind)
    torch.save(get_random_state(), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


class Fails(Callback):
    def on_train_batch_end(self, *args):
        raise RuntimeError("as a step can")


@pytest.mark.parametrize("fails", [False, True])
def test_a_trainer_of_ones_own_has_its_signals_back(tmp_path, fails):
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[RunCheckpoint(), *([Fails()] if fails else [])],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
    )
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in background jobs of a shell
    before = signal.getsignal(signal.SIGTERM)
    if fails:
        with pytest.raises(RuntimeError, match="as a step can"):
            trainer.fit(Net(), datamodule=Data())
    else:
        trainer.fit(Net(), datamodule=Data())
        assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
