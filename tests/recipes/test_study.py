"""Studies run real processes here: a small program stands for `tenfold` and fails on demand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tenfold.recipes.study import run_study
from tenfold.recipes.study_file import load_study

# Understands `COMMAND --config X --run_dir D --key=value` and trains for three "steps", each with a
# checkpoint. What goes wrong in which run stands in faults.json, so that commands stay the same.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

command, words, options = sys.argv[1], sys.argv[2:], {"--config": []}
while words:
    key, _, value = words.pop(0).partition("=")
    value = value or words.pop(0)
    options["--config"].append(value) if key == "--config" else options.update({key: value})
run_dir = Path(options["--run_dir"])
fault = json.loads(Path("faults.json").read_text()).get("/".join(run_dir.parts[-2:]))
assert options["--overwrite"] == "true"
(run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
(run_dir / "pid").write_text(str(os.getpid()))
checkpoint = run_dir / "checkpoints" / "last.ckpt"
if fault == "fail":
    sys.exit("ValueError: the data is [not] there")
if fault == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if command == "fit":
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(done, 3):
        with (run_dir / "steps.txt").open("a") as file:
            file.write(f"{step}\\n")
        checkpoint.write_text(str(step + 1))
        if fault == "kill" and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault in ("sleep", "stubborn") and step == 1:
            (run_dir / "asleep").write_text("")
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                (run_dir / "saved").write_text("")
                sys.exit(130)
else:
    assert Path(options["--ckpt_path"]).read_text() == "3"
if fault == "forget":
    sys.exit(0)
loss = float(options.get("--model.init_args.loss", 5))
loss += 0.1 * int(options.get("--seed_everything", 0))
run = {"data_hash": fault if fault and fault.startswith("hash") else "hash0"}
(run_dir / "options.json").write_text(json.dumps(options))
metrics = {command: {"loss": loss}, "run": run}
if fault in ("tested", "untested"):
    (run_dir / "config.yaml").write_text("test_after_fit: true\\n")
if fault == "tested":
    metrics["test"] = {"accuracy": 0.5, "loss": 0.0}
(run_dir / "metrics.json").write_text(json.dumps(metrics))
if fault == "late":
    sys.exit(1)
"""
STUDY = """
stages:
  - name: train
    recipe: train.yaml
    variants:
      max: {set: {model.init_args.loss: 2}}
      mixer: {set: {model.init_args.loss: 1}}
    grid: {seed_everything: [0, 1]}
  - {name: suite, recipe: noise.yaml, command: test, set: {ckpt_path: "${train.checkpoint}"}}
table: {rows: train.variant, over: seed_everything, against: max, metrics: [train:loss]}
"""
RUNS = [f"{row}-seed_everything={seed}" for row in ("max", "mixer") for seed in (0, 1)]
FIRST = "train/max-seed_everything=0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    Path("train.yaml").write_text("model: {class_path: Net}\n")
    Path("noise.yaml").write_text("data: {class_path: Noise}\n")
    Path("claim.yaml").write_text(STUDY)
    Path("driver.py").write_text(
        "import sys\n"
        "from tenfold.recipes.study import run_study\n"
        "from tenfold.recipes.study_file import load_study\n"
        "study = load_study('claim.yaml')\n"
        "run_study(study, jobs=int(sys.argv[1]), launcher=[sys.executable, '-S', 'program.py'])\n"
    )
    set_faults({})
    return tmp_path / "runs" / tmp_path.name / "studies" / "claim"


def set_faults(faults: dict[str, str]) -> None:
    Path("faults.json").write_text(json.dumps(faults))


def run(**kwargs: Any) -> None:
    run_study(
        load_study("claim.yaml"), launcher=[sys.executable, "-I", "-S", "program.py"], **kwargs
    )


def steps(run_dir: Path) -> list[str]:
    return (run_dir / "steps.txt").read_text().split()


def is_alive(run_dir: Path) -> bool:
    with suppress(ProcessLookupError):
        os.kill(int((run_dir / "pid").read_text()), 0)
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.02)


