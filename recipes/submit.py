"""`tenfold submit`: a recipe as a SLURM job, a study as job arrays. Imports no torch."""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .arguments import read_arguments, render
from .batch_script import Job, Site, load_site
from .jobs import elements_in_queue, record_job
from .run_directory import new_run_dir, next_run_dir, runs_of
from .study import LAUNCHER
from .study_file import Study, load_study
from .study_plan import plan_runs, save_plan, select_runs, stale_runs


def submit(
    config: list[str] | None = None,
    study: str | None = None,
    nodes: int | None = None,
    devices: int | None = None,
    time: str = "24:00:00",
    warn_seconds: int = 90,
    requeue: bool = True,
    site: Path | None = None,
    partition: str | None = None,
    account: str | None = None,
    constraint: str | None = None,
    container: str | None = None,
    cpus_per_task: int | None = None,
    gpus: bool | None = None,
    sbatch: list[str] | None = None,
    setup: list[str] | None = None,
    override: dict[str, Any] | None = None,
    run_dir: Path | None = None,
    study_dir: Path | None = None,
    only: str | None = None,
    max_running: int | None = None,
    dry_run: bool = False,
) -> None:
    """Train a recipe as a SLURM job, or run a study as job arrays; one task per device.

    Args:
        config: Recipe and overlays, one `--config` each.
        study: Instead of a recipe: a study. Each stage becomes a job array, one run per element;
            finished runs are left out, and the last job makes the table. Again, it does the rest.
        nodes: Number of nodes of each run; what the recipe says, or 1.
        devices: Devices, and so tasks, per node; what the recipe says, or 1.
        time: Time limit, as SLURM writes it (D-HH:MM:SS).
        warn_seconds: How long before the limit a run is told to save; more than a step, a
            validation and a checkpoint take together.
        requeue: Let SLURM queue the job again when it is preempted or reaches its time limit.
        site: YAML with what the cluster always wants, keys as the options from here to `setup`; by
            default $TENFOLD_SITE, else ~/.config/tenfold/site.yaml.
        partition: Partition to run in.
        account: Account to charge.
        constraint: Features that nodes must have, such as `h100`.
        container: Image for `srun --container-image` (Pyxis).
        cpus_per_task: CPU cores per task.
        gpus: Ask for one GPU per task (the default); false for clusters of CPUs.
        sbatch: Further options for `#SBATCH` lines, such as `["--exclusive"]`.
        setup: Shell lines to run before training, such as `["module load cuda"]`.
        override: Settings of the recipe, such as `{"trainer.max_steps": 1000}`.
        run_dir: Directory of the run; default is the recipe's next version.
        study_dir: Directory of the study; `runs/<method>/studies/<study>` by default.
        only: Of a study the runs that match, as in `tenfold study`.
        max_running: Of a study the runs at a time.
        dry_run: Print the script and submit nothing.

    Raises:
        ValueError: What is asked for cannot be submitted, or SLURM refuses it; one line.
    """
    if bool(config) == bool(study):
        raise ValueError("submit needs a recipe: --config language_model/quickstart, or a --study")
    misplaced = {"study_dir": study_dir, "only": only, "max_running": max_running}
    if study:
        misplaced = {"run_dir": run_dir}
    if wrong := [name for name, value in misplaced.items() if value is not None]:
        raise ValueError(f"--{wrong[0]} does not go with {'a --study' if study else '--config'}")
    site_options = {
        "partition": partition,
        "account": account,
        "constraint": constraint,
        "container": container,
        "cpus_per_task": cpus_per_task,
        "gpus": gpus,
        "sbatch": sbatch,
        "setup": setup,
    }
    wanted = load_site(site).overridden(site_options)
    make_job = partial(Job, time=time, warn_seconds=warn_seconds, requeue=requeue)
    if study:
        make_array = partial(
            make_job,
            nodes=count("nodes", nodes),
            devices=count("devices", devices),
            max_running=max_running,
        )
        submit_study(
            load_study(study), make_array, make_job, wanted, study_dir, only, override, dry_run
        )
        return
    assert config is not None
    given = [f"--{key}={render(value)}" for key, value in (override or {}).items()]
    arguments = read_arguments([*(f"--config={name}" for name in config), *given])
    written = {setting.key: setting.value for setting in arguments.settings}
    nodes = count("nodes", nodes, written.get("trainer.num_nodes"))
    devices = count("devices", devices, written.get("trainer.devices"))
    folder = runs_of(arguments.recipe)
    if run_dir is None:
        run_dir = next_run_dir(folder) if dry_run else new_run_dir(folder)
    overrides = {"trainer.num_nodes": nodes, "trainer.devices": devices, **(override or {})}
    run_dir = run_dir.absolute()
    job = make_job(
        name=f"{folder.parent.name}-{folder.name}",
        command=shlex.join(training_command(config, run_dir, overrides)),
        output=run_dir / "slurm-%j.out",
        nodes=nodes,
        devices=devices,
    )
    if dry_run:
        print(job.script(wanted), end="")
        return
    job_id = _send(job, wanted, run_dir / "job.sbatch")
    record_job(job_id, job.name, run_dir)
    print(f"job {job_id}: {run_dir}")


