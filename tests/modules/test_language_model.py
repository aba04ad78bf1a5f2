import ast
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tenfold
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from tenfold.modules.language_model import CausalLanguageModel
from tenfold.modules.optimization import WarmupCosine
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader

RECIPES = Path(tenfold.__file__).parent / "recipes" / "language_model"


def build(config, **kwargs) -> CausalLanguageModel:
    seed_everything(1, verbose=False)
    module = CausalLanguageModel(config=config, **kwargs)
    module.configure_model()
    return module


def cross_entropy_in_float64(module, batch) -> Tensor:
    """The definition, (B, L), from the network's own logits."""
    with torch.no_grad():
        logits = module.network(batch["input_ids"]).logits.double()
    log_probabilities = logits - logits.exp().sum(dim=-1, keepdim=True).log()
    nats = -log_probabilities.gather(2, batch["labels"].clamp(min=0)[..., None])[..., 0]
    return nats * (batch["labels"] != -100)


def gradients(module, batch) -> dict[str, Tensor]:
    module.loss(batch).backward()
    return {name: p.grad for name, p in module.named_parameters()}


# Losses


def test_loss_is_the_cross_entropy_per_predicted_token(dense, batch):
    module = build(dense)
    nats = cross_entropy_in_float64(module, batch)
    expected = nats.sum() / (batch["labels"] != -100).sum()
    assert module.loss(batch).item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(module.token_losses(batch).double(), nats, rtol=1e-5, atol=1e-6)


def test_shifted_labels_give_transformers_own_loss(dense):
    module = build(dense)
    ids = torch.randint(32, (3, 17))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    theirs = module.network(ids, labels=ids).loss
    torch.testing.assert_close(module.loss(batch), theirs)


def test_nothing_to_predict_is_no_loss(dense, batch):
    module = build(dense)
    loss = module.loss(batch | {"labels": torch.full_like(batch["labels"], -100)})
    loss.backward()
    assert loss.item() == 0
    assert all(bool((p.grad == 0).all()) for p in module.parameters())


def test_half_precision_logits_are_summed_in_float32(dense, batch):
    module = build(dense).to(torch.bfloat16)
    losses = module.token_losses(batch)
    assert losses.dtype == torch.float32
    nats = cross_entropy_in_float64(module, batch)
    torch.testing.assert_close(losses.double(), nats, rtol=1e-5, atol=1e-6)


def test_experts_are_balanced(experts, batch):
    module = build(experts)
    plain = module.token_losses(batch).sum() / (batch["labels"] != -100).sum()
    balance = (module.loss(batch) - plain).item() / 0.01  # the config's router_aux_loss_coef
    assert 2 <= balance < 4  # 2 experts per token if even, 4 if the same two always win
    gate = "network.model.layers.0.mlp.gate.weight"
    with_balance = gradients(module, batch)[gate]
    assert with_balance.abs().sum() > 0
    module.network.config.router_aux_loss_coef = 0.0
    module.zero_grad()
    assert not torch.equal(gradients(module, batch)[gate], with_balance)


@pytest.mark.parametrize("key", ["input_ids", "labels"])
def test_token_ids_beyond_the_vocabulary_are_refused(dense, batch, key):
    module = build(dense)
    batch[key][1, 5] = 40
    message = r"token id 40 .* vocabulary of 32: set .*config.vocab_size .*at least 41"
    with pytest.raises(ValueError, match=message):
        module.loss(batch)


# The network


@pytest.mark.parametrize("arguments", [{}, {"config": {}, "pretrained": "x"}])
def test_one_source_of_the_network_is_required(arguments):
    with pytest.raises(ValueError, match=r"exactly one of model\.init_args\.config"):
        CausalLanguageModel(**arguments)


def test_unknown_generation_arguments_are_named(dense):
    with pytest.raises(ValueError, match="generation: unknown 'temperatur'; did you mean temp"):
        CausalLanguageModel(dense, generation={"temperatur": 1.0})


