"""Blending against the formulas of the W3C in plain Python, and its gradients.

`tests/modules/test_svg_rendering.py` compares all modes with resvg. Triton's code runs in
`interpreted/check_compositing.py`; here it is compiled for a GPU that this machine does not have.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.kernels import compositing_triton
from tenfold.kernels.compositing import (
    BLEND_MODES,
    blend,
    composite_images,
    composite_layers,
    mode_numbers,
    on_background,
    unpremultiplied,
)
from torch import Tensor

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


def w3c_blend(mode: str, b: float, s: float) -> float:
    """Section 9.1 of Compositing and Blending Level 1, as it is written there."""

    def multiply(b: float, s: float) -> float:
        return b * s

    def screen(b: float, s: float) -> float:
        return 1 - (1 - b) * (1 - s)

    def hard_light(b: float, s: float) -> float:
        return multiply(b, 2 * s) if s <= 0.5 else screen(b, 2 * s - 1)

    def dodge(b: float, s: float) -> float:
        return 0 if b == 0 else 1 if s == 1 else min(1, b / (1 - s))

    def burn(b: float, s: float) -> float:
        return 1 if b == 1 else 0 if s == 0 else 1 - min(1, (1 - b) / s)

    def soft_light(b: float, s: float) -> float:
        if s <= 0.5:
            return b - (1 - 2 * s) * b * (1 - b)
        lighter = ((16 * b - 12) * b + 4) * b if b <= 0.25 else math.sqrt(b)
        return b + (2 * s - 1) * (lighter - b)

    functions = {
        "normal": lambda b, s: s,
        "multiply": multiply,
        "screen": screen,
        "overlay": lambda b, s: hard_light(s, b),
        "darken": min,
        "lighten": max,
        "color-dodge": dodge,
        "color-burn": burn,
        "hard-light": hard_light,
        "soft-light": soft_light,
        "difference": lambda b, s: abs(b - s),
        "exclusion": lambda b, s: b + s - 2 * b * s,
    }
    return functions[mode](b, s)


@given(
    st.sampled_from(BLEND_MODES),
    st.lists(UNIT, min_size=4, max_size=4),
    st.lists(UNIT, min_size=5, max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_one_layer_is_the_formula_of_the_w3c(mode, backdrop, layer):
    *colors_b, alpha_b = backdrop
    *colors_s, covered, opacity = layer
    below = torch.tensor([*(c * alpha_b for c in colors_b), alpha_b], dtype=torch.float64)
    image = composite_layers(
        torch.tensor(covered, dtype=torch.float64).view(1, 1, 1, 1),
        torch.tensor(colors_s, dtype=torch.float64).view(1, 1, 3),
        torch.tensor(opacity, dtype=torch.float64).view(1, 1),
        mode_numbers([mode])[None],
        below.view(1, 4, 1, 1),
    ).flatten()
    alpha_s = covered * opacity
    for channel, (b, s) in enumerate(zip(colors_b, colors_s, strict=True)):
        # What the premultiplied backdrop holds; of next to nothing no colour is left.
        b = float(below[channel] / alpha_b) if alpha_b > 0 else 0.0
        expected = alpha_s * (1 - alpha_b) * s + (1 - alpha_s) * alpha_b * b
        expected += alpha_s * alpha_b * w3c_blend(mode, min(b, 1.0), s)
        assert float(image[channel]) == pytest.approx(expected, abs=1e-9)
    assert float(image[3]) == pytest.approx(alpha_s + alpha_b * (1 - alpha_s), abs=1e-12)


def random_layers(num_layers: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Coverage, colours and opacities of two images."""
    shapes = ((2, num_layers, 3, 2), (2, num_layers, 3), (2, num_layers))
    return [torch.rand(shape, dtype=dtype) * 0.9 + 0.05 for shape in shapes]


