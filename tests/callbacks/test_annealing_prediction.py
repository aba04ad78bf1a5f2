"""The prediction callback: in real training, on losses that follow a known law."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tenfold.callbacks.annealing_prediction import AnnealingPrediction
from tenfold.modules.annealing_law import HypotheticalDecay, RelaxationLaw
from tenfold.modules.annealing_law.curve import read_curve
from tenfold.modules.annealing_law.prior import AnnealingPrior, PriorLaw
from tenfold.modules.optimization import WarmupStableDecay
from tenfold.recipes.cli import main
from torch import nn
from torch.utils.data import DataLoader

PEAK, STEPS, WARMUP, DECAY = 0.01, 500, 20, 100
SMALL = RelaxationLaw(L0=3.0, A=0.6, alpha=0.5, B=0.1, C=10.0, beta=1.5)
LARGE = replace(SMALL, L0=2.6)
RELAXATION = ("relaxation",)


def schedule(steps: int = STEPS) -> np.ndarray:
    """What the module below trains with."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    wsd = WarmupStableDecay(optimizer, WARMUP, DECAY, "1-sqrt", 0.1, num_training_steps=steps)
    return np.array([PEAK * wsd.lr_lambdas[0](step) for step in range(steps)])


class Lawful(LightningModule):
    """Its validation loss is that of `LARGE`, with the B that the transfer from `SMALL` gives."""

    def __init__(self, decays: bool = True) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.decays = decays
        rates = schedule() if decays else np.full(STEPS, PEAK)
        self.losses = true_law().predict(rates, np.arange(STEPS))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", float(self.losses[max(self.trainer.global_step - 1, 0)]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=PEAK)
        if not self.decays:
            return optimizer
        wsd = WarmupStableDecay(optimizer, WARMUP, DECAY, "1-sqrt", 0.1, num_training_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": wsd, "interval": "step"}}


def true_law() -> RelaxationLaw:
    at = np.array([STEPS - DECAY - 1])
    ratio = SMALL.predict(schedule(), at)[0] / LARGE.predict(schedule(), at)[0]
    return replace(LARGE, B=SMALL.B * ratio**2)


def prior_file(folder: Path, **changes) -> str:
    laws = {"relaxation": PriorLaw(SMALL, 1.0, 1e-3, 0.05)}
    prior = replace(AnnealingPrior(laws, PEAK, 200, []), **changes)
    prior.write(folder / "small.json")
    return str(folder / "small.json")


def train(folder: Path, callback: AnnealingPrediction, decays=True, **settings) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_steps=settings.pop("max_steps", STEPS), callbacks=[callback],
        default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=1,
        **{"val_check_interval": 10, "check_val_every_n_epoch": None, **settings},
    )  # fmt: skip
    data = DataLoader(torch.ones(2000, 2), batch_size=2)
    trainer.fit(Lawful(decays), data, DataLoader(torch.ones(2, 2)), **resume(callback))
    return trainer


def resume(callback: AnnealingPrediction) -> dict:
    return {"ckpt_path": path} if (path := getattr(callback, "resume_from", None)) else {}


