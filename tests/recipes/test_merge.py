"""`tenfold merge`: what it writes, that every command takes it, and what it refuses."""

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tenfold.callbacks.checkpointing import is_intact
from tenfold.modules.quantization import prepare_qat
from tenfold.modules.quantization.config import QATConfig, QuantizerConfig
from tenfold.recipes import merge_job
from tenfold.recipes.cli import main
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

FIT = ["fit", "--config", "recipe.yaml", "--checkpoint.save_top_k", "9"]
STEPS = (4, 8, 14)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A user's project with a run of 14 steps in `run`, a checkpoint at each of `STEPS`."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(__file__).parent / "project", folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("TENFOLD_CACHE", str(folder / "cache"))
        patch.delenv("TENFOLD_RUN_DIR", raising=False)
        assert main([*FIT, "--run_dir", "run", "--trainer.max_steps", "14"]) == 0
    return folder


@pytest.fixture
def here(trained, project) -> Path:
    """A folder of this test's own with that run, the current one."""
    shutil.copytree(trained / "run", project / "run")
    return project


def run_checkpoints() -> list[str]:
    return [str(path) for path in sorted(Path("run/checkpoints").glob("step_*.ckpt"))]


def states(paths: Sequence[str | Path]) -> list[dict[str, Tensor]]:
    return [torch.load(path, weights_only=True)["state_dict"] for path in paths]


def assert_average(merged: dict[str, Tensor], members, weights=None, rtol=1e-6) -> None:
    weights = weights or [1 / len(members)] * len(members)
    assert merged.keys() == members[0].keys()
    for name, value in merged.items():
        expected = sum(
            w * member[name].double() for w, member in zip(weights, members, strict=True)
        )
        torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=1e-6)


