"""`tenfold export` on runs that were trained by `tenfold fit`, and weights that change hands."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tenfold.kernels.fake_quant import fake_quantize
from tenfold.modules.quantization.inference import Int4Linear, load_quantized
from tenfold.modules.quantization.packed import dequantized_state_dict
from tenfold.recipes.cli import main
from transformers import AutoModelForCausalLM

TINY = [
    *["--model.config.hidden_size", "64", "--model.config.intermediate_size", "96"],
    *["--model.config.num_hidden_layers", "2", "--data.sequence_length", "32"],
    *["--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"],
    *["--trainer.max_steps", "4", "--trainer.val_check_interval", "2"],
    *["--checkpoint.every_n_train_steps", "2"],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two runs of the quickstart: `qat`, and `plain`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TENFOLD_CACHE", str(folder / "cache"))
        fit = ["fit", "--config", "language_model/quickstart"]
        qat = ["--config", "overlays/qat_w4a4"]
        assert main([*fit, *qat, *TINY, "--run_dir", "qat"]) == 0
        assert main([*fit, *TINY, "--run_dir", "plain"]) == 0
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch) -> Path:
    """A folder of this test's own, with both runs in it."""
    for name in ("qat", "plain"):
        shutil.copytree(runs / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network_state(checkpoint: Path | str) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")}


def is_quantised(name: str) -> bool:
    return name.endswith("_proj.weight")


def best(run: str) -> str:
    return f"{run}/{json.loads(Path(run, 'metrics.json').read_text())['fit']['best_checkpoint']}"


def assert_rounded(found: dict[str, torch.Tensor], checkpoint: str) -> None:
    trained = network_state(checkpoint)
    assert found.keys() == trained.keys()
    for name, weight in trained.items():
        expected = fake_quantize(weight, 32) if is_quantised(name) else weight
        assert torch.equal(found[name], expected), name


def test_a_run_is_exported_as_it_was_rounded(here, capsys):
    assert main(["export", "--run_dir", "qat", "--out", "out"]) == 0
    assert_rounded(dequantized_state_dict("out"), best("qat"))
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-4] == f"out: int4, from {best('qat')}"
    assert lines[-3] == "  14 layers: 4 bit G=32 absmax"
    before = sum(4 * tensor.numel() for tensor in network_state(best("qat")).values())
    after = Path("out/model.safetensors").stat().st_size
    ratio = f"{before:,} bytes of tensors, {after:,} written: ratio {before / after:.2f}"
    assert lines[-2].strip() == ratio
    assert lines[-1].strip() == (
        'load it: tenfold.modules.quantization.inference.load_quantized("out")'
    )


def test_the_packed_network_has_the_loss_of_the_run(here, monkeypatch):
    """The exported network on the run's own batch, against the module that was trained."""
    assert main(["export", "--run_dir", "qat", "--out", "out"]) == 0
    loaded = load_quantized("out")
    layers = [m for m in loaded.modules() if isinstance(m, Int4Linear)]
    assert len(layers) == 14
    assert all(str(m.input_quantizer.config) == "4 bit G=32 absmax" for m in layers)
    assert main(["export", "--run_dir", "qat", "--format", "fake", "--out", "fake"]) == 0
    weights_only = AutoModelForCausalLM.from_pretrained("fake")
    ids = torch.arange(64).view(2, 32)
    with torch.no_grad():
        assert not torch.allclose(loaded(ids).logits, weights_only(ids).logits, atol=1e-4)
        for layer in layers:
            layer.input_quantizer.enabled = False
        torch.testing.assert_close(loaded(ids).logits, weights_only(ids).logits)


@pytest.mark.parametrize("format_", ["hf", "fake", "compressed-tensors"])
def test_other_formats_load_with_transformers(format_, here, capsys):
    ckpt = "qat/checkpoints/last.ckpt"
    assert main(["export", "--ckpt", ckpt, "--format", format_, "--out", "out"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert (
        notes
        == {
            "hf": [],
            "fake": [
                "note: weights are rounded; the network loaded from it does not round activations"
            ],
            "compressed-tensors": [
                "note: the run rounded activations too; this format holds weights only"
            ],
        }[format_]
    )
    loaded = AutoModelForCausalLM.from_pretrained("out")
    loaded(torch.arange(8).view(1, 8))
    if format_ == "hf":
        trained = network_state(ckpt)
        assert all(torch.equal(trained[n], t) for n, t in loaded.state_dict().items())
    else:
        unscaled = {n: t for n, t in loaded.state_dict().items() if n in network_state(ckpt)}
        assert_rounded(unscaled, ckpt)


def test_hf_takes_a_plain_run(here):
    assert main(["export", "--run_dir", "plain", "--format", "hf", "--out", "out"]) == 0
    stored = load_file("out/model.safetensors")
    trained = network_state(best("plain"))
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], trained[name]) for name in stored)


def test_a_plain_checkpoint_is_rounded_by_another_recipe(here, capsys):
    ckpt = best("plain")
    assert main(["export", "--ckpt", ckpt, "--config", "qat/config.yaml", "--out", "out"]) == 0
    assert "does not say how it was rounded in training" in capsys.readouterr().err
    assert_rounded(dequantized_state_dict("out"), ckpt)


