"""Pairs of cause and effect: both released formats, groups of siblings, batches."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.mucr import MuCRDataModule, SyntheticMuCRDataModule
from tenfold.datamodules.mucr.groups import Described, find_groups, parse_links
from tenfold.datamodules.mucr.reading import read_pairs
from tenfold.datamodules.scenes import CauseEffectScenes
from tenfold.datamodules.scenes.files import write_mucr
from tenfold.recipes.cli import main

SCENES = CauseEffectScenes(canvas=32)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The same eight groups in all four forms."""
    folder = tmp_path_factory.mktemp("mucr")
    for version in ("2024", "2025"):
        for layout in ("jsonl", "parquet"):
            write_mucr(SCENES, folder / f"{version}_{layout}", 8, version, layout)
    return folder


def edit(folder, target, change):
    """Copies files, with rows that `change` has edited."""
    shutil.copytree(folder, target)
    path = target / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = change(rows) or rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


@pytest.mark.parametrize("form", ["2024_jsonl", "2024_parquet", "2025_jsonl", "2025_parquet"])
def test_both_versions_and_layouts_are_read(released, form, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    data = MuCRDataModule(str(released / form), batch_size=3, image_size=32)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["images"].shape for batch in batches] == [(n, 4, 2, 3, 32, 32) for n in (3, 3, 2)]
    pairs = [pair for batch in batches for group in batch["pairs"] for pair in group]
    drawn = [pair for number in range(8) for pair in SCENES.group("test", number)]
    assert len(pairs) == len(drawn) == 32
    by_id = {f"{i:04d}": pair for i, pair in enumerate(drawn)}
    for pair in pairs:
        own = by_id[pair.id]
        assert pair.captions == own.captions
        assert pair.references == tuple(own.references[: 3 if "2024" in form else 1])
        assert pair.descriptions == (own.descriptions if "jsonl" in form else ("", ""))
        assert (pair.cue, pair.false_cues) == (own.statement.cue, own.statement.false_cues)
        assert (pair.category, pair.style) == (own.category, own.cause.style)
        effect = np.asarray(pair.images[1]) / 255
        assert np.abs(effect - own.effect.render().transpose(1, 2, 0)).max() < 0.003
    if "2024" in form:
        assert {source for batch in batches for source in batch["sources"]} == {"link_id"}
    assert all(batch["asked"].any(dim=1).all() for batch in batches)
    assert sum(int(batch["asked"].sum()) for batch in batches) == 32


def test_the_hub_is_asked_only_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub:Nobody/Nothing cannot be read"):
        read_pairs("hub:Nobody/Nothing")
    with pytest.raises(ValueError, match="tenfold scenes --format mucr --out"):
        read_pairs(tmp_path / "missing")


def break_cue(rows):
    rows[3]["false_cue"][1] = rows[3]["cue"].upper()


def break_picture(rows):
    rows[3]["image_1"] = "missing.png"


def break_key(rows):
    del rows[3]["causal_reason"]


def break_type(rows):
    rows[3]["label"] = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_cue, r"annotations\.jsonl:4: cue '.*' and false_cue .* not several different"),
        (break_picture, r"annotations\.jsonl:4: there is no picture .*missing\.png"),
        (break_key, r"annotations\.jsonl:4: no 'causal_reason'; keys: id, "),
        (break_type, r"annotations\.jsonl:4: label is 3, expected a text"),
    ],
)
def test_a_bad_row_is_named_and_may_be_left_out(released, tmp_path, change, message, caplog):
    broken = edit(released / "2024_jsonl", tmp_path / "broken", change)
    with pytest.raises(ValueError, match=message):
        read_pairs(broken)
    with caplog.at_level(logging.WARNING):
        pairs = read_pairs(broken, strict=False)
    assert len(pairs) == 31
    assert "left out 1 pairs, the first" in caplog.text
    # The three siblings that are left still have four options.
    groups = find_groups([pair.described for pair in pairs], "auto", 0)
    assert [group.source for group in groups].count("sampled") == 3


def test_a_picture_with_a_bad_body_is_named(released, tmp_path):
    def cut(rows):
        path = tmp_path / "broken" / "images" / rows[0]["image_0"]
        path.write_bytes(path.read_bytes()[:100])

    data = MuCRDataModule(str(edit(released / "2024_jsonl", tmp_path / "broken", cut)))
    data.setup("test")
    with pytest.raises(ValueError, match=r"annotations\.jsonl:1: a picture cannot be read"):
        next(iter(data.test_dataloader()))


def test_two_rows_of_one_id_are_refused(released, tmp_path):
    def double(rows):
        rows[5]["id"] = rows[2]["id"]

    with pytest.raises(ValueError, match=r"jsonl:6: the id '0002' is that of .*:3 as well"):
        read_pairs(edit(released / "2024_jsonl", tmp_path / "broken", double))


def test_spelling_of_categories_and_styles_is_one(released, tmp_path):
    def other_words(rows):
        rows[0]["label"], rows[0]["style"] = "Human", "Comics"

    pairs = read_pairs(edit(released / "2024_jsonl", tmp_path / "words", other_words))
    assert (pairs[0].category, pairs[0].style) == ("person", "comic")


