"""Readers of reasoning benchmarks: real rows, files in their formats, and bad ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tenfold.datamodules.scenes import ObjectScenes
from tenfold.datamodules.visual_reasoning import SceneReasoningDataModule, WinogavilDataModule

DATA = Path(__file__).parents[1] / "data" / "winogavil"


def winogavil(**settings):
    data = WinogavilDataModule(root=str(DATA), **settings)
    data.setup()
    return data


def test_real_games_are_read():
    data = winogavil(shuffle_options=False)
    assert data.run_info()["num_questions"] == {
        "winogavil_5_6": 60,
        "winogavil_10_12": 60,
        "winogavil_swow": 60,
    }
    first = data.questions[0]
    assert first.text == 'Which 2 of the images fit the cue word "bald" best?'
    assert first.images == ("eagle", "teepee", "factory", "metal", "ash")
    assert [first.images[place] for place in first.answers] == ["eagle", "ash"]
    assert first.shown_options == [f"Image {k}" for k in range(1, 6)]
    assert len(first.captions) == 5
    assert first.group == data.questions[1].group != data.questions[5].group
    assert first.metric == "jaccard"


def test_shuffled_games_are_the_same_games():
    files, shuffled = winogavil(shuffle_options=False), winogavil(seed=1)
    moved = 0
    for one, other in zip(files.questions, shuffled.questions, strict=True):
        assert {one.options[k] for k in one.answers} == {other.options[k] for k in other.answers}
        captions = dict(zip(one.images, one.captions, strict=True))
        assert dict(zip(other.images, other.captions, strict=True)) == captions
        moved += one.options != other.options
    assert moved > 170
    again = winogavil(seed=1)
    assert again.questions == shuffled.questions
    assert again.run_info() == shuffled.run_info() != files.run_info()


def test_images_of_games(tmp_path):
    shutil.copytree(DATA, tmp_path / "data")
    names = {name for q in winogavil(splits=["swow"]).questions for name in q.images}
    (tmp_path / "images").mkdir()
    for name in sorted(names)[1:]:
        Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / f"{name}.jpg")
    settings = {"splits": ["swow"], "image_dir": str(tmp_path / "images")}
    with pytest.raises(ValueError, match=f"there is no image .*{sorted(names)[0]}"):
        winogavil(**settings)
    data = winogavil(**settings, strict=False)
    assert data.run_info()["num_left_out"] == 60 - len(data.questions) > 0
    item = data.pool()[0]
    assert [picture.size for picture in item.pictures] == [(4, 4)] * len(item.question.images)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('7,load,"[""truck""]",2,98,20,"[""icing"", ""fox""]",1,1,0', "associations are no"),
        ('7,load,"[truck]",2,98,20,"[""icing""]",1,1,0', "expected JSON lists"),
        ('7,load,"[""pear""]",1,98,20,"[""pear"", ""nowhere""]",1,1,0', "no descriptions"),
    ],
)
def test_a_bad_game_is_named_or_left_out(tmp_path, caplog, line, named):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "swow.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=named):
        WinogavilDataModule(root=str(tmp_path), splits=["swow"]).setup()
    data = WinogavilDataModule(root=str(tmp_path), splits=["swow"], strict=False)
    data.setup()
    assert len(data.questions) == 60
    assert named in caplog.text


def test_a_subset_has_whole_groups():
    data = winogavil(max_groups=5, subset_seed=3)
    assert len({q.group for q in data.questions}) == 5
    assert data.questions == winogavil(max_groups=5, subset_seed=3).questions
    everything = winogavil().questions
    groups = {q.group for q in data.questions}
    assert len(data.questions) == sum(q.group in groups for q in everything)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"splits": ["7"]}, "splits"),
        ({"batch_size": 0}, "batch_size must be 1"),
        ({"max_groups": 0}, "max_groups must be 1"),
        ({"num_workers": -1}, "num_workers must be 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        winogavil(**settings)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*game_5_6\.csv"):
        WinogavilDataModule(root=str(tmp_path)).setup()


def test_scene_questions_have_one_right_option():
    data = SceneReasoningDataModule(ObjectScenes.caid(seed=0), num_scenes=40)
    data.setup()
    assert len(data.questions) == 160
    right = np.bincount([q.answers[0] for q in data.questions], minlength=4)
    assert right.min() > 20
    for question in data.questions:
        assert len(set(question.options)) == 4
        scene = data.scenes.scene("test", int(question.id), data.scenes.sizes[int(question.id) % 2])
        answer = question.options[question.answers[0]]
        words = question.text.rstrip("?").split()
        (item,) = [o for o in scene.objects if {o.kind, o.colour} & set(words)]
        if question.set == "scenes_what":
            assert answer == item.kind
        elif question.set == "scenes_colour":
            assert answer == item.colour
        else:
            vertical = "top" if item.centre[1] < 32 else "bottom"
            assert answer == f"{vertical} {'left' if item.centre[0] < 32 else 'right'}"
    item = data.pool()[0]
    assert item.pictures[0].size == (64, 64)
    with pytest.raises(ValueError, match="expected shapes"):
        SceneReasoningDataModule(ObjectScenes())


def test_a_hash_tells_data_apart():
    hashes = [winogavil(splits=[s]).run_info()["data_hash"] for s in ("swow", "5_6")]
    assert hashes[0] != hashes[1]
    assert json.dumps(hashes)
