"""What Lightning and the data loader cost: tokens per second of the quickstart's model.

    python tests/benchmarks/lightning_overhead.py --rounds 7 --num_steps 60

Trains the same network with the same optimizer, schedule, clipping and batches in a plain PyTorch
loop and under the Trainer as the recipe uses it (TensorBoard, logging every 25 steps, the callbacks
of every run, the checkpoint at the end), in turns within one process, so that whatever else the
machine does hits both alike. Target: a ratio of at least 0.95. Then reads batches without a model;
target: 20 times faster than the model consumes them. Nothing is kept.
"""

import itertools
import logging
import statistics
import time
import warnings
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from report import ratio
from tenfold.callbacks.checkpointing import AtomicCheckpointIO, RunCheckpoint
from tenfold.callbacks.figures import FigureWriter
from tenfold.callbacks.progress_lines import ProgressLines
from tenfold.callbacks.random_state import RandomState
from tenfold.callbacks.records import RecordWriter
from tenfold.datamodules.text import TextDataModule
from tenfold.modules.causal_lm import build_config, random_network
from tenfold.modules.language_model import CausalLanguageModel
from tenfold.modules.optimization import WarmupStableDecay, parameter_groups
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WARM_UP = 5  # steps before the clock starts
make_optimizer = partial(AdamW, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
make_schedule = partial(WarmupStableDecay, warmup=0.05, decay=0.2)


class Stopwatch(Callback):
    """Times the steps after the warm-up, the last optimizer step included, by wall and by CPU."""

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARM_UP:
            self.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()


def plain_loss(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Returns the cross-entropy. A function, so that no logits outlive their step: with them in the
    loop's own variables the plain loop is a tenth slower, and the comparison flatters Lightning."""
    logits = network(batch["input_ids"], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def train_plain(loader: DataLoader, num_steps: int) -> tuple[Stopwatch, PreTrainedModel]:
    """Trains in a plain PyTorch loop."""
    seed_everything(0, verbose=False)
    network = random_network(build_config(CONFIG), seed=0).train()
    optimizer = make_optimizer(parameter_groups(network))
    schedule = make_schedule(optimizer, num_training_steps=num_steps)
    stopwatch = Stopwatch()
    for step, batch in enumerate(loader):
        if step == WARM_UP:
            stopwatch.start()
        loss = plain_loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    stopwatch.stop()
    return stopwatch, network


def train_lightning(
    loader: DataLoader, num_steps: int, folder: str
) -> tuple[Stopwatch, PreTrainedModel]:
    """Trains CausalLanguageModel under the Trainer."""
    seed_everything(0, verbose=False)
    module = CausalLanguageModel(CONFIG, optimizer=make_optimizer, lr_scheduler=make_schedule)
    stopwatch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        gradient_clip_val=1.0,
        log_every_n_steps=25,
        logger=TensorBoardLogger(folder),
        callbacks=[
            stopwatch,
            FigureWriter(),
            RecordWriter(),
            ProgressLines(),
            LearningRateMonitor(),
            RandomState(),
            RunCheckpoint(),
        ],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    return stopwatch, module.network


def main(rounds: int = 5, num_steps: int = 40, batch_size: int = 16, num_threads: int = 2) -> None:
    """Prints tokens per second of both loops, their ratio, and the speed of reading alone.

    Args:
        rounds: Repetitions of both loops, in alternating order.
        num_steps: Training steps per repetition; the first 5 are not timed.
        batch_size: Sequences of 128 bytes per step.
        num_threads: Threads of torch. More than there are idle cores spoils the wall times.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(num_threads)
    runs: dict[str, list[Stopwatch]] = {"plain": [], "lightning": []}
    with TemporaryDirectory() as folder:
        data = TextDataModule(sequence_length=128, batch_size=batch_size, cache_dir=folder)
        data.prepare_data()
        data.setup("fit")
        start = time.perf_counter()
        num_read = sum(1 for _ in itertools.islice(data.train_dataloader(), 20 * num_steps))
        reading = num_read * batch_size * 128 / (time.perf_counter() - start)

        batches = list(itertools.islice(data.train_dataloader(), max(num_steps, 20)))
        same = DataLoader(batches[:20], batch_size=None)
        networks = train_plain(same, 20)[1], train_lightning(same, 20, folder)[1]
        # Of 20 steps: later, Adam turns rounding of tiny gradients into whole steps of a weight.
        for plain, ours in zip(*(network.parameters() for network in networks), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)

        loader = DataLoader(batches[:num_steps], batch_size=None)
        train = {
            "plain": lambda: train_plain(loader, num_steps),
            "lightning": lambda: train_lightning(loader, num_steps, folder),
        }
        for index in range(rounds):
            for name in list(train)[:: 1 if index % 2 == 0 else -1]:
                runs[name].append(train[name]()[0])

    num_tokens = (num_steps - WARM_UP) * batch_size * 128
    print(f"{'tokens / s':12}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, watches in runs.items():
        speeds = [num_tokens / watch.wall for watch in watches]
        print(f"{name:12}{statistics.median(speeds):10.0f}{min(speeds):10.0f}{max(speeds):10.0f}")
    print(f"{'reading':12}{reading:10.0f}")
    medians = {}
    for clock in ("wall", "cpu"):
        pairs = zip(runs["plain"], runs["lightning"], strict=True)
        ratios = [getattr(plain, clock) / getattr(ours, clock) for plain, ours in pairs]
        spread = statistics.stdev(ratios) if rounds > 1 else float("nan")
        medians[clock] = median = statistics.median(ratios)
        print(f"lightning / plain, {clock:4} time {median:7.3f}  sd {spread:.3f}, {rounds} rounds")
    plain_speed = statistics.median(num_tokens / watch.wall for watch in runs["plain"])
    print(f"reading / plain {reading / plain_speed:21.0f}")
    ratio("tokens/s, Lightning / plain loop", medians["wall"], at_least=0.95)
    ratio("tokens per CPU second, Lightning / plain loop", medians["cpu"])
    ratio("tokens/s, reading alone / plain loop", reading / plain_speed, at_least=20)


if __name__ == "__main__":
    auto_cli(main)
