"""A benchmark built from core captions: stages, kills, servers, and answers that will not do."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.mucr import MuCRDataModule
from tenfold.datamodules.mucr.sprites import SpriteImageBackend, SpriteWriter, understand
from tenfold.datamodules.scenes import CauseEffectScenes
from tenfold.modules.chat import ChatBackend, ChatResponse
from tenfold.modules.descriptions import build_described
from tenfold.modules.files import sha256_of_folder
from tenfold.modules.mucr.construction import (
    BenchmarkBuilder,
    DiffusersImageBackend,
    ImageRequest,
    OpenAIImageBackend,
)
from tenfold.modules.mucr.construction.prompts import read_cue, read_reasons, read_versions
from tenfold.recipes.catalogue import RECIPES
from tenfold.recipes.classes import import_named
from tenfold.recipes.cli import main

CORES = [
    {"cause": "it rains on the person", "effect": "the person has a cold", "category": "person"},
    {"cause": "the animal has a cake", "effect": "the animal has an empty plate",
     "category": "animal"},
]  # fmt: skip


def builder(writer=None, painter=None, **kwargs):
    values = {"captions": CORES, "image_size": 32, **kwargs}
    return BenchmarkBuilder(writer or SpriteWriter(), painter or SpriteImageBackend(), **values)


def content(folder):
    """All that makes a benchmark; answers tell when they came."""
    copy = folder.parent / f"{folder.name}_content"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("answers"))
    return sha256_of_folder(copy)


def rows_of(folder):
    lines = Path(folder, "annotations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_recipe_builds_what_the_data_module_reads(project):
    assert main(["mucr", "--config", "mucr/pipeline_sprites", "--out", "built"]) == 0
    rows = rows_of("built")
    recipe = yaml.safe_load((RECIPES / "mucr/pipeline_sprites.yaml").read_text())
    cores = recipe["benchmark"]["init_args"]["captions"]
    assert len(rows) == 4 * len(cores) == 48
    data = MuCRDataModule("built", image_size=32)
    data.setup("test")
    for batch in data.test_dataloader():
        assert set(batch["sources"]) == {"link_id"}
        assert batch["asked"].all()
        for group in batch["pairs"]:
            assert len({pair.captions for pair in group}) == 1
            assert len({pair.descriptions for pair in group}) == 4
            for pair in group:
                (cause, effect) = map(understand, pair.descriptions)
                assert cause.looks == effect.looks
                assert (cause.moment, effect.moment) == (0, 1)
                assert cause.statement is effect.statement
                assert pair.cue == cause.statement.cue
                assert [image.size for image in pair.images] == [(96, 96)] * 2
                # The subject's colour is in both pictures: of its statement, not of another.
                assert pair.category == cause.category
    assert [row["caption_0"] for row in rows[::4]] == [core["cause"] for core in cores]
    assert not [name for name in Path("built/images").iterdir() if name.suffix != ".png"]
    assert main(["mucr", "--config", "mucr/pipeline_sprites", "--out", "built"]) == 0


@pytest.mark.parametrize("name", ["pipeline_sprites", "pipeline_server", "pipeline_diffusion"])
def test_every_build_recipe_has_right_settings(name):
    described = yaml.safe_load((RECIPES / f"mucr/{name}.yaml").read_text())["benchmark"]
    described["init_args"]["captions"] = CORES
    import_named({"BenchmarkBuilder", "OpenAIChatBackend", "OpenAIImageBackend", "SpriteWriter"})
    made = build_described(BenchmarkBuilder, described, name)
    assert len(made.captions) == 2
    assert made.image_size == described["init_args"]["image_size"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 3), st.sampled_from([0, 1]))
def test_descriptions_are_understood(group, sibling, moment):
    pair = CauseEffectScenes(canvas=16).group("test", group)[sibling]
    said = understand(f"A photograph: {pair.descriptions[moment]}. Natural light.")
    assert (said.statement, said.moment) == (pair.statement, moment)
    assert (said.category, said.looks) == (pair.category, pair.looks)
    plain = understand(pair.captions[moment])
    assert (plain.statement, plain.moment, plain.looks) == (pair.statement, moment, None)


def test_a_sprite_shows_what_is_said():
    """Against the scenes' own drawing of the same description, but for where things are."""
    prompt = "A comic drawing: it rains on the red person with blue parts on a green background"
    ((_, image),) = SpriteImageBackend().paint([ImageRequest(prompt, 64, 0)])
    pixels = np.asarray(image)
    red = (pixels[..., 0] > 180) & (pixels[..., 1:].max(-1) < 80)
    blue = (pixels[..., 2] > 180) & (pixels[..., 0] < 90) & (pixels[..., 1] < 110)
    assert 0.05 < red.mean() < 0.3
    assert 0.01 < blue.mean() < 0.2
    ((_, again),) = SpriteImageBackend().paint([ImageRequest(prompt, 64, 0)])
    assert again == image
    with pytest.raises(ValueError, match="sprites cannot show 'a dragon flies'"):
        list(SpriteImageBackend().paint([ImageRequest("a dragon flies", 64, 0)]))


