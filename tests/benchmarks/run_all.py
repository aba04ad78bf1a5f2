"""Runs the benchmarks one after another and writes what they report as one table, RESULTS.md.

    make bench                                                     all of them
    python tests/benchmarks/run_all.py --only "[qat_step]"         some, the table on the terminal
    python tests/benchmarks/run_all.py --only "[qat_step]" --out FILE.md

RESULTS.md always holds one run of all benchmarks on one machine: with `--only` it is never written,
for rows of other runs would stand in it beside those of this one. A benchmark that fails is a row
that says so, and makes the exit status 1. A target that is missed is a "no" in the table alone.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from jsonargparse import auto_cli
from report import Ratio
from tenfold.modules.files import atomic_write

# Scripts of this folder with options. Default options, but where all together would take more than
# half an hour on two idle cores.
COMMANDS = (
    "start_up.py",
    "fake_quant.py",
    "int4_linear.py",
    "qat_step.py",
    "lightning_overhead.py",
    "merge.py --rounds 3",  # without mergekit, which needs a virtual environment of its own
    "point_ops.py",
    "point_cloud_training.py",
    "corruptions.py",
    "polygon_raster.py",
    "art2prog.py",
    "deepicon.py",
    "vision_language_step.py",
    "perception_magnifier.py",
    "reasoning.py",
    "mucr.py",
    "ctrl_cic.py",
    "realsyn_pipeline.py",
    "realsyn_retrieval.py --number 250000 --centres 500",  # a quarter of vectors and centres
    "realsyn_training.py --images 1000 --repeats 3",
)
LEFT_OUT = {
    "annealing_law.py": "a study of accuracy: its numbers do not depend on the machine",
    "scale_out.py": "seconds and bytes of one rank, multiplied to a plan: no ratios",
}
FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RESULTS = "RESULTS.md"
PACKAGES = ("torch", "lightning", "transformers", "triton")
TEXT = """\
# Measured ratios

Written by `run_all.py` (`make bench`), nothing by hand. The scripts are in `tests/benchmarks`; they
or the READMEs of `recipes` state the targets, and no target is given where neither states one.

- Machine: {machine}
- Versions: {versions}
- Load average of one minute: {before:.2f} before, {after:.2f} after
{warning}
| benchmark | ratio | measured | target | held |
|---|---|--:|---|---|
{table}
"""
WARNING = """
**Warning: other programs were running when this began. Do not rely on the times.**
"""


def run(command: str) -> tuple[list[Ratio], str]:
    """Runs a benchmark in a process of its own.

    Args:
        command: Name of a script of `FOLDER`, with options.

    Returns:
        What it reported, and why it failed: "" if it did not.
    """
    name, *options = shlex.split(command)
    done = subprocess.run(
        [sys.executable, FOLDER / name, *options], capture_output=True, text=True, errors="replace"
    )
    ratios = [found for line in done.stdout.splitlines() if (found := Ratio.parse(line))]
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return ratios, f"failed with status {done.returncode}: {last}"
    return ratios, "" if ratios else "reported no ratio"


def rows(command: str, ratios: list[Ratio], failure: str) -> list[str]:
    """Returns a benchmark's rows of the table."""
    words = {True: "yes", False: "no", None: ""}
    cells = [(each.name, f"{each.value:.4g}", each.target, words[each.held]) for each in ratios]
    if failure:
        cells.append((f"**{failure.replace('|', '/')}**", "", "", ""))
    return [f"| `{command}` | {' | '.join(row)} |" for row in cells]


def processor() -> str:
    """Returns the model's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def machine() -> str:
    """Returns what the times depend on beside the code."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {gpu}"


def versions() -> str:
    """Returns the versions of Python and of the packages that do the work."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def revision() -> str:
    """Returns the commit, and whether files differ from it; results of earlier runs may."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", ROOT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changes = git("status", "--porcelain", "--", ".", f":(exclude)tests/benchmarks/{RESULTS}")
    return git("rev-parse", "--short=12", "HEAD") + (" + changes" if changes else "")


def main(only: list[str] | None = None, out: Path | None = None) -> int:
    """Runs the benchmarks and writes the table.

    Args:
        only: Names of scripts; None: all.
        out: File to write; None: RESULTS.md, or the terminal when there are names in `only`.

    Returns:
        The exit status: 1 if a benchmark failed.
    """
    names = [command.split()[0].removesuffix(".py") for command in COMMANDS]
    if unknown := set(only or ()) - set(names):
        raise SystemExit(f"error: no benchmark {', '.join(sorted(unknown))}: {', '.join(names)}")
    results = FOLDER / RESULTS
    if only is None:
        out = out or results
    elif out is not None and out.resolve() == results:
        raise SystemExit(f"error: {RESULTS} holds all benchmarks: give --only another --out")
    code, load = revision(), os.getloadavg()[0]
    chosen = [c for c, name in zip(COMMANDS, names, strict=True) if only is None or name in only]
    table, failed = [], False
    for number, command in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {command} ...", end=" ", file=sys.stderr, flush=True)
        began = time.perf_counter()
        ratios, failure = run(command)
        print(f"{time.perf_counter() - began:.0f} s {failure}".rstrip(), file=sys.stderr)
        table += rows(command, ratios, failure)
        failed |= bool(failure)
    text = TEXT.format(
        machine=machine(),
        versions=f"{versions()}, tenfold {code}",
        before=load,
        after=os.getloadavg()[0],
        warning=WARNING if load > 0.5 else "",
        table="\n".join(table),
    )
    if out is None:
        print(text)
    else:
        with atomic_write(out, "w") as file:
            file.write(text)
        print(f"written: {out}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
