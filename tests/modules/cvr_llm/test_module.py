"""The loop of CVR-LLM with models that are functions: who is asked what, how often."""

import json

import pytest
from lightning.pytorch import Trainer
from PIL import Image
from scripted import Scripted
from tenfold.callbacks.records import RecordWriter
from tenfold.datamodules.visual_reasoning import ReasoningDataModule
from tenfold.modules.cvr_llm import CVRLLMModule, Prompts, RandomSelector, TextKNNSelector
from tenfold.modules.visual_reasoning import Question

COLOURS = ["red", "green", "blue", "white"]
NUMBERS = range(12)


class Cards(ReasoningDataModule):
    """Two cards each: which colour has the second? Three questions share a group."""

    makes_pictures = True

    def read(self):
        for number in NUMBERS:
            yield Question(
                id=str(number),
                set="cards",
                task="Two cards lie on a table.",
                text="Which colour has the second card?",
                images=(f"{number}a", f"{number}b"),
                options=tuple(COLOURS),
                answers=(number % 4,),
                group=f"g{number // 3}",
            )

    def picture(self, name):
        colour = COLOURS[(int(name[:-1]) + (name[-1] == "a")) % 4]
        return Image.new("RGB", (4, 4), colour)


def captioner(request):
    """Says the colour if it is asked for it, else something true and useless."""
    picture, prompt = request.turns[0].parts
    names = {Image.new("RGB", (1, 1), c).getpixel((0, 0)): c for c in COLOURS}
    colour = names[picture.getpixel((0, 0))]
    return f"it is {colour}" if "colour" in prompt else "a card"


def llm(request):
    """Asks for the colour in the second question only; answers what it is told."""
    prompt = request.turns[-1].parts[0]
    if prompt.endswith("Question:"):
        return "What colour is it?" if "Tentative answer" in prompt else "Is there a card?"
    lines = prompt.rpartition("---")[2].split("\n")
    (second,) = [line for line in lines if line.startswith("Image 2: ")]
    options = dict(line.split(". ") for line in lines if line[1:3] == ". ")
    chosen = [letter for letter, colour in options.items() if colour in second.split()]
    return f"Answer: {chosen[0]}" if chosen else "I cannot say."


def run(tmp_path, module, data=None):
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RecordWriter()],
    )
    data = data or Cards(batch_size=5)
    (metrics,) = trainer.test(module, data, verbose=False)
    rows = [
        json.loads(line)
        for line in (tmp_path / "predictions.jsonl").read_text().split("\n")
        if line
    ]
    return metrics, rows


def build(**settings):
    llm_backend, captioner_backend = Scripted(llm, "llm"), Scripted(captioner, "captioner")
    settings = {"llm": llm_backend, "captioner": captioner_backend, **settings}
    return CVRLLMModule(**settings), llm_backend, captioner_backend


def test_the_second_question_makes_the_difference(tmp_path):
    module, _, described = build()
    metrics, rows = run(tmp_path, module)
    assert metrics["test/cards/accuracy"] == 1
    assert metrics["test/cards/accuracy_chance"] == 0.25
    row = rows[0]
    assert row["descriptions"]["generic"] == ["a card", "a card"]
    assert row["descriptions"]["initial"] == ["a card", "a card"]
    assert row["descriptions"]["context"] == ["a card it is green", "a card it is red"]
    steps = [(step["step"], step["image"]) for step in row["steps"]]
    assert steps == [
        *(("generic", 0), ("generic", 1), ("ask initial", 0), ("ask initial", 1)),
        *(("initial", 0), ("initial", 1), ("answer", None), ("ask revised 1", 0)),
        *(("ask revised 1", 1), ("revised 1", 0), ("revised 1", 1), ("answer", None)),
    ]
    # Each image is described once as it is, and once for each question; the cards repeat.
    assert len({request.digest for request in described.asked}) == len(described.asked) == 4 * 3
    assert (tmp_path / row["pictures"][0]).is_file()


def test_parts_can_be_left_out(tmp_path):
    base, *_ = build(first_prompt="generic", num_refine_rounds=0)
    metrics, rows = run(tmp_path / "base", base)
    assert metrics["test/cards/accuracy"] == 0
    assert metrics["test/cards/parse_fail_rate"] == 1
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["parsed"] == [] for row in rows)
    assert rows[0]["calls"] == 2 + 1
    last, *_ = build(merge_descriptions=False)
    _, rows = run(tmp_path / "last", last)
    assert rows[0]["descriptions"]["context"] == ["it is green", "it is red"]


def test_as_many_requests_as_the_method_needs(tmp_path):
    """2 n + 3 to the language model and 3 n to the captioner for a question with n images."""
    module, *_ = build(num_examples=2, selector=RandomSelector())
    _, rows = run(tmp_path, module)
    counts = [[step["step"] for step in row["steps"]] for row in rows]
    for steps in counts:
        to_captioner = [s for s in steps if s in ("generic", "initial", "revised 1")]
        assert (len(steps) - len(to_captioner), len(to_captioner)) == (2 * 2 + 3, 3 * 2)
    assert {row["calls"] for row in rows} == {13}


def test_examples_have_what_the_model_said_and_never_their_own_group(tmp_path):
    def sure(request):
        said = llm(request)
        return "Answer: A" if said == "I cannot say." else said

    module, asked, _ = build(llm=Scripted(sure), num_examples=3, selector=TextKNNSelector())
    asked = module.llm
    _, rows = run(tmp_path, module)
    groups = {f"cards/{number}": f"g{number // 3}" for number in NUMBERS}
    for row in rows:
        assert len(row["examples"]) == 3
        assert row["group"] not in {groups[name] for name in row["examples"]}
    prompts = [request.turns[-1].parts[0] for request in asked.asked]
    shown = [prompt for prompt in prompts if "---" in prompt]
    assert shown
    assert all(prompt.count("\nAnswer: A\n") == 3 for prompt in shown)  # not what is right