def files_of(folder: str | Path) -> dict[str, str]:
    """Every file below a folder, with a digest."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def make_llama(folder: Path, seed: int, **kwargs) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder, **kwargs)
    return model


def test_a_merged_run_is_taken_by_every_command(here, capsys):
    before = files_of("run")
    assert main(["merge", "run", "--out", "merged.ckpt"]) == 0
    printed = capsys.readouterr()
    table = [line.split()[:2] for line in printed.out.splitlines()[2:5]]
    assert table == [[str(step), "0.3333"] for step in STEPS]
    assert "optimizer state: reset" in printed.out
    assert files_of("run") == before
    merged = torch.load("merged.ckpt", weights_only=True)
    assert is_intact(here / "merged.ckpt")
    assert_average(merged["state_dict"], states(run_checkpoints()))
    provenance = merged["merge_provenance"]
    assert [entry["step"] for entry in provenance["inputs"]] == list(STEPS)
    assert (provenance["scheme"], provenance["tool"].split()[0]) == ("sma", "tenfold")
    newest = torch.load(run_checkpoints()[-1], weights_only=True)
    assert merged.keys() - newest.keys() == {"merge_provenance"}
    assert merged["global_step"] == 14

    recipe = ["--config", "recipe.yaml"]
    assert main(["test", *recipe, "--ckpt_path", "merged.ckpt", "--run_dir", "tested"]) == 0
    assert "test/loss" in json.loads(Path("tested/metrics.json").read_text())["test"]
    for choice in ("reset", "latest", "average"):
        out = f"{choice}.ckpt"
        assert main(["merge", "run", "--out", out, "--optimizer-state", choice]) == 0
        go_on = ["--ckpt_path", out, "--run_dir", choice, "--trainer.max_steps", "17"]
        assert main(["fit", *recipe, *go_on]) == 0
        assert torch.load(f"{choice}/checkpoints/last.ckpt")["global_step"] == 17
    assert main(["merge", *run_checkpoints(), "--out", "merged.safetensors"]) == 0
    start = ["--init_from", "merged.safetensors", "--run_dir", "new", "--trainer.max_steps", "1"]
    assert main(["fit", *recipe, *start]) == 0


def test_the_weights_of_a_scheme_follow_the_steps(here, capsys):
    paths = run_checkpoints()
    assert main(["merge", *paths[::-1], "--out", "m.safetensors", "--scheme", "wsm"]) == 0
    printed = capsys.readouterr()
    assert "steps are uneven" in printed.err
    # A linear decay over 4 + 6 steps and a mean interval (5) more.
    decay = [1, 1 - 4 / 15, 1 - 10 / 15, 0]
    weights = [a - b for a, b in pairwise(decay)]
    assert_average(load_file("m.safetensors"), states(paths), weights)
    with safe_open("m.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["merge_provenance"])
        assert file.metadata()["step"] == "14"
    assert [entry["weight"] for entry in provenance["inputs"]] == pytest.approx(weights)


def test_what_is_merged_can_be_chosen(here, capsys):
    paths = run_checkpoints()
    chosen = [
        (["--last", "2"], [1, 2], None),
        (["--min-interval", "7"], [0, 2], None),
        (["--min-interval", "4", "--last", "2"], [1, 2], None),
        (["--weights", "1,2,5", "--normalize"], [0, 1, 2], [0.125, 0.25, 0.625]),
        (["--weights", "[2,0,-1]", "--allow-unnormalized"], [0, 1, 2], [2, 0, -1]),
        (["--scheme", "ema", "--ema-alpha", "0.25", "--last", "2"], [1, 2], [0.75, 0.25]),
    ]
    for i, (options, members, weights) in enumerate(chosen):
        out = f"{i}.safetensors"
        assert main(["merge", "run/checkpoints/step_*.ckpt", "--out", out, *options]) == 0
        assert_average(load_file(out), states([paths[m] for m in members]), weights, rtol=1e-5)
    assert "warning: weights are negative or sum to 1" in capsys.readouterr().err
    assert main(["merge", "run", "--out", "half.safetensors", "--dtype", "bfloat16"]) == 0
    assert {value.dtype for value in load_file("half.safetensors").values()} == {torch.bfloat16}


def sparse_file(path: Path, num_bytes: int) -> None:
    """A safetensors file whose data are a hole: there is nothing to read but its header."""
    entry = {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}
    header = json.dumps({"w": entry}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)


def test_a_dry_run_reads_headers_and_writes_nothing(project, capsys):
    Path("in").mkdir()
    for step in (1, 2):
        sparse_file(Path(f"in/step_{step}.safetensors"), 10**12)
    before = sorted(project.rglob("*"))
    assert main(["merge", "in", "--out", "out.safetensors", "--dry-run"]) == 0
    assert "reads 2000 GB, writes 1000 GB" in capsys.readouterr().out
    assert main(["merge", "in", "--out", "out.safetensors"]) == 2
    assert "free, and 1000 GB are needed" in capsys.readouterr().err
    assert sorted(project.rglob("*")) == before


def test_a_long_merge_says_how_far_it_is(here, capsys, monkeypatch):
    monkeypatch.setattr(merge_job, "_SECONDS_BETWEEN_LINES", 0.0)
    assert main(["merge", "run", "--out", "m.safetensors"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith("s left")]
    size = sum(value.nbytes for state in states(run_checkpoints()) for value in state.values())
    assert lines[-1] == f"{size} B of {size} B, 0 s left"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "merge needs checkpoints"),
        (["run"], "merge needs --out"),
        (["A", "A", "--out", "x.ckpt"], "is given twice"),
        (["A", "copy.ckpt", "--out", "x.ckpt"], "have the same step 4"),
        (["missing.ckpt", "--out", "x.ckpt"], "no file or folder 'missing.ckpt'"),
        (["none_*.ckpt", "--out", "x.ckpt"], "nothing matches 'none_*.ckpt'"),
        (["cache_less", "--out", "x.ckpt"], "is no checkpoint and no folder of step_*.ckpt"),
        (["run", "--last", "9", "--out", "x.ckpt"], "--last 9: only 3 checkpoints are there"),
        (["run", "--last", "0", "--out", "x.ckpt"], "--last must be 1 or more"),
        (["run", "--out", "taken.ckpt"], "taken.ckpt exists: choose another --out or pass"),
        (["run", "--out", "run", "--overwrite"], "run is no earlier merge"),
        (["run", "--out", "A", "--overwrite"], "lies in the input"),
        (["run", "--weights", "1,x", "--out", "x.ckpt"], "'1,x' is no list of numbers"),
        (["run", "--weights", "1,2", "--out", "x.ckpt"], "must sum to 1"),
        (["run", "--weights", "0.5,0.5", "--out", "x.ckpt"], "2 weights, but 3 checkpoints"),
        (["run", "--normalize", "--out", "x.ckpt"], "are for --weights"),
        (["run", "--scheme", "custom", "--out", "x.ckpt"], "needs --weights"),
        (["run", "--out", "x", "--max-shard-size", "big"], "'big' is no size such as 5GB"),
        (["run", "--out", "x", "--lora-mode", "delta"], "is for PEFT adapters"),
        (["run", "--out", "x", "--optimizer-state", "reset"], "is for checkpoints to go on from"),
        (["plain_*.safetensors", "--out", "x.ckpt"], "a .ckpt is made from .ckpt files"),
        (["A", "other.ckpt", "--out", "x.ckpt"], "different runs: width is 8 in"),
        (["A", "narrow.ckpt", "--out", "x.ckpt"], "'net.0.weight' has the shape"),
        (["nan_*.ckpt", "--out", "x.ckpt"], "nan_1.ckpt: 'net.0.bias' holds NaN or infinity"),
        (["nan_*.ckpt", "--out", "x"], "nan_1.ckpt: 'net.0.bias' holds NaN or infinity"),
        (["no_state_*.ckpt", "--optimizer-state", "average", "--out", "x.ckpt"], "use reset"),
        (["A", "cut.ckpt", "--out", "x.ckpt"], "cut.ckpt is damaged"),
    ],
)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(here, capsys, arguments, message):
    first = run_checkpoints()[0]
    content = torch.load(first, weights_only=True)
    shutil.copy(first, "copy.ckpt")
    Path("cache_less").mkdir()
    Path("taken.ckpt").write_text("mine")
    Path("cut.ckpt").write_bytes(Path(first).read_bytes()[:3000])
    for i in range(2):
        save_file({"a": torch.ones(2)}, f"plain_{i}.safetensors")
        weights = {name: value.clone() for name, value in content["state_dict"].items()}
        no_state = {**content, "global_step": i, "optimizer_states": []}
        torch.save(no_state, f"no_state_{i}.ckpt")
        weights["net.0.bias"][1] = [0.0, float("nan")][i]
        torch.save({**content, "state_dict": weights, "global_step": i}, f"nan_{i}.ckpt")
    other = {**content, "hyper_parameters": {**content["hyper_parameters"], "width": 9}}
    torch.save({**other, "global_step": 99}, "other.ckpt")
    weights = {**content["state_dict"], "net.0.weight": torch.zeros(7, 4)}
    torch.save({**content, "state_dict": weights, "global_step": 99}, "narrow.ckpt")
    before = files_of(".")
    arguments = [first if argument == "A" else argument for argument in arguments]
    assert main(["merge", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if not line.startswith("note:"))
    assert line.startswith("error: ")
    assert message in line
    assert files_of(".") == before


def test_runs_are_told_apart(here, capsys):
    arguments = ["--run_dir", "more", "--trainer.max_steps", "20", "--seed_everything", "2"]
    assert main([*FIT, *arguments]) == 0
    capsys.readouterr()
    paths = ["run/checkpoints/step_00000014.ckpt", "more/checkpoints/step_00000018.ckpt"]
    assert main(["merge", *paths, "--out", "x.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "different runs: seed_everything is 1 in" in error
    assert "pass --allow-different-runs" in error
    assert main(["merge", *paths, "--out", "x.safetensors", "--allow-different-runs"]) == 0
    assert_average(load_file("x.safetensors"), states(paths))


@pytest.mark.parametrize(
    ("out", "limit"),
    [("m.safetensors", 3_000_000), ("m.ckpt", 3_000_000), ("m.ckpt", 6_000_000), ("m", 2_000_000)],
)
def test_a_full_disk_leaves_nothing(project, out, limit):
    """A limit on file sizes, which the kernel enforces in the middle of the writing.

    Of a .ckpt the first limit stops the merge, the second one `torch.save`.
    """
    Path("in").mkdir()
    for step in range(2):
        weights = {"a": torch.randn(500_000), "b": torch.randn(700_000)}
        optimizer = {"state": {0: {"exp_avg": torch.randn(700_000)}}}
        content = {"state_dict": weights, "optimizer_states": [optimizer], "global_step": step}
        torch.save(content, f"in/step_{step}.ckpt")
    before = files_of(".")
    options = ["--optimizer-state", "latest"] if out == "m.ckpt" else []
    command = [sys.executable, "-m", "tenfold.recipes.cli", "merge", "in", "--out", out, *options]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        timeout=300,
    )
    assert result.returncode == 2, result.stderr
    assert f"error: cannot write {out}: File too large; nothing is left of it" in result.stderr
    assert files_of(".") == before
    assert {path.name for path in project.iterdir() if path.name.startswith(".")} == set()


def test_a_small_disk_is_noticed_before_anything_is_written(project, tenfold):
    Path("small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "small"]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        for step in range(2):
            save_file({"a": torch.randn(1_500_000)}, f"step_{step}.safetensors")
        result = tenfold("merge", "step_*.safetensors", "--out", "small/m.safetensors")
        assert result.returncode == 2
        assert "has 4.19 MB free, and 6 MB are needed" in result.stderr
        assert list(Path("small").iterdir()) == []
    finally:
        subprocess.run(["umount", "small"], check=True)


def test_a_folder_loads_with_transformers(project, capsys):
    models = []
    for step in (10, 20, 30):
        folder = Path(f"run/checkpoint-{step}")
        models.append(make_llama(folder, step, max_shard_size="20KB"))
        (folder / "tokenizer.json").write_text(f'{{"step": {step}}}')
        (folder / "trainer_state.json").write_text("{}")
    assert len(list(Path("run/checkpoint-10").glob("*.safetensors"))) > 1
    assert main(["merge", "run", "--out", "merged", "--max-shard-size", "0.015MB"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    members = [model.state_dict() for model in models]
    assert_average(merged.state_dict(), members, rtol=2**-8)
    names = {path.name for path in Path("merged").iterdir()}
    copied = {"config.json", "generation_config.json", "tokenizer.json", "merge.json"}
    shards = {name for name in names if name.endswith(".safetensors")}
    assert names - shards == {*copied, "model.safetensors.index.json"}
    assert len(shards) > 3
    assert json.loads(Path("merged/tokenizer.json").read_text()) == {"step": 30}
    provenance = json.loads(Path("merged/merge.json").read_text())
    assert [entry["step"] for entry in provenance["inputs"]] == [10, 20, 30]
    index = json.loads(Path("merged/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in members[0].values())

    assert main(["merge", "run", "--out", "merged"]) == 2
    assert main(["merge", "run", "--out", "merged", "--last", "2", "--overwrite"]) == 0
    assert (Path("merged/model.safetensors")).is_file()
    assert not Path("merged/model.safetensors.index.json").exists()
    capsys.readouterr()
    (
        Path("run/checkpoint-20") / min(p.name for p in Path("run/checkpoint-20").glob("m*s"))
    ).unlink()
    assert main(["merge", "run", "--out", "more"]) == 2
    assert "run/checkpoint-20 is incomplete: model-00001-of-" in capsys.readouterr().err


def make_adapters(base: LlamaForCausalLM, **settings) -> list[str]:
    """Three adapters with random factors, as PEFT saves them; settings change in the last."""
    paths = []
    for i in range(3):
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
        model = get_peft_model(base, LoraConfig(**{**config, **(settings if i == 2 else {})}))
        generator = torch.Generator().manual_seed(i)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        paths.append(f"checkpoint-{i + 1}")
        model.save_pretrained(paths[-1])
        base = model.unload()
    return paths


def deltas(path: str) -> dict[str, Tensor]:
    """What an adapter adds to each weight, as PEFT computes it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base").float(), path)
    return {
        name: module.get_delta_weight("default").double().detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_are_merged_by_factors_or_by_what_they_add(project, capsys):
    make_llama(Path("base"), 0)
    paths = make_adapters(AutoModelForCausalLM.from_pretrained("base").float())
    assert main(["merge", *paths, "--out", "x"]) == 2
    assert "choose --lora-mode factors (A and B) or delta" in capsys.readouterr().err
    assert not Path("x").exists()

    assert main(["merge", *paths, "--out", "factors", "--lora-mode", "factors"]) == 0
    members = [load_file(f"{path}/adapter_model.safetensors") for path in paths]
    assert_average(load_file("factors/adapter_model.safetensors"), members)

    weights = [0.2, 0.3, 0.5]
    options = ["--lora-mode", "delta", "--weights", "0.2,0.3,0.5"]
    assert main(["merge", *paths, "--out", "delta", *options]) == 0
    printed = capsys.readouterr().err
    merged, added = deltas("delta"), [deltas(path) for path in paths]
    assert len(merged) == 4
    errors = []
    for name, value in merged.items():
        average = sum(w * other[name] for w, other in zip(weights, added, strict=True))
        u, s, vh = torch.linalg.svd(average)
        best = (u[:, :4] * s[:4]) @ vh[:4]
        torch.testing.assert_close(value, best, rtol=1e-5, atol=1e-4)
        errors.append((s[4:].norm() / s.norm()).item())
    assert f"dropped up to {max(errors):.2%} of B A" in printed


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 16}, "adapters differ: lora_alpha is 8 in checkpoint-1, 16 in"),
        ({"r": 8}, "adapters differ: r is 4 in checkpoint-1, 8 in checkpoint-3"),
        ({"use_dora": True}, "DoRA rescales B A, so use --lora-mode factors"),
    ],
)
def test_adapters_of_different_settings_are_refused(project, capsys, settings, message):
    base = make_llama(Path("base"), 0).float()
    paths = make_adapters(base, **settings)
    options = ["--lora-mode", "delta", "--allow-different-runs"]
    assert main(["merge", *paths, "--out", "x", *options]) == 2
    assert message in capsys.readouterr().err


