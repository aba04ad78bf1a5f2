"""MME, LLaVA-Bench, CHAIR's captions, built POPE files: small copies of their real layouts."""

import json
import logging

import pytest
from PIL import Image
from tenfold.datamodules.visual_questions import (
    ChairDataModule,
    LlavaBenchDataModule,
    MmeDataModule,
    PopeDataModule,
    build_pope,
)


def image(path, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "blue").save(path)


def lines(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def batch_of(module):
    module.setup()
    (loader,) = module.test_dataloader()
    (batch,) = loader
    return batch


# MME


@pytest.fixture
def mme(tmp_path):
    """One category in each layout; the second text has an empty line and a long suffix."""
    asked = " Please answer yes or no."
    nested = tmp_path / "mme" / "existence"
    image(nested / "images" / "0007.jpg")
    (nested / "questions_answers_YN").mkdir()
    text = f"Is there a cat?{asked}\tYes\nIs there a dog?{asked}\tNo\n"
    (nested / "questions_answers_YN" / "0007.txt").write_text(text)
    flat = tmp_path / "mme" / "code_reasoning"
    image(flat / "0020.png")
    (flat / "0020.txt").write_text(f"Is it C?{asked}\tno\n\nIs it Python?{asked}\tyes\n")
    return tmp_path / "mme"


def test_mme_is_read_in_both_layouts(mme):
    batch = batch_of(MmeDataModule(str(mme), prompt_suffix=" Now."))
    assert batch["questions"] == [
        f"{question}? Please answer yes or no. Now."
        for question in ("Is it C", "Is it Python", "Is there a cat", "Is there a dog")
    ]
    assert batch["answers"] == ["no", "yes", "yes", "no"]
    assert batch["categories"] == ["code_reasoning"] * 2 + ["existence"] * 2
    images = ["code_reasoning/0020.png", "existence/0007.jpg"]
    assert batch["image_names"] == [images[0]] * 2 + [images[1]] * 2
    assert batch["question_ids"] == [f"{name}#{k}" for name in images for k in (1, 2)]
    assert {tuple(one.shape) for one in batch["images"]} == {(3, 16, 20)}
    only = MmeDataModule(str(mme), categories=["existence"])
    assert batch_of(only)["categories"] == ["existence"] * 2
    assert only.names == ["mme/test"]


def test_mme_questions_of_a_file_get_the_answers_of_the_folders(mme, tmp_path):
    suffix = "\nAnswer the question using a single word or phrase."
    rows = [
        ("existence", "0007.jpg", "Is there a dog?  Please answer yes or no."),
        ("code_reasoning", "0020.png", "Is it Python?"),
        ("existence", "0007.jpg", "Is there a cat? Please answer yes or no."),
    ]
    entries = [
        {"question_id": f"{c}/{i}", "image": f"{c}/{i}", "text": t + suffix, "category": c}
        for c, i, t in rows
    ]
    lines(tmp_path / "llava_mme.jsonl", entries)
    file = str(tmp_path / "llava_mme.jsonl")
    batch = batch_of(MmeDataModule(str(mme), file))
    assert batch["answers"] == ["no", "yes", "yes"]
    assert batch["questions"] == [text + suffix for _, _, text in rows]  # not twice
    names = ["existence/0007.jpg#1", "code_reasoning/0020.png#1", "existence/0007.jpg#2"]
    assert batch["question_ids"] == names
    lines(tmp_path / "llava_mme.jsonl", [entries[0], {**entries[1], "text": "Is it Perl?"}])
    with pytest.raises(ValueError, match=r"llava_mme\.jsonl:2: no text of category code_reasoning"):
        MmeDataModule(str(mme), file).setup()
    lines(tmp_path / "llava_mme.jsonl", [{**entries[1], "text": "Is it Perl?", "label": "No"}])
    assert batch_of(MmeDataModule(str(mme), file))["answers"] == ["no"]


def test_what_is_wrong_with_mme_is_named(mme, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"no category of MME \(expected <category>/questions"):
        MmeDataModule(str(tmp_path / "none")).setup()
    with pytest.raises(ValueError, match=r"categories: \['posters'\] not among code_reasoning, ex"):
        MmeDataModule(str(mme), categories=["posters"]).setup()
    text = mme / "code_reasoning" / "0020.txt"
    text.write_text("Is it C?\tno\nIs it Python? yes\n")
    with pytest.raises(ValueError, match=r"0020\.txt:2: expected question, tab, Yes or No"):
        MmeDataModule(str(mme)).setup()
    with caplog.at_level(logging.WARNING):
        assert len(batch_of(MmeDataModule(str(mme), strict=False))["answers"]) == 3
    assert "left out 1 questions" in caplog.text
    text.write_text("Is it C?\tno\n")
    (mme / "existence" / "images" / "0007.jpg").unlink()
    with pytest.raises(ValueError, match=r"0007\.txt:1: there is no image .*0007\.jpg"):
        MmeDataModule(str(mme), categories=["existence"]).setup()


# LLaVA-Bench


@pytest.fixture
def bench(tmp_path):
    image(tmp_path / "val2014" / "COCO_val2014_000000441147.jpg")
    name = "000000441147.jpg"
    kinds = ["conv", "detail", "complex"]
    questions = [
        {"question_id": i, "image": name, "text": f"Q{i}?", "category": kind}
        for i, kind in enumerate(kinds)
    ]
    lines(tmp_path / "qa90_questions.jsonl", questions)
    instances = [{"category": "suitcase", "bbox": [0.1, 0.2, 0.3, 0.4]}]
    context = {"id": "441147", "image": name, "captions": ["Two.", "Old."], "instances": instances}
    lines(tmp_path / "caps_boxes_coco2014_val_80.jsonl", [context])
    answers = [{"question_id": i, "text": f"Reference {i}."} for i in range(3)]
    lines(tmp_path / "qa90_gpt4_answer.jsonl", answers)
    return tmp_path


def test_llava_bench_brings_what_a_judge_is_shown(bench):
    batch = batch_of(LlavaBenchDataModule(str(bench), str(bench / "val2014")))
    assert batch["questions"] == ["Q0?", "Q1?", "Q2?"]
    assert batch["categories"] == ["conv", "detail", "complex"]
    assert batch["extras"][1] == {
        "context": "Two.\nOld.\n\nsuitcase: [0.1, 0.2, 0.3, 0.4]",
        "reference": "Reference 1.",
    }
    assert batch["answers"] == [""] * 3
    assert batch["images"][0].shape == (3, 16, 20)


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        (
            "qa90_gpt4_answer.jsonl",
            [{"question_id": 0, "text": "x"}],
            r"questions\.jsonl:2: .*gpt4",
        ),
        ("qa90_gpt4_answer.jsonl", ["{"], r"qa90_gpt4_answer\.jsonl:1: no JSON"),
        ("caps_boxes_coco2014_val_80.jsonl", [{"image": "a"}], r":1: expected lists as 'captions'"),
        (
            "caps_boxes_coco2014_val_80.jsonl",
            [{"image": "a", "captions": [], "instances": [{"bbox": []}]}],
            r":1: an instance has no 'category'",
        ),
    ],
)
def test_what_is_wrong_with_llava_bench_is_named(bench, file, rows, message):
    lines(bench / file, rows)
    with pytest.raises(ValueError, match=message):
        LlavaBenchDataModule(str(bench), str(bench / "val2014")).setup()


