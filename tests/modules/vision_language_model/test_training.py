"""Training, phases, adapters, checkpoints, callbacks, reports."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from peft import PeftModel
from tenfold.callbacks.checkpoint_merging import CheckpointMerging
from tenfold.callbacks.quantization import QuantizationAwareTraining
from tenfold.datamodules.scenes import CauseEffectScenes, ObjectScenes, SceneDataModule
from tenfold.modules.optimization import WarmupCosine
from tenfold.modules.quantization import QuantizerConfig
from tenfold.modules.quantization.layers import FakeQuantLayer
from tenfold.modules.vision_language_model import Phase, VisionLanguageModel
from tenfold.modules.vision_language_model.metrics import AnswerAccuracy
from tenfold.modules.vision_language_model.phases import phase_at
from tiny_vlm import build
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

fast = partial(AdamW, lr=1e-2)


class Batches:
    """Pictures of one colour and a question for it; its state is the number consumed."""

    def __init__(self, num_batches, batch_size=4, evaluating=False):
        self.num_batches, self.batch_size, self.evaluating = num_batches, batch_size, evaluating
        self.consumed = 0

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        start = 0 if self.evaluating else self.consumed
        for number in range(start, self.num_batches):
            self.consumed = (number + 1) % self.num_batches
            yield self.batch(number)

    def batch(self, number):
        generator = torch.Generator().manual_seed(number)
        size = self.batch_size
        which = torch.randint(2, (size,), generator=generator)
        images = torch.rand(size, 1, 3, 32, 32, generator=generator) * 0.2
        images[torch.arange(size), 0, 2 * which] += 0.8  # channel 0 or 2
        words = [("red", "blue")[i] for i in which.tolist()]
        return {
            "images": images,
            "questions": [["What is the digit?"]] * size,
            "answers": [[word] for word in words],
            "kinds": [["what"]] * size,
            "group": words,
            "index": torch.arange(size) + size * number,
            "boxes": torch.tensor([[[0, 0, 1.0, 1.0]]]).repeat(size, 1, 1),
            "box_labels": torch.stack((which + 1, which + 3), dim=-1)[:, None],
        }

    def state_dict(self):
        return {"consumed": self.consumed}

    def load_state_dict(self, state):
        self.consumed = state["consumed"]


def test_every_family_learns_what_it_sees(any_config, fit):
    module = build(any_config, phases=[Phase(patch_weight=0.5)], optimizer=fast)
    fit(module, Batches(25), Batches(2, evaluating=True), max_epochs=1, gradient_clip_val=1.0)
    assert module.progress.tokens == 100
    unseen = Batches(1).batch(99)
    values = module.score(unseen["images"], unseen["questions"], ["red", "blue"])
    assert [("red", "blue")[i] for i in values.argmax(dim=1).tolist()] == unseen["group"]
    assert module.progress.curves["val"][-1][1] < 0.3


@pytest.mark.parametrize("scenes", [ObjectScenes(), ObjectScenes.caid(), CauseEffectScenes()])
def test_every_kind_of_scene_is_food_for_it(scenes, fit):
    module = build(
        vocabulary=" ".join(scenes.vocabulary),
        patch_classes=[8, 10],
        optimizer=fast,
        phases=[Phase(patch_weight=0.5)],
    )
    data = SceneDataModule(scenes, num_train=8, num_val=1, num_test=1, batch_size=4)
    trainer = fit(module, data, max_epochs=1)
    assert len(module.progress.curves["val"]) == 1
    assert "test/accuracy" in trainer.test(module, data, verbose=False)[0]
    assert len(trainer.predict(module, data)) == 1


# Phases


def test_phases_are_a_function_of_the_step():
    phases = [Phase(), Phase(start=0.25), Phase(start=60)]
    at = [phases.index(phase_at(phases, step, 100)) for step in (0, 24, 25, 59, 60, 99)]
    assert at == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"begin at steps \[0, 50.0, 20\]; put them in order"):
        phase_at([Phase(), Phase(start=0.5), Phase(start=20)], 0, 100)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "the first must begin at 0"),
        ([Phase(start=3)], "the first must begin at 0"),
        ([Phase(), Phase(start=1.5)], "start 1.5 is neither"),
        ([Phase(answer_weight=0)], "train nothing"),
        ([Phase(freeze=["("])], "freeze: .* is malformed"),
    ],
)
def test_impossible_phases_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        build(phases=phases)


def test_dense_phases_need_classes_and_boxes(batch):
    with pytest.raises(ValueError, match=r"patch_weight needs model\.init_args.patch_classes"):
        build(phases=[Phase(patch_weight=1)], patch_classes=None)
    module = build(phases=[Phase(patch_weight=1)])
    del batch["boxes"]
    with pytest.raises(ValueError, match="no boxes and box_labels"):
        module.loss(batch)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_phase_learns_from_its_kinds_of_questions(batch, as_list):
    module = build(phases=[Phase(patch_weight=0.5)])
    if as_list:
        batch["images"] = list(batch["images"])
    by_hand = dict(batch)
    for name, rows in (
        ("questions", [["What is the red digit?"], ["What is the blue digit?"]]),
        ("answers", [["7"], ["3"]]),
        ("kinds", [["what"], ["what"]]),
    ):
        by_hand[name] = rows
    by_hand["images"] = [batch["images"][0], batch["images"][2]]
    if not as_list:
        by_hand["images"] = torch.stack(by_hand["images"])
    by_hand["boxes"], by_hand["box_labels"] = batch["boxes"][[0, 2]], batch["box_labels"][[0, 2]]
    loss = module.loss(batch, Phase(patch_weight=0.5, kinds=["what"]))
    torch.testing.assert_close(loss, module.loss(by_hand, Phase(patch_weight=0.5)))
    assert loss != module.loss(batch, Phase(patch_weight=0.5))
    with pytest.raises(ValueError, match=r"no question of the kinds \['left'\] in a batch of 3"):
        module.loss(batch, Phase(kinds=["left"]))


class WhatMoves(Callback):
    """Names of parameters that changed, per step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved = (n for n, p in pl_module.named_parameters() if not torch.equal(p, self.before[n]))
        self.steps.append(set(moved))


