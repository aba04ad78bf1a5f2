"""Quantised, merged and sharded runs on two nodes of a real SLURM."""

import json
from pathlib import Path

import pytest
from comparison import assert_same, last_checkpoint
from safetensors.torch import load_file
from tenfold.callbacks.checkpointing import is_intact
from tenfold.recipes.cli import main

pytestmark = pytest.mark.slurm

MERGING = """
trainer:
  callbacks+:
    - class_path: CheckpointMerging
      init_args: {every_n_train_steps: 3, num_checkpoints: 3, scheme: sma, save_merged: last}
    - {class_path: toy.Pause, init_args: {seconds: 0.2}}
  val_check_interval: 6
  limit_val_batches: 2
"""
PAUSE = "trainer: {callbacks+: [{class_path: toy.Pause, init_args: {seconds: 0.2}}]}"
SMALL = {
    "language_model": {"data.batch_size": 2, "data.sequence_length": 64},
    "set_mixer": {"data.num_points": 128, "data.batch_size": 8, "test_after_fit": False},
}


def submit_two_nodes(jobs, run_dir: str, configs: list[str], settings: dict) -> str:
    names = [part for name in configs for part in ("--config", name)]
    override = ["--override", json.dumps(settings)]
    return jobs.submit(*names, "--nodes", "2", "--run_dir", run_dir, *override)


@pytest.mark.parametrize("method", SMALL)
def test_two_recipes_in_4_bits_and_merged_end_as_if_not_preempted(jobs, project, method):
    Path("merging.yaml").write_text(MERGING)
    configs = [f"{method}/quickstart", "overlays/qat_w4a4", "merging.yaml", "overlays/ddp"]
    settings = {"trainer.max_steps": 24, "checkpoint.every_n_train_steps": 2, **SMALL[method]}
    whole = submit_two_nodes(jobs, "whole", configs, settings)
    jobs.cluster.wait_for(whole, "COMPLETED")
    run = submit_two_nodes(jobs, "run", configs, settings)
    jobs.preempt(run, project / "run" / "checkpoints" / "last.ckpt")
    jobs.cluster.wait_for(run, "COMPLETED")
    assert_same(last_checkpoint("run"), last_checkpoint("whole"))
    metrics = [json.loads(Path(name, "metrics.json").read_text()) for name in ("run", "whole")]
    assert metrics[0]["fit"]["merged/val/loss"] == metrics[1]["fit"]["merged/val/loss"]
    assert metrics[0]["run"]["world_size"] == 2
    assert metrics[0]["run"]["quantization"]["precision"].startswith("w4a4")


def test_a_sharded_run_saves_and_goes_on_on_two_nodes(jobs, project):
    Path("pause.yaml").write_text(PAUSE)
    configs = ["tiny.yaml", "overlays/fsdp", "pause.yaml"]
    arguments = "trainer.strategy.init_args"
    settings = {
        f"{arguments}.data_parallel_size": 2,
        f"{arguments}.save_distributed_checkpoint": True,
        "trainer.max_steps": 40,
    }
    whole = submit_two_nodes(jobs, "whole", configs, settings)
    jobs.cluster.wait_for(whole, "COMPLETED")
    run = submit_two_nodes(jobs, "run", configs, settings)
    jobs.preempt(run, project / "run" / "checkpoints" / "last.ckpt")
    jobs.cluster.wait_for(run, "COMPLETED")
    for name in ("run", "whole"):
        last = Path(name, "checkpoints", "last.ckpt")
        assert len(list(last.glob("*.distcp"))) == 2
        assert is_intact(last)
        assert main(["merge", str(last), "--out", f"{name}.safetensors"]) == 0
    assert_same(load_file("run.safetensors"), load_file("whole.safetensors"))
