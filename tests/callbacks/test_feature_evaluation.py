"""Zero-shot, retrieval and linear probe: against formulas, and from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from sklearn.linear_model import LogisticRegression
from tenfold.callbacks.feature_evaluation import (
    LinearProbeEvaluation,
    RetrievalEvaluation,
    ZeroShotEvaluation,
)
from tenfold.modules.linear_probe import linear_probe
from tenfold.modules.metrics.classification import ClassificationScore, score_of
from tenfold.modules.zero_shot import class_embeddings, class_logits
from tenfold.recipes.cli import main
from tiny_pairs import SMALL, records, write_parquet
from torch.utils.data import DataLoader

# Arithmetic


def encode_words(texts):
    """Two words, two directions; all others a third."""
    table = {"cat": [1.0, 0, 0], "dog": [0, 2.0, 0]}
    words = [[torch.tensor(table.get(w, [0, 0, 0.5])) for w in text.split()] for text in texts]
    return torch.stack([torch.stack(vectors).sum(dim=0) for vectors in words])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_class_embeddings_are_means_of_unit_vectors(batch_size):
    templates = ["a {c}", "the {c}", "a photo of a {c}"]
    found = class_embeddings(encode_words, ["cat", "dog"], templates, batch_size)
    for row, name in enumerate(("cat", "dog")):
        texts = [template.replace("{c}", name) for template in templates]
        each = [v / np.linalg.norm(v) for v in encode_words(texts).double().numpy()]
        mean = np.mean(each, axis=0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("templates", "message"), [([], "at least one"), (["a dog"], "has no {c}")]
)
def test_templates_have_a_place_for_the_name(templates, message):
    with pytest.raises(ValueError, match=message):
        class_embeddings(encode_words, ["cat"], templates)


def test_integer_logits_tie_what_real_ones_tell_apart():
    classes = F.normalize(torch.tensor([[1.0, 0.101], [1.0, 0.1]]), dim=1)
    image = torch.tensor([[1.0, 0.1]])
    assert class_logits(image, classes).argmax() == 1
    assert class_logits(image, classes, integer_logits=True).unique().numel() == 1


def test_scores_are_what_they_are_called():
    logits = torch.tensor([[3.0, 1, 0], [2.0, 1, 0], [0, 1.0, 5], [9.0, 0, 0]])
    label = torch.tensor([0, 0, 1, -100])
    assert score_of("accuracy", logits, label) == pytest.approx(2 / 3)
    assert score_of("mean_per_class", logits, label) == pytest.approx(1 / 2)
    two, truth = torch.tensor([[0.0, 1], [0, 3], [0, 2], [0, -1]]), torch.tensor([0, 1, 1, 0])
    assert score_of("roc_auc", two, truth) == 1.0
    assert score_of("roc_auc", two, torch.tensor([1, 1, 0, 0])) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="roc_auc is for 2 classes"):
        ClassificationScore("roc_auc", 3)


def blobs(number, seed, classes=3):
    generator = np.random.default_rng(seed)
    label = np.arange(number) % classes
    features = 1.2 * np.eye(6)[label] + generator.normal(size=(number, 6))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(label)


def test_the_probe_is_scikit_learns_with_the_strength_that_a_held_out_part_chose():
    train, test = blobs(150, 0), blobs(300, 1)
    found = linear_probe(*train, *test, num_classes=3)
    model = LogisticRegression(C=found["strength"], max_iter=1000)
    model.fit(train[0].double().numpy(), train[1].numpy())
    assert found["score"] == pytest.approx(model.score(test[0].double().numpy(), test[1].numpy()))
    assert found["score"] > 0.55
    weakest = linear_probe(*train, *test, num_classes=3, grid=(1e-12,))
    assert weakest["strength"] == 1e-12
    assert weakest["score"] <= found["score"]


def test_a_class_that_is_never_trained_gets_nothing_right():
    train, test = blobs(60, 0), blobs(60, 1, classes=4)
    found = linear_probe(*train, *test, num_classes=4)
    assert found["score"] <= 0.75
    with pytest.raises(ValueError, match="all of one class"):
        linear_probe(train[0], torch.zeros(60, dtype=torch.long), *test, num_classes=4)


# With a Trainer


class Labelled(LightningDataModule):
    """One image per class, whose mean colour is its number."""

    class_names = ("zero", "one", "two", "three")
    templates = ("a {c}",)
    metric = "accuracy"

    def __init__(self, wrong=0):
        super().__init__()
        self.wrong = wrong

    def batches(self):
        images = torch.arange(4).float()[:, None, None, None].expand(4, 3, 2, 2) / 10
        label = (torch.arange(4) + (torch.arange(4) < self.wrong).long()) % 4
        captions = [[f"a {name}", name] for name in self.class_names]
        index = torch.arange(4)
        return [{"images": images, "label": label, "captions": captions, "index": index}]

    def train_dataloader(self):
        return DataLoader(self.batches() * 10, batch_size=None)

    def test_dataloader(self):
        return DataLoader(self.batches(), batch_size=None)


class Perfect(LightningModule):
    """Knows the images and the texts of `Labelled`."""

    def encode_image(self, images):
        return torch.eye(4)[(images.mean(dim=(1, 2, 3)) * 10).round().long()]

    def encode_text(self, texts):
        names = Labelled.class_names
        return torch.stack([torch.eye(4)[names.index(text.split()[-1])] for text in texts])

    def test_step(self, batch, batch_idx):
        return None


def measured(*callbacks):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.test(Perfect(), Labelled(), verbose=False)[0]


def test_each_data_set_and_their_mean_are_logged():
    found = measured(ZeroShotEvaluation({"good": Labelled(), "bad": Labelled(wrong=3)}))
    assert found == {
        "test/zero_shot/good": 1.0,
        "test/zero_shot/bad": 0.25,
        "test/zero_shot/average": 0.625,
    }
    both = measured(
        ZeroShotEvaluation({"v1": Labelled()}),
        ZeroShotEvaluation({"v2": Labelled()}, name="robustness"),
    )
    assert both == {"test/zero_shot/v1": 1.0, "test/robustness/v2": 1.0}


def test_retrieval_counts_every_caption():
    found = measured(RetrievalEvaluation({"four": Labelled()}, top_k=(1,), prefix="a photo of "))
    assert found["test/retrieval/four/image_to_text_r1"] == 1.0
    assert found["test/retrieval/four/text_to_image_r1"] == 1.0


def test_the_probe_uses_features_of_the_module():
    assert measured(LinearProbeEvaluation({"four": Labelled()})) == {"test/linear_probe/four": 1.0}


def test_what_does_not_fit_is_refused_in_one_line():
    class Blind(Perfect):
        encode_text = None

    callback = ZeroShotEvaluation({"x": Labelled()})
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback])
    with pytest.raises(ValueError, match="ZeroShotEvaluation needs a model with encode_text"):
        trainer.test(Blind(), Labelled(), verbose=False)
    with pytest.raises(ValueError, match="datasets: give at least one"):
        ZeroShotEvaluation({})

    class NoNames(LightningDataModule):
        def test_dataloader(self):
            return Labelled().test_dataloader()

    with pytest.raises(ValueError, match="NoNames has no class_names"):
        measured(ZeroShotEvaluation({"x": NoNames()}))


# From the command line


@pytest.fixture
def recipe(project):
    """A small run with all evaluations, on squares of eight colours."""
    write_parquet(project / "data" / "pairs" / "a.parquet", records(64))
    write_parquet(project / "data" / "held_out" / "a.parquet", records(12, first=64))
    colours = {
        "class_path": "ClassificationDataModule",
        "init_args": {"dataset": "pairs", "root": "data", "image_size": 16},
    }
    pairs = {"root": "data", "val": "held_out", "image_size": 16, "batch_size": 8}
    captions = {"class_path": "MultiTextDataModule", "init_args": {**pairs, "caption_key": "alt"}}
    content = {
        "seed_everything": 0,
        "model": {
            "class_path": "ClipPretraining",
            "init_args": {
                **SMALL,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            },
        },
        "data": {"class_path": "MultiTextDataModule", "init_args": pairs},
        "trainer": {
            "max_epochs": 12,
            "accelerator": "cpu",
            "check_val_every_n_epoch": 4,
            "log_every_n_steps": 4,
            "callbacks": [
                {"class_path": "ZeroShotEvaluation", "init_args": {"datasets": {"c": colours}}},
                {"class_path": "RetrievalEvaluation", "init_args": {"datasets": {"p": captions}}},
                {"class_path": "LinearProbeEvaluation", "init_args": {"datasets": {"c": colours}}},
            ],
        },
        "test_after_fit": True,
    }
    Path("clip.yaml").write_text(yaml.safe_dump(content))
    return "clip.yaml"


def test_recipes_name_data_sets(recipe):
    assert main(["fit", "--config", recipe, "--run_dir", "run"]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    # Chance is 1 of 8.
    assert metrics["fit"]["val/zero_shot/c"] >= 0.5
    assert "val/linear_probe/c" not in metrics["fit"]
    assert metrics["test"]["test/linear_probe/c"] >= 0.5
    assert metrics["test"]["test/zero_shot/c"] >= 0.5
    # Four pairs of shades of one colour among twelve squares.
    assert metrics["test"]["test/retrieval/p/image_to_text_r5"] >= 0.5
    assert metrics["test"]["test/image_to_text_r10"] >= 0.5


def test_all_benchmarks_of_the_paper_are_an_overlay(project, capsys):
    overlay = ["--config", "overlays/clip_benchmarks"]
    assert main(["check", "--config", "realsyn/clip_vitb32_15m", *overlay, "--meta"]) == 0
    assert "151M parameters" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_measure_what_one_does(recipe, tenfold, strategy):
    fit = main(["fit", "--config", recipe, "--run_dir", "run", "--trainer.max_epochs", "4"])
    assert fit == 0
    options = ["--config", recipe, "--config", f"overlays/{strategy}", "--trainer.devices=2"]
    if strategy == "fsdp":
        options += ["--trainer.strategy.init_args.data_parallel_size=2"]
    options += ["--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "several"]
    done = tenfold("test", *options)
    assert done.returncode == 0, done.stderr
    one = json.loads(Path("run/metrics.json").read_text())["test"]
    several = json.loads(Path("several/metrics.json").read_text())["test"]
    for name, value in one.items():
        if name.startswith("test/") and name != "test/loss":  # whose batches differ
            assert several[name] == pytest.approx(value, abs=1e-6), name
