"""Towers of several libraries learn; memory, checkpoints, settings, tokenizers."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from tenfold.callbacks.checkpoint_merging import CheckpointMerging
from tenfold.datamodules.multi_text import MultiTextDataModule
from tenfold.modules.realsyn import ClipPretraining
from tenfold.modules.realsyn.tokenizers import HashedWords, build_tokenizer
from tiny_pairs import COLOURS, IMAGE_TOWER, SMALL, TEXT_TOWER, records, write_parquet
from torch.optim import AdamW

fast = partial(AdamW, lr=3e-3)
IMAGE_TOWERS = {
    "clip": IMAGE_TOWER,
    "siglip": IMAGE_TOWER | {"model_type": "siglip_vision_model"},
    "conv": {"model_type": "conv_vision", "hidden_size": 32, "image_size": 16, "patch_size": 8},
    "convnext": {
        "model_type": "convnext",
        "image_size": 16,
        "num_stages": 2,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "patch_size": 2,
    },
    "timm": {
        "timm": "vit_tiny_patch16_224",
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
    },
}
TEXT_TOWERS = {
    "clip": TEXT_TOWER,
    "siglip": TEXT_TOWER | {"model_type": "siglip_text_model", "projection_size": 24},
    "bert": TEXT_TOWER | {"model_type": "bert"},
}
PAIRS = [("clip", "clip"), ("siglip", "siglip"), ("conv", "clip"), ("convnext", "clip")]
PAIRS += [("timm", "clip")]


def build(image="clip", text="clip", **changes):
    torch.manual_seed(0)
    towers = {"image_tower": IMAGE_TOWERS[image], "text_tower": TEXT_TOWERS[text]}
    return ClipPretraining(**{**SMALL, **towers, "optimizer": fast, **changes})


@pytest.fixture
def data(tmp_path):
    write_parquet(tmp_path / "pairs" / "a.parquet", records(64))
    write_parquet(tmp_path / "held_out" / "a.parquet", records(8, first=64))
    return MultiTextDataModule(
        str(tmp_path), val="held_out", image_size=16, batch_size=8, cache_dir=str(tmp_path / "c")
    )


def batch(number=8):
    rows = records(number)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"images": images, "texts": [row["texts"][0] for row in rows]}


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_every_library_learns_which_text_an_image_has(image, text, data, fit):
    module = build(image, text, loss="siglip" if image == "siglip" else "clip")
    trainer = fit(module, data, max_epochs=12, num_sanity_val_steps=0)
    assert module.progress.tokens == 12 * 64
    (found,) = trainer.test(module, data, verbose=False)
    names = list(COLOURS)
    images = torch.tensor([COLOURS[name] for name in names], dtype=torch.uint8)
    images = images[:, :, None, None].expand(-1, -1, 16, 16)
    with torch.no_grad():
        both = module.encode_image(images), module.encode_text([f"a {n} square" for n in names])
    right = ((both[0] @ both[1].T).argmax(dim=1) == torch.arange(len(names))).sum()
    assert right >= 6
    assert found["test/image_to_text_r1"] >= 0.75
    assert module.progress.curves["val"][-1][1] < module.progress.curves["val"][0][1]


def test_a_tower_that_looks_at_all_tokens_does_not_see_the_padding():
    embedded = []
    for length in (8, 16):
        module = build(text="bert", text_length=length)
        module.configure_model()
        if length == 16:  # more positions than the other, the first ones the same
            own = module.text_tower.state_dict()
            name = "network.embeddings.position_embeddings.weight"
            own |= {k: v for k, v in embedded[0][1].items() if k != name}
            own[name][:8] = embedded[0][1][name]
            module.text_tower.load_state_dict(own)
        with torch.no_grad():
            found = module.eval().encode_text(["a red square"])
        embedded.append((found, module.text_tower.state_dict()))
    torch.testing.assert_close(embedded[0][0], embedded[1][0])


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_chunks_give_the_same_gradients_in_less_memory(loss):
    kept, gradients = {}, {}
    for size in (None, 2):
        module = build(chunk_size=size, loss=loss)
        torch.manual_seed(0)
        module.seed = 0
        module.configure_model()
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = module.loss(batch(16))
        kept[size] = bytes_kept
        value.backward()
        gradients[size] = {n: p.grad for n, p in module.named_parameters()}
    for name, gradient in gradients[None].items():
        torch.testing.assert_close(gradients[2][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert kept[2] < kept[None] / 5


def test_chunks_and_batch_norm_are_refused():
    with pytest.raises(ValueError, match=r"chunk_size: .* is a BatchNorm"):
        build("conv", chunk_size=2).configure_model()


@pytest.mark.parametrize(
    ("vision", "text", "dim", "millions"),
    [
        # open_clip's ViT-B-32 and ViT-L-14 (its docs/model_profile.csv).
        ((768, 12, 32), (512, 8), 512, 151.28),
        ((1024, 24, 14), (768, 12), 768, 427.62),
    ],
)
def test_the_sizes_of_clip_are_the_sizes_of_clip(vision, text, dim, millions):
    width, depth, patch = vision
    module = ClipPretraining(
        {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": width // 64,
            "patch_size": patch,
        },
        {
            "model_type": "clip_text_model",
            "hidden_size": text[0],
            "intermediate_size": 4 * text[0],
            "num_attention_heads": text[1],
        },
        embed_dim=dim,
    )
    with torch.device("meta"):
        module.configure_model()
    total = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    assert total == pytest.approx(millions, abs=0.005)


def test_a_checkpoint_is_all_it_takes(data, fit, tmp_path):
    module = build(freeze=["image_tower.network.*embeddings"])
    trainer = fit(module, data, max_steps=2, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ClipPretraining.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    images = batch()["images"]
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(images), module.encode_image(images))
        assert torch.equal(loaded.encode_text(["a red"]), module.encode_text(["a red"]))
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("embeddings" in name for name in frozen)
    assert loaded.progress.tokens == 16
    assert loaded.run_info()["num_trained_parameters"] < loaded.run_info()["num_parameters"]


def test_the_scale_is_in_its_range_when_a_checkpoint_is_written(data, fit):
    module = build(optimizer=partial(AdamW, lr=10.0))
    fit(module, data, max_steps=3, limit_val_batches=0)
    assert 0 <= module.criterion.logit_scale.item() <= math.log(100) + 1e-6


def test_merged_weights_and_predictions(data, fit):
    module = build()
    merging = CheckpointMerging(every_n_train_steps=2, num_checkpoints=2, scheme="sma")
    fit(module, data, max_epochs=1, callbacks=[merging])
    assert merging.evaluations
    assert merging.evaluations[-1]["metrics"]["val/loss"] > 0
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (records_,) = trainer.predict(module, data)
    assert len(records_) == 8
    assert all(len(r["texts"]) == len(r["similarity"]) == 4 for r in records_)
    assert module.figures().keys() == {"loss", "similarity"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tower": {"hidden_size": 3}}, "image_tower: give model_type, timm"),
        ({"image_tower": {"model_type": "clop"}}, "no model_type 'clop'"),
        ({"image_tower": IMAGE_TOWER | {"depht": 3}}, "image_tower: unknown 'depht'"),
        ({"image_tower": {"timm": "vit_tinny"}}, "image_tower.timm: unknown 'vit_tinny'"),
        ({"text_tower": TEXT_TOWER | {"vocab_size": 9}}, "text_tower: it has vocab_size 9"),
        ({"text_tower": {"pretrained": "x", "hidden_size": 3}}, "pretrained has its own hidden"),
        (
            {
                "embed_dim": None,
                "image_tower": IMAGE_TOWERS["convnext"] | {"hidden_sizes": [8, 16]},
            },
            "towers of one width, these have 16 and 32",
        ),
        ({"freeze": ["("]}, "freeze: .* is malformed"),
        ({"chunk_size": 0}, "chunk_size must be 1 or more"),
        ({"tokenizer": "clip"}, "vocab_size: the tokenizer 'clip' has its own"),
        ({"tokenizer": "/nowhere", "vocab_size": None}, "tokenizer: cannot load '/nowhere'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ClipPretraining(**{**SMALL, **changes}).configure_model()


# Tokenizers


def test_clips_tokenizer_is_open_clips():
    from open_clip.tokenizer import SimpleTokenizer

    ours, theirs = build_tokenizer("clip"), SimpleTokenizer()
    texts = ["", "A  photo of a Dog.", "naïve café 2,000 km/h", "it's o'clock!!", "日本 ☃ 🎉"]
    texts += ["a very long text about nothing " * 20]
    for text in texts:
        ids, mask = ours.encode([text], 77)
        expected = theirs([text])[0]
        is_text = mask[0].bool()
        assert ids[0][is_text].tolist() == expected[: int(is_text.sum())].tolist(), text
        assert ids[0].argmax() == expected.argmax()
    assert (ours.vocab_size, ours.eos_token_id) == (49408, 49407)


def test_hashed_words_begin_and_end_and_are_cut():
    tokenizer = HashedWords(64)
    ids, mask = tokenizer.encode(["A dog, a cat", "", "a b c d e f g h i j k l"], 8)
    assert ids.shape == mask.shape == (3, 8)
    assert mask.sum(dim=1).tolist() == [7, 2, 8]
    assert ids[0, 1] == ids[0, 4]  # "a", whatever its case
    assert ids[1].tolist() == [62, 63, 0, 0, 0, 0, 0, 0]
    assert (ids[2, 0], ids[2, -1]) == (62, 63)
    assert ((ids[:, 1:] == 63).sum(dim=1) == 1).all()
