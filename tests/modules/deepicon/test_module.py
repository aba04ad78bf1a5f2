"""Training, testing, predicting: what is logged, kept, drawn and written."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from tenfold.datamodules.icons import GeneratedIconDataModule, GeneratedIcons
from tenfold.modules.deepicon import (
    ConvIconEncoder,
    DeepIconModule,
    FlatDecoder,
    HierarchicalDecoder,
    IconCodec,
)
from tenfold.modules.svg import parse_svg
from torch.optim import AdamW

CODEC = IconCodec(max_paths=3, max_commands=12)


def module(decoder=None, **settings) -> DeepIconModule:
    seed_everything(0, verbose=False)
    decoder = decoder or HierarchicalDecoder(1, 1, num_heads=2, dropout=0.0)
    settings.setdefault("optimizer", lambda params: AdamW(params, lr=2e-3))
    return DeepIconModule(ConvIconEncoder(32, (8, 16), 32), decoder, CODEC, 32, **settings)


def data(number=16, batch_size=8, **settings) -> GeneratedIconDataModule:
    settings = {"image_size": 32, "seed": 0, "codec": CODEC, **settings}
    numbers = {"num_train": number, "num_val": 6, "num_test": 6}
    return GeneratedIconDataModule(
        GeneratedIcons(max_shapes=3), **numbers, batch_size=batch_size, **settings
    )


def trainer(tmp_path, **settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "log_every_n_steps": 2}
    return Trainer(default_root_dir=tmp_path, **{**quiet, **settings})


@pytest.mark.parametrize("flat", [False, True])
def test_training_logs_losses_and_structure(tmp_path, flat):
    decoder = FlatDecoder(1, num_heads=2, dropout=0.0) if flat else None
    model, run = module(decoder), trainer(tmp_path, max_epochs=8)
    run.fit(model, data())
    values = {name: value.item() for name, value in run.callback_metrics.items()}
    assert values["train/loss"] < 0.9 * model.progress.curves["train"][0][1]
    for name in ("loss", "loss_type", "loss_arg", "type_accuracy", "arg_error", "matched_f1"):
        assert 0 <= values[f"val/{name}"] < 100, name
    assert ("val/visibility_accuracy" in values) == (not flat)
    parts = [("type", 1), ("arg", 10), ("paint", 1)] + ([] if flat else [("visibility", 1)])
    total = sum(weight * values[f"val/loss_{name}"] for name, weight in parts)
    assert values["val/loss"] == pytest.approx(total, rel=1e-5)
    assert set(model.figures()) == {"loss", "icons"}
    assert model.run_info()["icons_seen"] == 128


def test_a_test_has_a_record_for_each_icon_and_the_metrics_of_all(tmp_path):
    model, source = module(), data()
    run = trainer(tmp_path)
    model.configure_model()
    (values,) = run.test(model, source, verbose=False)
    alike = module()
    alike.configure_model()
    records = alike.test_step(next(iter(source.test_dataloader())), 0)["records"]
    assert [record["id"] for record in records] == [f"icons/test-{index}" for index in range(6)]
    mean = sum(record["mse"] for record in records) / 6
    assert values["test/mse"] == pytest.approx(mean, rel=1e-6)
    assert values["test/icons_per_second"] > 0
    assert values["test/empty"] == 0


def test_pictures_become_svgs_that_the_safe_reader_takes(tmp_path):
    model = module(snap=0.5)
    images = next(iter(data().test_dataloader()))["image"]
    for text in model.generate(images, view_box=100.0):
        document = parse_svg(text)
        assert document.view_box == (0, 0, 100, 100)
        names = [shape.name for shape in document.shapes()]
        assert names == [f"layer-{index}" for index in range(len(names))]
    records = model.predict_step({"image": images, "name": [f"a/{i}" for i in range(6)]}, 0)
    for record in records:
        model.save_prediction(record, tmp_path)
        assert (tmp_path / f"{record['id']}.svg").read_text() == record["svg"]
        assert 0 <= record["mse"] <= 1
        assert record["commands"] >= record["paths"] > 0


def test_the_model_and_the_data_must_mean_the_same_tensors(tmp_path):
    other = data(codec=IconCodec(max_paths=4, max_commands=12))
    with pytest.raises(ValueError, match="give model and data the same codec"):
        trainer(tmp_path, max_steps=1, num_sanity_val_steps=0).fit(module(), other)


def test_what_cannot_be_is_said_at_once():
    with pytest.raises(ValueError, match="unknown colour"):
        module(weights={"colour": 1.0})
    with pytest.raises(ValueError, match="visibility_threshold 2"):
        module(visibility_threshold=2)


def test_the_encoder_may_learn_more_slowly(tmp_path):
    model = module(encoder_lr=0.1)
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, data())
    (optimizer,) = run.optimizers
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        slow = name.startswith("network.encoder.")
        assert rates[id(parameter)] == pytest.approx(2e-4 if slow else 2e-3), name


def test_weights_do_not_depend_on_what_was_drawn_before():
    one, other = module(), module()
    one.configure_model()
    torch.rand(3)
    other.configure_model()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
