"""Every trainable quickstart with every overlay: trains, goes on exactly, is exported, is merged.

    make matrix        runs this and writes the table of recipes/README.md

A cell is one quickstart, cut to 100 steps, through the command line. What it found goes into the
JUnit report (`--junitxml`), from which `tests/helpers/matrix_table.py` makes the table.
"""

import json
import math
from pathlib import Path

import pytest
from comparison import assert_same, last_checkpoint
from tenfold.recipes.cli import main

pytestmark = pytest.mark.slow

STEPS, SAVED = 100, 25  # the overlays of merging take a snapshot every 50 steps
RECIPES = [
    "art2prog/quickstart",
    "ctrl_cic/quickstart",
    "cvr_llm/captioner",  # what cvr_llm/quickstart trains
    "deepicon/quickstart",
    "language_model/quickstart",
    "model_merging/quickstart",
    "mucr/quickstart",
    "perception_magnifier/tiny_vlm",  # what perception_magnifier/quickstart trains
    "qat_scaling/quickstart",
    "realsyn/quickstart",
    "set_mixer/quickstart",
    "vision_language_model/quickstart",
]
LORA = {
    "ctrl_cic/quickstart": "{r: 8, lora_alpha: 16, target_modules: [q, v]}",
    "cvr_llm/captioner": "{r: 8, lora_alpha: 16}",
    "perception_magnifier/tiny_vlm": "{r: 8, lora_alpha: 16}",
    "vision_language_model/quickstart": "{r: 8, lora_alpha: 16}",
}
OVERLAYS = {
    "alone": [],
    "qat_w4a4": ["--config=overlays/qat_w4a4"],
    "merge_sma": ["--config=overlays/merge_sma"],
    "merge_wsm": ["--config=overlays/merge_wsm"],
    "anneal_prediction": ["--config=overlays/anneal_prediction"],
    "ema": ["--config=overlays/ema"],
    "lora": [],
    "bf16": ["--config=overlays/bf16"],
    "ddp": ["--config=overlays/ddp", "--trainer.devices=2"],
    "fsdp": [
        *("--config=overlays/fsdp", "--trainer.devices=2"),
        "--trainer.strategy.init_args.data_parallel_size=2",
    ],
}
# What has no cell, and why: said in the table.
NONE = {
    ("qat_scaling/quickstart", "qat_w4a4"): "is this overlay already",
    ("model_merging/quickstart", "merge_sma"): "merges already",
    ("model_merging/quickstart", "merge_wsm"): "merges already",
    ("model_merging/quickstart", "anneal_prediction"): "predicts already",
} | {(recipe, "lora"): "the method has no LoRA" for recipe in RECIPES if recipe not in LORA}
CELLS = [(r, o) for r in RECIPES for o in OVERLAYS if (r, o) not in NONE]


def options(recipe: str, overlay: str) -> list[str]:
    chosen = ["--config", recipe, *OVERLAYS[overlay], "--trainer.accelerator=cpu"]
    if overlay == "lora":
        chosen.append(f"--model.lora={LORA[recipe]}")
    return [
        *chosen,
        *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"),
        *("--trainer.check_val_every_n_epoch=null", "--trainer.limit_val_batches=2"),
        *(f"--checkpoint.every_n_train_steps={SAVED}", "--test_after_fit=false"),
    ]


@pytest.fixture
def run(tmp_path, monkeypatch, tenfold):
    """Runs a command: in a process of its own where it starts others."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, alone: bool) -> None:
        if alone:
            done = tenfold(*arguments)
            assert done.returncode == 0, done.stderr
        else:
            assert main(arguments) == 0

    return call


@pytest.mark.parametrize(("recipe", "overlay"), CELLS)
def test_cell(recipe, overlay, run, record_property):
    several = overlay in ("ddp", "fsdp")
    fit = ["fit", *options(recipe, overlay)]
    run(*fit, "--run_dir=run", alone=several)
    metrics = json.loads(Path("run/metrics.json").read_text())["fit"]
    monitor = "val/caption_loss" if "val/caption_loss" in metrics else "val/loss"
    assert math.isfinite(metrics[monitor])
    record_property("metric", f"{monitor} {metrics[monitor]:.4g}")
    record_property("trains", "yes")

    run(*fit, "--run_dir=again", "--ckpt_path=run/checkpoints/previous.ckpt", alone=several)
    whole, resumed = last_checkpoint("run"), last_checkpoint("again")
    assert resumed["global_step"] == STEPS
    assert_same(whole["state_dict"], resumed["state_dict"])
    for state, again in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        assert_same(state["state"], again["state"])
    record_property("resumes", "yes")

    # What was not trained in 4 bits is rounded now.
    how = [] if "qat" in f"{recipe} {overlay}" else ["--config=rounded.yaml"]
    Path("rounded.yaml").write_text("base: [run/config.yaml, overlays/qat_w4a4]")
    run("export", "--run_dir=run", "--format=int4", "--out=exported", *how, alone=False)
    assert any(Path("exported").glob("*.safetensors"))
    record_property("exports", "yes")

    checkpoints = [f"run/checkpoints/{name}.ckpt" for name in ("previous", "last")]
    run("merge", *checkpoints, "--out=merged.ckpt", alone=False)
    fit[fit.index("fit")] = "validate"
    run(*fit, "--run_dir=merged", "--ckpt_path=merged.ckpt", alone=several)
    merged = json.loads(Path("merged/metrics.json").read_text())["validate"]
    assert math.isfinite(merged[monitor])
    record_property("merges", f"{merged[monitor]:.4g}")
