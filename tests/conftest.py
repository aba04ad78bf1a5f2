"""What all tests share: a user's project in a temporary folder, and quiet, small processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before anything imports the hub's client: no test downloads, and none waits for a hub in vain.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

PROJECT = Path(__file__).parent / "recipes" / "project"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `toy.py` and `recipe.yaml`, the current one for this test."""
    shutil.copytree(PROJECT, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_RUN_DIR", raising=False)
    return tmp_path


@pytest.fixture
def tenfold() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own, as users do."""

    def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tenfold.recipes.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)

    return run