def test_model_is_built_once_and_from_the_seed(dense):
    module = build(dense)
    network = module.network
    module.configure_model()
    assert module.network is network
    seed_everything(1, verbose=False)
    torch.rand(5)  # what a data module might draw
    other = CausalLanguageModel(config=dense)
    torch.rand(5)
    other.configure_model()
    assert torch.equal(other.network.lm_head.weight, network.lm_head.weight)


def test_meta_device_builds_without_memory(any_config):
    module = CausalLanguageModel(any_config)
    with torch.device("meta"):
        module.configure_model()
    assert all(p.is_meta for p in module.parameters())
    assert module.run_info()["num_parameters"] > 10_000


def test_pretrained_network_is_trained_in_training_mode(dense, batch, fit, loader, tmp_path):
    build(dense | {"attention_dropout": 0.5}).network.save_pretrained(tmp_path)
    module = CausalLanguageModel(pretrained=str(tmp_path))
    module.configure_model()
    assert not torch.equal(module.loss(batch), module.loss(batch))  # dropout is on
    fit(module, loader, loader, max_steps=3, val_check_interval=1)
    assert module.network.training


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient(any_config, batch, dropout):
    config = any_config | {"attention_dropout": dropout}
    plain, recomputed = build(config), build(config, activation_checkpointing=True)
    torch.manual_seed(0)
    expected = gradients(plain, batch)
    torch.manual_seed(0)
    for name, gradient in gradients(recomputed, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_compiled_layers_give_the_same_gradients_and_state_keys(dense, batch, monkeypatch):
    # aot_eager traces and differentiates like the default backend, without its minute of gcc.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = build(dense), build(dense, compile=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected = gradients(plain, batch)
    for name, gradient in gradients(compiled, batch).items():
        torch.testing.assert_close(gradient, expected[name])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_compiled_experts_train_with_recomputation(experts, fit, loader):
    losses = {}
    for both in (False, True):
        module = build(experts, compile=both, activation_checkpointing=both)
        fit(module, loader, max_steps=6, log_every_n_steps=2)
        losses[both] = [loss for _, loss in module.progress.curves["train"]]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


# Training


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_every_architecture_learns(any_config, fit, loader, precision):
    module = CausalLanguageModel(any_config, optimizer=partial(AdamW, lr=1e-2))
    fit(
        module,
        loader,
        precision=precision,
        max_steps=30,
        log_every_n_steps=5,
        gradient_clip_val=1.0,
    )
    curve = [loss for _, loss in module.progress.curves["train"]]
    assert curve[0] < math.log(32) + 0.3
    assert curve[-1] < curve[0] - 0.5
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert module.network.lm_head.weight.dtype == expected


def test_training_is_that_of_a_plain_loop(dense, fit, loader):
    module = build(dense, optimizer=partial(AdamW, lr=1e-2, weight_decay=0.1))
    plain = build(dense).network
    fit(module, loader, max_epochs=2, gradient_clip_val=0.5)
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=1e-2, weight_decay=0.1)
    for batch in [*loader, *loader]:
        logits = plain(batch["input_ids"]).logits
        F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


