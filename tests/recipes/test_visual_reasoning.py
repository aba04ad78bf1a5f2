"""Reasoning about images from the command line: a floor, scores again, the report."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from tenfold.datamodules.visual_reasoning import WinogavilDataModule
from tenfold.recipes.cli import main

DATA = Path(__file__).parents[1] / "data" / "winogavil"
FLOOR = ["test", "--config", "cvr_llm/winogavil_floor", "--data.root", str(DATA)]
FLOOR += ["--trainer.accelerator", "cpu", "--run_dir", "run"]


def rows(run="run"):
    return [json.loads(line) for line in Path(run, "predictions.jsonl").read_text().splitlines()]


def test_the_floor_of_winogavil_is_that_of_another_program(project, capsys):
    assert main(FLOOR) == 0
    data = WinogavilDataModule(root=str(DATA))
    data.setup()
    texts = sorted({caption for q in data.questions for caption in q.captions})
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit(texts)
    values = {}
    for question in data.questions:
        query = vectorizer.transform([question.extra["query"]]).toarray()[0]
        similar = vectorizer.transform(question.captions).toarray() @ query
        chosen = set(np.argsort(-similar, kind="stable")[: len(question.answers)].tolist())
        right = set(question.answers)
        values.setdefault(question.set, []).append(len(chosen & right) / len(chosen | right))
    found = json.loads(Path("run/metrics.json").read_text())
    for name, one in values.items():
        assert found["test"][f"test/{name}/jaccard"] == pytest.approx(np.mean(one))
        assert found["test"][f"test/{name}/jaccard_n"] == 60
        assert found["test"][f"test/{name}/parse_fail_rate"] == 0
    assert found["run"]["num_questions"]["winogavil_swow"] == 60
    assert "winogavil_5_6/jaccard" in capsys.readouterr().out
    assert Path("run/figures/scores.png").is_file()
    records = [json.loads(line) for line in Path("run/records.jsonl").read_text().splitlines()]
    assert len(records) == len({record["id"] for record in records}) == 180


def test_scores_again_without_a_model(project, capsys):
    assert main(FLOOR) == 0
    before = json.loads(Path("run/scores.json").read_text())
    Path("run/scores.json").unlink()
    capsys.readouterr()
    assert main(["score", "run"]) == 0
    assert json.loads(Path("run/scores.json").read_text()) == before
    printed = capsys.readouterr().out
    value = 100 * before["winogavil_swow/jaccard"]["value"]
    assert re.search(rf"winogavil_swow/jaccard +{value:.1f} ", printed)
    assert not Path("run/report.html").exists()
    # What a model said decides, not what was once read in it.
    changed = rows()
    for row in changed:
        row["raw"], row["parsed"] = "I cannot tell.", [0]
    Path("run/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert main(["score", "run"]) == 0
    after = json.loads(Path("run/scores.json").read_text())
    assert after["winogavil_swow/jaccard"]["value"] == 0
    assert after["winogavil_swow/parse_fail_rate"]["value"] == 1
    assert main([*FLOOR, "--data.splits", "[swow]", "--overwrite"]) == 0
    assert len(rows()) == 60


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "there is no run/predictions.jsonl"),
        ("{", "predictions.jsonl:1: no JSON"),
        ('{"id": "1"}\n', "no answers to questions about images"),
    ],
)
def test_what_cannot_be_scored_is_named(project, capsys, content, named):
    Path("run").mkdir()
    if content is not None:
        Path("run/predictions.jsonl").write_text(content)
    assert main(["score", "run"]) == 2
    assert named in capsys.readouterr().err


def test_predict_leaves_rows_that_are_scored(project):
    assert main(FLOOR) == 0
    assert main(["predict", *FLOOR[1:-1], "predicted"]) == 0
    assert main(["score", "predicted"]) == 0
    one, other = (json.loads(Path(run, "scores.json").read_text()) for run in ("run", "predicted"))
    assert one == other


KINDS = ["right", "partly", "wrong", "failed", "error"]
PROBE = """
<script>
const found = {}, KINDS = ["right", "partly", "wrong", "failed", "error"];
const set = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event("input")); };
const cards = () => [...document.querySelectorAll("article")];
const state = () => ({count: byId("count").textContent, cards: cards().length,
  kinds: [...new Set(cards().map((x) => x.className))],
  page: byId("page").textContent});
found.all = state();
for (const kind of KINDS) { set("outcome", kind); found[kind] = state(); }
set("outcome", "");
set("set", "winogavil_swow"); found.swow = state();
byId("next").click(); found.second = state();
set("search", "no such words"); found.nothing = state();
set("search", "<b>not markup</b>"); found.markup = state();
found.text = document.querySelector("article .answer").textContent;
found.bold = document.querySelectorAll("main b").length;
found.scores = document.querySelectorAll("#scores tr").length;
const images = [...document.querySelectorAll("article img")];
Promise.all(images.map((x) => x.decode())).then(() => {
  found.images = images.map((x) => x.naturalWidth);
  const said = Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)});
  document.body.replaceChildren(said);
});
</script>
"""


@pytest.mark.browser
def test_the_report_in_a_browser(project):
    """Filters count what is there, text is never markup, pictures load, without a server."""
    assert main(FLOOR) == 0
    changed = rows()
    changed[0]["error"] = "status 500"
    changed[1]["raw"] = "I cannot tell."
    last = next(row for row in reversed(changed) if row["set"] == "winogavil_swow")
    last["raw"] = "</script><b>not markup</b>\nAnswer: A"
    Path("run/pictures").mkdir()
    pixels = np.full((12, 20, 3), 200, dtype=np.uint8)
    Image.fromarray(pixels).save("run/pictures/one.png")
    last["pictures"] = ["pictures/one.png"] + [None] * (len(last["images"]) - 1)
    Path("run/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert main(["score", "run", "--report"]) == 0
    page = Path("run/report.html").read_text()
    assert "<b>not markup</b>" not in page
    shutil.copy("run/report.html", "run/probe.html")
    Path("run/probe.html").write_text(
        page.replace("</body>", f"{PROBE}</body>").replace('"lazy"', '"eager"')
    )
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "the marker browser needs chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=10000", Path("run/probe.html").resolve().as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1]))
    assert found["all"]["count"] == "180 of 180 questions"
    assert found["all"]["cards"] == 25
    assert found["all"]["page"] == "1 / 8"
    numbers = {
        kind: int(found[kind]["count"].split()[0])
        for kind in ("right", "partly", "wrong", "failed", "error")
    }
    assert numbers["error"] == numbers["failed"] == 1
    assert sum(numbers.values()) == 180
    for kind, number in numbers.items():
        assert found[kind]["kinds"] == ([kind] if number else [])
    assert found["swow"]["count"] == "60 of 180 questions"
    assert (found["second"]["page"], found["second"]["cards"]) == ("2 / 3", 25)
    assert found["nothing"]["cards"] == 0
    assert found["markup"]["cards"] == 1
    assert found["text"] == last["raw"]
    assert found["bold"] == 0
    assert found["images"] == [20]
    assert found["scores"] > 9
