"""POPE's files and made scenes as batches: what is read, what is refused, what ranks get."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from tenfold.datamodules.scenes import ObjectScenes
from tenfold.datamodules.scenes.files import write_pope
from tenfold.datamodules.scenes.tiny_pope import QUESTION_SETS
from tenfold.datamodules.visual_questions import PopeDataModule, TinyPopeDataModule
from tenfold.modules.metrics.pope import PopeMetric
from torch.multiprocessing.spawn import spawn


def entries(number=4, image="a.png"):
    return [
        {"question_id": i, "image": image, "text": f"Is there a {i} in the image?", "label": label}
        for i, label in zip(range(1, number + 1), ["yes", "no"] * number, strict=False)
    ]


@pytest.fixture
def folder(tmp_path):
    """A POPE file of four lines, with two images of different sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (30, 20, 3)), ("b.png", (17, 40, 3))):
        pixels = rng.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    rows = entries()
    rows[1]["image"] = "b.png"
    rows[1]["bbox"] = [4, 0, 20, 17]
    write(tmp_path, rows)
    return tmp_path


def write(folder, rows, split="random"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"coco_pope_{split}.json").write_text("\n".join(lines) + "\n")


def pope(folder, **settings):
    module = PopeDataModule(str(folder), splits=["random"], **settings)
    module.setup()
    return module


def only_batch(module):
    (loader,) = module.test_dataloader()
    (batch,) = loader
    return batch


def test_a_batch_is_what_the_file_says(folder):
    module = pope(folder, prompt_suffix=" One word.", batch_size=8)
    batch = only_batch(module)
    assert batch["questions"][2] == "Is there a 3 in the image? One word."
    assert batch["answers"] == ["yes", "no", "yes", "no"]
    assert batch["question_ids"] == ["1", "2", "3", "4"]
    assert batch["sets"] == module.names * 4
    assert batch["categories"] == ["random"] * 4
    assert batch["image_names"] == ["a.png", "b.png", "a.png", "a.png"]
    assert [tuple(image.shape) for image in batch["images"][:2]] == [(3, 30, 20), (3, 17, 40)]
    pixels = np.asarray(Image.open(folder / "images" / "b.png"))
    assert batch["images"][1].dtype == torch.float32
    assert np.array_equal((batch["images"][1] * 255).permute(1, 2, 0).numpy(), pixels)
    assert batch["boxes"][1].tolist() == [pytest.approx([0.1, 0, 0.5, 1])]
    assert batch["boxes"][0].shape == (0, 4)


def test_lines_and_an_array_are_the_same(folder):
    rows = entries()
    write(folder, rows)
    before = pope(folder).sets[0].questions
    path = folder / "coco_pope_random.json"
    path.unlink()
    (folder / "coco").mkdir()
    seem = folder / "coco" / "coco_pope_seem_random.json"
    seem.write_text(json.dumps(rows, indent=2))
    after = pope(folder).sets[0].questions
    assert [(q.id, q.image, q.text, q.answer) for q in before] == [
        (q.id, q.image, q.text, q.answer) for q in after
    ]
    assert before[1].source == f"{path}:2"
    assert after[1].source == f"{seem}: entry 2"


@pytest.mark.parametrize(("number", "label"), [(3000, ""), (2910, "-2910")])
def test_a_set_is_named_after_its_copy_and_its_number(folder, caplog, number, label):
    write(folder, entries(number))
    with caplog.at_level(logging.WARNING):
        module = pope(folder)
    (name,) = module.names
    assert name.startswith("coco/random@")
    assert name[len("coco/random@") :][8:] == label
    assert (f"{number} questions, {number // 2} of them yes" in caplog.text) == bool(label)
    write(folder, entries(number)[::-1])  # other questions, other name
    assert pope(folder).names != [name]
    assert pope(folder, provenance="mine").names == [f"coco/random@mine{label}"]
    info = module.run_info()
    assert info["num_questions"] == {name: number}
    assert info["data_hash"] != pope(folder).run_info()["data_hash"]


