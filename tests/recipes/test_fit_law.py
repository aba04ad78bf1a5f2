import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tenfold.modules.run_table import Run, read_runs, write_runs
from tenfold.modules.scaling_law import PAPER, PAPER_CHINCHILLA, load_laws
from tenfold.recipes.cli import main
from tenfold.recipes.fit_law_report import count_text

PRECISIONS = ("w4a4", "w4a16", "w16a4")
GRID = [(n, d) for n in (74e6, 145e6, 297e6) for d in (10e9, 30e9, 100e9)] + [(973e6, 200e9)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one for this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paper_runs(noise: float = 0.0, precisions: tuple[str, ...] = ("w4a4",)) -> list[Run]:
    """A small copy of the paper's grid: losses that the laws of its Table 1 give."""
    rng = np.random.default_rng(0)
    runs = []
    for n, d in GRID:
        loss = float(PAPER_CHINCHILLA.loss(n, d))
        runs.append(Run(f"bf16-{n:g}-{d:g}", 0, n, d, "bf16", loss=loss))
        for precision in precisions:
            for g in (32, 128, 512):
                delta = float(PAPER[precision].delta(n, d, g)) * np.exp(noise * rng.normal())
                run_id = f"{precision}-{n:g}-{d:g}-{g}"
                runs.append(Run(run_id, 0, n, d, precision, g, loss + delta))
    return runs


def write_run_dirs(folder: Path, runs: list[Run]) -> None:
    for run in runs:
        run_dir = folder / run.run_id
        run_dir.mkdir(parents=True)
        info = {
            "num_parameters_non_embedding": run.num_parameters,
            "tokens_seen": run.num_tokens,
            "seed": run.seed,
        }
        if not run.is_baseline:
            info["quantization"] = {"precision": run.precision, "group_size": run.group_size}
        content = {"fit": {"val/loss": run.loss}, "run": info}
        (run_dir / "metrics.json").write_text(json.dumps(content))


def test_runs_become_a_law_a_table_and_figures(here, capsys):
    write_runs("mine.csv", paper_runs(0.02, PRECISIONS))
    arguments = ["fit-law", "mine.csv", "--holdout", "num_parameters>=9e8", "--bootstrap", "40"]
    assert main([*arguments, "--out", "laws"]) == 0
    printed = capsys.readouterr()
    assert "error hold-out (num_parameters>=9e8)" in printed.out
    assert "an unknown noise floor: no cell (N, D, G) has two seeds" in printed.out
    assert "decomposition: delta_w4a4 = 0.9" in printed.out
    assert printed.err == ""

    content = json.loads((here / "laws/law.json").read_text())
    analysis = content["analysis"]["w4a4"]
    assert (analysis["num_runs"], analysis["num_held_out"]) == (27, 3)
    full, without, epm = analysis["relative_errors"]
    assert full["out_of_sample"] < 0.05 < without["out_of_sample"]
    assert full["in_sample"] < without["in_sample"] < epm["in_sample"]
    by_name = {constant["name"]: constant for constant in analysis["constants"]}
    assert [by_name[f"gamma_{x}"]["sign"] for x in "ndg"] == ["+"] * 3
    assert by_name["gamma_n"]["low"] < 0.2186 < by_name["gamma_n"]["high"]
    assert content["settings"]["holdout"] == "num_parameters>=9e8"
    assert content["laws"]["w4a4"]["fitted_range"]["num_parameters"] == [74e6, 297e6]

    names = {f"{kind}_{p}.png" for kind in ("delta", "epm") for p in PRECISIONS}
    figures = {path.name: imread(path) for path in (here / "laws/figures").iterdir()}
    assert figures.keys() == names | {"decomposition.png"}
    assert all(picture[..., :3].std() > 0.02 for picture in figures.values())
    assert not list((here / "laws").rglob("*.tmp"))


def test_a_written_law_predicts(here, capsys):
    write_runs("mine.csv", paper_runs())
    assert main(["fit-law", "mine.csv", "--bootstrap", "6", "--out", "laws"]) == 0
    capsys.readouterr()
    points = ["--num-parameters", "74e6:296e6:3", "--num-tokens", "1e10", "--group-size", "32,512"]
    predict = ["fit-law", "--preset", "laws/law.json", "--predict", *points]
    assert main([*predict, "--out", "more"]) == 0
    assert capsys.readouterr().err == ""
    with Path("more/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    for row in rows:
        n, g = float(row["num_parameters"]), float(row["group_size"])
        law = PAPER["w4a4"]
        assert float(row["delta"]) == pytest.approx(float(law.delta(n, 1e10, g)), rel=1e-4)
        assert float(row["loss"]) == pytest.approx(float(law.loss(n, 1e10, g)), rel=1e-4)
        epm = float(law.effective_parameter_multiplier(n, 1e10, g))
        assert float(row["epm"]) == pytest.approx(epm, rel=1e-3)
    sizes = {float(row["num_parameters"]) for row in rows}
    assert sorted(sizes) == pytest.approx([74e6, 148e6, 296e6])


def test_the_paper_s_law_predicts_without_runs(here, capsys):
    points = ["--num-parameters", "7e9", "--num-tokens", "1e12", "--group-size", "128"]
    assert main(["fit-law", "--preset", "paper", *points, "--predict"]) == 0
    printed = capsys.readouterr()
    (line,) = (line for line in printed.out.splitlines() if line.split()[:1] == ["w4a4"])
    assert line.split() == ["w4a4", "7B", "1T", "128", "0.0397", "2.3205", "2.3602", "0.6161"]
    warned = printed.err.splitlines()
    assert len(warned) == 2
    assert warned[0].startswith("warning: num_parameters 7e+09 is outside the 7.4e+07 to 5.95e+08")
    assert warned[1].startswith("warning: num_tokens 1e+12 is outside the 1e+10 to 1e+11")
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_a_folder_of_runs_becomes_a_table_that_gives_the_same_law(here, capsys):
    write_run_dirs(Path("runs"), paper_runs(noise=0.02))
    assert main(["fit-law", "runs", "--bootstrap", "6", "--out", "first"]) == 0
    assert len(read_runs(["first/runs.csv"])) == len(GRID) * 4
    assert main(["fit-law", "first/runs.csv", "--bootstrap", "6", "--out", "second"]) == 0
    first, second = load_laws("first/law.json"), load_laws("second/law.json")
    assert first["w4a4"].error == second["w4a4"].error
    assert first.keys() == {"w4a4"}


def test_nothing_is_overwritten_without_being_asked(here, capsys):
    write_runs("mine.csv", paper_runs())
    Path("laws").mkdir()
    Path("laws/runs.csv").write_text("precious")
    arguments = ["fit-law", "mine.csv", "--bootstrap", "2", "--out", "laws"]
    assert main(arguments) == 2
    assert "laws/runs.csv exists: choose another --out or pass --overwrite" in (
        capsys.readouterr().err
    )
    assert Path("laws/runs.csv").read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(read_runs(["laws/runs.csv"])) == len(GRID) * 4


@pytest.mark.slow
def test_runs_with_negative_delta_are_dropped_or_kept(here, capsys):
    runs = paper_runs(noise=0.02)
    bad = next(run for run in runs if run.precision == "w4a4")
    runs[runs.index(bad)] = Run(bad.run_id, 0, *GRID[0], "w4a4", 32, bad.loss - 0.2)
    write_runs("mine.csv", runs)
    arguments = ["fit-law", "mine.csv", "--bootstrap", "2"]
    assert main(arguments) == 0
    assert "warning: w4a4: 1 of 30 runs have delta <= 0" in capsys.readouterr().err
    assert main([*arguments, "--residual", "raw"]) == 0
    assert capsys.readouterr().err == ""


def test_deltas_alone_give_a_law_without_epm(here, capsys):
    runs = [
        Run(f"{n:g}-{d:g}-{g}", 0, n, d, "w4a4", g, None, float(PAPER["w4a4"].delta(n, d, g)))
        for n, d in GRID
        for g in (32, 128)
    ]
    write_runs("mine.csv", runs)
    points = ["--num-parameters", "1e8", "--num-tokens", "2e10", "--group-size", "64"]
    arguments = ["fit-law", "mine.csv", "--bootstrap", "6", "--out", "laws", "--predict", *points]
    assert main(arguments) == 0
    assert "no Chinchilla law, and so no EPM: " in capsys.readouterr().out
    assert [path.name for path in Path("laws/figures").iterdir()] == ["delta_w4a4.png"]
    with Path("laws/predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["loss"], row["epm"]) == ("", "")
    assert float(row["delta"]) == pytest.approx(float(PAPER["w4a4"].delta(1e8, 2e10, 64)))


POINT = "--num-parameters 1e8 --num-tokens 1e10 --group-size 32"
MISTAKES = {
    "fit-law": "fit-law needs either runs (`tenfold fit-law runs.csv`) or --preset paper",
    f"fit-law mine.csv --preset paper --predict {POINT}": "needs either runs",
    "fit-law --preset paper": "--preset has nothing to fit: add --predict",
    f"fit-law --preset paper {POINT}": "--num-parameters is for predictions: add --predict",
    "fit-law --preset paper --predict --num-tokens 1": "needs --num-parameters and --group-size",
    f"fit-law --preset peper --predict {POINT}": "no preset and no file 'peper'",
    f"fit-law --preset mine.csv --predict {POINT}": "mine.csv: not the law.json of",
    f"fit-law --preset paper --predict {POINT}x": "--group-size: '32x' is no positive number",
    f"fit-law --preset paper --predict {POINT}:64": "--group-size: '32:64' is no positive number",
    "fit-law --preset paper --predict --num-parameters 1e8 --num-tokens 1e10 --group-size 0.5": (
        "group_size must be at least 1, got 0.5"
    ),
    "fit-law nothing.csv": "no file and no folder 'nothing.csv'",
    "fit-law mine.csv --holdout num_parameters": "--holdout: 'num_parameters' is no comparison",
    "fit-law mine.csv --holdout seed>7": "--holdout 'seed>7' holds for no quantised run",
    "fit-law mine.csv --bootstrap 0": "--bootstrap must be at least 1, got 0",
    "fit-law mine.csv --residual square": "expected log or raw, got 'square'",
    "fit-law one.csv": "no law could be fitted: see above",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command, here, capsys):
    write_runs("mine.csv", paper_runs())
    write_runs("one.csv", paper_runs()[:3])
    assert main(command.split()) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert MISTAKES[command] in errors[0]


def test_what_cannot_be_fitted_is_said(here, capsys):
    write_runs("one.csv", paper_runs()[:3])
    assert main(["fit-law", "one.csv"]) == 2
    assert "w4a4: no law: num_parameters has one value (7.4e+07)" in capsys.readouterr().out


def test_the_command_is_listed_and_imports_nothing_heavy_for_it(
    tenfold: Callable[..., subprocess.CompletedProcess[str]],
):
    assert "fit-law" in tenfold("--help").stdout
    code = (
        "import sys\nfrom tenfold.recipes.cli import main\nmain(['list'])\n"
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (221184, "221k"), (999_960, "1M"), (74.3e6, "74.3M"), (7e9, "7B"), (1e12, "1T")],
)
def test_counts_are_written_as_the_field_does(count, text):
    assert count_text(count) == text
