"""The callback and `tenfold merge` give the same bits from the same snapshots."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tenfold.recipes.cli import main


@pytest.mark.parametrize("scheme", [["sma"], ["wsm", "--decay-shape", "1-sqrt"], ["ema"]])
def test_offline_and_online_merges_are_one(project, scheme):
    settings = {"every_n_train_steps": 3, "num_checkpoints": 5, "evaluate": False}
    settings |= {"scheme": scheme[0], "save_merged": "last", "save_format": "safetensors"}
    settings |= {"decay_shape": scheme[-1]} if len(scheme) > 1 else {}
    callback = {"class_path": "CheckpointMerging", "init_args": settings}
    Path("merge.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    recipe = {"base": "recipe.yaml", "model": {"class_path": "normed.Normed"}}
    Path("normed.yaml").write_text(yaml.safe_dump(recipe))
    command = ["fit", "--config", "normed.yaml", "--config", "merge.yaml", "--run_dir", "run"]
    command += ["--trainer.val_check_interval", "6", "--trainer.max_steps", "18"]
    assert main([*command, "--trainer.check_val_every_n_epoch", "null"]) == 0
    assert main(["merge", "run", "--out", "out.safetensors", "--scheme", *scheme]) == 0
    (online,) = (load_file(path) for path in Path("run/merging").glob("merged_*.safetensors"))
    offline = load_file("out.safetensors")
    assert offline.keys() == online.keys() - {"frozen.weight", "frozen.bias"}
    for name, value in offline.items():
        assert torch.equal(value, online[name]), name