SLOW = """
import os, time
from pathlib import Path
from tenfold.datamodules.mucr.sprites import SpriteImageBackend, SpriteWriter

def log(what):
    with open("asked.log", "a") as file:
        file.write(what + "\\n")

class SlowWriter(SpriteWriter):
    def answer(self, requests, keep=None):
        for place, request in enumerate(requests):
            time.sleep(float(os.environ.get("PAUSE", 0)))
            for _, response in super().answer([request]):
                log(f"{request.id} {request.digest}")
                yield place, response

class SlowPainter(SpriteImageBackend):
    def paint(self, requests):
        for place, request in enumerate(requests):
            time.sleep(float(os.environ.get("PAUSE", 0)))
            for _, image in super().paint([request]):
                log(f"paint {request.prompt} {request.seed}")
                yield place, image
"""


@pytest.mark.parametrize(
    "stage",
    ["paint", *(pytest.param(s, marks=pytest.mark.slow) for s in ("expand", "cue", "explain"))],
)
def test_a_build_killed_in_any_stage_goes_on_to_the_same_benchmark(project, stage):
    Path("slow.py").write_text(SLOW)
    described = {
        "class_path": "BenchmarkBuilder",
        "init_args": {
            "writer": {"class_path": "slow.SlowWriter"},
            "image_backend": {"class_path": "slow.SlowPainter"},
            "captions": [*CORES, {**CORES[0], "cause": "the robot has a cake",
                                  "effect": "the robot has an empty plate"}],
            "image_size": 24,
        },
    }  # fmt: skip
    Path("build.yaml").write_text(yaml.safe_dump({"benchmark": described}))
    command = [sys.executable, "-m", "tenfold.recipes.cli", "mucr", "--config", "build.yaml"]
    running = subprocess.Popen(
        [*command, "--out", "killed"],
        env={**os.environ, "PAUSE": "0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log = Path("asked.log")
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count(f"{stage} ") == 2):
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.05)  # the second is on disk, the third is waited for
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not Path("killed/annotations.jsonl").exists()
    args = ["mucr", "--config", "build.yaml", "--out"]
    assert main([*args, "killed"]) == 0
    asked = log.read_text().splitlines()
    assert len(asked) == len(set(asked)) == 3 + 24 + 3 + 12  # nothing was asked or painted twice
    log.unlink()
    assert main([*args, "whole"]) == 0
    assert sorted(log.read_text().splitlines()) == sorted(asked)
    assert content(Path("killed")) == content(Path("whole"))
    log.unlink()
    assert main([*args, "whole"]) == 0
    assert not log.exists()