def test_snapshots_of_merging_while_training_are_preferred_in_a_run(project, capsys):
    Path("merging.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: CheckpointMerging\n"
        "      init_args: {every_n_train_steps: 3, num_checkpoints: 3}\n"
    )
    fit = [*FIT, "--config", "merging.yaml", "--run_dir", "run", "--trainer.max_steps", "14"]
    assert main(fit) == 0
    members = [
        load_file(f"run/merging/ring/step_{step:08d}/rank_00000.safetensors") for step in (6, 9, 12)
    ]
    assert Path("run/merging/ring/step_00000003").is_dir()  # no longer in the ring
    for source in ("run", "run/merging", "run/merging/ring"):
        capsys.readouterr()
        assert main(["merge", source, "--out", "m.safetensors", "--overwrite"]) == 0
        table = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]]
        assert table == ["6", "9", "12"]
        assert_average(load_file("m.safetensors"), members)
    save_file({"w": torch.ones(3)}, "run/merging/ring/step_00000012/rank_00001.safetensors")
    assert main(["merge", "run", "--out", "n.safetensors"]) == 2
    assert "is one snapshot in parts, one for each rank" in capsys.readouterr().err


def test_live_weights_are_merged_where_a_run_keeps_their_average(project, capsys):
    Path("ema.yaml").write_text(
        "trainer:\n  callbacks+:\n    - {class_path: EMAWeightAveraging, init_args: {decay: 0.9}}\n"
    )
    fit = [*FIT, "--config", "ema.yaml", "--run_dir"]
    assert main([*fit, "run", "--trainer.max_steps", "8"]) == 0
    capsys.readouterr()
    assert main(["merge", "run", "--out", "merged.ckpt"]) == 0
    assert "note: the live weights are merged, not the averages" in capsys.readouterr().err
    saved = [torch.load(path, weights_only=True) for path in run_checkpoints()]
    merged = torch.load("merged.ckpt", weights_only=True)
    assert_average(merged["state_dict"], [content["current_model_state"] for content in saved])
    go_on = ["more", "--ckpt_path", "merged.ckpt", "--trainer.max_steps", "9"]
    assert main([*fit, *go_on]) == 0


