"""Which directory a run lives in, and which checkpoint it goes on from. Imports no torch."""

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from .slurm_job import is_task, job_id

RUN_DIR_VARIABLE = "TENFOLD_RUN_DIR"
RUNS = Path("runs")
LOCK = ".lock"
# What a run writes: all that --overwrite may delete.
WRITTEN = (
    "config*.yaml",
    "metrics.json",
    "records.jsonl",
    "events.out.tfevents.*",
    "checkpoints",
    "figures",
    "predictions",
    "answers",
    "csv",
)


def runs_of(recipe: Path | None) -> Path:
    """Where the runs of a recipe are: `runs/<folder of the recipe>/<its name>`."""
    if recipe is None:
        return RUNS / "no_recipe"
    recipe = recipe.resolve()
    if recipe.name.startswith("config."):
        # The config.yaml of a run stands for the recipe it came from.
        for folder in recipe.parents:
            if re.fullmatch(r"version_\d+", folder.name):
                return RUNS / folder.parent.parent.name / folder.parent.name
    return RUNS / recipe.parent.name / recipe.stem


def versions(folder: Path) -> list[Path]:
    """The run directories in `folder`, oldest first."""
    found = [path for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[8:]))


def next_run_dir(folder: Path) -> Path:
    """The `version_k` that comes next in `folder`."""
    existing = versions(folder)
    return folder / f"version_{int(existing[-1].name[8:]) + 1 if existing else 0}"


def new_run_dir(folder: Path) -> Path:
    """Creates the next `version_k`; two processes never get the same one."""
    while True:
        path = next_run_dir(folder)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path


def choose_run_dir(
    given: Path | None, recipe: Path | None, ckpt_path: str | None, environ: Mapping[str, str]
) -> Path:
    """Picks the run directory of this process.

    Args:
        given: What `--run_dir` says.
        recipe: The recipe, which names new runs.
        ckpt_path: What `--ckpt_path` says; `last` means the newest run of this recipe.
        environ: Environment variables; a process that Lightning starts finds its parent's choice.

    Raises:
        ValueError: `last` without any run; several processes that cannot agree on a new one.
    """
    if given is not None:
        return given
    if "LOCAL_RANK" in environ and RUN_DIR_VARIABLE in environ:
        return Path(environ[RUN_DIR_VARIABLE])
    folder = runs_of(recipe)
    if ckpt_path == "last":
        existing = versions(folder)
        if not existing:
            raise ValueError(
                f"--ckpt_path last: there is no run in {folder}: leave --ckpt_path out to start "
                "one, or name it with --run_dir"
            )
        return existing[-1]
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and is_task(environ):
        raise ValueError("several SLURM tasks need one run directory: pass --run_dir DIR")
    return new_run_dir(folder)


def lock(run_dir: Path) -> int:
    """Creates a run directory and keeps other processes from training in it.

    Returns:
        A file descriptor: the lock lasts until it is closed, or the process ends in whatever way.

    Raises:
        ValueError: Another process trains there, which is named; or nothing can be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"cannot write to the run directory {run_dir}: {error.strerror}"
        ) from error
    try:
        # Of the process, not of the open file: data workers that outlive a killed run do not hold
        # it. Network file systems have it as well.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 1000).decode() or "another process"
        os.close(descriptor)
        raise ValueError(
            f"{run_dir} is in use by {holder}: wait for its end, or give another --run_dir"
        ) from None
    except OSError:
        pass  # a file system without locks
    job = job_id()
    holder = f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")
    os.truncate(descriptor, 0)
    os.write(descriptor, holder.encode())
    return descriptor


def claim(run_dir: Path, command: str, resume: bool, overwrite: bool) -> Path:
    """Makes sure that `command` destroys nothing in `run_dir`, and names its config file.

    Args:
        run_dir: The run directory; created if missing.
        command: `fit`, `validate`, `test` or `predict`.
        resume: Whether a checkpoint of this run is taken up.
        overwrite: Whether the results of an earlier command may be replaced.

    Returns:
        The file to write the configuration to: `config.yaml` for a fresh `fit`,
        `config.resume_j.yaml` for a resumed one, `config.<command>.yaml` otherwise.

    Raises:
        ValueError: Results are there already and neither `resume` nor `overwrite` is set.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    config = run_dir / ("config.yaml" if command == "fit" else f"config.{command}.yaml")
    if not config.exists():
        return config
    if command == "fit" and resume:
        number = 1
        while (run_dir / f"config.resume_{number}.yaml").exists():
            number += 1
        return run_dir / f"config.resume_{number}.yaml"
    if not overwrite:
        go_on = "--ckpt_path auto goes on with it, " if command == "fit" else ""
        raise ValueError(
            f"{run_dir} already holds a `{command}`: {go_on}--overwrite replaces it, another "
            "--run_dir (or none) keeps it"
        )
    if command == "fit":
        for child in (path for pattern in WRITTEN for path in run_dir.glob(pattern)):
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    return config


def hand_on(run_dir: Path) -> None:
    """Tells child processes which run directory this run has."""
    os.environ[RUN_DIR_VARIABLE] = str(run_dir.resolve())
