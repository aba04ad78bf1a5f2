"""Ctrl-CIC from the command line: fit, test, predict, with and without a predictor."""

import json
from pathlib import Path

import pytest
from tenfold.recipes.cli import main

SMALL = ["--data.examples.num_val=8", "--data.examples.num_test=6", "--data.batch_size=4"]
FIT = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2"]
ADD = ["--model.controller.mode=add", "--model.controller.delta=0.3"]


def numbers(run, command="test"):
    return json.loads(Path(run, "metrics.json").read_text())[command]


def test_two_stages_of_recalibration(project):
    """Predictor and captioner are trained apart; a test puts them together and sweeps delta."""
    fit = [*SMALL, *FIT, "--test_after_fit=false"]
    assert main(["fit", "--config", "ctrl_cic/predictor", *fit, "--run_dir", "predictor"]) == 0
    assert main(["fit", "--config", "ctrl_cic/recalibrate", *fit, "--run_dir", "captioner"]) == 0
    test = ["test", "--config", "captioner/config.yaml", "--run_dir", "run"]
    test += ["--ckpt_path=captioner/checkpoints/last.ckpt", *ADD]
    test += ["--model.controller.sweep=[0.0,0.5]"]
    assert main(test) == 2  # no predictor
    test += ["--model.predictor=predictor/checkpoints/last.ckpt", "--overwrite"]
    assert main(test) == 0
    found = numbers("run")
    for name in ("recall", "plain/recall", "delta_0/recall", "delta_0.5/any", "lift_highlighted"):
        assert f"test/{name}" in found
    # Without a highlight and with one that adds nothing are the same captions.
    assert found["test/plain/recall"] == found["test/delta_0/recall"]
    assert Path("run/figures/sweep.png").is_file()
    records = [json.loads(line) for line in Path("run/records.jsonl").read_text().splitlines()]
    rows = {record["row"] for record in records}
    assert rows == {"highlighted", "plain", "delta_0", "delta_0.5"}
    assert len(records) == 4 * 6 * 4


def test_predictions_make_a_gallery(project):
    fit = ["fit", "--config", "ctrl_cic/quickstart", *SMALL, *FIT, "--run_dir", "run"]
    assert main(fit) == 0
    assert "test/recall" in numbers("run")
    predict = ["predict", "--run_dir", "run", "--data.image=test-2"]
    assert main([*predict, "--data.highlights=[[has], [anna, boris, notes]]"]) == 0
    page = Path("run/figures/gallery.html").read_text()
    assert page.count("<article>") == 1
    assert "<mark>has</mark>" in page
    lines = Path("run/predictions/manifest.jsonl").read_text().splitlines()
    (record,) = map(json.loads, lines)
    assert record["id"] == "test-2"
    assert record["reference"].startswith("the ")
    assert record["highlighted"][0]["phrases"] == ["has"]


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(project, tenfold):
    """Six images on several processes, whole or sharded: all numbers are those of one."""
    fit = ["fit", "--config", "ctrl_cic/quickstart", *SMALL, *FIT, "--test_after_fit=false"]
    assert main([*fit, "--run_dir", "fit"]) == 0
    measured = []
    for strategy, devices in (("ddp", 1), ("ddp", 2), ("ddp", 3), ("fsdp", 2)):
        run = f"{strategy}{devices}"
        options = ["--config", f"overlays/{strategy}", f"--trainer.devices={devices}"]
        if strategy == "fsdp":
            options += [f"--trainer.strategy.init_args.data_parallel_size={devices}"]
        test = ["test", "--config", "fit/config.yaml", *options, "--run_dir", run]
        test += ["--data.batch_size=2", "--ckpt_path=fit/checkpoints/last.ckpt"]
        done = tenfold(*test, "--trainer.accelerator=cpu")
        assert done.returncode == 0, done.stderr
        found = numbers(run)
        # A wrong highlight is that of the next image of the batch, which is another one here.
        for name in ("wall_time_s", "test/lift_highlighted", "test/lift_other"):
            found.pop(name)
        measured.append(found)
    for found in measured[1:]:
        assert found == pytest.approx(measured[0])


