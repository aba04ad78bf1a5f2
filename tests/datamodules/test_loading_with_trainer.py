"""The loader under Lightning: resume from real checkpoints, sharding, and Trainer options."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from tenfold.datamodules.loading import ResumableDataLoader, refuse_other_data
from torch.utils.data import Dataset

pytestmark = pytest.mark.filterwarnings("ignore", "ignore::UserWarning")


class Noisy(Dataset[Any]):
    """Its own index and, below 1, a random number."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)]) + torch.rand(1)

    def __len__(self) -> int:
        return 23


class Data(LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> ResumableDataLoader:
        return ResumableDataLoader(
            Noisy(),
            batch_size=4,
            seed=3,
            shuffle=True,
            drop_last=True,
            randomness=True,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> ResumableDataLoader:
        return ResumableDataLoader(Noisy(), batch_size=10, randomness=True)

    predict_dataloader = val_dataloader


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, list[float]]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.global_step, batch_idx, batch.flatten().tolist()))
        return (self.linear(batch / 23) ** 2).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/sum", batch.sum())

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> list[int]:
        return batch.flatten().int().tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        num_sanity_val_steps=0,
        **options,
    )


def fit(
    folder: Path, *callbacks: Any, checkpoint: Path | None = None, workers: int = 0, **options: Any
) -> Model:
    torch.manual_seed(0)
    model = Model()
    trainer(folder, *callbacks, **options).fit(
        model, datamodule=Data(workers), ckpt_path=checkpoint, weights_only=True
    )
    return model


EVERY_STEP = {"every_n_train_steps": 1}
AFTER_VALIDATION = {"save_on_train_epoch_end": False}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (EVERY_STEP, {}),
    (EVERY_STEP, {"limit_train_batches": 3}),
    (EVERY_STEP, {"limit_val_batches": 0}),
    (AFTER_VALIDATION, {}),
    (AFTER_VALIDATION, {"val_check_interval": 2}),
    (AFTER_VALIDATION, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
]


# An epoch has 5 steps. The run resumes from each checkpoint made. One combination is left out:
# with max_steps, Lightning 2.6 takes a checkpoint of `on_train_epoch_end` for one inside the epoch.
@pytest.mark.parametrize(
    ("length", "when", "options"),
    [
        *[({"max_steps": 12}, *case) for case in CASES],
        *[({"max_epochs": 3}, *case) for case in CASES],
        ({"max_epochs": 3}, {"save_on_train_epoch_end": True}, {}),
    ],
    ids=str,
)
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(
    tmp_path: Path, length: dict[str, int], when: dict[str, Any], options: dict[str, Any]
) -> None:
    options = {**length, **options}
    saving = ModelCheckpoint(tmp_path / "made", filename="{step}", save_top_k=-1, **when)
    whole = fit(tmp_path, saving, **options)
    checkpoints = {int(p.stem.split("=")[1]): p for p in (tmp_path / "made").glob("*.ckpt")}
    checkpoints.pop(len(whole.seen), None)
    assert checkpoints
    for step, checkpoint in checkpoints.items():
        rest = fit(tmp_path, checkpoint=checkpoint, **options)
        assert rest.seen == whole.seen[step:], step
        assert torch.equal(rest.linear.weight, whole.linear.weight), step


def test_workers_change_neither_the_run_nor_its_resume(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "made", "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(tmp_path, max_epochs=2)
    parallel = fit(tmp_path, saving, max_epochs=2, workers=2)
    assert parallel.seen == whole.seen
    assert torch.equal(parallel.linear.weight, whole.linear.weight)
    for step in (3, 5, 7):
        checkpoint = tmp_path / "made" / f"step={step}.ckpt"
        rest = fit(tmp_path, checkpoint=checkpoint, max_epochs=2, workers=2)
        assert rest.seen == whole.seen[step:]


def test_overfit_batches_repeats_the_first_batches_unshuffled(tmp_path: Path) -> None:
    model = fit(tmp_path, max_epochs=2, overfit_batches=2)
    indices = [[int(number) for number in batch] for _, _, batch in model.seen]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_prediction_keeps_order_and_knows_its_indices(tmp_path: Path) -> None:
    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, *arguments: Any) -> None:
            indices.append([index for _, index in arguments[3]])

    indices: list[list[int]] = []
    predicted = trainer(tmp_path, Writer("batch")).predict(Model(), datamodule=Data())
    assert predicted == indices == [list(range(10)), list(range(10, 20)), list(range(20, 23))]
    loader = Data().predict_dataloader()  # built outside of a hook, Lightning rebuilds it otherwise
    assert trainer(tmp_path).predict(Model(), dataloaders=loader) == indices


SCRIPT = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from lightning.pytorch import LightningModule, Trainer
from tenfold.datamodules.loading import ResumableDataLoader, refuse_other_data

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)  # has buffers, which DDP sends around in each forward
        self.seen = {"train": [], "val": []}
    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch.flatten().tolist())
        return self.norm(batch[:, None].float()).square().mean()
    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch.flatten().tolist())
        self.log("val", self.norm(batch[:, None].float()).mean(), sync_dist=True)
    def train_dataloader(self):
        return ResumableDataLoader(range(21), batch_size=2, seed=3, shuffle=True, drop_last=True)
    def val_dataloader(self):
        return ResumableDataLoader(range(9), batch_size=2)
    def on_fit_end(self):
        with open(f"{sys.argv[1]}/{self.global_rank}.json", "w") as file:
            json.dump(self.seen, file)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.set_num_threads(1)
Trainer(
    accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
).fit(Model())
"""


def test_two_ranks_train_on_the_batches_of_one_and_validate_each_sample_once(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    alone = ResumableDataLoader(range(21), batch_size=4, seed=3, shuffle=True, drop_last=True)
    want = []
    for epoch in range(2):
        alone.sampler.set_epoch(epoch)
        want += [set(batch.tolist()) for batch in alone]
    together = [{*a, *b} for a, b in zip(ranks[0]["train"], ranks[1]["train"], strict=True)]
    assert together == want
    # 5 and 4 samples in batches of 2: the rank with more has one larger batch, not one batch more.
    assert ranks[0]["val"] == [[0, 2], [4, 6, 8]] * 2
    assert ranks[1]["val"] == [[1, 3], [5, 7]] * 2


class Hashed(Data):
    """Data with the hash that the test gives them."""

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest

    def state_dict(self) -> dict[str, str]:
        return {"data": self.digest}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        refuse_other_data(self, state_dict, "pebbles")


def test_a_run_does_not_go_on_with_other_data():
    then = {"data": "a" * 64}
    Hashed("b" * 64).load_state_dict(then)  # without a trainer nothing goes on
    data = Hashed("b" * 64)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.load_state_dict(then)  # nor in a test
    data.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(
        ValueError, match=r"trained with other pebbles \(SHA-256 aaaaaaaaaaaa, here b"
    ):
        data.load_state_dict(then)
    data.digest = "a" * 64
    data.load_state_dict(then)
