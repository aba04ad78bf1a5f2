"""What DeepIcon writes opens in a browser, and looks there as it does here."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tenfold.datamodules.icons import GeneratedIcons
from tenfold.modules.deepicon import (
    ConvIconEncoder,
    DeepIconModule,
    HierarchicalDecoder,
    IconCodec,
)
from tenfold.modules.svg import parse_svg, render, write_svg
from torch import Tensor

SIDE, COLUMNS = 96, 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CODEC = IconCodec(max_paths=5, max_commands=12)


def in_chromium(texts: list[str], folder: Path) -> Tensor:
    """A screenshot of a page that shows files side by side, as pictures (N, 3, SIDE, SIDE)."""
    for number, text in enumerate(texts):
        (folder / f"{number}.svg").write_text(text)
    pictures = "".join(
        f'<img src="{number}.svg" style="position:absolute;width:{SIDE}px;height:{SIDE}px;'
        f'left:{number % COLUMNS * SIDE}px;top:{number // COLUMNS * SIDE}px">'
        for number in range(len(texts))
    )
    (folder / "page.html").write_text(f'<body style="margin:0;background:#fff">{pictures}</body>')
    rows = -(-len(texts) // COLUMNS)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={COLUMNS * SIDE},{rows * SIDE + 100}"]
    command += [f"--screenshot={folder}/shot.png", f"--user-data-dir={folder}/profile"]
    command += [f"file://{folder}/page.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shot = np.asarray(Image.open(folder / "shot.png").convert("RGB"), dtype=np.float32) / 255
    tiles = [
        shot[n // COLUMNS * SIDE :, n % COLUMNS * SIDE :][:SIDE, :SIDE] for n in range(len(texts))
    ]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_what_is_written_looks_in_a_browser_as_it_does_here(tmp_path):
    """Icons of the codec, and what a network without training makes up: lines all over."""
    torch.manual_seed(0)
    source = GeneratedIcons(fill=0.5)
    texts = [write_svg(CODEC.decode(CODEC.encode(source[index])[0])) for index in range(8)]
    decoder = HierarchicalDecoder(1, 1, num_heads=2)
    module = DeepIconModule(ConvIconEncoder(32, (8, 16), 32), decoder, CODEC, 32, temperature=3.0)
    pictures = render([source[index] for index in range(8)], (32, 32))
    texts += module.generate(pictures)
    mine = render([parse_svg(text) for text in texts], (SIDE, SIDE))
    theirs = in_chromium(texts, tmp_path)
    assert (theirs[:8] < 0.5).flatten(1).any(dim=1).all()  # what is made up may be white on white
    assert ((mine - theirs).abs().mean((1, 2, 3)) < 0.01).all()
    for text in texts:
        lowered = text.lower()
        assert not any(word in lowered for word in ("script", "href", "url(", "onload", "<!"))