class Losses(Callback):
    """The loss of each batch as Lightning hands it to callbacks."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item() * trainer.accumulate_grad_batches)


def read_log(logger: CSVLogger) -> list[dict[str, float]]:
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


def test_logged_loss_is_the_mean_since_the_last_logging_step(dense, fit, resumable, tmp_path):
    module, losses, logger = build(dense), Losses(), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(
        module,
        resumable(13),
        logger=logger,
        callbacks=[losses],
        max_epochs=1,
        accumulate_grad_batches=2,
        log_every_n_steps=3,
    )
    rows = [row for row in read_log(logger) if "train/loss" in row]
    assert len(losses.values) == 13  # 7 optimizer steps: logged after steps 3 and 6
    means = [sum(losses.values[:6]) / 6, sum(losses.values[6:12]) / 6]
    assert [row["train/loss"] for row in rows] == pytest.approx(means)
    assert [row["train/tokens"] for row in rows] == [6 * 64, 12 * 64]
    assert all(row["train/tokens_per_second"] > 0 for row in rows)
    assert "train/mfu" not in rows[0]  # no known peak for a CPU
    assert module.progress.curves["train"] == [
        [row["train/tokens"], pytest.approx(row["train/loss"])] for row in rows
    ]


def test_tokens_beyond_float32_are_logged_exactly(dense, fit, loader, tmp_path):
    module, logger = build(dense), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    module.progress.tokens = 2**40 + 1
    fit(module, loader, logger=logger, max_steps=1, log_every_n_steps=1)
    assert read_log(logger)[0]["train/tokens"] == 2**40 + 1 + 64


def test_utilisation_is_logged_where_the_peak_is_known(dense, fit, loader, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tenfold.modules.language_model.get_available_flops", lambda device, dtype: 1e12
    )
    module, logger = build(dense), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(module, loader, logger=logger, max_steps=2, log_every_n_steps=1)
    row = read_log(logger)[-1]
    per_token = row["train/mfu"] * 1e12 / row["train/tokens_per_second"]
    info = module.run_info()
    assert per_token == pytest.approx(6 * info["num_parameters_non_embedding"], rel=0.3)
    assert info["mfu"] == pytest.approx(info["tokens_per_second"] * per_token / 1e12)


def test_expert_balance_is_logged(experts, fit, loader, tmp_path):
    module, logger = build(experts), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(module, loader, logger=logger, max_steps=2, log_every_n_steps=1)
    assert 2 <= read_log(logger)[0]["train/aux_loss"] < 4


# Checkpoints


def test_resume_is_exact(dense, fit, resumable, loader, tmp_path):
    settings = {"max_steps": 12, "log_every_n_steps": 4, "val_check_interval": 5}
    make = partial(WarmupCosine, warmup=3)
    whole = build(dense, lr_scheduler=make)
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, resumable(7), loader, callbacks=[keep], enable_checkpointing=True, **settings)
    for step in (4, 6, 9):  # on a logging step, between two, in the second epoch
        resumed = build(dense, lr_scheduler=make)
        path = tmp_path / f"step={step}.ckpt"
        trainer = fit(resumed, resumable(7), loader, ckpt_path=path, **settings)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        assert resumed.progress.state_dict() == whole.progress.state_dict()
        assert trainer.global_step == 12
    assert [tokens for tokens, _ in whole.progress.curves["val"]] == [320, 768]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"optimizer": partial(AdamW, lr=0.5, betas=(0.8, 0.9))},
        {"optimizer": lambda params: AdamW(params, lr=0.5), "lr_scheduler": WarmupCosine},
        {"lr_scheduler": partial(WarmupCosine, warmup=1), "generation": {"max_new_tokens": 3}},
    ],
)
def test_checkpoints_load_without_unpickling(dense, fit, loader, tmp_path, arguments):
    module = build(dense, **arguments)
    fit(module, loader, max_steps=2).save_checkpoint(tmp_path / "last.ckpt")
    loaded = CausalLanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.progress.tokens == module.progress.tokens > 0
    assert loaded.generation == module.generation
    if isinstance(arguments.get("optimizer"), partial):
        made = loaded.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        assert (made.defaults["lr"], made.defaults["betas"]) == (0.5, (0.8, 0.9))
    # A loaded module can be trained and saved again, and still knows how it was made.
    fit(loaded, loader, max_steps=1).save_checkpoint(tmp_path / "again.ckpt")
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["hyper_parameters"]
    schedule = "lr_scheduler" in arguments
    assert (again.get("lr_scheduler") is not None) == schedule


def test_checkpoints_of_the_command_line_load_too(fit, loader, tmp_path):
    arguments = ["--model=CausalLanguageModel", "--model.config.vocab_size=32"]
    arguments += ["--model.config.hidden_size=32", "--model.config.num_hidden_layers=1"]
    arguments += ["--model.optimizer.lr=0.25", "--model.lr_scheduler=WarmupCosine"]
    cli = LightningCLI(
        subclass_mode_model=True, run=False, auto_configure_optimizers=False, args=arguments
    )
    trainer = fit(cli.model, loader, max_steps=1)
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == 0.25
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1  # the default's
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = CausalLanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.network.config.hidden_size == 32
    optimizer = loaded.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] == 0.25


def test_weights_of_another_origin_start_counting_at_zero(dense, fit, loader, tmp_path):
    module = build(dense)
    fit(module, loader, max_steps=2).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["training_progress"]
    torch.save(checkpoint, tmp_path / "merged.ckpt")
    loaded = CausalLanguageModel.load_from_checkpoint(tmp_path / "merged.ckpt", weights_only=True)
    assert loaded.progress.tokens == 0


# Evaluation


def test_evaluation_is_exact_over_uneven_batches(dense, fit, loader):
    module = build(dense)
    trainer = fit(module, loader, loader, max_steps=2, num_sanity_val_steps=2)
    (logged,) = trainer.validate(module, loader, verbose=False)
    nats, num_tokens, num_bytes = 0.0, 0, 0.0
    for batch in loader:
        nats += cross_entropy_in_float64(module, batch).sum().item()
        num_tokens += int((batch["labels"] != -100).sum())
        num_bytes += batch["num_bytes"].sum().item()
    assert logged["val/loss"] == pytest.approx(nats / num_tokens, rel=1e-6)
    assert logged["val/perplexity"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-6)
    assert logged["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)


def test_only_training_validation_enters_the_curve(dense, fit, loader):
    module = build(dense)
    trainer = fit(module, loader, loader, max_epochs=1, num_sanity_val_steps=1)
    assert [tokens for tokens, _ in module.progress.curves["val"]] == [4 * 64 - 32]
    trainer.validate(module, loader, verbose=False)
    assert len(module.progress.curves["val"]) == 1


def test_test_step_gives_a_record_for_each_sequence(dense, loader):
    module = build(dense).eval()
    batches = list(loader)
    batches[0]["labels"][2] = -100  # nothing to predict: no record
    batches[0]["num_bytes"][2] = 0
    records = [r for batch in batches for r in module.test_step(batch, 0)["records"]]
    assert [r["id"] for r in records] == [str(i) for i in range(14) if i != 2]
    nats = cross_entropy_in_float64(module, batches[1])[0].sum().item()
    labels = batches[1]["labels"][0]
    record = records[3]
    assert record["loss"] == pytest.approx(nats / int((labels != -100).sum()), rel=1e-5)
    num_bytes = batches[1]["num_bytes"][0].item()
    assert record["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_greedy_prediction_is_the_most_likely_token(dense, batch):
    module = build(dense, generation={"max_new_tokens": 5}).eval()
    records = module.predict_step(batch, 0)
    ids = batch["input_ids"]
    for _ in range(5):
        ids = torch.cat((ids, module(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert [r["completion_ids"] for r in records] == ids[:, 16:].tolist()
    assert [r["prompt_ids"] for r in records] == batch["input_ids"].tolist()
    assert [r["id"] for r in records] == ["0", "1", "2", "3"]


def test_prediction_ends_after_the_end_token(dense, batch):
    greedy = build(dense, generation={"max_new_tokens": 5}).eval().predict_step(batch, 0)
    end = greedy[0]["completion_ids"][2]
    module = build(dense | {"eos_token_id": end}, generation={"max_new_tokens": 5}).eval()
    for record, before in zip(module.predict_step(batch, 0), greedy, strict=True):
        ids = before["completion_ids"]
        assert record["completion_ids"] == (ids[: ids.index(end) + 1] if end in ids else ids)


def test_figure_and_sizes_after_training(dense, fit, loader):
    module = build(dense)
    assert module.figures() == {}
    fit(module, loader, loader, max_epochs=2, log_every_n_steps=1)
    train, val = module.figures()["loss"].axes[0].lines
    assert len(train.get_xdata()) == 8
    assert len(val.get_xdata()) == 2
    info = module.run_info()
    assert info["num_parameters"] == sum(p.numel() for p in module.parameters())
    assert info["tokens_seen"] == 2 * 14 * 16
    assert info["tokens_per_second"] > 0
    assert info["mfu"] is None


def test_paper_recipe_has_the_papers_size():
    recipe = yaml.safe_load((RECIPES / "paper.yaml").read_text())
    module = CausalLanguageModel(config=recipe["model"]["init_args"]["config"])
    with torch.device("meta"):
        module.configure_model()
    # Attention and feed-forward weights of the paper's Table 3, plus norms.
    assert module.run_info()["num_parameters_non_embedding"] == 297_271_296 + 25 * 1536
    data, trainer = recipe["data"]["init_args"], recipe["trainer"]
    sequences = data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"]
    assert sequences == 512
    assert trainer["max_steps"] == 10**11 // (sequences * data["sequence_length"])


def test_module_survives_being_subclassed(dense, fit, loader, tmp_path):
    class Doubled(CausalLanguageModel):
        def training_step(self, batch, batch_idx):
            return 2 * super().training_step(batch, batch_idx)

    module = Doubled(config=dense)
    fit(module, loader, max_steps=1).save_checkpoint(tmp_path / "last.ckpt")
    loaded = Doubled.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert isinstance(loaded, LightningModule)
    assert type(loaded) is Doubled


def test_data_loaders_may_be_anything_iterable(dense, fit, batch):
    module = build(dense)
    fit(module, DataLoader([batch] * 3, batch_size=None), max_epochs=1)
    assert module.progress.tokens == 3 * 64


SHARDED = """
import sys
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader
from tenfold.modules.language_model import CausalLanguageModel

