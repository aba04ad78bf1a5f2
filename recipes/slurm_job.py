"""The SLURM job that a process belongs to. Imports no torch."""

import os
import subprocess
from collections.abc import Mapping

_SHELLS = ("bash", "interactive")  # names of jobs in which Lightning, too, expects a shell


def is_task(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `srun` started this process as one of the tasks of a job.

    False in a shell that `srun --pty` or `salloc` opened: what runs there runs once, whatever
    number of tasks the job has.
    """
    is_shell = "SLURM_PTY_PORT" in environ or environ.get("SLURM_JOB_NAME") in _SHELLS
    return "SLURM_PROCID" in environ and not is_shell


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """The job of this process, `ARRAY_ELEMENT` for that of an array; None outside of SLURM."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Queues a job again, if it is to be; that ends its processes at once.

    Args:
        job: From `job_id`. Of an array only this element is queued again.

    Returns:
        What came of it, for users.
    """
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
        facts = dict(word.partition("=")[::2] for word in shown.split())
        # A job that is being preempted still runs. One that ends is COMPLETING, whether it has been
        # cancelled, and is not to come back, or has reached its time limit.
        if facts.get("JobState") != "RUNNING" and facts.get("Reason") != "TimeLimit":
            return f"job {job} is {facts.get('JobState', 'unknown')}: not queued again"
        if facts.get("Requeue") == "0":
            return f"job {job} was submitted with --no-requeue: not queued again"
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or error
        return f"job {job} could not be queued again: {str(detail).strip()}"
    return f"job {job} is queued again"


def _scontrol(*arguments: str) -> str:
    done = subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout
