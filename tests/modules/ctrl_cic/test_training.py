"""Training, checkpoints, the house's callbacks, tests and predictions."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tenfold.callbacks.checkpoint_merging import CheckpointMerging
from tenfold.callbacks.quantization import QuantizationAwareTraining
from tenfold.modules.ctrl_cic import (
    CtrlCIC,
    LexicalRelevance,
    NoControl,
    PromptControl,
    Recalibration,
    RelevancePredictor,
)
from tenfold.modules.ctrl_cic.gallery import card
from tenfold.modules.ctrl_cic.predictor import entropy
from tenfold.modules.ctrl_cic.writing import caption_weights
from tenfold.modules.optimization import WarmupCosine
from tenfold.modules.quantization import FakeQuantLayer, QuantizerConfig
from tiny_captions import TEXTS, batch_of, build, build_predictor
from torch.optim import AdamW
from torch.utils.data import DataLoader

fast = partial(AdamW, lr=1e-2)


class Batches:
    """The same few batches each epoch; its state is the number consumed."""

    def __init__(self, number, size=3):
        self.batches = [batch_of(images=torch.randn(3, 6)) for _ in range(number)]
        self.consumed = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for index in range(self.consumed, len(self.batches)):
            self.consumed = (index + 1) % len(self.batches)
            yield self.batches[index]

    def state_dict(self):
        return {"consumed": self.consumed}

    def load_state_dict(self, state):
        self.consumed = state["consumed"]


def one(batch):
    """A loader of one batch as it is."""
    return DataLoader([batch], batch_size=None, collate_fn=lambda x: x)


# Targets


def test_the_prompt_is_part_of_the_target():
    module = build(controller=PromptControl())
    targets = module.targets(["a cell", "cells grow"], [["red", "wall"], []])
    text = module.contexts.tokenizer.convert_ids_to_tokens(targets.labels[0].tolist())
    assert text == ["<MSK>", "▁red", "<SEP>", "▁wall", "<CPT>", "▁a", "▁cell", "</s>"]
    assert targets.is_caption[0].tolist() == [False] * 5 + [True] * 3
    assert targets.labels[1].tolist()[5:] == [-100] * 3
    assert targets.decoder_ids[0].tolist() == [0, *targets.labels[0].tolist()[:-1]]
    one = module.contexts.tokenizer("<MSK> red <SEP> wall <CPT> a cell")["input_ids"]
    assert targets.labels[0].tolist() == one
    alone = build(controller=PromptControl(loss_on_prefix=False))
    labels = alone.targets(["a cell"], [["red"]]).labels[0]
    assert labels.tolist()[:3] == [-100] * 3
    short = build(controller=PromptControl(), max_target_length=6)
    cut = short.targets(["a cell"], [["red", "wall"]])
    assert cut.labels[0].tolist() == [*one[:5], short.contexts.eos]


def test_losses_are_means_over_tokens():
    module, batch = build(controller=PromptControl()), batch_of()
    losses, targets = module.token_losses(batch)
    source, images = module.encode(batch)
    logits = module(source, images, targets)
    by_hand = F.cross_entropy(logits.flatten(0, 1), targets.labels.flatten())
    torch.testing.assert_close(module.loss(batch), by_hand)
    loss, caption_loss = module._losses(batch, 0.0)
    inside = targets.is_caption
    torch.testing.assert_close(caption_loss, losses[inside].mean())
    assert loss != caption_loss


def test_padding_counts_if_asked_as_in_the_released_code():
    module, batch = build(loss_on_padding=True, max_target_length=9), batch_of()
    source, images = module.encode(batch)
    labels = torch.zeros(3, 9, dtype=torch.long)
    for row, caption in enumerate(batch["captions"]):
        ids = module.contexts.tokenizer(caption)["input_ids"]
        labels[row, : len(ids)] = torch.tensor(ids)
    embedded = module.network.embed(source.ids, images)
    output = module.network.language(
        inputs_embeds=embedded, attention_mask=source.mask, labels=labels
    )
    torch.testing.assert_close(module.loss(batch), output.loss)


def test_relevance_that_was_computed_before_is_taken():
    module, batch = build(controller=Recalibration()), batch_of()
    source, _ = module.encode(batch)
    given = [torch.full((len(s.tokens),), 0.7) for s in source.sections]
    assert module.loss(batch) != module.loss(batch | {"relevance": given})
    lexical = module.relevance_of(batch, source)
    torch.testing.assert_close(module.loss(batch), module.loss(batch | {"relevance": lexical}))


def test_words_are_left_out_at_random():
    controller = PromptControl(prefix_dropout=0.5)
    module = build(controller=controller)
    source, _ = module.encode(batch_of())
    relevance = [torch.ones(len(s.tokens)) for s in source.sections]
    sizes = {len(controller.training_words(source, relevance)[0]) for _ in range(20)}
    assert len(sizes) > 2
    with pytest.raises(ValueError, match="prefix_dropout"):
        PromptControl(prefix_dropout=1)
    with pytest.raises(ValueError, match="mode"):
        Recalibration(mode="more")


def test_a_users_phrases_may_be_split():
    module = build(controller=PromptControl(split_phrases=True))
    source, _ = module.encode(batch_of())
    words = module.controller.prompt_words(source, [["cells divide", "red"], [], [[0, 5]]])
    assert words == [["red", "cells", "divide"], [], ["cells"]]


# Runs


@pytest.mark.parametrize(
    "make",
    [
        partial(build, controller=PromptControl(prefix_dropout=0.3)),
        partial(build, controller=Recalibration(weight_jitter=0.1)),
        build_predictor,
    ],
)
def test_resume_is_exact(fit, tmp_path, make):
    settings = {"max_steps": 8, "log_every_n_steps": 3, "val_check_interval": 5}
    make = partial(make, optimizer=fast, lr_scheduler=partial(WarmupCosine, warmup=2))
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    torch.manual_seed(0)
    data = Batches(5)

    class State(ModelCheckpoint):  # the generator's state, as the house's callback keeps it
        def on_train_batch_start(self, trainer, module, batch, index):
            torch.manual_seed(trainer.global_step)

    whole = make().train()
    more = {"callbacks": [keep, State()], "enable_checkpointing": True}
    fit(whole, data, one(data.batches[0]), **more, **settings)
    for step in (3, 6):
        resumed = make().train()
        data.consumed = 0
        path = tmp_path / f"step={step}.ckpt"
        fit(resumed, data, one(data.batches[0]), ckpt_path=path, callbacks=[State()],
            enable_checkpointing=True, **settings)  # fmt: skip
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        assert resumed.progress.state_dict() == whole.progress.state_dict()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"controller": PromptControl(0.7, pool="max")},
        {"controller": Recalibration(0.2, "fixed", [0.1]), "relevance": LexicalRelevance("minmax")},
        {"lora": {"r": 2}},
    ],
)
def test_checkpoints_load_without_unpickling(fit, tmp_path, arguments):
    module = build(optimizer=fast, **arguments)
    fit(module, Batches(2), max_steps=2).save_checkpoint(tmp_path / "last.ckpt")
    loaded = CtrlCIC.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert vars(loaded.controller) == vars(module.controller)
    assert vars(loaded.relevance) == vars(module.relevance)
    assert loaded.progress.tokens == 6


def test_quantisation_and_merging_compose(fit):
    group = QuantizerConfig(bits=4, group_size=8)
    qat = QuantizationAwareTraining(weight=group, activation=group, indivisible="skip")
    merging = CheckpointMerging(every_n_train_steps=2, num_checkpoints=2, storage="cpu")
    module = build(optimizer=fast, controller=PromptControl())
    data = Batches(8)
    fit(
        module,
        data,
        one(data.batches[0]),
        callbacks=[qat, merging],
        max_epochs=1,
        val_check_interval=4,
    )
    assert sum(isinstance(m, FakeQuantLayer) for m in module.network.modules()) > 10
    assert math.isfinite(merging.evaluations[-1]["metrics"]["val/loss"])
    assert len(module.generate(data.batches[0])) == 3


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_the_predictor_learns_its_targets(fit, loss):
    """Captions that never change can be known by heart."""
    module = build_predictor(loss=loss, optimizer=partial(AdamW, lr=3e-2)).train()
    data = Batches(2)
    fit(module, data, one(data.batches[0]), max_epochs=40)
    batch = data.batches[0]
    source, images = module.contexts.encode(batch), batch["images"]
    captions = [module.contexts.tokens(caption) for caption in batch["captions"]]
    targets = module.relevance.relevance([s.tokens for s in source.sections], captions)
    found = torch.cat(module.eval().predicted(source, images))
    assert (found - torch.cat(targets)).square().mean() < 0.5 * torch.cat(targets).var()


def test_the_floor_of_soft_targets_is_their_entropy(fit, tmp_path):
    assert entropy(torch.tensor(0.5)).item() == pytest.approx(math.log(2))
    assert entropy(torch.tensor([0.0, 1.0])).tolist() == [0, 0]
    module = build_predictor()
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    (values,) = trainer.test(module, Batches(2), verbose=False)
    assert values["test/excess"] > 0
    assert values["test/excess_constant"] > 0
    records = module.predict_step(batch_of(), 0)
    assert [len(r["relevance"]) for r in records] == [len(r["tokens"]) for r in records]
    assert len(records[0]["tokens"]) == len(TEXTS[0].split())


# Tests and predictions


def numbers_of_test(module, batch):
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    (values,) = trainer.test(module, one(batch), verbose=False)
    return values


@pytest.mark.parametrize(
    "controller", [NoControl(), PromptControl(), Recalibration(0.5, "fixed", [0.1, 1])]
)
def test_a_test_reports_numbers_and_records(controller, tmp_path):
    module = build(controller=controller)
    batch = batch_of(pictures=[Image.new("L", (8, 8)), None, None])
    records = module.test_step(batch, 0)["records"]
    module.captions_tested.compute()
    values = numbers_of_test(module, batch)
    names = {name.removeprefix("test/") for name in values}
    ways = {"NoControl": [""], "PromptControl": ["", "plain/"]}
    expected = ways.get(type(controller).__name__, ["", "plain/", "delta_0.1/", "delta_1/"])
    for prefix in expected:
        assert {f"{prefix}{n}" for n in ("recall", "any", "num_words", "depicted")} <= names
    assert ("lift_highlighted" in names) == (not isinstance(controller, NoControl))
    assert len(records) == 3 * len(expected)
    main = [r for r in records if r["row"] == records[0]["row"]]
    assert values["test/recall"] == pytest.approx(sum(r["recall"] for r in main) / 3)
    assert [r["id"] for r in main] == ["0/0", "0/1", "2/0"]
    for name, figure in module.figures().items():
        figure.savefig(tmp_path / f"{name}.png")
    assert "captions" in module.figures()
    assert ("sweep" in module.figures()) == isinstance(controller, Recalibration)


def test_plain_captions_are_compared_with_the_images_own():
    module = build(controller=PromptControl())
    values = numbers_of_test(module, batch_of())
    assert values["test/plain/num_references"] == 3
    assert values["test/num_references"] == 2


def test_the_lift_is_the_difference_of_two_losses():
    """By hand, for the first image of two: its own highlight against the other's."""
    module = build(controller=PromptControl())
    batch = {name: value[::2] for name, value in batch_of().items()}
    values = numbers_of_test(module, batch)
    source, _ = module.encode(batch)
    words = module.controller.training_words(source, module.relevance_of(batch, source))
    assert words[0] == ["red", "wall"]
    gains, others = [], []
    for row, caption in enumerate(batch["captions"]):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        losses = []
        for chosen in (words[row], words[1 - row]):
            own, picture = module.encode(alone)
            targets = module.targets([caption], [chosen])
            logits = module(own, picture, targets)
            losses.append(F.cross_entropy(logits[0], targets.labels[0], reduction="none")[
                targets.is_caption[0]])  # fmt: skip
        marked = [
            w in ("red", "wall") if row == 0 else w in ("cells", "grow") for w in caption.split()
        ]
        for gain, is_marked in zip((losses[1] - losses[0]).tolist(), [*marked, False], strict=True):
            (gains if is_marked else others).append(gain)
    assert values["test/lift_highlighted"] == pytest.approx(sum(gains) / len(gains), rel=1e-4)
    assert values["test/lift_other"] == pytest.approx(sum(others) / len(others), rel=1e-4)