BAD_LINES = [
    ('{"question_id": 1,', r"coco_pope_random\.json:3: no JSON"),
    ("7", r":3: expected an object, found int"),
    ({"question_id": 9, "text": "Is?", "label": "no"}, r":3: expected a text as 'image', only"),
    ({**entries()[0], "question_id": 9, "label": "maybe"}, r":3: expected yes or no as 'label'"),
    ({**entries()[0], "question_id": 9, "bbox": [1, 2]}, r":3: expected left, top, right, bottom"),
    ({**entries()[0], "question_id": 9, "image": "c.png"}, r":3: there is no image .*c\.png"),
    (
        {**entries()[0], "question_id": 9, "image": "s.png"},
        r":3: image s\.png has 20x5 pixels, a p",
    ),
    ({**entries()[0], "question_id": 9, "image": "t.png"}, r":3: image .*t\.png cannot be read"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_or_image_is_named_or_left_out(folder, caplog, line, message):
    Image.new("RGB", (20, 5)).save(folder / "images" / "s.png")
    (folder / "images" / "t.png").write_bytes(b"text")
    rows = entries()
    write(folder, [*rows[:2], line, *rows[2:]])
    with pytest.raises(ValueError, match=message):
        pope(folder)
    with caplog.at_level(logging.WARNING):
        module = pope(folder, strict=False)
    assert [q.id for q in module.sets[0].questions] == ["1", "2", "3", "4"]
    assert "left out 1 questions" in caplog.text


def test_a_torn_image_is_named_when_it_is_read(folder):
    image = folder / "images" / "a.png"
    image.write_bytes(image.read_bytes()[:-200])
    module = pope(folder)
    with pytest.raises(ValueError, match=r"random\.json:1: image .*a\.png cannot be read"):
        only_batch(module)


def test_what_is_missing_altogether_is_named(folder):
    with pytest.raises(ValueError, match=r"there is no .*gqa_pope_random\.json"):
        PopeDataModule(str(folder), datasets=["gqa"]).setup()
    write(folder, [entries()[0]] * 2)
    with pytest.raises(ValueError, match=r"random\.json:2: the question id '1' is that of .*:1 as"):
        pope(folder, strict=False)
    write(folder, [])
    with pytest.raises(ValueError, match="not one question that can be asked"):
        pope(folder)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        PopeDataModule(str(folder), batch_size=0)


def test_scenes_in_memory_are_those_of_the_files(tmp_path):
    scenes = ObjectScenes(seed=3)
    write_pope(scenes, tmp_path, num_images=5, size="medium")
    settings = {"splits": QUESTION_SETS, "prompt_suffix": "", "batch_size": 7}
    files = PopeDataModule(str(tmp_path), ["tinypope"], provenance="x", **settings)
    memory = TinyPopeDataModule(scenes, sizes=["medium"], num_scenes=5, **settings)
    for module in (files, memory):
        module.setup()
    assert memory.names == [f"medium/{questions}" for questions in QUESTION_SETS]
    assert [name.partition("@")[0] for name in files.names] == [
        f"tinypope/{questions}" for questions in QUESTION_SETS
    ]
    for one, other in zip(files.test_dataloader(), memory.test_dataloader(), strict=True):
        for left, right in zip(one, other, strict=True):
            for key in left.keys() - {"images", "boxes", "sets"}:
                assert left[key] == right[key]
            for key in ("images", "boxes"):
                assert all(map(torch.equal, left[key], right[key]))


def test_the_boxes_hold_what_is_asked_about():
    module = TinyPopeDataModule(sizes=["large"], splits=["random", "left"], num_scenes=8)
    module.setup()
    random, left = module.test_dataloader()
    for batch in random:
        assert [len(b) for b in batch["boxes"]] == [int(a == "yes") for a in batch["answers"]]
    for batch in left:
        for boxes, answer in zip(batch["boxes"], batch["answers"], strict=True):
            one, other = (boxes[:, 0] + boxes[:, 2]).tolist()
            assert (one < other) == (answer == "yes")


def test_the_whole_of_tiny_pope_is_as_specified():
    module = TinyPopeDataModule(sizes=["tiny"], splits=["random", "popular", "adversarial"])
    module.setup()
    for questions in module.sets:
        assert len(questions.questions) == 3000
        assert sum(q.answer == "yes" for q in questions.questions) == 1500
        assert len({q.image for q in questions.questions}) == 500
        for question in questions.questions:
            for x0, y0, x1, y1 in question.boxes:
                assert min(x1 - x0, y1 - y0) >= 8
                assert max(x1 - x0, y1 - y0) <= 20  # 10 to 16, stretched by 0.8 to 1.25
    kinds = [[o.kind for o in s.objects] for s in module.sets[0].images.scenes.values()]
    assert {len(row) for row in kinds} == {3, 4}
    assert all(len(set(row)) == len(row) for row in kinds)
    limited = TinyPopeDataModule(num_scenes=3, max_questions=4)
    limited.setup()
    assert {len(questions.questions) for questions in limited.sets} == {4}
    with pytest.raises(ValueError, match=r"set num_objects to \[3, 4\]"):
        TinyPopeDataModule(ObjectScenes(num_objects=(2, 3))).setup()


class Asking(LightningModule):
    """Answers what is right, and remembers what it was asked."""

    def __init__(self, names):
        super().__init__()
        self.names, self.asked, self.metric = names, [], PopeMetric("pope")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        assert set(batch["sets"]) == {self.names[dataloader_idx]}
        self.asked += batch["question_ids"]
        self.metric.update(batch["sets"], batch["question_ids"], batch["answers"], batch["answers"])

    def on_test_epoch_end(self):
        self.log_dict({f"test/{name}": value for name, value in self.metric.compute().items()})

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return [{"id": identity} for identity in batch["question_ids"]]


def test_a_trainer_asks_every_set_in_turn(tmp_path):
    module = TinyPopeDataModule(
        sizes=["tiny", "large"],
        splits=["random", "left"],
        num_scenes=3,
        batch_size=4,
        num_workers=1,
    )
    module.setup()
    asking = Asking(module.names)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.test(asking, datamodule=module, verbose=False)
    found = trainer.callback_metrics
    expected = [q.id for questions in module.sets for q in questions.questions]
    assert asking.asked == expected
    assert found["test/large/left/accuracy"] == found["test/accuracy"] == 1
    assert found["test/tiny/random/yes_ratio"] == 0.5
    batches = trainer.predict(asking, datamodule=module)
    ids = [row["id"] for loader in batches for batch in loader for row in batch]
    assert ids == expected


def _rank(rank: int, folder: str):
    file = Path(folder) / "rendezvous"
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    for number in (7, 8):
        module = TinyPopeDataModule(
            sizes=["tiny"], splits=["random"], num_scenes=2, batch_size=2, max_questions=number
        )
        module.setup()
        batches = list(module.test_dataloader()[0])
        mine = [identity for batch in batches for identity in batch["question_ids"]]
        found = [None, None]
        torch.distributed.all_gather_object(found, (len(batches), mine))
        assert found[0][0] == found[1][0]  # else a rank would wait for the other
        assert sorted(found[0][1] + found[1][1]) == sorted(q.id for q in module.sets[0].questions)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_no_question_is_asked_twice_on_two_ranks(tmp_path):
    spawn(_rank, (str(tmp_path),), nprocs=2)
