"""The YAML of a study, read and checked. Imports no torch.

A study is stages. A stage varies axes - its variants, its grid keys - and inherits the axes of the
stages it reads from.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from .arguments import read_yaml, refuse_secrets, render, settings_of_structure
from .catalogue import find_recipe
from .errors import nearest
from .study_formula import Formula, parse_formulas

COMMANDS = ("fit", "validate", "test", "predict")
ROW = "<row>"
RECORDS = "records"

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?")
# `${run_dir}` and `${recipes}` are no references: the run itself fills them in.
_REFERENCE = re.compile(r"\$\{(?!run_dir\}|recipes\})([^}]*)\}")


@dataclass(frozen=True)
class Reference:
    """What stands in `${train.checkpoint}`, `${train.run_dir}`, `${train.metrics.fit.val/loss}`."""

    text: str
    stage: str
    what: str
    section: str = ""
    metric: str = ""

    @staticmethod
    def parse(text: str) -> "Reference":
        """Reads what stands between the braces.

        Raises:
            ValueError: It is none of the three forms.
        """
        stage, what, section, metric = [*text.split(".", 3), "", "", ""][:4]
        plain = what in ("checkpoint", "run_dir") and not section
        if not plain and not (what == "metrics" and section and metric):
            raise ValueError(
                f"cannot read ${{{text}}}: write ${{STAGE.checkpoint}}, ${{STAGE.run_dir}} or "
                "${STAGE.metrics.COMMAND.NAME}"
            )
        return Reference(text, stage, what, section, metric)


@dataclass(frozen=True)
class Variant:
    """What one variant changes: overlays and settings over the stage's own, or another recipe."""

    config: tuple[str, ...] = ()
    set: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None


@dataclass(frozen=True)
class Stage:
    """One command on one recipe, repeated for each combination of its axes."""

    name: str
    recipe: str
    command: str = "fit"
    config: tuple[str, ...] = ()
    variants: dict[str, Variant] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)

    def references(self) -> list[Reference]:
        """Every reference in the settings of this stage and of its variants."""
        return references([self.set, *(variant.set for variant in self.variants.values())])


@dataclass(frozen=True)
class Table:
    """What is compared: rows, what they are repeated over, the reference row, the numbers.

    Attributes:
        rows: An axis or `<row>`. Where the file maps names to formulas: the axis of their variants.
        metrics: The numbers of each row; those that the formulas name.
        over: An axis, or `records`.
        against: The row that others are compared with.
        formulas: By the name of the row; empty where rows are no formulas.
    """

    rows: str
    metrics: tuple[str, ...]
    over: str | None = None
    against: str | None = None
    formulas: dict[str, Formula] = field(default_factory=dict)

    @property
    def axes(self) -> set[str]:
        """The axes that a stage needs for its numbers to stand in this table."""
        return {self.rows, self.over or ROW} - {ROW, RECORDS}