def test_other_settings_need_another_folder(project, capsys):
    folder = project / "built"
    builder().build(folder)
    for change in ({"seed": 1}, {"comic_share": 0.5}, {"prompts": {"cue": "{input}"}}):
        with pytest.raises(ValueError, match="has a benchmark of other settings"):
            builder(**change).build(folder)
    (project / "mine").mkdir()
    (project / "mine/file").touch()
    with pytest.raises(ValueError, match="is not empty and has no"):
        builder().build(project / "mine")
    assert main(["mucr", "--config", "mucr/pipeline_sprites", "--out", "built"]) == 2
    assert "error: built has a benchmark of other settings" in capsys.readouterr().err


class Faulty(ChatBackend):
    """Writes rubbish the first times it is asked."""

    def __init__(self, faults, answers=("no JSON here",)):
        self.faults, self.answers = faults, answers
        self.asked = []

    identity = {"backend": "faulty"}  # noqa: RUF012

    def answer(self, requests, keep=None):
        for place, request in enumerate(requests):
            self.asked.append((request.id, request.attempt))
            if request.attempt < self.faults.get(request.id, 0):
                yield place, ChatResponse(self.answers[request.attempt % len(self.answers)])
            else:
                yield from ((place, r) for _, r in SpriteWriter().answer([request]))


def test_what_will_not_do_is_asked_again(tmp_path):
    faulty = Faulty({"expand": 2, "cue": 1, "explain": 1})
    builder(faulty, max_attempts=3).build(tmp_path / "faulty")
    builder().build(tmp_path / "plain")
    assert rows_of(tmp_path / "faulty") == rows_of(tmp_path / "plain")
    assert [faulty.asked.count(("expand", attempt)) for attempt in range(4)] == [2, 2, 2, 0]
    assert len([asked for asked in faulty.asked if asked[0] == "explain"]) == 16


def test_what_never_does_is_an_error_or_left_out(tmp_path, caplog):
    class OneBad(Faulty):
        def answer(self, requests, keep=None):
            for place, request in enumerate(requests):
                bad = request.id == "explain" and '"the animal has an empty plate"' in str(
                    request.messages
                )
                text = '{"causal_reason": ["first second", "first second", "x"]}' if bad else None
                for _, response in SpriteWriter().answer([request]):
                    yield place, ChatResponse(text or response.text)

    with pytest.raises(ValueError, match=r"4 of 8 answers will not do, the first to the expl"):
        builder(OneBad({})).build(tmp_path / "strict")
    builder(OneBad({}), strict=False).build(tmp_path / "loose")
    rows = rows_of(tmp_path / "loose")
    assert {row["label"] for row in rows} == {"person"}
    assert len(rows) == 4
    assert "left out: 4 of 8 answers will not do" in caplog.text
    # More attempts ask only what is missing.
    faulty = Faulty({"cue": 3})
    with pytest.raises(ValueError, match=r"no JSON|expected a JSON"):
        builder(faulty, max_attempts=2).build(tmp_path / "more")
    before = len(faulty.asked)
    builder(faulty, max_attempts=4).build(tmp_path / "more")
    again = faulty.asked[before:]
    assert [asked for asked in again if asked[0] == "cue"] == [("cue", 2)] * 2 + [("cue", 3)] * 2
    assert not [asked for asked in again if asked[0] == "expand"]


GOOD = {
    "subject": "a red dog",
    "visual_cues": ["red dog", "by the lake"],
    "cause_description": "A red dog jumps by the lake.",
    "effect_description": "The red dog is wet, by the lake.",
}


def versions(**change):
    other = {key: str(value).replace("red", "blue") for key, value in GOOD.items()}
    other["visual_cues"] = ["blue dog"]
    return json.dumps([{**GOOD, **change}, other])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I cannot do that.", "expected a JSON list"),
        ("[{]", "no JSON"),
        (json.dumps([GOOD]), "list of 2 objects"),
        (versions(visual_cues=["green dog"]), "'green dog' is not in both"),
        (versions(visual_cues=[]), "visual_cues must be a list"),
        (versions(subject=""), "subject must be a text"),
        (versions(cause_description="a blue dog jumps by the lake",
                  visual_cues=["by the lake"]), "the same cause_description"),
        (versions(effect_description="a red dog jumps by the lake"), "cause and effect of a"),
    ],
)  # fmt: skip
def test_versions_that_will_not_do(text, message):
    assert read_versions(f"Here:\n```json\n{versions()}\n```", 2)[0].visual_cues[1] == "by the lake"
    with pytest.raises(ValueError, match=message):
        read_versions(text, 2)