def submit_study(
    study: Study,
    make_array: Callable[..., Job],
    make_job: Callable[..., Job],
    site: Site,
    study_dir: Path | None,
    only: str | None,
    override: dict[str, Any] | None,
    dry_run: bool,
) -> None:
    """Submits an array per stage, each after those it reads from, and a job for the table."""
    folder = (study_dir or study.default_dir).absolute()
    runs = plan_runs(study, folder, override)
    if stale := stale_runs(runs, folder):
        first, reason = next(iter(stale.items()))
        raise ValueError(
            f"{folder / first} was started with another definition: {reason}; a new --study_dir "
            "keeps it, `tenfold study --overwrite` deletes it"
        )
    queued = {} if dry_run else elements_in_queue(folder)
    selected = {run.id for run in select_runs(runs, only)}
    todo = [
        k for k, run in enumerate(runs) if run.id in selected - queued.keys() and not run.finished
    ]
    if not dry_run:
        save_plan(study, runs, folder)
    words = [*LAUNCHER, "study", "--config", study.config, "--study_dir", str(folder)]
    words += [f"--override={render(override)}"] if override else []
    submitted: dict[str, str] = {}
    for stage in study.stages:
        elements = [k for k in todo if runs[k].stage is stage]
        if not elements:
            continue
        sources = {source for k in elements for source in runs[k].sources.values()}
        after = {submitted.get(source.stage.name) for source in sources}
        after |= {queued.get(source.id) for source in sources}
        array = make_array(
            name=f"{study.path.stem}-{stage.name}",
            command=f"{shlex.join(words)} --element=$SLURM_ARRAY_TASK_ID",
            output=folder / "slurm" / f"{stage.name}-%A_%a.out",
            array=tuple(elements),
            after=tuple(sorted(filter(None, after))),
        )
        submitted[stage.name] = _send_or_show(array, site, folder, dry_run)
        if not dry_run:
            ids = {str(k): runs[k].id for k in elements}
            record_job(submitted[stage.name], array.name, folder, ids)
    if not submitted:
        what = "every run has finished" if not queued else f"{len(queued)} runs are in the queue"
        print(f"nothing to submit: {what}; the table: {shlex.join([*words, '--table_only'])}")
        return
    table = make_job(
        name=f"{study.path.stem}-table",
        command=shlex.join([*words, "--table_only"]),
        output=folder / "slurm" / "table-%j.out",
        after=tuple(submitted.values()),
    )
    job_id = _send_or_show(table, replace(site, gpus=False), folder, dry_run)
    if not dry_run:
        record_job(job_id, table.name, folder)


def _send_or_show(job: Job, site: Site, folder: Path, dry_run: bool) -> str:
    if dry_run:
        print(job.script(site))
        return f"<job of {job.name}>"
    job_id = _send(job, site, folder / "slurm" / f"{job.name}.sbatch")
    runs = f", {len(job.array)} runs" if job.array else ""
    print(f"job {job_id}: {job.name}{runs}: {folder}")
    return job_id


def _send(job: Job, site: Site, path: Path) -> str:
    """Writes a script, submits it and returns the number of its job."""
    script = job.script(site)
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on this machine: run on a login node, or use --dry-run")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def count(name: str, given: int | None, written: str | None = None) -> int:
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
    command = [*LAUNCHER, "fit"]
    for name in config:
        command += ["--config", name]
    command += ["--run_dir", str(run_dir), "--ckpt_path", "auto"]
    return command + [f"--{key}={render(value)}" for key, value in overrides.items()]
