"""Tracers beside each other: real programs on drawn icons, and the probe of a trained code."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tenfold.datamodules.icons import GeneratedIconDataModule, GeneratedIcons
from tenfold.modules.deepicon import (
    AutoTrace,
    ConvIconEncoder,
    DeepIconModule,
    IconCodec,
    IconStyle,
    IconTensors,
    Potrace,
    RasterDecoder,
    Tracer,
    TracingModule,
    VTracer,
)
from tenfold.modules.deepicon.probe import keywords_of, probe
from tenfold.modules.deepicon.raster import draw_strokes
from tenfold.modules.deepicon.tracers import ink_document
from tenfold.modules.metrics.vector import compare_icons
from tenfold.modules.svg import Document, parse_svg, render

CODEC = IconCodec(max_paths=4, max_commands=12)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#000"
stroke-width="2" stroke-linecap="round" stroke-linejoin="round">{}</svg>"""
TWO = parse_svg(SVG.format('<rect x="4" y="4" width="7" height="9"/><path d="M16 5v14"/>'))


def tracers() -> list[Tracer]:
    found: list[Tracer] = [VTracer(), VTracer("color"), VTracer(mode="polygon")]
    if shutil.which("potrace"):
        found.append(Potrace())
    return found


@pytest.mark.parametrize("tracer", tracers(), ids=lambda tracer: type(tracer).__name__)
def test_tracers_give_back_the_ink_as_outlines(tracer):
    """Two strokes: two regions, one of them with a hole; none is the line that was drawn."""
    picture = render([TWO], (128, 128))[0]
    tracer.prepare()
    traced = tracer.trace(picture, IconStyle())
    one = compare_icons(traced, TWO)
    assert one.ink_iou > 0.9
    assert one.num_paths in (2, 3)
    assert one.num_matched == 0


def test_autotrace_finds_middle_lines():
    pytest.importorskip("autotrace")
    picture = render([TWO], (128, 128))[0]
    lines, outlines = AutoTrace(), AutoTrace(centerline=False)
    for tracer in (lines, outlines):
        tracer.prepare()
    one = compare_icons(lines.trace(picture, IconStyle()), TWO)
    assert one.num_paths == 2
    assert one.num_matched == 2
    outline = compare_icons(outlines.trace(picture, IconStyle()), TWO)
    assert outline.ink_iou > 0.85
    assert outline.num_matched == 0


def test_a_missing_tracer_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ImportError, match="apt-get install potrace"):
        Potrace().prepare()
    monkeypatch.setitem(__import__("sys").modules, "vtracer", None)
    with pytest.raises(ImportError, match=r"tenfold\[icons\]"):
        VTracer().prepare()


def test_paper_under_everything_is_no_path():
    text = '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="48"><path fill="#fdfdfd" '
    text += 'd="M0 0h48v48h-48z"/><path fill="#102030" d="M9 9h20v20h-20z"/><path fill="#fff" '
    text += 'd="M12 12h5v5h-5z"/></svg>'
    document = ink_document(parse_svg(text))
    assert [shape.fill.color[0] for shape in document.shapes()] == [0, 1]
    assert document.view_box == (0, 0, 24, 24)


class Blank(Tracer):
    def trace(self, image_3SS, style):
        return Document((0, 0, 24, 24))


class Perfect(Tracer):
    """Knows the test icons by heart."""

    def __init__(self):
        self.icons, self.next = replace(GeneratedIcons(max_shapes=4), split=2), 0

    def trace(self, image_3SS, style):
        self.next += 1
        return self.icons[self.next - 1]


def test_all_tracers_are_measured_on_the_same_icons(tmp_path):
    module = TracingModule([Perfect(), Blank()], codec=CODEC, metric_size=48)
    data = GeneratedIconDataModule(
        GeneratedIcons(max_shapes=4), num_test=6, codec=CODEC, image_size=48, batch_size=4
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    (values,) = trainer.test(module, data, verbose=False)
    assert values["test/Perfect/matched_f1"] == pytest.approx(1)
    assert values["test/Perfect/count_accuracy"] == 1
    assert values["test/Blank/empty"] == 1
    assert values["test/Blank/mse"] == values["test/Blank/blank_mse"] > 0
    assert set(module.figures()) == {"icons_Perfect", "icons_Blank", "pareto"}
    with pytest.raises(ValueError, match="labels"):
        TracingModule([Blank(), Blank()])


# Paths from pictures alone.


def test_drawn_strokes_are_those_of_the_renderer():
    torch.manual_seed(0)
    args = torch.rand(1, 2, 3, 6) * 1.4 - 0.7
    types = torch.full((1, 2, 13), 6)
    types[..., 0], types[..., 1:3], types[..., 3] = 0, 2, 4
    padded = torch.zeros(1, 2, 13, 6)
    padded[:, :, :3] = args
    visible = torch.ones(2, dtype=torch.bool)
    icon = IconTensors(types[0], padded[0], visible, torch.zeros(2, dtype=torch.int64))
    sharp = draw_strokes(args, torch.tensor([2.0]), 96, softness=0.05, num_chords=24)[0]
    reference = render([IconCodec(2, 12).decode(icon)], (96, 96))[0, 0]
    inked = (sharp < 0.5), (reference < 0.5)
    assert (inked[0] & inked[1]).sum() / (inked[0] | inked[1]).sum() > 0.99


def test_paths_follow_a_picture():
    data = GeneratedIconDataModule(
        GeneratedIcons(max_shapes=1), num_train=4, codec=CODEC, image_size=32, batch_size=4
    )
    batch = next(iter(data.train_dataloader()))
    decoder = RasterDecoder(1, 1, num_heads=2, dropout=0.0, raster_size=24)
    module = DeepIconModule(ConvIconEncoder(32, (8, 16), 32), decoder, CODEC, 32)
    module.configure_model()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    found = []
    for _ in range(40):
        loss, means, _ = module.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(means["raster"].item())
    assert found[-1] < 0.7 * found[0]
    assert not [name for name, p in module.named_parameters() if p.grad is None]
    icons = module.predict_icons(batch["image"])
    assert icons.visible.all()
    assert all(len(list(CODEC.decode(icon).shapes())) == 4 for icon in icons.icons())


# The probe.


def test_a_probe_finds_what_is_linear_in_features_and_nothing_else():
    rng = np.random.default_rng(0)
    names = [f"{rng.choice(['user', 'file', 'cloud'])}-{index}" for index in range(150)]
    keywords, labels = keywords_of(names, min_icons=10)
    assert keywords == ["cloud", "file", "user"]
    telling = labels @ rng.normal(size=(3, 8)) + 0.1 * rng.normal(size=(150, 8))
    assert probe(telling, labels).min() > 0.95
    assert probe(rng.normal(size=(150, 8)), labels).max() < 0.6
