"""Jobs that a cluster takes its nodes from, on a real SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparison import assert_same, last_checkpoint, logged
from tenfold.recipes.cli import main

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


def test_a_job_queued_again_by_hand_goes_on(jobs, project):
    Path("slow.yaml").write_text(SLOW)
    steps = ["--override", "{trainer.max_steps: 30}"]
    job = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "run", *steps)
    jobs.wait_until((project / "run" / "checkpoints" / "last.ckpt").exists, "a checkpoint")
    jobs.cluster.run("scontrol", "requeue", job)
    assert jobs.cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert Path("run/config.resume_1.yaml").exists()
    assert last_checkpoint("run")["global_step"] == 30


@pytest.mark.parametrize("shell", ["srun --overlap --ntasks=1 --pty", ""], ids=["pty", "salloc"])
def test_in_a_shell_of_a_job_a_run_is_one_process(jobs, project, shell):
    """`srun --pty` and `salloc` leave the variables of a job with two tasks behind."""
    fit = f"{sys.executable} -m tenfold.recipes.cli fit --config recipe.yaml --trainer.max_steps 4"
    inside = f"salloc --nodes=2 --ntasks-per-node=1 {shell} {fit} --run_dir run"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", inside, "/dev/null"],  # gives it a terminal
        env=jobs.cluster.environment | {"TENFOLD_CACHE": os.environ["TENFOLD_CACHE"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(Path("run/metrics.json").read_text())["run"]["world_size"] == 1


@pytest.mark.parametrize(("what", "seconds"), [("node", 0.2), ("daemon", 0.8)])
def test_a_node_that_fails_costs_the_steps_since_the_last_checkpoint(jobs, project, what, seconds):
    """Without a signal. Where only the daemon dies, SLURM notices after its time-out of 15 s."""
    Path("slow.yaml").write_text(SLOW)
    steps = ["--override", "{trainer.max_steps: 60}"]
    whole = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "whole", *steps)
    jobs.cluster.wait_for(whole, "COMPLETED")
    Path("slow.yaml").write_text(SLOW.replace("0.2", str(seconds)))
    job = jobs.submit(*TWO_NODES, "--nodes", "2", "--run_dir", "run", *steps)
    jobs.wait_until((project / "run" / "checkpoints" / "last.ckpt").exists, "a checkpoint")
    (jobs.cluster.kill_node if what == "node" else jobs.cluster.kill_daemon)("n2")
    restarted = lambda: jobs.cluster.show_job(job)["Restarts"] == "1"  # noqa: E731
    jobs.wait_until(restarted, "the job to be queued again")
    jobs.cluster.start_node("n2")
    jobs.cluster.wait_for(job, "COMPLETED")
    assert_same(last_checkpoint("run"), last_checkpoint("whole"))
    assert_same(logged("run"), logged("whole"))


def test_before_its_time_limit_a_job_saves_and_is_queued_again(jobs, project):
    """A job of one minute, warned 40 s before its end, that needs longer."""
    Path("slow.yaml").write_text(SLOW.replace("0.2", "0.5"))
    limit = ["--time", "0:01:00", "--warn_seconds", "40", "--run_dir", "run"]
    steps = ["--override", "{trainer.max_steps: 70}"]
    job = jobs.submit("--config", "recipe.yaml", "--config", "slow.yaml", *limit, *steps)
    ended = jobs.cluster.wait_for(job, "COMPLETED", timeout=400)
    assert int(ended["Restarts"]) >= 1
    assert "SIGUSR1: finishing this step" in Path(f"run/slurm-{job}.out").read_text()
    assert last_checkpoint("run")["global_step"] == 70
    assert (
        main(["fit", "--config", "recipe.yaml", "--trainer.max_steps=70", "--run_dir=whole"]) == 0
    )
    assert_same(last_checkpoint("run")["state_dict"], last_checkpoint("whole")["state_dict"])
