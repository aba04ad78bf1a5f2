"""The monitor of activations: what it reports, and that it is invisible to training."""

import csv
import json
from pathlib import Path

import pytest
import torch
from scipy.stats import kurtosis
from tenfold.callbacks.activation_stats import ActivationStatsMonitor, draw
from tenfold.recipes.cli import main
from torch import nn

QAT = """trainer:
  callbacks+:
    - class_path: QuantizationAwareTraining
      init_args: {weight: {group_size: 4}, activation: {group_size: 4}}
"""
MONITOR = """trainer:
  callbacks+:
    - class_path: ActivationStatsMonitor
      init_args: {every_n_steps: 4}
"""


def fit(run_dir: str, *overlays: str, steps: int = 10, more: tuple[str, ...] = ()) -> dict:
    configs = []
    for position, text in enumerate(overlays):
        path = Path(f"overlay_{position}.yaml")
        path.write_text(text)
        configs += ["--config", str(path)]
    command = ["fit", "--config", "recipe.yaml", *configs, "--run_dir", run_dir, *more]
    assert main([*command, "--trainer.max_steps", str(steps)]) == 0
    return json.loads((Path(run_dir) / "metrics.json").read_text())["fit"]


def test_it_reports_every_layer_and_means_over_kinds(project, capsys):
    values = fit("run", QAT, MONITOR)
    rows = list(csv.DictReader(Path("run/activation_stats.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["net.0", "net.3"]
    for row in rows:
        assert float(row["kurtosis"]) >= 1
        assert 0 <= float(row["clip_fraction"]) <= 1
        assert float(row["snr_db"]) > 5
    mean = sum(float(row["kurtosis"]) for row in rows) / 2
    assert values["activations/net.*/kurtosis"] == pytest.approx(mean, rel=1e-6)
    assert Path("run/figures/activation_stats.png").stat().st_size > 5000


def test_without_qat_it_reports_kurtosis_alone(project):
    values = fit("run", MONITOR)
    assert "activations/net.*/kurtosis" in values
    assert not [name for name in values if "clip_fraction" in name]


def test_training_is_not_changed(project):
    fit("plain", QAT)
    fit("watched", QAT, MONITOR, more=("--trainer.accumulate_grad_batches", "1"))
    states = [
        torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("plain", "watched")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


@pytest.mark.slow
def test_a_compiled_network_is_measured_too(project):
    lm = ["fit", "--config", "language_model/quickstart", "--config", "overlays/compile"]
    small = ["--model.init_args.config.num_hidden_layers", "1", "--data.init_args.batch_size", "2"]
    limits = ["--trainer.max_steps", "6", "--trainer.limit_val_batches", "1", "--run_dir", "run"]
    Path("monitor.yaml").write_text(MONITOR)
    overlays = ["--config", "overlays/qat_w4a4", "--config", "monitor.yaml"]
    assert main([*lm, *overlays, *small, *limits]) == 0
    rows = list(csv.DictReader(Path("run/activation_stats.csv").read_text().splitlines()))
    assert len(rows) == 7
    assert all(float(row["snr_db"]) > 5 for row in rows)


def test_it_measures_when_it_is_time_and_takes_its_hooks_away(project):
    import toy
    from lightning.pytorch import Callback, Trainer

    measured = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            hooks = [hook for m in pl_module.modules() for hook in m._forward_pre_hooks.values()]
            measured.append((trainer.global_step, dict(monitor.rows), len(hooks)))

    monitor = ActivationStatsMonitor(every_n_steps=3)
    module = toy.Toy(dropout=0.0)
    inputs = []
    module.net[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=7, callbacks=[monitor, Look()], limit_val_batches=0,
        enable_model_summary=False, default_root_dir=project, **quiet,
    )  # fmt: skip
    trainer.fit(module, toy.ToyData())
    assert [bool(rows) for _, rows, _ in measured] == [step >= 3 for step, _, _ in measured]
    assert {hooks for _, _, hooks in measured} == {1}  # this test's own
    _, rows, _ = measured[2]
    expected = kurtosis(inputs[2].double().flatten().numpy(), fisher=False)
    assert rows["net.0"]["kurtosis"] == pytest.approx(expected, rel=1e-6)
    assert measured[4][1] == rows
    assert measured[5][1] != rows


def test_the_last_measurement_survives_a_resume(project):
    fit("run", QAT, MONITOR, steps=5)
    before = Path("run/activation_stats.csv").read_text()
    fit("run", QAT, MONITOR, steps=6, more=("--ckpt_path", "last", "--overwrite"))
    assert Path("run/activation_stats.csv").read_text() == before


def test_the_figure_has_a_panel_for_each_statistic_and_a_line_for_each_kind():
    row = {"kurtosis": 3.0, "amax": 4.0, "clip_fraction": 0.1, "zero_fraction": 0.2, "snr_db": 20.0}
    kinds = {"q_proj": row, "k_proj": row, "down_proj": row | {"kurtosis": 90.0}}
    rows = {f"layers.{i}.{name}": values for i in range(3) for name, values in kinds.items()}
    figure = draw(rows)
    assert len(figure.axes) == 4
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[3.0] * 3, [90.0] * 3]
    assert [line.get_label() for line in figure.axes[0].lines] == ["q_proj, k_proj", "down_proj"]
    assert figure.axes[0].get_yscale() == "log"
    assert len(draw({name: {"kurtosis": 3.0} for name in rows}).axes) == 1


def test_bad_settings_are_one_line():
    with pytest.raises(ValueError, match="every_n_steps must be 1 or more, got 0"):
        ActivationStatsMonitor(every_n_steps=0)
    monitor = ActivationStatsMonitor(include=["nothing"])
    with pytest.raises(ValueError, match=r"include: \['nothing'\] matches no layer of Sequential"):
        monitor._sites(nn.Sequential(nn.Linear(2, 2)))
