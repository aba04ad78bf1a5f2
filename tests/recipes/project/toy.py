"""A user's own classes, as a recipe names them: dropout, augmentation in workers, validation."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import OrderedDict

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from tenfold.datamodules.loading import ResumableDataLoader
from torch import Tensor, nn
from torch.utils.data import Dataset


class NoisyPoints(Dataset):
    """Forty points; each access adds noise."""

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), index / 40) + self.noise * torch.randn(4)


class ToyData(LightningDataModule):
    def __init__(self, batch_size: int = 4, num_workers: int = 0, noise: float = 0.1) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.noise = noise
        self.num_workers = num_workers

    def train_dataloader(self) -> ResumableDataLoader:
        return ResumableDataLoader(
            NoisyPoints(self.noise),
            batch_size=self.batch_size,
            seed=3,
            shuffle=True,
            drop_last=True,
            randomness=True,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> ResumableDataLoader:
        points = NoisyPoints(self.noise)
        return ResumableDataLoader(points, batch_size=20, seed=3, randomness=True)

    test_dataloader = predict_dataloader = val_dataloader

    def decode(self, record: dict) -> dict:
        return {**record, "text": f"item {record['id']}"}

    def run_info(self) -> dict:
        return {"data_hash": "forty points"}


class Toy(LightningModule):
    def __init__(
        self,
        width: int = 8,
        dropout: float = 0.2,
        optimizer: OptimizerCallable = torch.optim.AdamW,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.optimizer = optimizer
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def loss(self, batch: Tensor) -> Tensor:
        return (self.net(batch) - batch.mean(-1, keepdim=True)).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> dict:
        self.log("test/loss", self.loss(batch))
        return {
            "records": [
                {"id": f"{batch_idx}-{i}", "row": "toy", "group": "all", "mean": x.mean()}
                for i, x in enumerate(batch)
            ]
        }

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[dict]:
        return [{"id": f"{batch_idx}-{i}", "y": self.net(x)} for i, x in enumerate(batch)]

    def save_prediction(self, record: dict, folder) -> None:
        (folder / f"{record['id']}.txt").write_text(record["text"])

    def figures(self) -> dict:
        return {"weights": torch.zeros(3, 8, 8)}

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class KilledBeforeLogging(Toy):
    """Is killed between the checkpoint of step 6 and the log of that step, at its first start."""

    def on_train_batch_end(self, *args) -> None:
        if self.trainer.global_step == 6 and not os.path.exists("was_killed"):  # noqa: PTH110
            os.mkdir("was_killed")  # noqa: PTH102
            os.kill(os.getpid(), signal.SIGKILL)


class Kill(Callback):
    """Ends the process the hard way after an optimizer step, before anything is saved for it."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_end(self, trainer, *args) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), signal.SIGKILL)


class KillWorkers(Callback):
    """Ends the data workers, as the kernel does when memory runs out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)


class Hang(Callback):
    """Waits for ever at the start of a step, as for a file system that does not answer."""

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer, *args) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            time.sleep(1e6)


class SignalWhileSaving(Callback):
    """Sends signals to its process when half of the checkpoint of a step has been written."""

    def __init__(self, step: int, numbers: list[int]) -> None:
        self.step = step
        self.numbers = numbers

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if trainer.global_step == self.step:
            checkpoint["signals"] = Signals(self.numbers)


class Signals:
    """Sends signals when it is pickled."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __reduce__(self):
        for number in self.numbers:
            os.kill(os.getpid(), number)
        return (OrderedDict, ())


class FillDisk(Callback):
    """Writes a file until there is no space left."""

    def __init__(self, step: int, path: str) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            with open(self.path, "wb", buffering=0) as file, contextlib.suppress(OSError):  # noqa: PTH123
                while True:
                    file.write(bytes(100))


class LearningRateFrom(Callback):
    """Sets another learning rate from a step on."""

    def __init__(self, step: int, rate: float) -> None:
        self.step = step
        self.rate = rate

    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step >= self.step:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = self.rate


class Interrupt(Callback):
    """Ctrl-C, or another signal, in the middle of a step."""

    def __init__(self, step: int, number: int = int(signal.SIGINT)) -> None:
        self.step = step
        self.number = number

    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Needs(Callback):
    """Fails while a file is missing, as when a disk is not mounted."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_start(self, *args) -> None:
        if not os.path.exists(self.path):  # noqa: PTH110
            raise RuntimeError(f"{self.path} is not there")


class Pause(Callback):
    """Makes each step take some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *args) -> None:
        time.sleep(self.seconds)


class Broken(LightningModule):
    """Raises a defect, not a user error."""

    def __init__(self) -> None:
        super().__init__()
        raise ValueError("a defect of the user's class")
