"""What is drawn is what is asked about: scenes, questions, causes and effects, batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.datamodules.scenes import (
    QUESTION_KINDS,
    CauseEffectScenes,
    ObjectScenes,
    SceneDataModule,
)
from tenfold.datamodules.scenes.cause_effect import CATEGORIES, STATEMENTS
from tenfold.datamodules.scenes.objects import SIZES, glyphs_of
from tenfold.datamodules.scenes.questions import ask, describe, with_article
from tenfold.datamodules.scenes.scene import COLOURS, DARK, digit_images, digit_labels, place

SPLITS = ("train", "val", "test")


def overlap(one, two):
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


# Scenes


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["digits", "shapes"]),
    st.integers(16, 130),
    st.integers(1, 3).flatmap(lambda low: st.tuples(st.just(low), st.integers(low, 4))),
    st.sampled_from(list(SIZES)),
    st.integers(0, 2**40),
)
def test_objects_do_not_overlap_and_stay_inside(objects, canvas, number, size, index):
    scenes = ObjectScenes(objects, canvas, number, sizes=[size])
    scene = scenes.scene("train", index)
    boxes = [item.box for item in scene.objects]
    assert number[0] <= len(boxes) <= number[1]
    for i, box in enumerate(boxes):
        assert 0 <= box[0] < box[2] <= canvas
        assert 0 <= box[1] < box[3] <= canvas
        assert not any(overlap(box, other) for other in boxes[:i])
    assert len({item.kind for item in scene.objects}) == len(boxes)
    assert len({item.colour for item in scene.objects}) == len(boxes)


def test_an_example_is_a_function_of_seed_split_and_index():
    make = [ObjectScenes(questions=QUESTION_KINDS, background="photo"), CauseEffectScenes()]
    for scenes in make:
        again = type(scenes)(**scenes.settings())
        for _ in range(3):
            again.example("train", 7)  # what was made before does not matter
        for split in SPLITS:
            one, two = scenes.example(split, 12), again.example(split, 12)
            assert np.array_equal(one.images, two.images)
            assert one.questions == two.questions
            assert not np.array_equal(one.images, scenes.example(split, 31).images)
        other = type(scenes)(**{**scenes.settings(), "seed": 5})
        assert not np.array_equal(one.images, other.example("test", 12).images)


def test_a_box_holds_its_digit_and_nothing_else_is_drawn():
    scenes = ObjectScenes(sizes=["large"], stretch=(1, 1))
    for index in range(20):
        scene = scenes.scene("test", index)
        image = scene.render()
        empty = np.ones(image.shape[1:], dtype=bool)
        for item in scene.objects:
            left, top, right, bottom = item.box
            empty[top:bottom, left:right] = False
            tile = image[:, top:bottom, left:right]
            colour = np.array(COLOURS[item.colour])[:, None, None]
            ink = ((tile - colour) / (1 - colour)).mean(axis=0)
            assert ink.min() > -1e-5
            # Reduced to 8 x 8 again it is the handwriting, as torch reduces.
            small = torch.nn.functional.interpolate(
                torch.from_numpy(ink)[None, None], (8, 8), mode="bilinear", antialias=True
            )
            drawn = np.corrcoef(small.numpy().ravel(), digit_images()[item.glyph].ravel())[0, 1]
            assert drawn > 0.9
            assert str(digit_labels()[item.glyph]) == item.kind
        assert np.allclose(image[:, empty], DARK)


def test_no_handwriting_is_in_two_splits():
    rows = {split: {g for d in range(10) for g in glyphs_of(split, d)} for split in SPLITS}
    assert len(rows["test"]) == 450
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 1797


def test_skewed_scenes_are_skewed_and_paired():
    def share(pairing, holds):
        scenes = ObjectScenes(pairing=pairing, num_objects=(3, 3))
        made = [[o.kind for o in scenes.scene("train", i).objects] for i in range(700)]
        return np.mean([holds(int(kinds[0]), int(kinds[1])) for kinds in made])

    weights = 1 / np.arange(1, 11)
    assert share(0.4, lambda a, b: a == 0) == pytest.approx(1 / weights.sum(), abs=0.06)
    by_chance = share(0.0, lambda a, b: b == (a + 1) % 10)
    paired = share(0.4, lambda a, b: b == (a + 1) % 10)
    assert paired == pytest.approx(0.4 + 0.6 * by_chance, abs=0.08)


def test_every_free_position_is_equally_likely():
    rng = np.random.default_rng(0)
    counts = {}
    for _ in range(2000):
        box = place(rng, 6, (2, 2), [(0, 0, 3, 3)])
        counts[box] = counts.get(box, 0) + 1
    free = [(x, y) for x in range(5) for y in range(5) if x >= 3 or y >= 3]
    assert {(box[0], box[1]) for box in counts} == set(free)
    assert max(counts.values()) < 2 * min(counts.values())
    assert place(rng, 4, (4, 4), [(1, 1, 2, 2)]) is None


# Questions


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["digits", "shapes"]), st.integers(0, 10**6))
def test_answers_are_true(objects, index):
    scenes = ObjectScenes(objects, questions=QUESTION_KINDS)
    scene = scenes.scene("train", index)
    by_colour = {item.colour: item for item in scene.objects}
    kinds = {item.kind for item in scene.objects}
    rng = np.random.default_rng(index)
    for kind in QUESTION_KINDS:
        question = ask(scene, kind, rng, scenes.noun, scenes.kinds)
        words = question.text.rstrip("?.").split()
        answer = question.answer
        spaced = f"{question.text} {answer}".lower().replace("?", " ?").replace(".", " .")
        assert set(spaced.split()) <= set(scenes.vocabulary)
        if kind == "what":
            assert by_colour[words[3]].kind == answer
        elif kind == "colour":
            assert by_colour[answer].kind == words[-1]
        elif kind == "is":
            assert (by_colour[words[2]].kind == words[-1]) == (answer == "yes")
        elif kind == "exists":
            assert (words[3] in kinds) == (answer == "yes")
        elif kind in ("left", "above"):
            first, second = by_colour[words[2]], by_colour[words[-2]]
            axis = int(kind == "above")
            assert (first.centre[axis] < second.centre[axis]) == (answer == "yes")
        elif kind == "larger":
            first, second = by_colour[words[2]], by_colour[words[-2]]
            assert (first.area > second.area) == (answer == "yes")
            ratios = [a.area / b.area for a in scene.objects for b in scene.objects]
            if max(ratios) > 1.26:
                assert abs(np.log(first.area / second.area)) > np.log(1.24)
        elif kind == "where":
            x, y = by_colour[words[3]].centre
            assert ("left" in answer) == (x < scene.canvas / 2)
            assert ("top" in answer) == (y < scene.canvas / 2)
        elif kind == "count":
            assert int(answer) == len(scene.objects)
        else:
            assert all(f"{item.colour} {item.kind}" in answer for item in scene.objects)


def test_yes_and_no_are_even_and_each_kind_is_asked_once_in_evaluation():
    scenes = ObjectScenes(questions=["is", "exists", "what", "is"])
    asked = [scenes.example("val", i).questions for i in range(600)]
    assert [q.kind for (q,) in asked[:6]] == ["is", "exists", "what"] * 2
    for kind in ("is", "exists"):
        answers = [q.answer == "yes" for (q,) in asked if q.kind == kind]
        assert np.mean(answers) == pytest.approx(0.5, abs=0.12)
    train = [q.kind for i in range(200) for q in scenes.example("train", i).questions]
    assert len(train) == 1200
    assert train.count("is") / 1200 == pytest.approx(0.5, abs=0.05)  # named twice
    groups = [scenes.example("val", i).group for i in range(0, 18, 3)]
    assert groups == ["tiny", "medium", "large"] * 2


def test_articles_are_those_of_english():
    words = ["7", "8", "orange", "circle", "umbrella", "apple"]
    assert [with_article(word) for word in words] == [
        *("a 7", "an 8", "an orange"),
        *("a circle", "an umbrella", "an apple"),
    ]
    # By sound, not by letter; all else that begins with "u" or "h" as it is written.
    for noun in ("unicorn", "uniform", "utensil", "USB stick", "ukulele", "one-way sign", "house"):
        assert with_article(noun) == f"a {noun}"
    for noun in ("hourglass", "heirloom", "11", "18", "80", "uninteresting thing", "urn", "usher"):
        assert with_article(noun) == f"an {noun}"
    assert with_article("cat and a bat") == "a cat and a bat"  # the rest is left as it is


def test_a_caption_can_leave_objects_out():
    scene = ObjectScenes.caid().scene("test", 0)
    whole = describe(scene)
    assert whole.count(",") == 2
    assert whole.startswith(describe(scene, 1).removesuffix(" ."))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_objects": (3, 5)}, "only 4 colours"),
        ({"num_objects": (2, 1)}, "1 <= least <= most"),
        ({"sizes": ["huge"]}, r"sizes: \['huge'\], expected"),
        ({"colours": ["mauve"] * 4}, r"colours: \['mauve'\]"),
        ({"background": "sea"}, "background: 'sea'"),
        ({"questions": ["why"]}, r"questions: \['why'\], expected some of"),
        ({"questions": []}, "questions: none"),
        ({"questions_per_image": 0}, "questions_per_image: 0"),
        ({"canvas": 8}, "canvas: 8 pixels"),
        ({"stretch": (0, 1)}, "stretch"),
        ({"pairing": 2}, "pairing: 2"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_impossible_scenes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectScenes(**settings)


def test_relations_need_two_objects():
    scenes = ObjectScenes(num_objects=(1, 1), questions=["left"])
    with pytest.raises(ValueError, match="'left' compares two objects"):
        scenes.example("train", 0)


# Causes and effects


def test_an_effect_keeps_the_looks_of_its_cause():
    for index in range(30):
        group = CauseEffectScenes().group("train", index)
        assert len({id(pair.statement) for pair in group}) == 1
        assert len({pair.looks for pair in group}) == 4
        for pair in group:
            before, after = pair.cause.objects[0], pair.effect.objects[0]
            assert (before.colour, before.accent, before.kind) == (
                *(after.colour, after.accent, after.kind),
            )
            assert pair.cause.background == pair.effect.background == pair.looks.background
            assert pair.cause.style == pair.effect.style
            assert pair.cause.objects[1].parts != pair.effect.objects[1].parts


@pytest.mark.parametrize(
    ("siblings", "looks", "statements"), [("statement", 1, 4), ("nothing", 1, 1)]
)
def test_controls_leave_one_cue_or_none(siblings, looks, statements):
    for index in range(30):
        group = CauseEffectScenes(siblings).group("test", index)
        if siblings == "nothing":  # a comic among photographs would be found by its style
            assert len({pair.cause.style for pair in group}) == 1
        assert len({pair.looks for pair in group}) == looks
        assert len({id(pair.statement) for pair in group}) == statements


def test_looks_of_the_test_are_unseen():
    scenes = CauseEffectScenes()
    looks = {split: set(scenes.looks_of(split)) for split in SPLITS}
    assert [len(looks[split]) for split in SPLITS] == [360, 40, 112]
    assert len(set.union(*looks.values())) == 512
    used = {pair.looks for i in range(50) for pair in scenes.group("test", i)}
    assert used <= looks["test"]


def test_the_right_effect_is_found_by_its_colours_and_is_anywhere():
    """A program that compares the background of the cause with those of the effects."""
    scenes = CauseEffectScenes(canvas=32)
    found, letters = [], []
    for index in range(120):
        example = scenes.example("test", index)
        corners = example.images[:, :, -3:, -3:].mean(axis=(2, 3))
        corners /= corners.sum(axis=1, keepdims=True)  # whatever the light
        distances = np.abs(corners[1:] - corners[:1]).sum(axis=1)
        found.append("ABCD"[int(distances.argmin())] == example.questions[0].answer)
        letters.append(example.questions[0].answer)
    assert np.mean(found) > 0.6  # siblings may share a background; chance is 0.25
    counts = [letters.count(letter) for letter in "ABCD"]
    assert min(counts) > 12


def test_statements_are_complete():
    assert len(STATEMENTS) >= 10
    for statement in STATEMENTS:
        assert len({statement.cue, *statement.false_cues}) == 4
        assert statement.cause.count("{}") == statement.effect.count("{}") == 1
    scenes = CauseEffectScenes()
    shares = [scenes.group("train", i)[0].category for i in range(400)]
    for category, share in CATEGORIES.items():
        assert shares.count(category) / 400 == pytest.approx(share, abs=0.08)


# Batches


def test_a_batch_is_what_it_says():
    data = SceneDataModule(ObjectScenes(), num_train=8, num_val=2, num_test=3, batch_size=4, seed=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (4, 1, 3, 112, 112)
    assert batch["images"].dtype == torch.float32
    assert 0 <= batch["images"].min() < batch["images"].max() <= 1
    assert [len(questions) for questions in batch["questions"]] == [6] * 4
    for row in range(4):
        present = batch["box_labels"][row, :, 0] > 0
        assert 3 <= present.sum() <= 4
        widths = (batch["boxes"][row, :, 2:] - batch["boxes"][row, :, :2]).prod(dim=-1)
        assert torch.equal(widths > 0, present)
        # The colour in the middle of the upper edge of a tile is that of its label.
        for (x0, y0, x1, _), (colour, kind) in zip(
            batch["boxes"][row][present].tolist(),
            batch["box_labels"][row][present].tolist(),
            strict=True,
        ):
            left, top, right = (round(112 * edge) for edge in (x0, y0, x1))
            corner = batch["images"][row, 0, :, top, left : right : right - left - 1].min(dim=1)
            name = data.scenes.colours[colour - 1]
            assert torch.allclose(corner.values, torch.tensor(COLOURS[name]), atol=0.3)
            assert 1 <= kind <= 10
    sizes = [len(loader.dataset) for loader in (data.val_dataloader(), data.test_dataloader())]
    assert sizes == [2 * 4, 3 * 4]
    evaluation = next(iter(data.test_dataloader()))
    assert evaluation["scene"].tolist() == [0, 0, 0, 0]
    assert evaluation["index"].tolist() == [0, 1, 2, 3]


def test_matching_batches_have_five_images():
    data = SceneDataModule(CauseEffectScenes(), num_train=4, num_test=1, batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert batch["images"].shape == (2, 5, 3, 48, 48)
    assert batch["boxes"].shape == (10, 1, 4)
    assert batch["kinds"] == [["match"]] * 2


def test_workers_do_not_change_the_data():
    batches = []
    for workers in (0, 1):
        data = SceneDataModule(
            ObjectScenes(), num_train=8, batch_size=4, num_workers=workers, seed=3
        )
        batches.append([*data.train_dataloader()])
    for one, two in zip(*batches, strict=True):
        assert one["questions"] == two["questions"]
        assert torch.equal(one["images"], two["images"])


def test_a_checkpoint_of_other_scenes_is_refused(monkeypatch):
    from lightning.pytorch.trainer.states import TrainerFn

    class Fitting:
        class state:  # noqa: N801
            fn = TrainerFn.FITTING

    data, other = SceneDataModule(ObjectScenes()), SceneDataModule(ObjectScenes(seed=4))
    monkeypatch.setattr(other, "trainer", Fitting)
    with pytest.raises(ValueError, match="trained with other scenes"):
        other.load_state_dict(data.state_dict())
    other.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", ["num_train", "num_test", "batch_size", "num_val", "num_workers"])
def test_impossible_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        SceneDataModule(ObjectScenes(), **{name: -1})
