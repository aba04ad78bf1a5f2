"""DeepIcon from the command line: train, go on, predict pictures, load in a notebook."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tenfold.datamodules.icons import GeneratedIcons
from tenfold.modules.deepicon import DeepIconModule
from tenfold.modules.svg import parse_svg, render, write_svg
from tenfold.recipes.cli import main
from torchvision.transforms.functional import to_pil_image

FIT = ["fit", "--config", "deepicon/quickstart", "--trainer.max_steps=4", "--run_dir=run"]
FIT += ["--data.init_args.num_train=32", "--data.init_args.batch_size=8"]
FIT += ["--data.init_args.num_val=4", "--data.init_args.num_test=4", "--model.init_args.width=32"]
FIT += ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2"]


@pytest.fixture
def run(project) -> Path:
    assert main(FIT) == 0
    return project / "run"


def test_a_run_is_trained_tested_drawn_and_used(run, project, capsys):
    content = json.loads((run / "metrics.json").read_text())
    assert content["fit"]["step"] == 4
    assert 0 <= content["test"]["test/matched_f1"] <= 1
    assert content["run"]["num_train_icons"] == 32
    assert {path.name for path in (run / "figures").iterdir()} >= {"icons.png", "loss.png"}
    assert len((run / "records.jsonl").read_text().splitlines()) == 4

    # A folder of pictures, one of them transparent and no square.
    pictures = project / "pictures" / "sub"
    pictures.mkdir(parents=True)
    to_pil_image(render([GeneratedIcons()[0]], (60, 60))[0]).save(pictures / "one.png")
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(pictures / "empty.png")
    predict = ["predict", "--config", "run/config.yaml", "--run_dir=run"]
    predict += ["--ckpt_path=run/checkpoints/last.ckpt"]
    assert main([*predict, "--data.init_args.predict_root=pictures"]) == 0
    folder = run / "predictions"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["sub/empty", "sub/one"]
    for row in rows:
        text = (folder / f"{row['id']}.svg").read_text()
        assert text == row["svg"]
        assert sum(1 for _ in parse_svg(text).shapes()) == row["paths"]

    # In a notebook, with nothing but the checkpoint.
    model = DeepIconModule.load_from_checkpoint(run / "checkpoints/last.ckpt", weights_only=True)
    picture = render([GeneratedIcons()[0]], (48, 48))
    assert parse_svg(model.eval().generate(picture)[0]).children
    predicted = ["--data.init_args.predict_root=nowhere"]
    assert main([*predict, *predicted, "--overwrite"]) == 2
    assert "no picture at 'nowhere'" in capsys.readouterr().err


RECIPE = """
model:
  class_path: TracingModule
  init_args:
    labels: [mine, vtracer]
    tracers:
      - class_path: TrainedTracer
        init_args: {checkpoint: run/checkpoints/last.ckpt, image_size: 48}
      - class_path: VTracer
    codec: {max_paths: 4, max_commands: 12, path_order: topleft}
data:
  class_path: GeneratedIconDataModule
  init_args:
    num_test: 30
    image_size: 96
    codec: {max_paths: 4, max_commands: 12, path_order: topleft}
    icons: {max_shapes: 3}
"""
PROBE = """
model:
  class_path: KeywordProbe
  init_args: {checkpoint: run/checkpoints/last.ckpt, image_size: 48, min_icons: 5}
data:
  class_path: IconDataModule
  init_args:
    sources: [{path: svg}]
    split_ratios: [0, 0, 1]
    image_size: 48
    codec: {max_paths: 5, max_commands: 12}
"""


def test_a_trained_model_is_compared_and_probed(run, project, capsys):
    Path("compare.yaml").write_text(RECIPE)
    assert main(["test", "--config", "compare.yaml", "--run_dir=compared"]) == 0
    values = json.loads(Path("compared/metrics.json").read_text())["test"]
    assert 0 <= values["test/mine/matched_f1"] <= 1
    assert values["test/vtracer/ink_iou"] > 0.8
    assert Path("compared/figures/pareto.png").is_file()
    records = [json.loads(r) for r in Path("compared/records.jsonl").read_text().splitlines()]
    assert {record["row"] for record in records} == {"mine", "vtracer"}
    assert len(records) == 60

    Path("svg").mkdir()
    for index in range(40):
        name = f"{('user', 'file', 'cloud')[index % 3]}{index}-plus.svg"
        Path("svg", name).write_text(write_svg(GeneratedIcons()[index]))
    Path("probe.yaml").write_text(PROBE)
    assert main(["test", "--config", "probe.yaml", "--run_dir=probed"]) == 0
    values = json.loads(Path("probed/metrics.json").read_text())["test"]
    assert values["test/num_keywords"] == 4  # plus, which all have, and three that say nothing
    assert values["test/chance/average_precision"] == pytest.approx((1 + 1) / 4)
    for row in ("code", "random", "pixels"):
        assert 0.4 < values[f"test/{row}/average_precision"] < 0.9
    assert Path("probed/figures/keywords.png").is_file()
    missing = ["--model.init_args.checkpoint=no.ckpt", "--run_dir=none"]
    assert main(["test", "--config", "probe.yaml", *missing]) == 2
    assert "there is no file 'no.ckpt'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(run, project):
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    part = [a.replace("max_steps=4", "max_steps=2").replace("=run", "=part") for a in FIT]
    # The same schedule: a length of its own, not that of the shorter run.
    schedule = "--model.init_args.lr_scheduler.init_args.num_training_steps=4"
    assert main([*part, schedule, "--test_after_fit=false"]) == 0
    on = [argument.replace("=run", "=part") for argument in FIT]
    assert main([*on, schedule, "--ckpt_path=auto", "--test_after_fit=false"]) == 0
    resumed = torch.load("part/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_another_codec_for_model_and_data_is_one_line(project, capsys):
    assert main([*FIT, "--model.init_args.codec.max_paths=5"]) == 2
    assert "give model and data the same codec" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_learn_what_one_does(project, tenfold):
    """At equal global batch: losses are means over all commands, however ranks share them."""
    quiet = ["--model.init_args.decoder.init_args.arg_noise=0", "--test_after_fit=false"]
    ddp = ["--config", "overlays/ddp", "--trainer.devices=2", "--data.init_args.batch_size=4"]
    fit = [argument for argument in FIT if "run_dir" not in argument]
    one = tenfold(*fit, *quiet, "--run_dir=one")
    assert one.returncode == 0, one.stderr
    two = tenfold(*fit, *quiet, *ddp, "--run_dir=two")
    assert two.returncode == 0, two.stderr
    states = [
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("one", "two")
    ]
    for name, value in states[0].items():
        assert (value - states[1][name]).norm() <= 2e-3 * value.norm() + 1e-6, name


@pytest.mark.slow
def test_32_icons_are_learned_by_heart(project):
    """The specification's figures: 0.2 of 24 units allow an ink IoU of 0.8, 0.3 do not."""
    pytest.importorskip("lucide")
    assert main(["fit", "--config", "deepicon/overfit", "--run_dir=run"]) == 0
    values = json.loads(Path("run/metrics.json").read_text())["test"]
    assert values["test/type_accuracy"] > 0.99
    assert values["test/count_accuracy"] == 1
    assert values["test/arg_error"] < 0.2
    assert values["test/ink_iou"] > 0.8
    assert values["test/matched_f1"] > 0.95
