"""Contrastive runs from the command line: many processes, chunks, encoders of what was trained."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from comparison import assert_same, last_checkpoint
from PIL import Image
from tenfold.modules.encoders import ContrastiveEncoder, build_encoder
from tenfold.modules.realsyn import ClipPretraining
from tenfold.recipes.cli import main
from tiny_pairs import SMALL, picture, records, write_parquet, write_tar

FIT = ("fit", "--config", "clip.yaml", "--trainer.max_steps=10")


@pytest.fixture
def recipe(project):
    write_parquet(project / "data" / "pairs" / "a.parquet", records(64))
    write_parquet(project / "data" / "held_out" / "a.parquet", records(13, first=64))
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "eps": 1e-6}}
    content = {
        "seed_everything": 0,
        "model": {"class_path": "ClipPretraining", "init_args": {**SMALL, "optimizer": adam}},
        "data": {
            "class_path": "MultiTextDataModule",
            "init_args": {"root": "data", "val": "held_out", "image_size": 16, "batch_size": 8},
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 2},
    }
    Path("clip.yaml").write_text(yaml.safe_dump(content))
    return project


def on(devices, strategy):
    options = ["--config", f"overlays/{strategy}", f"--trainer.devices={devices}"]
    options += [f"--data.batch_size={8 // devices}"]
    if strategy == "fsdp":
        options += [f"--trainer.strategy.init_args.data_parallel_size={devices}"]
    return options


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("devices", "strategy", "chunks"),
    [(2, "ddp", 0), (4, "ddp", 0), (2, "fsdp", 0), (2, "ddp", 2), (2, "fsdp", 2)],
)
def test_processes_and_chunks_learn_what_one_process_does(
    recipe, tenfold, loss, devices, strategy, chunks
):
    """At one global batch, towers and temperature alike."""
    # By plain gradient descent: AdamW would hide a factor, and blow up the rounding of gradients
    # that are 0, as those of the biases of attention keys are.
    fit = [*FIT, f"--model.loss={loss}", "--trainer.limit_val_batches=0"]
    fit += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    assert main([*fit, "--run_dir=one"]) == 0
    options = [f"--model.chunk_size={chunks}"] if chunks else []
    several = tenfold(*fit, *on(devices, strategy), *options, "--run_dir=several")
    assert several.returncode == 0, several.stderr
    one, other = (last_checkpoint(run)["state_dict"] for run in ("one", "several"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_held_out_pairs_are_counted_once_on_any_number_of_processes(recipe, tenfold):
    """13 pairs for two processes, one of them broken."""
    rows = records(13, first=64)
    rows[5]["image"] = b"broken"
    write_parquet(recipe / "data" / "held_out" / "a.parquet", rows)
    found = []
    assert main([*FIT, "--trainer.limit_val_batches=0", "--run_dir=one"]) == 0
    for devices in (1, 2):
        run = ["--ckpt_path=one/checkpoints/last.ckpt", f"--run_dir=test{devices}"]
        for strategy in ("ddp", "fsdp") if devices == 2 else ("ddp",):
            options = ["--config", "clip.yaml", *on(devices, strategy), *run, "--overwrite"]
            done = tenfold("test", *options)
            assert done.returncode == 0, done.stderr
            metrics = json.loads(Path(f"test{devices}/metrics.json").read_text())["test"]
            found.append({k: v for k, v in metrics.items() if "text" in k})
    assert len(found[0]) == 8
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def test_a_run_on_tar_files_goes_on_exactly(recipe, tenfold):
    write_tar(recipe / "tar" / "00000.tar", records(32))
    write_tar(recipe / "tar" / "00001.tar", records(32, first=32))
    data = ["--data.root=.", "--data.train=tar", "--data.val=null", "--data.test=null"]
    data += ["--data.text_keys=[txt,json.text2,json.text3,json.syn_text]"]
    stop = "trainer: {callbacks+: [{class_path: toy.Interrupt, init_args: {step: 5}}]}"
    Path("stop.yaml").write_text(stop)
    assert main([*FIT, *data, "--run_dir=whole"]) == 0
    assert main([*FIT, "--config", "stop.yaml", *data, "--run_dir=run"]) == 130
    assert main([*FIT, *data, "--run_dir=run", "--ckpt_path=auto"]) == 0
    whole, resumed = (last_checkpoint(run) for run in ("whole", "run"))
    for part in ("state_dict", "optimizer_states", "training_progress"):
        assert_same(whole[part], resumed[part], part)


def test_what_was_trained_is_an_encoder(recipe):
    assert main([*FIT, "--trainer.limit_val_batches=0", "--run_dir=run"]) == 0
    path = "run/checkpoints/last.ckpt"
    encoder = build_encoder({"class_path": "ContrastiveEncoder", "init_args": {"model": path}})
    images = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "green")]
    found = encoder.encode_images(images), encoder.encode_texts(["a red square", ""])
    module = ClipPretraining.load_from_checkpoint(path, weights_only=True).eval()
    pixels = torch.stack([torch.tensor(image.getpixel((0, 0))) for image in images]).byte()
    with torch.no_grad():
        expected = module.encode_image(pixels[:, :, None, None].expand(-1, -1, 16, 16))
        torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[1], module.encode_text(["a red square", ""]))
        pooled = ContrastiveEncoder(path, "pooler", normalize=False)
        assert not pooled.supports_texts
        torch.testing.assert_close(
            pooled.encode_images(images),
            module.image_features(pixels[:, :, None, None].expand(-1, -1, 16, 16)),
            atol=1e-5,
            rtol=1e-5,
        )
    assert encoder.identity["model"].startswith("sha256:")
    assert encoder.identity != pooled.identity
    with pytest.raises(ValueError, match=r"no checkpoint 'nothing.ckpt'"):
        ContrastiveEncoder("nothing.ckpt").encode_texts(["a"])
    with pytest.raises(ValueError, match="seed: weights are those of model"):
        ContrastiveEncoder(path, seed=1)


def test_mistakes_are_one_line(recipe, capsys):
    mistakes = {
        "--data.root=nowhere": "no *.parquet and no *.tar at nowhere/pairs",
        "--model.gather_with_grad=false": "set gather_with_grad: true",
        "--data.text_keys=[captions]": "has no column 'captions'",
        "--data.batch_size=65": "not one batch per rank",
    }
    for number, (option, message) in enumerate(mistakes.items()):
        assert main([*FIT, option, f"--run_dir=run{number}"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    rows = records(8)
    rows[3]["image"] = picture("red")[:40]
    write_parquet(recipe / "data" / "pairs" / "a.parquet", rows)
    assert main([*FIT, "--data.strict=true", "--run_dir=run"]) == 2
    assert "a.parquet, row 3: image cannot be read" in capsys.readouterr().err
