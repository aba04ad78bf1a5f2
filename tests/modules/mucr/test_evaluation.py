"""MuCR asked of chat models: forms, strategies, answers that say nothing, judges, what it costs."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image
from tenfold.datamodules.mucr import CausalQuestions, SyntheticMuCRDataModule
from tenfold.datamodules.mucr.sprites import SpriteWriter
from tenfold.datamodules.mucr.viewer import SpriteViewer
from tenfold.datamodules.scenes import CauseEffectScenes
from tenfold.datamodules.scenes.cause_effect import CATEGORIES, STATEMENTS
from tenfold.modules.chat import ChatBackend, ChatResponse, TransformersChatBackend
from tenfold.modules.mucr import CompositeImage, MuCRModule, WordJudge
from tenfold.modules.mucr.composite import GAP
from tenfold.modules.mucr.explanations import (
    cause_comes_first,
    explanation_in,
    judge_request,
    rouge_l,
)
from tenfold.modules.mucr.pair import CausalPair, PairGroup
from tenfold.modules.mucr.prompts import PROMPTS
from tenfold.modules.mucr.questions import questions_of
from tiny_chat import save_image_model

BLANK = Image.new("RGB", (8, 8))
LETTERS = "ABCD"


def plain_group(number, closed=True):
    """A group without pictures worth seeing."""
    pairs = tuple(
        CausalPair(
            f"{number}-{k}", (BLANK, BLANK), ("c", "e"), (f"c{k}", f"e{k}"), "cue",
            ("x", "y", "z"), ("why",), "plant", "comic",
        )
        for k in range(4)
    )  # fmt: skip
    return PairGroup(str(number), pairs, (True, *(closed,) * 3), "link_id")


def questions(num_groups=6, **kwargs):
    pairs = SyntheticMuCRDataModule(num_test=num_groups, image_size=32, tensors=False, seed=0)
    return CausalQuestions(pairs, batch_size=4, **kwargs)


def run(backend, folder, data=None, judge=None, **kwargs):
    """Returns numbers and rows of a test."""
    module = MuCRModule(backend, judge or WordJudge(), tile=32, **kwargs)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", **quiet)
    rows = []
    step = module.test_step
    module.test_step = lambda *a: (found := step(*a), rows.extend(found["predictions"]))[0]
    (numbers,) = trainer.test(module, data or questions(), verbose=False)
    return {name.removeprefix("test/mucr/"): value for name, value in numbers.items()}, rows


class Says(ChatBackend):
    """Says the same texts in turn, and remembers what it was asked."""

    supports_images = True
    identity = {"backend": "says"}  # noqa: RUF012

    def __init__(self, *texts, error="", stop_after=None):
        self.texts, self.error, self.stop_after = texts, error, stop_after
        self.asked = []

    def answer(self, requests, keep=None):
        for place, request in enumerate(requests):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            text = self.texts[len(self.asked) % len(self.texts)] if self.texts else ""
            yield place, ChatResponse(text, error=self.error)


# Questions


def test_right_letters_are_even_and_functions_of_the_pair():
    for task in ("c2e", "e2c", "cue"):
        items = [item for n in range(250) for item in questions_of(plain_group(n), [task])]
        counts = np.bincount([item.question.answers[0] for item in items], minlength=4)
        assert ((counts - 250) ** 2 / 250).sum() < 16.3  # chi-square, 3 degrees, p = 0.001
        again = [item for n in range(250) for item in questions_of(plain_group(n), [task])]
        assert [i.question for i in items] == [i.question for i in again]


def test_options_move_on_by_one_each_turn():
    items = questions_of(plain_group(0), ["c2e", "cue"], circular=True)
    assert len(items) == 2 * 4 * 4
    for first in range(0, 32, 4):
        turns = [item.question for item in items[first : first + 4]]
        for one, two in pairwise(turns):
            assert two.options == one.options[1:] + one.options[:1]
        right = {turn.options[turn.answers[0]] for turn in turns}
        assert len(right) == 1
        assert len({turn.answers for turn in turns}) == 4
        names = [[count.name for count in turn.counts] for turn in turns]
        assert names[0] == ["accuracy", "group_accuracy", "circular_accuracy"]
        assert names[1:] == [["circular_accuracy"]] * 3
        for turn in turns:
            assert [turn.images[place] for place in turn.option_images] == list(
                turn.options if turn.option_images else ()
            )


def test_pairs_of_an_open_group_have_no_group_score():
    (item,) = questions_of(plain_group(0, closed=False), ["c2e"])
    assert [count.name for count in item.question.counts] == ["accuracy"]
    assert len(item.question.options) == 4
    items = questions_of(plain_group(0), ["exp"])
    assert all([c.name for c in item.question.counts] == ["accuracy"] for item in items)


def test_the_way_back_asks_for_the_cause():
    (item, *_) = questions_of(plain_group(0), ["e2c"])
    assert item.question.images[0] == "0-0/1"
    assert item.question.options[item.question.answers[0]] == "0-0/0"


# Forms


def shown(form, tmp_path, task="c2e", **kwargs):
    backend = Says("Answer: A")
    run(backend, tmp_path / form, questions(2, tasks=[task], **kwargs.pop("data", {})),
        input_form=form, **kwargs)  # fmt: skip
    return backend.asked


def test_several_images_come_in_order_and_tell_nothing_else(tmp_path):
    data = questions(2, tasks=["c2e"])
    data.setup()
    items = [item for batch in data.test_dataloader() for item in batch]
    for request, item in zip(shown("multi_image", tmp_path), items, strict=True):
        (turn,) = request.turns
        assert turn.images == item.pictures
        text = "".join(part for part in turn.parts if isinstance(part, str))
        assert [text.count(f"Option {letter}:") for letter in LETTERS] == [1] * 4
        assert text.index("Picture 1:") < text.index("Option A:") < text.index("Option D:")
        assert not [name for name in item.question.images if name in text]
        assert not any(
            word in text for word in (item.question.id, "png", item.question.captions[0])
        )


def test_one_image_holds_all(tmp_path):
    data = questions(2, tasks=["c2e"])
    data.setup()
    items = [item for batch in data.test_dataloader() for item in batch]
    requests = shown("composite", tmp_path, draw_letters=False)
    for request, item in zip(requests, items, strict=True):
        (whole,) = request.turns[0].images
        step = 32 + GAP
        assert whole.size == (2 * step + GAP, 3 * step + GAP)
        corners = [(GAP + step // 2, GAP), (GAP, GAP + step), (GAP + step, GAP + step)]
        corners += [(GAP, GAP + 2 * step), (GAP + step, GAP + 2 * step)]
        for (x, y), picture in zip(corners, item.pictures, strict=True):
            assert whole.crop((x, y, x + 32, y + 32)) == picture
    (whole,) = shown("composite", tmp_path, task="cue")[0].turns[0].images
    assert whole.size == (2 * (32 + GAP) + GAP, 32 + 2 * GAP)


def test_a_composite_keeps_shapes_and_draws_letters():
    wide = Image.new("RGB", (60, 20), "red")
    whole = np.asarray(CompositeImage(30)([wide], [wide] * 4))
    red = (whole == (255, 0, 0)).all(axis=2)
    assert red[:, :].sum() <= 5 * 30 * 10
    assert red[GAP + 10 : GAP + 20, (GAP + 30) // 2 + GAP].any()
    plain = np.asarray(CompositeImage(30, draw_letters=False)([wide], [wide] * 4))
    changed = (plain != whole).any(axis=2)
    assert not changed[: GAP + 30].any()  # the top one has no letter
    assert changed.any()
    with pytest.raises(ValueError, match="tile must be 16 pixels or more"):
        CompositeImage(8)


def test_texts_stand_for_pictures(tmp_path):
    data = questions(2, tasks=["c2e"])
    data.setup()
    items = [item for batch in data.test_dataloader() for item in batch]
    for form in ("text", "core_text"):
        requests = shown(form, tmp_path)
        # By the plain captions the four pairs of a group are one and the same question.
        assert len(requests) == {"text": len(items), "core_text": len(items) // 4}[form]
        for request, item in zip(requests, items, strict=form == "text"):
            (turn,) = request.turns
            assert not turn.images
            lines = dict(line.split(": ", 1) for line in turn.parts[0].split("\n") if ": " in line)
            options = [lines[f"Option {letter}"] for letter in LETTERS]
            if form == "core_text":
                assert len(set(options)) == 1  # siblings share the statement: chance by words
            else:
                assert options == list(item.question.captions[1:])


def test_a_text_form_without_descriptions_says_what_there_is(tmp_path):
    group = plain_group(0)
    bare = group._replace(pairs=tuple(p._replace(descriptions=("", "")) for p in group.pairs))
    module = MuCRModule(Says("Answer: A"), input_form="text")
    with pytest.raises(ValueError, match=r"no descriptions .* take input_form core_text"):
        module.answer(questions_of(bare, ["c2e"]))


# Strategies


def test_solved_questions_of_other_groups_come_first(tmp_path):
    requests = shown("multi_image", tmp_path, strategy="icl", data={"num_demonstrations": 1})
    for request in requests:
        roles = [turn.role for turn in request.turns]
        assert roles == ["user", "assistant", "user"]
        assert request.turns[1].content in {f"Answer: {letter}" for letter in LETTERS}
        assert not set(map(id, request.turns[0].images)) & set(map(id, request.turns[2].images))
        assert len(request.turns[0].images) == 5
    with pytest.raises(ValueError, match=r"set data\.init_args\.num_demonstrations"):
        shown("multi_image", tmp_path, strategy="icl")
    with pytest.raises(ValueError, match="num_demonstrations 2 of other groups, and there are 2"):
        questions(2, num_demonstrations=2).setup()


def test_a_simulated_model_gains_from_being_asked_for_cues(tmp_path):
    """Wanted from how it is made: words alone at chance < composite < images < full descriptions;
    asking for cues helps, at a price."""
    found = {}
    for name, settings in {
        "core": {"input_form": "core_text"},
        "composite": {"input_form": "composite"},
        "images": {},
        "described": {"input_form": "text"},
        "vccot": {"strategy": "vccot"},
        "two_calls": {"strategy": "vccot_two_call"},
    }.items():
        data = questions(20, tasks=["c2e"])
        found[name], _ = run(SpriteViewer(num_test=20), tmp_path / name, data, **settings)
    scores = {name: numbers["c2e/accuracy"] for name, numbers in found.items()}
    assert scores["core"] == pytest.approx(0.25, abs=0.15)
    assert scores["core"] + 0.2 < scores["composite"] < scores["images"] < scores["described"] == 1
    assert scores["images"] + 0.1 < min(scores["vccot"], scores["two_calls"])
    calls = {name: numbers["c2e/calls_per_question"] for name, numbers in found.items()}
    assert (calls["images"], calls["vccot"], calls["two_calls"]) == (1, 1, 6)
    tokens = {name: numbers["c2e/tokens_per_question"] for name, numbers in found.items()}
    assert tokens["images"] < tokens["vccot"] < tokens["two_calls"]


def test_without_a_leak_asking_helps_nobody(tmp_path):
    pairs = SyntheticMuCRDataModule("nothing", num_test=40, tensors=False, seed=0)
    viewer = SpriteViewer(siblings="nothing", num_test=40)
    numbers, _ = run(viewer, tmp_path, CausalQuestions(pairs, ["c2e"]), strategy="vccot")
    assert numbers["c2e/accuracy"] == pytest.approx(0.25, abs=0.1)
    assert numbers["c2e/accuracy_low"] < 0.25 < numbers["c2e/accuracy_high"]


# Answers


def test_a_model_that_always_says_a_is_found_out(tmp_path):
    data = questions(40, tasks=["c2e"], circular=True)
    numbers, rows = run(Says("Answer: A"), tmp_path, data)
    right = sum(row["answers"] == [0] for row in rows if "/turn" not in row["id"])
    assert numbers["c2e/accuracy"] == pytest.approx(right / 160) == pytest.approx(0.25, abs=0.11)
    assert numbers["c2e/circular_accuracy"] == 0
    assert numbers["c2e/circular_accuracy_n"] == 160
    assert numbers["c2e/group_accuracy"] < 0.06
    assert numbers["c2e/group_accuracy_chance"] == pytest.approx(0.25**4)


@pytest.mark.parametrize("text", ["A cat sits on a mat.", "I cannot tell.", "", "Answer: E",
                                  "It is either A or B, hard to say"])  # fmt: skip
def test_what_cannot_be_read_is_no_letter(tmp_path, text):
    numbers, rows = run(Says(text), tmp_path, questions(2, tasks=["c2e", "cue"]))
    assert {(row["status"], row["value"], len(row["parsed"])) for row in rows} == {("failed", 0, 0)}
    assert numbers["c2e/parse_fail_rate"] == numbers["cue/parse_fail_rate"] == 1
    assert numbers["c2e/accuracy"] == 0


def test_no_answer_is_an_error_and_wrong(tmp_path):
    numbers, rows = run(Says(error="status 500"), tmp_path, questions(2, tasks=["c2e", "exp"]))
    assert {row["status"] for row in rows} == {"error"}
    assert {row["error"] for row in rows} == {"status 500"}
    assert numbers["c2e/error_rate"] == numbers["exp/error_rate"] == 1


def test_a_picture_that_was_not_described_is_an_error(tmp_path):
    class Half(Says):
        def answer(self, requests, keep=None):
            for place, response in super().answer(requests):
                broken = requests[place].id.startswith("caption/") and place == 0
                yield place, ChatResponse("", error="status 400") if broken else response

    data = questions(1, tasks=["c2e"])
    _, rows = run(Half("Answer: A"), tmp_path, data, input_form="caption_then_text")
    described = Counter((row["status"], row["error"]) for row in rows)
    # Its own question, or all of the group if it is an effect, an option of each.
    assert described[("error", "status 400")] in (1, 4)
    assert described.total() == 4


def test_unreadable_answers_are_asked_again(tmp_path):
    class Later(Says):
        def answer(self, requests, keep=None):
            self.texts = ("no idea", "Answer: B") if requests[0].attempt == 0 else ("Answer: C",)
            yield from super().answer(requests)

    backend = Later()
    data = questions(2, tasks=["c2e"])
    _, rows = run(backend, tmp_path, data, max_attempts=2, temperature=0.5)
    assert {row["status"] for row in rows} == {"ok"}
    assert Counter(request.attempt for request in backend.asked) == {0: 8, 1: 4}
    assert sum(row["calls"] for row in rows) == 12


def test_a_stopped_run_asks_only_what_is_left(tmp_path):
    whole, rows = run(SpriteViewer(num_test=6), tmp_path / "whole")

    class Stops(SpriteViewer):
        identity = SpriteViewer(num_test=6).identity

        def answer(self, requests, keep=None):
            for place, request in enumerate(requests):
                if len(seen) == limit:
                    raise KeyboardInterrupt
                seen.append(request.digest)
                yield from ((place, response) for _, response in super().answer([request]))

    seen, limit = [], 40
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(Stops(num_test=6), tmp_path / "run")
    assert len(seen) == 40
    limit = None
    again, rows_again = run(Stops(num_test=6), tmp_path / "run")
    assert len(seen) == len(set(seen)) == 72
    assert again == whole

    def plain(rows):
        return [{key: row[key] for key in row if key != "seconds"} for row in rows]

    assert plain(rows_again) == plain(rows)
    workers, _ = run(SpriteViewer(num_test=6), tmp_path / "workers", questions(num_workers=2))
    assert workers == whole


def test_a_real_model_answers_and_is_scored_by_letters(tmp_path):
    """A tiny LLaVA with random weights: five pictures in a prompt, generated and by likelihood."""
    backend = TransformersChatBackend(save_image_model(tmp_path / "model"), batch_size=4)
    data = questions(2, tasks=["c2e", "cue"])
    numbers, rows = run(backend, tmp_path / "generate", data)
    assert numbers["c2e/accuracy_n"] == numbers["cue/accuracy_n"] == 8
    assert {tuple(map(tuple, row["seen"])) for row in rows} == {((32, 32),) * 5, ((32, 32),) * 2}
    numbers, rows = run(backend, tmp_path / "score", data, answer_mode="loglik")
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["raw"] in LETTERS for row in rows)
    with pytest.raises(ValueError, match="strategy that answers at once"):
        MuCRModule(backend, answer_mode="loglik", strategy="cot")
    with pytest.raises(ValueError, match=r"needs a backend that scores \(Says\)"):
        MuCRModule(Says("A"), answer_mode="loglik")


# Explanations


def explained(pair):
    """The question about a pair of the scenes."""
    made = CausalPair(
        "p", (BLANK, BLANK), pair.captions, pair.descriptions, pair.statement.cue,
        pair.statement.false_cues, tuple(pair.references), pair.category, "comic",
    )  # fmt: skip
    group = PairGroup("g", (made,) * 4, (True, False, False, False), "sampled")
    return questions_of(group, ["exp"])[0].question


def verdict(question, candidate):
    (response,) = WordJudge().generate([judge_request(question, candidate, PROMPTS["judge"])])
    return response.text.splitlines()[-1]


def every_statement():
    scenes = CauseEffectScenes(canvas=16)
    found = {}
    for number in range(400):
        pair = scenes.group("test", number)[0]
        found.setdefault((pair.statement.cue, pair.category), pair)
    assert len({cue for cue, _ in found}) == len(STATEMENTS)
    assert len({category for _, category in found}) == len(CATEGORIES)
    return list(found.values())


def test_references_are_accepted_and_swapped_ones_are_not():
    """Cause and effect exchanged, in all three forms; ROUGE-L alone does not see it."""
    overlaps = []
    for pair in every_statement():
        question = explained(pair)
        before, after = pair.descriptions
        for reference in pair.references:
            assert verdict(question, reference) == "Verdict: correct"
            marked = reference.replace(before, "<>").replace(after, before).replace("<>", after)
            assert marked != reference
            assert verdict(question, marked) == "Verdict: incorrect"
            overlaps.append(rouge_l(marked, pair.references))
    assert min(overlaps) > 0.5


def test_explanations_of_other_statements_are_rejected():
    pairs = every_statement()
    accepted = [
        verdict(explained(one), other.references[0]) == "Verdict: correct"
        for one in pairs[:3]
        for other in pairs
        if one.statement is not other.statement
    ]
    assert not any(accepted)


def test_order_needs_both_events():
    assert cause_comes_first("rain fell, then a cold", "rain", "a cold")
    assert not cause_comes_first("a cold, after rain", "rain", "a cold")
    assert not cause_comes_first("rain and rain", "rain", "a cold")


def test_the_explanation_is_what_follows_the_answer():
    assert explanation_in("Stages ... \nAnswer: because of rain.") == "because of rain."
    assert explanation_in("Answer: no\n**Answer:** yes") == "yes"
    assert explanation_in(" just so ") == "just so"
    assert explanation_in("so it ends. Answer:") == "so it ends. Answer:"


def test_the_judge_decides_and_is_asked_once(tmp_path):
    judge = Says("It fits.\nVerdict: correct", "Verdict: incorrect", "perhaps")
    data = questions(2, tasks=["exp"])
    numbers, rows = run(Says("Because."), tmp_path, data, judge=judge)
    verdicts = Counter(row["verdict"] for row in rows)
    assert verdicts.total() == len(judge.asked) == 8
    assert numbers["exp/accuracy"] == verdicts["correct"] / 8
    assert numbers["exp/parse_fail_rate"] == verdicts[""] / 8
    assert all(row["value"] == (row["verdict"] == "correct") for row in rows)
    with pytest.raises(ValueError, match=r"set model\.init_args\.judge"):
        MuCRModule(Says("x")).answer(questions_of(plain_group(0), ["exp"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": {"hello": ""}}, "are none of zero_shot, icl"),
        ({"strategy": "vccot_two_call", "input_form": "text"}, "looks at pictures: not with text"),
        ({"max_attempts": 0}, "max_attempts must be 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MuCRModule(Says("x"), **settings)


def test_the_viewer_says_which_pictures_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="is none that SpriteViewer knows"):
        run(SpriteViewer(num_test=2, scene_seed=5), tmp_path, questions(2, tasks=["c2e"]))
    with pytest.raises(ValueError, match=r"recall must be in \[0, 1\]"):
        SpriteViewer(recall=1.5)


def test_the_writer_takes_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="takes no images"):
        run(SpriteWriter(), tmp_path, questions(2, tasks=["c2e"]))
