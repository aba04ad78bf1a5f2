"""Jobs that a cluster takes its nodes from, on a real SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparison import assert_same, last_checkpoint, logged

pytestmark = pytest.mark.slurm

SLOW = "trainer: {callbacks+: [{class_path: toy.Pause, init_args: {seconds: 0.2}}]}"
TWO_NODES = ("--config", "recipe.yaml", "--config", "overlays/ddp", "--config", "slow.yaml")


def test_a_run_preempted_twice_ends_as_if_it_had_not_been(jobs, project):
    """Two nodes, preempted by a job of higher priority; a message for each, no stray files."""
    Path("slow.yaml").write_text(SLOW)
    steps = ["--override", "{trainer.max_steps: 60}"]
    whole = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "whole", *steps)
    jobs.cluster.wait_for(whole, "COMPLETED")
    job = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "run", *steps)
    jobs.preempt(job, project / "run" / "checkpoints" / "step_00000004.ckpt")
    first = last_checkpoint("run")["global_step"]
    jobs.preempt(job, project / "run" / "config.resume_1.yaml")
    jobs.cluster.wait_for(job, "COMPLETED")
    assert 4 <= first < 60
    assert_same(last_checkpoint("run"), last_checkpoint("whole"))
    assert json.loads(Path("run/metrics.json").read_text())["run"]["world_size"] == 2
    assert_same(logged("run"), logged("whole"))
    names = {path.name for path in Path("run/checkpoints").iterdir()}
    assert {"last.ckpt", "previous.ckpt"} <= names
    assert len(names) == 3  # no hpc_ckpt_1.ckpt, no last-v1.ckpt, and one best
    printed = Path(f"run/slurm-{job}.out").read_text()
    assert printed.count(f"job {job} is queued again") == 2


def test_a_cancelled_job_saves_and_is_not_queued_again(jobs, project):
    Path("slow.yaml").write_text(SLOW)
    job = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "run")
    checkpoints = project / "run" / "checkpoints"
    jobs.wait_until((checkpoints / "last.ckpt").exists, "a checkpoint")
    jobs.cluster.run("scancel", job)
    assert jobs.cluster.wait_for(job, "CANCELLED")["Restarts"] == "0"
    jobs.wait_until(
        lambda: "stopped after step" in Path(f"run/slurm-{job}.out").read_text(), "the last word"
    )
    assert "not queued again" in Path(f"run/slurm-{job}.out").read_text()


def test_in_a_shell_of_a_job_a_run_is_one_process(jobs, project):
    """`srun --pty` and `salloc` leave the variables of a job with two tasks behind."""
    fit = f"{sys.executable} -m tenfold.recipes.cli fit --config recipe.yaml --trainer.max_steps 4"
    inside = ["srun", "--ntasks=1", "--overlap", "bash", "-c", f"SLURM_PTY_PORT=1 {fit}"]
    for name, command in {"pty": inside, "salloc": ["bash", "-c", fit]}.items():
        done = subprocess.run(
            ["salloc", "--nodes=2", "--ntasks-per-node=1", *command],
            env=jobs.cluster.environment | {"TENFOLD_CACHE": os.environ["TENFOLD_CACHE"]},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "run directory" in done.stdout
