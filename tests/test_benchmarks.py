"""What `make bench` runs, collects and writes; the benchmarks themselves are not run here."""

import shutil
import sys
from pathlib import Path

import pytest

# Where the scripts find each other when they run.
sys.path.append(str(Path(__file__).parent / "benchmarks"))
import run_all
from report import Ratio, ratio

BENCHMARKS = Path(run_all.__file__).parent
WORKS = """
from report import ratio

print("| a table | of its own |")
ratio("slow / fast", 2.5, at_least=3)
ratio("new / old", 1.25, at_most=1.3)
ratio("large / small", 7)
"""
FAILS = """
from report import ratio

ratio("before / after", 1.5)
raise RuntimeError("no | room")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two benchmarks in the place of ours, on an idle machine."""
    shutil.copy(BENCHMARKS / "report.py", tmp_path)
    (tmp_path / "works.py").write_text(WORKS)
    (tmp_path / "fails.py").write_text(FAILS)
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "COMMANDS", ("fails.py", "works.py --quick"))
    monkeypatch.setattr(run_all.os, "getloadavg", lambda: (0.25, 0.0, 0.0))
    return tmp_path


def table(text: str) -> list[str]:
    """Rows of the table, without its heading."""
    return [line for line in text.splitlines() if line.startswith("| `")]


FAILED = [
    "| `fails.py` | before / after | 1.5 |  |  |",
    "| `fails.py` | **failed with status 1: RuntimeError: no / room** |  |  |  |",
]
WORKED = [
    "| `works.py --quick` | slow / fast | 2.5 | at least 3 | no |",
    "| `works.py --quick` | new / old | 1.25 | at most 1.3 | yes |",
    "| `works.py --quick` | large / small | 7 |  |  |",
]


def test_every_script_is_run_or_left_out_with_a_reason():
    run = {command.split()[0] for command in run_all.COMMANDS}
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"report.py", "run_all.py"}
    assert run | set(run_all.LEFT_OUT) == scripts
    assert run & set(run_all.LEFT_OUT) == set()
    assert all(run_all.LEFT_OUT.values())


def test_every_script_that_is_run_reports():
    for command in run_all.COMMANDS:
        text = (BENCHMARKS / command.split()[0]).read_text()
        assert "from report import ratio\n" in text, command
        assert " ratio(" in text, command


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (2.996, {"at_least": 3}, Ratio("a / b, 4 x 4", 2.996, "at least 3")),
        (1.30001, {"at_most": 1.3}, Ratio("a / b, 4 x 4", 1.3, "at most 1.3")),
        (0.0123456, {}, Ratio("a / b, 4 x 4", 0.01235)),
    ],
)
def test_a_line_is_read_as_it_was_written(capsys, value, bounds, expected):
    ratio("a / b, 4 x 4", value, **bounds)
    assert Ratio.parse(capsys.readouterr().out.rstrip("\n")) == expected


def test_other_lines_are_no_ratios():
    for line in ("", "| ratio | floor |", "a ratio | b | 3", "ratio | b | 3 | about 4"):
        assert Ratio.parse(line) is None


@pytest.mark.parametrize(
    ("value", "target", "held"),
    [
        (3.0, "at least 3", True),
        (2.9, "at least 3", False),
        (1.3, "at most 1.3", True),
        (1.4, "at most 1.3", False),
        (float("nan"), "at least 3", False),
        (float("nan"), "at most 3", False),
        (2.0, "", None),
    ],
)
def test_a_target_is_reached_or_missed(value, target, held):
    assert Ratio("a / b", value, target).held is held


def test_a_benchmark_that_fails_is_a_row_and_the_rest_go_on(folder):
    assert run_all.main() == 1
    text = (folder / "RESULTS.md").read_text()
    assert table(text) == FAILED + WORKED
    assert "Load average of one minute: 0.25 before" in text
    assert "Warning" not in text


def test_a_missed_target_is_no_failure(folder, capsys):
    assert run_all.main(only=["works"]) == 0
    assert table(capsys.readouterr().out) == WORKED


def test_a_benchmark_without_ratios_has_failed(folder):
    (folder / "works.py").write_text("print('a table')")
    assert run_all.main(only=["works"], out=folder / "some.md") == 1
    row = "| `works.py --quick` | **reported no ratio** |  |  |  |"
    assert table((folder / "some.md").read_text()) == [row]


def test_some_benchmarks_never_replace_the_results_of_all(folder):
    results = folder / "RESULTS.md"
    results.write_text("all")
    run_all.main(only=["works"])
    with pytest.raises(SystemExit, match=r"RESULTS\.md holds all"):
        run_all.main(only=["works"], out=results)
    assert results.read_text() == "all"


def test_an_unknown_name_is_refused(folder):
    with pytest.raises(SystemExit, match="no benchmark other: fails, works"):
        run_all.main(only=["other", "works"])


def test_a_busy_machine_is_a_warning(folder, monkeypatch, capsys):
    monkeypatch.setattr(run_all.os, "getloadavg", lambda: (0.75, 0.0, 0.0))
    run_all.main(only=["works"])
    assert "Warning: other programs were running" in capsys.readouterr().out
