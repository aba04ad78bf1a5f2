"""Random programs, files of programs, and users' pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_programs
import torch
from PIL import Image
from tenfold.datamodules.programs import ProgramSampler
from tenfold.datamodules.programs.pictures import possible_colors, quantized, read_picture
from tenfold.modules.art2prog.canonical import canonicalise
from tenfold.modules.art2prog.drawing import Renderer, blank_states, to_uint8
from tenfold.modules.art2prog.language import Language
from tenfold.modules.art2prog.layers import execute, picture_of

WIDE = Language(max_layers=4, max_lines=35)


def test_programs_are_canonical_valid_and_a_function_of_seed_and_index():
    sampler = ProgramSampler(WIDE, layer_probs=[0.25, 0.35, 0.25, 0.15])
    programs = [sampler.numbered("train", index) for index in range(40)]
    for program in programs:
        WIDE.check(program)
        assert canonicalise(program, WIDE) == program
    layers = Counter(len(picture_of(program)) for program in programs)
    assert set(layers) == {1, 2, 3, 4}
    assert ProgramSampler(WIDE, layer_probs=sampler.layer_probs).numbered("train", 7) == programs[7]
    other = ProgramSampler(WIDE, layer_probs=sampler.layer_probs, seed=1)
    assert other.numbered("train", 7) != programs[7]
    assert sampler.rejected["too small"] > 0


def test_what_is_drawn_can_be_seen():
    """Each layer shows in the picture, and so does each blend mode: by pixels, not by geometry."""
    sampler = ProgramSampler(Language(), layer_probs=[0.0, 1.0])
    renderer = Renderer(sampler.language, 64)
    multiplied = 0
    for index in range(40):
        below, above = picture_of(sampler.numbered("val", index))
        both, only = renderer.pictures([(below, above), (below,)])
        changed = ((both - only).abs().amax(dim=0) > 8 / 255).sum()
        assert changed > 64  # a cell
        if above.mode == "multiply":
            multiplied += 1
            covering = type(above)(above.outline, above.color)
            plain = renderer.pictures([(below, covering)])[0]
            assert ((both - plain).abs().amax(dim=0) >= 23 / 255).sum() >= 48
    assert multiplied >= 10


def test_without_guards_modes_need_not_show():
    sampler = ProgramSampler(Language(), layer_probs=[0.0, 1.0], guards=False, blend_prob=1.0)
    pictures = [sampler.picture(np.random.default_rng(seed)) for seed in range(30)]
    # Modes of layers that lie apart are no part of the canonical form.
    assert {picture[1].mode for picture in pictures} == {"normal", "multiply"}


@pytest.mark.parametrize("split_by", ["program", "shapes"])
def test_splits_share_neither_programs_nor_shapes(split_by):
    sampler = tiny_programs.sampler(num_edges=(3, 3), template_prob=0.0, arc_prob=0.0)
    found = {}
    for split in ("train", "val", "test"):
        programs = [sampler.numbered(split, index, split_by) for index in range(25)]
        keys = set()
        for program in programs:
            if split_by == "program":
                keys.add(program)
                continue
            for layer in picture_of(program):
                x, y = layer.outline.start
                keys.add(tuple((e.x - x, e.y - y) for e in layer.outline.edges))
        found[split] = keys
    assert all(len(keys) > 5 for keys in found.values())
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]


def test_a_batch_lines_up_tokens_places_and_states():
    batch = tiny_programs.batch()
    language = tiny_programs.LANGUAGE
    vocabulary = tiny_programs.module().vocabulary
    for row, text in enumerate(batch["program"]):
        program = language.parse(text)
        tokens, places = vocabulary.encode(program)
        number = len(tokens)
        assert batch["target"][row, :number].tolist() == tokens
        assert batch["token"][row, 1:number].tolist() == tokens[:-1]
        assert (batch["target"][row, number:] == 0).all()
        expected = [blank_states(1, 32)[0], *Renderer(language, 32).states(execute(program))]
        for place in range(number):
            state = batch["state"][batch["state_index"][row, place]]
            assert torch.equal(state, expected[places[place].line])
        assert batch["picture_index"][batch["state_index"][row, 0]] == row
        drawn = Renderer(language, 32).pictures([picture_of(program)])[0]
        assert torch.equal(batch["image"][row], to_uint8(drawn))


def test_workers_and_caches_change_nothing():
    one = [batch["image"] for batch in tiny_programs.data().train_dataloader()]
    cached = tiny_programs.data(cache=40).train_dataloader()
    for _ in range(2):
        again = [batch["image"] for batch in cached]
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_a_fixed_benchmark_is_written_once_and_read(tmp_path):
    folder = tmp_path / "programs"
    data = tiny_programs.data(path=str(folder), num_train=5, num_val=2, num_test=2)
    data.prepare_data()
    before = (folder / "train.jsonl").read_bytes()
    data.prepare_data()
    data.setup("fit")
    assert (folder / "train.jsonl").read_bytes() == before
    drawn = tiny_programs.data(num_train=5)._programs("train", 0)
    stored = data._programs("train", 0)
    assert [stored.program(i) for i in range(5)] == [drawn.program(i) for i in range(5)]
    row = json.loads(before.splitlines()[0])
    assert row["id"] == "000000"
    assert row["depth"] == len(row["lines"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"train": 5, "val": 2, "test": 2}

    lines = (folder / "val.jsonl").read_text().splitlines()
    broken = [lines[0], lines[1].replace('["Create", ', '["Create", 9')]
    (folder / "val.jsonl").write_text("\n".join(broken))
    with pytest.raises(ValueError, match=r"val.jsonl:2: line 1: point \(9"):
        tiny_programs.data(path=str(folder), num_train=5, num_val=2, num_test=2).setup("fit")
    (folder / "val.jsonl").write_text("{nonsense")
    with pytest.raises(ValueError, match=r"val.jsonl:1: no JSON"):
        tiny_programs.data(path=str(folder), num_train=5, num_val=1, num_test=2).setup("fit")
    with pytest.raises(ValueError, match="5 programs, asked for are 6: lower num_train"):
        tiny_programs.data(path=str(folder), num_train=6).setup("fit")
    sampler = ProgramSampler(WIDE)
    with pytest.raises(ValueError, match=r"grid is 4, but data.sampler.language.grid 8"):
        tiny_programs.data(path=str(folder), sampler=sampler).setup("fit")


def test_pictures_of_a_folder_become_squares_on_white(tmp_path):
    folder = tmp_path / "art"
    folder.mkdir()
    wide = np.zeros((20, 40, 4), dtype=np.uint8)
    wide[:, :20] = (230, 60, 60, 255)
    Image.fromarray(wide).save(folder / "b.png")
    Image.new("P", (9, 9), 0).save(folder / "a.gif")
    (folder / "notes.txt").write_text("no picture")
    data = tiny_programs.data(images=str(folder))
    (batch,) = data.predict_dataloader()
    assert batch["name"] == ["a", "b"]
    image = batch["image"][1]
    assert image.shape == (3, 32, 32)
    assert image[:, 16, 4].tolist() == [230, 60, 60]
    assert image[:, 16, 28].tolist() == [255, 255, 255]
    assert image[:, 2, 4].tolist() == [255, 255, 255]


def test_colours_are_reduced_to_those_that_can_be_made():
    language = Language(palette=((200, 0, 0), (0, 100, 200)))
    colors = possible_colors(language)
    assert sorted(colors.tolist()) == [[0, 0, 0], [0, 100, 200], [200, 0, 0], [255, 255, 255]]
    image = torch.tensor([[[190, 250, 10]], [[9, 240, 90]], [[12, 255, 180]]], dtype=torch.uint8)
    found = quantized(image, colors)[:, 0].T.tolist()
    assert found == [[200, 0, 0], [255, 255, 255], [0, 100, 200]]


def test_bad_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        tiny_programs.data(images=str(tmp_path / "none")).predict_dataloader()
    with pytest.raises(ValueError, match=r"no picture in it \(.bmp"):
        tiny_programs.data(images=str(tmp_path)).predict_dataloader()
    for name, content in (("a.png", b"nonsense"), ("b.png", _png()[:40])):
        Path(tmp_path, name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: no picture that can be read"):
            read_picture(tmp_path / name, 32)


def _png() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_probs": [0.5, 0.4]}, "expected shares that add up to 1"),
        ({"layer_probs": [0.5, 0.3, 0.2]}, "raise language.max_layers"),
        ({"num_edges": (1, 3)}, "num_edges"),
        ({"arc_prob": 2.0}, "arc_prob: 2.0"),
        ({"num_edges": (2, 9)}, "language.max_lines: 14"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_samplers_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_programs.sampler(**settings)


def test_an_impossible_area_is_said():
    sampler = tiny_programs.sampler(min_area=16.5)
    with pytest.raises(ValueError, match="lower min_area"):
        sampler.numbered("train", 0)
