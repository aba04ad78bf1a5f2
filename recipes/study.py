"""`tenfold study`: runs a grid of recipes, each run a process of its own, and compares the results.

A run is finished when its `metrics.json` has the stage's command; a study that is started again
does the rest. `study_file` reads the YAML, `study_plan` says what is run, `study_table` compares,
`study_report` writes and draws. Imports no torch.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import note, num_cores, rank_of_process
from .slurm_job import is_task
from .study_file import Study, load_study
from .study_plan import Run, check_data, plan_runs, save_plan, select_runs, stale_runs
from .study_report import report
from .study_table import metric_matches

if TYPE_CHECKING:
    from rich.console import Console

LAUNCHER = (sys.executable, "-m", "tenfold.recipes.cli")
_POLL_SECONDS = 0.05
_NUM_LOG_LINES = 12


def study(
    config: str | None = None,
    study_dir: Path | None = None,
    jobs: int = 1,
    only: str | None = None,
    override: dict[str, Any] | None = None,
    dry_run: bool = False,
    table_only: bool = False,
    overwrite: bool = False,
    element: int | None = None,
) -> None:
    """Run a study: a grid of recipes, settings and seeds, compared in one table.

    Started again, it goes on: finished runs are kept, all others resumed or run again.

    Args:
        config: A study's YAML, or a built-in name such as `set_mixer/claim`.
        study_dir: Where runs, table and figures go; `runs/<method>/studies/<study>` by default.
        jobs: Runs at a time. They share the CPU cores and the GPUs in CUDA_VISIBLE_DEVICES.
        only: Patterns of runs, separated by commas, such as `train/max*`, with what they read from.
        override: Settings for every run, over the study's: `--override '{trainer.max_steps: 5}'`.
        dry_run: Print each run and its command, and start nothing.
        table_only: Make table and figures from what has finished, and start nothing.
        overwrite: Delete the runs whose definition has changed since they were started, and run
            them again.
        element: Run the run of this number only, in this process: what a job array does.

    Raises:
        ValueError: The study, or what is asked of it, cannot be run; one line with the fix.
        SystemExit: 1 when a run failed, 130 when interrupted.
    """
    if config is None:
        raise ValueError("study needs one: --config language_model/claim (`tenfold list`)")
    if element is not None:
        run_element(load_study(config), study_dir, override, element)
        return
    run_study(
        load_study(config),
        study_dir=study_dir,
        jobs=jobs,
        only=only,
        override=override,
        dry_run=dry_run,
        table_only=table_only,
        overwrite=overwrite,
    )


def run_study(
    study: Study,
    *,
    study_dir: Path | None = None,
    jobs: int = 1,
    only: str | None = None,
    override: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    table_only: bool = False,
    overwrite: bool = False,
    launcher: Sequence[str] = LAUNCHER,
) -> None:
    """What `study` does; `launcher` is what stands before the command of each run."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    folder = study_dir or study.default_dir
    runs = plan_runs(study, folder, override)
    selected = select_runs(runs, only)
    console = _console()
    if dry_run:
        _print_plan(selected, stale_runs(runs, folder), launcher, console)
        return
    _settle_stale(runs, folder, overwrite=overwrite and not table_only)
    check_data(runs)
    problems: dict[str, str] = {}
    again = _command(study, study_dir, jobs, only, override)
    if not table_only:
        save_plan(study, runs, folder)
        metrics = study.table.metrics if study.table else ()
        problems = Runner(selected, launcher, jobs, metrics, console).run(again)
    try:
        check_data(runs)
        report(study, runs, folder, console)
    finally:
        _print_problems(problems, len(selected), again, console)
    if problems:
        raise SystemExit(1)


def run_element(
    study: Study, study_dir: Path | None, override: Mapping[str, Any] | None, element: int
) -> None:
    """Runs one run of a study in this process, on the nodes and devices of its SLURM job.

    Raises:
        ValueError: There is no such run, what it reads has not finished, or it is going on
            elsewhere.
        SystemExit: With the exit code of the run, when it fails.
    """
    runs = plan_runs(study, study_dir or study.default_dir, override)
    if not 0 <= element < len(runs):
        raise ValueError(f"element: {element}, the study has runs 0 to {len(runs) - 1}")
    run = runs[element]
    if run.finished:
        note(f"{run.id} has finished before")
        return
    if missing := [source.id for source in run.sources.values() if not source.finished]:
        raise ValueError(f"{run.id} reads from {missing[0]}, which has not finished")
    from .cli import main

    arguments = run.arguments(resolved=True)
    if is_task():
        arguments += [
            f"--trainer.num_nodes={os.environ['SLURM_NNODES']}",
            f"--trainer.devices={os.environ['SLURM_NTASKS_PER_NODE']}",
        ]
    log = _locked_log(run) if rank_of_process() == 0 else None
    try:
        if code := main(arguments):
            raise SystemExit(code)
    finally:
        if log is not None:
            log.close()