def test_data_and_loggers_of_the_run_need_not_be_there(here, capsys):
    config = Path("qat/config.yaml")
    wandb = "logger: {class_path: lightning.pytorch.loggers.WandbLogger}"
    text, count = re.subn(r"val_fraction: \S+", "val_fraction: 2", config.read_text())
    assert count == 1
    assert "  logger: null\n" in text
    config.write_text(text.replace("logger: null", wandb))
    fit = ["fit", "--config", "qat/config.yaml", "--run_dir", "new"]
    assert main([*fit, "--trainer.logger", "false"]) == 2
    assert "val_fraction must be in" in capsys.readouterr().err
    assert main(["export", "--run_dir", "qat", "--out", "out"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["out", "plain", "qat"]


def test_overwrite_replaces_an_export(here, capsys):
    export = ["export", "--run_dir", "qat", "--out", "out"]
    assert main(export) == 0
    assert main([*export, "--format", "fake"]) == 2
    assert "out exists: choose another folder, or pass --overwrite" in capsys.readouterr().err
    assert main([*export, "--format", "fake", "--overwrite"]) == 0
    assert_rounded(load_file("out/model.safetensors"), best("qat"))


def damage(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


MISTAKES = {
    "--run_dir qat": "export needs a folder to write: --out DIR",
    "--out x": "export needs either --ckpt FILE or --run_dir DIR",
    "--out x --run_dir qat --ckpt qat/checkpoints/last.ckpt": "needs either --ckpt FILE or --run",
    "--out x --ckpt nothing": "--ckpt: no file 'nothing'",
    "--out x --run_dir nothing": "--run_dir: no folder 'nothing'",
    "--out x --run_dir plain/figures": "no intact checkpoint in plain/figures/checkpoints",
    "--out x --run_dir qat --format int5": "expected hf or fake or int4 or compressed-tensors, got",
    "--out x --run_dir plain": "no weight of this LlamaForCausalLM is quantised",
    "--out x --run_dir plain --format fake": "train with a QAT overlay such as --config overlays/",
    "--out x --run_dir plain --format compressed-tensors": "no weight of this LlamaForCausalLM is",
    "--out x --run_dir qat --config nothing.yaml": "no file 'nothing.yaml', which says how qat/ch",
    "--out x --ckpt stray.ckpt": "/config.yaml', which says how stray.ckpt was trained: give --con",
    "--out x --ckpt damaged.ckpt --config qat/config.yaml": "damaged.ckpt is damaged (incomplete",
    "--out x --ckpt other.ckpt --config qat/config.yaml": "other.ckpt is no Lightning checkpoint",
    "--out x --run_dir qat --config wide.yaml": "has other shapes for",
    "--out x --run_dir qat --config otherwise.yaml": "was quantised otherwise than this recipe",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command, here, capsys):
    shutil.copy("qat/checkpoints/last.ckpt", "stray.ckpt")
    shutil.copy("qat/checkpoints/last.ckpt", "damaged.ckpt")
    damage("damaged.ckpt")
    torch.save({"weights": torch.zeros(2)}, "other.ckpt")
    Path("plain/figures").mkdir(exist_ok=True)
    config = Path("qat/config.yaml").read_text()
    Path("wide.yaml").write_text(config.replace("hidden_size: 64", "hidden_size: 128"))
    Path("otherwise.yaml").write_text(config.replace("group_size: 32", "group_size: 16"))
    assert main(["export", *command.split()]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert MISTAKES[command] in errors[0]
    assert not Path("x").exists()


def test_a_missing_library_is_one_line(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors.quantization", None)
    export = ["export", "--run_dir", "qat", "--format", "compressed-tensors", "--out", "x"]
    assert main(export) == 2
    assert "pip install 'tenfold[export]'" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("x").exists()


# A user's own network, and weights that change hands

PER_CHANNEL = ["--config", "overlays/qat_w4a4_per_token"]
FIT = ["fit", "--config", "recipe.yaml", "--trainer.max_steps", "4"]
FROZEN = ["--model.optimizer.lr", "0.0", "--trainer.max_steps", "1"]


@pytest.fixture
def lsq(project) -> list[str]:
    Path("lsq.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: QuantizationAwareTraining\n      init_args:\n"
        "        weight: {group_size: per_channel, method: lsq}\n"
        "        activation: {group_size: per_token, method: lac}\n"
    )
    return ["--config", "lsq.yaml"]


def state_of(run: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_the_only_child_of_a_users_module_is_exported(project):
    assert main([*FIT, *PER_CHANNEL, "--run_dir", "run"]) == 0
    assert main(["export", "--run_dir", "run", "--out", "out"]) == 0
    from toy import Toy

    plain, trained = Toy().net, state_of("run")
    loaded = load_quantized("out", plain)
    for name in ("0", "3"):
        weight = trained[f"net.{name}.weight"]
        expected = fake_quantize(weight, weight.shape[1])
        assert torch.equal(loaded.get_submodule(name).weight, expected)


def test_learned_scales_are_exported_as_they_were_learned(project, lsq):
    assert main([*FIT, *lsq, "--run_dir", "run"]) == 0
    export = ["export", "--ckpt", "run/checkpoints/last.ckpt"]
    assert main([*export, "--out", "out"]) == 0
    trained, found = state_of("run"), dequantized_state_dict("out")
    for name in ("0", "3"):
        weight, scale = (trained[f"net.{name}.{x}"] for x in ("weight", "weight_quantizer.scale"))
        expected = fake_quantize(weight, weight.shape[1], scale=scale)
        assert torch.equal(found[f"{name}.weight"], expected)
    assert sorted(found) == ["0.bias", "0.weight", "3.bias", "3.weight"]


def test_scales_start_from_the_weights_of_a_checkpoint_before_the_start(project, lsq, capsys):
    late = Path("late.yaml")
    late.write_text(Path("lsq.yaml").read_text() + "        start: 100\n")
    assert main([*FIT, "--config", "late.yaml", "--run_dir", "run"]) == 0
    assert main(["export", "--run_dir", "run", "--out", "out"]) == 0
    assert "is older than the start of rounding" in capsys.readouterr().err
    ckpt = torch.load(best("run"), weights_only=True)["state_dict"]
    weight = ckpt["net.0.weight"]
    scale = 2 * weight.abs().mean(dim=1, keepdim=True) / 7**0.5  # LSQ, section 2.1
    expected = fake_quantize(weight, 4, scale=scale)
    torch.testing.assert_close(dequantized_state_dict("out")["0.weight"], expected)


def test_a_module_of_several_parts_is_exported_whole(project):
    Path("pair.py").write_text(
        "import toy\nfrom torch import nn\nclass Pair(toy.Toy):\n    def __init__(self):\n"
        "        super().__init__()\n        self.other = nn.Linear(4, 4)\n"
    )
    pair = ["--model", "pair.Pair", "--trainer.max_steps", "1", "--run_dir", "run"]
    assert main(["fit", "--config", "recipe.yaml", *PER_CHANNEL, *pair]) == 0
    assert main(["export", "--run_dir", "run", "--out", "out"]) == 0
    found = dequantized_state_dict("out")
    assert sorted(found) == sorted(state_of("run"))
    assert torch.equal(found["other.bias"], state_of("run")["other.bias"])


def test_plain_weights_begin_a_run_with_learned_scales(project, lsq):
    assert main([*FIT, "--run_dir", "plain"]) == 0
    start = ["--init_from", "plain/checkpoints/last.ckpt", "--run_dir", "qat"]
    assert main(["fit", "--config", "recipe.yaml", *lsq, *start, *FROZEN]) == 0
    plain, quantised = state_of("plain"), state_of("qat")
    assert all(torch.equal(plain[name], quantised[name]) for name in plain)
    weight = plain["net.0.weight"]
    expected = 2 * weight.abs().mean(dim=1, keepdim=True) / 7**0.5
    torch.testing.assert_close(quantised["net.0.weight_quantizer.scale"], expected)


def test_a_plain_run_takes_the_weights_of_one_with_learned_scales(project, lsq, capsys):
    assert main([*FIT, *lsq, "--run_dir", "qat"]) == 0
    start = ["--init_from", "qat/checkpoints/last.ckpt", "--run_dir", "plain"]
    assert main(["fit", "--config", "recipe.yaml", *start, *FROZEN]) == 0
    notes = capsys.readouterr().err
    assert "4 learned scales in qat/checkpoints/last.ckpt are left out" in notes
    plain, quantised = state_of("plain"), state_of("qat")
    assert not any("_quantizer" in name for name in plain)
    assert all(torch.equal(plain[name], quantised[name]) for name in plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("net.0.bias"), "lacks 1 weights of this model, such as net.0.bias"),
        (lambda s: s.pop("net.0.weight"), "lacks 1 weights of this model, such as net.0.weight"),
        (lambda s: s.update(head=torch.ones(1)), "has unknown 1 weights of this model, such as h"),
    ],
)
def test_weights_that_do_not_fit_are_still_refused(change, message, project, lsq, capsys):
    assert main([*FIT, "--run_dir", "plain"]) == 0
    checkpoint = torch.load("plain/checkpoints/last.ckpt", weights_only=True)
    change(checkpoint["state_dict"])
    torch.save(checkpoint, "changed.ckpt")
    start = ["--init_from", "changed.ckpt", "--run_dir", "qat"]
    assert main(["fit", "--config", "recipe.yaml", *lsq, *start, *FROZEN]) == 2
    assert message in capsys.readouterr().err


def test_the_command_imports_no_torch_until_it_runs(tmp_path):
    code = (
        "import sys\nfrom tenfold.recipes.cli import main\n"
        "try:\n    main(['export', '--help'])\nexcept SystemExit:\n    pass\n"
        "status = main(['export', '--out', 'x'])\n"
        "print(status, [m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "--format {hf,fake,int4,compressed-tensors}" in run.stdout
    assert run.stdout.splitlines()[-1] == "2 []"
