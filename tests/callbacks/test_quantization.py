"""QAT as a switch: when layers change, when rounding begins, and that runs go on exactly."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer, seed_everything
from tenfold.callbacks.quantization import QuantizationAwareTraining
from tenfold.modules.quantization import QuantizerConfig, quantized_layers
from tenfold.recipes.cli import main

FOUR = {"bits": 4, "group_size": 4}
TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


def overlay(name: str = "qat", **init_args: Any) -> str:
    """Writes an overlay that switches QAT on; four bits in groups of four unless told otherwise."""
    callback = {
        "class_path": "QuantizationAwareTraining",
        "init_args": {"weight": FOUR, "activation": FOUR} | init_args,
    }
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return str(path)


def fit(run_dir: str, *arguments: str, steps: int = 12, recipe: str = "recipe.yaml") -> dict:
    """Trains through the command line; returns the last checkpoint."""
    command = ["fit", "--config", recipe, "--run_dir", run_dir, *arguments]
    assert main([*command, "--trainer.max_steps", str(steps)]) == 0
    return torch.load(Path(run_dir) / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(run_dir: str) -> dict:
    return json.loads((Path(run_dir) / "metrics.json").read_text())


def language_model(**changes: Any) -> str:
    """Writes the language model's quickstart at a tiny size."""
    recipe = {
        "base": "language_model/quickstart",
        "model": {
            "class_path": "CausalLanguageModel",
            "init_args": {"config": TINY | changes.pop("config", {}), **changes},
        },
        "data": {"init_args": {"sequence_length": 32, "batch_size": 4}},
        "trainer": {"accelerator": "cpu", "limit_val_batches": 2, "val_check_interval": 4},
    }
    Path("lm.yaml").write_text(yaml.safe_dump(recipe))
    return "lm.yaml"


def assert_same(one: dict, other: dict) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][index][name]), (index, name)


# When


def test_layers_change_before_the_optimizer_exists_and_keep_their_keys(project):
    plain, rounded = fit("plain"), fit("rounded", "--config", overlay())
    assert plain["state_dict"].keys() == rounded["state_dict"].keys()
    assert not torch.equal(
        plain["state_dict"]["net.0.weight"], rounded["state_dict"]["net.0.weight"]
    )
    found = metrics("rounded")["run"]["quantization"]
    assert (found["precision"], found["group_size"], found["num_layers"]) == ("w4a4", 4, 2)
    assert "quantization" not in metrics("plain")["run"]


def test_learned_scales_are_trained_and_stored(project):
    scales = {"weight": FOUR | {"method": "lsq"}, "activation": FOUR | {"method": "lac"}}
    checkpoint = fit("run", "--config", overlay(**scales))
    names = {name for name in checkpoint["state_dict"] if "quantizer" in name}
    expected = {"weight_quantizer.scale", "input_quantizer.clip"}
    assert names == {f"net.{layer}.{name}" for layer in (0, 3) for name in expected}
    clip = checkpoint["state_dict"]["net.0.input_quantizer.clip"]
    assert not torch.equal(clip, torch.full_like(clip, 0.95))


def test_evaluation_is_rounded_too(project):
    fit("run", "--config", overlay())
    last = ["--ckpt_path", "run/checkpoints/last.ckpt"]
    losses = {}
    for name, more in {"rounded": ["--config", "qat.yaml"], "plain": []}.items():
        config = ["--config", "recipe.yaml", *more]
        assert main(["test", *config, "--run_dir", name, *last]) == 0
        losses[name] = metrics(name)["test"]["test/loss"]
    assert main(["test", "--run_dir", "run", *last]) == 0  # as its config.yaml says
    assert metrics("run")["test"]["test/loss"] == losses["rounded"] != losses["plain"]


def test_until_the_start_training_is_plain(project):
    fraction, step = ["--config", overlay(start=0.5)], ["--config", overlay("step", start=6)]
    plain, rounded = fit("plain"), fit("fraction", *fraction)
    assert_same(fit("plain_6", steps=6), fit("step_6", *step, steps=6))
    assert_same(rounded, fit("step", *step))
    weight = "net.0.weight"
    assert not torch.equal(plain["state_dict"][weight], rounded["state_dict"][weight])