@dataclass(frozen=True)
class Axis:
    """One thing that varies: a grid key, or the variants of a stage (named `<stage>.variant`)."""

    name: str
    values: tuple[Any, ...]
    is_variant: bool

    @property
    def word(self) -> str:
        """The shortest name: the stage of a variant, the last part of a grid key."""
        return self.name.split(".")[0 if self.is_variant else -1]


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        config: What the user wrote after `--config`.
        path: The file it was read from.
        stages: In an order in which each comes after what it reads.
        axes: For each stage, by name, what it and the stages it reads from vary.
        table: None when the study only runs.
    """

    config: str
    path: Path
    stages: tuple[Stage, ...]
    axes: dict[str, dict[str, Axis]]
    table: Table | None

    @property
    def method(self) -> str:
        """The folder of the file, which names the method."""
        return self.path.resolve().parent.name

    @property
    def default_dir(self) -> Path:
        """`runs/<method>/studies/<study>`."""
        return Path("runs", self.method, "studies", self.path.stem)


@dataclass(frozen=True)
class _Content:
    """The keys of the file."""

    stages: list[Any]
    table: dict[str, Any] | None = None


def load_study(config: str) -> Study:
    """Reads and checks a study.

    Args:
        config: A path, or a built-in name such as `set_mixer/claim`.

    Raises:
        ValueError: There is no such file, or it says what cannot be run: what, where and the fix.
    """
    path = find_recipe(config)
    content = read_yaml(path)
    try:
        content = _mapping(_Content, content, "study")
        found = [
            _stage(item, f"stages[{position}]")
            for position, item in enumerate(_list(content["stages"], "stages"))
        ]
        stages = _sorted_stages(found)
        axes = _axes(stages)
        table = _table(content["table"], axes) if content.get("table") else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Study(config, path, stages, axes, table)


# Values and references


def references(value: Any) -> list[Reference]:
    """The references anywhere inside a value.

    Raises:
        ValueError: One is not closed, or says what there is not.
    """
    return [Reference.parse(text) for text in _reference_texts(value)]


def resolve(value: Any, look_up: Callable[[Reference], Any]) -> Any:
    """Replaces the references inside a value; one that is a whole string keeps its type."""
    if isinstance(value, dict):
        return {key: resolve(item, look_up) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, look_up) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return look_up(Reference.parse(whole[1]))
    return _REFERENCE.sub(lambda match: render(look_up(Reference.parse(match[1]))), value)


def _reference_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        found = _REFERENCE.findall(value)
        if len(found) != value.replace("${run_dir}", "").count("${"):
            raise ValueError(f"'{value}' opens a reference ${{...}} that it does not close")
        yield from found
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _reference_texts(item)


def dotted_settings(value: Any, where: str) -> dict[str, Any]:
    """Checks a mapping from dotted keys to values.

    Raises:
        ValueError: A key is not dotted, is one that the study itself sets, or names a secret.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping of dotted keys to values, found {value!r}")
    reserved = {
        "config": "overlays go under config:",
        "run_dir": "the study names run directories",
        "overwrite": "the study passes it",
    }
    for key in value:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"{where}: '{key}' is no dotted key such as model.init_args.width")
        if key in reserved:
            raise ValueError(f"{where}: '{key}' cannot be set: {reserved[key]}")
        refuse_secrets(settings_of_structure(where, key, render(value[key])))
    return value


# YAML


def _mapping(kind: Any, content: Any, where: str) -> dict[str, Any]:
    """Checks that a mapping has the fields of the dataclass `kind`: none unknown, none missing."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a mapping, found {content!r}")
    names = [item.name for item in fields(kind)]
    for key in content:
        if key not in names:
            raise ValueError(f"{where}: unknown key '{key}': {nearest(str(key), names)}")
    for item in fields(kind):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and content.get(item.name) is None:
            raise ValueError(f"{where}: '{item.name}' is missing")
    return content


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: expected a list with at least one item, found {value!r}")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: expected a list of names, found {value!r}")
    return tuple(value)


def _name(value: Any, where: str) -> str:
    """A name that is safe as a path."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        hint = "quote it (YAML reads on, off, yes and no as true and false)"
        raise ValueError(f"{where}: {value!r} is no name: {hint}")
    if not _NAME.fullmatch(str(value)):
        raise ValueError(f"{where}: name '{value}' may hold letters, digits and . _ + - only")
    return str(value)


