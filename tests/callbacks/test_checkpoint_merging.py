"""Merging while training: what it computes, that training does not notice, that runs go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import comparison
import pytest
import torch
import yaml
from comparison import assert_same, last_checkpoint
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tenfold.callbacks.checkpoint_merging import CheckpointMerging, ComparedScheme
from tenfold.recipes.cli import main

RECIPE = {
    "base": "recipe.yaml",
    "model": {"class_path": "normed.Normed"},
    "trainer": {"val_check_interval": 4, "check_val_every_n_epoch": None},
}


def overlay(name: str = "merge", **init_args: Any) -> str:
    """Writes an overlay that keeps a snapshot every two steps, unless told otherwise."""
    unless = (
        {}
        if "every_n_epochs" in init_args or "storage" in init_args
        else {"every_n_train_steps": 2}
    )
    callback = {"class_path": "CheckpointMerging", "init_args": unless | init_args}
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return str(path)


def during(action: str, step: int, at_pass: int = 2) -> str:
    callback = {"class_path": "normed.During"}
    callback["init_args"] = {"action": action, "step": step, "at_pass": at_pass}
    Path("during.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return "during.yaml"


def recipe(**model: Any) -> str:
    content = RECIPE | {"model": RECIPE["model"] | {"init_args": model}}
    Path("normed.yaml").write_text(yaml.safe_dump(content))
    return "normed.yaml"


def fit(run_dir: str, *arguments: str, steps: int = 16, base: str = "normed.yaml") -> dict:
    """Trains through the command line; returns the last checkpoint."""
    if base == "normed.yaml" and not Path(base).exists():
        recipe()
    command = ["fit", "--config", base, "--run_dir", run_dir, *arguments]
    assert main([*command, "--trainer.max_steps", str(steps)]) == 0
    return last_checkpoint(run_dir)


def metrics(run_dir: str) -> dict:
    return json.loads((Path(run_dir) / "metrics.json").read_text())["fit"]


def logged(run_dir: str) -> dict[str, dict[int, float]]:
    """What the recipe itself logs."""
    found = comparison.logged(run_dir)
    return {tag: v for tag, v in found.items() if not tag.startswith(("merged/", "merging/"))}


def assert_trained_alike(one: dict, other: dict) -> None:
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "books", "epoch"):
        if key in one or key in other:
            assert_same(one[key], other[key], key)


def snapshots(run_dir: str) -> dict[int, dict[str, torch.Tensor]]:
    """Step -> tensors of the ring that the manifest names."""
    folder = Path(run_dir) / "merging"
    entries = json.loads((folder / "ring.json").read_text())["entries"]
    steps = [entry["step"] for entry in entries]
    name = "ring/step_{:08d}/rank_00000.safetensors"
    return {step: load_file(folder / name.format(step)) for step in steps}


# Invisible


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("storage", ["disk", "cpu"])
def test_training_does_not_notice(project, precision, storage):
    """Dropout, BatchNorm, shuffling, noise drawn in two workers, accumulation."""
    common = ["--trainer.precision", precision, "--trainer.accumulate_grad_batches", "3"]
    common += ["--data.num_workers", "2"]
    plain = fit("plain", *common, steps=9)
    compared = [{"scheme": "wsm", "decay_shape": "cosine"}]
    config = overlay(storage=storage, every_n_train_steps=1, compare_schemes=compared)
    merging = fit("merging", *common, "--config", config, steps=9)
    assert_trained_alike(plain, merging)
    assert plain["callbacks"]["RandomState"].keys() == merging["callbacks"]["RandomState"].keys()
    assert_same(plain["callbacks"]["RandomState"], merging["callbacks"]["RandomState"])
    assert_same(logged("plain"), logged("merging"))
    found = metrics("merging")
    assert found["val/loss"] == metrics("plain")["val/loss"] != found["merged/val/loss"]
    assert found["merged/wsm_cosine/val/loss"] != found["merged/val/loss"]


def test_a_loader_of_ones_own_is_not_disturbed(project):
    """Plain loaders with random order and workers that persist, given to `fit` directly."""
    from normed import Normed
    from torch.utils.data import DataLoader

    def train(*callbacks) -> tuple[dict, list]:
        torch.manual_seed(0)
        data = torch.randn(40, 4)
        loaders = [
            DataLoader(data, 4, shuffle=True, num_workers=1, persistent_workers=True),
            DataLoader(data, 10, shuffle=True, generator=torch.Generator().manual_seed(1)),
        ]
        model = Normed()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=16,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            limit_val_batches=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=project,
            callbacks=list(callbacks),
        )
        trainer.fit(model, *loaders)
        return model.state_dict(), model.history

    plain = train()
    merging = CheckpointMerging(every_n_train_steps=2)
    assert_same(plain, train(merging))
    assert len(merging.evaluations) == 4


# What a merge is


def test_the_merge_is_the_mean_of_the_snapshots(project):
    config = overlay(num_checkpoints=4, save_merged="last", bn_update="none")
    ended = fit("run", "--config", config, "--data.noise", "0")
    ring = snapshots("run")
    assert list(ring) == [10, 12, 14, 16]
    merged = torch.load("run/merging/merged_00000016.ckpt", weights_only=True)
    assert [path.name for path in Path("run/merging").glob("merged*")] == ["merged_00000016.ckpt"]
    trained = ("embed.weight", "norm.weight", "shared", "head.bias")
    for name in trained:
        mean = torch.stack([tensors[name].double() for tensors in ring.values()]).mean(0)
        assert torch.allclose(merged["state_dict"][name].double(), mean, atol=1e-7), name
    state = merged["state_dict"]
    assert torch.equal(state["tied.weight"], state["shared"])
    assert torch.equal(state["frozen.weight"], ended["state_dict"]["frozen.weight"])
    assert "frozen.weight" not in ring[16]
    for name in ("norm.running_mean", "num_calls", "norm.num_batches_tracked"):  # the newest's
        assert torch.equal(state[name], ring[16][name]), name
    assert merged["merge_provenance"]["steps"] == [10, 12, 14, 16]
    assert merged["merge_provenance"]["weights"] == [0.25] * 4
    assert merged["merge_provenance"]["duration_steps"] == 8
    command = ["validate", "--run_dir", "run", "--ckpt_path", "run/merging/merged_00000016.ckpt"]
    assert main(command) == 0
    validated = json.loads(Path("run/metrics.json").read_text())["validate"]
    assert validated["val/plain"] == pytest.approx(metrics("run")["merged/val/plain"], abs=1e-7)


def test_a_run_that_merged_is_evaluated_again(project):
    fit("run", "--config", overlay(num_checkpoints=4), "--data.noise", "0")
    before = metrics("run")
    assert main(["validate", "--run_dir", "run", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    validated = json.loads(Path("run/metrics.json").read_text())["validate"]
    assert validated["val/plain"] == pytest.approx(before["val/plain"], abs=1e-7)
    assert not any(name.startswith("merged/") for name in validated)


def test_the_merge_of_one_state_is_that_state(project):
    recipe(lr=0.0)
    fit("run", "--config", overlay(bn_update="none"))
    found = metrics("run")
    for name in ("val/loss", "val/plain"):
        assert found[f"merged/{name}"] == pytest.approx(found[name], rel=1e-6)


def test_ring_and_average_of_buffers(project):
    config = overlay(num_checkpoints=2, save_merged="last", buffers="average", bn_update="none")
    fit("run", "--config", config)
    ring = snapshots("run")
    state = torch.load("run/merging/merged_00000016.ckpt", weights_only=True)["state_dict"]
    mean = torch.stack([tensors["norm.running_var"] for tensors in ring.values()]).mean(0)
    assert torch.allclose(state["norm.running_var"], mean)
    assert torch.equal(state["num_calls"], ring[16]["num_calls"])


def test_batch_norm_is_calibrated_for_the_merge_and_put_back(project):
    fit("run", "--config", overlay(save_merged="last", bn_num_batches=10))
    state = torch.load("run/merging/merged_00000016.ckpt", weights_only=True)["state_dict"]
    # 10 batches of 4: the plain mean over the epoch of the input of the layer.
    assert state["norm.num_batches_tracked"] == 10
    assert not torch.equal(
        state["norm.running_mean"], last_checkpoint("run")["state_dict"]["norm.running_mean"]
    )
    assert last_checkpoint("run")["state_dict"]["norm.num_batches_tracked"] == 16


@pytest.mark.parametrize("save_format", ["safetensors", "lightning"])
def test_a_merge_starts_another_run(project, save_format):
    fit("run", "--config", overlay(save_merged="all", save_format=save_format))
    suffix = {"safetensors": ".safetensors", "lightning": ".ckpt"}[save_format]
    paths = sorted(Path("run/merging").glob(f"merged_*{suffix}"))
    assert [path.stem for path in paths] == [f"merged_{step:08d}" for step in (4, 8, 12, 16)]
    fit("next", "--init_from", str(paths[-1]), steps=1)


def test_a_language_model_is_saved_for_transformers(project):
    from transformers import AutoModelForCausalLM

    config = overlay(save_merged="last", save_format="hf", num_checkpoints=3)
    fit("run", "--config", config, base=language_model(), steps=8)
    network = AutoModelForCausalLM.from_pretrained("run/merging/merged_00000008")
    mean = torch.stack([t["network.lm_head.weight"] for t in snapshots("run").values()]).mean(0)
    assert torch.allclose(network.lm_head.weight, mean, atol=1e-7)
    assert json.loads(Path("run/merging/merged_00000008/merge.json").read_text())["steps"]


def language_model() -> str:
    """Writes the language model's quickstart at a tiny size."""
    config = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    content = {
        "base": "language_model/quickstart",
        "model": {
            "class_path": "CausalLanguageModel",
            "init_args": {
                "config": config | {"tie_word_embeddings": False},
                "lr_scheduler": {"class_path": "WarmupStableDecay", "init_args": {"decay": 0}},
            },
        },
        "data": {"init_args": {"sequence_length": 32, "batch_size": 4}},
        "trainer": {"accelerator": "cpu", "limit_val_batches": 2, "val_check_interval": 4},
    }
    Path("lm.yaml").write_text(yaml.safe_dump(content))
    return "lm.yaml"


