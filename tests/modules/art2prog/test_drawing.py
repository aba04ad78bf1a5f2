"""Pictures of programs: against independent programs, and as files that others open."""

import io
import math
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from programs import LANGUAGE, square
from svg_oracles import far_from_edges, resvg, skia_coverage
from tenfold.datamodules.programs import ProgramSampler
from tenfold.kernels.compositing import BLEND_MODES, on_background
from tenfold.modules.art2prog.drawing import Renderer
from tenfold.modules.art2prog.editing import (
    delete_layer,
    edit_line,
    move_layer,
    raise_layer,
    recolor_layer,
    set_mode,
    set_opacity,
)
from tenfold.modules.art2prog.export import export_program, program_svg
from tenfold.modules.art2prog.language import Language, ProgramError
from tenfold.modules.art2prog.layers import document, execute, picture_of, program_of
from tenfold.modules.svg import parse_svg, render

RICH = replace(LANGUAGE, blend_modes=BLEND_MODES, opacities=(0.25, 0.5, 0.75))
SIZE = 96


def programs(number: int, language: Language = RICH):
    sampler = ProgramSampler(language, layer_probs=[0.3, 0.4, 0.3], visible_corners=False)
    return [sampler.program(np.random.default_rng(seed)) for seed in range(number)]


def assert_like(image, expected, picture):
    """Within 2 / 255 farther than a pixel from each edge, within 1 / 255 in the mean."""
    far = far_from_edges(Renderer(RICH, SIZE).coverage([picture])[0])
    difference = (image - expected).abs()
    assert far.sum() > 100
    assert difference[:, far].max() <= 2 / 255
    assert difference.mean() <= 1 / 255


