"""Processes that die or hang: what the user sees, that the run ends, and that it goes on.

After each fault the stated command is given; the run must then end like one without the fault.
"""

import re
from pathlib import Path

import pytest
from comparison import assert_same, last_checkpoint, logged

DDP = ("fit", "--config", "recipe.yaml", "--config", "ddp.yaml")
TWO_RANKS = """
trainer:
  strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {timeout: "0:00:10"}}
  devices: 2
"""
KILL = "trainer: {callbacks+: [{class_path: toy.Kill, init_args: {step: 7, rank: %d}}]}"
HANG = """
trainer:
  callbacks+:
    - {class_path: toy.Hang, init_args: {step: 7, rank: 1}}
    - {class_path: RankWatch, init_args: {patience_s: 3, interval_s: 0.5}}
"""
KILL_WORKERS = "trainer: {callbacks+: [{class_path: toy.KillWorkers, init_args: {step: 7}}]}"


def assert_goes_on(tenfold, command: tuple[str, ...], step: int) -> None:
    """The run has the checkpoint of `step`, and ends as if nothing had happened."""
    assert last_checkpoint("run")["global_step"] == step
    resumed = tenfold(*command, "--run_dir=run", "--ckpt_path=auto")
    assert resumed.returncode == 0, resumed.stderr
    whole = tenfold(*command, "--run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert_same(last_checkpoint("run"), last_checkpoint("whole"))
    assert_same(logged("run"), logged("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_is_killed_the_others_say_so_and_end(project, tenfold, rank):
    Path("ddp.yaml").write_text(TWO_RANKS)
    Path("kill.yaml").write_text(KILL % rank)
    killed = tenfold(*DDP, "--config", "kill.yaml", "--run_dir=run")
    assert killed.returncode in (1, -9)
    assert "error: another process of this run has ended" in killed.stderr
    assert_goes_on(tenfold, DDP, step=6)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_place_and_the_run_ends(project, tenfold):
    Path("ddp.yaml").write_text(TWO_RANKS)
    Path("hang.yaml").write_text(HANG)
    hung = tenfold(*DDP, "--config", "hang.yaml", "--run_dir=run")
    assert hung.returncode == 1
    halts = re.findall(r"warning: nothing has moved for \d+ s: rank (\d) \(", hung.stderr)
    assert halts == ["1"]
    assert "on_train_batch_start: time.sleep(1e6)" in hung.stderr
    assert "error: another process of this run does not answer" in hung.stderr
    assert_goes_on(tenfold, DDP, step=6)


def test_a_data_worker_that_is_killed_ends_the_run_with_a_hint(project, tenfold):
    Path("kill.yaml").write_text(KILL_WORKERS)
    fit = ("fit", "--config", "recipe.yaml", "--data.num_workers=2")
    killed = tenfold(*fit, "--config", "kill.yaml", "--run_dir=run")
    assert killed.returncode == 1
    error = killed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: a data worker ")
    assert "memory has run out: fewer data.num_workers" in error
    assert_goes_on(tenfold, fit, step=6)
