"""`tenfold runs` on runs that the command line has made."""

import csv
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tenfold.recipes.cli import main

FIT = ("fit", "--config", "recipe.yaml", "--trainer.max_steps", "10")


def shown(capsys, *arguments):
    """Heading and rows of each group, as lists of words."""
    capsys.readouterr()
    assert main(["runs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def trained(project):
    """Three runs that differ in their rate, one of them tested, and one that did not end."""
    for place, rate in enumerate((0.1, 0.01, 0.001)):
        rates = ("--model.optimizer.lr", str(rate), "--seed_everything", str(place))
        assert main([*FIT, *rates, "--run_dir", f"runs/project/recipe/version_{place + 8}"]) == 0
    assert main(["validate", "--run_dir", "runs/project/recipe/version_9"]) == 0
    stopped = Path("runs/project/recipe/version_11")
    stopped.mkdir()
    stopped.joinpath("config.yaml").write_text(
        Path("runs/project/recipe/version_8/config.yaml").read_text()
    )
    return stopped


def test_runs_side_by_side_with_what_differs(trained, capsys):
    folder, header, *rows = shown(capsys)
    assert folder == "runs/project/recipe"
    names = header.split()
    assert names[:4] == ["run", "finished", "seed", "time"]
    assert "optimizer.lr" in names
    assert [row.split()[0] for row in rows] == [f"version_{k}" for k in (8, 9, 10, 11)]
    assert [row.split()[1] for row in rows] == ["fit", "fit+validate", "fit", "stopped"]
    assert [row.split()[2] for row in rows[:3]] == ["0", "1", "2"]
    at = header.index("optimizer.lr")
    assert [float(row[at:].split()[0]) for row in rows[:3]] == [0.1, 0.01, 0.001]


def test_sorted_by_a_metric_and_written_in_full(trained, capsys):
    files = [Path(f"runs/project/recipe/version_{k}/metrics.json") for k in (8, 9, 10)]
    losses = {f.parent.name: json.loads(f.read_text())["fit"]["val/loss"] for f in files}
    rising = sorted(losses, key=losses.get)
    lines = shown(capsys, "--sort", "val/loss", "--metrics", "train/loss", "val/loss")
    assert lines[1].split()[-2:] == ["train/loss", "val/loss"]
    assert [line.split()[0] for line in lines[2:]] == [*rising, "version_11"]
    lines = shown(capsys, "--sort", "val/loss", "--descending", "--out", "all.csv")
    assert [line.split()[0] for line in lines[2:6]] == [*rising[::-1], "version_11"]
    with Path("all.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = {row["run"]: row["val/loss"] for row in rows}
    assert {Path(run).name: float(x) for run, x in first.items() if x} == losses
    assert {float(row["model.init_args.optimizer.init_args.lr"]) for row in rows} == {
        0.1,
        0.01,
        0.001,
    }


def test_a_run_that_trains_now_is_running(trained, capsys):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tenfold.recipes.run_directory import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(trained)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert shown(capsys)[-1].split()[1] == "running"
        with (trained / ".lock").open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking did not take its lock
        process.kill()
    assert shown(capsys, "runs/project")[-1].split()[1] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("empty",), "no run in empty"),
        (
            ("runs", "--metrics", "val/los"),
            "no run here has the metric 'val/los': there are val/lo",
        ),
        (("bad",), "bad/run/metrics.json: no JSON"),
    ],
)
def test_what_is_wrong_is_one_line(trained, capsys, arguments, message):
    Path("empty").mkdir()
    Path("bad/run").mkdir(parents=True)
    Path("bad/run/metrics.json").write_text("{")
    assert main(["runs", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(tenfold):
    command = f"{sys.executable} -m tenfold.recipes.cli list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
