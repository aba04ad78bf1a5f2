"""How long `tenfold` takes to begin: against the imports that it cannot do without.

    python tests/benchmarks/start_up.py --rounds 5

In turns, each in a process of its own: importing torch, lightning and transformers; `tenfold fit`
of a small recipe to the end of its first step; `tenfold check` of the same, which also runs a
batch. Times are wall clock, medians over rounds, files being in the page cache by a round before
them that does not count. Target: at most 1.3 times the imports.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from jsonargparse import auto_cli
from report import ratio

TENFOLD = [sys.executable, "-m", "tenfold.recipes.cli"]
RECIPE = ["--config", "language_model/quickstart"]
FIRST_STEP = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
COMMANDS = {
    "imports": [sys.executable, "-c", "import torch, lightning, transformers"],
    "fit": [*TENFOLD, "fit", *RECIPE, *FIRST_STEP, "--overwrite", "--run_dir", "run"],
    "check": [*TENFOLD, "check", *RECIPE],
}


def seconds(command: list[str], folder: Path) -> float:
    """Runs a command in a folder and returns how long it took."""
    start = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env=os.environ | {"TENFOLD_CACHE": str(folder / "cache")},
    )
    return time.perf_counter() - start


def benchmark(rounds: int = 5) -> None:
    """Prints the times and their ratios.

    Args:
        rounds: Each command is run so often.
    """
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as name:
        for turn in range(rounds + 1):
            for command, found in times.items():
                took = seconds(COMMANDS[command], Path(name))
                found += [took] if turn else []
    medians = {command: statistics.median(found) for command, found in times.items()}
    for command, found in times.items():
        print(f"{command:8} {medians[command]:6.2f} s   {min(found):.2f} to {max(found):.2f}")
    ratio("first step of fit / imports", medians["fit"] / medians["imports"], at_most=1.3)
    ratio("check / imports", medians["check"] / medians["imports"], at_most=1.3)


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
