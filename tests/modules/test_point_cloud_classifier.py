import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from tenfold.modules.point_cloud import PointCloudClassifier, PointNet
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

K = 5


def build(**kwargs) -> PointCloudClassifier:
    seed_everything(0, verbose=False)
    backbone = PointNet(kwargs.pop("aggregation", "max"), widths=(8, 16), tnet=False)
    return PointCloudClassifier(backbone, K, head_widths=(16,), **kwargs)


def make_batch(num_clouds=8, num_points=20, **more) -> dict:
    """Clouds whose class is where they lie."""
    label = torch.arange(num_clouds) % K
    pos = 0.1 * torch.randn(num_clouds, num_points, 3) + label[:, None, None] / K
    return {"pos": pos, "label": label, "index": torch.arange(num_clouds), **more}


def loader(batches):
    return DataLoader(batches, batch_size=None)


def trainer(tmp_path, **kwargs) -> Trainer:
    settings = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        log_every_n_steps=1,
        **{**settings, **kwargs},
    )


def test_smoothed_loss_has_the_benchmarks_targets():
    module = build(label_smoothing=0.2, penalty_weight=0.0).eval()
    batch = make_batch()
    log_probabilities = module(batch["pos"]).double().log_softmax(dim=1)
    targets = torch.full((8, K), 0.2 / (K - 1), dtype=torch.float64)
    targets[torch.arange(8), batch["label"]] = 0.8
    expected = -(targets * log_probabilities).sum(dim=1).mean()
    assert module.loss(batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_forty_classes_need_the_smoothing_that_the_specification_names():
    logits, label = torch.randn(9, 40), torch.randint(40, (9,))
    module = PointCloudClassifier(PointNet(widths=(4, 4), tnet=False), 40, head_widths=())
    found = module._cross_entropy(logits, {"label": label})
    expected = F.cross_entropy(logits, label, label_smoothing=0.20513, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_mixed_labels_weigh_the_losses_of_their_classes():
    module = build(penalty_weight=0.0).eval()
    one = make_batch()
    other = {**one, "label": (one["label"] + 1) % K}
    weights = 0.7 * F.one_hot(one["label"], K) + 0.3 * F.one_hot(other["label"], K)
    mixed = module.loss({**one, "label_weights": weights.float()})
    expected = 0.7 * module.loss(one) + 0.3 * module.loss(other)
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_penalty_is_added_with_its_weight():
    seed_everything(0, verbose=False)
    backbone = PointNet(widths=(8, 16), tnet_widths=(8,), tnet_hidden=(8,))
    batch = make_batch()
    losses = []
    for weight in (0.0, 0.5):
        module = PointCloudClassifier(backbone, K, dropout=0.0, penalty_weight=weight)
        torch.manual_seed(0)
        seed_everything(1, verbose=False)
        module.head = torch.nn.Linear(16, K)
        losses.append(module.eval().loss(batch).item())
    penalty = backbone(batch["pos"])[1].item()
    assert penalty > 0
    assert losses[1] - losses[0] == pytest.approx(0.5 * penalty, rel=1e-4)


def test_it_learns_and_tests_every_set(tmp_path):
    module = build(aggregation="set_mixer", optimizer=partial(AdamW, lr=1e-2))
    batches = [make_batch(20) for _ in range(6)]
    run = trainer(tmp_path, max_epochs=8)
    run.fit(module, loader(batches), loader([make_batch(20)]))
    assert run.callback_metrics["val/accuracy"] > 0.9
    assert math.isfinite(run.callback_metrics["train/epoch_loss"])
    sets = [("clean", 0), *(("background", s) for s in range(1, 6)), ("rotation", 1)]
    loaders = [
        loader([make_batch(10, 20 + severity, corruption=name, severity=severity)])
        for name, severity in sets
    ]
    run.test(module, loaders, verbose=False)
    found = {name for name in run.callback_metrics if name.startswith("test/er/")}
    assert found >= {f"test/er/background/{s}" for s in range(1, 6)} | {"test/er/rotation_s1"}
    assert run.callback_metrics["test/er_clean"] < 0.2
    assert run.callback_metrics["test/permutation_residual"] < 1e-5
    assert 0 < run.callback_metrics["test/outlier_influence"] < 1
    assert "error_rates" in module.figures()
    assert module.run_info()["samples_seen"] == 8 * 6 * 20


def test_records_name_shape_set_and_error(tmp_path):
    module = build().eval()
    batch = make_batch(corruption="gaussian", severity=3)
    records = module.test_step(batch, 0)["records"]
    wrong = module(batch["pos"]).argmax(dim=1) != batch["label"]
    assert [record["error"] for record in records] == wrong.float().tolist()
    first = {"id": "gaussian/3/0", "row": "gaussian", "group": "0", "error": float(wrong[0])}
    assert records[0] == first


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path):
    module = build(optimizer=partial(AdamW, lr=0.1), dropout=0.0)
    bad = make_batch()
    bad["pos"] = torch.full_like(bad["pos"], 3e38)  # finite, but not after the first layer
    run = trainer(tmp_path, max_steps=1)
    before = {name: p.clone() for name, p in module.named_parameters()}
    with pytest.warns(UserWarning, match="step 0 is left out"):
        run.fit(module, loader([bad]))
    assert module.run_info()["skipped_steps"] == 1
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_plateau_schedule_follows_the_training_loss(tmp_path):
    schedule = partial(ReduceLROnPlateau, monitor="train/epoch_loss", factor=0.5, patience=0)
    module = build(optimizer=partial(SGD, lr=0.0), lr_scheduler=schedule, dropout=0.0)
    batch = make_batch()
    run = trainer(tmp_path, max_epochs=4)
    module.train()
    run.fit(module, loader([batch]), loader([batch]))
    # A rate of zero never improves: each epoch after the first halves it.
    assert run.lr_scheduler_configs[0].scheduler.num_bad_epochs == 0
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(
        module.train().loss(batch).item(), rel=1e-4
    )


def test_hyperparameters_are_plain_and_the_backbone_is_not_stored():
    module = build(optimizer=partial(AdamW, lr=1e-3))
    assert "backbone" not in module.hparams
    assert module.hparams["optimizer"]["class_path"] == "torch.optim.adamw.AdamW"


def test_wrong_batches_and_arguments_are_named(tmp_path):
    def train(batch):
        trainer(tmp_path, max_steps=1).fit(build(), loader([batch]))

    batch = make_batch()
    with pytest.raises(ValueError, match=r"label 9 is outside of the model's 5 classes"):
        train({**batch, "label": batch["label"] + 5})
    with pytest.raises(ValueError, match="not finite"):
        train({**batch, "pos": batch["pos"].index_fill(1, torch.tensor([3]), torch.nan)})
    with pytest.raises(ValueError, match=r"pos: shape \(8, 20\), expected \(B, N, 3\)"):
        train({**batch, "pos": batch["pos"][..., 0]})
    with pytest.raises(ValueError, match="num_classes must be 2"):
        PointCloudClassifier(PointNet(widths=(4, 4), tnet=False), 1)
    with pytest.raises(ValueError, match=r"dropout.*one number in \[0, 1\)"):
        PointCloudClassifier(PointNet(widths=(4, 4), tnet=False), 3, dropout=[0.5])
