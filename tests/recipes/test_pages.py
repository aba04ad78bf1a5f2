"""`tenfold pages`, and a captioner trained on what it wrote."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tenfold.datamodules.contextual_captions import JsonPages, WikiWeb2MPages
from tenfold.recipes.cli import main

PAGE = """<html><title>Cells {k}</title><h1>Cells</h1><p>All living things number {k} have
cells that divide and grow. Plants have a wall around each cell, which animals have not.</p>
<figure><img src="img/{k}.png"><figcaption>A cell wall of plant {k}</figcaption></figure>
<h2>Nothing to see</h2><p>No figure here.</p></html>"""


@pytest.fixture
def docs(project):
    folder = Path("docs")
    (folder / "img").mkdir(parents=True)
    for k in range(30):
        (folder / f"p{k}.html").write_text(PAGE.format(k=k))
        Image.new("RGB", (300, 150), (8 * k, 0, 0)).save(folder / "img" / f"{k}.png")
    (folder / "img" / "3.png").write_bytes(b"no image")
    (folder / "bad.html").write_text("")
    return folder


def test_pages_are_collected_and_trained_on(docs, capsys):
    assert main(["pages", "--input", "docs", "--out", "data", "--vocab-size", "80"]) == 0
    said = capsys.readouterr().err
    assert "1 pages cannot be read, first: " in said
    assert "1 images cannot be read, first: image docs/img/3.png" in said
    assert "29 figures on 29 pages" in said
    pages = [*JsonPages("data").pages()]
    assert len(pages) == 29
    path = pages[0].sections[0].figures[0].path
    assert JsonPages("data").open_image(path).size == (256, 128)
    small = ["--model.init_args.tokenizer=data/tokenizer", "--data.init_args.batch_size=4"]
    small += ["--data.init_args.examples.init_args.source.init_args.path=data"]
    small += ["--data.init_args.examples.init_args.test_fraction=0.3"]
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--run_dir=run"]
    assert main(["fit", "--config", "ctrl_cic/docs", *small, *steps]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert 0 < metrics["fit"]["val/loss"] < 6
    assert "test/lift_highlighted" in metrics["test"]
    assert Path("run/figures/captions.png").is_file()
    one = ["predict", "--run_dir=run", "--data.init_args.highlights=[[Plants], [cells, grow]]"]
    source = "--data.init_args.examples.init_args.source"
    page = [f"{source}=HtmlPages", f"{source}.path=docs/p7.html"]
    page += ["--data.init_args.examples.init_args.test_fraction=0.999999"]
    assert main([*one, *page]) == 0
    assert "<mark>cells · grow</mark>" in Path("run/figures/gallery.html").read_text()


def test_pages_become_wikiweb2m(docs, capsys):
    written = ["--to", "wikiweb2m", "--vocab-size", "0", "--image-side", "32"]
    assert main(["pages", "--input", "docs", "--out", "data", *written]) == 0
    source = WikiWeb2MPages("data")
    pages = [*source.pages()]
    assert len(pages) == 29
    figures = [f for page in pages for section in page.sections for f in section.figures]
    assert {source.open_image(f.path).size for f in figures} == {(32, 16)}
    assert len({page.split for page in pages}) > 1
    assert not Path("data/tokenizer").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--input DIR --out DIR"),
        (["--input", "docs", "--out", "docs"], "docs is not empty"),
        (["--input", "nothing", "--out", "data"], "there is no folder or file nothing"),
        (["--input", "docs/img", "--out", "data"], "no page with a captioned figure"),
        (["--input", "docs", "--out", "data", "--image-side", "-1"], "0 or more"),
    ],
)
def test_bad_input_is_one_line(docs, capsys, options, named):
    assert main(["pages", *options]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