def test_bookkeeping_of_a_language_model_is_left_alone(project):
    plain = fit("plain", base=language_model(), steps=8)
    merging = fit("run", "--config", overlay(), base=language_model(), steps=8)
    assert plain["training_progress"] == merging["training_progress"]
    assert len(merging["training_progress"]["curves"]["val"]) == 2
    assert_trained_alike(plain, merging)


def test_what_is_left_out_stays_the_modules_own(project):
    patterns = {"include": ["^embed", "^head", "^norm"], "exclude": ["bias$"]}
    where = {"dirpath": "elsewhere", "save_merged": "last", "bn_update": "none"}
    ended = fit("run", "--config", overlay(**patterns, **where))
    (path,) = Path("elsewhere").glob("merged_*.ckpt")
    assert not Path("run/merging").exists()
    files = [load_file(p) for p in sorted(Path("elsewhere/ring").glob("step_*/*.safetensors"))]
    assert {"embed.weight", "head.weight"} <= files[0].keys()
    assert not {"embed.bias", "shared"} & files[0].keys()
    merged = torch.load(path, weights_only=True)["state_dict"]
    mean = torch.stack([tensors["head.weight"] for tensors in files]).mean(0)
    assert torch.allclose(merged["head.weight"], mean, atol=1e-7)
    for name in ("embed.bias", "shared"):  # the last step is a validated one
        assert torch.equal(merged[name], ended["state_dict"][name]), name


