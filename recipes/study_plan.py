"""The runs of a study: what each is called, where it writes, and which command starts it.

Also whether what is on disk is still that run. Starts nothing, imports no torch.

Whatever runs a study - this machine, a job array - takes its runs from `plan_runs`.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..modules.files import write_json
from .arguments import read_arguments, read_yaml, render
from .errors import nearest
from .study_file import (
    Reference,
    Stage,
    Study,
    Variant,
    dotted_settings,
    references,
    resolve,
)

TEST_FOLLOWS = re.compile(r"^test_after_fit: true$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Run:
    """One process of a study.

    Attributes:
        id: `<stage>/<name>`, readable and safe as a path.
        stage: The stage it belongs to.
        coordinates: Its value on each axis of its stage.
        configs: Recipe and overlays in order, each with a digest of its content and its bases'.
        settings: Dotted key -> value; references are not resolved.
        sources: Stage name -> the run of that stage which the settings refer to.
        base: The run whose checkpoint is loaded, when the configs name no model: its config.yaml
            comes before them, so that the model is the trained one.
        model: The class of the model, as far as the configs name one.
        data: All that configs and settings say about data; equal for equal data.
        run_dir: Where the process writes.
    """

    id: str
    stage: Stage
    coordinates: dict[str, Any]
    configs: dict[str, str]
    settings: dict[str, Any]
    sources: dict[str, "Run"]
    base: "Run | None"
    model: str | None
    data: str
    run_dir: Path

    @property
    def log(self) -> Path:
        """What the process printed, all attempts one after the other."""
        return self.run_dir.with_name(f"{self.run_dir.name}.log")

    @property
    def finished(self) -> bool:
        """Whether `metrics.json` has this command, and the test where one follows a fit."""
        found = self.metrics()
        if self.stage.command != "fit" or "fit" not in found or "test" in found:
            return self.stage.command in found
        config = self.run_dir / "config.yaml"
        return not (config.is_file() and TEST_FOLLOWS.search(config.read_text(encoding="utf-8")))

    def measured(self) -> dict[str, Any]:
        """What the command has measured, and the test after a fit; empty until there is something.

        Raises:
            ValueError: `metrics.json` is no JSON.
        """
        found = self.metrics()
        tested = found.get("test", {}) if self.stage.command == "fit" else {}
        return tested | found.get(self.stage.command, {})

    def metrics(self) -> dict[str, dict[str, Any]]:
        """`metrics.json` of the run directory, empty while there is none.

        Raises:
            ValueError: The file is no JSON.
        """
        path = self.run_dir / "metrics.json"
        if not path.is_file():
            return {}
        try:
            content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path}: no JSON ({error}): delete it to run {self.id} again"
            ) from error
        return content

    def checkpoint(self) -> Path:
        """The best checkpoint where the fit has recorded one, else the last.

        Raises:
            ValueError: It is not there.
        """
        best = self.metrics().get("fit", {}).get("best_checkpoint")
        path = self.run_dir / (best or "checkpoints/last.ckpt")
        if not path.exists():
            raise ValueError(f"{self.id} has left no checkpoint at {path}")
        return path

    def definition(self) -> dict[str, Any]:
        """All that decides what the run computes; results of two definitions must not be mixed."""
        sources = {
            stage: f"{run.id} {_digest(run.definition())}" for stage, run in self.sources.items()
        }
        settings = json.loads(json.dumps(self.settings, default=str))
        return {
            "command": self.stage.command,
            "configs": [[name, digest] for name, digest in self.configs.items()],
            "settings": settings,
            "sources": sources,
        }

    def arguments(self, *, resolved: bool) -> list[str]:
        """The command line after `tenfold`.

        Args:
            resolved: Replace references by what the runs they name have left behind.

        Raises:
            ValueError: One of these has not left what is referred to.
        """
        settings = resolve(self.settings, self._look_up) if resolved else self.settings
        names = [str(self.base.run_dir / "config.yaml")] if self.base else []
        configs = (word for name in [*names, *self.configs] for word in ("--config", name))
        goes_on = self.stage.command == "fit" and "ckpt_path" not in settings
        return [
            self.stage.command,
            *configs,
            *("--run_dir", str(self.run_dir)),
            "--overwrite=true",  # the remains of an attempt that failed before its first checkpoint
            *(("--ckpt_path", "auto") if goes_on else ()),
            *(f"--{key}={render(value)}" for key, value in settings.items()),
        ]

    def _look_up(self, reference: Reference) -> Any:
        source = self.sources[reference.stage]
        if reference.what == "run_dir":
            return str(source.run_dir)
        if reference.what == "checkpoint":
            return str(source.checkpoint())
        section = source.metrics().get(reference.section, {})
        if section.get(reference.metric) is None:
            hint = nearest(reference.metric, section)
            raise ValueError(f"{source.id} has measured no {reference.metric}: {hint}")
        return section[reference.metric]


def plan_runs(
    study: Study, study_dir: Path, override: Mapping[str, Any] | None = None
) -> list[Run]:
    """Expands a study into runs, each after those it reads.

    The order is that of the file, the last axis fastest, whatever has already run: element k of a
    job array is run k.

    Args:
        study: From `load_study`.
        study_dir: Run directories are `<study_dir>/<stage>/<name>`.
        override: Dotted key -> value for every run, over all that the study sets.

    Raises:
        ValueError: A recipe or an overlay is missing, or `override` sets what a grid varies.
    """
    override = dotted_settings(dict(override or {}), "override")
    if references(override):
        raise ValueError("override: references such as ${...} belong in the study")
    contents = {name: _config_content(name) for name in _config_names(study)}
    runs: dict[str, Run] = {}
    for stage in study.stages:
        if varied := [key for key in override if key in stage.grid]:
            raise ValueError(f"override: stage '{stage.name}' varies {varied[0]} in its grid")
        axes = study.axes[stage.name]
        for values in itertools.product(*(axis.values for axis in axes.values())):
            coordinates = dict(zip(axes, values, strict=True))
            run_id = _run_id(study, stage.name, coordinates)
            variant = stage.variants.get(coordinates.get(f"{stage.name}.variant", ""), Variant())
            grid = {key: coordinates[key] for key in stage.grid}
            settings = {**stage.set, **variant.set, **grid, **override}
            read = dict.fromkeys(reference.stage for reference in references(settings))
            sources = {name: runs[_run_id(study, name, coordinates)] for name in read}
            names = [variant.recipe or stage.recipe, *stage.config, *variant.config]
            if len(set(names)) < len(names):
                raise ValueError(f"{run_id}: a config is given twice: {', '.join(names)}")
            parts = [part for name in names for part in contents[name]]
            base, model = _model(run_id, parts, settings, sources)
            runs[run_id] = Run(
                id=run_id,
                stage=stage,
                coordinates=coordinates,
                configs={name: _digest(contents[name]) for name in names},
                settings=settings,
                sources=sources,
                base=base,
                model=model,
                data=_data(parts, settings, base),
                run_dir=study_dir / run_id,
            )
    return list(runs.values())


def select_runs(runs: Sequence[Run], only: str | None) -> list[Run]:
    """The runs that match one of the patterns, and those they read from, in the order of `runs`.

    Args:
        runs: All runs of a study.
        only: Patterns separated by commas: a stage, or a run id, with `*`; None for all runs.

    Raises:
        ValueError: A pattern matches nothing.
    """
    if only is None:
        return list(runs)
    wanted: set[str] = set()
    for pattern in (part.strip() for part in only.split(",")):
        found = [run for run in runs if pattern == run.stage.name or fnmatchcase(run.id, pattern)]
        if not found:
            names = [*dict.fromkeys(run.stage.name for run in runs), *(run.id for run in runs)]
            raise ValueError(f"only: no run matches '{pattern}': {nearest(pattern, names)}")
        for run in found:
            wanted.update(_with_sources(run))
    return [run for run in runs if run.id in wanted]


def _with_sources(run: Run) -> Iterator[str]:
    yield run.id
    for source in run.sources.values():
        yield from _with_sources(source)


# Names and contents


def _run_id(study: Study, stage: str, coordinates: Mapping[str, Any]) -> str:
    """`train/max-seed_everything=0`.

    Different for different coordinates: within a stage the words are the same, and no value holds
    an equals sign (see `_slug`).
    """
    axes = study.axes[stage]
    words = [axis.word for axis in axes.values()]
    plain_variant = sum(axis.is_variant for axis in axes.values()) == 1
    parts = []
    for name, axis in axes.items():
        word = axis.word if words.count(axis.word) == 1 else name
        value = _slug(coordinates[name])
        parts.append(value if axis.is_variant and plain_variant else f"{word}={value}")
    text = "-".join(parts) or "run"
    return f"{stage}/{text if len(text) <= 180 else f'{text[:160]}~{_digest(text)[:8]}'}"


def _slug(value: Any) -> str:
    """A value as part of a file name; one that has to be changed gets a digest of the original."""
    text = render(value)
    if re.fullmatch(r"[\w.+-]{1,60}", text, re.ASCII) and not text.endswith(".log"):
        return text
    if isinstance(value, dict) and "class_path" in value:
        text = str(value["class_path"]).split(".")[-1]
    return re.sub(r"[^A-Za-z0-9.+]+", "_", text)[:40].strip("_") + f"~{_digest(value)[:8]}"


def _config_names(study: Study) -> dict[str, None]:
    names: list[str] = []
    for stage in study.stages:
        names += [stage.recipe, *stage.config]
        for variant in stage.variants.values():
            names += [*([variant.recipe] if variant.recipe else []), *variant.config]
    return dict.fromkeys(names)


def _config_content(name: str) -> list[Any]:
    """A recipe or an overlay, after the bases it builds upon."""
    files = [word for word in read_arguments(["--config", name]).argv if word != "--config"]
    return [read_yaml(Path(file)) for file in files]


def _model(
    run_id: str, parts: Sequence[Any], settings: Mapping[str, Any], sources: Mapping[str, Run]
) -> tuple[Run | None, str | None]:
    """Where the model of a run comes from: a trained run, or a class that its own configs name.

    Raises:
        ValueError: It loads a checkpoint of that class into a model with other settings.
    """
    loaded = [
        sources[reference.stage]
        for key in ("ckpt_path", "init_from")
        for reference in references(settings.get(key))
        if reference.what == "checkpoint"
    ]
    named = [part["model"] for part in parts if part.get("model")]
    if not named and "model" not in settings:
        return (loaded[0], loaded[0].model) if loaded else (None, None)
    classes = [
        model["class_path"] for model in named if isinstance(model, dict) and "class_path" in model
    ]
    model = classes[-1] if classes else None
    for source in loaded:
        for key, value in source.settings.items():
            if source.model == model and key.startswith("model.") and settings.get(key) != value:
                raise ValueError(
                    f"{run_id} loads a checkpoint of {source.id}, which was trained with "
                    f"{key} = {render(value)}, into the model of its own recipe: leave `model` out "
                    "of that recipe, and it is the trained one"
                )
    return None, model


def _data(parts: Sequence[Any], settings: Mapping[str, Any], base: Run | None) -> str:
    sections = [part["data"] for part in parts if part.get("data")]
    keys = {key: value for key, value in settings.items() if key.split(".")[0] == "data"}
    return _digest([base.data if base else "", sections, keys])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# What is on disk


def check_data(runs: Sequence[Run]) -> None:
    """Refuses results of different corpora where the study means one.

    Runs of one stage that say the same about data have the same `run.data_hash` in metrics.json.

    Raises:
        ValueError: Two differ; names both runs and hashes.
    """
    seen: dict[tuple[str, str], tuple[Run, Any]] = {}
    for run in runs:
        metrics = run.metrics()
        found = metrics.get("run", {}).get("data_hash")
        if run.stage.command not in metrics or found is None:
            continue
        first, expected = seen.setdefault((run.stage.name, run.data), (run, found))
        if found != expected:
            raise ValueError(
                f"{first.id} and {run.id} have read different data (data_hash {expected} and "
                f"{found}) though they ask for the same: delete the run directories made with the "
                "other data, or use a new --study_dir"
            )


def stale_runs(runs: Sequence[Run], study_dir: Path) -> dict[str, str]:
    """The runs that were started with another definition than they have now, and what differs."""
    stored = _stored_runs(study_dir)
    stale = {}
    for run in runs:
        if not run.run_dir.exists():
            continue
        before, now = stored.get(run.id, {}).get("definition"), run.definition()
        if before is None:
            stale[run.id] = "plan.json does not have it"
        elif before != now:
            stale[run.id] = _what_differs(before, now)
    return stale


def _what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    part = next(key for key in now if before.get(key) != now[key])
    if part == "command":
        return f"its command was {before[part]} and is {now[part]}"
    old, new = dict(before[part]), dict(now[part])
    missing = "not set"
    key = next(
        (key for key in {**old, **new} if old.get(key, missing) != new.get(key, missing)), ""
    )
    if part == "settings":
        return f"{key} was {render(old.get(key, missing))} and is {render(new.get(key, missing))}"
    if part == "sources":
        return f"what it reads from stage '{key}' has changed"
    if list(old) == list(new):
        return f"the content of config {key} has changed"
    return f"its configs were {', '.join(old)} and are {', '.join(new)}"


def save_plan(study: Study, runs: Sequence[Run], study_dir: Path) -> None:
    """Writes plan.json: the runs of the study, and former ones that still have a directory."""
    plan = {
        run.id: {"arguments": run.arguments(resolved=False), "definition": run.definition()}
        for run in runs
    }
    for run_id, entry in _stored_runs(study_dir).items():
        if (study_dir / run_id).exists():
            plan.setdefault(run_id, entry)
    write_json(study_dir / "plan.json", {"study": study.config, "runs": plan})


def _stored_runs(study_dir: Path) -> dict[str, Any]:
    path = study_dir / "plan.json"
    if not path.is_file():
        return {}
    runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return runs
