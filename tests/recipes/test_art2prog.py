"""Art2Prog from the command line: training, testing, programs for a folder of pictures."""

import json
from pathlib import Path

import pytest
import torch
from comparison import assert_same, last_checkpoint
from PIL import Image
from tenfold.modules.art2prog import Art2Prog, Language
from tenfold.recipes.cli import main

RECIPE = """
seed_everything: 0
model:
  class_path: Art2Prog
  init_args:
    language: &language {grid: 4, radii: [1, 2], max_layers: 2, max_lines: 14}
    image_size: 32
    state_size: 32
    encoder:
      {model: resnet18, layers: [1, 1, 1, 1], stem_width: 8, channels: [8, 16, 24, 32],
       out_index: 2}
    state_encoder: {model: resnet18, layers: [1, 1, 1, 1], stem_width: 8, channels: [8, 16, 24, 32]}
    decoder: {n_layer: 1, n_embd: 32, n_head: 2}
    val_programs: 2
data:
  class_path: ProgramDataModule
  init_args:
    sampler:
      class_path: ProgramSampler
      init_args: {language: *language, layer_probs: [0.5, 0.5], num_edges: [2, 4], min_area: 1}
    num_train: 40
    num_val: 4
    num_test: 5
    image_size: 32
    state_size: 32
    batch_size: 4
trainer: {max_steps: 4, val_check_interval: 2, log_every_n_steps: 2, accelerator: cpu}
test_after_fit: true
"""


@pytest.fixture
def run(project):
    Path("art.yaml").write_text(RECIPE)
    assert main(["fit", "--config", "art.yaml", "--run_dir", "run"]) == 0
    return Path("run")


def test_a_run_leaves_what_it_promises(run, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["fit"]["val/loss"] > 0
    numbers = metrics["test"]
    assert 0 <= numbers["test/exec_match"] <= 1
    assert numbers["test/mse"] > 0
    assert numbers["test/blank_mse"] > 0
    assert {"test/token_accuracy_coordinate", "test/psnr", "test/layer_iou"} <= numbers.keys()
    assert metrics["run"]["programs_seen"] == 16
    assert (run / "figures" / "programs.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]

    Path("mine").mkdir()
    for number, color in enumerate(("red", "white")):
        Image.new("RGB", (40, 30), color).save(f"mine/{number}.png")
    assert main(["predict", "--run_dir", "run", "--data.images", "mine"]) == 0
    folder = run / "predictions"
    language = Language.of(json.loads((folder / "language.json").read_text()))
    for stem in ("0", "1"):
        program = language.parse((folder / f"{stem}.a2p").read_text())
        record = json.loads((folder / f"{stem}.json").read_text())
        assert language.from_json(record["lines"]) == program
        assert "png" not in record
        for ending in (".svg", ".ora", ".png"):
            assert (folder / f"{stem}{ending}").stat().st_size > 50
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["id"] for row in manifest] == ["0", "1"]
    assert all(row["mse"] > 0 for row in manifest)

    Path("mine/art.png").write_bytes(b"no picture")
    assert main(["predict", "--run_dir", "run", "--data.images", "mine", "--overwrite"]) == 2
    assert "mine/art.png: no picture that can be read" in capsys.readouterr().err

    module = Art2Prog.load_from_checkpoint(run / "checkpoints/last.ckpt", weights_only=True).eval()
    assert module.language.grid == 4
    (program,) = module.generate(torch.rand(1, 3, 32, 32), samples=3, rerank_by="render")
    module.language.check(program)


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_that_was_not(run):
    """Stopped in the middle of an epoch, between validations."""
    fit = ["fit", "--config", "art.yaml", "--run_dir", "half"]
    assert main([*fit, "--trainer.max_steps", "3"]) == 0
    assert main([*fit, "--ckpt_path", "auto", "--overwrite"]) == 0
    one, other = last_checkpoint(run), last_checkpoint("half")
    assert_same(one["state_dict"], other["state_dict"])
    assert_same(one["optimizer_states"], other["optimizer_states"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.image_size=48"], "model.init_args.image_size is 32, that of the data 48"),
        (["--model.language.grid=5"], "model.init_args.language.grid is 5, that of the data 4"),
        (["--data.with_states=false"], "set data.init_args.with_states to true"),
        (["--data.sampler.init_args.layer_probs=[1, 0, 0]"], "raise language.max_layers"),
    ],
)
def test_settings_that_do_not_fit_get_one_line(project, capsys, options, message):
    Path("art.yaml").write_text(RECIPE)
    assert main(["fit", "--config", "art.yaml", "--run_dir", "bad", *options]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_write_programs_without_waiting_for_each_other(run, tenfold, strategy):
    """Programs of different lengths, as many on each process as it has; the same numbers."""
    options = ["--config", f"overlays/{strategy}", "--trainer.devices=2"]
    if strategy == "fsdp":
        options += ["--trainer.strategy.init_args.data_parallel_size=2"]
    for command, more in (("test", []), ("predict", [])):
        done = tenfold(
            *(command, "--config", "art.yaml", *options, "--run_dir", "two", *more),
            *("--ckpt_path", "run/checkpoints/last.ckpt"),
        )
        assert done.returncode == 0, done.stderr
    one, two = (json.loads(Path(r, "metrics.json").read_text())["test"] for r in ("run", "two"))
    for name in one:
        if name.startswith("test/") and not name.endswith("seconds_per_image"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    rows = Path("two/predictions/manifest.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["id"] for row in rows) == [f"{n:06d}" for n in range(5)]