def test_phases_decide_what_moves(fit):
    phases = [
        Phase(answer_weight=0, patch_weight=1),
        Phase(start=2, freeze=["language_model", "lm_head"]),
        Phase(start=4, patch_weight=1, freeze=["vision_tower"]),
    ]
    moves = WhatMoves()
    module = build(phases=phases, optimizer=fast, freeze=["projector.*bias"])
    fit(module, Batches(6), callbacks=[moves], max_epochs=1)

    def parts(names):
        known = ("vision_tower", "projector", "language_model", "patch_head")
        return {part for part in known if any(part in name for name in names)}

    assert [parts(names) for names in moves.steps] == [
        *[{"vision_tower", "projector", "patch_head"}] * 2,
        *[{"vision_tower", "projector"}] * 2,
        *[{"projector", "language_model", "patch_head"}] * 2,
    ]
    assert not any("bias" in n and "projector" in n for names in moves.steps for n in names)


class Swap(nn.Module):
    """Exchanges red and blue, and halves the boxes."""

    def forward(self, images, boxes):
        return images.flip(1), None if boxes is None else boxes / 2


def test_augmentation_sees_training_only(batch, single):
    plain, augmented = build(), build(augmentation=Swap())
    swapped = {**batch, "images": batch["images"].flip(2), "boxes": batch["boxes"] / 2}
    both = Phase(patch_weight=1)
    torch.testing.assert_close(augmented.loss(batch, both), plain.loss(swapped, both))
    plain.eval(), augmented.eval()
    torch.testing.assert_close(augmented.loss(batch, both), plain.loss(batch, both))


# Adapters


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
def test_lora_trains_adapters_alone(name, fit, tmp_path):
    moves = WhatMoves()
    module = build(name, lora={"r": 2}, patch_classes=None, optimizer=fast)
    fit(module, Batches(3), callbacks=[moves], max_epochs=1)
    moved = set.union(*moves.steps)
    assert moved
    assert all("lora_" in n for n in moved)
    assert not any("vision" in n or "visual" in n for n in moved)
    info = module.run_info()
    assert info["num_trained_parameters"] < 0.2 * info["num_parameters"]
    module.save_pretrained(tmp_path)
    base = build(name, patch_classes=None).network.eval()
    adapted = PeftModel.from_pretrained(base, tmp_path).eval()
    inputs, _ = module.eval().encode(Batches(1).batch(9))
    torch.testing.assert_close(adapted(**inputs).logits, module(inputs).logits)


def test_lora_settings_are_checked():
    with pytest.raises(ValueError, match="lora: unknown 'rank'"):
        build(lora={"rank": 2})
    with pytest.raises(ValueError, match=r"lora: .*nothing_like_it"):
        build(lora={"r": 2, "target_modules": ["nothing_like_it"]})


# Checkpoints


