"""Several processes: they learn what one does, measure what one does, and go on as another number.

README of recipes/slurm states the tolerance that is tested here.
"""

import json
from pathlib import Path

import pytest
import torch
from comparison import assert_same, last_checkpoint, logged
from safetensors.torch import load_file
from tenfold.recipes.cli import main

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # relative, float32: sums over a batch are taken in another order
FIT = ("fit", "--config", "tiny.yaml", "--trainer.max_steps=12")
STOP = "trainer: {callbacks+: [{class_path: toy.Interrupt, init_args: {step: 5}}]}"


def on(devices: int, strategy: str = "ddp", shards: bool = False) -> list[str]:
    """Options of a run on some processes, with a batch of 8 over all of them."""
    options = ["--config", f"overlays/{strategy}", f"--trainer.devices={devices}"]
    options += [f"--data.batch_size={8 // devices}"]
    if strategy == "fsdp":
        arguments = "--trainer.strategy.init_args"
        options += [f"{arguments}.data_parallel_size={devices}"]
        options += [f"{arguments}.save_distributed_checkpoint={str(shards).lower()}"]
    return options


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value - other[name]).norm() <= TOLERANCE * value.norm(), name


@pytest.fixture
def whole(project) -> Path:
    """A run of one process."""
    assert main([*FIT, "--data.batch_size=8", "--run_dir=whole"]) == 0
    return project / "whole"


@pytest.mark.parametrize(("devices", "strategy"), [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_at_equal_global_batch_several_processes_learn_what_one_does(
    whole, tenfold, devices, strategy
):
    several = tenfold(*FIT, *on(devices, strategy), "--run_dir=several")
    assert several.returncode == 0, several.stderr
    assert_close(last_checkpoint(whole)["state_dict"], last_checkpoint("several")["state_dict"])
    one, other = logged(whole), logged("several")
    assert one.keys() == other.keys()
    for tag in one:
        assert one[tag] == pytest.approx(other[tag], rel=TOLERANCE), tag


@pytest.mark.parametrize(("strategy", "shards"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_a_run_of_two_processes_goes_on_as_one(whole, tenfold, strategy, shards):
    """In the middle of an epoch; with batches of another size it is refused."""
    Path("stop.yaml").write_text(STOP)
    stop = ["--config", "stop.yaml", "--run_dir=run"]
    stopped = tenfold(*FIT, *on(2, strategy, shards), *stop)
    assert stopped.returncode == 130, stopped.stderr
    resumed = [*FIT, *on(1, strategy, shards), "--run_dir=run", "--ckpt_path=auto"]
    other_batch = tenfold(*resumed, "--data.batch_size=4")
    assert other_batch.returncode == 2
    assert "batches of 8 samples over all ranks" in other_batch.stderr.splitlines()[-1]
    assert "(use batch_size=8 on 1 rank(s)" in other_batch.stderr.splitlines()[-1]
    done = tenfold(*resumed)
    assert done.returncode == 0, done.stderr
    if shards:
        assert main(["merge", "run/checkpoints/last.ckpt", "--out", "one.safetensors"]) == 0
        state = load_file("one.safetensors")
    else:
        state = last_checkpoint("run")["state_dict"]
    assert_close(last_checkpoint(whole)["state_dict"], state)
    assert logged(whole)["val/loss"] == pytest.approx(logged("run")["val/loss"], rel=TOLERANCE)


def test_shards_without_a_sharded_run_are_refused_with_the_ways_on(project, tenfold, capsys):
    ran = tenfold(*FIT, *on(2, "fsdp", shards=True), "--run_dir=run")
    assert ran.returncode == 0, ran.stderr
    assert main([*FIT, "--data.batch_size=8", "--run_dir=run", "--ckpt_path=auto"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is a folder of shards: go on with --config overlays/fsdp" in error
    assert main(["merge", "run/checkpoints/last.ckpt", "--out", "one.safetensors"]) == 0
    steps = ["--trainer.max_steps=2", "--run_dir=next"]
    assert main([*FIT, *steps, "--init_from=one.safetensors"]) == 0


def test_weights_are_averaged_on_two_processes(project, tenfold):
    fit = ["fit", "--config", "recipe.yaml", "--config", "overlays/ema", "--run_dir=run"]
    ran = tenfold(*fit, "--config", "overlays/ddp", "--trainer.devices=2")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(Path("run/metrics.json").read_text())["run"]["world_size"] == 2


UNEVEN = {
    "language_model/quickstart": [
        "--data.init_args.batch_size=7",
        "--trainer.limit_val_batches=1.0",
    ],
    "set_mixer/quickstart": [
        "--data.init_args.batch_size=9",
        "--data.init_args.severities=[3]",
        "--data.init_args.num_points=128",
    ],
}


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("devices", [2, 3])
def test_metrics_count_every_sample_once(project, tenfold, name, devices):
    """Samples that no number of processes divides: nothing is repeated, nothing left out."""
    command = "test" if name == "set_mixer/quickstart" else "validate"
    measured = []
    for run, number in (("one", 1), ("several", devices)):
        options = ["--config", name, *UNEVEN[name], "--run_dir", run]
        options += ["--config", "overlays/ddp", f"--trainer.devices={number}"]
        done = tenfold(command, *options, "--trainer.accelerator=cpu")
        assert done.returncode == 0, done.stderr
        measured.append(json.loads(Path(run, "metrics.json").read_text())[command])
    for content in measured:
        # The probes of point clouds look at the first batch of each process.
        for name in ("wall_time_s", "test/outlier_influence", "test/permutation_residual"):
            content.pop(name, None)
    assert measured[0] == pytest.approx(measured[1], rel=TOLERANCE)


QUICKSTARTS = (
    "deepicon",
    "language_model",
    "qat_scaling",
    "model_merging",
    "mucr",
    "set_mixer",
    "vision_language_model",
    "ctrl_cic",
    "art2prog",
    "realsyn",
)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", QUICKSTARTS)
def test_every_quickstart_trains_on_two_processes_and_goes_on(project, tenfold, method, strategy):
    fit = ["fit", "--config", f"{method}/quickstart", "--config", f"overlays/{strategy}"]
    fit += ["--trainer.devices=2", "--trainer.limit_val_batches=1", "--trainer.max_steps=6"]
    fit += ["--trainer.val_check_interval=3", "--run_dir=run", "--data.init_args.batch_size=4"]
    fit += ["--test_after_fit=false"]
    if strategy == "fsdp":
        fit += ["--trainer.strategy.init_args.data_parallel_size=2"]
    Path("stop.yaml").write_text(STOP.replace("step: 5", "step: 3"))
    stopped = tenfold(*fit, "--config", "stop.yaml")
    assert stopped.returncode == 130, stopped.stderr
    resumed = tenfold(*fit, "--ckpt_path=auto")
    assert resumed.returncode == 0, resumed.stderr
    state = last_checkpoint("run")
    assert state["global_step"] == 6
    whole = tenfold(*fit, "--run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert_same(state["state_dict"], last_checkpoint("whole")["state_dict"])
