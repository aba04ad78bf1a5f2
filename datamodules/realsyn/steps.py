"""Steps of a pipeline: tasks that write shards, done once, gone on with after any kill.

A step owns a folder. Each of its tasks writes files there whole or not at all, then a marker with
what it counted. `_SUCCESS` follows when all tasks have markers. A step remembers a hash of its
settings and of those it builds on: the same hash goes on where it was, another one is refused.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...modules.files import atomic_write, write_json
from .tables import canonical_json

# Raise it when the same settings give other files than before.
FORMAT = 1
MAX_EXAMPLES = 24


@dataclass
class Stats:
    """What a task or step counted; those of tasks add up in any order.

    Attributes:
        counts: Numbers of things.
        reasons: Of what kind, why, how many were dropped.
        histograms: Counts per bin.
        edges: Of the bins.
        examples: By kind, records with `id` and `reason`; those that hash lowest are kept.
        problems: Lines that name what was skipped, the first of them.
    """

    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    edges: dict[str, list[float]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Stats") -> None:
        """Adds what another task counted."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for kind, reasons in other.reasons.items():
            total = Counter(self.reasons.get(kind, {}))
            total.update(reasons)
            self.reasons[kind] = dict(sorted(total.items()))
        for name, bins in other.histograms.items():
            mine = self.histograms.get(name, [0] * len(bins))
            self.histograms[name] = [a + b for a, b in zip(mine, bins, strict=True)]
            self.edges[name] = other.edges[name]
        for kind, examples in other.examples.items():
            by_reason: dict[str, list[dict[str, Any]]] = {}
            for example in self.examples.get(kind, []) + examples:
                by_reason.setdefault(example["reason"], []).append(example)
            self.examples[kind] = [
                example
                for reason in sorted(by_reason)
                for example in sorted(by_reason[reason], key=_example_rank)[:MAX_EXAMPLES]
            ]
        self.problems = sorted({*self.problems, *other.problems})[:MAX_EXAMPLES]


def _example_rank(example: Mapping[str, Any]) -> str:
    return hashlib.blake2b(str(example["id"]).encode(), digest_size=8).hexdigest()


class Work(Protocol):
    """What a task does; pickled, so that it may run on any machine that shares the folder."""

    @property
    def needs_model(self) -> bool:
        """Whether it runs a network, and so wants the accelerator if there is one."""

    def __call__(self, task: int) -> Stats:
        """Does the task of that number: reads and writes files."""


class Task:
    """Base of works that run on processors only."""

    needs_model = False


class Runner(Protocol):
    """Runs tasks somewhere; see `executors`."""

    def run(self, work: Work, tasks: Sequence[int], done: Callable[[int, Stats], None]) -> None:
        """Runs tasks in any order and calls `done` for each."""


@dataclass(frozen=True)
class Step:
    """A step of the pipeline.

    Attributes:
        name: Its folder below the pipeline's, such as "filter/quality".
        settings: What decides its result, as plain JSON.
        after: Hashes of the steps that it reads from.
        work: Its tasks.
        num_tasks: Their number.
    """

    name: str
    settings: Mapping[str, Any]
    after: Sequence[str]
    work: Work
    num_tasks: int

    @property
    def digest(self) -> str:
        """The hash of all that decides its result."""
        whole = [FORMAT, self.name, self.settings, list(self.after)]
        return hashlib.sha256(canonical_json(whole).encode()).hexdigest()


@dataclass(frozen=True)
class Finished:
    """A step that is done.

    Attributes:
        digest: Its hash.
        stats: What all tasks counted together.
        rows: Of each task, what it counted as "rows".
        seconds: How long its tasks took, summed over the processes that ran them.
    """

    digest: str
    stats: Stats
    rows: list[int]
    seconds: float


Progress = Callable[[str, int, int], None]