# CHAIR


@pytest.fixture
def coco(tmp_path):
    numbers = range(1, 7)
    files = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in numbers]
    for file in files:
        image(tmp_path / "val2014" / file["file_name"])
    captions = [{"image_id": i, "caption": f"Caption {k} of {i}"} for i in numbers for k in (1, 2)]
    instances = [{"image_id": i, "category_id": c} for i in (1, 2) for c in (18, 1, 18)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    found = {"images": files, "annotations": captions}
    (tmp_path / "captions.json").write_text(json.dumps(found))
    (tmp_path / "instances.json").write_text(
        json.dumps({"annotations": instances, "categories": categories})
    )
    return tmp_path


def chair(coco, **settings):
    files = (coco / "instances.json", coco / "captions.json", coco / "val2014")
    return ChairDataModule(*map(str, files), **settings)


def test_chair_brings_objects_and_references(coco):
    batch = batch_of(chair(coco))
    assert batch["question_ids"] == ["1", "2", "3", "4", "5", "6"]
    assert batch["questions"][0] == "Please describe this image in detail."
    assert batch["extras"][1] == {
        "objects": ["dog", "person"],
        "references": ["Caption 1 of 2", "Caption 2 of 2"],
    }
    assert batch["extras"][4]["objects"] == []
    drawn = [
        tuple(batch_of(chair(coco, num_images=3, seed=seed))["question_ids"]) for seed in range(9)
    ]
    assert len(set(drawn)) > 1  # by seed
    assert drawn[0] == tuple(batch_of(chair(coco, num_images=3))["question_ids"])
    assert all(len(set(ids)) == 3 for ids in drawn)


def test_annotations_that_are_not_cocos_are_named(coco):
    with pytest.raises(ValueError, match="num_images must be 1 or more, got 0"):
        chair(coco, num_images=0)
    (coco / "instances.json").write_text('{"annotations": []}')
    with pytest.raises(
        ValueError, match=r"instances\.json: not COCO's annotations: no 'categories'"
    ):
        chair(coco).setup()
    (coco / "captions.json").write_text("[")
    with pytest.raises(ValueError, match=r"annotations .*captions\.json cannot be read"):
        chair(coco).setup()


# Built POPE files


def test_built_files_are_read_as_popes(tmp_path):
    kinds = [["dog", "cat", "orange"], ["dog", "cat", "bus", "hourglass"], ["dog", "cup"]]
    kinds += [["umbrella", "unicorn", "cup"], ["dog", "bus", "cup"]]
    rows = [{"image": f"{i}.png", "objects": names} for i, names in enumerate(kinds)]
    lines(tmp_path / "objects.jsonl", rows)
    for row in rows:
        image(tmp_path / "images" / row["image"])
    paths = build_pope(tmp_path / "objects.jsonl", tmp_path, "mine", num_images=3)
    assert [path.name for path in paths] == [
        f"mine_pope_{split}.json" for split in ("random", "popular", "adversarial")
    ]
    module = PopeDataModule(str(tmp_path), ["mine"])
    module.setup()
    for questions in module.sets:
        asked = questions.questions
        assert len(asked) == 18
        assert {q.image for q in asked} == {"0.png", "1.png", "3.png"}  # 2 has two objects only
        texts = {q.text for q in asked if q.answer == "yes"}
        assert {"Is there an umbrella in the image?", "Is there a unicorn in the image?"} <= texts
        for question in asked:
            noun = question.text.split()[3]
            assert (noun in kinds[int(question.image[0])]) == (question.answer == "yes")
    popular = [q.text.split()[3] for q in module.sets[1].questions if q.answer == "no"]
    # On all five images: dog 4, cup 3, cat 2, bus 2, the others 1; of equals the first by name.
    expected = "cup bus hourglass", "cup orange umbrella", "dog bus cat"
    assert " ".join(popular) == " ".join(expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a", "objects": "cat"}], r"a\.jsonl:1: expected a list of texts as 'objects'"),
        ([{"image": "a", "objects": []}] * 2, r"a\.jsonl:2: the image 'a' is annotated twice"),
        ([{"image": "a", "objects": ["x", "y", "x"]}], "no image has 3 different objects"),
        (["["], r"a\.jsonl:1: no JSON array"),
        ([{"image": "a", "objects": ["x", "y", "z"]}], "only 0 kinds of the data set"),
    ],
)
def test_annotations_that_cannot_be_asked_about_are_named(tmp_path, rows, message):
    lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        build_pope(tmp_path / "a.jsonl", tmp_path, "mine")