def test_the_lift_counts_what_is_left_of_captions_after_either_prompt():
    """A prompt so long that it cuts the caption behind it: the shorter one's caption is whole."""
    module = build(controller=PromptControl(), max_target_length=9)
    batch = {name: value[::2] for name, value in batch_of().items()}
    batch["captions"] = ["red wall", "cells grow red wall cells grow"]
    module.controller.training_words = lambda *_: [["red"], ["red", "wall", "cells"]]
    seen = []
    module.captions_tested.lift_highlighted.update = seen.append
    module.captions_tested.lift_other.update = seen.append
    numbers_of_test(module, batch)
    # After a prompt of one word there is room for five words and the end, after three for one.
    assert sum(len(values) for values in seen[:2]) == 2


def test_oracle_captions_use_the_reference_of_each_highlight():
    module, batch = build(controller=Recalibration(mode="oracle")), batch_of()
    source, images = module.encode(batch)
    weights = caption_weights(
        module, batch, source, images, [0, 0], [[], []], None, ["red", "cells"]
    )
    start = source.sections[0].start
    assert weights[0, start : start + 10].tolist() == [0.5, 1, *[0.5] * 8]
    assert weights[1, start + 2] == 1
    assert "plain/recall" not in numbers_of_test(module, batch)


def test_predictions_are_captions_side_by_side():
    module = build(controller=PromptControl())
    batch = batch_of(pictures=[Image.new("L", (8, 8)), None, None])
    records = module.predict_step(batch, 0)
    assert [len(r["highlighted"]) for r in records] == [2, 0, 1]
    assert records[0]["highlighted"][1]["phrases"] == ["cells divide"]
    assert [r["caption"] for r in records] == module.generate(batch)
    html = card(records[0] | {"page_title": "<script>", "section_text": "a < b"})
    assert "<script>" not in html
    assert "data:image/jpeg;base64," in html
    assert "a &lt; b" in html


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="exactly one of"):
        CtrlCIC()
    with pytest.raises(ValueError, match=r"give model\.init_args.vocabulary"):
        build(vocabulary=None)
    with pytest.raises(ValueError, match="it has no words"):
        build(vocabulary=" ")
    with pytest.raises(ValueError, match="unknown 'gpt2'"):
        build(config={"model_type": "gpt2"})
    with pytest.raises(ValueError, match="unknown 'd_modell'"):
        RelevancePredictor(config={"d_modell": 3}, vocabulary="a")
    with pytest.raises(ValueError, match="generation: unknown 'num_beam'"):
        build(generation={"num_beam": 2})
    with pytest.raises(ValueError, match=r"cannot load .*nothing"):
        build(pretrained=str(tmp_path / "nothing"))
