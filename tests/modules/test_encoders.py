import json
import multiprocessing
import pickle
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tenfold.modules.encoders import (
    Blip2Encoder,
    Encoder,
    OpenClipEncoder,
    PairedEncoder,
    SentenceEncoder,
    TimmEncoder,
    TransformersEncoder,
    build_encoder,
)
from timm.data import create_transform, resolve_model_data_config
from tiny_encoders import (
    TEXTS,
    pictures,
    save_bert,
    save_blip2,
    save_clip,
    save_dinov2,
    save_open_clip,
    save_siglip,
    save_siglip2,
    save_timm,
)
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    CLIPModel,
    Dinov2Model,
    Siglip2Model,
    SiglipModel,
)

MAKERS = {
    "clip": (save_clip, TransformersEncoder),
    "siglip": (save_siglip, TransformersEncoder),
    "blip2": (save_blip2, Blip2Encoder),
    "timm": (save_timm, TimmEncoder),
    "open_clip": (save_open_clip, OpenClipEncoder),
    "bert": (save_bert, SentenceEncoder),
}
# More than the batches of 16 that the tests take.
PICTURES = [image.convert("RGB") for image in pictures(21)]
MANY_TEXTS = [f"{text} {number}" for number in range(3) for text in TEXTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save(root / name) for name, (save, _) in MAKERS.items()}
    others = {"dinov2": save_dinov2, "siglip2": save_siglip2}
    return made | {name: save(root / name) for name, save in others.items()}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(kind, folders) -> Encoder:
    return build_encoder(description(kind, folders))


def description(kind: str, folders: dict[str, str], **settings) -> dict:
    settings = {"model": folders[kind], "batch_size": 16} | settings
    return {"class_path": MAKERS[kind][1].__name__, "init_args": settings}


def inputs_of(encoder: Encoder) -> list:
    """(Method, items) of what an encoder can."""
    methods = [(encoder.encode_images, PICTURES)] if encoder.supports_images else []
    methods += [(encoder.encode_texts, MANY_TEXTS)] if encoder.supports_texts else []
    if isinstance(encoder, Blip2Encoder):
        methods.append((encoder.encode_pairs, list(zip(PICTURES, MANY_TEXTS, strict=True))))
    return methods


def tokens(folder: str, padding: str | bool, length: int = 24) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(
        TEXTS,
        padding=padding,
        truncation=True,
        max_length=length,
        return_token_type_ids=False,
        return_tensors="pt",
    )


