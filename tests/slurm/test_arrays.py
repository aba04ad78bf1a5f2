"""A study as job arrays, on a real SLURM."""

import csv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

STUDY = """
stages:
  - name: train
    recipe: recipe.yaml
    set: {trainer.max_steps: 4, data.batch_size: 8}
    variants:
      w2: {set: {model.init_args.width: 2}}
      w3: {set: {model.init_args.width: 3}}
      w4: {set: {model.init_args.width: 4}}
      w5: {set: {model.init_args.width: 5}}
      w6: {set: {model.init_args.width: 6}}
      w7: {set: {model.init_args.width: 7}, config: [needs.yaml]}
table: {rows: train.variant, against: w2, metrics: [val/loss]}
"""
PAIR = """
stages:
  - name: train
    recipe: recipe.yaml
    config: [slow.yaml]
    set: {trainer.max_steps: 60}
    variants:
      w2: {set: {model.init_args.width: 2}}
      w3: {set: {model.init_args.width: 3}}
table: {rows: train.variant, against: w2, metrics: [val/loss]}
"""
SLOW = "trainer: {callbacks+: [{class_path: toy.Pause, init_args: {seconds: 0.2}}]}"
NEEDS = "trainer: {callbacks+: [{class_path: toy.Needs, init_args: {path: disk}}]}"


def submitted(printed: str) -> list[str]:
    return [line.split(":")[0].removeprefix("job ") for line in printed.splitlines()]


def table_rows() -> list[dict[str, str]]:
    with Path("grid/table.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_failed_run_of_six_is_run_again_alone(jobs, project):
    Path("grid.yaml").write_text(STUDY)
    Path("needs.yaml").write_text(NEEDS)
    submit = ["submit", "--study", "grid.yaml", "--gpus=false", "--study_dir", "grid"]
    array, table = submitted(jobs.tenfold(*submit))
    jobs.cluster.wait_for(table, "COMPLETED", timeout=300)
    assert [row["row"] for row in table_rows() if not row["mean"]] == ["w7"]
    printed = jobs.tenfold("jobs")
    assert f"{array}_5" in printed
    assert "5 finished, 1 ended without a result" in printed
    assert not Path("grid/train/w7/metrics.json").exists()
    assert "disk is not there" in Path(f"grid/slurm/train-{array}_5.out").read_text()

    Path("disk").touch()
    again, table = submitted(jobs.tenfold(*submit))
    jobs.cluster.wait_for(table, "COMPLETED", timeout=120)
    assert "--array=5\n" in Path("grid/slurm/grid-train.sbatch").read_text()
    assert Path("grid/train/w7/metrics.json").exists()
    assert [row["row"] for row in table_rows()] == ["w2", "w3", "w4", "w5", "w6", "w7"]
    assert all(row["mean"] for row in table_rows())
    assert f"{again}_5" in jobs.tenfold("jobs", "--all")
    assert "every run has finished" in jobs.tenfold(*submit)


def test_only_the_element_that_is_warned_is_queued_again(jobs, project):
    Path("slow.yaml").write_text(SLOW)
    Path("pair.yaml").write_text(PAIR)
    submit = ["submit", "--study", "pair.yaml", "--gpus=false", "--study_dir", "pair"]
    array, table = submitted(jobs.tenfold(*submit))
    for name in ("w2", "w3"):
        last = project / "pair" / "train" / name / "checkpoints" / "last.ckpt"
        jobs.wait_until(last.exists, f"a checkpoint of {name}")
    jobs.cluster.run("scancel", "--signal=USR1", f"{array}_1")
    jobs.cluster.wait_for(table, "COMPLETED")
    restarts = [jobs.cluster.show_job(f"{array}_{k}")["Restarts"] for k in (0, 1)]
    assert restarts == ["0", "1"]
    said = Path(f"pair/slurm/train-{array}_1.out").read_text()
    assert f"job {array}_1 is queued again" in said
    assert Path("pair/train/w3/config.resume_1.yaml").exists()
    assert all(Path(f"pair/train/{name}/metrics.json").exists() for name in ("w2", "w3"))