def _settle_stale(runs: Sequence[Run], folder: Path, *, overwrite: bool) -> None:
    """Deletes runs of another definition, or refuses them."""
    stale = stale_runs(runs, folder)
    if stale and not overwrite:
        first, reason = next(iter(stale.items()))
        others = f", and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise ValueError(
            f"{folder / first} was started with another definition: {reason}{others}; "
            "--overwrite deletes such runs and runs them again, a new --study_dir keeps them"
        )
    for run in runs:
        if run.id in stale:
            with _locked_log(run):
                shutil.rmtree(run.run_dir)
                run.log.unlink()


# Running


class Runner:
    """Starts each run when what it reads has finished, at most `jobs` at a time.

    Args:
        runs: What to run, each after those it reads; finished ones are passed over.
        launcher: What stands before the command of a run.
        jobs: Processes at a time.
        metrics: Names to show when a run has finished.
        console: Where progress goes.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        launcher: Sequence[str],
        jobs: int,
        metrics: Sequence[str],
        console: "Console",
    ) -> None:
        self.launcher = tuple(launcher)
        self.jobs = jobs
        self.metrics = metrics
        self.console = console
        self.num_runs = len(runs)
        sources = [source for run in runs for source in run.sources.values()]
        self.finished = {run.id for run in {*runs, *sources} if run.finished}
        self.waiting = [run for run in runs if run.id not in self.finished]
        self.active: list[_Process] = []
        self.problems: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = {}

    def run(self, again: str) -> dict[str, str]:
        """Runs everything.

        Args:
            again: The command that goes on, to be shown after an interruption.

        Returns:
            For each run that did not finish: why.

        Raises:
            SystemExit: 130 after SIGINT, SIGTERM or SIGHUP, when the processes have ended.
        """
        if len(self.waiting) < self.num_runs:
            done = self.num_runs - len(self.waiting)
            _say(self.console, f"{done} of {self.num_runs} runs have finished before")
        with _noted_signals() as signals, self.console.status("") as status:
            try:
                while (self.waiting or self.active) and not signals:
                    self._start_ready()
                    status.update(self._state())
                    time.sleep(_POLL_SECONDS)
                    self._collect()
            finally:
                self._stop(signals)
        if signals:
            _say(self.console, f"interrupted; go on with: {again}")
            raise SystemExit(130)
        return self.problems

    def _start_ready(self) -> None:
        for run in list(self.waiting):
            missing = [run for run in run.sources.values() if run.id not in self.finished]
            if any(self._is_coming(source) for source in missing):
                continue
            if missing:
                self.waiting.remove(run)
                self._fail(run, f"skipped: {missing[0].id} has not finished")
            elif len(self.active) < self.jobs:
                self.waiting.remove(run)
                self._start(run)

    def _is_coming(self, run: Run) -> bool:
        return run in self.waiting or any(process.run is run for process in self.active)

    def _start(self, run: Run) -> None:
        slot = min(set(range(self.jobs)) - {process.slot for process in self.active})
        environment = _environment(slot, self.jobs)
        try:
            self.active.append(_Process.start(run, self.launcher, environment, slot))
        except ValueError as error:
            self._fail(run, f"not started: {error}")

    def _collect(self) -> None:
        for process in [process for process in self.active if process.popen.poll() is not None]:
            self.active.remove(process)
            if process.run.finished:
                self._finish(process)
            else:
                process.kill()
                self._fail(process.run, process.ending())
                _say(self.console, f"{_last_lines(process.run.log)}\n    (from {process.run.log})")

    def _finish(self, process: "_Process") -> None:
        run, seconds = process.run, process.elapsed
        self.finished.add(run.id)
        self.seconds.setdefault(run.stage.name, []).append(seconds)
        shown = [f"{name} {value:.4g}" for name, value in self._to_show(run)]
        self._report(run, "  ".join([f"finished in {_duration(seconds)}", *shown]))

    def _to_show(self, run: Run) -> list[tuple[str, float]]:
        numbers = [(name, x) for name, x in run.measured().items() if isinstance(x, int | float)]
        wanted = [
            (name, x) for name, x in numbers if any(metric_matches(m, name) for m in self.metrics)
        ]
        return (wanted or numbers)[:4]

    def _fail(self, run: Run, problem: str) -> None:
        self.problems[run.id] = problem
        self._report(run, problem)

    def _report(self, run: Run, text: str) -> None:
        left = len(self.waiting) + len(self.active)
        rest = f"  ({left} left{self._time_left()})" if left else ""
        _say(self.console, f"{run.id}: {text}{rest}")

    def _state(self) -> str:
        names = ", ".join(process.run.id for process in self.active)
        return f"running {names}; {len(self.waiting)} waiting{self._time_left()}"

    def _time_left(self) -> str:
        """From the mean time of what has finished: of the same stage, else of all."""
        every = [seconds for stage in self.seconds.values() for seconds in stage]
        if not every:
            return ""
        means = {stage: sum(times) / len(times) for stage, times in self.seconds.items()}
        mean = sum(every) / len(every)
        left = sum(means.get(run.stage.name, mean) for run in self.waiting)
        for process in self.active:
            left += max(0.0, means.get(process.run.stage.name, mean) - process.elapsed)
        return f", about {_duration(left / self.jobs)}"

    def _stop(self, signals: Sequence[int]) -> None:
        """Lets what is still going on save and end; a second signal kills it."""
        if not self.active:
            return
        _say(self.console, "stopping the runs, which may save first; Ctrl-C again kills them")
        for process in self.active:
            process.popen.send_signal(signal.SIGINT)
        while running := [p for p in self.active if p.popen.poll() is None]:
            if len(signals) > 1:
                for process in running:
                    process.kill()
            time.sleep(_POLL_SECONDS)
        self.active.clear()


@dataclass(eq=False)
class _Process:
    """A run that has been started."""

    run: Run
    popen: "subprocess.Popen[bytes]"
    slot: int
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, run: Run, launcher: Sequence[str], environment: dict[str, str], slot: int
    ) -> "_Process":
        """Starts a run, in a session of its own: a Ctrl-C of the terminal is for the study alone.

        Raises:
            ValueError: A run it reads has left no result, or it is still going on elsewhere.
        """
        command = [*launcher, *run.arguments(resolved=True)]
        with _locked_log(run) as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(run, popen, slot)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def ending(self) -> str:
        """How a process ended that has not finished its run."""
        code = self.popen.returncode
        if code < 0:
            return f"failed: killed by {signal.Signals(-code).name}"
        if code:
            return f"failed: exit code {code}"
        missing = "test" if self.run.measured() else self.run.stage.command
        return f"failed: exit code 0, but metrics.json has no '{missing}'"

    def kill(self) -> None:
        """Kills the process and what it has left behind, such as data workers and other ranks."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)


