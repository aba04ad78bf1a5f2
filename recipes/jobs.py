"""`tenfold jobs`: the SLURM jobs that were submitted from this folder. Imports no torch."""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .run_directory import RUNS

REGISTER = RUNS / "jobs.jsonl"
FINISHED = "finished"
FAILED = "ended without a result"


@dataclass(frozen=True)
class SubmittedJob:
    """One line of `runs/jobs.jsonl`.

    Attributes:
        job: The number SLURM gave it.
        name: Its name.
        folder: Run directory; of an array the directory of the study.
        submitted: When, UTC.
        elements: Of an array: number of the element -> run, a path in `folder`.
    """

    job: str
    name: str
    folder: str
    submitted: str
    elements: dict[str, str] = field(default_factory=dict)

    def runs(self) -> dict[str, Path]:
        """Job or element, as SLURM writes it -> run directory."""
        if not self.elements:
            return {self.job: Path(self.folder)}
        return {f"{self.job}_{k}": Path(self.folder) / run for k, run in self.elements.items()}


def jobs(all: bool = False) -> None:  # noqa: A002 - the name of the flag
    """List the SLURM jobs submitted from this folder: state and run directory.

    Args:
        all: Show those that have finished as well.

    Raises:
        ValueError: The queue cannot be read.
    """
    submitted = list(_register())
    if not submitted:
        print(f"no jobs were submitted from this folder (no {REGISTER})")
        return
    queue = read_queue()
    rows: list[tuple[str, str, str, str]] = []
    for job in reversed(submitted):
        states = {name: state_of(name, run, queue) for name, run in job.runs().items()}
        if job.elements:
            counts = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).items())
            rows.append((job.job, job.name, counts, job.folder))
            shown = states if all else {n: s for n, s in states.items() if s == FAILED}
            rows += [(name, "", state, str(job.runs()[name])) for name, state in shown.items()]
        elif all or states[job.job] != FINISHED:
            rows.append((job.job, job.name, states[job.job], job.folder))
    if not rows:
        print(f"all {len(submitted)} jobs have finished; --all shows them")
        return
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for *cells, folder in rows:
        padded = [text.ljust(width) for text, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, folder]))


def state_of(name: str, run_dir: Path, queue: dict[str, str]) -> str:
    """What has become of a job: SLURM's word for it, else whether its run has a result."""
    if name in queue:
        return queue[name]
    metrics = run_dir / "metrics.json"
    if metrics.is_file() or run_dir.joinpath("table.md").is_file():
        return FINISHED
    return FAILED


def read_queue() -> dict[str, str]:
    """Job or element -> its state, in lower case, of all jobs of this user in the queue.

    Raises:
        ValueError: There is no SLURM here, or it does not answer.
    """
    if shutil.which("squeue") is None:
        raise ValueError("squeue is not on this machine: run on a login node")
    done = subprocess.run(
        ["squeue", "--me", "--noheader", "--array", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"squeue failed: {done.stderr.strip()}")
    lines = (line.split() for line in done.stdout.splitlines())
    return {name: state.lower() for name, state in lines}


def elements_in_queue(study_dir: Path) -> dict[str, str]:
    """The runs of a study that wait or run in some job array -> that job."""
    submitted = [job for job in _register() if job.folder == str(study_dir)]
    queue = read_queue() if submitted else {}
    return {
        run: job.job
        for job in submitted
        for element, run in job.elements.items()
        if f"{job.job}_{element}" in queue
    }


def record_job(job: str, name: str, folder: Path, elements: dict[str, str] | None = None) -> None:
    """Adds a job to the register."""
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    line = asdict(SubmittedJob(job, name, str(folder), submitted, elements or {}))
    REGISTER.parent.mkdir(parents=True, exist_ok=True)
    with REGISTER.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _register() -> Iterator[SubmittedJob]:
    if REGISTER.is_file():
        for line in REGISTER.read_text(encoding="utf-8").splitlines():
            yield SubmittedJob(**json.loads(line))
