"""Every command that a README shows is accepted by the program it names.

Most of them take hours, GPUs or data that must be fetched. So a command of ours is

- run, when it answers at once (`list`, `show`, `copy`, `jobs`, `--dry-run`, predictions of a law);
- read up to its recipe, when it gives no more: `test_builtin_recipes.py` builds every recipe;
- else read by its own parser, with the recipe, its bases and overlays, every class and key, and
  stopped before anything is built. Of a study or a job, the YAML is read too;
  `test_builtin_recipes.py` plans every study.

Other programs are checked in `check`, or are named in `UNCHECKED` with the reason.
"""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jsonargparse
import pytest
import tenfold as package
from lightning.pytorch.cli import LightningCLI
from tenfold.recipes.arguments import read_arguments
from tenfold.recipes.catalogue import RECIPES, find_recipe, recipe_names
from tenfold.recipes.cli import COMMANDS, TRAINER_COMMANDS, main
from tenfold.recipes.study_file import load_study
from tenfold.recipes.trainer_cli import RecipeCLI

ROOT = Path(package.__file__).parent
READMES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(RECIPES.glob("*/README.md")))
}

# Beginnings of commands that nothing can check without a network or another program.
UNCHECKED = {
    "source .venv/bin/activate": "a command of the shell; `make quickstart` sets the folder up",
    "pip install pyautotrace": "a package of others, to be fetched",
    "apt-get download sweethome3d-furniture": "a package of Debian, to be fetched",
    "dpkg-deb -x sweethome3d-furniture_*.deb": "unpacks what the command before it fetched",
    "img2dataset": "a program of others, which fetches 15M images",
}

# Commands that run offline in less than a minute, and that no other test runs as they stand.
SHORT = {"fit-law recipes/qat_scaling/results/runs.csv": "results", "scenes": "data/tinypope"}

# What READMEs call files of the user's: the recipe that stands for each.
USER_FILES = {
    "my.yaml": "language_model/quickstart",
    "my_study.yaml": "language_model/claim",
    "other.yaml": "qat_scaling/claim",
    "overlays/NAME": "overlays/bf16",
}
OWN_RECIPE = "digits.yaml"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(tenfold|make|sh|python|pip)\s+\S|tests/benchmarks/\S+\s")
METHODS = "|".join(sorted({name.split("/")[0] for name in recipe_names()}))
RECIPE = re.compile(rf"(?<![\w/.-])(?:{METHODS})/[a-z]\w*(?:\.\w+)?(?![\w/])")
PATH = re.compile(r"(?<![\w/.-])(?:recipes|callbacks|datamodules|modules|kernels|tests)/[\w./-]*\w")

IS_RUN = {"list", "show", "copy", "jobs"}
PLANS = {"study", "submit"}
PARSED = "parsed"


@dataclass(frozen=True)
class Command:
    """A command as a README shows it.

    Attributes:
        place: `README:line`.
        words: The program and its arguments.
        line: The whole line of the shell, which may hold several commands.
        runs: The files `RUN/config.yaml` that it reads, each with the recipe of that run.
        is_mention: Whether it stands in a sentence, where it may be a part.
    """

    place: str
    words: tuple[str, ...]
    line: str
    runs: tuple[tuple[str, str], ...] = ()
    is_mention: bool = False


def split(line: str) -> list[tuple[str, ...]]:
    """The commands of a line of the shell, without its comment."""
    tokens = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    tokens.whitespace_split = True
    commands: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set("&|;"):
            commands.append([])
        else:
            commands[-1].append(token)
    return [tuple(words) for words in commands if words]


def values(words: tuple[str, ...], *flags: str) -> list[str]:
    """What follows any of the flags."""
    return [value for flag, value in pairwise(words) if flag in flags]


