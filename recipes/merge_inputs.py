"""Which checkpoints `tenfold merge` merges: found, ordered, thinned, and those of one run only."""

import glob
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ..modules.checkpoint_files import Checkpoint, find_format

RING = Path("merging") / "ring"
RING_MANIFEST = "ring.json"
_RANK_FILE = "rank_00000.safetensors"
_IN_FOLDER = ("step_*", "checkpoint-*")  # names of ours, and of transformers' Trainer
# Settings of a run that belong to one start of it.
_START_OPTIONS = ("run_dir", "ckpt_path", "init_from", "overwrite", "verbose", "weights_only")


def find_inputs(texts: Sequence[str]) -> list[Path]:
    """Resolves files, folders, run directories and patterns.

    Returns:
        Paths of checkpoints, in the order given.

    Raises:
        ValueError: Something is missing, no checkpoint, or given twice.
    """
    paths: list[Path] = []
    for text in texts:
        if Path(text).exists():
            paths += _expand(Path(text))
        elif glob.has_magic(text):
            root = Path(text).anchor
            found = sorted(Path(root).glob(text.removeprefix(root)))
            if not found:
                raise ValueError(f"nothing matches '{text}'")
            paths += [checkpoint for path in found for checkpoint in _expand(path)]
        else:
            raise ValueError(f"no file or folder '{text}'")
    seen: dict[Path, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.resolve(), path)) is not path:
            raise ValueError(f"{other} is given twice")
    return paths


def _expand(path: Path) -> list[Path]:
    """The checkpoints that one path stands for."""
    if path.is_file() and path.name != _RANK_FILE:
        return [path]
    if path.is_file():
        path = path.parent
    if (path / _RANK_FILE).is_file():
        if len(list(path.glob("rank_*.safetensors"))) > 1:
            raise ValueError(
                f"{path} is one snapshot in parts, one for each rank: merge it while training"
            )
        return [path / _RANK_FILE]
    if find_format(path) is not None:
        return [path]
    folders = [path / RING, path / "ring", path / "checkpoints", path]
    found = [_checkpoints_in(folder) for folder in folders]
    for enough in (2, 1):  # a ring that has just begun is no reason to leave the rest
        for checkpoints in found:
            if len(checkpoints) >= enough:
                return checkpoints
    raise ValueError(
        f"'{path}' is no checkpoint and no folder of step_*.ckpt: name files, or a pattern such as "
        f"'{path}/*.ckpt'"
    )


def _checkpoints_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    paths = sorted(child for pattern in _IN_FOLDER for child in folder.glob(pattern))
    if (manifest := folder.parent / RING_MANIFEST).is_file():
        # The callback keeps files for some time after their snapshots have left the ring.
        entries = json.loads(manifest.read_text(encoding="utf-8"))["entries"]
        names = {f"step_{entry['step']:08d}" for entry in entries}
        paths = [path for path in paths if path.name in names]
    for path in paths:
        is_named = path.suffix in (".ckpt", ".safetensors") or (path / _RANK_FILE).is_file()
        if is_named or (path.is_dir() and find_format(path) is not None):
            found += _expand(path)
    return found


def order_checkpoints(
    checkpoints: Sequence[Checkpoint], last: int | None, min_interval: int | None
) -> list[Checkpoint]:
    """Sorts by step, oldest first, and takes what is asked for.

    Args:
        checkpoints: In the order given, which stays where a step is not known.
        last: How many of the newest to take; None: all.
        min_interval: Least steps between two that are taken, counted back from the newest.

    Raises:
        ValueError: Too few are there or left, or two have the same step.
    """
    ordered = list(checkpoints)
    steps = known_steps(ordered)
    if steps is not None:
        ordered.sort(key=lambda checkpoint: checkpoint.step or 0)
        for one, other in pairwise(ordered):
            if one.step == other.step:
                raise ValueError(f"{one.path} and {other.path} have the same step {one.step}")
    if min_interval is not None:
        if steps is None:
            unknown = next(c.path for c in ordered if c.step is None)
            raise ValueError(f"--min-interval needs steps, and {unknown} has none")
        kept = [ordered.pop()]
        while ordered:
            candidate = ordered.pop()
            if (kept[-1].step or 0) - (candidate.step or 0) >= min_interval:
                kept.append(candidate)
        ordered = kept[::-1]
    if last is not None:
        if len(ordered) < last:
            raise ValueError(f"--last {last}: only {len(ordered)} checkpoints are there")
        ordered = ordered[-last:]
    return ordered


def known_steps(checkpoints: Sequence[Checkpoint]) -> list[int] | None:
    """The step of each, None where one is not known."""
    steps = [checkpoint.step for checkpoint in checkpoints if checkpoint.step is not None]
    return steps if len(steps) == len(checkpoints) else None


def is_irregular(steps: Sequence[int]) -> bool:
    """Whether intervals between steps differ."""
    return len({newer - older for older, newer in pairwise(steps)}) > 1


def refuse_different_runs(checkpoints: Sequence[Checkpoint]) -> None:
    """Compares what tells runs apart with the newest checkpoint's.

    That is the settings in the checkpoints, and the `config.yaml` of their run directories where
    they lie in different ones.

    Raises:
        ValueError: A setting differs.
    """
    newest = checkpoints[-1]
    for checkpoint in checkpoints[:-1]:
        _compare(checkpoint.settings, newest.settings, checkpoint.path, newest.path)
        mine, other = (_run_config(c.path) for c in (checkpoint, newest))
        if mine is not None and other is not None and mine != other:
            _compare(_load_config(mine), _load_config(other), mine, other)


def _run_config(path: Path) -> Path | None:
    """`config.yaml` of the run directory that a checkpoint lies in."""
    folder = path.resolve().parent
    for depth in (folder.parent, folder.parent.parent.parent):  # checkpoints/, merging/ring/step_/
        if (depth / "config.yaml").is_file() and folder.is_relative_to(depth):
            return depth / "config.yaml"
    return None


def _load_config(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: value for key, value in content.items() if key not in _START_OPTIONS}


def _compare(mine: Any, other: Any, path: Path, other_path: Path, key: str = "") -> None:
    if isinstance(mine, dict) and isinstance(other, dict):
        for name in sorted(mine.keys() | other.keys(), key=str):
            values = mine.get(name), other.get(name)
            _compare(*values, path, other_path, f"{key}.{name}".strip("."))
    elif repr(mine) != repr(other):
        raise ValueError(
            f"different runs: {key} is {_short(mine)} in {path}, {_short(other)} in {other_path}; "
            "pass --allow-different-runs to merge them all the same"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
