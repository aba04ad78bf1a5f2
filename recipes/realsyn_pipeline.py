"""`tenfold realsyn`: documents made image-text pairs, stage by stage, on one machine or many.

Imports torch only when the command runs.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from .arguments import Setting, read_arguments
from .classes import import_named
from .errors import OneLineErrors, note

if TYPE_CHECKING:
    from ..datamodules.realsyn.steps import Progress

Stage = Literal["extract", "filter", "cluster", "retrieve", "generate", "balance", "all"]
STAGES = ("extract", "filter", "cluster", "retrieve", "generate", "balance", "all")
USAGE = "tenfold realsyn STAGE --config RECIPE [--out DIR] [--executor ray] [--KEY VALUE ...]"
SECONDS_BETWEEN_LINES = 10.0


def realsyn(stage: Stage) -> None:
    """Turn interleaved documents into image-text pairs (`tenfold realsyn all --help`).

    `tenfold realsyn all --config realsyn/pipeline_quickstart`. A stage runs those before it that
    are not done; what is done stays done, whatever ends the command. Pairs, a report and the
    numbers of each stage are in the folder `out`. How many processes or machines work does not
    change a byte of what comes after the embeddings.

    Args:
        stage: extract, filter, cluster, retrieve, generate, balance, or all of them.
    """
    raise AssertionError("run_realsyn runs it: its options come from a recipe")


def run_realsyn(argv: list[str]) -> None:
    """Runs a stage.

    Args:
        argv: What follows `tenfold realsyn`.

    Raises:
        ValueError: There is no such stage, or a setting is wrong; one line with the fix.
    """
    stage, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    wants_help = any(argument in ("-h", "--help") for argument in rest)
    if stage not in STAGES and not wants_help:
        given = f"no stage {stage!r}" if stage else "which stage?"
        raise ValueError(f"realsyn: {given} Give one of {', '.join(STAGES)} ({USAGE})")
    arguments = read_arguments(rest)
    if not wants_help and arguments.recipe is None:
        raise ValueError(f"realsyn needs a recipe ({USAGE}); `tenfold list realsyn` shows them")
    import_named(arguments.names)

    from ..datamodules.realsyn import Settings
    from ..datamodules.realsyn.funnel import describe_funnel, list_problems
    from ..datamodules.realsyn.report import write_report
    from .realsyn_build import build_pipeline

    parser = _make_parser(arguments.settings)
    built = parser.instantiate(parser.parse_args(arguments.argv)).as_dict()
    chosen = {field.name: built.pop(field.name) for field in fields(Settings)}
    rest_of_them = {k: v for k, v in built.items() if k not in ("config", "base")}
    pipeline = build_pipeline(Settings(**chosen), **rest_of_them)
    start = time.monotonic()
    try:
        with _progress() as pipeline.progress:
            finished = pipeline.run("balance" if stage == "all" else stage)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on in {pipeline.out}") from None
    finally:
        pipeline.executor.close()
    page = write_report(pipeline.out, finished, pipeline.settings)
    for line in list_problems(finished):
        note(line)
    print(describe_funnel(finished))
    print(f"{pipeline.out}: {time.monotonic() - start:.0f} s; look at {page}")


def _make_parser(settings: list[Setting]) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    from ..datamodules.realsyn import Settings
    from .realsyn_build import build_pipeline

    bases = (OneLineErrors, ArgumentParser)
    parser_class: Any = type("PipelineParser", bases, {"settings": settings})
    parser = parser_class(prog="tenfold realsyn STAGE", allow_abbrev=False, usage=USAGE)
    parser.add_argument("--config", action=ActionConfigFile, help="Recipe, then its overlays.")
    parser.add_argument("--base", type=str | list[str] | None, help="Recipe(s) to build upon.")
    parser.add_function_arguments(build_pipeline, as_group=False, skip={"settings"})
    parser.add_class_arguments(Settings, as_group=False)
    return parser


@contextmanager
def _progress() -> Iterator["Progress"]:
    """Gives what shows how far a step is: a bar on a terminal, a line per step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        said: dict[str, float] = {}

        def say(name: str, done: int, total: int) -> None:
            now = time.monotonic()
            if done == total or now - said.get(name, 0.0) > SECONDS_BETWEEN_LINES:
                said[name] = now
                print(f"{name} {done}/{total}", file=sys.stderr, flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                for other in tasks.values():
                    bars.update(other, visible=False)
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show
