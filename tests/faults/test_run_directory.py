"""Directories that a run cannot have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tenfold.recipes.cli import main

SLOW = "trainer: {callbacks+: [{class_path: toy.Pause, init_args: {seconds: 60}}]}"


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_one_lives(project, capsys):
    Path("slow.yaml").write_text(SLOW)
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", "run"]
    command = [sys.executable, "-m", "tenfold.recipes.cli", *fit, "--config", "slow.yaml"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not Path("run/config.yaml").exists():
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        before = Path("run/config.yaml").read_bytes()
        for option in (["--overwrite"], ["--ckpt_path", "auto"]):
            assert main([*fit, *option]) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith(f"error: run is in use by process {first.pid} on ")
        assert Path("run/config.yaml").read_bytes() == before
        assert first.poll() is None
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert main([*fit, "--overwrite", "--trainer.max_steps", "2"]) == 0


def test_a_directory_that_cannot_be_written_to_is_named(project, capsys):
    assert main(["fit", "--config", "recipe.yaml", "--run_dir", "/dev/null/run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "error: cannot write to the run directory /dev/null/run: Not a directory"


def test_a_run_on_a_file_system_that_became_read_only_is_refused_and_goes_on_later(
    small_disk, capsys
):
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", str(small_disk / "run")]
    assert main([*fit, "--trainer.max_steps", "2"]) == 0
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    assert main([*fit, "--ckpt_path", "auto"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot write to the run directory ")
    assert error.endswith(": Read-only file system")
    subprocess.run([*remount[:2], "remount,rw", remount[3]], check=True)
    assert main([*fit, "--ckpt_path", "auto", "--trainer.max_steps", "4"]) == 0
