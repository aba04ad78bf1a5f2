"""Benchmarks from the command line: real files, several strategies, kills, processes, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tenfold.recipes.catalogue import RECIPES
from tenfold.recipes.cli import main
from tiny_vlm import VOCABULARY, build

WORDS = f"{VOCABULARY} is there an 1 2 4 6 8 9 0 please answer this question with one word"
RECIPE = """
seed_everything: 0
model:
  class_path: VLMDecodingModule
  init_args:
    model: vlm
    labels: [greedy, pm, noisy]
    strategies:
      - class_path: Greedy
      - class_path: PerceptionMagnifier
        init_args: {update: first_token}
      - class_path: VCD
    max_new_tokens: 3
data:
  class_path: PopeDataModule
  init_args: {root: pope, splits: [random, popular], batch_size: 4, min_image_side: 8}
trainer: {accelerator: cpu}
"""


@pytest.fixture
def folder(project):
    """A model in a folder, POPE in real files, and a recipe."""
    build("llava", vocabulary=WORDS).save_pretrained("vlm")
    images = Path("pope/images")
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (40, 30 + 10 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    for split in ("random", "popular"):
        rows = [
            {"question_id": i, "image": f"{i % 3}.png", "text": f"Is there a {i} in the image?",
             "label": ["yes", "no"][i % 2], "bbox": [2, 2, 20, 20]}
            for i in range(1, 10)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"pope/coco_pope_{split}.json").write_text(lines)
    Path("decode.yaml").write_text(RECIPE)
    return project


def records(run="run"):
    lines = Path(run, "records.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {(row["row"], row["id"]): row for row in rows}


def stored(run="run"):
    lines = [
        line
        for path in sorted(Path(run, "answers").glob("rank-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def test_strategies_side_by_side(folder, capsys):
    assert main(["test", "--config", "decode.yaml", "--run_dir", "run"]) == 0
    assert len(records()) == 3 * 18
    numbers = json.loads(Path("run/metrics.json").read_text())["test"]
    for label in ("greedy", "pm", "noisy"):
        right = [v for (row, _), r in records().items() if row == label
                 for n, v in r.items() if n.endswith("/accuracy")]  # fmt: skip
        accuracy = np.mean([numbers[n] for n in numbers
                            if n.startswith(f"test/{label}/coco/") and n.endswith("/accuracy")
                            and n.count("/") == 4])  # fmt: skip
        assert np.mean(right) == pytest.approx(accuracy)
        assert numbers[f"test/{label}/tokens_per_second"] > 0
    assert numbers["test/greedy/encoded_images"] == 1
    assert numbers["test/pm/encoded_images"] == 2
    assert any(name.startswith("test/pm/coco/random") and name.endswith("/p") for name in numbers)
    assert any(name.endswith("/pointing") for name in numbers)
    table = Path("run/answers/strategies.md").read_text().splitlines()
    assert table[0] == "| | greedy | pm | noisy |"
    assert {path.name for path in Path("run/figures").iterdir()} >= {
        "answers.png",
        "strategies.png",
    }
    answer = stored()[0]
    assert answer["strategy"] == "greedy"
    assert answer["prompt"].endswith(" Please answer this question with one word.")
    assert 0 <= answer["p_no"] <= 1


def test_nothing_is_asked_again(folder):
    assert main(["test", "--config", "decode.yaml", "--run_dir", "run"]) == 0
    first, answers = records(), stored()
    assert len(answers) == len({a["key"] for a in answers}) == 3 * 18
    assert main(["test", "--config", "decode.yaml", "--run_dir", "run", "--overwrite"]) == 0
    assert stored() == answers
    assert records() == first
    # Other settings are other answers.
    more = ["--model.max_new_tokens", "2", "--overwrite"]
    assert main(["test", "--config", "decode.yaml", "--run_dir", "run", *more]) == 0
    assert len(stored()) == 2 * 3 * 18


def test_a_killed_run_goes_on_without_asking_again(folder):
    """kill -9 while answers come; then on to the same numbers as in one go."""
    assert main(["test", "--config", "decode.yaml", "--run_dir", "whole"]) == 0
    command = [sys.executable, "-m", "tenfold.recipes.cli", "test", "--config", "decode.yaml"]
    command += ["--run_dir", "run", "--data.batch_size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = [*Path("run/answers").glob("rank-*.jsonl")]
        if files and files[0].stat().st_size > 4000:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = stored_whole_lines()
    assert 0 < len(before) < 3 * 18
    assert main([*command[3:], "--overwrite"]) == 0
    after = stored_whole_lines()
    assert after[: len(before)] == before
    assert len(after) == len({a["key"] for a in after}) == 3 * 18
    assert records() == records("whole")
    whole, run = (json.loads(Path(r, "metrics.json").read_text())["test"] for r in ("whole", "run"))
    for name, value in whole.items():
        if not name.endswith(("tokens_per_second", "wall_time_s")):
            assert run[name] == pytest.approx(value), name


def stored_whole_lines(run="run"):
    found = []
    for path in sorted(Path(run, "answers").glob("rank-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # torn by the kill
    return found


@pytest.mark.slow
def test_processes_share_the_questions(folder, tenfold):
    """Nine questions on two ranks: none is asked twice, numbers are those of one process."""
    assert main(["test", "--config", "decode.yaml", "--run_dir", "whole"]) == 0
    both = tenfold(
        *("test", "--config", "decode.yaml", "--config", "overlays/ddp"),
        *("--trainer.devices=2", "--run_dir=run"),
    )
    assert both.returncode == 0, both.stderr
    assert len(stored()) == len({a["key"] for a in stored()}) == 3 * 18
    assert len([*Path("run/answers").glob("rank-*.jsonl")]) == 2
    assert records() == records("whole")
    whole, run = (json.loads(Path(r, "metrics.json").read_text())["test"] for r in ("whole", "run"))
    for name, value in whole.items():
        if not name.endswith(("tokens_per_second", "wall_time_s")):
            assert run[name] == pytest.approx(value), name


def test_validate_and_predict(folder):
    assert main(["validate", "--config", "decode.yaml", "--run_dir", "run"]) == 0
    assert main(["predict", "--config", "decode.yaml", "--run_dir", "run"]) == 0
    lines = Path("run/predictions/manifest.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 18
    assert json.loads(lines[0])["id"] == "greedy/" + json.loads(lines[0])["set"] + "/1"
    assert len(stored()) == 3 * 18  # validated before, not asked again


BAD = [
    (lambda: Path("pope/images/1.png").unlink(), [], "there is no image pope/images/1.png"),
    (lambda: None, ["--data.min_image_side", "64"], "a patch of the encoder 64x64"),
    (
        lambda: Path("pope/coco_pope_random.json").write_text('{"question_id": 1}\n'),
        [],
        "coco_pope_random.json:1: expected a text as 'text'",
    ),
    (lambda: None, ["--model.model", "nowhere"], "nowhere"),
    (lambda: None, ["--model.labels", "[a, a, b]"], "labels"),
]


@pytest.mark.parametrize(("spoil", "options", "named"), BAD)
def test_bad_input_is_one_named_error(folder, capfd, spoil, options, named):
    spoil()
    command = ["test", "--config", "decode.yaml", "--run_dir", "run", *options]
    assert main(command) == 2
    assert named in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["compare", "pope_llava15"])
def test_recipes_for_pope_run_on_any_model(folder, name):
    """The recipe as it is, on a model and questions of this machine."""
    small = ["--model.model", "vlm", "--data.root", "pope", "--data.datasets", "[coco]"]
    small += ["--data.splits", "[random]", "--data.max_questions", "2", "--trainer.accelerator"]
    small += ["cpu", "--trainer.precision", "32-true", "--data.min_image_side", "8"]
    content = yaml.safe_load((RECIPES / f"perception_magnifier/{name}.yaml").read_text())
    strategies = content["model"]["init_args"]["strategies"]
    for strategy in strategies:
        settings = strategy.setdefault("init_args", {})
        if strategy["class_path"] == "ICD":
            settings["prefix"] = "what is the blue digit"
        if strategy["class_path"] == "ViCrop":
            settings["general_prompt"] = "describe the image ."
        if strategy["class_path"] == "SID":
            settings["layer"] = 1
        if "maps" in settings:
            settings["maps"]["start_layer"] = 2
    Path("own.yaml").write_text(yaml.safe_dump(content))
    assert main(["test", "--config", "own.yaml", "--run_dir", "run", *small]) == 0
    assert len(records()) == 2 * len(strategies)


def test_mme_and_chair_and_the_judge(folder, capsys):
    """Each benchmark's files, scorer and numbers, through its recipe."""
    cpu = ["--model.model", "vlm", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    cpu += ["--model.max_new_tokens", "3", "--data.min_image_side", "8"]
    Path("two.yaml").write_text(
        "model: {class_path: VLMDecodingModule, init_args: {strategies: "
        "[{class_path: Greedy}, {class_path: PerceptionMagnifier, init_args: {maps: "
        "{start_layer: 2}}}]}}"
    )
    cpu += ["--config", "two.yaml"]
    category = Path("mme/existence")
    category.mkdir(parents=True)
    for number in (1, 2):
        picture = Path(f"pope/images/{number}.png").read_bytes()
        (category / f"{number}.png").write_bytes(picture)
        text = "Is there a 1 in this image? Please answer yes or no.\tYes\n"
        text += "Is there a 2 in this image? Please answer yes or no.\tNo\n"
        (category / f"{number}.txt").write_text(text.replace("or no", "yes"))
    suffix = ["--data.prompt_suffix", ""]
    command = ["test", "--config", "perception_magnifier/mme_llava15", "--data.root", "mme"]
    assert main([*command, *suffix, *cpu, "--run_dir", "mme_run"]) == 0
    numbers = json.loads(Path("mme_run/metrics.json").read_text())["test"]
    assert 0 <= numbers["test/greedy/existence/score"] <= 200

    images = [{"id": 1, "file_name": "1.png"}]
    captions = {"images": images, "annotations": [{"image_id": 1, "caption": "a red dog"}]}
    instances = {
        "annotations": [{"image_id": 1, "category_id": 5}],
        "categories": [{"id": 5, "name": "dog"}],
    }
    Path("captions.json").write_text(json.dumps(captions))
    Path("instances.json").write_text(json.dumps(instances))
    Path("synonyms.txt").write_text("dog, puppy\nclock\nimage\n")
    command = ["test", "--config", "perception_magnifier/chair_llava15"]
    command += ["--data.captions", "captions.json", "--data.instances", "instances.json"]
    command += ["--data.image_dir", "pope/images", "--data.prompt", "describe the image ."]
    command += ["--model.scorer.synonyms", "synonyms.txt"]
    assert main([*command, *cpu, "--run_dir", "chair_run"]) == 0
    numbers = json.loads(Path("chair_run/metrics.json").read_text())["test"]
    assert numbers["test/greedy/recall"] == 0


@pytest.mark.slow
def test_the_quickstart_is_a_study_of_two_stages(project):
    """The built-in study, with little training and few questions."""
    content = yaml.safe_load((RECIPES / "perception_magnifier/quickstart.yaml").read_text())
    train, decode = (stage["set"] for stage in content["stages"])
    train |= {"trainer.max_steps": 6, "data.init_args.num_val": 4}
    train["model.init_args.phases"][1]["start"] = 2
    train |= {"trainer.val_check_interval": 3, "data.init_args.batch_size": 4}
    decode |= {"data.init_args.num_scenes": 3}
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["study", "--config", "small.yaml", "--study_dir", "study"]) == 0
    table = Path("study/table.md").read_text()
    assert "tiny/what/accuracy" in table
    assert "shuffled" in table
    assert Path("study/decode/run/figures/answers.png").is_file()