def random_backdrop(dtype: torch.dtype = torch.float64) -> Tensor:
    alpha = torch.rand(2, 1, 3, 2, dtype=dtype) * 0.9 + 0.05
    return torch.cat((torch.rand(2, 3, 3, 2, dtype=dtype) * alpha, alpha), dim=1)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_gradients_are_those_of_finite_differences(mode):
    modes = mode_numbers([mode, "normal", mode]).expand(2, 3)
    inputs = [value.requires_grad_() for value in (*random_layers(3), random_backdrop())]

    def draw(coverage: Tensor, color: Tensor, opacity: Tensor, backdrop: Tensor) -> Tensor:
        return composite_layers(coverage, color, opacity, modes, backdrop)

    def draw_prefixes(*values: Tensor) -> Tensor:
        coverage, color, opacity, backdrop = values
        return composite_layers(coverage, color, opacity, modes, backdrop, prefixes=True)

    assert torch.autograd.gradcheck(draw, inputs)
    assert torch.autograd.gradcheck(draw_prefixes, inputs)


def test_gradients_differ_by_image_and_end_where_nothing_is_given():
    modes = torch.tensor([[0, 1, 0, 9], [6, 0, 2, 1]])
    coverage, color, _ = [value.requires_grad_() for value in random_layers()]
    coverage.data[:, :, 0] = 0
    coverage.data[:, 0, 1] = 1  # opaque
    assert torch.autograd.gradcheck(
        lambda *values: composite_layers(*values, None, modes)[..., 1:, :], (coverage, color)
    )
    image = composite_layers(coverage, color, None, modes)
    for gradient in torch.autograd.grad(image.sum(), (coverage, color)):
        assert gradient.isfinite().all()


def test_prefixes_are_the_images_after_each_layer():
    coverage, color, opacity = random_layers()
    modes = torch.tensor([[0, 1, 5, 9], [6, 0, 2, 1]])
    prefixes = composite_layers(coverage, color, opacity, modes, prefixes=True)
    for n in range(1, 5):
        first = coverage[:, :n], color[:, :n], opacity[:, :n], modes[:, :n]
        assert torch.equal(prefixes[:, n - 1], composite_layers(*first))


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_a_layer_of_no_opacity_changes_nothing_and_one_on_nothing_is_itself(mode):
    coverage, color, opacity = random_layers(1)
    backdrop, number = random_backdrop(), mode_numbers([mode]).expand(2, 1)
    same = composite_layers(coverage, color, torch.zeros_like(opacity), number, backdrop)
    assert torch.equal(same, backdrop)
    alone = composite_layers(coverage, color, opacity, number)
    torch.testing.assert_close(alone, composite_layers(coverage, color, opacity))


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_an_image_of_one_layer_blends_as_the_layer(mode):
    coverage, color, opacity = random_layers(1)
    backdrop, number = random_backdrop().requires_grad_(), mode_numbers([mode]).expand(2)
    expected = composite_layers(coverage, color, opacity, number[:, None], backdrop)
    source = composite_layers(coverage, color)
    image = composite_images(backdrop, source, number, opacity[:, 0])
    torch.testing.assert_close(image, expected)
    slopes = [torch.autograd.grad(each.square().sum(), backdrop)[0] for each in (image, expected)]
    torch.testing.assert_close(*slopes)


def test_backgrounds_and_straight_colours():
    image = random_backdrop()
    straight = unpremultiplied(image)
    torch.testing.assert_close(straight[:, :3] * straight[:, 3:], image[:, :3])
    paper = on_background(image, (0.2, 0.4, 0.6))
    color = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64).view(3, 1, 1)
    expected = torch.lerp(color.expand(2, 3, 3, 2), straight[:, :3], image[:, 3:])
    torch.testing.assert_close(paper, expected)
    assert torch.equal(unpremultiplied(torch.zeros(1, 4, 1, 1)), torch.zeros(1, 4, 1, 1))


def test_blend_takes_what_broadcasts():
    shades = torch.linspace(0, 1, 5)
    assert torch.equal(blend(shades[:, None], shades, "multiply"), shades[:, None] * shades)


