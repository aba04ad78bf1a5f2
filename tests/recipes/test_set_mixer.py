"""The recipes of Set-Mixer from the command line, on the embedded shapes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tenfold.recipes.cli import main

FURNITURE = [
    "bed",
    "cabinet",
    "chair",
    "door",
    "lamp",
    "person",
    "plant",
    "plug",
    "sofa",
    "table",
    "vehicle",
    "vessel",
    "window",
]
SMALL = [
    "--data.init_args.num_points=64",
    "--data.init_args.corruptions=[background, rotation]",
    "--data.init_args.severities=[1, 5]",
    "--trainer.val_check_interval=2",
    "--model.init_args.lr_scheduler.init_args.num_training_steps=24",
]


def fit(run_dir: str, *options: str) -> int:
    return main(["fit", "--config", "set_mixer/quickstart", "--run_dir", run_dir, *SMALL, *options])


def metrics(run_dir: str) -> dict:
    return json.loads((Path(run_dir) / "metrics.json").read_text())


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    path = Path(run_dir) / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_fit_tests_its_best_checkpoint_at_the_end(project, capsys):
    assert fit("run", "--trainer.max_steps=4") == 0
    printed = capsys.readouterr().out
    assert "test/er_cor_2_s15" in printed
    assert "test/er/background/1" not in printed
    found = metrics("run")
    assert found["fit"]["step"] == 4
    cells = [found["test"][f"test/er/background/{s}"] for s in (1, 5)]
    assert found["test"]["test/er/background_s15"] == pytest.approx(sum(cells) / 2)
    assert not any(name.startswith("test/") for name in found["fit"])
    records = [json.loads(line) for line in Path("run/records.jsonl").read_text().splitlines()]
    of_cell = [r["error"] for r in records if r["id"].startswith("background/5/")]
    assert len(records) == 5 * len(of_cell)
    assert sum(of_cell) / len(of_cell) == pytest.approx(cells[1])
    assert Path("run/figures/error_rates.png").exists()
    assert found["run"]["num_test_shapes"] == len(of_cell)
    assert len(found["run"]["data_hash"]) == 64


@pytest.mark.slow
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(project):
    quick = ["--test_after_fit=false"]
    assert fit("whole", "--trainer.max_steps=6", *quick) == 0
    assert fit("parts", "--trainer.max_steps=3", *quick) == 0
    assert fit("parts", "--trainer.max_steps=6", *quick, "--ckpt_path=auto") == 0
    whole, parts = weights("whole"), weights("parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_any_checkpoint_is_tested_under_corruptions_by_one_command(project):
    assert fit("run", "--trainer.max_steps=2", "--test_after_fit=false") == 0
    assert "test" not in metrics("run")
    command = ["test", "--config", "run/config.yaml", "--config", "set_mixer/robust"]
    chosen = ["--data.init_args.corruptions=[gaussian]", "--data.init_args.severities=[2]"]
    last = ["--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "robust"]
    assert main([*command, *chosen, *last]) == 0
    assert 0 <= metrics("robust")["test"]["test/er/gaussian/2"] <= 1


def test_predictions_of_a_folder_of_clouds_name_file_and_class(project):
    assert fit("run", "--trainer.max_steps=2", "--test_after_fit=false") == 0
    Path("scans").mkdir()
    for name, num_points in (("small.npy", 50), ("large.npy", 3000)):
        cloud = np.random.default_rng(0).normal(size=(num_points, 3)).astype(np.float32)
        np.save(Path("scans") / name, cloud)
    options = ["--data.init_args.predict_root=scans", "--ckpt_path=last"]
    assert main(["predict", "--run_dir", "run", *options]) == 0
    lines = Path("run/predictions/manifest.jsonl").read_text().splitlines()
    records = {record["id"]: record for record in map(json.loads, lines)}
    assert sorted(Path(name).name for name in records) == ["large.npy", "small.npy"]
    for record in records.values():
        assert record["class_name"] == FURNITURE[record["label"]]
        assert 1 / 13 <= record["probability"] <= 1


@pytest.mark.parametrize("aggregation", ["max", "mean", "softmax", "set_mixer"])
def test_the_aggregation_is_one_word(project, aggregation):
    chosen = f"--model.init_args.backbone.init_args.aggregation={aggregation}"
    assert main(["check", "--config", "set_mixer/quickstart", chosen]) == 0


def test_quantisation_and_merging_switch_on_unchanged(project):
    overlays = ["--config", "overlays/qat_w4a4", "--config", "overlays/merge_sma"]
    every = "--trainer.callbacks.init_args.every_n_train_steps=1"  # the last callback's
    assert fit("run", *overlays, "--trainer.max_steps=14", every) == 0
    found = metrics("run")
    assert found["run"]["quantization"]["num_layers"] >= 10
    assert "merged/val/er_clean" in found["fit"]
    assert found["test"]["test/er_clean"] <= 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.backbone.init_args.aggregation=maximum", "'maximum' is none of"),
        ("--model.init_args.num_classes=5", "outside of the model's 5 classes"),
        ("--data.init_args.root=nowhere", "nowhere"),
        ("--data.init_args.corruptions=[fog]", "unknown corruption 'fog'"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(project, capsys, option, message):
    assert main(["check", "--config", "set_mixer/quickstart", option]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