def fence_commands(readme: str, number: int, text: str) -> Iterator[Command]:
    """The commands of a fence whose first line has this number.

    A run that they speak of is one of the recipe that another command of the fence trains with this
    `--run_dir`, else of the fence's first recipe.
    """
    recipes: list[str] = []
    named: dict[str, str] = {}
    for match in re.finditer(r"(?:.*\\\n)*.+", text):
        line = match[0].replace("\\\n", " ")
        place = f"{readme}:{number + text[: match.start()].count(chr(10))}"
        for words in split(line):
            configs = values(words, "--config")
            reads = configs or [f"{run}/config.yaml" for run in values(words, "--run_dir")]
            reads = [name for name in reads if name.endswith("/config.yaml")]
            recipes += [name for name in configs if name not in reads]
            if "fit" in words[:2]:
                named |= {f"{run}/config.yaml": configs[0] for run in values(words, "--run_dir")}
            yield Command(place, words, line, tuple((n, named.get(n, recipes[0])) for n in reads))


def all_commands() -> Iterator[Command]:
    """The commands of all READMEs: in fences for a shell, and in sentences."""
    for readme, text in READMES.items():
        for match in FENCE.finditer(text):
            if match[1] == "bash":
                number = text[: match.start(2)].count("\n") + 1
                yield from fence_commands(readme, number, match[2])
        prose = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
        for match in SPAN.finditer(prose):
            if COMMAND.match(match[1]):
                line = " ".join(match[1].split())
                line = f"python {line}" if line.startswith("tests/") else line
                number = prose[: match.start()].count("\n") + 1
                for words in split(line):
                    yield Command(f"{readme}:{number}", words, line, is_mention=True)


FOUND = list(all_commands())
# A command that READMEs repeat is checked once, where it stands first.
DISTINCT = {(command.words, command.runs): command for command in reversed(FOUND)}
COMMANDS_ONCE = [command for command in FOUND if command in DISTINCT.values()]
SHORT_COMMANDS = [
    (command, out)
    for start, out in SHORT.items()
    for command in COMMANDS_ONCE
    if " ".join(command.words).startswith(f"tenfold {start} ") and values(command.words, "--out")
]


@pytest.fixture
def user(project: Path) -> Path:
    """The folder of a user who works in a checkout."""
    (project / "recipes").symlink_to(RECIPES)
    (project / "tests").symlink_to(ROOT / "tests")
    return project


