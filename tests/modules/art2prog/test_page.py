"""The page of programs: its steps, and what Chromium makes of it."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import LANGUAGE, another_order, square
from svg_oracles import far_from_edges, resvg
from tenfold.datamodules.programs import ProgramSampler
from tenfold.kernels.compositing import on_background
from tenfold.modules.art2prog.drawing import Renderer
from tenfold.modules.art2prog.export import program_svg
from tenfold.modules.art2prog.layers import picture_of, program_of
from tenfold.modules.art2prog.page import Shown, layer_places, programs_page, step_pictures
from tenfold.recipes.cli import main

STACK = program_of((square(1, 1, 4), square(3, 3, 4, color=1, mode="multiply")))


def drawn(svg: str) -> torch.Tensor:
    return on_background(resvg(svg, (96, 96)))


def test_steps_end_in_the_picture():
    sampler = ProgramSampler(LANGUAGE, layer_probs=[0.2, 0.4, 0.4])
    for seed in range(6):
        rng = np.random.default_rng(seed)
        program = another_order(sampler.program(rng), rng)
        steps = step_pictures(program, LANGUAGE)
        assert len(steps) == len(program) + 1
        assert torch.equal(drawn(steps[0]), torch.ones(3, 96, 96, dtype=torch.float64))
        assert (drawn(steps[-1]) - drawn(program_svg(program, LANGUAGE))).abs().max() <= 1 / 255
        for before, after in itertools.pairwise(steps):
            assert before != after


def test_layers_are_named_by_their_place_in_the_picture():
    """Also where the upper layer was drawn first."""
    assert layer_places(STACK) == {5: [1], 11: [2], 12: [1, 2]}
    swapped = LANGUAGE.parse(
        "Create(3,3)\nStraight(7,3, 1)\nStraight(7,7, 2)\nStraight(3,7, 3)\nStraight(3,3, 4)\n"
        "Fillcolor(1, 5)\nCreate(1,1)\nStraight(5,1, 7)\nStraight(5,5, 8)\nStraight(1,5, 9)\n"
        "Straight(1,1, 10)\nFillcolor(0, 11)\nMultiply(12,6)"
    )
    assert layer_places(swapped) == {5: [2], 11: [1], 12: [1, 2]}
    assert 'id="layer-2"' in step_pictures(swapped, LANGUAGE)[6]
    assert picture_of(swapped) == picture_of(STACK)


def shown(name: str = "art") -> Shown:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return Shown(name, STACK, base64.b64encode(buffer.getvalue()).decode(), "a note")


def test_the_page_asks_for_nothing_and_escapes_names():
    page = programs_page([shown("</script><b>x")], LANGUAGE, "<title>")
    addresses = set(re.findall(r"https?://[^\"'\\ ]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not fetched
    assert "default-src 'none'" in page
    assert "<b>x" not in page
    assert page.count("</script>") == 2


def manifest(project: Path, rows: list[dict[str, object]]) -> Path:
    folder = project / "run" / "predictions"
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "language.json").write_text(json.dumps(LANGUAGE.settings()))
    (folder / "a.png").write_bytes(base64.b64decode(shown().png))
    return folder


def test_show_program_writes_the_page_of_a_run(project, capsys):
    text = LANGUAGE.format(STACK)
    row = {"id": "a", "lines": LANGUAGE.to_json(STACK), "mse": 0.001, "expected": text}
    folder = manifest(project, [row])
    assert main(["show-program", "run"]) == 0
    page = (folder / "index.html").read_text()
    assert "the very program that drew it" in page
    assert shown().png in page
    assert main(["show-program", "run"]) == 2
    assert "index.html exists" in capsys.readouterr().err
    assert main(["show-program", "run", "--out", "page.html"]) == 0
    assert Path("page.html").read_text() == page


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "lines": [["Creat", 1, 1]]}, "manifest.jsonl:1: line 1: unknown command"),
        ({"id": "a"}, "manifest.jsonl:1: expected a record with id and lines"),
    ],
)
def test_damaged_predictions_get_one_line(project, capsys, row, message):
    manifest(project, [row])
    assert main(["show-program", "run"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_predictions_is_told_how_to_make_them(project, capsys):
    assert main(["show-program", "nothing"]) == 2
    assert "tenfold predict --run_dir nothing" in capsys.readouterr().err


def chromium(*arguments: str) -> str:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [program, *flags, "--force-device-scale-factor=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.browser
def test_chromium_runs_the_page(tmp_path):
    """Slider, lines, layers: what the address asks for is what the page shows."""
    path = tmp_path / "page.html"
    path.write_text(programs_page([shown("one"), shown("two")], LANGUAGE, "Programs"))
    steps = step_pictures(STACK, LANGUAGE)

    def sections(place: str) -> list[str]:
        dom = chromium("--dump-dom", f"{path.as_uri()}{place}")
        return dom.split('<section id="program-')[1:]

    for step, place in ((13, ""), (3, "#1/3"), (0, "#1/0")):
        section = sections(place)[1]
        (canvas,) = re.findall(r'<div class="canvas">(.*?)</div>', section, re.S)
        assert torch.equal(drawn(canvas), drawn(steps[step]))
        assert f"<output>{step}</output>" in section
        assert section.count('class="done') == step
    first, second = sections("#1/13/2")
    assert "display: none" not in first
    (canvas,) = re.findall(r'<div class="canvas">(.*?)</div>', second, re.S)
    alone = program_of((square(1, 1, 4),))
    assert torch.equal(drawn(canvas), drawn(program_svg(alone, LANGUAGE)))


@pytest.mark.browser
def test_chromium_draws_exported_svg_as_we_do(tmp_path):
    sampler = ProgramSampler(LANGUAGE, layer_probs=[0.0, 0.5, 0.5])
    for seed in range(3):
        program = sampler.program(np.random.default_rng(seed))
        (tmp_path / "art.svg").write_text(program_svg(program, LANGUAGE))
        page = tmp_path / "art.html"
        page.write_text('<body style="margin:0"><img src="art.svg" width="256" height="256">')
        target = tmp_path / "shot.png"
        chromium(f"--screenshot={target}", "--window-size=256,256", page.as_uri())
        pixels = np.asarray(Image.open(target).convert("RGB"))[:256, :256]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
        picture = picture_of(program)
        renderer = Renderer(LANGUAGE, 256)
        far = far_from_edges(renderer.coverage([picture])[0])
        difference = (renderer.pictures([picture])[0] - image).abs()
        assert difference[:, far].max() <= 2 / 255
        assert difference.mean() <= 1 / 255
