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
from typing import Any
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


@pytest.fixture
def compile_for_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Compiles a Triton kernel for a GPU that is not there, by the compiler that Triton brings."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def run(
        kernel: Any, types: dict[str, str], constants: dict[str, Any], architecture: int, **options
    ) -> Any:
        signature = {name: types.get(name, "i32") for name in kernel.arg_names}
        source = compiler.ASTSource(
            kernel,
            signature | dict.fromkeys(constants, "constexpr"),
            {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        target = backends.GPUTarget("cuda", architecture, 32)
        return compiler.compile(source, target=target, options=options)

    return run