def test_the_planned_decay_is_foretold_and_then_compared(tmp_path):
    callback = AnnealingPrediction(laws=RELAXATION, prior_path=prior_file(tmp_path))
    metrics = train(tmp_path, callback).callback_metrics
    truth = true_law().predict(schedule(), np.array([STEPS - 1]))[0]
    name = "anneal_pred/relaxation/planned"
    assert float(metrics[name]) == pytest.approx(truth, abs=2e-3)
    assert metrics[f"{name}/low"] < truth < metrics[f"{name}/high"]
    assert float(metrics[f"{name}/error"]) == pytest.approx(float(metrics[name]) - truth, abs=1e-6)
    before = callback.points[-DECAY // 10 - 1]
    assert before[0] == STEPS - DECAY - 1
    share = float(metrics[f"{name}/error"]) / (before[2] - truth)
    assert float(metrics[f"{name}/error_of_drop"]) == pytest.approx(share, rel=1e-4)
    (found,) = callback.run_info()["annealing_prediction"]["comparisons"]
    assert found["step"] <= STEPS - DECAY  # no prediction once the decay has begun
    assert callback.report()[0].startswith(f"{name}: {found['loss']:.4f} predicted at step")


def test_a_hypothetical_decay_that_came_true_is_compared_too(tmp_path):
    same = HypotheticalDecay("same", decay_steps=DECAY, shape="1-sqrt", min_ratio=0.1)
    other = HypotheticalDecay("other", decay_steps=DECAY, shape="linear", min_ratio=0.1)
    callback = AnnealingPrediction(
        laws=RELAXATION, prior_path=prior_file(tmp_path), hypothetical=[same, other],
        planned=False,
    )  # fmt: skip
    train(tmp_path, callback)
    (found,) = callback.comparisons
    assert (found["decay"], found["step"]) == ("same", STEPS - DECAY - 1)
    assert abs(found["error_of_drop"]) < 0.05


def test_the_rate_of_every_optimizer_step_is_recorded(tmp_path):
    callback = AnnealingPrediction(laws=RELAXATION)
    train(tmp_path, callback, accumulate_grad_batches=2, val_check_interval=20)
    np.testing.assert_allclose(callback.history.rates(), schedule(), rtol=1e-12)
    assert callback.history.lengths[WARMUP] == STEPS - DECAY - WARMUP + 1
    written = read_curve(tmp_path)
    np.testing.assert_array_equal(written.rates, callback.history.rates())
    assert written.steps.tolist() == list(range(9, STEPS, 10))
    expected = true_law().predict(schedule(), written.steps)
    np.testing.assert_allclose(written.losses, expected, rtol=1e-6)


def test_a_run_with_a_decay_leaves_a_prior(tmp_path):
    train(tmp_path, AnnealingPrediction(laws=RELAXATION), val_check_interval=5)
    prior = AnnealingPrior.read(tmp_path / "annealing_law.json")
    assert (prior.peak, prior.longest_decay) == (pytest.approx(PEAK), DECAY - 1)
    law = prior.laws["relaxation"].law
    ends = law.predict(schedule(), np.array([300, STEPS - 1]))
    np.testing.assert_allclose(
        ends, true_law().predict(schedule(), np.array([300, 499])), atol=2e-3
    )


def test_a_constant_run_leaves_none_and_says_what_is_missing(tmp_path):
    callback = AnnealingPrediction()
    metrics = train(tmp_path, callback, decays=False).callback_metrics
    assert not [name for name in metrics if name.startswith("anneal_pred")]
    fits = callback.run_info()["annealing_prediction"]["fits"]
    assert {fit["status"] for fit in fits.values()} == {
        "no decay seen yet: give prior_path, the law of a smaller run"
    }
    assert not (tmp_path / "annealing_law.json").exists()
    assert list(callback.figures()) == ["annealing_prediction"]


def test_a_refused_prediction_leaves_no_old_number(tmp_path):
    growing = HypotheticalDecay("growing", decay_ratio=0.3)
    callback = AnnealingPrediction(
        laws=RELAXATION, prior_path=prior_file(tmp_path, longest_decay=60), planned=False,
        hypothetical=[growing], min_points=4,
    )  # fmt: skip
    metrics = train(tmp_path, callback, max_steps=200).callback_metrics
    assert [row["step"] for row in callback.predictions] == [99]
    assert not [name for name in metrics if name.startswith("anneal_pred")]
    (decay,) = callback.run_info()["annealing_prediction"]["decays"]
    assert decay["status"] == "decay to 0 over 85 steps, the prior knows 60"


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    prior = prior_file(tmp_path)
    settings = {"laws": RELAXATION, "prior_path": prior, "fit_every_n_val": 10}
    whole = AnnealingPrediction(**settings)
    train(tmp_path / "whole", whole)
    first = AnnealingPrediction(**settings)
    trainer = train(tmp_path / "parts", first, max_steps=233)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = AnnealingPrediction(**settings)
    second.resume_from = str(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)  # plain types
    train(tmp_path / "parts", second)
    assert second.history == whole.history
    assert second.points == whole.points
    assert second.predictions == whole.predictions
    assert second.comparisons == whole.comparisons
    files = ("loss_curve.csv", "lr_history.json", "annealing_prediction.csv")
    for name in files:
        ours, theirs = (tmp_path / part / name for part in ("parts", "whole"))
        assert ours.read_text() == theirs.read_text()


def test_added_to_a_run_half_way_it_warns(tmp_path):
    trainer = train(tmp_path, AnnealingPrediction(laws=RELAXATION), max_steps=100)
    checkpoint = tmp_path / "half.ckpt"
    trainer.save_checkpoint(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["callbacks"] = {}
    torch.save(content, checkpoint)
    late = AnnealingPrediction(laws=RELAXATION)
    late.resume_from = str(checkpoint)
    with pytest.warns(UserWarning, match="has not seen the first 100 steps"):
        train(tmp_path, late, max_steps=120)
    assert len(late.history) == 120


# With recipes

PREDICTION = """trainer:
  callbacks+:
    - class_path: AnnealingPrediction
      init_args: {min_points: 4, fit_every_n_val: 1, hypothetical: [{decay_ratio: 0.2}]}
"""
MERGING = """trainer:
  callbacks+:
    - class_path: CheckpointMerging
      init_args: {every_n_train_steps: 4, num_checkpoints: 3, storage: cpu}
"""


def fit(run_dir: str, *overlays: str, more: tuple[str, ...] = ()) -> dict:
    configs = []
    for position, text in enumerate(overlays):
        Path(f"overlay_{position}.yaml").write_text(text)
        configs += ["--config", f"overlay_{position}.yaml"]
    assert main(["fit", "--config", "recipe.yaml", *configs, "--run_dir", run_dir, *more]) == 0
    return json.loads((Path(run_dir) / "metrics.json").read_text())


def test_training_is_not_changed(project):
    fit("plain")
    fit("watched", PREDICTION)
    states = [
        torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("plain", "watched")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_a_merged_model_predicts_a_decay_that_began_earlier(project):
    metrics = fit("run", MERGING, PREDICTION)
    values = metrics["fit"]
    assert values["anneal_pred/merged/sma"] == pytest.approx(values["merged/val/loss"], rel=1e-6)
    rows = list(csv.DictReader(Path("run/annealing_prediction.csv").read_text().splitlines()))
    merged = [row for row in rows if row["law"] == "merged"]
    assert merged
    last = metrics["run"]["merging"]["last"]
    assert int(merged[-1]["last_step"]) == last["step"] - 1
    assert int(merged[-1]["first_step"]) == last["step"] - last["duration_steps"]
    assert Path("run/figures/annealing_prediction.png").stat().st_size > 5000


@pytest.mark.slow
def test_two_processes_write_one_history(project, tenfold):
    Path("prediction.yaml").write_text(PREDICTION)
    command = ["fit", "--config", "recipe.yaml", "--config", "overlays/ddp"]
    options = ["--config", "prediction.yaml", "--trainer.devices", "2", "--run_dir", "run"]
    done = tenfold(*command, *options, "--trainer.max_steps", "12")
    assert done.returncode == 0, done.stderr
    curve = read_curve("run")
    assert curve.rates.tolist() == [0.01] * 12
    values = json.loads(Path("run/metrics.json").read_text())["fit"]
    assert curve.losses[-1] == pytest.approx(values["val/loss"], rel=1e-6)


def test_what_is_wrong_is_one_line(project, capsys):
    settings = PREDICTION.replace("min_points: 4", "min_points: 4, monitor: val/los")
    Path("wrong.yaml").write_text(settings)
    assert main(["fit", "--config", "recipe.yaml", "--config", "wrong.yaml"]) == 2
    assert "monitor: 'val/los' is not logged; there are " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_points": 3}, "min_points must be 4 or more, got 3"),
        ({"fit_every_n_val": 0}, "fit_every_n_val must be 1 or more, got 0"),
        ({"lr_group": -1}, "lr_group must be 0 or more, got -1"),
        ({"laws": ["chinchilla"]}, "laws: chinchilla: there are relaxation, mpl, tissue"),
        (
            {"hypothetical": [HypotheticalDecay(decay_ratio=0.2)] * 2},
            "hypothetical: names must differ",
        ),
        (
            {"hypothetical": [HypotheticalDecay("planned", decay_ratio=0.2)]},
            "hypothetical: names must differ and not be 'planned'",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        AnnealingPrediction(**settings)


def test_a_prior_that_is_not_there_is_one_line_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"no annealing prior 'none\.json'"):
        train(tmp_path, AnnealingPrediction(prior_path="none.json"), max_steps=20)


def test_a_parameter_group_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="lr_group: 1, but the optimizer has 1 groups"):
        train(tmp_path, AnnealingPrediction(lr_group=1), max_steps=20)