def test_links_that_are_not_returned_are_a_warning(released, tmp_path, caplog):
    def unlink(rows):
        rows[1]["link_id"] = "[0000, 0002]"

    pairs = read_pairs(edit(released / "2024_jsonl", tmp_path / "links", unlink))
    groups = find_groups([pair.described for pair in pairs], "auto", 0)
    assert "1 links are not returned, the first: 0003 names 0001" in caplog.text
    own = [group for group in groups if group.source == "sampled"]
    assert [group.id for group in own] == ["0000", "0001", "0002", "0003"]
    # What a pair names comes first: all four are asked with their siblings still.
    assert [set(group.places) for group in own[:1]] == [{0, 1, 2, 3}]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)), min_size=4),
    st.sampled_from(["auto", "caption", "sampled"]),
    st.integers(0, 3),
)
def test_every_pair_is_asked_once_with_three_others(found, policy, seed):
    rows = [
        Described(str(i), (), (f"cause {c}", "Effect!"), f"cue {q}", f"category {k}")
        for i, (c, q, k) in enumerate(found)
    ]
    groups = find_groups(rows, policy, seed)
    asked = [
        place
        for group in groups
        for place, is_asked in zip(group.places, group.asked, strict=True)
        if is_asked
    ]
    assert sorted(asked) == list(range(len(rows)))
    assert all(len(set(group.places)) == 4 for group in groups)
    assert groups == find_groups(rows, policy, seed)
    for group in groups:
        members = [rows[place] for place in group.places]
        if group.source == "caption":
            assert len({row.captions for row in members}) == 1
        if group.source == "cue":
            assert len({(row.category, row.cue) for row in members}) == 1
        if group.source == "sampled":
            first, *others = members
            same = sum(row.category == first.category for row in rows) - 1
            assert sum(row.category == first.category for row in others) == min(3, same)


def test_links_are_read_with_and_without_quotes():
    assert parse_links("[12,13, 14]") == parse_links('["12", "13", "14"]') == ("12", "13", "14")
    assert parse_links("[a-1, b_2]") == ("a-1", "b_2")
    assert parse_links("") == ()


def test_policies_say_what_they_lack(released):
    rows = [pair.described for pair in read_pairs(released / "2025_jsonl")]
    with pytest.raises(ValueError, match="no pair has links: take auto or caption"):
        find_groups(rows, "link_id", 0)
    with pytest.raises(ValueError, match="3 pairs: a question needs 4"):
        find_groups(rows[:3], "auto", 0)


def test_filters_ask_fewer_and_keep_siblings(released):
    data = MuCRDataModule(str(released / "2024_jsonl"), styles=["comic"])
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    asked = batch["asked"].flatten().tolist()
    pairs = [pair for group in batch["pairs"] for pair in group]
    assert all((pair.style == "comic") == is_asked
               for pair, is_asked in zip(pairs, asked, strict=True))  # fmt: skip
    assert 0 < sum(asked) < len(asked)
    data = MuCRDataModule(str(released / "2024_jsonl"), categories=["dragon"])
    with pytest.raises(ValueError, match=r"no pair of categories \['dragon'\]"):
        data.setup("test")


def test_drawn_groups_are_the_same_again_and_their_phrases_say_nothing_alone():
    data = SyntheticMuCRDataModule(num_test=30, image_size=16, batch_size=30, seed=0)
    one, two = (next(iter(data.test_dataloader())) for _ in range(2))
    assert torch.equal(one["images"], two["images"])
    assert one["pairs"][7][0] == two["pairs"][7][0]
    cues = {pair.cue for group in one["pairs"] for pair in group}
    false_cues = {cue for group in one["pairs"] for pair in group for cue in pair.false_cues}
    assert cues <= false_cues  # what is right for one pair is wrong for another
    written = SyntheticMuCRDataModule(false_cues="written", num_test=30, image_size=16, seed=0)
    pairs = [p for b in written.test_dataloader() for group in b["pairs"] for p in group]
    assert not {pair.cue for pair in pairs} & {cue for pair in pairs for cue in pair.false_cues}


def test_the_matcher_is_tested_on_files(released, project, capsys):
    quick = ["--config", "mucr/quickstart", "--trainer.max_steps=2", "--test_after_fit=false"]
    quick += ["--trainer.val_check_interval=2", "--data.num_val=2"]
    assert main(["fit", *quick, "--run_dir=run"]) == 0
    on_files = ["--data=MuCRDataModule", f"--data.root={released / '2025_jsonl'}"]
    on_files += ["--data.image_size=32"]
    run = ["test", "--config", "mucr/quickstart", "--ckpt_path=run/checkpoints/last.ckpt"]
    assert main([*run, *on_files, "--run_dir=tested"]) == 0
    numbers = json.loads((project / "tested/metrics.json").read_text())
    assert numbers["test"]["test/c2e/accuracy_n"] == 32
    assert main([*run, "--data=MuCRDataModule", "--data.root=nowhere", "--run_dir=none"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_images_of_any_size_become_squares(released, tmp_path):
    def stretch(rows):
        for row in rows[:4]:
            path = tmp_path / "wide" / "images" / row["image_0"]
            Image.open(path).resize((50, 20)).save(path)

    data = MuCRDataModule(str(edit(released / "2024_jsonl", tmp_path / "wide", stretch)),
                          image_size=24)  # fmt: skip
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["images"].shape == (8, 4, 2, 3, 24, 24)
    assert batch["pairs"][0][0].images[0].size == (50, 20)
