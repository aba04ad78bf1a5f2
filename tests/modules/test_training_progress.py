import pytest
import torch
from lightning.pytorch import Trainer
from tenfold.modules import training_progress
from tenfold.modules.training_progress import ProgressModule, TrainingProgress
from torch import nn
from torch.utils.data import DataLoader


def test_losses_are_averaged_between_logging_steps():
    progress = TrainingProgress(num_losses=2)
    for value in (1.0, 2.0, 6.0):
        progress.step(torch.tensor([value, 10 * value]), num_tokens=100)
    assert progress.mean_losses() == [3.0, 30.0]
    progress.step(torch.tensor([5.0, 0.0]), num_tokens=50)
    assert progress.mean_losses() == [5.0, 0.0]
    assert progress.curves["train"] == [[300, 3.0], [350, 5.0]]


def test_a_step_keeps_no_graph():
    progress = TrainingProgress()
    losses = torch.ones(1, requires_grad=True) * 2
    progress.step(losses, 1)
    assert not progress._sums.requires_grad


def test_state_is_plain_and_resumes_in_the_middle_of_a_window(tmp_path):
    values = torch.rand(10, 1)
    whole, first, second = TrainingProgress(), TrainingProgress(), TrainingProgress()
    for value in values:
        whole.step(value, 7)
    for value in values[:4]:
        first.step(value, 7)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for value in values[4:]:
        second.step(value, 7)
    assert second.mean_losses() == whole.mean_losses()
    assert second.curves == whole.curves


def test_long_curves_are_thinned_and_keep_their_ends():
    progress = TrainingProgress(max_points=16)
    for step in range(1000):
        progress.tokens = step
        progress.add_point("val", float(step))
    points = progress.curves["val"]
    assert len(points) <= 16
    assert points[-1] == [999, 999.0]
    assert points == sorted(points)
    assert points[0][0] < 500


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""

    class Clock:
        now = 50.0

    monkeypatch.setattr(training_progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_speed_counts_the_tokens_of_its_window(clock):
    progress = TrainingProgress()
    assert progress.mean_tokens_per_second() is None
    progress.step(torch.zeros(1), 1000)
    clock.now += 2
    assert progress.tokens_per_second() == 500
    progress.step(torch.zeros(1), 6000)
    clock.now += 3
    assert progress.tokens_per_second() == 2000
    assert progress.mean_tokens_per_second() == 7000 / 5


def test_speed_leaves_pauses_out(clock):
    progress = TrainingProgress()
    progress.step(torch.zeros(1), 100)
    clock.now += 1
    progress.pause()
    clock.now += 60
    progress.resume()
    clock.now += 1
    assert progress.tokens_per_second() == 50


def test_a_resumed_run_measures_itself_only(clock):
    progress, resumed = TrainingProgress(), TrainingProgress()
    progress.step(torch.zeros(1), 100)
    resumed.load_state_dict(progress.state_dict())
    clock.now += 1000
    resumed.step(torch.zeros(1), 100)
    clock.now += 1
    assert resumed.tokens_per_second() == 100
    assert resumed.tokens == 200


def test_figure_shows_both_curves():
    progress = TrainingProgress()
    for tokens, loss in ((100, 3.0), (1000, 2.5), (10000, 2.0)):
        progress.tokens = tokens
        progress.add_point("train", loss)
    progress.add_point("val", 2.25)
    axes = progress.figure().axes[0]
    train, val = axes.lines
    assert list(train.get_xdata()) == [100, 1000, 10000]
    assert list(train.get_ydata()) == [3.0, 2.5, 2.0]
    assert list(val.get_ydata()) == [2.25]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "tokens seen"
    assert "nats" in axes.get_ylabel()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["training, last 2.000", "validation, last 2.250"]


# In a module, under a Trainer


class Counted(ProgressModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.progress = TrainingProgress()
        self.logged_at = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.progress.step(loss.detach()[None], len(batch))
        if self.is_logging_step(batch_idx):
            self.progress.mean_losses()
            self.logged_at.append((self.trainer.global_step, batch_idx))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trained(**options):
    module = Counted()
    trainer = Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
        **options,
    )
    trainer.fit(module, DataLoader(torch.ones(7, 2, 1)))
    return module, trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_accumulated_batches_are_logged_once_for_each_step():
    """Seven batches, two to a step: the last one steps alone."""
    module, _ = trained(accumulate_grad_batches=2, log_every_n_steps=1)
    assert module.logged_at == [(0, 1), (1, 3), (2, 5), (3, 6)]
    module, _ = trained(accumulate_grad_batches=2, log_every_n_steps=2)
    assert module.logged_at == [(1, 3), (3, 6)]
    assert len(module.progress.curves["train"]) == 2
    assert trained(log_every_n_steps=0)[0].logged_at == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_counts_travel_in_checkpoints_and_may_be_missing():
    module, _ = trained(log_every_n_steps=1)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    other = Counted()
    other.on_load_checkpoint({})
    assert other.progress.tokens == 0
    other.on_load_checkpoint(checkpoint)
    assert other.progress.tokens == module.progress.tokens == 7
    assert other.progress.curves == module.progress.curves