def run_step(
    out: Path, step: Step, runner: Runner, overwrite: bool, progress: Progress
) -> Finished:
    """Runs what is not yet done of a step.

    Args:
        out: The pipeline's folder.
        step: What to do.
        runner: Runs its tasks.
        overwrite: Begin anew where the folder holds the result of other settings.
        progress: Called with the step's name, tasks done and tasks in all.

    Raises:
        ValueError: The folder holds the result of other settings.
    """
    folder = out / step.name
    _claim(folder, step, overwrite)
    markers = [folder / "_done" / f"{task:05d}.json" for task in range(step.num_tasks)]
    if not (folder / "_SUCCESS").exists():
        todo = [task for task, marker in enumerate(markers) if not marker.exists()]
        num_done = step.num_tasks - len(todo)
        progress(step.name, num_done, step.num_tasks)

        def note(task: int, stats: Stats) -> None:
            nonlocal num_done
            num_done += 1
            progress(step.name, num_done, step.num_tasks)

        if todo:
            runner.run(_Marked(step.work, str(folder)), todo, note)
        for left in folder.rglob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        with atomic_write(folder / "_SUCCESS", "w") as file:
            file.write(step.digest + "\n")
    total, rows, seconds = Stats(), [], 0.0
    for marker in markers:
        said = json.loads(marker.read_text(encoding="utf-8"))
        seconds += said["seconds"]
        stats = Stats(**said["stats"])
        rows.append(stats.counts.get("rows", 0))
        total.add(stats)
    if not (folder / "_stats.json").exists():
        write_json(folder / "_stats.json", vars(total))
    return Finished(step.digest, total, rows, seconds)


class Steps:
    """Runs the steps of a pipeline one after another, and knows what those that are done counted.

    Args:
        out: The pipeline's folder.
        runner: Runs tasks.
        overwrite: See `run_step`.
        progress: See `run_step`.
    """

    def __init__(self, out: Path, runner: Runner, overwrite: bool, progress: Progress) -> None:
        self.out, self.runner, self.overwrite, self.progress = out, runner, overwrite, progress
        self.done: dict[str, Finished] = {}

    def folder(self, name: str) -> str:
        """Returns the folder of a step."""
        return str(self.out / name)

    def counts(self, name: str) -> dict[str, int]:
        """Returns what a step that is done counted."""
        return self.done[name].stats.counts

    def run(
        self,
        name: str,
        work: Work,
        num_tasks: int,
        after: Sequence[str],
        settings: Mapping[str, Any] | None = None,
    ) -> Finished:
        """Runs a step, or what is not yet done of it.

        Args:
            name: Of the step.
            work: Its tasks.
            num_tasks: Their number.
            after: Names of the steps that it reads from.
            settings: What else decides its result, as plain JSON.

        Raises:
            ValueError: See `run_step`.
        """
        digests = [self.done[other].digest for other in after]
        step = Step(name, settings or {}, digests, work, num_tasks)
        finished = run_step(self.out, step, self.runner, self.overwrite, self.progress)
        self.done[name] = finished
        return finished


class _Marked:
    """A work that leaves a marker in the step's folder when a task is done."""

    def __init__(self, work: Work, folder: str) -> None:
        self.work, self.folder = work, folder

    @property
    def needs_model(self) -> bool:
        return self.work.needs_model

    def __call__(self, task: int) -> Stats:
        start = time.perf_counter()
        stats = self.work(task)
        said = {"seconds": round(time.perf_counter() - start, 3), "stats": vars(stats)}
        write_json(Path(self.folder) / "_done" / f"{task:05d}.json", said)
        return stats


def _claim(folder: Path, step: Step, overwrite: bool) -> None:
    """Makes the folder this step's, or finds that it is."""
    path = folder / "_settings.json"
    for old in folder.parent.glob(f".{folder.name}.*.old"):  # whose removal was killed
        shutil.rmtree(old)
    for left in folder.glob(f".{path.name}.*.tmp"):
        left.unlink()
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["digest"] == step.digest:
            return
        if not overwrite:
            raise ValueError(
                f"{folder} was made with other settings ({_difference(found, step)}): choose "
                "another --out, or --overwrite to make it and what builds on it again"
            )
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        shutil.rmtree(old)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose another --out")
    settings = {"digest": step.digest, "settings": step.settings, "after": list(step.after)}
    write_json(path, settings)


def _difference(found: Mapping[str, Any], step: Step) -> str:
    """What differs between stored settings and a step's, in a few words."""
    now = json.loads(canonical_json(step.settings))
    names = sorted(now.keys() | found["settings"].keys())
    changed = [n for n in names if now.get(n) != found["settings"].get(n)]
    if not changed:
        return "of a step that it reads from"
    name = changed[0]
    return f"{name}: {found['settings'].get(name)}, not {now.get(name)}"
