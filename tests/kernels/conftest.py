"""Runs the comparisons of `interpreted/check_*.py`, which launch Triton, in a process of their own.

Triton decides when a kernel is defined whether its interpreter runs it, so that one process cannot
do both. `TRITON_INTERPRET` names where a check runs, and without it none is collected:

    TRITON_INTERPRET=1 pytest tests/kernels/interpreted/check_int4.py     on the CPU, interpreted
    TRITON_INTERPRET=0 pytest tests/kernels/interpreted/check_int4.py     on a GPU
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

INTERPRETED = Path(__file__).parent / "interpreted"
INTERPRET = os.environ.get("TRITON_INTERPRET")
collect_ignore = [] if INTERPRET in ("0", "1") else ["interpreted"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where a check launches its kernels."""
    return torch.device("cpu" if INTERPRET == "1" else "cuda")


@pytest.fixture
def run_checks(tmp_path: Path) -> Callable[[str, bool], int]:
    """Runs a file of checks, interpreted or on a GPU; fails as they do; returns how many passed."""

    def run(name: str, interpret: bool = True) -> int:
        report = tmp_path / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        finished = subprocess.run(
            [*command, f"--junitxml={report}", str(INTERPRETED / name)],
            env=os.environ | {"TRITON_INTERPRET": str(int(interpret))},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if finished.returncode:
            pytest.fail(
                f"{name}:\n{finished.stdout[-8000:]}{finished.stderr[-2000:]}", pytrace=False
            )
        suite = ElementTree.parse(report).getroot()[0]
        return int(suite.get("tests", 0)) - int(suite.get("skipped", 0))

    return run