def _refuse_equal(names: Iterable[str], where: str) -> None:
    """Some file systems do not tell case apart, so run directories would fall together."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise ValueError(f"{where}: '{seen[name.lower()]}' and '{name}' are the same name")
        seen[name.lower()] = name


# Stages


def _stage(content: Any, where: str) -> Stage:
    content = _mapping(Stage, content, where)
    name = _name(content["name"], f"{where}.name")
    where = f"stage '{name}'"
    if "." in name:
        raise ValueError(f"{where}: a stage name may hold no dot")
    command = content.get("command", "fit")
    if command not in COMMANDS:
        raise ValueError(f"{where}: command '{command}' is none of {', '.join(COMMANDS)}")
    stage = Stage(
        name=name,
        recipe=str(content["recipe"]),
        command=command,
        config=_strings(content.get("config") or [], f"{where}: config"),
        variants=_variants(content.get("variants") or {}, f"{where}: variants"),
        grid=_grid(content.get("grid") or {}, f"{where}: grid"),
        set=dotted_settings(content.get("set") or {}, f"{where}: set"),
    )
    for key in stage.grid:
        if key in stage.set or any(key in variant.set for variant in stage.variants.values()):
            raise ValueError(f"{where}: {key} is both in set and in grid: keep one")
    return stage


def _variants(content: Any, where: str) -> dict[str, Variant]:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a mapping of names to changes, found {content!r}")
    variants = {}
    for key, item in content.items():
        name = _name(key, where)
        here = f"{where}.{name}"
        item = _mapping(Variant, item or {}, here)
        variants[name] = Variant(
            config=_strings(item.get("config") or [], f"{here}.config"),
            set=dotted_settings(item.get("set") or {}, f"{here}.set"),
            recipe=str(item["recipe"]) if item.get("recipe") else None,
        )
    _refuse_equal((_name(key, where) for key in content), where)
    return variants


def _grid(content: Any, where: str) -> dict[str, tuple[Any, ...]]:
    grid = {}
    for key, values in dotted_settings(content, where).items():
        if "." not in key and key != "seed_everything":
            raise ValueError(
                f"{where}: '{key}' is neither a full dotted key such as model.init_args.width nor "
                "seed_everything; what else varies goes under variants"
            )
        grid[key] = tuple(_list(values, f"{where}.{key}"))
        if references(list(grid[key])):
            raise ValueError(f"{where}.{key}: references such as ${{...}} belong in set")
        _refuse_equal((render(value) for value in grid[key]), f"{where}.{key}")
    return grid


def _sorted_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Puts each stage behind those it reads, else in the order of the file."""
    _refuse_equal((stage.name for stage in stages), "stages")
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, Stage] = {}

    def visit(stage: Stage, path: tuple[str, ...]) -> None:
        if stage.name in path:
            raise ValueError(f"stages read from each other: {' -> '.join((*path, stage.name))}")
        for source in _sources(stage, by_name):
            if source.name not in done:
                visit(source, (*path, stage.name))
        done.setdefault(stage.name, stage)

    for stage in stages:
        visit(stage, ())
    return tuple(done.values())


def _sources(stage: Stage, by_name: dict[str, Stage]) -> Iterator[Stage]:
    """The stages that a stage reads from, each reference checked."""
    try:
        found = stage.references()
    except ValueError as error:
        raise ValueError(f"stage '{stage.name}': {error}") from error
    for reference in found:
        where = f"stage '{stage.name}': ${{{reference.text}}}"
        source = by_name.get(reference.stage)
        if source is None:
            hint = nearest(reference.stage, [name for name in by_name if name != stage.name])
            raise ValueError(f"{where}: no stage '{reference.stage}': {hint}")
        if reference.what == "checkpoint" and source.command != "fit":
            raise ValueError(f"{where}: '{source.name}' is a {source.command}: no checkpoint")
        if reference.what == "metrics" and reference.section not in (source.command, "run"):
            raise ValueError(f"{where}: '{source.name}' has metrics of {source.command} and run")
        yield source


def _axes(stages: Sequence[Stage]) -> dict[str, dict[str, Axis]]:
    """For each stage what varies: first in the stages it reads, then in itself."""
    axes: dict[str, dict[str, Axis]] = {}
    for stage in stages:
        found: dict[str, Axis] = {}
        inherited = [axis for ref in stage.references() for axis in axes[ref.stage].values()]
        own = [Axis(key, values, False) for key, values in stage.grid.items()]
        if stage.variants:
            own.insert(0, Axis(f"{stage.name}.variant", tuple(stage.variants), True))
        for axis in [*inherited, *own]:
            if found.setdefault(axis.name, axis) != axis:
                raise ValueError(
                    f"stage '{stage.name}': {axis.name} has other values in a stage it reads from "
                    f"({list(found[axis.name].values)} and {list(axis.values)}): make them equal"
                )
        axes[stage.name] = found
    return axes


# The table


@dataclass(frozen=True)
class _TableKeys:
    rows: Any
    metrics: Any
    over: Any = None
    against: Any = None


