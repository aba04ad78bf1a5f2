"""What users meet beside results: errors of one line, notes; and facts about the process.

An error goes from a library's page of complaints to: what, where, what was expected, what to do.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from traceback import walk_tb
from typing import Any, ClassVar, NoReturn

from .arguments import Setting
from .classes import CLASSES

WIDTH = 300
TOP_LEVEL = [
    "model",
    "data",
    "trainer",
    "checkpoint",
    "seed_everything",
    "base",
    "run_dir",
    "ckpt_path",
    "init_from",
    "overwrite",
]


def find_user_error(error: BaseException) -> BaseException | None:
    """The error that this package raised on purpose, to tell users what they got wrong.

    By house rule such errors are ValueErrors (or OSErrors and ImportErrors with a message of
    their own) raised in our own code. One raised in a constructor arrives inside jsonargparse's
    own error, and is taken out of it. So does a package that Lightning misses. None for one raised
    elsewhere: a defect.
    """
    kinds = (ValueError, FileExistsError, FileNotFoundError, ImportError)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    origin = frames[-1].f_globals.get("__name__", "") if frames else ""
    if isinstance(error, kinds) and origin.startswith("tenfold."):
        return error
    if isinstance(error, ImportError) and str(error).startswith("Requirement "):
        return error
    if origin.startswith("jsonargparse.") and error.__cause__ is not None:
        return find_user_error(error.__cause__)
    return None


def nearest(name: str, names: Iterable[str], parent: str = "") -> str:
    """A hint for a wrong name: the near ones, else all of them; written with their `parent`."""
    full = {str(other): f"{parent}.{other}".strip(".") for other in names}
    near = difflib.get_close_matches(name, full, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(full[other] for other in near)}?"
    return f"there are {', '.join(full.values())}" if full else "there are none"


class OneLineErrors:
    """Mixin for jsonargparse parsers: an error is a ValueError of one line, not a page of usage.

    Attributes:
        settings: What the user gave, to name the line or flag at fault.
        options: The names without a dot that the command takes.
    """

    settings: ClassVar[list[Setting]] = []
    options: ClassVar[list[str]] = TOP_LEVEL

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the rewritten message; the parsers of nested classes report to the outermost."""
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]
        raise ValueError(explain_parser_error(message, self.settings, self.options)) from ex


