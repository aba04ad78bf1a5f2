"""Chain-of-Comparison: places that a judge prefers, chains, verdicts that cannot be read."""

import json

import pytest
from lightning.pytorch import Trainer
from scripted import Scripted
from tenfold.callbacks.records import RecordWriter
from tenfold.datamodules.visual_reasoning import DescriptionPairs
from tenfold.modules.cvr_llm import ChainOfComparisonModule
from tenfold.modules.cvr_llm.pairs import Pair

STEPS = ["perception", "incongruity", "context", "link"]


def pairs(number=40):
    return [
        Pair(str(k), "s", str(k), f"task {k}", f"caption {k}", f"text {k}") for k in range(number)
    ]


def compare(judge, number=40, **settings):
    module = ChainOfComparisonModule(Scripted(judge), **settings)
    asked = pairs(number)
    compared = module.compare(asked)
    module.shares.update(asked, compared)
    return {name: float(value) for name, value in module.shares.compute().items()}, module.judge


def biased(request):
    """Takes the second text seven times of ten, whatever it says."""
    return "Verdict: Text 2" if int(request.digest[:6], 16) % 10 < 7 else "Verdict: Text 1"


def test_a_judge_with_a_preferred_place_decides_without_the_swap_and_not_with_it():
    always = lambda request: "Verdict: Text 2"  # noqa: E731
    alone, _ = compare(always, swap_order=False)
    assert alone["mean/description"] == 1
    both, judge = compare(always)
    assert both["mean/equal"] == 1
    assert both["mean/order_consistency"] == 0
    assert len(judge.asked) == 2 * 4 * 40
    # A preference of 70 %: what is left of it after the swap is chance, alike for both texts.
    alone, _ = compare(biased, 400, swap_order=False)
    both, _ = compare(biased, 400)
    assert alone["mean/description"] == pytest.approx(0.7, abs=0.03)
    assert both["mean/description"] == pytest.approx(0.21, abs=0.03)
    assert both["mean/caption"] == pytest.approx(0.21, abs=0.03)
    assert both["mean/equal"] == pytest.approx(0.58, abs=0.04)


def honest(request):
    """Prefers descriptions, in every step but the first."""
    prompt = request.turns[0].parts[0]
    first = "caption" in prompt.partition("Text 1:\n")[2].split("\n")[0]
    if len(request.turns) == 1:
        return "They say as much.\nVerdict: equal"
    return f"It says more.\n**Verdict: Text {2 if first else 1}**"


def test_an_honest_judge_is_heard_in_either_order():
    found, judge = compare(honest)
    assert found["perception/equal"] == 1
    for step in STEPS[1:]:
        assert found[f"{step}/description"] == 1
        assert found[f"{step}/order_consistency"] == 1
    assert found["mean/description"] == 0.75
    assert sum(found[f"mean/{name}"] for name in ("caption", "description", "equal")) == 1
    # The chain is one conversation: the last request holds all before it.
    roles = [turn.role for turn in judge.asked[-1].turns]
    assert roles == ["user", "assistant"] * 3 + ["user"]


def test_one_question_without_steps():
    found, judge = compare(honest, steps=["direct"])
    assert found["direct/equal"] == 1
    assert len(judge.asked) == 80


def test_what_cannot_be_read_is_no_verdict():
    def vague(request):
        return "A is a good text." if "task 1\n" in request.turns[0].parts[0] else honest(request)

    found, _ = compare(vague, number=4)
    assert found["link/parse_fail_rate"] == 0.25
    assert found["link/description"] == 1
    failing, _ = compare(lambda request: None, number=3)
    assert failing["mean/parse_fail_rate"] == 1
    assert "mean/description" not in failing


@pytest.mark.parametrize("steps", [[], ["link", "link"]])
def test_steps_are_named_once(steps):
    with pytest.raises(ValueError, match="expected each once"):
        ChainOfComparisonModule(Scripted(honest), steps=steps)


def write_run(folder, number=30):
    rows = [
        {
            "id": f"s/{k}",
            "set": "s",
            "task": "T.",
            "question": "Which?",
            "options": ["x", "y"],
            "group": str(k // 2),
            "error": "status 500" if k == 0 else "",
            "descriptions": {
                "generic": ["caption"],
                "context": ["caption" if k == 1 else f"t {k}"],
            },
        }
        for k in range(number)
    ]
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_is_compared_and_nothing_is_asked_twice(tmp_path):
    run = write_run(tmp_path / "run")
    asked = []
    for _ in range(2):
        judge = Scripted(honest)
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path / "coc",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[RecordWriter()],
        )
        data = DescriptionPairs(run_dir=str(run), num_samples=10, batch_size=4)
        (metrics,) = trainer.test(ChainOfComparisonModule(judge), data, verbose=False)
        asked.append(len(judge.asked))
        assert metrics["test/mean/description"] == 0.75
    assert asked == [10 * 2 * 4, 0]
    records = (tmp_path / "coc" / "records.jsonl").read_text().splitlines()
    assert len(records) == 40
    first = json.loads((tmp_path / "coc" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["task"] == "T.\nWhich?\nA. x\nB. y"
    assert first["caption"] == "Image 1: caption"
    assert data.run_info()["num_pairs"] == 10


def test_a_run_without_descriptions_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        DescriptionPairs(run_dir=str(tmp_path)).setup()
    (tmp_path / "predictions.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match="no run of CVR-LLM"):
        DescriptionPairs(run_dir=str(tmp_path)).setup()
    write_run(tmp_path / "two", 2)
    with pytest.raises(ValueError, match="not one question"):
        DescriptionPairs(run_dir=str(tmp_path / "two")).setup()
