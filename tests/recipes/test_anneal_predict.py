"""`tenfold anneal-predict`, as users run it."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tenfold.modules.annealing_law import LRHistory, RelaxationLaw
from tenfold.modules.annealing_law.curve import write_curve
from tenfold.modules.annealing_law.prior import AnnealingPrior
from tenfold.recipes.cli import main

CURVES = Path(__file__).parents[1] / "data" / "loss_curves"
LAW = RelaxationLaw(L0=3.0, A=0.5, alpha=0.5, B=0.1, C=100.0, beta=1.5)
PEAK = 3e-4


def rates(constant: int, decay: int) -> np.ndarray:
    down = PEAK * np.linspace(1, 0.1, decay)
    return np.concatenate([np.linspace(0, PEAK, 200), np.full(constant, PEAK), down])


def noisy_losses(schedule: np.ndarray, steps: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=len(steps))
    return LAW.predict(schedule, steps) + 1e-3 * noise


def write_csv(path: str, constant: int, decay: int, every: int = 25) -> None:
    schedule = rates(constant, decay)
    steps = np.arange(199, len(schedule), every)
    losses = noisy_losses(schedule, steps)
    with Path(path).open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "lr", "loss"])
        writer.writerows(zip(steps, schedule[steps], losses, strict=True))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv("constant.csv", 6000, 1)
    write_csv("a.csv", 4000, 1000)
    write_csv("b.csv", 3000, 2000)
    return tmp_path


def learn(*more: str) -> int:
    curves = ["constant.csv", "a.csv", "b.csv"]
    return main(["anneal-predict", "--fit-prior", *curves, "--out", "small.json", *more])


def test_a_prior_is_learned_and_used(here, capsys):
    assert learn("--laws", "relaxation") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["law", "R2", "residual", "error", "of", "B", "R"]
    assert shown[1].split()[:2] == ["relaxation", "1.0000"]
    assert [c["name"] for c in AnnealingPrior.read("small.json").curves] == ["constant", "a", "b"]

    predict = ["anneal-predict", "--curve", "a.csv", "--prior", "small.json", "--laws=[relaxation]"]
    options = ["--decay-steps", "1500", "--shape", "linear", "--min-ratio", "0.1", "--out", "new"]
    assert main([*predict, *options]) == 0
    shown = capsys.readouterr().out
    content = json.loads(Path("new/prediction.json").read_text())
    asked, real = content["predictions"]
    assert asked["decay"] == "linear_1500steps_to_0.1"
    assert asked["last_step"] - asked["first_step"] == 1499
    down = np.concatenate([rates(4000, 1)[:4199], PEAK * np.linspace(1, 0.1, 1500)])
    truth = LAW.predict(down, np.array([len(down) - 1]))[0]
    assert asked["loss"] == pytest.approx(truth, abs=4e-3)
    assert asked["low"] < truth < asked["high"]
    # The rest of the file is what came: the command stopped looking where the decay begins.
    assert content["known_steps"] < 4250
    last = list(csv.DictReader(Path("a.csv").read_text().splitlines()))[-1]
    assert real["decay"] == "actual"
    assert real["last_step"] == int(last["step"])
    assert real["loss"] == pytest.approx(float(last["loss"]), abs=4e-3)
    assert f"actual: {float(last['loss']):.4f} at step {last['step']}" in shown
    rows = list(csv.DictReader(Path("new/prediction.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [asked["loss"], real["loss"]]
    assert imread("new/prediction.png").shape[2] == 4


def test_a_run_directory_has_the_exact_history(here, capsys):
    assert learn("--laws", "relaxation") == 0
    schedule = rates(4000, 1)[:-1]
    steps = np.arange(249, len(schedule), 50)
    losses = noisy_losses(schedule, steps)
    points = list(zip(steps.tolist(), schedule[steps].tolist(), losses.tolist(), strict=True))
    write_curve(Path("run"), points, LRHistory.of(schedule))
    capsys.readouterr()
    assert main(["anneal-predict", "--curve", "run", "--prior", "small.json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"run: 4200 steps known, {len(steps)} losses, the last {losses[-1]:.4f}"
    law, decay, asked, loss, *interval, status = shown[2].split()
    assert (law, decay, asked, status) == ("relaxation", "1-sqrt_20%", "4200-5249", "prior")
    assert float(interval[0]) < float(loss) < float(interval[2])
    assert shown[3].endswith("the prior has no law mpl")


def test_until_hides_what_came_later(here):
    assert learn("--laws", "relaxation") == 0
    command = ["anneal-predict", "--curve", "a.csv", "--prior", "small.json", "--until", "3000"]
    assert main([*command, "--out", "new"]) == 0
    content = json.loads(Path("new/prediction.json").read_text())
    assert {p["first_step"] for p in content["predictions"]} == {3000}


def test_without_a_prior_it_says_what_is_missing(here, capsys):
    assert main(["anneal-predict", "--curve", "constant.csv"]) == 0
    assert capsys.readouterr().out.count("no decay seen yet: give prior_path") == 3


def test_nothing_is_overwritten_without_being_asked(here, capsys):
    Path("small.json").write_text("precious")
    assert learn() == 2
    assert "small.json exists: choose another --out or pass --overwrite" in capsys.readouterr().err
    assert Path("small.json").read_text() == "precious"
    assert learn("--overwrite", "--laws", "tissue") == 0
    Path("new").mkdir()
    Path("new/prediction.csv").write_text("precious")
    command = ["anneal-predict", "--curve", "a.csv", "--prior", "small.json", "--out", "new"]
    assert main(command) == 2
    assert Path("new/prediction.csv").read_text() == "precious"
    assert main([*command, "--overwrite"]) == 0


MISTAKES = {
    "": "anneal-predict needs either --curve RUN (to predict) or --fit-prior RUN ...",
    "--curve a.csv --fit-prior b.csv": "anneal-predict needs either --curve RUN",
    "--fit-prior a.csv": "--fit-prior needs --out FILE.json",
    "--fit-prior constant.csv --out p.json": "relaxation: the learning rate falls in no curve",
    "--curve nothing.csv": "no file and no run directory 'nothing.csv'",
    "--curve a.csv --prior none.json": "no annealing prior 'none.json'",
    "--curve a.csv --until 0": "--until 0: the run has",
    "--curve a.csv --warmup 999999": "--warmup 999999: a.csv ends at step",
    "--curve a.csv --decay-ratio 2": "decay_ratio: 2.0 is not between 0 and 1",
    "--curve a.csv --decay-ratio 0.1 --decay-steps 9": "needs either decay_ratio or decay_steps",
    "--curve a.csv --shape sqrt": "expected linear or cosine or 1-sqrt or square or exp",
    "--curve a.csv --laws chinchilla": "chinchilla",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(options, here, capsys):
    assert main(["anneal-predict", *options.split()]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert MISTAKES[options] in errors[0]


def test_the_command_is_listed_and_imports_nothing_heavy_for_it(
    tenfold: Callable[..., subprocess.CompletedProcess[str]],
):
    assert "anneal-predict" in tenfold("--help").stdout
    code = (
        "import sys\nfrom tenfold.recipes.cli import main\nmain(['list'])\n"
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_public_curves_are_predicted_from_the_smaller_model(here, capsys):
    small = sorted(str(path) for path in (CURVES / "csv_25").glob("*.csv"))
    learned = ["anneal-predict", "--fit-prior", *small, "--out", "p.json", "--warmup", "2160"]
    assert main([*learned, "--laws", "relaxation"]) == 0
    for name in ("wsd_20000_24000", "wsdld_20000_24000"):
        curve = str(CURVES / "csv_100" / f"{name}.csv")
        options = ["--prior", "p.json", "--laws", "relaxation", "--until", "20000", "--out", name]
        assert main(["anneal-predict", "--curve", curve, *options]) == 0
        real = json.loads(Path(name, "prediction.json").read_text())["predictions"][-1]
        losses = np.loadtxt(curve, delimiter=",", skiprows=1)
        before = losses[losses[:, 0] < 20000][-1, 2]
        assert abs(real["loss"] - losses[-1, 2]) < 0.03 * (before - losses[-1, 2])
        assert real["low"] < losses[-1, 2] < real["high"]