def one_line(error: BaseException) -> str:
    """The message of an error on one line of bounded length."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return textwrap.shorten(text, WIDTH * 2, placeholder=" ...")


def explain_parser_error(message: str, settings: list[Setting], options: list[str]) -> str:
    """Rewrites one of jsonargparse's messages.

    Args:
        message: The message, up to ten lines for a wrong type inside a class.
        settings: What the user gave, in reading order.
        options: The names without a dot that the command takes.

    Returns:
        One line that begins with the file and line or the flag at fault where it is known.
    """
    keys = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        return _unknown_key(f"{keys}.{match[1]}", settings, options)
    if match := re.search(r"Subcommand '\w+' does not accept option '([^']+)'", message):
        return _unknown_key(match[1], settings, options)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown_key(match[1].removeprefix("--").partition("=")[0], settings, options)
    if match := re.search(r"arguments are required: (?:\w+\.)?(\S+)", message):
        missing = match[1].rstrip(",")
        return (
            f"nothing says which `{missing}` to use: give a recipe with --config "
            "(`tenfold list` shows them)"
        )
    if match := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(match[1], keys, settings)
    if match := re.search(r"Problem with given class_path '([^']+)':\s+(No module .*)", message):
        return f"{_at(keys, match[1], settings)}cannot import {match[1]}: {match[2]}"
    if match := re.search(
        r"Problem with given class_path '([^']+)':\s+(.*has no attribute.*)", message
    ):
        return f"{_at(keys, match[1], settings)}cannot import {match[1]}: {match[2]}"
    if match := re.search(r"Expected a (.+?)\. Got value: (.*)", message):
        return _wrong_type(keys, [match[1]], match[2].strip(), settings)
    bullets = re.findall(r"^\s*- Expected an? (.+?)\s*$", message, re.MULTILINE)
    value = re.search(r"Given value: (.*)", message)
    if bullets and value:
        return _wrong_type(keys, [b.partition(". Got")[0] for b in bullets], value[1], settings)
    return one_line(ValueError(_at(keys, None, settings) + message))


def dropped_settings(settings: Iterable[Setting], config: dict[str, Any]) -> list[str]:
    """Names what a user set and the parsed configuration no longer has.

    jsonargparse drops the arguments of a class silently when a later config or flag chooses
    another class.

    Args:
        settings: What the user gave.
        config: The parsed configuration, as nested dicts.
    """
    present = set(_keys(config))
    lost = {s.key: s for s in settings if s.key and "[" not in s.key and s.key not in present}
    ignored = ("base", "config", "print_config")
    return [
        f"{setting.where}: {key} = {setting.value} is ignored: a later setting chose another class"
        for key, setting in lost.items()
        if key.split(".")[0] in config and key.split(".")[0] not in ignored
    ]


def _keys(config: Any, key: str = "") -> Iterable[str]:
    yield key
    if isinstance(config, dict):
        for name, value in config.items():
            inner = key if name in ("class_path", "init_args") else f"{key}.{name}".strip(".")
            yield from _keys(value, inner)


def _find(key: str, value: str | None, settings: list[Setting]) -> Setting | None:
    """The last setting of `key`; else the last with the same final name and, if given, value."""
    last = key.rsplit(".", 1)[-1]
    exact = [s for s in settings if s.key == key]
    similar = [s for s in settings if re.sub(r"\[\d+\]$", "", s.key).rsplit(".", 1)[-1] == last]
    valued = [s for s in settings if value is not None and s.value == value]
    both = [s for s in exact + similar if s in valued]
    for candidates in (both, exact, similar, valued):
        if candidates:
            return candidates[-1]
    return None


def _at(key: str, value: str | None, settings: list[Setting]) -> str:
    setting = _find(key, value, settings)
    if setting is None:
        return f"{key}: " if key else ""
    if setting.where.startswith("--"):
        return f"{setting.where}: "
    return f"{setting.where}: {setting.key}: "


def _wrong_type(key: str, expected: list[str], value: str, settings: list[Setting]) -> str:
    if nested := re.match(r"NestedArg\(key='(.+)', val='(.*)'\)", value):
        key, value = f"{key}.{nested[1]}", nested[2]
    choices = [
        name for kind in expected for name in re.findall(r"'([^']*)'", kind) if "<" not in kind
    ]
    near = difflib.get_close_matches(value, choices, n=3, cutoff=0.5)
    names = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind) for kind in expected]
    names = ["null" if name == "NoneType" else name for name in names if "Literal" not in name]
    wanted = " or ".join(dict.fromkeys([*names, *choices]))
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    message = f"{_at(key, value, settings)}expected {wanted}, got {value!r}{hint}"
    return textwrap.shorten(message, WIDTH, placeholder=" ...")


def _unknown_class(name: str, key: str, settings: list[Setting]) -> str:
    near = difflib.get_close_matches(name, known_classes(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "give the full path, package.Class"
    return f"{_at(key, name, settings)}unknown class '{name}': {hint}"


def known_classes() -> dict[str, str]:
    """Class name -> module, for our own classes and the loaded ones that a recipe may name."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger

    found = dict(CLASSES)
    todo: list[type] = [Callback, LightningDataModule, LightningModule, Logger]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if not cls.__name__.startswith("_"):
            found.setdefault(cls.__name__, cls.__module__)
    return found


def _unknown_key(key: str, settings: list[Setting], options: list[str]) -> str:
    key = key.strip(".")
    setting = _find(key, None, settings)
    key = setting.key if setting else key
    if "." in key and key.split(".")[0] not in options:
        key = key.split(".")[0]
    parent, _, name = key.rpartition(".")
    accepted = _accepted_names(parent, settings) if parent else options
    hint = nearest(name, accepted, parent) if accepted else "`tenfold fit --help` lists the options"
    where = f"{setting.where}: " if setting else ""
    return textwrap.shorten(f"{where}unknown key '{key}': {hint}", WIDTH, placeholder=" ...")


def _accepted_names(parent: str, settings: list[Setting]) -> list[str]:
    """Names of the arguments that the class chosen at `parent` takes."""
    if parent == "trainer":
        from lightning.pytorch import Trainer

        return list(inspect.signature(Trainer.__init__).parameters)[1:]
    if parent == "checkpoint":
        from ..callbacks.checkpointing import RunCheckpoint

        return list(inspect.signature(RunCheckpoint.__init__).parameters)[1:]
    setting = _find(parent, None, [s for s in settings if s.key == parent])
    if setting is None:
        return []
    module, _, name = setting.value.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module or known_classes()[name]), name)
        return [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
    except (ImportError, AttributeError, KeyError):
        return []


def note(line: str) -> None:
    """Tells the user something that is not an error; on one process of a run only."""
    if rank_of_process() == 0:
        print(f"note: {line}", file=sys.stderr)


def rank_of_process() -> int:
    """The rank of this process, known before the Trainer exists: as Lightning reads it."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def num_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