def test_what_has_no_readable_answer_is_no_example(tmp_path):
    module, *_ = build(num_examples=3, selector=TextKNNSelector())
    _, rows = run(tmp_path, module)  # at first nobody can say
    assert all(row["examples"] == [] for row in rows)


def test_gold_answers_for_a_pool_that_is_not_tested(tmp_path):
    module, *_ = build(num_examples=2, selector=RandomSelector(), examples_from="gold")
    data = Cards(batch_size=4, shuffle_options=False)
    _, rows = run(tmp_path, module, data)
    assert all(len(row["examples"]) == 2 for row in rows)
    prompts = [request.turns[-1].parts[0] for request in module.llm.backend.asked]
    answers = {line for p in prompts for line in p.split("\n") if line.startswith("Answer: ")}
    assert answers == {f"Answer: {letter}" for letter in "ABCD"}


def test_an_error_ends_a_question_and_not_the_run(tmp_path):
    def failing(request):
        return None if "colour" in request.turns[0].parts[1] else captioner(request)

    module, *_ = build(captioner=Scripted(failing))
    metrics, rows = run(tmp_path, module)
    assert metrics["test/cards/error_rate"] == 1
    assert metrics["test/cards/accuracy"] == 0
    assert rows[0]["error"] == "revised 1: status 500"
    assert rows[0]["status"] == "error"
    # It is not kept: when the captioner is back, it is asked again.
    again, *_ = build()
    metrics, _ = run(tmp_path, again)
    assert metrics["test/cards/accuracy"] == 1


def test_a_question_writer_without_a_question_is_named(tmp_path):
    def mute(request):
        return "" if request.turns[-1].parts[0].endswith("Question:") else llm(request)

    module, *_ = build(llm=Scripted(mute))
    _, rows = run(tmp_path, module)
    assert rows[0]["error"] == "ask initial: no question about image 1"
    assert rows[0]["status"] == "error"


def test_letters_by_probability(tmp_path):
    def sure_of_c(request):
        return (-3.0, -2.0, -1.0, -4.0) if request.choices else llm(request)

    module, *_ = build(llm=Scripted(sure_of_c, scores=True), answer_mode="loglik")
    metrics, rows = run(tmp_path, module)
    assert {tuple(row["parsed"]) for row in rows} == {(2,)}
    assert metrics["test/cards/accuracy"] == pytest.approx(
        sum(row["answers"] == [2] for row in rows) / 12
    )


def test_nothing_is_asked_twice_and_nothing_changes(tmp_path):
    settings = {"num_examples": 2, "selector": TextKNNSelector()}
    first, *_ = build(**settings)
    before = run(tmp_path, first)
    again, asked, described = build(**settings)
    assert run(tmp_path, again) == before
    assert asked.asked == described.asked == []
    # Another size of the batches changes nothing either.
    other, *_ = build(**settings)
    metrics, rows = run(tmp_path / "other", other, Cards(batch_size=12))
    assert metrics == before[0]
    assert {row["id"]: row for row in rows} == {row["id"]: row for row in before[1]}


def test_free_answers_are_judged(tmp_path):
    class Free(Cards):
        def read(self):
            for question in super().read():
                yield Question(
                    *(question.id, "free", "Why?"),
                    images=question.images,
                    references=("It is so.", "Because."),
                )

    def judge(request):
        text = request.turns[0].parts[0]
        assert "- It is so.\n- Because." in text
        return "Verdict: correct" if "it is red" in text else "Verdict: incorrect"

    def explain(request):
        prompt = request.turns[-1].parts[0]
        return "What colour is it?" if prompt.endswith("Question:") else prompt

    module, *_ = build(llm=Scripted(explain), judge=Scripted(judge))
    metrics, rows = run(tmp_path, module, Free(batch_size=4))
    red = [any("it is red" in text for text in row["descriptions"]["context"]) for row in rows]
    assert metrics["test/free/accuracy"] == pytest.approx(sum(red) / len(red))
    assert [row["verdict"] == "correct" for row in rows] == red
    unjudged, *_ = build(llm=Scripted(explain))
    with pytest.raises(ValueError, match="judge: none"):
        run(tmp_path, unjudged, Free(batch_size=4))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"captioner": None}, "set first_prompt to generic"),
        ({"captioner": None, "first_prompt": "generic"}, "num_refine_rounds to 0"),
        ({"num_examples": 2}, "no selector"),
        ({"num_examples": -1}, "must be 0 or more"),
    ],
)
def test_settings_that_contradict_each_other(settings, named):
    with pytest.raises(ValueError, match=named):
        build(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"answer_mode": "loglik"}, "cannot score letters"),
        ({"captioner": "blind"}, "takes no images"),
    ],
)
def test_backends_that_cannot_do_it_are_named(tmp_path, settings, named):
    if settings.get("captioner") == "blind":
        blind = Scripted(captioner)
        blind.supports_images = False
        settings = {"captioner": blind}
    module, *_ = build(**settings)
    with pytest.raises(ValueError, match=named):
        run(tmp_path, module)


def test_prompts_are_the_users_and_known_by_their_hash():
    own = Prompts(caption="What do you see?")
    assert own.digest != Prompts().digest
    assert own.digest == Prompts(caption="What do you see?").digest