def _table(content: Any, axes: dict[str, dict[str, Axis]]) -> Table:
    formulas: dict[str, Formula] = {}
    if isinstance(content, dict) and isinstance(content.get("rows"), dict):
        content, formulas = _with_formulas(content, axes)
    content = _mapping(_TableKeys, content, "table")
    table = Table(
        rows=str(content["rows"]),
        metrics=_strings(content["metrics"], "table.metrics"),
        over=None if content.get("over") is None else str(content["over"]),
        against=None if content.get("against") is None else render(content["against"]),
        formulas=formulas,
    )
    known = {name: axis for found in axes.values() for name, axis in found.items()}
    if table.over is not None and table.over not in (RECORDS, *known):
        hint = nearest(table.over, known)
        raise ValueError(f"table.over: '{table.over}' is neither {RECORDS} nor an axis: {hint}")
    if table.rows == table.over:
        raise ValueError(f"table: rows and over are both {table.rows}; over is what rows repeat")
    if table.rows != ROW and table.rows not in known:
        hint = nearest(table.rows, known)
        raise ValueError(f"table.rows: '{table.rows}' is neither an axis nor {ROW}: {hint}")
    _check_metrics(table, axes)
    if table.rows != ROW and table.against is not None:
        own = [found[table.rows] for found in axes.values() if table.rows in found]
        rows = list(formulas) or [render(value) for axis in own for value in axis.values]
        if table.against not in rows:
            hint = nearest(table.against, dict.fromkeys(rows))
            raise ValueError(f"table.against: '{table.against}' is no row: {hint}")
        if formulas and not formulas[table.against].is_operand:
            raise ValueError(
                f"table.against: '{table.against}' is compared with zero: name a row that is one "
                "VARIANT:METRIC"
            )
    return table


def _with_formulas(
    content: dict[str, Any], axes: dict[str, dict[str, Axis]]
) -> tuple[dict[str, Any], dict[str, Formula]]:
    """Reads rows that are formulas; in the content, their axis and their metrics stand for them."""
    if content.get("metrics") is not None:
        raise ValueError("table.metrics: leave it out, rows that are formulas name their metrics")
    formulas = parse_formulas(content["rows"], "table.rows")
    operands = [operand for formula in formulas.values() for operand in formula.operands]
    axis = _axis_of(dict.fromkeys(operand.variant for operand in operands), axes)
    over, own = content.get("over"), axes[axis.word]
    if over not in (None, *own):
        hint = nearest(str(over), [name for name in own if name != axis.name])
        raise ValueError(f"table.over: '{over}' is no axis of stage '{axis.word}': {hint}")
    metrics = list(dict.fromkeys(operand.metric for operand in operands))
    return {**content, "rows": axis.name, "metrics": metrics}, formulas


def _axis_of(variants: Iterable[str], axes: dict[str, dict[str, Axis]]) -> Axis:
    """The variants of the one stage that has all of these."""
    every = [axis for name, found in axes.items() if (axis := found.get(f"{name}.variant"))]
    names = dict.fromkeys(value for axis in every for value in axis.values)
    for variant in variants:
        if variant not in names:
            raise ValueError(f"table.rows: no variant '{variant}': {nearest(variant, names)}")
    having = [axis for axis in every if set(variants) <= set(axis.values)]
    if len(having) != 1:
        stages = " and ".join(axis.word for axis in having or every)
        raise ValueError(
            f"table.rows: {', '.join(variants)} must be variants of exactly one stage; they are of "
            f"{stages}"
        )
    return having[0]


def _check_metrics(table: Table, axes: dict[str, dict[str, Axis]]) -> None:
    if not table.metrics:
        raise ValueError("table.metrics: expected at least one metric")
    usable = [stage for stage, found in axes.items() if table.axes <= set(found)]
    if not usable:
        raise ValueError(f"table: no stage varies both {' and '.join(sorted(table.axes))}")
    prefixed = table.rows == ROW and table.over != RECORDS
    for metric in table.metrics:
        where = f"table.metrics: '{metric}'"
        stage, colon, _ = metric.partition(":")
        if colon and stage not in usable:
            problem = "does not vary what the table needs" if stage in axes else "does not exist"
            raise ValueError(f"{where}: stage '{stage}' {problem}: {nearest(stage, usable)}")
        if prefixed and metric.count(ROW) != 1:
            raise ValueError(f"{where} needs {ROW} once, as in test/{ROW}/accuracy")
        if not prefixed and ROW in metric:
            raise ValueError(f'{where} needs rows: "{ROW}", and over other than {RECORDS}')