def _locked_log(run: Run) -> IO[bytes]:
    """Opens the log for appending and locks it.

    The process inherits the open file and with it the lock: a run that outlives a killed study is
    never started a second time beside itself.

    Raises:
        ValueError: Another process holds it.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    log = run.log.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise ValueError(f"{run.id} is still going on in a process that holds {run.log}") from None
    except OSError:
        pass  # a file system without locks
    return log


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in a list, so that they interrupt nothing halfway."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda got, frame: noted.append(got)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """The environment of a run: its share of the cores, and of the GPUs when there are enough."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // jobs)))
        devices = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if len(devices) >= jobs:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot::jobs])
    return environment


# Words


def _print_plan(
    runs: Sequence[Run], stale: Mapping[str, str], launcher: Sequence[str], console: "Console"
) -> None:
    for run in runs:
        state = "finished" if run.finished else "unfinished" if run.run_dir.exists() else "new"
        state = f"stale: {stale[run.id]}" if run.id in stale else state
        after = "".join(f", after {source.id}" for source in run.sources.values())
        _say(console, f"{run.id} ({state}{after})")
        _say(console, f"  {shlex.join([*launcher, *run.arguments(resolved=False)])}")
    finished = sum(run.finished for run in runs)
    _say(console, f"{len(runs)} runs, {finished} finished; nothing was started")


def _print_problems(
    problems: Mapping[str, str], num_runs: int, again: str, console: "Console"
) -> None:
    if problems:
        _say(console, f"{len(problems)} of {num_runs} runs did not finish:")
        for run_id, problem in problems.items():
            _say(console, f"  {run_id}: {problem}")
        _say(console, f"run these again with: {again}")


def _command(
    study: Study,
    study_dir: Path | None,
    jobs: int,
    only: str | None,
    override: Mapping[str, Any] | None,
) -> str:
    """The command that goes on with a study."""
    words = ["tenfold", "study", "--config", study.config]
    words += ["--study_dir", str(study_dir)] if study_dir else []
    words += ["--jobs", str(jobs)] if jobs > 1 else []
    words += ["--only", only] if only else []
    words += ["--override", json.dumps(override)] if override else []
    return shlex.join(words)


def _last_lines(path: Path) -> str:
    """The end of a log, indented."""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 16_000))
        text = log.read().decode(errors="replace")
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(f"    {line[:300]}" for line in lines[-_NUM_LOG_LINES:])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
