"""`tenfold runs`: finished and unfinished runs, side by side. Imports no torch."""

import csv
import difflib
import fcntl
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..modules.files import atomic_write
from .run_directory import LOCK, RUNS

# Settings that say where a run is or what it is called, not what it does.
NO_SETTINGS = ("run_dir", "trainer.default_root_dir", "trainer.logger", "ckpt_path")
# What people look at first, where nothing is asked for.
QUALITY = ("loss", "accuracy", "f1", "/er_", "match", "recall", "iou")
MOST_METRICS, MOST_SETTINGS, MOST_LETTERS = 5, 5, 30


@dataclass
class FoundRun:
    """One run directory.

    Attributes:
        path: The directory.
        state: `fit`, `fit+test` ...: the commands that have finished; else `running` or `stopped`.
        seed: What it was started with, None where that is not known.
        seconds: Wall time of the finished commands.
        numbers: Name -> value, of all commands; a name of two commands is the later one's.
        settings: Dotted key -> value, from its configuration.
    """

    path: Path
    state: str
    seed: int | None = None
    seconds: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def runs(
    folders: list[str] | None = None,
    metrics: list[str] | None = None,
    sort: str | None = None,
    descending: bool = False,
    out: str | None = None,
) -> None:
    """List runs and compare them: state, seed, time, what differs in their settings, metrics.

    Args:
        folders: Run directories, or folders that hold some at any depth. Default: `runs`.
        metrics: Names in `metrics.json`, such as `val/loss`. Default: at most five of validation
            and test that most of the runs have.
        sort: Metric to sort by, the smallest first. Default: by path.
        descending: The largest first.
        out: CSV file to write as well, with all metrics and all settings that differ.

    Raises:
        ValueError: There is no run, or none has such a metric.
    """
    found = find_runs([Path(folder) for folder in folders or [str(RUNS)]])
    known = Counter(name for run in found for name in run.numbers)
    for name in [*(metrics or []), *([sort] if sort else [])]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:5]
            raise ValueError(f"no run here has the metric '{name}': there are {', '.join(near)}")
    if sort:
        sign = -1 if descending else 1
        found.sort(key=lambda run: sign * run.numbers.get(sort, sign * float("inf")))
    groups: dict[Path, list[FoundRun]] = {}
    for run in found:
        groups.setdefault(run.path.parent, []).append(run)
    for folder, group in groups.items():
        shown = metrics or _headline(group, first=sort)
        print("\n".join(_lines(folder, group, shown, differing_settings(group))))
    if out:
        with atomic_write(out, "w") as file:
            file.write(_csv(found, sorted(known)))
        print(out)


def find_runs(folders: Sequence[Path]) -> list[FoundRun]:
    """Reads all run directories in some folders, in the order of their paths.

    Raises:
        ValueError: A folder is not there, or none holds a run.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; `tenfold fit` writes to {RUNS}/")
        configs = {
            path.parent for path in folder.rglob("config*.yaml") if "figures" not in path.parts
        }
        metrics = {path.parent for path in folder.rglob("metrics.json")}
        paths |= dict.fromkeys(sorted(configs | metrics, key=_natural))
    if not paths:
        raise ValueError(f"no run in {', '.join(map(str, folders))}: none has a config.yaml")
    return [_read(path) for path in paths]


def differing_settings(found: Sequence[FoundRun]) -> list[str]:
    """The dotted keys that all configurations have, with different values."""
    settings = [run.settings for run in found if run.settings]
    common = [key for key in settings[0] if all(key in one for one in settings)] if settings else []
    return [
        key
        for key in common
        if not key.startswith(NO_SETTINGS) and any(one[key] != settings[0][key] for one in settings)
    ]


def _read(path: Path) -> FoundRun:
    metrics = path / "metrics.json"
    sections: dict[str, Any] = {}
    if metrics.is_file():
        try:
            sections = json.loads(metrics.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{metrics}: no JSON: {error}") from error
    about = sections.pop("run", {})
    numbers = {
        name: float(value)
        for section in sections.values()
        for name, value in section.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    times = [s["wall_time_s"] for s in sections.values() if "wall_time_s" in s]
    settings = _settings(path)
    return FoundRun(
        path,
        state="+".join(sections) or ("running" if _is_locked(path) else "stopped"),
        seed=about.get("seed", settings.pop("seed_everything", None)),
        seconds=sum(times) if times else None,
        numbers={name: value for name, value in numbers.items() if name != "wall_time_s"},
        settings={key: value for key, value in settings.items() if key != "seed_everything"},
    )


def _settings(path: Path) -> dict[str, Any]:
    configs = [path / "config.yaml", *sorted(path.glob("config.*.yaml"))]
    config = next((config for config in configs if config.is_file()), None)
    if config is None:
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(config.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: no YAML: {' '.join(str(error).split())}") from error
    return dict(_flat(content or {}))


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves by dotted key; a list of mappings by class, or by place."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for place, item in enumerate(value):
            name = item.get("class_path", place) if isinstance(item, dict) else place
            yield from _flat(item, f"{key}.{str(name).rpartition('.')[2]}")
    else:
        yield key, value


def _is_locked(path: Path) -> bool:
    try:
        with (path / LOCK).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        pass  # no lock file, or a file system without locks
    return False


def _natural(path: Path) -> list[tuple[str, int]]:
    """So that version_10 comes after version_9."""
    parts = []
    for part in path.parts:
        stem = part.rstrip("0123456789")
        parts.append((stem, int(part[len(stem) :] or -1)))
    return parts


def _headline(found: Sequence[FoundRun], first: str | None) -> list[str]:
    """`first` and metrics of evaluation that most of the runs have, the shortest names first.

    Losses and shares of right answers come before all others.
    """
    known = Counter(
        name for run in found for name in run.numbers if name.startswith(("val/", "test/"))
    )

    def rank(name: str) -> tuple[int, bool, int, int, str]:
        is_quality = any(word in name for word in QUALITY)
        return -known[name], not is_quality, name.count("/"), len(name), name

    names = sorted(known, key=rank)
    return list(dict.fromkeys([*([first] if first else []), *names[:MOST_METRICS]]))


def _lines(
    folder: Path, found: Sequence[FoundRun], metrics: Sequence[str], settings: Sequence[str]
) -> list[str]:
    """The runs of one folder: a heading, names of columns, a line for each run."""
    more = len(settings) - MOST_SETTINGS
    settings = settings[:MOST_SETTINGS]
    rows = [["run", "finished", "seed", "time", *map(_short, settings), *metrics]]
    for run in found:
        cells = [run.path.name, run.state, _text(run.seed), _duration(run.seconds)]
        cells += [_text(run.settings.get(key)) for key in settings]
        rows.append([*cells, *(_text(run.numbers.get(name)) for name in metrics)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    note = f"   ({more} more settings differ: --out FILE.csv)" if more > 0 else ""
    return [f"{folder}{note}", *(f"  {line}" for line in lines)]


def _short(key: str) -> str:
    """The end of a dotted key."""
    return ".".join([part for part in key.split(".") if part != "init_args"][-2:])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 100 else f"{minutes:.1f} min"


def _csv(found: Sequence[FoundRun], metrics: Sequence[str]) -> str:
    settings = differing_settings(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "finished", "seed", "seconds", *settings, *metrics])
    for run in found:
        row: list[Any] = [run.path, run.state, run.seed, run.seconds]
        row += [run.settings.get(key) for key in settings]
        writer.writerow([*row, *(run.numbers.get(name) for name in metrics)])
    return text.getvalue()