@contextmanager
def driver(jobs: int = 1) -> Iterator["subprocess.Popen[str]"]:
    """The study as a process of its own, to be sent signals."""
    command = [sys.executable, "driver.py", str(jobs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as p:
        try:
            yield p
        finally:
            p.kill()


def test_everything_runs_in_order_and_ends_in_a_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(jobs=2)
    for name in RUNS:
        options = json.loads((folder / "suite" / name / "options.json").read_text())
        train = Path("runs") / folder.parent.parent.name / "studies/claim/train" / name
        assert options["--config"] == [f"{train}/config.yaml", "noise.yaml"]
        assert options["--ckpt_path"] == f"{train}/checkpoints/last.ckpt"
        assert (folder / "train" / f"{name}.log").read_text().startswith("$ ")
    printed = capsys.readouterr().out
    assert re.search(r"train/max-seed_everything=0: finished in \d+ s  loss 2  \(\d left", printed)
    assert re.search(r"train:loss +mixer +1.050 ± 0.071 +2 +-1.000 \[-1.000, -1.000\]", printed)
    assert (folder / "table.csv").exists()
    assert (folder / "figures/train_loss.png").exists()


def test_finished_runs_are_not_run_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    capsys.readouterr()
    run()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")} == before
    assert "8 of 8 runs have finished before" in capsys.readouterr().out


def test_one_failure_skips_what_reads_it_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_faults({FIRST: "fail", "suite/mixer-seed_everything=1": "forget"})
    with pytest.raises(SystemExit) as caught:
        run(jobs=2)
    assert caught.value.code == 1
    assert len(list(folder.rglob("metrics.json"))) == 5
    printed = capsys.readouterr().out
    assert f"{FIRST}: failed: exit code 1" in printed
    assert "    ValueError: the data is [not] there" in printed
    assert f"suite/max-seed_everything=0: skipped: {FIRST} has not finished" in printed
    assert "exit code 0, but metrics.json has no 'test'" in printed
    assert "3 of 8 runs did not finish" in printed
    assert "again with: tenfold study --config claim.yaml" in printed
    assert re.search(r"train:loss +max +2.100 +1 of 2", printed)
    assert re.search(r"mixer +1.050 ± 0.071 +2 +-1.000 \(n = 1: no interval\)", printed)

    set_faults({})
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    run()
    now = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    assert len(now) == 8
    assert {path: now[path] for path in done} == done


def test_a_killed_run_goes_on_from_its_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_faults({FIRST: "kill"})
    with pytest.raises(SystemExit):
        run()
    assert f"{FIRST}: failed: killed by SIGKILL" in capsys.readouterr().out
    assert steps(folder / FIRST) == ["0", "1"]
    set_faults({})
    run()
    assert steps(folder / FIRST) == ["0", "1", "2"]
    log = (folder / f"{FIRST}.log").read_text()
    assert log.count("--ckpt_path auto") == 2  # both attempts


def test_finished_means_that_metrics_has_the_command(folder: Path) -> None:
    set_faults({FIRST: "late"})  # fails after it has written them
    run()
    (folder / FIRST / "metrics.json").write_text('{"test": {"loss": 1}}')
    (folder / FIRST / "checkpoints/last.ckpt").write_text("2")
    run()
    assert steps(folder / FIRST) == ["0", "1", "2", "2"]


def test_the_test_after_a_fit_counts_and_is_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("claim.yaml").write_text(STUDY.replace("train:loss", "train:accuracy, train:loss"))
    trained = {f"train/{name}": "tested" for name in RUNS}
    set_faults(trained | {FIRST: "untested"})
    with pytest.raises(SystemExit):
        run()
    assert (
        f"{FIRST}: failed: exit code 0, but metrics.json has no 'test'" in capsys.readouterr().out
    )
    set_faults(trained)
    run()
    printed = capsys.readouterr().out
    assert re.search(r"train:accuracy +max +0.50* ± 0.0* +2", printed), printed
    assert re.search(r"train:loss +max +2.050* ± 0.071", printed), (
        printed
    )  # the fit's, not the test's


def test_a_changed_definition_is_refused_until_overwritten(folder: Path) -> None:
    run()
    text = STUDY.replace("loss: 1}", "loss: 1.5}")
    Path("claim.yaml").write_text(text)
    message = (
        r"mixer-seed_everything=0 was started .*loss was 1 and is 1.5, and 3 more; --overwrite"
    )
    with pytest.raises(ValueError, match=message):
        run()
    with pytest.raises(ValueError, match="another definition"):
        run(table_only=True, overwrite=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    run(overwrite=True)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    changed = {"/".join(path.parts[-3:-1]) for path in before if after[path] != before[path]}
    assert changed == {f"{s}/mixer-seed_everything={k}" for s in ("train", "suite") for k in (0, 1)}
    assert steps(folder / "train/mixer-seed_everything=0") == ["0", "1", "2"]  # from the start
    assert "1.550" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("train.yaml", "Net}", "Net, init_args: {depth: 2}}", "content of config train.yaml has"),
        ("claim.yaml", "command: test", "command: predict", "its command was test and is predict"),
        (
            "claim.yaml",
            "recipe: train.yaml",
            "recipe: train.yaml\n    config: [noise.yaml]",
            "its configs were",
        ),
        ("claim.yaml", "{model.init_args.loss: 2}", "{}", "loss was 2 and is not set"),
    ],
)
def test_what_changed_is_named(folder: Path, file: str, old: str, new: str, reason: str) -> None:
    run()
    Path(file).write_text(Path(file).read_text().replace(old, new))
    with pytest.raises(ValueError, match=reason):
        run()


def test_a_new_seed_or_table_leaves_the_others_alone(folder: Path) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    text = STUDY.replace("[0, 1]", "[1, 2, 0]").replace("against: max", "against: mixer")
    Path("claim.yaml").write_text(text)
    run()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    assert len(after) == 12
    assert {path: after[path] for path in before} == before


def test_a_variant_that_comes_back_is_still_known(folder: Path) -> None:
    run()
    without = STUDY.replace("      mixer: {set: {model.init_args.loss: 1}}\n", "")
    Path("claim.yaml").write_text(without)
    run()
    Path("claim.yaml").write_text(STUDY.replace("loss: 1}", "loss: 3}"))
    with pytest.raises(ValueError, match="loss was 1 and is 3"):
        run()


def test_a_run_directory_of_unknown_origin_is_refused(folder: Path) -> None:
    (folder / FIRST).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"plan.json does not have it"):
        run()


