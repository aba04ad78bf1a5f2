"""MuCR from the command line, as users do it."""

import json
from pathlib import Path

import pytest
from tenfold.recipes.cli import main

FEW = ["--data.pairs.num_test=3", "--model.backend.num_test=3", "--data.circular=true"]


def test_a_run_is_scored_again_and_shown_without_a_model(project):
    test = ["test", "--config", "mucr/offline", *FEW, "--run_dir=run"]
    assert main(test) == 0
    rows = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 * (4 + 4 + 1)
    records = [json.loads(line) for line in Path("run/records.jsonl").read_text().splitlines()]
    assert len(records) == 12 * 3  # without questions that are asked again
    numbers = json.loads(Path("run/metrics.json").read_text())["test"]
    asked = len(Path("run/answers/rank-00000.jsonl").read_text().splitlines())
    before = json.loads(Path("run/scores.json").read_text())
    assert before["mucr/c2e/circular_accuracy"]["n"] == 12
    Path("run/scores.json").unlink()
    assert main(["score", "run", "--report"]) == 0
    assert json.loads(Path("run/scores.json").read_text()) == before
    for task in ("c2e", "cue", "exp"):
        score = before[f"mucr/{task}/accuracy"]["value"]
        assert abs(numbers[f"test/mucr/{task}/accuracy"] - score) < 1e-6
    report = Path("run/report.html").read_text()
    assert "Exactly one of the options shows the effect" in report
    assert all(Path("run", name).exists() for row in rows for name in row["pictures"])
    assert main([*test, "--overwrite"]) == 0
    assert len(Path("run/answers/rank-00000.jsonl").read_text().splitlines()) == asked


@pytest.mark.slow
def test_two_processes_answer_as_one(project, tenfold):
    test = ["test", "--config", "mucr/offline", *FEW]
    assert main([*test, "--run_dir=one"]) == 0
    both = tenfold(*test, "--config", "overlays/ddp", "--trainer.devices=2", "--run_dir=two")
    assert both.returncode == 0, both.stderr
    one, two = (Path(run, "predictions.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert sorted(map(str, map(json.loads, one))) == sorted(map(str, map(json.loads, two)))
    scores = [json.loads(Path(run, "scores.json").read_text()) for run in ("one", "two")]
    assert scores[0] == scores[1]


def test_predictions_are_rows(project):
    assert main(["predict", "--config", "mucr/offline", *FEW, "--run_dir=run"]) == 0
    found = [*Path("run").rglob("*.jsonl")]
    assert any("mucr/exp/test00000-0" in path.read_text() for path in found)