def test_a_learned_scale_starts_from_the_weights_at_the_start(project):
    settings = {"weight": FOUR | {"method": "lsq"}, "activation": None, "start": 6}
    before = fit("run", "--config", overlay(**settings), steps=6)
    weight = before["state_dict"]["net.0.weight"]
    scale = before["state_dict"]["net.0.weight_quantizer.scale"]
    expected = 2 * weight.view(8, 1, 4).abs().mean(-1) / math.sqrt(7)
    assert not torch.allclose(scale, expected)  # still that of the initial weights
    seen = {}

    class Look(QuantizationAwareTraining):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == 6 and not seen:
                seen["scale"] = pl_module.net[0].weight_quantizer.scale.detach().clone()
                seen["weight"] = pl_module.net[0].weight.detach().clone()

    import toy

    seed_everything(1, verbose=False)
    weight_config = QuantizerConfig(group_size=4, method="lsq")
    callback = Look(weight=weight_config, activation=None, start=6)
    train(toy.Toy(), toy.ToyData(), callback, max_steps=8)
    expected = 2 * seen["weight"].view(8, 1, 4).abs().mean(-1) / math.sqrt(7)
    torch.testing.assert_close(seen["scale"], expected)


def train(module: LightningModule, data: Any, *callbacks: Any, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"accelerator": "cpu", "enable_model_summary": False} | quiet | settings
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, data)
    return trainer