def test_statistics_that_are_left_out_come_back_too(project):
    """Batch statistics are calibrated for the merge though the layer is not part of it."""
    plain = fit("plain")
    assert_trained_alike(plain, fit("run", "--config", overlay(exclude=["^norm"])))
    assert metrics("run")["merged/val/loss"] != metrics("run")["val/loss"]


# When


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every_n_train_steps": 5, "start_step": 6}, [10, 15]),
        ({"every_n_epochs": 1}, [10]),
        ({"every_n_train_steps": 4, "num_checkpoints": 2}, [12, 16]),
    ],
)
def test_when_snapshots_are_taken(project, settings, steps):
    fit("run", "--config", overlay(**settings))
    assert list(snapshots("run")) == steps


def test_snapshots_by_tokens(project):
    Path("merge.yaml").write_text(
        "trainer: {callbacks+: [{class_path: CheckpointMerging, init_args: {every_n_tokens: 384}}]}"
    )
    fit("run", "--config", "merge.yaml", base=language_model(), steps=8)  # 128 tokens per step
    entries = json.loads(Path("run/merging/ring.json").read_text())["entries"]
    assert [entry["tokens"] for entry in entries] == [384, 768]


def test_accumulated_batches_count_as_one_step(project):
    common = ["--trainer.accumulate_grad_batches", "3"]
    fit("run", *common, "--config", overlay(every_n_train_steps=1), steps=6)
    assert list(snapshots("run")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [6, 8]),
        ({"on_lr_change": "clear"}, [10, 12, 14, 16]),
        ({"on_lr_change": "ignore"}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"stable_only": False}, [2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
def test_a_changing_learning_rate(project, settings, steps):
    """It rises up to step 4 (6 is the first snapshot after), and falls with step 10."""
    recipe(warmup=5, decay_at=9)
    fit("run", "--config", overlay(**settings))
    assert list(snapshots("run")) == steps


def test_the_run_s_own_checkpoints_as_ring(project):
    common = ["--config", overlay(storage="checkpoints", num_checkpoints=3, save_merged="last")]
    fit("run", *common, "--checkpoint.save_top_k", "9", steps=20)
    states = [
        torch.load(f"run/checkpoints/step_{step:08d}.ckpt", weights_only=True)["state_dict"]
        for step in (8, 12, 16)
    ]
    merged = torch.load("run/merging/merged_00000020.ckpt", weights_only=True)["state_dict"]
    mean = torch.stack([state["head.weight"] for state in states]).mean(0)
    assert torch.allclose(merged["head.weight"], mean, atol=1e-7)


# Whatever interrupts it


def test_a_kill_in_a_merged_evaluation_leaves_live_weights(project, tenfold):
    whole = fit("whole", "--config", overlay())
    common = ["fit", "--config", "normed.yaml", "--run_dir", "killed", "--trainer.max_steps", "16"]
    killed = tenfold(*common, "--config", "merge.yaml", "--config", during("kill", step=12))
    assert killed.returncode == -9, killed.stderr
    assert_trained_alike(fit("until", steps=9), last_checkpoint("killed"))
    assert main([*common, "--config", "merge.yaml", "--ckpt_path", "last"]) == 0
    assert_trained_alike(whole, last_checkpoint("killed"))


@pytest.mark.parametrize(("action", "error"), [("fail", RuntimeError), ("interrupt", SystemExit)])
def test_an_error_in_a_merged_evaluation_puts_live_weights_back(project, action, error):
    from normed import During, Normed
    from torch.utils.data import DataLoader

    class Live(During):
        def on_validation_end(self, trainer, pl_module) -> None:
            self.live = {name: t.clone() for name, t in pl_module.state_dict().items()}

    model, data = Normed(), torch.randn(40, 4)
    live = Live(action, step=12)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=16,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=project,
        callbacks=[live, CheckpointMerging(every_n_train_steps=2)],
    )
    with pytest.raises(error):
        trainer.fit(model, DataLoader(data, 4), DataLoader(data, 10))
    assert trainer.global_step == 12
    assert_same(live.live, dict(model.state_dict()))
    assert "log" not in vars(model)
    assert "save_checkpoint" not in vars(trainer)


