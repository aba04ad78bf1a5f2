"""`tenfold submit`: a recipe as a SLURM job. Imports no torch."""

import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

from .arguments import read_arguments, render
from .catalogue import RECIPES
from .run_directory import new_run_dir, next_run_dir, runs_of


def submit(
    config: list[str] | None = None,
    nodes: int | None = None,
    devices: int | None = None,
    time: str = "24:00:00",
    gpus: bool = True,
    cpus_per_task: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    requeue: bool = True,
    sbatch: list[str] | None = None,
    setup: list[str] | None = None,
    override: dict[str, Any] | None = None,
    run_dir: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Train a recipe as a SLURM job of one task per device.

    Args:
        config: Recipe and overlays, one `--config` each.
        nodes: Number of nodes; what the recipe says, or 1.
        devices: Devices, and so tasks, per node; what the recipe says, or 1.
        time: Time limit, as SLURM writes it (D-HH:MM:SS).
        gpus: Ask for one GPU per task; false for clusters of CPUs.
        cpus_per_task: CPU cores per task.
        partition: Partition to run in.
        account: Account to charge.
        requeue: Let SLURM queue the job again when it is preempted or reaches its time limit.
        sbatch: Further options for `#SBATCH` lines, such as `["--constraint=h100"]`.
        setup: Shell lines to run before training, such as `["module load cuda"]`.
        override: Settings of the recipe, such as `{"trainer.max_steps": 1000}`.
        run_dir: Directory of the run; default is the recipe's next version.
        dry_run: Print the script and submit nothing.
    """
    if not config:
        raise ValueError("submit needs a recipe: --config language_model/quickstart")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise ValueError(f"--time: '{time}' is no SLURM time: write D-HH:MM:SS or HH:MM:SS")
    arguments = read_arguments([part for name in config for part in ("--config", name)])
    written = {setting.key: setting.value for setting in arguments.settings}
    nodes = count("nodes", nodes, written.get("trainer.num_nodes"))
    devices = count("devices", devices, written.get("trainer.devices"))
    folder = runs_of(arguments.recipe)
    if run_dir is None:
        run_dir = next_run_dir(folder) if dry_run else new_run_dir(folder)
    options = {
        "gpus-per-task": 1 if gpus else None,
        "cpus-per-task": cpus_per_task,
        "partition": partition,
        "account": account,
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    lines += ["--requeue" if requeue else "--no-requeue", *(sbatch or [])]
    overrides = {"trainer.num_nodes": nodes, "trainer.devices": devices, **(override or {})}
    run_dir = run_dir.absolute()
    script = string.Template((RECIPES / "slurm" / "train.sbatch").read_text(encoding="utf-8"))
    text = script.substitute(
        job_name=f"{folder.parent.name}-{folder.name}",
        nodes=nodes,
        devices=devices,
        time=time,
        run_dir=run_dir,
        folder=Path.cwd(),
        options="\n".join(f"#SBATCH {line}" for line in lines),
        setup="\n".join(setup or []),
        command=shlex.join(training_command(config, run_dir, overrides)),
    )
    if dry_run:
        print(text, end="")
        return
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on this machine: run on a login node, or use --dry-run")
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "train.sbatch"
    path.write_text(text, encoding="utf-8")
    answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise ValueError(f"sbatch refused {path}: {answer.stderr.strip()}")
    print(f"{answer.stdout.strip()}: {run_dir}")


def count(name: str, given: int | None, written: str | None) -> int:
    """A number of nodes or devices: as given, else as the recipe has it, else 1.

    Raises:
        ValueError: It is less than 1, or the recipe leaves it to the machine ("auto").
    """
    text = str(given) if given is not None else written or "1"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--{name} must be 1 or more, got {text}")
    return int(text)


def training_command(config: list[str], run_dir: Path, overrides: dict[str, Any]) -> list[str]:
    """The `tenfold fit` command of a job, which starts its run or goes on with it."""
    command = [sys.executable, "-m", "tenfold.recipes.cli", "fit"]
    for name in config:
        command += ["--config", name]
    command += ["--run_dir", str(run_dir), "--ckpt_path", "auto"]
    return command + [f"--{key}={render(value)}" for key, value in overrides.items()]
