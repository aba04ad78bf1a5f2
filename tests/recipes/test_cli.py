"""The command line as users type it: what works, and what each mistake is answered with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tenfold.recipes.cli import complete_flags, main


def run_dirs(project: Path) -> list[Path]:
    return sorted((project / "runs" / project.name / "recipe").glob("version_*"))


def test_fit_test_predict_fill_one_run_directory(project, capsys):
    assert main(["fit", "--config", "recipe.yaml", "--trainer.max_steps", "6"]) == 0
    (run_dir,) = run_dirs(project)
    assert main(["test", "--run_dir", str(run_dir)]) == 0
    assert main(["predict", "--run_dir", str(run_dir)]) == 0

    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["fit"]["step"] == 6
    assert 0 < metrics["test"]["test/loss"] < 1
    assert metrics["run"]["data_hash"] == "forty points"
    assert metrics["run"]["seed"] == 1
    assert (run_dir / metrics["fit"]["best_checkpoint"]).is_file()

    records = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
    assert len(records) == 40
    assert records[0].keys() == {"id", "row", "group", "mean"}
    manifest = (run_dir / "predictions" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(manifest[0])["text"] == "item 0-0"
    assert (run_dir / "predictions" / "1-19.txt").read_text() == "item 1-19"
    assert (run_dir / "figures" / "weights.png").stat().st_size > 0
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert "--overwrite" not in capsys.readouterr().err


def test_saved_config_runs_again(project):
    assert main(["fit", "--config", "recipe.yaml", "--trainer.max_steps", "2"]) == 0
    config = run_dirs(project)[0] / "config.yaml"
    content = yaml.safe_load(config.read_text())
    assert not {"run_dir", "ckpt_path", "overwrite"} & content.keys()
    assert main(["fit", "--config", str(config)]) == 0
    assert [path.name for path in run_dirs(project)] == ["version_0", "version_1"]


def test_a_second_fit_needs_overwrite_and_a_new_one_gets_a_new_directory(project, capsys):
    fit = ["fit", "--config", "recipe.yaml", "--trainer.max_steps", "2"]
    assert main([*fit, "--run_dir", "here"]) == 0
    before = (project / "here" / "metrics.json").read_bytes()
    assert main([*fit, "--run_dir", "here"]) == 2
    assert "already holds a `fit`: --ckpt_path auto goes on" in capsys.readouterr().err
    assert (project / "here" / "metrics.json").read_bytes() == before
    assert main([*fit, "--run_dir", "here", "--overwrite", "--seed_everything", "5"]) == 0
    assert json.loads((project / "here" / "metrics.json").read_text())["run"]["seed"] == 5


def test_flags_win_over_yaml_in_any_order(project):
    assert main(["fit", "--trainer.max_steps", "2", "--config", "recipe.yaml"]) == 0
    assert json.loads((run_dirs(project)[0] / "metrics.json").read_text())["fit"]["step"] == 2


def test_class_arguments_may_come_before_the_class(project):
    first = ["--model.width", "5", "--model", "toy.Toy"]
    second = ["--model", "toy.Toy", "--model.width", "5"]
    for arguments in (first, second):
        rest = ["--data", "toy.ToyData", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
        assert main(["fit", *arguments, *rest]) == 0
    configs = sorted(Path("runs/no_recipe").glob("version_*/config.yaml"))
    widths = [yaml.safe_load(path.read_text())["model"]["init_args"]["width"] for path in configs]
    assert widths == [5, 5]


def test_settings_of_a_class_that_is_replaced_are_named(project, capsys):
    Path("other.py").write_text(
        "import toy\nclass Narrow(toy.Toy):\n    def __init__(self):\n        super().__init__(4)\n"
    )
    Path("wide.yaml").write_text("model: {class_path: toy.Toy, init_args: {width: 9}}\n")
    fit = ["fit", "--config", "recipe.yaml", "--config", "wide.yaml", "--model", "other.Narrow"]
    assert main([*fit, "--trainer.max_steps", "1"]) == 0
    assert "wide.yaml:1: model.width = 9 is ignored" in capsys.readouterr().err


def test_base_and_overlays_are_merged_in_order(project):
    Path("mine.yaml").write_text("base: recipe.yaml\nmodel: {init_args: {width: 6}}\n")
    Path("stop.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: EarlyStopping\n"
        "      init_args: {monitor: val/loss, stopping_threshold: 100.0}\n"
    )
    assert main(["fit", "--config", "mine.yaml", "--config", "stop.yaml"]) == 0
    run_dir = project / "runs" / project.name / "mine" / "version_0"
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert content["model"]["init_args"]["width"] == 6
    assert json.loads((run_dir / "metrics.json").read_text())["fit"]["step"] == 4


def test_csv_overlay_writes_into_the_run_directory(project):
    fit = ["fit", "--config", "recipe.yaml", "--config", "overlays/csv"]
    assert main([*fit, "--trainer.max_steps", "4"]) == 0
    metrics = run_dirs(project)[0] / "csv" / "version_0" / "metrics.csv"
    assert "val/loss" in metrics.read_text().splitlines()[0]


def test_a_package_that_a_logger_misses_is_one_line(project, capsys):
    fit = ["fit", "--config", "recipe.yaml", "--trainer.logger", "CometLogger"]
    assert main([*fit, "--run_dir", "run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Requirement 'comet-ml")
    assert "pip install" in error


@pytest.mark.slow
def test_wandb_overlay_keeps_curves_and_figures_in_the_run_directory(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit = ["fit", "--config", "language_model/quickstart", "--config", "overlays/wandb"]
    short = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main([*fit, *short, "--run_dir", "run"]) == 0
    (files,) = Path("run/wandb").glob("offline-run-*")
    assert list(files.glob("*.wandb"))
    assert list(files.glob("files/media/images/figures/loss_*.png"))


@pytest.mark.slow
def test_mlflow_overlay_keeps_curves_and_figures(project):
    import mlflow

    fit = ["fit", "--config", "language_model/quickstart", "--config", "overlays/mlflow"]
    short = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main([*fit, *short, "--run_dir", "run"]) == 0
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("tenfold")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run"
    metrics = json.loads(Path("run/metrics.json").read_text())["fit"]
    assert found.data.metrics["val/loss"] == pytest.approx(metrics["val/loss"])
    (picture,) = client.list_artifacts(found.info.run_id, "figures")
    assert picture.path == "figures/loss.png"


def test_init_from_takes_the_weights_and_nothing_else(project, capsys):
    assert main(["fit", "--config", "recipe.yaml", "--run_dir", "a"]) == 0
    start = ["fit", "--config", "recipe.yaml", "--init_from", "a/checkpoints/last.ckpt"]
    frozen = ["--model.optimizer.lr", "0.0", "--trainer.max_steps", "1", "--run_dir", "b"]
    assert main([*start, *frozen]) == 0
    import torch

    a, b = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in "ab")
    assert a["global_step"] == 25
    assert b["global_step"] == 1
    assert all(
        torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"]
    )
    assert main([*start, "--model.width", "3"]) == 2
    assert "has other shapes for" in capsys.readouterr().err


def test_check_runs_a_batch_and_writes_nothing(project, capsys):
    assert main(["check", "--config", "recipe.yaml"]) == 0
    assert "ok: recipe.yaml" in capsys.readouterr().out
    assert main(["check", "--config", "recipe.yaml", "--meta"]) == 0
    assert not (project / "runs").exists()


QUICKSTART = "fit --config language_model/quickstart"
MISTAKES = {
    "fit": "nothing says which `model` to use: give a recipe with --config",
    "fit --config nope": "no file and no built-in recipe 'nope'",
    "fit --config language_model/quikstart": "did you mean language_model/quickstart",
    "fit --config language_model/claim": "is a study: run it with `tenfold study --config",
    "fit --config overlays/bf16 --config recipe.yaml": "give the recipe first",
    "fit --config recipe.yaml --trainer.max_step 3": "did you mean trainer.max_steps",
    "fit --config recipe.yaml --model.widht 3": "did you mean model.width?",
    "fit --config recipe.yaml --model.width x": "--model.width: expected int, got 'x'",
    "fit --config recipe.yaml --model Nothing": "--model: unknown class 'Nothing'",
    "fit --config recipe.yaml --data TextDataModul": "did you mean TextDataModule",
    "fit --config recipe.yaml --trainer.precision bf17": "did you mean bf16",
    "fit --config recipe.yaml --trainer.devices x": "trainer: `devices` selected with",
    "fit --config recipe.yaml --checkpoint.monitr x": "did you mean checkpoint.monitor?",
    "fit --config recipe.yaml --checkpoint.save_top_k -1": "save_top_k must be 0 or more, got -1",
    f"{QUICKSTART} --model.config.hidden_size many": "Field 'hidden_size' expected int, got str",
    f"{QUICKSTART} --model.config.hiden_size 64": "did you mean hidden_size",
    f"{QUICKSTART} --data.val_fraction 2": "val_fraction must be in [0, 1), got 2",
    "fit --config recipe.yaml --checkpoint.monitor val/acc": "'val/acc' is not logged; logged: ",
    "fit --config recipe.yaml --ckpt_path nothing": "no file 'nothing'",
    "fit --config recipe.yaml --ckpt_path last": "there is no run in runs/",
    "fit --config recipe.yaml --run_dir x --ckpt_path last": "no intact checkpoint in x",
    "fit --config recipe.yaml --init_from nothing": "--init_from: no file 'nothing'",
    "test --config recipe.yaml --ckpt_path best": "has no best checkpoint",
    "list nothing": "no recipes for 'nothing'",
    "show nothing": "no file and no built-in recipe 'nothing'",
    "copy recipe.yaml recipe.yaml": "recipe.yaml exists",
    "shwo": "invalid choice: 'shwo'",
    "study --job 2": "unknown key 'job': did you mean jobs?",
    "runs . --metric test/loss": "unknown key 'metric': did you mean metrics?",
    "submit": "submit needs a recipe",
    "submit --config recipe.yaml --nodes 0": "--nodes must be 1 or more, got 0",
    "submit --config recipe.yaml --time soon": "'soon' is no SLURM time",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command, project, capsys):
    assert main(command.split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert MISTAKES[command] in errors[0]


BAD_FILES = {
    "model: {class_path: toy.Toy, init_args: {width: ab}}": "bad.yaml:1: model.width: expected int",
    "model:\n  class_path: toy.Toi": "bad.yaml:2: model: cannot import toy.Toi",
    "model:\n  class_path: toi.Toy": "bad.yaml:2: model: cannot import toi.Toy: No module named",
    "model: toy.Toy\ndata: toy.ToyData\ntrianer: {max_steps: 2}": "unknown key 'trianer'",
    "model: [": "bad.yaml:1: not valid YAML",
    "- 1": "bad.yaml: expected `key: value` lines, found list",
    "base: nothing": "bad.yaml: base: no file and no built-in recipe 'nothing'",
    "base: bad.yaml": "its `base` leads back to itself",
    "trainer:\n  callbacks+:\n    - {class_path: EarlyStoping, init_args: {monitor: a}}": (
        "bad.yaml:3: trainer.callbacks[0]: unknown class 'EarlyStoping': did you mean Early"
    ),
    "trainer:\n  callbacks+:\n    - {class_path: EarlyStopping, init_args: {monitr: a}}": (
        "did you mean trainer.callbacks[0].monitor?"
    ),
    "model:\n  init_args:\n    optimizer: {class_path: torch.optim.SGD, init_args: {lrr: 1}}": (
        "bad.yaml:3: unknown key 'model.optimizer.lrr': did you mean model.optimizer.lr?"
    ),
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_mistake_in_yaml_names_file_and_line(text, project, capsys):
    Path("bad.yaml").write_text(text)
    assert main(["fit", "--config", "recipe.yaml", "--config", "bad.yaml"]) == 2
    assert BAD_FILES[text] in capsys.readouterr().err
    assert not Path("runs").exists()


def test_defects_keep_their_traceback(project):
    with pytest.raises(ValueError, match="a defect of the user's class"):
        main(["fit", "--config", "recipe.yaml", "--model", "toy.Broken"])


def test_debug_keeps_the_traceback_of_a_user_error():
    with pytest.raises(ValueError, match="no file and no built-in recipe"):
        main(["show", "nothing", "--debug"])


def test_flags_without_a_value_are_true():
    given = [
        "submit",
        "--dry-run",
        "--config",
        "a",
        "--nodes",
        "2",
        "--override",
        "{a-b: 1}",
        "--gpus",
    ]
    assert complete_flags(given) == [
        *["submit", "--dry_run=true", "--config", "a", "--nodes", "2", "--override", "{a-b: 1}"],
        "--gpus=true",
    ]


@pytest.mark.parametrize(
    "command", ["list", "--help", "show language_model/quickstart", "copy overlays/bf16 x.yaml"]
)
def test_light_commands_import_no_torch(command, tmp_path):
    code = (
        "import sys\nfrom tenfold.recipes.cli import main\n"
        f"try:\n    main({command.split()})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert run.stdout.splitlines()[-1] == "HEAVY []"
    assert len(run.stdout.splitlines()) > 1
