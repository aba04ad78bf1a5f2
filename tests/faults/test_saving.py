"""Checkpoints that cannot be written, and those that must not be: the older one is gone on from."""

import signal
from pathlib import Path

import torch
import yaml
from comparison import assert_same, last_checkpoint, logged
from tenfold.recipes.cli import main

FIT = ("fit", "--config", "recipe.yaml")


def callback(name: str, **arguments) -> str:
    """An overlay."""
    one = {"class_path": f"toy.{name}", "init_args": arguments}
    return yaml.safe_dump({"trainer": {"callbacks+": [one]}})


def assert_ends_like_a_whole_run(run_dir: str | Path) -> None:
    assert main([*FIT, "--run_dir", str(run_dir), "--ckpt_path", "auto"]) == 0
    assert main([*FIT, "--run_dir", "whole"]) == 0
    last, whole = last_checkpoint(run_dir), last_checkpoint("whole")
    assert_same({**last, "callbacks": None}, {**whole, "callbacks": None})
    assert_same(logged(run_dir), logged("whole"))
    names = {path.name for path in Path(run_dir, "checkpoints").iterdir()}
    assert {"last.ckpt", "previous.ckpt"} < names
    assert len(names) == 3  # and the best: nothing half written is left


def test_a_full_disk_ends_the_run_and_costs_nothing_that_was_saved(small_disk, capsys):
    Path("full.yaml").write_text(callback("FillDisk", step=7, path=str(small_disk / "filler")))
    run = small_disk / "run"
    assert main([*FIT, "--config", "full.yaml", "--run_dir", str(run)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: No space left on device")
    assert "--ckpt_path auto goes on from the last checkpoint" in error
    assert last_checkpoint(run)["global_step"] == 6
    (small_disk / "filler").unlink()
    assert_ends_like_a_whole_run(run)


def test_signals_while_a_checkpoint_is_written_do_not_harm_it(project, capsys):
    """SIGUSR1 is the warning; SIGTERM, twice, comes while the run saves."""
    Path("warn.yaml").write_text(callback("Interrupt", step=6, number=int(signal.SIGUSR1)))
    numbers = [int(signal.SIGTERM)] * 2
    Path("end.yaml").write_text(callback("SignalWhileSaving", step=7, numbers=numbers))
    stopped = [*FIT, "--config", "warn.yaml", "--config", "end.yaml", "--run_dir", "run"]
    assert main(stopped) == 128 + signal.SIGUSR1
    assert "stopped after step 7" in capsys.readouterr().err
    assert last_checkpoint("run")["global_step"] == 7
    assert_ends_like_a_whole_run("run")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_older_one(project, tenfold):
    """What was half written is removed when the run goes on."""
    numbers = [int(signal.SIGKILL)]
    Path("kill.yaml").write_text(callback("SignalWhileSaving", step=9, numbers=numbers))
    killed = tenfold(*FIT, "--config", "kill.yaml", "--run_dir=run")
    assert killed.returncode == -signal.SIGKILL
    assert list(Path("run/checkpoints").glob(".last.ckpt.*.tmp"))
    assert last_checkpoint("run")["global_step"] == 8
    assert_ends_like_a_whole_run("run")


def test_a_kill_between_a_checkpoint_and_the_log_of_its_step_leaves_no_gap(project, tenfold):
    run = [*FIT, "--run_dir=run", "--ckpt_path=auto", "--model=toy.KilledBeforeLogging"]
    killed = tenfold(*run)
    assert killed.returncode == -signal.SIGKILL
    assert last_checkpoint("run")["global_step"] == 6
    assert max(logged("run")["train/loss"]) < 5
    assert_ends_like_a_whole_run("run")


def test_weights_that_are_not_finite_are_never_saved(project, capsys):
    """At an infinite rate: the run ends, with a way out that works."""
    assert main([*FIT, "--run_dir", "run", "--trainer.max_steps", "6"]) == 0
    go_on = [*FIT, "--run_dir", "run", "--ckpt_path", "auto", "--config", "inf.yaml"]
    Path("inf.yaml").write_text(callback("LearningRateFrom", step=8, rate=float("inf")))
    assert main(go_on) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the weights are not finite at step 9: training stopped; go on")
    for path in Path("run/checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in weights.values())
    assert last_checkpoint("run")["global_step"] == 8
    assert_ends_like_a_whole_run("run")
