"""Every built-in YAML does what it says it does, as far as this machine can tell."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tenfold.recipes.catalogue import RECIPES, describe, recipe_names
from tenfold.recipes.cli import main

NAMES = recipe_names()
CONTENT = {name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in NAMES}
STUDIES = [name for name in NAMES if "stages" in CONTENT[name]]
OVERLAYS = [name for name in NAMES if name.startswith("overlays/")]
# Settings for several recipes of one method: data alone, the model is another recipe's.
PARTS = [name for name in NAMES if CONTENT[name].keys() == {"data"}]
# Recipes of a command of their own, tested with it.
PIPELINES = [name for name in NAMES if name.split("/")[1].startswith("pipeline_")]
PLAIN = [name for name in NAMES if name not in STUDIES + OVERLAYS + PARTS + PIPELINES]


def needs_a_cluster(name: str) -> bool:
    """Whether a recipe, or one it is based on, wants GPUs, and data that must be fetched."""
    bases = CONTENT[name].get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    large = name.split("/")[1].startswith(
        ("clip_", "filled", "modelnet40", "outline", "paper", "tracers")
    )
    return large or any(map(needs_a_cluster, bases))


def model_of(name: str) -> str:
    """The class of a recipe's model, which may be that of the recipe it is based on."""
    content = CONTENT[name]
    if "model" in content or not isinstance(content.get("base"), str):
        return content.get("model", {}).get("class_path", "")
    return model_of(content["base"])


META = [name for name in PLAIN if needs_a_cluster(name)]
# What is asked and not trained: a model and data that a user has.
EVALUATORS = {
    *(
        "CVRLLMModule",
        "ChainOfComparisonModule",
        "MuCRModule",
        "SimilarityModule",
        "VLMDecodingModule",
    ),
}
OFFLINE = {"mucr/offline"}  # asks about what is there on any machine
OWN_FILES = ("ctrl_cic/docs", "ctrl_cic/wikiweb2m")  # trained on what a user has
EVALUATIONS = [
    name
    for name in PLAIN
    if (model_of(name) in EVALUATORS and name not in OFFLINE) or name.startswith(OWN_FILES)
]
SIZES = {"74m": 74.3, "145m": 144.7, "595m": 594.5, "973m": 973.1, "2800m": 2818}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_begins_with_what_it_is_and_how_to_run_it(name):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert len(describe(RECIPES / f"{name}.yaml")) > 20
    if name not in OVERLAYS:
        comments = "\n".join(line for line in lines[:6] if line.startswith("#"))
        assert f"--config {name}" in comments


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in META + EVALUATIONS])
def test_check_passes(name, project, capsys):
    small = ["--data.init_args.batch_size", "2", "--trainer.accelerator", "cpu"]
    assert main(["check", "--config", name, *small]) == 0
    assert f"{name}.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("name", EVALUATIONS)