def test_a_checkpoint_saved_meanwhile_has_live_weights(project, capsys):
    """As by the signal of a cluster: the evaluation is given up, training goes on."""
    plain = fit("plain")
    merging = fit("run", "--config", overlay(), "--config", during("save", step=12))
    assert_same(fit("until", steps=12)["state_dict"], torch.load("meanwhile.ckpt")["state_dict"])
    assert_trained_alike(plain, merging)
    steps = [e["step"] for e in merging["callbacks"]["CheckpointMerging"]["evaluations"]]
    assert steps == [4, 8, 16]


# Going on


@pytest.mark.parametrize(
    "settings", [{}, {"storage": "cpu", "save_ring_in_checkpoint": True}], ids=["disk", "cpu"]
)
def test_the_ring_survives_a_kill(project, tenfold, settings):
    """More snapshots than the ring holds lie between the last checkpoint and the kill."""
    config = overlay(every_n_train_steps=1, num_checkpoints=3, save_merged="last", **settings)
    whole = fit("whole", "--config", config, steps=24)
    Path("kill.yaml").write_text(
        "trainer: {callbacks+: [{class_path: toy.Kill, init_args: {step: 19}}]}"
    )
    rare = ["--trainer.val_check_interval", "4", "--checkpoint.every_n_train_steps", "100"]
    common = ["fit", "--config", "normed.yaml", "--config", "merge.yaml", "--run_dir", "killed"]
    common += ["--trainer.max_steps", "24", *rare]
    killed = tenfold(*common, "--config", "kill.yaml")
    assert killed.returncode == -9, killed.stderr
    assert main([*common, "--ckpt_path", "last"]) == 0
    assert_trained_alike(whole, last_checkpoint("killed"))
    name = "merging/merged_00000024.ckpt"
    merged = [torch.load(f"{run}/{name}", weights_only=True) for run in ("whole", "killed")]
    assert_same(merged[0]["state_dict"], merged[1]["state_dict"])
    assert_same(merged[0]["merge_provenance"], merged[1]["merge_provenance"])
    states = [
        checkpoint["callbacks"]["CheckpointMerging"]
        for checkpoint in (whole, last_checkpoint("killed"))
    ]
    assert_same(states[0]["evaluations"], states[1]["evaluations"])