strategy, devices, tensor_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if strategy == "fsdp":
    strategy = ModelParallelStrategy(devices // tensor_parallel, tensor_parallel, False)


class Data(LightningDataModule):
    def rows(self, num_rows):
        ids = torch.randint(32, (32, 17), generator=torch.Generator().manual_seed(0))
        mine = ids[self.trainer.global_rank : num_rows : devices]
        rest = {"num_bytes": torch.tensor(16.0), "index": torch.tensor(0)}
        rows = [{"input_ids": x[:-1], "labels": x[1:], **rest} for x in mine]
        return DataLoader(rows, 8 // devices)

    def train_dataloader(self):
        return self.rows(32)

    def val_dataloader(self):
        return self.rows(31)  # one device has a sequence less


seed_everything(0)
config = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2}
config |= {"intermediate_size": 48, "num_attention_heads": 4}
module = CausalLanguageModel(config)
trainer = Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=3, logger=False,
                  gradient_clip_val=1.0, enable_progress_bar=False, log_every_n_steps=1,
                  enable_checkpointing=False, enable_model_summary=False,
                  use_distributed_sampler=False)
trainer.fit(module, datamodule=Data())
trainer.save_checkpoint("last.ckpt")
if trainer.is_global_zero:
    loaded = CausalLanguageModel.load_from_checkpoint("last.ckpt", weights_only=True)
    print("KEYS", sorted(loaded.state_dict()) == sorted(module.state_dict()))
    print("CURVES", module.progress.curves)
"""


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SHARDED)
    return subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_train_like_one(tmp_path, strategy):
    curves = {}
    for name, devices in (("auto", "1"), (strategy, "2")):
        result = run_script(tmp_path, name, devices, "1")
        assert "KEYS True" in result.stdout, result.stderr
        curves[name] = ast.literal_eval(result.stdout.split("CURVES ")[1].splitlines()[0])
    for split in ("train", "val"):
        for one, two in zip(curves["auto"][split], curves[strategy][split], strict=True):
            assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_tensor_parallel_mesh_is_refused(tmp_path):
    result = run_script(tmp_path, "fsdp", "2", "2")
    assert "set tensor_parallel_size: 1" in result.stderr