def test_check_says_what_an_evaluation_lacks(name, project, capfd, monkeypatch):
    """Settings are right: the first thing that is wrong is a file that is not on this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(project.rglob("*"))
    assert main(["check", "--config", name, "--trainer.accelerator", "cpu"]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(r"there is no|no category of MME|No such file|cannot load", line), line
    assert sorted(project.rglob("*")) == before


def test_what_is_not_trained_says_so(project, capfd):
    assert main(["fit", "--config", "perception_magnifier/tinypope", "--run_dir", "run"]) == 2
    assert "VLMDecodingModule is not trained: use `tenfold test`" in capfd.readouterr().err


@pytest.mark.parametrize("name", PARTS)
def test_parts_fit_the_quickstart_of_their_method(name, project, capsys):
    quickstart = f"{name.split('/')[0]}/quickstart"
    assert main(["check", "--config", quickstart, "--config", name]) == 0
    assert f"{quickstart}.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("name", META)
def test_check_meta_passes(name, project, capsys):
    assert main(["check", "--config", name, "--meta"]) == 0
    assert "M parameters" in capsys.readouterr().out


def test_the_paper_model_has_the_paper_size(project, capsys):
    """297.2M parameters without embeddings (QAT scaling law, table 3), plus two embeddings."""
    assert main(["check", "--config", "language_model/paper", "--meta"]) == 0
    config = CONTENT["language_model/paper"]["model"]["init_args"]["config"]
    total = 297.2e6 + 2 * config["vocab_size"] * config["hidden_size"]
    printed = float(capsys.readouterr().out.split("(")[1].split("M parameters")[0])
    assert printed * 1e6 == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_the_paper_sizes_are_the_paper_sizes(size, project, capsys):
    """Table 3 of the QAT scaling law, which counts no embeddings."""
    recipe = ["--config", "qat_scaling/w4a4", "--config", f"overlays/llama_{size}"]
    assert main(["check", *recipe, "--meta"]) == 0
    printed = float(capsys.readouterr().out.split("(")[1].split("M parameters")[0])
    config = CONTENT[f"overlays/llama_{size}"]["model"]["init_args"]["config"]
    embeddings = 2 * config["vocab_size"] * config["hidden_size"] / 1e6
    assert printed - embeddings == pytest.approx(SIZES[size], rel=4e-3, abs=5)


def test_the_grid_has_the_runs_of_the_paper(project, capsys):
    """268 quantised runs (section 4), and the unquantised run that each is compared with."""
    assert main(["study", "--config", "qat_scaling/grid", "--dry-run"]) == 0
    runs = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(new)" in line]
    plain = {run.split("/")[0] + run.split("-max_steps")[1] for run in runs if "/bf16-" in run}
    quantised = [run for run in runs if "/w" in run]
    assert (len(quantised), len(plain)) == (268, 18)
    for run in quantised:
        stage, _, rest = run.partition("/")
        assert stage.removesuffix("_fc2a8") + rest.split("-max_steps")[1] in plain


QAT_OVERLAYS = [name for name in OVERLAYS if name.startswith("overlays/qat_")]


@pytest.mark.parametrize("name", QAT_OVERLAYS)
def test_qat_overlays_train_the_language_model(name, project):
    small = ["--model.init_args.config.hidden_size", "64", "--trainer.limit_val_batches", "1"]
    small += ["--model.init_args.config.num_hidden_layers", "1", "--data.init_args.batch_size", "2"]
    fit = ["fit", "--config", "language_model/quickstart", "--config", name, "--run_dir", "run"]
    assert main([*fit, *small, "--trainer.max_steps", "2"]) == 0
    run = json.loads(Path("run/metrics.json").read_text())["run"]
    precision = name.removeprefix("overlays/qat_").split("_")[0]
    assert run["quantization"]["precision"].split("[")[0] == precision
    assert run["quantization"]["num_layers"] == 7


@pytest.mark.parametrize("name", ["qat_w4a4", "merge_sma", "ema"])
def test_overlays_train_the_vision_language_model(name, project):
    fit = ["fit", "--config", "vision_language_model/quickstart", "--config", f"overlays/{name}"]
    small = ["--data.init_args.batch_size", "4", "--data.init_args.num_test", "2"]
    limits = ["--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "4"]
    assert main([*fit, *small, *limits, "--trainer.max_steps", "4", "--run_dir", "run"]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"]["test/loss"] > 0
    if name == "qat_w4a4":
        assert metrics["run"]["quantization"]["num_layers"] > 14


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned(name, project, capsys):
    assert main(["study", "--config", name, "--dry-run"]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert not Path("runs").exists()


# Distributed overlays change the process they run in: below, from the command line.
RUNNABLE = {"bf16", "csv", "ema", "merge_sma", "merge_wsm", "anneal_prediction"}


@pytest.mark.parametrize("name", sorted(f"overlays/{name}" for name in RUNNABLE))
def test_overlays_train_on_this_machine(name, project):
    fit = ["fit", "--config", "recipe.yaml", "--config", name, "--run_dir", "run"]
    assert main([*fit, "--trainer.max_steps", "4"]) == 0
    assert json.loads(Path("run/metrics.json").read_text())["fit"]["step"] == 4


@pytest.mark.parametrize("name", [name for name in PLAIN if name.endswith("/quickstart")])
def test_every_quickstart_trains_from_the_command_line(name, project, capsys):
    steps = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
    limits = ["--trainer.limit_val_batches", "1", "--run_dir", "run"]
    if name == "set_mixer/quickstart":  # which tests at its end
        limits += ["--data.init_args.severities", "[3]", "--data.init_args.num_points", "256"]
    if name == "ctrl_cic/quickstart":  # likewise
        limits += ["--data.init_args.examples.init_args.num_test", "4"]
    if name in ("art2prog/quickstart", "vision_language_model/quickstart"):  # likewise
        limits += ["--data.init_args.num_test", "4"]
    if name == "realsyn/quickstart":  # likewise
        limits += ["--trainer.limit_test_batches", "1"]
    assert main(["fit", "--config", name, *steps, *limits]) == 0
    metrics = json.loads((project / "run" / "metrics.json").read_text())
    assert metrics["fit"]["step"] == 3
    assert metrics["fit"]["val/loss"] > 0
    assert list((project / "run" / "figures").glob("*.png"))
    assert "run directory: run" in capsys.readouterr().out


def test_two_processes_train_test_and_write_one_set_of_records(project, tenfold):
    ddp = ["--config", "recipe.yaml", "--config", "overlays/ddp", "--trainer.devices", "2"]
    fit = tenfold("fit", *ddp, "--trainer.max_steps", "4")
    assert fit.returncode == 0, fit.stderr
    (run_dir,) = (project / "runs" / project.name / "recipe").iterdir()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["run"]["world_size"] == 2
    test = tenfold("test", *ddp, "--run_dir", str(run_dir))
    assert test.returncode == 0, test.stderr
    records = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
    assert len(records) == 40
    assert {path.name for path in run_dir.glob(".*")} == {".lock"}


def test_the_sbatch_script_is_valid_shell_and_says_what_was_asked(project, capsys):
    submit = ["submit", "--config", "recipe.yaml", "--config", "overlays/ddp", "--nodes", "3"]
    flags = ["--devices", "4", "--time", "1-02:00:00", "--partition", "long", "--dry-run"]
    extra = ["--sbatch", '["--constraint=h100"]', "--setup", '["module load cuda"]']
    assert main([*submit, *flags, *extra, "--override", "{trainer.max_steps: 7}"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    for option in ("nodes=3", "ntasks-per-node=4", "time=1-02:00:00", "partition=long", "requeue"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --constraint=h100" in lines
    assert "#SBATCH --signal=SIGUSR1@90" in lines
    (start,) = [k for k, line in enumerate(lines) if line.startswith("srun --kill-on-bad-exit=1 ")]
    assert lines.index("module load cuda") < start
    command = lines[start + 1].split()
    assert command[0] == sys.executable
    assert {"recipe.yaml", "overlays/ddp"} <= set(command)
    joined = " ".join(command)
    assert "--ckpt_path auto --trainer.num_nodes=3 --trainer.devices=4" in joined
    assert "--trainer.max_steps=7" in joined
    assert str(project / "runs" / project.name / "recipe" / "version_0") in joined
    assert not Path("runs").exists()