def test_resume_is_exact_across_phases(fit, tmp_path):
    settings = {"max_steps": 10, "log_every_n_steps": 3, "val_check_interval": 5}
    phases = [Phase(answer_weight=0, patch_weight=1), Phase(start=0.4, patch_weight=0.5)]
    make = partial(
        build, phases=phases, optimizer=fast, lr_scheduler=partial(WarmupCosine, warmup=2)
    )
    whole = make()
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    val = Batches(1, evaluating=True)
    fit(whole, Batches(7), val, callbacks=[keep], enable_checkpointing=True, **settings)
    for step in (2, 4, 8):  # in the first phase, between phases, in the second epoch
        resumed = make()
        path = tmp_path / f"step={step}.ckpt"
        trainer = fit(resumed, Batches(7), val, ckpt_path=path, **settings)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        assert resumed.progress.state_dict() == whole.progress.state_dict()
        assert trainer.global_step == 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"phases": [Phase(), Phase(start=0.5, patch_weight=2, freeze=["norm"])]},
        {"lora": {"r": 2}},
        {"optimizer": partial(AdamW, lr=0.5)},
    ],
)
def test_checkpoints_load_without_unpickling(fit, tmp_path, arguments):
    module = build(**arguments)
    fit(module, Batches(2), max_steps=2).save_checkpoint(tmp_path / "last.ckpt")
    loaded = VisionLanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.progress.tokens == 8
    assert loaded.phases == module.phases
    fit(loaded, Batches(1), max_steps=1).save_checkpoint(tmp_path / "again.ckpt")
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["hyper_parameters"]
    assert [Phase(**phase) for phase in again["phases"]] == module.phases


# Callbacks of the house


def test_quantisation_merging_and_averages_compose(fit):
    group = QuantizerConfig(bits=4, group_size=8)
    qat = QuantizationAwareTraining(weight=group, activation=group, indivisible="skip")
    merging = CheckpointMerging(every_n_train_steps=2, num_checkpoints=2, storage="cpu")
    module = build(phases=[Phase(patch_weight=0.5)], optimizer=fast)
    fit(
        module,
        Batches(8),
        Batches(2, evaluating=True),
        callbacks=[qat, merging],
        max_epochs=1,
        val_check_interval=4,
    )
    assert sum(isinstance(m, FakeQuantLayer) for m in module.network.modules()) > 10
    assert merging.evaluations
    assert math.isfinite(merging.evaluations[-1]["metrics"]["val/loss"])
    assert module.generate(Batches(1).batch(0)["images"], [["What is the digit?"]] * 4)


def test_an_average_of_the_weights_is_evaluated(fit):
    module = build(optimizer=fast)
    ema = EMAWeightAveraging(decay=0.5)
    fit(module, Batches(6), Batches(2, evaluating=True), callbacks=[ema], max_epochs=1)
    assert math.isfinite(module.progress.curves["val"][-1][1])


# Reports


def test_accuracy_counts_whole_answers_by_group_and_kind():
    metric = AnswerAccuracy()
    one, two = torch.ones(2), torch.full((1,), 2.0)
    metric.update(torch.tensor([True, False]), one, one, ["large", "tiny"], ["what", "is"])
    metric.update(torch.tensor([True]), two, two, ["large"], ["is"])
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == {
        "loss": 1.0,
        "accuracy": pytest.approx(2 / 3),
        "accuracy_is": 0.5,
        "accuracy_what": 1.0,
        "accuracy/large": 1.0,
        "accuracy/large/is": 1.0,
        "accuracy/large/what": 1.0,
        "accuracy/tiny": 0.0,
        "accuracy/tiny/is": 0.0,
    }


def test_a_test_reports_records_accuracies_and_figures(fit, single, tmp_path):
    module = build(optimizer=fast)
    fit(module, Batches(2), max_epochs=1, log_every_n_steps=1)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    (values,) = trainer.test(module, DataLoader([single], batch_size=None), verbose=False)
    outputs = module.eval().test_step(single, 0)["records"]
    assert [record["row"] for record in outputs] == ["large/what", "large/where", "tiny/what"]
    rights = [record["accuracy"] for record in outputs]
    assert values["test/accuracy"] == pytest.approx(sum(rights) / 3)
    assert values["test/accuracy/tiny/what"] == rights[2]
    nats = [record["loss"] for record in outputs]
    assert nats[0] == pytest.approx(module.loss({k: single[k][:1] for k in single}, Phase()).item())
    figures = module.figures()
    assert figures.keys() == {"loss", "answers", "accuracy"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    titles = [axes.get_title() for axes in figures["answers"].axes]
    assert titles[0] == "What is the red digit?\nanswer: 7"


def test_predictions_are_texts(single):
    module = build(generation={"max_new_tokens": 2}).eval()
    records = module.predict_step(single, 0)
    texts = module.generate(single["images"], single["questions"])
    assert [record["answer"] for record in records] == texts
    assert records[1]["expected"] == "top left"
    assert records[1]["question"] == "What is in the image?"
