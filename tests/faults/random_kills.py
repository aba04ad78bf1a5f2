"""Kills a small run at random moments, goes on with it, and compares how it ends.

    python tests/faults/random_kills.py --kills 100

Each trial is a run of its own, killed by SIGKILL at a time drawn uniformly over the time the whole
run took, so that start, steps, validation, checkpoints and end are all hit; then the same command
goes on with it. Its last checkpoint - weights, optimizer, counters, random state - and all it has
logged must be equal to those of the run that was never killed. Processes are forked from one that
has imported everything.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "helpers"))

from comparison import assert_same, last_checkpoint, logged  # noqa: E402
from tenfold.recipes import trainer_cli  # noqa: E402, F401 - imported here, not in each trial
from tenfold.recipes.cli import main  # noqa: E402

PAUSE = "trainer: {callbacks+: [{class_path: toy.Pause, init_args: {seconds: 0.01}}]}"
FIT = ["fit", "--config", "recipe.yaml", "--config", "pause.yaml", "--trainer.max_steps=40"]


def start(run_dir: str) -> int:
    """Forks a process that trains into `run_dir`; returns its number."""
    process = os.fork()
    if process:
        return process
    log = os.open(f"{run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = main([*FIT, "--run_dir", run_dir, "--ckpt_path", "auto", "--overwrite=true"])
    finally:
        os._exit(code)


def wait(process: int, run_dir: str) -> None:
    status = os.waitpid(process, 0)[1]
    if status != 0:
        printed = Path(f"{run_dir}.log").read_text()[-2000:]
        raise SystemExit(f"{run_dir} ended with status {status}:\n{printed}")


def reached(run_dir: Path) -> str:
    """How far a killed run had come."""
    if (run_dir / "metrics.json").exists():
        return "after its end"
    if list((run_dir / "checkpoints").glob(".*")):
        return "while a checkpoint was written"
    return "in training" if (run_dir / "checkpoints" / "last.ckpt").exists() else "before the first"


def run_trials(kills: int, seed: int) -> Counter[str]:
    """Runs all trials in the current folder; returns where the kills fell."""
    began = time.monotonic()
    wait(start("whole"), "whole")
    duration = time.monotonic() - began
    drawn = random.Random(seed)
    places: Counter[str] = Counter()
    for trial in range(kills):
        name = f"trial_{trial}"
        moment = drawn.uniform(0, duration)
        process = start(name)
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        place = reached(Path(name))
        places[place] += 1
        wait(start(name), name)
        assert_same(last_checkpoint(name), last_checkpoint("whole"), name)
        assert_same(logged(name), logged("whole"), name)
        print(f"{name}: killed after {moment:.2f} of {duration:.2f} s, {place}: identical")
        shutil.rmtree(name)
    return places


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="Number of trials.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TESTS / "recipes" / "project", folder, dirs_exist_ok=True)
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("pause.yaml").write_text(PAUSE)
        found = run_trials(options.kills, options.seed)
    print(f"{options.kills} of {options.kills} identical; killed {dict(found)}")