def test_lost_snapshots_are_named_and_done_without(project):
    config = overlay(every_n_train_steps=1, num_checkpoints=4)
    fit("run", "--config", config, steps=8)
    shutil.rmtree("run/merging/ring/step_00000006")
    Path("run/merging/ring/step_00000007/rank_00000.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0")
    with pytest.warns(UserWarning, match="2 of 4 snapshots are lost.*step_00000006"):
        fit("run", "--config", config, "--ckpt_path", "last", steps=10)
    assert list(snapshots("run")) == [5, 8, 9, 10]


def test_a_ring_in_memory_begins_anew(project):
    config = overlay(storage="cpu", every_n_train_steps=1)
    fit("run", "--config", config, steps=8)
    with pytest.warns(UserWarning, match="snapshot 1 was in memory"):
        ended = fit("run", "--config", config, "--ckpt_path", "last", steps=10)
    entries = ended["callbacks"]["CheckpointMerging"]["ring"]["entries"]
    assert [entry["step"] for entry in entries] == [9, 10]


# With others


def test_several_schemes_from_one_ring(project):
    compared = [{"scheme": "ema", "ema_alpha": 0.1}, {"last": 2}, {"last": 50}]
    fit("run", "--config", overlay(compare_schemes=compared))
    names = {name for name in metrics("run") if name.startswith("merged/")}
    rows = ("val/loss", "val/plain", "val/best", "val/num")
    schemes = ("", "ema_0.1/", "sma_last2/")  # never 50 snapshots: left out
    assert names == {f"merged/{scheme}{row}" for scheme in schemes for row in rows}
    found = metrics("run")
    assert 0 < found["merging/drift_ratio"] <= 1
    assert -1 <= found["merging/update_cosine"] <= 1
    assert Path("run/figures/merging.png").stat().st_size > 5000