def test_operation_is_registered_right():
    layers = [value.float().requires_grad_() for value in random_layers()]
    modes = torch.tensor([[0, 1, 5, 9], [6, 0, 2, 1]])
    backdrop = random_backdrop(torch.float32).requires_grad_()
    op = torch.ops.tenfold.composite_layers
    torch.library.opcheck(op, (*layers, modes, backdrop, False, "reference"))
    torch.library.opcheck(op, (*layers[:2], None, None, None, True, "reference"))


def test_a_network_compiles_into_one_graph():
    coverage, color, opacity = [value.requires_grad_() for value in random_layers()]
    modes = torch.tensor([[0, 1, 5, 9], [6, 0, 2, 1]])

    def draw(coverage: Tensor) -> Tensor:
        return on_background(composite_layers(coverage, color, opacity, modes))

    fast = torch.compile(draw, backend="aot_eager", fullgraph=True)
    slopes = [torch.autograd.grad(each(coverage).sum(), color)[0] for each in (fast, draw)]
    torch.testing.assert_close(*slopes)


COVERAGE, COLOR = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: composite_layers(COVERAGE.half(), COLOR),
            "coverage: dtype torch.float16, expected float32",
        ),
        (
            lambda: composite_layers(COVERAGE[:, :0], COLOR[:, :0]),
            r"coverage: shape \(2, 0, 4, 5\), expected .* L >= 1",
        ),
        (
            lambda: composite_layers(COVERAGE, COLOR[:1]),
            r"color: torch.float32 of shape \(1, 3, 3\).*\(2, 3, 3\)",
        ),
        (lambda: composite_layers(COVERAGE, COLOR.double()), "color: torch.float64 .*float32"),
        (
            lambda: composite_layers(COVERAGE, COLOR, torch.zeros(2)),
            r"opacity: .*\(2,\).*\(2, 3\)",
        ),
        (
            lambda: composite_layers(COVERAGE, COLOR, None, torch.zeros(2, 3)),
            "mode: torch.float32 .*expected torch.int64",
        ),
        (
            lambda: composite_layers(COVERAGE, COLOR, None, torch.full((2, 3), 12)),
            "mode: numbers from 12 to 12, expected 0 to 11",
        ),
        (
            lambda: composite_images(
                torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1), -torch.ones(1).long()
            ),
            "mode: numbers from -1 to -1",
        ),
        (
            lambda: composite_layers(COVERAGE, COLOR, None, None, torch.zeros(2, 3, 4, 5)),
            r"backdrop: .*\(2, 3, 4, 5\).*\(2, 4, 4, 5\)",
        ),
        (lambda: mode_numbers(["hue"]), "blend mode: 'hue' is none of normal, multiply"),
        (
            lambda: composite_layers(COVERAGE, COLOR, backend="compile"),
            "not offered for compositing",
        ),
        (lambda: composite_layers(COVERAGE, COLOR, backend="triton"), "needs a CUDA device"),
    ],
)
def test_a_wrong_argument_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_triton_code_in_the_interpreter(run_checks):
    pytest.importorskip("triton")
    assert run_checks("check_compositing.py") >= 16


@pytest.mark.gpu
def test_triton_code_on_a_gpu(run_checks):
    assert run_checks("check_compositing.py", interpret=False) >= 16


@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("everything", [False, True])
def test_triton_code_compiles_for_a_gpu(architecture, everything, compile_for_gpu):
    kernel = compositing_triton._composite_kernel
    constants = dict.fromkeys(("HAS_OPACITY", "HAS_MODE", "HAS_BACKDROP", "PREFIXES"), everything)
    constants["BLOCK"] = compositing_triton.BLOCK
    types = dict.fromkeys(kernel.arg_names, "*fp32") | {"mode_ptr": "*i64", "L": "i32", "P": "i32"}
    binary = compile_for_gpu(kernel, types, constants, architecture)
    assert binary.metadata.shared <= 48 * 1024  # what a program gets without asking for more