@pytest.mark.slow
def test_the_quickstart_learns_what_its_readme_says(project):
    """P-Ctrl says what is highlighted and names the digit; without a highlight it is chance."""
    assert main(["fit", "--config", "ctrl_cic/quickstart", "--run_dir", "run"]) == 0
    found = numbers("run")
    assert found["test/recall"] >= 0.9
    assert found["test/depicted"] >= 0.9
    assert found["test/plain/recall"] <= 0.4
    assert found["test/lift_highlighted"] > 1 > abs(10 * found["test/lift_other"])


@pytest.fixture
def wiki(project):
    """WikiWeb2M records, and LongT5, T5 and CLIP of a few thousand weights in folders."""
    from tenfold.datamodules.contextual_captions import (
        Page,
        PageFigure,
        PageSection,
        write_wikiweb2m,
    )
    from tiny_captions import CONFIG, LONG, WORDS, build
    from tiny_encoders import pictures, save_clip

    for number, split in enumerate(("train", "train", "val", "test", "test")):
        text = "the red cell has a wall . blue cells divide and grow of the plants " * 3
        section = PageSection("the wall", text, (PageFigure("a.jpg", "a red cell wall"),))
        page = Page(f"p{number}", "plants", (section,), f"http://x/{number}", split=split)
        write_wikiweb2m([page], Path(f"wiki/wikiweb2m-{split}-{number}.tfrecord.gz"))
        for k in range(2):
            folder = Path(f"wiki/images/{split}/{k}")
            folder.mkdir(parents=True, exist_ok=True)
            pictures(1)[0].convert("RGB").save(folder / "a.jpg")
    wide = {"d_model": 24}  # as wide as the tiny CLIP: no projection
    build(config=LONG | wide, vocabulary=WORDS).network.language.save_pretrained("long")
    build(config=CONFIG | wide, vocabulary=WORDS).network.language.save_pretrained("t5")
    for name in ("long", "t5"):
        build(vocabulary=WORDS).contexts.tokenizer.save_pretrained(name)
    save_clip(project / "clip")
    return [
        "--model.init_args.pretrained=long",
        "--model.init_args.image_dim=24",
        "--model.init_args.max_source_length=64",
        "--data.init_args.examples.init_args.source.init_args.path=wiki",
        "--data.init_args.examples.init_args.num_highlights=1",
        "--data.init_args.encoder.init_args.model=clip",
        "--data.init_args.batch_size=2",
        "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=1",
    ]


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("base", "p_ctrl", "p_ctrl_lora", "r_ctrl_lora", "predictor")
]


@pytest.mark.parametrize("name", ["r_ctrl", *SLOW])
def test_recipes_for_wikiweb2m_run_on_its_records(wiki, name):
    """Each recipe as it is, on small weights and records in the real formats."""
    scorer = ["--model.init_args.relevance.init_args.model=t5"] if name != "base" else []
    fit = ["fit", "--config", f"ctrl_cic/wikiweb2m_{name}", *wiki, *scorer, "--run_dir=run"]
    assert main(fit) == 0
    assert numbers("run", "fit")["val/loss"] > 0
    generation = "{max_new_tokens: 4, do_sample: false}"
    more = [] if name == "predictor" else [f"--model.init_args.generation={generation}"]
    if name.startswith("r_ctrl"):
        assert main([*fit[:2], "ctrl_cic/wikiweb2m_predictor", *wiki, *scorer, "--run_dir=q"]) == 0
        more += ["--model.init_args.predictor=q/checkpoints/last.ckpt"]
    assert main(["test", "--run_dir=run", "--ckpt_path=run/checkpoints/last.ckpt", *more]) == 0
    found = numbers("run")
    assert ("test/auroc" if name == "predictor" else "test/recall") in found
