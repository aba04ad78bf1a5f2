"""Winoground, WHOOPS!, VCR and the caption contest, from files in their formats."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tenfold.datamodules.scenes import ObjectScenes
from tenfold.datamodules.scenes.files import write_winoground
from tenfold.datamodules.visual_reasoning import (
    NewYorkerDataModule,
    VCRDataModule,
    WhoopsDataModule,
    WinogroundDataModule,
)
from tenfold.datamodules.visual_reasoning.vcr import in_words
from tenfold.modules.visual_reasoning import ReasoningScores, row_of


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, format="png")
    return buffer.getvalue()


def answered(questions, is_right):
    """Scores of answers that are right where `is_right` says so."""
    scores = ReasoningScores()
    names = "ABCDE"
    scores.update(
        [
            row_of(q, raw=f"Answer: {names[(q.answers[0] + (not is_right(q))) % len(q.options)]}")
            for q in questions
        ]
    )
    return {name: score.value for name, score in scores.compute().items()}


@pytest.fixture
def winoground(tmp_path):
    write_winoground(ObjectScenes.caid(seed=0), tmp_path, 6)
    folder = next(path for path in (tmp_path / "images", tmp_path) if any(path.glob("*.png")))
    tags = tmp_path / "tags.json"
    tags.write_text(json.dumps({"0": ["Visually Difficult"], "3": ["Visually Difficult"]}))
    data = WinogroundDataModule(root=str(tmp_path), image_dir=str(folder), tags=str(tags))
    data.setup()
    return data


def test_winoground_asks_four_questions_and_counts_them_as_it_does(winoground):
    questions = winoground.questions
    assert len(questions) == 24
    assert Counter(q.kind for q in questions) == {"text": 12, "image": 12}
    first = [q for q in questions if q.group == "0"]
    for question in first:
        k = int(question.id[-1])
        if question.kind == "text":
            assert question.images == (f"ex_0_img_{k}",)
            right = question.options[question.answers[0]]
        else:
            right = question.images[question.option_images[question.answers[0]]]
            assert right == f"ex_0_img_{k}"
            assert question.extra["query"] in question.text
    assert answered(questions, lambda q: True)["winoground/group"] == 1
    half = answered(questions, lambda q: q.kind == "text")
    assert (half["winoground/text"], half["winoground/image"], half["winoground/group"]) == (
        1,
        0,
        0,
    )
    # One caption for both images is right half the time and worth nothing.
    one = answered(questions, lambda q: q.id.endswith("text_0") or q.kind == "image")
    assert (one["winoground/text"], one["winoground/image"], one["winoground/group"]) == (0, 1, 0)
    scores = ReasoningScores()
    scores.update([row_of(q, raw="") for q in questions])
    found = scores.compute()
    assert (found["winoground/text"].chance, found["winoground/group"].chance) == (0.25, 0.0625)
    assert found["winoground/tag Visually Difficult=yes/group"].n == 2
    assert winoground.pool()[0].pictures[0].size == (64, 64)


def test_whoops_has_references_for_a_judge(tmp_path):
    rows = [
        {
            "image_id": "a1",
            "designer_explanation": "A snowman melts in the sun.",
            "crowd_explanations": json.dumps(["It is hot.", "Snow, in a desert"]),
            "commonsense_category": "Physics",
        },
        {"image_id": "a2", "designer_explanation": "", "crowd_explanations": "[]"},
    ]
    with (tmp_path / "whoops_dataset.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = tmp_path / "whoops_images"
    images.mkdir()
    (images / "a1.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"whoops_dataset.csv:3: no image or no explanation"):
        WhoopsDataModule(root=str(tmp_path)).setup()
    data = WhoopsDataModule(root=str(tmp_path), num_references=1, strict=False)
    data.setup()
    (question,) = data.questions
    assert question.is_open
    assert question.references == ("A snowman melts in the sun.", "It is hot.")
    assert question.categories == {"category": "Physics"}
    assert data.pool()[0].pictures[0].size == (6, 4)


ANNOTATION = {
    "objects": ["person", "dog", "person", "car", "person"],
    "img_fn": "movie/still@0.jpg",
    "question": ["Why", "is", [0, 4], "looking", "at", [1], "?"],
    "answer_choices": [
        ["They", "do", "n't", "like", [1], "."],
        [[0], "'s", "hungry", ",", "it", "seems", "."],
        ["It", "barks", "."],
        ["No", "reason", "."],
    ],
    "answer_label": 2,
    "rationale_choices": [["Its", "mouth", "is", "open", "."], ["a"], ["b"], ["c"]],
    "rationale_label": 0,
    "annot_id": "val-0",
}


def write_vcr(folder: Path, number=9):
    lines = [ANNOTATION | {"annot_id": f"val-{k}", "answer_label": k % 4} for k in range(number)]
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = [line | {"annot_id": f"train-{k}"} for k, line in enumerate(lines)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in train))
    (folder / "vcr1images/movie").mkdir(parents=True)
    (folder / "vcr1images/movie/still@0.jpg").write_bytes(png())


def test_vcr_in_words():
    objects = ANNOTATION["objects"]
    assert (
        in_words(ANNOTATION["question"], objects) == "Why is Person1 and Person5 looking at Dog2?"
    )
    assert in_words(ANNOTATION["answer_choices"][0], objects) == "They don't like Dog2."
    assert in_words(ANNOTATION["answer_choices"][1], objects, 0) == "Person0's hungry, it seems."
    assert in_words([[0, 1, 3]], objects) == "Person1, Dog2 and Car4"
    with pytest.raises(IndexError, match="object 7 of 5"):
        in_words([[7]], objects)


def test_vcr_asks_for_answer_and_reason(tmp_path):
    write_vcr(tmp_path)
    data = VCRDataModule(root=str(tmp_path))
    data.setup()
    assert len(data.questions) == 18
    reason = next(q for q in data.questions if q.id == "val-2/qar")
    assert "The right answer is: It barks.\nWhy is it right?" in reason.text
    assert reason.options[reason.answers[0]] == "Its mouth is open."
    found = answered(data.questions, lambda q: q.kind == "qa" or q.group == "val-0")
    assert (found["vcr/q_a"], found["vcr/qa_r"]) == (1, pytest.approx(1 / 9))
    assert found["vcr/q_ar"] == pytest.approx(1 / 9)
    some = VCRDataModule(root=str(tmp_path), max_groups=4, subset_seed=0)
    some.setup()
    assert len(some.questions) == 8
    train = VCRDataModule(root=str(tmp_path), pool_split="train", pool_size=5)
    train.setup()
    pool = train.pool()
    assert len(pool) == 5
    assert {pool[k].question.id.split("-")[0] for k in range(5)} == {"train"}
    assert [pool[k].question.id for k in range(5)] == [
        train.pool()[k].question.id for k in range(5)
    ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answer_label": "x"}, "no annotation of VCR"),
        ({"question": [[9]]}, "object 9 of 5"),
        ({"img_fn": None}, "'img_fn'"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path, changed, named):
    write_vcr(tmp_path)
    (tmp_path / "val.jsonl").write_text(json.dumps(ANNOTATION | changed) + "\n")
    with pytest.raises(ValueError, match=rf"val.jsonl:1: .*{named}"):
        VCRDataModule(root=str(tmp_path)).setup()


def hub_rows(task):
    rows = []
    for k in range(4):
        row = {
            "instance_id": f"id{k}",
            "contest_number": 500 + k // 2,
            "image": {"bytes": png("blue"), "path": None},
            "image_location": "a bar",
            "image_description": "Two priests walk in.",
            "image_uncanny_description": "It is like a joke.",
            "caption_choices": [f"caption {j}" for j in range(5 if task == "matching" else 2)],
            "label": "CA"[k % 2] if task == "matching" else "BA"[k % 2],
        }
        if task == "ranking":
            row["winner_source"] = ["crowd_winner", "official_winner"][k % 2]
        rows.append(row)
    return rows


def test_the_caption_contest_as_the_hub_has_it(tmp_path):
    for task in ("matching", "ranking"):
        (tmp_path / task).mkdir()
        table = pa.Table.from_pylist(hub_rows(task))
        parquet.write_table(table, tmp_path / task / "test-00000-of-00001.parquet")
    data = NewYorkerDataModule(root=str(tmp_path), shuffle_options=False)
    data.setup()
    first = data.questions[0]
    assert first.captions == ("Place: a bar Two priests walk in. What is odd: It is like a joke.",)
    assert (first.answers, first.group, len(first.options)) == ((2,), "500", 5)
    assert data.item(first).pictures == [None]
    found = answered(data.questions, lambda q: q.id in ("id0", "id2"))
    assert found["new_yorker_matching/accuracy"] == 0.5
    assert found["new_yorker_ranking/crowd_accuracy"] == 1
    assert found["new_yorker_ranking/new_yorker_accuracy"] == 0
    seen = NewYorkerDataModule(root=str(tmp_path), pixels=True)
    seen.setup()
    assert seen.pool()[0].pictures[0].getpixel((0, 0)) == (0, 0, 255)


def test_the_caption_contest_as_its_repository_has_it(tmp_path):
    captions = [{"clean_caption": f"caption {j}", "source": "x"} for j in range(5)]
    matching = [{"choices": captions, "contest_number": 7, "correct_idx": 3}]
    ranking = [
        {"A": "a", "B": "b", "label": "B", "winner_source": "crowd_winner", "contest_number": 7}
    ]
    for name, rows in (("contest_matching", matching), ("quality_ranking", ranking)):
        path = tmp_path / f"{name}_split=1_cleaned.json"
        path.write_text(json.dumps({"train": [], "val": rows, "test": rows}))
    (tmp_path / "7.jpg").write_bytes(png())
    settings = {"folds": [1], "pixels": True, "image_dir": str(tmp_path)}
    data = NewYorkerDataModule(root=str(tmp_path), **settings, part="validation")
    data.setup()
    one, two = data.questions
    assert one.options[one.answers[0]] == "caption 3"
    assert two.options[two.answers[0]] == "b"
    assert data.pool()[1].pictures[0].size == (6, 4)
    with pytest.raises(ValueError, match="no descriptions of its images"):
        NewYorkerDataModule(root=str(tmp_path), folds=[1]).setup()
    with pytest.raises(ValueError, match=r"there is no .*matching_2/test-\*.parquet"):
        NewYorkerDataModule(root=str(tmp_path), folds=[2]).setup()
    with pytest.raises(ValueError, match="folds"):
        NewYorkerDataModule(root=str(tmp_path), folds=[5])