# Going on


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": FOUR | {"method": "lsq"}, "activation": FOUR | {"method": "lac"}},
        {"weight": FOUR | {"method": "lwc", "ste": "through_scale"}, "start": 5},
        {"weight": FOUR | {"method": "lsq"}, "start": 6},
    ],
    ids=["absmax", "lsq and lac", "start 5", "lsq, start at the stop"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_exact(project, settings, accumulate):
    config = ["--config", overlay(**settings)]
    config += ["--trainer.accumulate_grad_batches", str(accumulate)]
    whole = fit("whole", *config)
    fit("parts", *config, steps=6)
    parts = fit("parts", *config, "--ckpt_path", "last")
    assert_same(whole, parts)
    ours = "QuantizationAwareTraining"
    assert parts["callbacks"][ours] == whole["callbacks"][ours]
    assert parts["callbacks"][ours]["has_started"]


def test_a_plain_run_goes_on_quantised_and_back(project, capsys):
    config = ["--config", overlay()]
    for first, second in [([], config), (config, [])]:
        name = f"run_{len(first)}"
        fit(name, *first, steps=4)
        checkpoint = fit(name, *second, "--ckpt_path", "last", steps=8)
        assert checkpoint["global_step"] == 8
        weights = fit(f"{name}_weights", *second, "--init_from", f"{name}/checkpoints/last.ckpt")
        assert weights["global_step"] == 12


def test_another_configuration_is_refused_with_the_difference(project, capsys):
    fit("run", "--config", overlay(), steps=4)
    changed = overlay(weight=FOUR | {"bits": 8})
    resume = ["fit", "--config", "recipe.yaml", "--config", changed, "--run_dir", "run"]
    assert main([*resume, "--ckpt_path", "last", "--trainer.max_steps", "8"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the checkpoint was quantised otherwise")
    assert "weight was" in error
    assert "'bits': 8" in error
    assert "--init_from" in error


# With everything else


def test_a_cached_weight_changes_nothing(project, monkeypatch):
    """Accumulation, EMA that swaps weights for validation, and the rounding of weights once."""
    config = ["--config", overlay(), "--config", "overlays/ema"]
    config += ["--trainer.accumulate_grad_batches", "2"]
    cached = fit("cached", *config)
    monkeypatch.setattr(QuantizationAwareTraining, "_cache", lambda *_: None)
    assert_same(cached, fit("uncached", *config))
    values = [metrics(run)["fit"]["val/loss"] for run in ("cached", "uncached")]
    assert values[0] == values[1]


def test_language_models_dense_and_with_experts(project, capsys):
    fit("dense", "--config", "overlays/qat_w4a4", recipe=language_model(), steps=4)
    assert metrics("dense")["run"]["quantization"]["num_layers"] == 14
    experts = {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2}
    with pytest.warns(UserWarning, match="not quantised, .*network.model.layers.0.mlp.experts"):
        fit(
            "experts",
            "--config",
            "overlays/qat_w4a4",
            recipe=language_model(config=experts),
            steps=4,
        )
    assert metrics("experts")["run"]["quantization"]["num_layers"] == 8


def test_learned_scales_do_not_count_as_parameters_of_the_model(project):
    lsq = overlay(weight=FOUR | {"method": "lsq"})
    sizes = []
    for name, more in (("plain", []), ("lsq", ["--config", lsq])):
        fit(name, *more, recipe=language_model(), steps=2)
        sizes.append(metrics(name)["run"])
    assert len({run["num_parameters_non_embedding"] for run in sizes}) == 1
    assert sizes[0]["num_parameters"] < sizes[1]["num_parameters"]


@pytest.mark.parametrize("start", [0, 4])
def test_recomputed_activations_change_nothing(project, start):
    config = ["--config", overlay(weight=FOUR | {"method": "lsq"}, start=start)]
    plain = fit("plain", *config, recipe=language_model(), steps=6)
    again = fit("again", *config, recipe=language_model(activation_checkpointing=True), steps=6)
    assert_same(plain, again)


def test_the_input_of_down_proj_at_8_bits_is_one_line_of_yaml(project):
    fit("run", "--config", "overlays/qat_w4a4_fc2a8", recipe=language_model(), steps=2)
    found = metrics("run")["run"]["quantization"]
    assert found["precision"].startswith("w4a4[")
    assert "down_proj" in found["precision"]
    assert found["precision"].endswith(":a8]")


@pytest.mark.parametrize(
    "overlays",
    [
        pytest.param(["overlays/ddp"], id="ddp", marks=pytest.mark.slow),
        pytest.param(["overlays/fsdp"], id="fsdp"),
    ],
)
@pytest.mark.parametrize("method", [pytest.param("absmax", marks=pytest.mark.slow), "lsq"])
def test_two_processes_learn_what_one_does(project, tenfold, overlays, method):
    """Equal global batches: 2 x 2 sequences against 4."""
    recipe = language_model()
    settings = {"weight": FOUR | {"method": method}, "start": 2}
    common = ["fit", "--config", recipe, "--config", overlay(**settings), "--trainer.max_steps=6"]
    assert main([*common, "--run_dir", "one"]) == 0
    two = [*common, "--trainer.devices=2", "--data.batch_size=2", "--run_dir", "two"]
    two += [part for name in overlays for part in ("--config", name)]
    if overlays == ["overlays/fsdp"]:
        two += ["--trainer.strategy.init_args.data_parallel_size=2"]
    ran = tenfold(*two)
    assert ran.returncode == 0, ran.stderr
    paths = [Path(run) / "checkpoints" / "last.ckpt" for run in ("one", "two")]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        # Batches are summed in another order, and a rounded value may fall to the other side.
        assert (value - states[1][name]).abs().mean() < 2e-3, name
    losses = [metrics(run)["fit"]["val/loss"] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 3])
def test_a_compiled_network_learns_the_same(project, start):
    config = ["--config", overlay(start=start)]
    plain = fit("plain", *config, recipe=language_model(), steps=6)
    fast = fit("fast", *config, "--config", "overlays/compile", recipe=language_model(), steps=6)
    for name, value in plain["state_dict"].items():
        assert (value - fast["state_dict"][name]).abs().mean() < 1e-3, name


def test_true_half_precision_is_warned_of(project):
    with pytest.warns(UserWarning, match="bf16-true loses small updates"):
        fit("run", "--config", overlay(), "--trainer.precision", "bf16-true", steps=2)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": {"bits": 9}}, "bits must be from 2 to 8, got 9"),
        ({"weight": FOUR | {"method": "minmax"}}, "minmax"),
        ({"weight": {"bit": 4}}, "bit"),
        ({"start": -1}, "start: -1 is neither"),
        ({"weight": {"group_size": 3}}, "net.0: weight group_size 3 does not divide its 4 input"),
        ({"include": ["conv"]}, "pattern 'conv' matches no module of Toy"),
        ({"overrides": {"fc2": {"activation": {"bits": 8}}}}, "pattern 'fc2' matches no module"),
        (
            {"overrides": {"net": {"input": {"bits": 8}}}},
            "'input' is neither weight nor activation",
        ),
        ({"backend": "triton"}, "backend: triton needs a CUDA device"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, settings, message):
    command = ["fit", "--config", "recipe.yaml", "--config", overlay(**settings)]
    assert main([*command, "--run_dir", "run", "--trainer.max_steps", "2"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert message in errors[0]


def test_the_live_module_is_never_converted(project):
    import toy

    module, data = toy.Toy(), toy.ToyData()
    callback = QuantizationAwareTraining(
        weight=QuantizerConfig(group_size=4), activation=QuantizerConfig(group_size=4)
    )
    trainer = train(module, data, callback, max_steps=2)
    assert set(quantized_layers(module)) == {"net.0", "net.3"}
    assert module.net[0].weight.dtype == torch.float32
    first = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)  # goes on
    assert trainer.validate(module, data, verbose=False)[0].keys() == first[0].keys()