def test_master_weights_and_learned_scales_of_quantised_training_are_averaged(project):
    members = []
    for step in range(2):
        torch.manual_seed(step)
        net = torch.nn.Sequential(torch.nn.Linear(64, 8))
        prepare_qat(net, QATConfig(QuantizerConfig(method="lsq", group_size=32), None))
        members.append(net.state_dict())
        torch.save({"state_dict": members[-1], "global_step": step}, f"step_{step}.ckpt")
    assert any(name.endswith("weight_quantizer.scale") for name in members[0])
    assert main(["merge", "step_*.ckpt", "--out", "merged.safetensors"]) == 0
    assert_average(load_file("merged.safetensors"), members)


SHARDED = """
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader


class Net(LightningModule):
    def __init__(self, width: int = 7):
        super().__init__()
        self.save_hyperparameters()

    def configure_model(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, self.hparams.width), nn.Linear(7, 3))
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def on_train_batch_end(self, *args):
        step = self.trainer.global_step
        self.trainer.save_checkpoint(f"checkpoints/step_{step:08d}.ckpt")
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        full = get_model_state_dict(self, options=options)
        if self.trainer.is_global_zero:
            torch.save(full, f"full_{step}.pt")


if __name__ == "__main__":
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=3, **quiet)
    trainer.fit(Net(), DataLoader(torch.randn(64, 5), batch_size=4))
"""


@pytest.mark.slow
def test_checkpoints_of_a_sharded_run_become_one_file(project, capsys):
    """Two processes with FSDP2 on gloo; rows of 7 do not divide evenly over them."""
    Path("train.py").write_text(SHARDED)
    result = subprocess.run([sys.executable, "train.py"], capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert Path("checkpoints/step_00000003.ckpt/.metadata").is_file()
    assert main(["merge", "checkpoints", "--out", "merged.safetensors"]) == 0
    assert "(sharded checkpoint)" in capsys.readouterr().out
    members = [torch.load(f"full_{step}.pt", weights_only=True) for step in (1, 2, 3)]
    assert_average(load_file("merged.safetensors"), members)
    assert not torch.equal(members[0]["net.0.weight"], members[2]["net.0.weight"])
