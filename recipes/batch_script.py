"""SLURM batch scripts: what a job and a site ask for, and the text. Imports no torch."""

import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .arguments import read_yaml
from .catalogue import RECIPES
from .errors import nearest

SITE_VARIABLE = "TENFOLD_SITE"


@dataclass(frozen=True)
class Site:
    """What a cluster wants of every job; the keys of a site file.

    Attributes:
        partition: Partition to run in.
        account: Account to charge.
        constraint: Features that nodes must have.
        container: Image for `srun --container-image` (Pyxis).
        cpus_per_task: CPU cores per task.
        gpus: Whether to ask for one GPU per task.
        sbatch: Further options for `#SBATCH` lines.
        setup: Shell lines to run before the command.
    """

    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    container: str | None = None
    cpus_per_task: int | None = None
    gpus: bool = True
    sbatch: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)

    def overridden(self, given: dict[str, Any]) -> "Site":
        """Flags win over the file; lists are appended to its lists."""
        changes = {name: value for name, value in given.items() if value is not None}
        for name in ("sbatch", "setup"):
            changes[name] = [*getattr(self, name), *(changes.get(name) or [])]
        return replace(self, **changes)


def load_site(path: Path | None) -> Site:
    """Reads a site file.

    Args:
        path: The file; None for `$TENFOLD_SITE`, else `~/.config/tenfold/site.yaml` if it exists.

    Raises:
        ValueError: It is missing, or has an unknown key or a wrong type.
    """
    if path is None:
        default = Path.home() / ".config" / "tenfold" / "site.yaml"
        path = Path(os.environ[SITE_VARIABLE]) if SITE_VARIABLE in os.environ else default
        if SITE_VARIABLE not in os.environ and not path.exists():
            return Site()
    if not path.is_file():
        raise ValueError(f"no site file '{path}' (--site, or ${SITE_VARIABLE})")
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as `partition: gpu`, found {content!r}")
    kinds = {item.name: str(item.type) for item in fields(Site)}
    for key, value in content.items():
        if key not in kinds:
            raise ValueError(f"{path}: unknown key '{key}': {nearest(str(key), kinds)}")
        if not _fits(value, kinds[key]):
            raise ValueError(f"{path}: {key}: expected {kinds[key]}, found {value!r}")
    return Site(**content)


def _fits(value: Any, kind: str) -> bool:
    if kind == "list[str]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "bool":
        return isinstance(value, bool)
    if value is None:
        return True
    wanted = int if kind.startswith("int") else str
    return isinstance(value, wanted) and not isinstance(value, bool)


@dataclass(frozen=True)
class Job:
    """One batch script.

    Attributes:
        name: Of the job.
        command: What each task runs, as shell text.
        output: File of what it prints; `%j` is the job, `%A_%a` the element of an array.
        nodes: Number of nodes.
        devices: Tasks per node.
        time: Time limit, as SLURM writes it.
        warn_seconds: How long before the limit the tasks are told to save.
        requeue: Whether SLURM may queue the job again.
        array: Elements of a job array, None for a single job.
        max_running: Elements that run at a time; None for no limit.
        after: Jobs that must have ended before this one starts.
    """

    name: str
    command: str
    output: Path
    nodes: int = 1
    devices: int = 1
    time: str = "24:00:00"
    warn_seconds: int = 90
    requeue: bool = True
    array: tuple[int, ...] | None = None
    max_running: int | None = None
    after: tuple[str, ...] = ()

    def script(self, site: Site) -> str:
        """Returns the text of the script.

        Raises:
            ValueError: The time limit or the warning is none that SLURM takes.
        """
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise ValueError(
                f"--time: '{self.time}' is no SLURM time: write D-HH:MM:SS or HH:MM:SS"
            )
        if not 0 < self.warn_seconds <= 65535:
            raise ValueError(f"--warn_seconds must be in [1, 65535], got {self.warn_seconds}")
        options = {
            "array": self._array(),
            "dependency": f"afterany:{':'.join(self.after)}" if self.after else None,
            "gpus-per-task": 1 if site.gpus else None,
            "cpus-per-task": site.cpus_per_task,
            "partition": site.partition,
            "account": site.account,
            "constraint": site.constraint,
        }
        lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
        lines += ["--requeue" if self.requeue else "--no-requeue", *site.sbatch]
        template = string.Template((RECIPES / "slurm" / "job.sbatch").read_text(encoding="utf-8"))
        return template.substitute(
            name=self.name,
            nodes=self.nodes,
            devices=self.devices,
            time=self.time,
            output=self.output,
            folder=Path.cwd(),
            warn_seconds=self.warn_seconds,
            options="\n".join(f"#SBATCH {line}" for line in lines),
            setup="\n".join(site.setup),
            container=f"--container-image={site.container} " if site.container else "",
            command=self.command,
        )

    def _array(self) -> str | None:
        if self.array is None:
            return None
        limit = f"%{self.max_running}" if self.max_running else ""
        return ",".join(_ranges(self.array)) + limit


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Writes ascending numbers as SLURM does: 0-3, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found]
