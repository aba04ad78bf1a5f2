"""The `tenfold` command.

Only the commands that train or evaluate import torch; all others answer in a fraction of a second.
"""

import inspect
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from .. import __version__
from ..callbacks.stop_signals import STOP_SIGNALS
from .anneal_predict import anneal_predict
from .arguments import read_arguments, split_arguments
from .catalogue import copy_recipe, list_recipes, show_recipe
from .classes import import_named
from .corrupt import corrupt
from .errors import OneLineErrors, find_user_error, note, one_line
from .export import export
from .failures import explain_failure
from .fit_law import fit_law
from .jobs import jobs
from .merge import merge
from .mucr_benchmark import mucr
from .pages import pages
from .realsyn_pipeline import realsyn, run_realsyn
from .runs import runs
from .scenes import scenes
from .score import score
from .show_program import show_program
from .study import study
from .submit import submit

VALUELESS_FLAGS = ("--help", "--version", "--config", "--print_config", "--model", "--data")
LISTS = {
    "fit-law": "runs",
    "merge": "inputs",
    "runs": "folders",
}  # arguments without a flag, before all options
SEVERAL = {
    "anneal-predict": ("--fit_prior", "--laws"),
    "corrupt": ("--corruptions", "--severities"),
    "runs": ("--metrics",),
}  # flags with several values
DESCRIPTION = "Lightning-based, modular training recipes."


def fit() -> None:
    """Train a recipe (options: `tenfold fit --help`)."""


def validate() -> None:
    """Evaluate on the validation data."""


def test() -> None:
    """Evaluate on the test data."""


def predict() -> None:
    """Write predictions."""


def check() -> None:
    """Build everything in a recipe and run one batch, without training."""


TRAINER_COMMANDS = {
    function.__name__: function for function in (fit, validate, test, predict, check)
}
COMMANDS: dict[str, Callable[..., None]] = {
    **TRAINER_COMMANDS,
    "list": list_recipes,
    "show": show_recipe,
    "copy": copy_recipe,
    "study": study,
    "submit": submit,
    "jobs": jobs,
    "runs": runs,
    "fit-law": fit_law,
    "merge": merge,
    "anneal-predict": anneal_predict,
    "export": export,
    "corrupt": corrupt,
    "scenes": scenes,
    "mucr": mucr,
    "pages": pages,
    "show-program": show_program,
    "realsyn": realsyn,
    "score": score,
}


class ToolParser(OneLineErrors, ArgumentParser):
    """Parser of the commands that are plain functions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after `tenfold`; None takes the process's.

    Returns:
        The exit status: 0; 2 for a user error and 1 for a failure around the run (one line on
        stderr); 130 after Ctrl-C, 143 and 138 after SIGTERM and SIGUSR1, when a run has saved. Any
        other error keeps its traceback; `--debug` keeps those of the first two as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = complete_flags([argument for argument in arguments if argument != "--debug"])
    try:
        if arguments and arguments[0] in TRAINER_COMMANDS:
            run_trainer_command(arguments[0], arguments[1:])
        elif arguments[:1] == ["realsyn"]:  # its options are those of a recipe
            run_realsyn(arguments[1:])
        else:
            run_tool_into_pipe(arguments)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}".rstrip(), file=sys.stderr)
        return 128 + (STOP_SIGNALS.caught or signal.SIGINT)
    except Exception as error:
        if debug:
            raise
        if failure := explain_failure(error):
            print(f"error: {failure}", file=sys.stderr)
            return 1
        user_error = find_user_error(error)
        if user_error is None:
            raise
        print(f"error: {one_line(user_error)}", file=sys.stderr)
        return 2
    return 0


def run_tool_into_pipe(argv: list[str]) -> None:
    """Runs a command that is a plain function; `tenfold list | head` is no error."""
    try:
        run_tool(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_tool(argv: list[str]) -> None:
    """Runs a command that is a plain function, its typed parameters being the options.

    By hand and not with jsonargparse's `auto_cli`, which takes `--config` for itself.
    """
    parser = ToolParser(prog="tenfold", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subcommands(metavar="command")
    for name, function in COMMANDS.items():
        text = inspect.getdoc(function) or ""
        command = ToolParser(description=text.split("\n\nArgs:")[0], allow_abbrev=False)
        command.add_function_arguments(function, as_group=False, as_positional=True)
        commands.add_subcommand(name, command, help=text.splitlines()[0])
    if argv and argv[0] in COMMANDS:
        ToolParser.options = [*inspect.signature(COMMANDS[argv[0]]).parameters]
    config = parser.parse_args(join_configs(argv))
    chosen = config.subcommand
    COMMANDS[chosen](**parser.instantiate(config)[chosen].as_dict())


def run_trainer_command(command: str, argv: list[str]) -> None:
    """Runs `fit`, `validate`, `test`, `predict` or `check`."""
    sys.path.insert(0, str(Path.cwd()))  # a recipe may name classes of the folder it is run in
    arguments = read_arguments(config_of_run(argv) + argv)
    if command == "fit":
        STOP_SIGNALS.catch(note)
    try:
        from .trainer_cli import run

        import_named(arguments.names)
        run(command, arguments)
    finally:
        STOP_SIGNALS.release()


def config_of_run(argv: list[str]) -> list[str]:
    """The config of the run that `--run_dir` names, when the user gives no other."""
    if any(argument.partition("=")[0] in ("--config", "-c") for argument in argv):
        return []
    for position, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        if flag == "--run_dir":
            config = Path(value or " ".join(argv[position + 1 : position + 2])) / "config.yaml"
            return ["--config", str(config)] if config.exists() else []
    return []


def complete_flags(argv: list[str]) -> list[str]:
    """Writes flags as the parsers read them: `--dry-run` becomes `--dry_run=true`."""
    complete = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=True):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            argument = "--" + flag[2:].replace("-", "_") + equals + value
            if not equals and following.startswith("--") and flag not in VALUELESS_FLAGS:
                argument += "=true"
        complete.append(argument)
    return complete


def join_configs(argv: list[str]) -> list[str]:
    """Makes lists of what is written as several arguments.

    The repeated `--config NAME` of `submit`, the values before all options of `LISTS`, and the
    flags of `SEVERAL`. `list METHOD` needs no flag.
    """
    command = argv[0] if argv else ""
    if command in LISTS:
        argv = [command, f"--{LISTS[command]}", *argv[1:]]
    for flag in (f"--{LISTS.get(command)}", *SEVERAL.get(command, ())):
        if flag in argv:
            at = argv.index(flag)
            values = list(itertools.takewhile(lambda a: not a.startswith("-"), argv[at + 1 :]))
            joined = [f"{flag}={json.dumps(values)}"] if values else []
            argv = [*argv[:at], *joined, *argv[at + 1 + len(values) :]]
    if argv[:1] == ["list"]:
        return ["list", *(f"--method={a}" if not a.startswith("-") else a for a in argv[1:])]
    if argv[:1] != ["submit"]:
        return argv
    configs, _, others = split_arguments(argv)
    return [*others, f"--config={json.dumps(configs)}"] if configs else others


if __name__ == "__main__":
    sys.exit(main())