def pixels(folder: str, **changes) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, **changes)
    return processor([i.convert("RGB") for i in pictures(7)], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def test_images_that_keep_their_shape_are_padded_and_masked(folders):
    network = Siglip2Model.from_pretrained(folders["siglip2"]).eval()
    processor = AutoImageProcessor.from_pretrained(folders["siglip2"])
    images = [image.convert("RGB") for image in pictures(7)]
    inputs = processor(images, return_tensors="pt")
    assert not inputs["pixel_attention_mask"].all()
    encoder = TransformersEncoder(folders["siglip2"], normalize=False)
    assert_close(encoder.encode_images(images), network.get_image_features(**inputs).pooler_output)
    tokens_BPD = network.vision_model(**inputs).last_hidden_state
    kept = inputs["pixel_attention_mask"][3].bool()
    encoder = TransformersEncoder(folders["siglip2"], pooling="mean", normalize=False)
    assert_close(encoder.encode_images(images)[3], tokens_BPD[3, kept].mean(0))


@pytest.mark.parametrize(("kind", "model"), [("clip", CLIPModel), ("siglip", SiglipModel)])
@torch.no_grad()
def test_two_towers_are_those_of_transformers(kind, model, folders):
    padding = True if kind == "clip" else "max_length"
    network = model.from_pretrained(folders[kind]).eval()
    texts = tokens(folders[kind], padding)
    expected = network(pixel_values=pixels(folders[kind]), **texts)
    encoder = TransformersEncoder(folders[kind])
    assert_close(encoder.encode_images(pictures(7)), expected.image_embeds)
    assert_close(encoder.encode_texts(TEXTS), expected.text_embeds)
    raw = TransformersEncoder(folders[kind], normalize=False)
    features = network.get_image_features(pixels(folders[kind])).pooler_output
    assert_close(raw.encode_images(pictures(7)), features)
    assert (features.norm(dim=1) > 1.5).all()
    images, words = network.vision_model(pixels(folders[kind])), network.text_model(**texts)
    for pooling, image, text in [
        ("pooler", images.pooler_output, words.pooler_output),
        ("cls", images.last_hidden_state[:, 0], words.last_hidden_state[:, 0]),
        ("mean", images.last_hidden_state.mean(1), None),
    ]:
        pooled = TransformersEncoder(folders[kind], pooling=pooling, normalize=False)
        assert_close(pooled.encode_images(pictures(7)), image)
        if text is not None:
            assert_close(pooled.encode_texts(TEXTS), text)
    lone = network.text_model(**{name: tensor[4:5] for name, tensor in texts.items()})
    kept = texts.get("attention_mask", torch.ones_like(texts["input_ids"]))[4].bool()
    mean = lone.last_hidden_state[0, kept].mean(0)
    assert_close(pooled.encode_texts(TEXTS)[4], mean)


@torch.no_grad()
def test_an_image_tower_alone_has_the_poolings_of_its_tokens(folders):
    output = Dinov2Model.from_pretrained(folders["dinov2"]).eval()(pixels(folders["dinov2"]))
    expected = {
        "mean": output.last_hidden_state.mean(1),
        "cls": output.last_hidden_state[:, 0],
        "pooler": output.pooler_output,
    }
    for pooling, rows in expected.items():
        encoder = TransformersEncoder(folders["dinov2"], pooling=pooling)
        assert_close(encoder.encode_images(pictures(7)), normalize(rows, dim=1))
        assert not encoder.supports_texts
    with pytest.raises(ValueError, match=r"pooling: .*take pooler, cls or mean"):
        TransformersEncoder(folders["dinov2"]).encode_images(PICTURES)
    with pytest.raises(ValueError, match="has no text tower"):
        encoder.encode_texts(TEXTS)


@torch.no_grad()
def test_blip2_has_the_vectors_of_its_retrieval_heads(folders):
    network = Blip2ForImageTextRetrieval.from_pretrained(folders["blip2"]).eval()
    inputs = {"pixel_values": pixels(folders["blip2"]), **tokens(folders["blip2"], True)}
    contrast = network(**inputs)
    match = network(**inputs, use_image_text_matching_head=True)
    pairs = list(zip(pictures(7), TEXTS, strict=True))
    for pooling, pool in [("mean", lambda x: x.mean(1)), ("first", lambda x: x[:, 0])]:
        encoder = Blip2Encoder(folders["blip2"], pooling=pooling, normalize=False)
        assert_close(encoder.encode_images(pictures(7)), pool(contrast.image_embeds))
        text_embeddings = normalize(encoder.encode_texts(TEXTS), dim=1)
        assert_close(text_embeddings, contrast.text_embeds)
        assert_close(encoder.encode_pairs(pairs), pool(match.text_embeds[:, :4]))


@torch.no_grad()
def test_timm_gives_what_timm_gives(folders):
    network = timm.create_model(f"local-dir:{folders['timm']}", pretrained=True, num_classes=0)
    transform = create_transform(**resolve_model_data_config(network.eval()))
    batch = torch.stack([transform(image.convert("RGB")) for image in pictures(7)])
    assert_close(
        TimmEncoder(folders["timm"], normalize=False).encode_images(pictures(7)), network(batch)
    )
    network.reset_classifier(0, "avg")
    average = TimmEncoder(folders["timm"], pooling="avg").encode_images(pictures(7))
    assert_close(average, normalize(network(batch), dim=1))
    sizes = {"img_size": 48, "patch_size": 16, "depth": 1, "num_classes": 5}
    small = TimmEncoder("vit_tiny_patch16_224", seed=3, model_args=sizes, batch_size=1)
    assert small.encode_images(PICTURES[:3]).shape == (3, 5)
    with pytest.raises(ValueError, match=r"num_classes 5, but .* was trained with 1000"):
        TimmEncoder(folders["timm"], model_args={"num_classes": 5}).encode_images(PICTURES)
    with pytest.raises(ValueError, match=r"pooling: '' gives \(17, 48\) per image"):
        TimmEncoder(folders["timm"], pooling="").encode_images(PICTURES)


@torch.no_grad()
def test_open_clip_gives_what_open_clip_gives(folders):
    name = f"local-dir:{folders['open_clip']}"
    network, transform = open_clip.create_model_from_pretrained(name)
    network.eval()
    batch = torch.stack([transform(image.convert("RGB")) for image in pictures(7)])
    encoder = OpenClipEncoder(folders["open_clip"])
    assert_close(encoder.encode_images(pictures(7)), network.encode_image(batch, normalize=True))
    ids = open_clip.get_tokenizer(name)(TEXTS)
    assert_close(encoder.encode_texts(TEXTS), network.encode_text(ids, normalize=True))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_sentence_encoders_are_those_of_sentence_transformers(pooling, folders, tmp_path):
    words = Transformer(folders["bert"], max_seq_length=20)
    library = SentenceTransformer(modules=[words, Pooling(32, pooling), Normalize()], device="cpu")
    library.save(str(tmp_path / "saved"))
    expected = library.encode(TEXTS, convert_to_tensor=True)
    encoder = SentenceEncoder(str(tmp_path / "saved"))
    assert_close(encoder.encode_texts(TEXTS), expected)
    prompted = SentenceEncoder(str(tmp_path / "saved"), prompt="query: ", normalize=False)
    asked = [f"query: {text}" for text in TEXTS]
    assert_close(
        normalize(prompted.encode_texts(TEXTS), dim=1),
        library.encode(asked, convert_to_tensor=True),
    )


def test_sentence_encoders_in_the_older_format_and_with_more_layers(folders, tmp_path):
    words = Transformer(folders["bert"], max_seq_length=20)
    SentenceTransformer(modules=[words, Pooling(32, "mean")]).save(str(tmp_path / "new"))
    expected = SentenceEncoder(str(tmp_path / "new"), pooling="cls").encode_texts(TEXTS)
    for path in (tmp_path / "new").glob("*_Pooling/config.json"):
        flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        path.write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    assert torch.equal(SentenceEncoder(str(tmp_path / "new")).encode_texts(TEXTS), expected)
    path.write_text(json.dumps({"pooling_mode": ["cls", "mean"]}))
    with pytest.raises(ValueError, match=r"\(cls, mean\): give pooling, one of mean, cls"):
        SentenceEncoder(str(tmp_path / "new")).encode_texts(TEXTS)
    layers = [words, Pooling(32, "mean"), Dense(32, 8)]
    SentenceTransformer(modules=layers).save(str(tmp_path / "dense"))
    with pytest.raises(ValueError, match="has a Dense layer"):
        SentenceEncoder(str(tmp_path / "dense")).encode_texts(TEXTS)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_division_into_calls_never_changes_a_bit(encoder, kind, folders, data):
    if data.draw(st.booleans()):
        size = data.draw(st.sampled_from([1, 32, 48]))
        encoder = build_encoder(description(kind, folders, batch_size=size))
    for encode, items in inputs_of(encoder):
        order = data.draw(st.permutations(range(len(items))))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(items) - 1), max_size=4)))
        whole = encode(items)
        parts = [
            encode([items[place] for place in order[begin:end]])
            for begin, end in zip([0, *cuts], [*cuts, len(items)], strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole[order])


def test_nothing_in_gives_no_rows_of_the_same_width(encoder):
    for encode, items in inputs_of(encoder):
        assert encode([]).shape == (0, encode(items[:1]).shape[1])


def test_a_batch_size_that_shows_in_the_rows_is_refused(folders):
    class Uneven(TransformersEncoder):
        """What a matrix product does whose last rows fill no tile."""

        def _embed_texts(self, inputs):
            rows = super()._embed_texts(inputs).clone()
            rows[-1] *= 1 + 2e-7
            return rows

    with pytest.raises(
        ValueError, match=r"batch_size: with 16 rows .*take 1, another multiple of 16"
    ):
        Uneven(folders["clip"], batch_size=16).encode_texts(TEXTS)
    one = Uneven(folders["clip"], batch_size=1).encode_texts(TEXTS)
    assert_close(one, TransformersEncoder(folders["clip"]).encode_texts(TEXTS))


def _encode_elsewhere(descriptions: list[dict], threads: int, out: str) -> None:
    torch.set_num_threads(threads)
    found = []
    for given_ in descriptions:
        encoder = build_encoder(given_)
        rows = [encode(items) for encode, items in inputs_of(encoder)]
        found.append((json.dumps(encoder.identity), rows))
    torch.save(found, out)


def test_a_spawned_process_makes_the_same_bytes_from_the_description(folders, tmp_path):
    descriptions = [description(kind, folders, output_dtype="float16") for kind in MAKERS]
    json.dumps(descriptions)
    arguments = (descriptions, torch.get_num_threads(), str(tmp_path / "rows.pt"))
    worker = multiprocessing.get_context("spawn").Process(target=_encode_elsewhere, args=arguments)
    worker.start()
    worker.join()
    for given_, (identity, rows) in zip(
        descriptions, torch.load(tmp_path / "rows.pt"), strict=True
    ):
        encoder = build_encoder(given_)
        assert json.loads(identity) == encoder.identity
        for (encode, items), there in zip(inputs_of(encoder), rows, strict=True):
            here = encode(items)
            assert here.dtype == torch.float16
            assert here.numpy().tobytes() == there.numpy().tobytes()


def test_copies_hold_the_arguments_only(encoder):
    expected = [encode(items) for encode, items in inputs_of(encoder)]
    written = pickle.dumps(encoder)
    assert len(written) < 2000
    again = pickle.loads(written)
    for (encode, items), rows in zip(inputs_of(again), expected, strict=True):
        assert torch.equal(encode(items), rows)


def test_a_module_that_holds_an_encoder_does_not_save_it(folders):
    class Holder(LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = TransformersEncoder(folders["clip"])

    holder = Holder()
    holder.encoder.encode_texts(TEXTS)
    assert not holder.state_dict()
    assert not list(holder.parameters())


CHANGES = [
    ("clip", {"pooling": "pooler"}),
    ("clip", {"normalize": False}),
    ("clip", {"dtype": "bfloat16"}),
    ("clip", {"output_dtype": "float16"}),
    ("clip", {"max_length": 5}),
    ("clip", {"preprocessing": {"image_mean": [0.1, 0.2, 0.3]}}),
    ("clip", {"seed": 1}),
    ("siglip", {"preprocessing": {"resample": 0}}),
    ("blip2", {"pooling": "first"}),
    ("timm", {"pooling": "avg"}),
    ("timm", {"preprocessing": {"crop_pct": 0.5}}),
    ("timm", {"model_args": {"num_classes": 1000}}),
    ("open_clip", {"preprocessing": {"resize_mode": "longest"}}),
    ("bert", {"pooling": "max"}),
    ("bert", {"prompt": "query: "}),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_what_changes_embeddings_changes_the_identity(kind, change, folders):
    before = build_encoder(description(kind, folders))
    after = build_encoder(description(kind, folders, **change))
    assert before.identity != after.identity
    same = []
    for (encode, items), (other, _) in zip(inputs_of(before), inputs_of(after), strict=True):
        rows, others = encode(items), other(items)
        same.append(rows.dtype == others.dtype and torch.equal(rows, others))
    assert not all(same)


def test_identity_is_of_content_not_of_place(kind, folders, tmp_path):
    encoder = build_encoder(description(kind, folders))
    identity = json.dumps(encoder.identity)
    assert str(Path(folders[kind]).parent) not in identity
    shutil.copytree(folders[kind], tmp_path / "elsewhere")
    moved = build_encoder(description(kind, {kind: str(tmp_path / "elsewhere")}, device="cuda:7"))
    assert json.dumps(moved.identity) == identity
    (weights,) = (tmp_path / "elsewhere").glob("*.safetensors")
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    changed = build_encoder(description(kind, {kind: str(tmp_path / "elsewhere")}))
    assert json.dumps(changed.identity) != identity


def test_a_seed_needs_no_weights_and_leaves_the_generator_alone(kind, folders, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(folders[kind], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    bare = {kind: str(folder)}
    state = torch.get_rng_state()
    first = build_encoder(description(kind, bare, seed=1))
    for (encode, items), (again, _), (other, _) in zip(
        inputs_of(first),
        inputs_of(build_encoder(description(kind, bare, seed=1))),
        inputs_of(build_encoder(description(kind, bare, seed=2))),
        strict=True,
    ):
        assert torch.equal(encode(items[:3]), again(items[:3]))
        assert not torch.equal(encode(items[:3]), other(items[:3]))
    assert torch.equal(torch.get_rng_state(), state)
    without = build_encoder(description(kind, bare))
    encode, items = inputs_of(without)[0]
    with pytest.raises(ValueError, match=r"^model: cannot load '.*bare'.*[^\n]*\Z"):
        encode(items)


def test_a_checkpoint_of_our_own_takes_the_place_of_the_weights(folders, tmp_path):
    class Trained(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            config = CLIPModel.from_pretrained(folders["clip"]).config
            self.towers = CLIPModel(config)
            self.extra = torch.nn.Linear(2, 2)

    module = Trained()
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    module.towers.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(Path(folders["clip"]) / name, tmp_path / "whole")
    own = {"checkpoint": str(tmp_path / "own.ckpt"), "checkpoint_prefix": "towers."}
    encoder = build_encoder(description("clip", folders, **own))
    whole = TransformersEncoder(str(tmp_path / "whole"), batch_size=16)
    assert torch.equal(encoder.encode_texts(TEXTS), whole.encode_texts(TEXTS))
    assert torch.equal(encoder.encode_images(PICTURES), whole.encode_images(PICTURES))
    assert str(tmp_path) not in json.dumps(encoder.identity)
    torch.nn.init.zeros_(module.towers.visual_projection.weight[0])
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    later = own | {"checkpoint": str(tmp_path / "later.ckpt")}
    assert build_encoder(description("clip", folders, **later)).identity != encoder.identity
    wrong = own | {"checkpoint_prefix": "tower."}
    with pytest.raises(ValueError, match=r"checkpoint: .*lacks .*checkpoint_prefix 'tower\.'"):
        build_encoder(description("clip", folders, **wrong)).encode_texts(TEXTS)
    tensors = {f"towers.{n}": t * 1e6 for n, t in module.towers.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "large.safetensors")
    large = own | {"checkpoint": str(tmp_path / "large.safetensors"), "normalize": False}
    with pytest.raises(ValueError, match=r"images\[0\]: the embedding is not finite"):
        build_encoder(description("clip", folders, **large, output_dtype="float16")).encode_images(
            PICTURES
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(encoder, kind, dtype, folders):
    half = build_encoder(description(kind, folders, dtype=dtype))
    for (encode, items), (other, _) in zip(inputs_of(encoder), inputs_of(half), strict=True):
        rows = other(items)
        assert rows.dtype == torch.float32
        assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert ((encode(items) * rows).sum(1) > 0.99).all()
        assert not torch.equal(encode(items), rows)


def test_preprocessing_is_the_processors_own_with_the_given_changes(folders):
    changes = {"do_center_crop": False, "size": {"height": 32, "width": 32}}
    network = CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        expected = network.get_image_features(pixels(folders["clip"], **changes)).pooler_output
    encoder = TransformersEncoder(folders["clip"], preprocessing=changes, normalize=False)
    assert_close(encoder.encode_images(pictures(7)), expected)
    for name in ("clip", "timm", "open_clip"):
        wrong = build_encoder(description(name, folders, preprocessing={"colour": 1}))
        with pytest.raises(ValueError, match="preprocessing: unknown 'colour'; known are"):
            wrong.encode_images(PICTURES)


def test_long_texts_are_cut_at_max_length(folders):
    short = TransformersEncoder(folders["clip"], max_length=6)
    network = CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        expected = network.get_text_features(**tokens(folders["clip"], True, 6)).pooler_output
    assert_close(short.encode_texts(TEXTS), normalize(expected, dim=1))
    for encoder in (
        TransformersEncoder(folders["clip"], max_length=25),
        SentenceEncoder(folders["bert"], max_length=129),
    ):
        with pytest.raises(ValueError, match="max_length: "):
            encoder.encode_texts(TEXTS)


def test_images_of_one_encoder_and_texts_of_another(folders):
    model_args = {"num_classes": 32}
    images = description("timm", folders, seed=0, model_args=model_args)
    texts = description("bert", folders)
    pair = {"class_path": "PairedEncoder", "init_args": {"images": images, "texts": texts}}
    encoder = build_encoder(pair)
    assert isinstance(encoder, PairedEncoder)
    assert torch.equal(
        encoder.encode_images(PICTURES), build_encoder(images).encode_images(PICTURES)
    )
    assert torch.equal(encoder.encode_texts(TEXTS), build_encoder(texts).encode_texts(TEXTS))
    assert encoder.identity["texts"] == build_encoder(texts).identity
    with pytest.raises(ValueError, match="images: SentenceEncoder has no image tower"):
        PairedEncoder(build_encoder(texts), build_encoder(images))


def test_what_is_wrong_is_said_in_one_line_with_the_fix(folders, tmp_path, monkeypatch):
    broken = tmp_path / "broken.png"
    PICTURES[0].save(broken)
    broken.write_bytes(broken.read_bytes()[:200])
    clip = TransformersEncoder(folders["clip"])
    cases = [
        (
            r"images\[1\]: .*truncated",
            lambda: clip.encode_images([PICTURES[0], Image.open(broken)]),
        ),
        (r"images\[0\]: .*PIL.Image.open", lambda: clip.encode_images([str(broken)])),
        ("give a list of texts", lambda: clip.encode_texts("a cat")),
        (r"texts\[1\]: .*NoneType is no text", lambda: clip.encode_texts(["a", None])),
        ("hf download", lambda: TransformersEncoder("openai/clip").encode_texts(TEXTS)),
        ("nothing is downloaded", lambda: TimmEncoder("resnet18").encode_images(PICTURES)),
        ("nothing is downloaded", lambda: OpenClipEncoder("ViT-B-32").encode_texts(TEXTS)),
        ("SentenceEncoder", lambda: TransformersEncoder(folders["bert"]).encode_images(PICTURES)),
        ("no BLIP-2", lambda: Blip2Encoder(folders["clip"]).encode_texts(TEXTS)),
        ("Blip2Encoder", lambda: TransformersEncoder(folders["blip2"]).encode_texts(TEXTS)),
        ("give pooling", lambda: TimmEncoder("resnet18", model_args={"global_pool": "avg"})),
        ("batch_size must be 1 or", lambda: TimmEncoder("resnet18", batch_size=24)),
        ("pooling: 'max' is none", lambda: TransformersEncoder("x", pooling="max")),
        ("seed and checkpoint", lambda: TimmEncoder("x", seed=1, checkpoint="x.ckpt")),
        (
            "encoder: .*[Bb]atch_sise",
            lambda: build_encoder(description("clip", folders, batch_sise=3)),
        ),
        ("encoder: .*half", lambda: build_encoder(description("clip", folders, dtype="half"))),
        ("dtype: 'half' is none of float32", lambda: TimmEncoder("resnet18", dtype="half")),
        ("encoder: ", lambda: build_encoder({"class_path": "NoSuchEncoder"})),
    ]
    for message, attempt in cases:
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"open_clip_torch is missing: pip install 'tenfold\[enc"):
        OpenClipEncoder(folders["open_clip"]).encode_texts(TEXTS)