@pytest.mark.parametrize(
    "row",
    [
        {"cue": "melt", "false_cue": ["hot", "ice", "Melt!"]},
        {"cue": "melt", "false_cue": ["hot", "ice"]},
        {"cue": "melt", "false_cue": ["hot", "ice", ""]},
        {"cue": "", "false_cue": ["hot", "ice", "sun"]},
        {"cue": "melt", "false_cue": "hot, ice, sun"},
    ],
)
def test_cues_that_will_not_do(row):
    assert read_cue('{"cue": "melt", "false_cue": ["hot", "ice", "sun"]}').cue == "melt"
    with pytest.raises(ValueError, match=r"different|must be"):
        read_cue(json.dumps(row))


def test_reasons_that_will_not_do():
    good = [f"The first image shows {x}, the second the same, since {x}." for x in "abc"]
    assert read_reasons(json.dumps({"causal_reason": good})) == tuple(good)
    for bad in (good[:2], [*good[:2], good[0]], [*good[:2], "It just follows."], "a text"):
        with pytest.raises(ValueError, match=r"explanation|texts"):
            read_reasons(json.dumps({"causal_reason": bad}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": [{"cause": "a"}]}, r"captions\[0\]: expected texts cause, effect and cat"),
        ({"captions": [CORES[0], CORES[0]]}, r"captions\[1\]: the same statement as captions\[0"),
        ({"captions": []}, "not one statement"),
        ({"captions": "nowhere.jsonl"}, "captions nowhere.jsonl cannot be read"),
        ({"num_siblings": 1}, "num_siblings 1"),
        ({"comic_share": 2.0}, r"comic_share must be in \[0, 1\]"),
        ({"prompts": {"nothing": ""}}, "are none of expand, cue"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        builder(**change)


def test_the_command_says_what_is_wrong(project, capsys):
    Path("captions.jsonl").write_text('{"cause": "a dragon flies", "effect": "x", "category": "y"}')
    for arguments, message in (
        ([], "--config mucr/pipeline_sprites --out DIR"),
        (["--config", "mucr/quickstart", "--out", "x"], "expected the one key `benchmark`"),
        (["--config", "mucr/pipeline_sprites", "--out", "x", "--override", "{size: 3}"], "size"),
        (["--config", "mucr/pipeline_sprites", "--out", "x", "--captions", "captions.jsonl"],
         "sprites cannot show"),
        (["--config", "mucr/pipeline_sprites", "--out", "y", "--override", "{image_size: 4}"],
         "image_size 4"),
    ):  # fmt: skip
        assert main(["mucr", *arguments]) == 2
        assert message in capsys.readouterr().err


class ImageServer(BaseHTTPRequestHandler):
    """Paints with sprites; the first request of each prompt meets a fault where it is due."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, self.headers["Authorization"], body))
        seen = sum(other["prompt"] == body["prompt"] for _, _, other in self.server.bodies)
        if self.server.fault == "busy" and seen == 1:
            return self.send(503, {"error": {"message": f"busy {self.headers['Authorization']}"}})
        if self.server.fault == "refused" and "rains" in body["prompt"]:
            return self.send(400, {"error": {"message": f"no: {self.headers['Authorization']}"}})
        size = int(body["size"].split("x")[0])
        request = ImageRequest(body["prompt"], size, body["seed"])
        ((_, image),) = SpriteImageBackend().paint([request])
        buffer = io.BytesIO()
        image.save(buffer, format="png")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        key = "url" if self.server.fault == "url" else "b64_json"
        return self.send(200, {"created": 1, "data": [{key: encoded}]})

    def send(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def image_server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageServer)
    server.bodies, server.fault = [], ""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("IMAGE_KEY", "very-secret-key-of-images")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def server_backend(server, **kwargs):
    return OpenAIImageBackend(
        f"http://127.0.0.1:{server.server_address[1]}/v1",
        "sprites",
        api_key_env="IMAGE_KEY",
        extra_body={"seed": "{seed}"},
        **kwargs,
    )


def test_a_server_paints_the_same(image_server, tmp_path):
    image_server.fault = "busy"
    builder(painter=server_backend(image_server)).build(tmp_path / "served")
    builder().build(tmp_path / "drawn")
    images = sorted((tmp_path / "served/images").iterdir())
    assert len(images) == 16
    for path in images:
        assert Image.open(path) == Image.open(tmp_path / "drawn/images" / path.name)
    path, key, body = image_server.bodies[0]
    assert (path, key) == ("/v1/images/generations", "Bearer very-secret-key-of-images")
    assert {"model", "n", "prompt", "response_format", "seed", "size"} == set(body)
    written = b"".join(p.read_bytes() for p in (tmp_path / "served").rglob("*.json*"))
    assert b"very-secret" not in written


def test_a_server_that_refuses_some_keeps_the_others(image_server, tmp_path):
    image_server.fault = "refused"
    backend = server_backend(image_server, max_retries=0)
    with pytest.raises(ValueError, match="4 of 16 pictures were not painted") as caught:
        builder(painter=backend).build(tmp_path / "built")
    assert "very-secret" not in str(caught.value)
    assert len(list((tmp_path / "built/images").iterdir())) == 12
    image_server.fault = ""
    before = len(image_server.bodies)
    builder(painter=backend).build(tmp_path / "built")
    assert len(image_server.bodies) - before == 4


def test_a_server_that_sends_no_picture_is_named(image_server):
    image_server.fault = "url"
    request = ImageRequest(f"{CORES[0]['cause']} photograph", 16, 0)
    prompt = "it rains on the red person with blue parts on a green background"
    with pytest.raises(ValueError, match=r"1 of 1 pictures .* sent no picture \(b64_json\)"):
        list(server_backend(image_server).paint([request._replace(prompt=prompt)]))
    with pytest.raises(ValueError, match="without user, password or query"):
        OpenAIImageBackend("http://user:word@host/v1", "x")


def tiny_diffusion(folder):
    """A pipeline with random weights, in the smallest sizes that its parts allow."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = pre_tokenizers.ByteLevel.alphabet()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=64
    )
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


@pytest.mark.slow
def test_a_diffusion_model_paints(tmp_path):
    """A real pipeline of diffusers: random weights paint noise, each prompt and seed its own."""
    tiny_diffusion(tmp_path / "model")
    backend = DiffusersImageBackend(
        str(tmp_path / "model"), num_inference_steps=2, batch_size=3, dtype="float32",
        negative_prompt="text", device="cpu",
    )  # fmt: skip
    builder(painter=backend, image_size=32).build(tmp_path / "built")
    images = [Image.open(path) for path in sorted((tmp_path / "built/images").iterdir())]
    assert [image.size for image in images] == [(32, 32)] * 16
    assert len({image.tobytes() for image in images}) == 16
    manifest = json.loads((tmp_path / "built/benchmark.json").read_text())
    assert manifest["image_backend"]["negative_prompt"] == "text"
    requests = [ImageRequest(prompt, 32, seed) for prompt in ("a", "b") for seed in (0, 1)]
    together = [np.asarray(image, dtype=int) for _, image in backend.paint(requests)]
    for request, image in zip(requests, together, strict=True):
        ((_, alone),) = backend.paint([request])
        assert np.abs(image - np.asarray(alone, dtype=int)).max() <= 2
    with pytest.raises(ValueError, match=r"image model .*nowhere cannot be loaded"):
        next(DiffusersImageBackend(str(tmp_path / "nowhere")).paint(requests))