@pytest.mark.parametrize("number", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_svg_is_drawn_alike_by_resvg(number):
    for program in programs(number):
        picture = picture_of(program)
        ours = Renderer(RICH, SIZE).pictures([picture])[0].double()
        assert_like(ours, on_background(resvg(program_svg(program, RICH), (SIZE, SIZE))), picture)


@pytest.mark.parametrize("number", [15, pytest.param(150, marks=pytest.mark.slow)])
def test_ora_is_drawn_alike_by_pyora(number, tmp_path):
    """Pyora reads the layers and blends them by its own rules."""
    pyora = pytest.importorskip("pyora")
    language = replace(RICH, blend_modes=("normal", "multiply", "screen", "darken", "lighten"))
    for program in programs(number, language):
        picture = picture_of(program)
        _, _, path = export_program(program, language, tmp_path / "art")
        project = pyora.Project.load(str(path))
        pixels = torch.from_numpy(np.array(project.get_image_data(use_original=False))) / 255
        image = pixels.permute(2, 0, 1).double()
        drawn = Renderer(language, image.shape[1]).pictures([picture])[0].double()
        far = far_from_edges(Renderer(language, image.shape[1]).coverage([picture])[0])
        difference = (image[:3] - drawn).abs()
        assert image[3].min() == 1
        assert difference[:, far].max() <= 2 / 255
        assert difference.mean() <= 1 / 255
        layers = [x for x in project.children_recursive if x.type == pyora.TYPE_LAYER]
        names = [layer.name for layer in layers]
        assert sorted(names) == [*sorted(f"layer-{n + 1}" for n in range(len(picture))), "paper"]


def test_ora_is_what_the_format_asks_for(tmp_path):
    program = programs(8)[7]
    path = export_program(program, RICH, tmp_path / "art")[2]
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"image/openraster"
        merged = np.array(Image.open(io.BytesIO(archive.read("mergedimage.png"))))
        assert max(Image.open(archive.open("Thumbnails/thumbnail.png")).size) <= 256
    ours = Renderer(RICH, 512).pictures([picture_of(program)])[0]
    assert np.abs(merged[..., :3] / 255 - ours.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    before = path.read_bytes()
    export_program(program, RICH, tmp_path / "art")
    assert path.read_bytes() == before


def test_openraster_without_exclusion_says_so(tmp_path):
    exclusion = (square(0, 0, 4), square(2, 2, 4, color=1, mode="exclusion"))
    with pytest.warns(UserWarning, match="OpenRaster has no exclusion"):
        export_program(program_of(exclusion), RICH, tmp_path / "art")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = (exclusion[0], replace(exclusion[1], mode="difference"))
        export_program(program_of(difference), RICH, tmp_path / "art")


def test_our_two_renderers_agree_and_the_text_is_read_back(tmp_path):
    found = programs(20)
    pictures = [picture_of(program) for program in found]
    ours = Renderer(RICH, SIZE).pictures(pictures)
    documents = [document(picture, RICH) for picture in pictures]
    theirs = render(documents, (SIZE, SIZE))
    assert (ours - theirs).abs().mean() < 0.1 / 255
    for program, picture in zip(found, pictures, strict=True):
        parsed = parse_svg(program_svg(program, RICH), keep_arcs=True)
        again = render([parsed], (SIZE, SIZE))[0]
        assert_like(again, Renderer(RICH, SIZE).pictures([picture])[0], picture)
        path = export_program(program, RICH, tmp_path / "art")[0]
        assert RICH.parse(path.read_text(), str(path)) == program


def test_coverage_of_arcs_is_that_of_skia():
    import skia

    for program in programs(30, replace(LANGUAGE, blend_modes=("normal",))):
        picture = picture_of(program)
        covered = Renderer(LANGUAGE, SIZE, samples=16).coverage([picture])[0]
        for layer, ours in zip(picture, covered, strict=True):
            (shape,) = document((layer,), LANGUAGE).children
            (path,) = shape.subpaths
            scale = SIZE / 8
            drawn = skia.Path()
            drawn.moveTo(path.x * scale, path.y * scale)
            for segment in path.segments:
                end = (segment.x * scale, segment.y * scale)
                if hasattr(segment, "rx"):
                    size = skia.Path.ArcSize.kSmall_ArcSize
                    turn = skia.PathDirection.kCW if segment.sweep else skia.PathDirection.kCCW
                    radius = segment.rx * scale
                    drawn.arcTo(radius, radius, 0, size, turn, *end)
                else:
                    drawn.lineTo(*end)
            drawn.close()
            expected = skia_coverage(drawn, (SIZE, SIZE), samples=8)
            assert (ours - expected).abs().mean() < 2e-3


def test_states_show_what_each_line_leaves_behind():
    program = program_of((square(1, 1, 5, color=2),))
    states = Renderer(LANGUAGE, 64).states(execute(program))
    assert states.shape == (6, 4, 64, 64)
    assert states.dtype == torch.uint8
    pen = [int(8 * (1 + 0.5)), int(8 * (6 + 0.5))]
    assert states[0, 3, pen[0], pen[0]] == 255  # the dot of Create(1,1)
    assert states[1, 3, pen[0], pen[1]] == 255
    assert states[1, 3].count_nonzero() > states[0, 3].count_nonzero()
    middle = states[:, :, 30, 30]
    assert (middle[:5] == torch.tensor([255, 255, 255, 0])).all()  # nothing, on white
    assert middle[5].tolist() == [*LANGUAGE.palette[2], 255]


def test_a_quarter_disc_has_the_area_of_one():
    program = LANGUAGE.parse(
        "Create(2,2)\nStraight(6,2, 1)\nCircle(2,6,4,cw, 2)\nStraight(2,2, 3)\nFillcolor(0, 4)"
    )
    covered = Renderer(LANGUAGE, 256).coverage([picture_of(program)])[0]
    assert float(covered.sum()) / 32**2 == pytest.approx(math.pi * 4, rel=2e-3)


def test_programs_are_edited_as_a_person_would():
    program = program_of((square(0, 0, 3), square(2, 2, 3, color=1, mode="multiply")))
    language = replace(LANGUAGE, opacities=(0.5,))
    image = Renderer(language, 64).pictures

    def pixel(program, x, y):
        scale = 8
        values = image([picture_of(program)])[0][:, int((y + 0.5) * scale), int((x + 0.5) * scale)]
        return [round(float(v) * 255) for v in values]

    red, green = language.palette[:2]
    both = [round(a * b / 255) for a, b in zip(red, green, strict=True)]
    assert pixel(program, 2.5, 2.5) == pytest.approx(both, abs=1)
    assert pixel(set_mode(program, language, 2, "normal"), 2.5, 2.5) == [*green]
    assert pixel(move_layer(program, language, 2, 1, 1), 2.5, 2.5) == [*red]
    assert pixel(recolor_layer(program, language, 1, 2), 0.5, 0.5) == [*language.palette[2]]
    assert pixel(delete_layer(program, language, 1), 0.5, 0.5) == [255, 255, 255]
    assert pixel(edit_line(program, language, 6, color=2), 0.5, 0.5) == [*language.palette[2]]
    half = set_opacity(program, language, 1, 0.5)
    assert pixel(half, 0.5, 0.5) == pytest.approx([(v + 255) / 2 for v in red], abs=1)
    assert set_opacity(half, language, 1, 1) == program
    lifted = raise_layer(set_mode(program, language, 2, "normal"), language, 1)
    assert pixel(lifted, 2.5, 2.5) == [*red]
    for edit, message in (
        (lambda: move_layer(program, language, 2, 3, 0), r"point \(8, 2\) is not on the grid"),
        (lambda: set_mode(program, language, 1, "multiply"), "layer 1 lies on nothing"),
        (lambda: set_mode(program, language, 2, "screen"), "screen is none of"),
        (lambda: set_opacity(program, language, 2, 0.7), "opacity 0.7"),
        (lambda: recolor_layer(program, language, 3, 0), "there are layers 1 to 2"),
        (lambda: edit_line(program, language, 6, x=0), "Fillcolor has color, outline"),
        (lambda: edit_line(program, language, 99, x=0), "lines 1 to"),
        (lambda: raise_layer(program, language, 2), "cannot move by 1"),
    ):
        with pytest.raises(ValueError, match=message):
            edit()
    with pytest.raises(ProgramError):
        edit_line(program, language, 6, color=99)
    with pytest.raises(ValueError, match="the only layer"):
        delete_layer(delete_layer(program, language, 1), language, 1)