def assert_parses(start: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a program of ours, and stops it when it has read its arguments."""

    def stop(*args, **kwargs):
        raise SystemExit(PARSED)

    monkeypatch.setattr(RecipeCLI, "before_instantiate_classes", stop)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "instantiate", stop)
    with pytest.raises(SystemExit) as end:  # else the error of one line is among what is captured
        start()
    assert end.value.code == PARSED


def write_own_recipe() -> None:
    """Writes the files by which the README shows how to write a recipe."""
    section = READMES["README.md"].partition("## Your own recipe")[2]
    for name, language in {OWN_RECIPE: "yaml", "digits.py": "python"}.items():
        Path(name).write_text(next(m[2] for m in FENCE.finditer(section) if m[1] == language))


def provide(command: Command) -> None:
    """Writes what a user has when giving the command: own recipes, and configs of runs."""
    if OWN_RECIPE in command.words:
        write_own_recipe()
    for name in values(command.words, "--config", "--study"):
        if name in USER_FILES:
            Path(name).parent.mkdir(exist_ok=True)
            shutil.copyfile(find_recipe(USER_FILES[name]), name)
    for name, recipe in command.runs:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(f"base: {USER_FILES.get(recipe, recipe)}\n")


def read_recipe(name: str) -> None:
    """Reads a recipe that can be trained or tested, with its bases."""
    keys = {setting.key for setting in read_arguments(["--config", name]).settings}
    assert "model" in keys


def check_tenfold(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs or parses a command of ours."""
    name, *arguments = command.words[1:]
    if command.is_mention and not arguments:
        assert name in COMMANDS
        return
    provide(command)
    if name in IS_RUN or "--preset" in arguments or (name in PLANS and "--dry-run" in arguments):
        assert main([name, *arguments]) == 0
        return
    for flag in ("--config", "--study"):
        for recipe in values(command.words, flag):
            if flag == "--study" or name == "study":
                load_study(recipe)
            elif name == "submit":
                read_recipe(recipe)
            else:
                find_recipe(recipe)
    if name in TRAINER_COMMANDS:
        if arguments[:-1] == ["--config"] and arguments[-1] in recipe_names():
            read_recipe(arguments[-1])
            return
        kept = "fit" if name == "check" else name  # the others cost a fifth of the time
        subcommands = {kept: LightningCLI.subcommands()[kept]}
        monkeypatch.setattr(RecipeCLI, "subcommands", lambda _: subcommands)
    assert_parses(lambda: main([name, *arguments]), monkeypatch)


def check_python(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a script or a module of ours read its options."""
    is_module = words[1] == "-m"
    file, *options = words[2:] if is_module else words[1:]
    path = ROOT / (f"{file.partition('.')[2].replace('.', '/')}.py" if is_module else file)
    assert path.is_file()
    if not options:
        return
    assert "    auto_cli(" in path.read_text()  # what stops before the work starts
    start, where = (runpy.run_module, file) if is_module else (runpy.run_path, str(path))
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    monkeypatch.syspath_prepend(path.parent)  # as Python does for a script
    assert_parses(lambda: start(where, run_name="__main__"), monkeypatch)


@pytest.mark.parametrize("command", COMMANDS_ONCE, ids=lambda command: command.place)
def test_the_command_is_accepted(command, user, monkeypatch, capfd):
    words = command.words
    if any(" ".join(words).startswith(start) for start in UNCHECKED):
        return
    match words:
        case ("tenfold", *_):
            check_tenfold(command, monkeypatch)
            assert not re.search("note: --.* is ignored", capfd.readouterr().err)
        case ("sbatch", script, _, *rest):
            assert (RECIPES / "slurm" / script).is_file()
            check_tenfold(Command(command.place, tuple(rest), command.line), monkeypatch)
        case ("python", *_):
            check_python(words, monkeypatch)
        case ("make", *targets):
            makefile = (ROOT / "Makefile").read_text()
            known = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
            assert set(targets) <= set(known)
        case ("pip", "install", wanted):
            extra = re.fullmatch(r"tenfold\[([\w-]+)\]", wanted)[1]
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert extra in project["optional-dependencies"]
        case ("sh", script) | (".ci/run" as script,):
            subprocess.run(["bash", "-n", ROOT / script], check=True)
        case ("cp", *_):
            environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
            subprocess.run(["bash", "-ec", command.line], check=True, env=environment)
            assert (user / "chat_server.sbatch").is_file()
        case _:
            pytest.fail(f"nothing checks `{' '.join(words)}`: see UNCHECKED")


def test_a_recipe_of_ones_own_trains_as_it_is_shown(user):
    write_own_recipe()
    commands = [command.words for command in FOUND if OWN_RECIPE in command.words]
    assert ["overlays/qat_w4a4" in words for words in commands] == [False, True]
    for number, (_, *arguments) in enumerate(commands):
        assert main(arguments) == 0
        (folder,) = Path("runs").glob(f"*/digits/version_{number}")
        metrics = json.loads((folder / "metrics.json").read_text())["fit"]
        assert metrics["val/loss"] < 0.3  # guessing: 2.3
        assert number == 0 or metrics["merged/val/loss"] < 0.5


@pytest.mark.parametrize("start", UNCHECKED)
def test_what_is_not_checked_still_stands_in_a_readme(start):
    assert any(" ".join(command.words).startswith(start) for command in FOUND)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "out"), SHORT_COMMANDS)
def test_a_short_command_writes_what_it_is_asked_for(command, out, user):
    assert main(list(command.words[1:])) == 0
    assert list((user / out).iterdir())


@pytest.mark.parametrize("readme", READMES)
def test_recipes_and_files_that_are_named_exist(readme):
    text = READMES[readme]
    known = {*recipe_names(), *(p.relative_to(RECIPES).as_posix() for p in RECIPES.glob("*/*"))}
    assert set(RECIPE.findall(text)) - known - set(USER_FILES) == set()
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