def test_corpora_are_not_mixed(folder: Path) -> None:
    set_faults({"train/mixer-seed_everything=1": "hash1"})
    with pytest.raises(ValueError, match=r"different data \(data_hash hash0 and hash1\)"):
        run()
    assert not (folder / "table.csv").exists()


def test_override_and_only(folder: Path) -> None:
    run(only="suite/max*=1", override={"trainer.max_steps": 5}, study_dir=Path("short"))
    found = {str(path.parent) for path in Path("short").rglob("metrics.json")}
    assert found == {"short/train/max-seed_everything=1", "short/suite/max-seed_everything=1"}
    options = json.loads((Path("short") / FIRST.replace("0", "1") / "options.json").read_text())
    assert options["--trainer.max_steps"] == "5"
    assert "1 of 2" in Path("short/table.md").read_text()


def test_dry_run_prints_and_starts_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dry_run=True)
    assert not folder.exists()
    printed = capsys.readouterr().out
    assert printed.count(f"{sys.executable} -I -S program.py") == 8
    assert f"suite/max-seed_everything=0 (new, after {FIRST})" in printed
    assert "'--ckpt_path=${train.checkpoint}'" in printed
    set_faults({FIRST: "kill"})
    with pytest.raises(SystemExit):
        run()
    Path("noise.yaml").write_text("data: {class_path: Other}\n")
    capsys.readouterr()
    run(dry_run=True)
    printed = capsys.readouterr().out
    assert f"{FIRST} (unfinished)" in printed
    assert "train/mixer-seed_everything=0 (finished)" in printed
    assert "(stale: the content of config noise.yaml has changed, after" in printed


def test_table_only_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(only="train/*=0")
    Path("program.py").unlink()
    run(table_only=True)
    assert "1 of 2" in capsys.readouterr().out


def test_jobs_share_cores_and_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    set_faults({FIRST: "sleep", "train/max-seed_everything=1": "sleep"})
    with driver(jobs=2) as process:
        wait_for(lambda: all((folder / "train" / name / "asleep").exists() for name in RUNS[:2]))
        assert not (folder / "train" / RUNS[2]).exists()  # no more than two at a time
        devices = set()
        for name in RUNS[:2]:
            pid = (folder / "train" / name / "pid").read_text()
            text = Path(f"/proc/{pid}/environ").read_text()
            environment = dict(line.partition("=")[::2] for line in text.split("\0"))
            devices.add(environment["CUDA_VISIBLE_DEVICES"])
            assert int(environment["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
        assert devices == {"4,6", "5,7"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    assert not any(is_alive(folder / "train" / name) for name in RUNS[:2])


def test_ctrl_c_lets_runs_save_and_says_how_to_go_on(folder: Path) -> None:
    set_faults({FIRST: "sleep"})
    with driver() as process:
        wait_for((folder / FIRST / "asleep").exists)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (folder / FIRST / "saved").exists()
    assert not is_alive(folder / FIRST)
    assert "interrupted; go on with: tenfold study --config claim.yaml" in printed
    assert "Traceback" not in printed
    set_faults({})
    run()
    assert steps(folder / FIRST) == ["0", "1", "2"]


def test_a_second_ctrl_c_kills(folder: Path) -> None:
    set_faults({FIRST: "stubborn"})
    with driver() as process:
        wait_for((folder / FIRST / "asleep").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        assert is_alive(folder / FIRST)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not is_alive(folder / FIRST)


def test_a_run_that_outlives_its_study_is_not_started_beside_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_faults({FIRST: "sleep"})
    with driver() as process:
        wait_for((folder / FIRST / "asleep").exists)
        process.kill()
    try:
        assert is_alive(folder / FIRST)
        with pytest.raises(SystemExit):
            run(only="train")
        assert f"{FIRST}: not started: {FIRST} is still going on" in capsys.readouterr().out
        assert steps(folder / FIRST) == ["0", "1"]
    finally:
        os.kill(int((folder / FIRST / "pid").read_text()), signal.SIGKILL)
    set_faults({})
    wait_for(lambda: not is_alive(folder / FIRST))
    run()
    assert steps(folder / FIRST) == ["0", "1", "2"]


def test_jobs_must_be_positive(folder: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run(jobs=0)