def test_with_quantisation_masters_are_merged(project):
    four = {"bits": 4, "group_size": 4}
    qat = {"class_path": "QuantizationAwareTraining"}
    qat["init_args"] = {"weight": four, "activation": four, "exclude": ["head", "tied"]}
    Path("qat.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [qat]}}))
    both = ["--config", "qat.yaml", "--config", overlay(save_merged="last", bn_update="none")]
    ended = fit("run", *both, "--data.noise", "0")
    assert_trained_alike(fit("plain", "--config", "qat.yaml", "--data.noise", "0"), ended)
    merged = torch.load("run/merging/merged_00000016.ckpt", weights_only=True)["state_dict"]
    ring = snapshots("run")
    mean = torch.stack([tensors["embed.weight"] for tensors in ring.values()]).mean(0)
    assert torch.allclose(merged["embed.weight"], mean, atol=1e-7)
    validate = ["validate", "--run_dir", "run", "--ckpt_path", "run/merging/merged_00000016.ckpt"]
    assert main(validate) == 0  # rounded by the recipe, as in the run
    validated = json.loads(Path("run/metrics.json").read_text())["validate"]
    assert validated["val/plain"] == pytest.approx(metrics("run")["merged/val/plain"], abs=1e-6)


@pytest.mark.slow
def test_a_compiled_network(project):
    config = overlay(save_merged="last", num_checkpoints=3)
    common = ["--config", config, "--model.compile", "true"]
    fit("run", *common, base=language_model(), steps=8)
    merged = torch.load("run/merging/merged_00000008.ckpt", weights_only=True)["state_dict"]
    for name, value in snapshots("run")[8].items():
        assert merged[name].shape == value.shape


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_merge_what_one_does(project, tenfold, strategy):
    """The weights in each process's snapshots, put together, average to the merge."""
    config = overlay(num_checkpoints=3, save_merged="last")
    command = ["fit", "--config", language_model(), "--config", config, "--run_dir", "run"]
    command += ["--config", f"overlays/{strategy}", "--trainer.devices=2", "--trainer.max_steps=8"]
    if strategy == "fsdp":
        command += ["--trainer.strategy.init_args.data_parallel_size=2"]
    ran = tenfold(*command)
    assert ran.returncode == 0, ran.stderr
    files = sorted(Path("run/merging/ring").glob("step_*/*.safetensors"))
    steps = sorted({path.parent.name for path in files})
    assert len(files) == len(steps) * (2 if strategy == "fsdp" else 1)
    merged = torch.load("run/merging/merged_00000008.ckpt", weights_only=True)["state_dict"]
    parts = [[load_file(p) for p in files if p.parent.name == step] for step in steps]
    for name, value in merged.items():
        whole = torch.stack([torch.cat([part[name] for part in parted]) for parted in parts])
        assert torch.allclose(value, whole[-3:].mean(0), atol=1e-7), name
    init = ["validate", "--config", "lm.yaml", "--run_dir", "one"]
    init += ["--init_from", "run/merging/merged_00000008.ckpt", "--data.batch_size", "8"]
    assert main([*init, "--trainer.limit_val_batches", "2"]) == 0
    alone = json.loads(Path("one/metrics.json").read_text())["validate"]["val/loss"]
    assert metrics("run")["merged/val/loss"] == pytest.approx(alone, rel=1e-5)
    plain = tenfold(*command[:3], *command[5:], "--overwrite=true", "--run_dir=plain")
    assert plain.returncode == 0, plain.stderr
    assert_trained_alike(last_checkpoint("plain"), last_checkpoint("run"))


def test_merged_weights_can_stay_in_memory(project):
    from normed import Normed
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    model, data = Normed(), torch.randn(40, 4)
    merging = CheckpointMerging(every_n_train_steps=2, num_checkpoints=2, swap_on_train_end=True)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=8, callbacks=[merging], default_root_dir=project, **settings
    )
    trainer.fit(model, DataLoader(data, 4), DataLoader(data, 10))
    ring = [load_file(f"merging/ring/step_0000000{n}/rank_00000.safetensors") for n in (6, 8)]
    mean = (ring[0]["head.weight"] + ring[1]["head.weight"]) / 2
    assert torch.allclose(model.head.weight, mean, atol=1e-7)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of every_n_train_steps, every_n_tokens, every_n_epochs"),
        ({"every_n_train_steps": 2, "every_n_epochs": 1}, "exactly one of"),
        ({"every_n_train_steps": 0}, "at least 1"),
        ({"every_n_train_steps": 2, "num_checkpoints": 1}, "min_checkpoints <= num_checkpoints"),
        ({"every_n_train_steps": 2, "scheme": "custom"}, "custom_weights belong"),
        (
            {"every_n_train_steps": 2, "scheme": "custom", "custom_weights": [0.5, 0.5]},
            "2 weights, but 10 checkpoints",
        ),
        ({"every_n_train_steps": 2, "storage": "checkpoints"}, "drop every_n_train_steps"),
        ({"every_n_train_steps": 2, "save_ring_in_checkpoint": True}, "is for storage: cpu"),
        (
            {"every_n_train_steps": 2, "compare_schemes": [ComparedScheme("sma")]},
            "each scheme once",
        ),
        ({"every_n_train_steps": 2, "evaluate_every_n_val": 0}, "evaluate_every_n_val"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CheckpointMerging(**settings)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"storage": "checkpoints"}, [], "checkpoint.save_top_k is 1"),
        ({"every_n_train_steps": 2, "scheme": "mean"}, [], "scheme"),
        ({"every_n_train_steps": 2, "include": ["nothing"]}, [], "nothing is merged"),
        ({"every_n_train_steps": 2, "save_format": "hf"}, [], "Normed has no `network`"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, settings, arguments, message):
    recipe()
    more = {"save_merged": "last"} if "save_format" in settings else {}
    config = overlay(**settings, **more)
    assert main(["fit", "--config", "normed.yaml", "--config", config, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
