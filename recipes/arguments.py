"""What a user typed and wrote in YAML, put in the order in which it has to be read.

Configs come first, then the choice of classes, then everything else: so flags win over YAML, and
`--model.x 0.4 --model Cls` means the same as the other order. Each setting remembers the line or
flag that it comes from, for messages. Imports no torch.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .catalogue import find_recipe

CLASS_CHOICES = ("--model", "--data")
SECRET_KEYS = re.compile(
    r"(^|[._])(api_?key|password|passwd|secret|(access|auth|api|bearer|hf)_token)$", re.IGNORECASE
)
PASSWORD_IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


@dataclass(frozen=True)
class Setting:
    """One value a user gave.

    Attributes:
        where: `file:line`, or the flag.
        key: Dotted key without `class_path` and `init_args`, such as `model.optimizer.lr`.
        value: The value as text (a class name for a key that chooses a class).
    """

    where: str
    key: str
    value: str


@dataclass
class Arguments:
    """A command line, ready for the parser.

    Attributes:
        argv: The arguments, configs as existing paths and bases before what builds on them.
        recipe: The first config as the user gave it, which names the run; None without one.
        settings: Every value in reading order; later ones win.
    """

    argv: list[str] = field(default_factory=list)
    recipe: Path | None = None
    settings: list[Setting] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Every value given: among them the class names."""
        return {setting.value for setting in self.settings}


def read_arguments(argv: list[str]) -> Arguments:
    """Resolves recipe names, expands bases and orders the arguments.

    Args:
        argv: What follows the command, such as `["--config", "language_model/quickstart"]`.

    Raises:
        ValueError: A recipe does not exist or is no YAML mapping, bases form a circle, or an
            overlay comes before its recipe.
    """
    configs, choices, others = split_arguments(argv)
    result = Arguments()
    overlay: Path | None = None
    for given in configs:
        path = find_recipe(given)
        chain = list(_with_bases(path, ()))
        if "stages" in chain[-1][1]:
            raise ValueError(f"{path} is a study: run it with `tenfold study --config {given}`")
        if any(_chooses_model(content) for _, content in chain):
            if overlay is not None:
                raise ValueError(
                    f"{overlay} comes before the recipe {path}, which would undo it: "
                    "give the recipe first, then its overlays"
                )
        else:
            overlay = overlay or path
        result.recipe = result.recipe or path
        for file, _ in chain:
            result.argv += ["--config", str(file)]
            result.settings += _settings_of_file(file)
    result.argv += choices + others
    result.settings += _settings_of_flags(choices + others)
    refuse_secrets(result.settings)
    return result


def refuse_secrets(settings: Iterable[Setting]) -> None:
    """Keeps secrets out of the files that configurations are written to.

    Raises:
        ValueError: A key is named as secrets are, or an address has a password; its value is not
            repeated.
    """
    for setting in settings:
        is_named_so = SECRET_KEYS.search(setting.key) and setting.value not in ("", "null")
        if is_named_so or PASSWORD_IN_ADDRESS.search(setting.value):
            is_flag = setting.where.startswith("--")
            raise ValueError(
                f"{setting.where if is_flag else f'{setting.where}: {setting.key}'}: a secret must "
                "not stand in a configuration, which is kept in config.yaml: set the environment "
                "variable that its client reads (OPENAI_API_KEY, HF_TOKEN, ...)"
            )


def split_arguments(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Sorts arguments into the values of `--config`, the choices of classes, and the rest."""
    configs: list[str] = []
    choices: list[str] = []
    others: list[str] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c", *CLASS_CHOICES):
            if not equals:
                value = next(rest, "")
            if not value:
                raise ValueError(f"{flag} needs a value")
            if flag in CLASS_CHOICES:
                choices += [flag, value]
            else:
                configs.append(value)
        else:
            others.append(argument)
    return configs, choices, others


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number and a repeated key an error, unlike in plain PyYAML."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a repeated key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"'{key.value}' is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: The file is no YAML, repeats a key, or is not a mapping; gives the line.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def render(value: Any) -> str:
    """A setting as text that jsonargparse reads back: strings as they are, all else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return f"{'-' if value < 0 else ''}.{abs(value)}"
    return json.dumps(value, default=str, ensure_ascii=False, sort_keys=True)


def _with_bases(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the recipe and what it builds upon (`base: NAME` or a list of names), bases first."""
    if path in above:
        raise ValueError(f"{path}: its `base` leads back to itself")
    content = read_yaml(path)
    bases = content.get("base") or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _with_bases(_find_base(base, path), (*above, path))
    yield path, content


def _chooses_model(content: dict[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _find_base(base: str, path: Path) -> Path:
    beside = path.parent / base
    try:
        return beside if beside.is_file() else find_recipe(base)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error


def _settings_of_file(path: Path) -> Iterator[Setting]:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert node is not None  # read_yaml has found a mapping
    for key, leaf in _leaves(node, ""):
        yield Setting(f"{path}:{leaf.start_mark.line + 1}", key, leaf.value)


def _leaves(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Yields the dotted key and the node of every value in a tree."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            part = name.value.removesuffix("+")
            inner = key if part in ("class_path", "init_args") else f"{key}.{part}".strip(".")
            yield from _leaves(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield from _leaves(value, f"{key}[{position}]")
    elif isinstance(node, yaml.ScalarNode):
        yield key, node


def _settings_of_flags(flags: list[str]) -> Iterator[Setting]:
    rest = iter(flags)
    for flag in rest:
        if not flag.startswith("--"):
            continue
        name, equals, value = flag.partition("=")
        if not equals:
            value = next(rest, "")
        parts = name.removeprefix("--").removesuffix("+").split(".")
        key = ".".join(part for part in parts if part not in ("class_path", "init_args"))
        if value[:1] in ("{", "["):
            yield from settings_of_structure(name, key, value)
        else:
            yield Setting(name, key, value)


def settings_of_structure(where: str, key: str, text: str) -> Iterator[Setting]:
    """Yields the values inside a mapping or list; the text itself when it is neither.

    Args:
        where: Line or flag that gives it.
        key: Dotted key that it is given to.
        text: YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if node is None:
        yield Setting(where, key, text)
        return
    for inner, leaf in _leaves(node, key):
        yield Setting(where, inner, leaf.value)
