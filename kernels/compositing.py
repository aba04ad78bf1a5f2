"""Layers of one colour each, blended one over the other into an image (W3C Compositing, Level 1).

With straight colours C in [0, 1], b the backdrop and s the source, whose alpha is coverage times
opacity, and B the blend function of `blend`:

    alpha_o = alpha_s + alpha_b (1 - alpha_s)
    c_o = alpha_s (1 - alpha_b) C_s + alpha_s alpha_b B(C_b, C_s) + (1 - alpha_s) c_b

c is premultiplied, C times alpha: what is kept between layers, so that nothing is divided but by
the alpha of a backdrop that is blended with. Values are sRGB-encoded, as in browsers and painting
tools. Computed in float32 (float64 for float64 inputs), whatever autocast says.

Performance. A layer of mode "normal" is one pass over the image (a linear interpolation), another
mode about fifteen over the images that use it. Triton keeps a pixel in registers through all
layers: it reads 4 bytes per pixel and layer and writes 16 per pixel. The gradient is computed by
torch in every backend. `tests/benchmarks/polygon_raster.py` prints the ratio to a loop over Skia.

Shape suffixes: B images, L layers, H rows, W columns; 4 channels are red, green, blue, alpha.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import compositing_triton
from .backend import check_uncompiled_backend, uses_triton

BlendMode = Literal[
    "normal",
    "multiply",
    "screen",
    "overlay",
    "darken",
    "lighten",
    "color-dodge",
    "color-burn",
    "hard-light",
    "soft-light",
    "difference",
    "exclusion",
]
BLEND_MODES: tuple[BlendMode, ...] = get_args(BlendMode)  # by number
CompositingBackend = Literal["auto", "reference", "triton"]

PIXELS = 1 << 16  # of the images that the reference works on at a time: they stay in the cache


def composite_layers(
    coverage_BLHW: Tensor,
    color_BL3: Tensor,
    opacity_BL: Tensor | None = None,
    mode_BL: Tensor | None = None,
    backdrop_B4HW: Tensor | None = None,
    prefixes: bool = False,
    backend: CompositingBackend = "auto",
) -> Tensor:
    """Blends layers from the first, the lowest, to the last; differentiable in all that is no mode.

    A layer of opacity 0 changes nothing, whatever else it holds: images with fewer layers than
    others are filled up with such.

    Args:
        coverage_BLHW: (B, L, H, W) float32 or float64 in [0, 1].
        color_BL3: (B, L, 3) of the same dtype in [0, 1], straight.
        opacity_BL: (B, L) of the same dtype in [0, 1]; by default 1.
        mode_BL: (B, L) int64, numbers in `BLEND_MODES` (`mode_numbers`); by default normal.
        backdrop_B4HW: (B, 4, H, W) of the same dtype, premultiplied; by default transparent.
        prefixes: Whether to return the image after each layer, not only after the last.
        backend: "auto" (Triton on CUDA), "reference" or "triton".

    Returns:
        (B, 4, H, W) premultiplied, or with `prefixes` (B, L, 4, H, W).

    Raises:
        ValueError: A dtype, shape or device does not fit, a mode is unknown, or the backend is not
            available.
    """
    check_uncompiled_backend(backend, "compositing")
    _check_layers(coverage_BLHW, color_BL3, opacity_BL, mode_BL, backdrop_B4HW)
    images_BN4HW: Tensor = _composite(
        coverage_BLHW, color_BL3, opacity_BL, mode_BL, backdrop_B4HW, prefixes, backend
    )
    return images_BN4HW if prefixes else images_BN4HW.squeeze(1)


def composite_images(
    backdrop_B4HW: Tensor,
    source_B4HW: Tensor,
    mode_B: Tensor | None = None,
    opacity_B: Tensor | None = None,
) -> Tensor:
    """Blends an image over another, as a group of layers over what lies below it; differentiable.

    Args:
        backdrop_B4HW: (B, 4, H, W) floating point, premultiplied.
        source_B4HW: The same for the image above.
        mode_B: (B,) int64, numbers in `BLEND_MODES`; by default normal.
        opacity_B: (B,) of the source, in [0, 1]; by default 1.

    Returns:
        (B, 4, H, W) premultiplied.

    Raises:
        ValueError: A mode is unknown.
    """
    alpha = source_B4HW[:, 3:]
    straight = torch.cat((_straight(source_B4HW), torch.ones_like(alpha)), dim=1)
    if opacity_B is not None:
        alpha = alpha * opacity_B.view(-1, 1, 1, 1)
    if mode_B is not None:
        _check_modes(mode_B)
    return _over(backdrop_B4HW, straight, alpha, mode_B)


def on_background(image_B4HW: Tensor, color: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Returns (..., 3, H, W) in [0, 1]: premultiplied images (..., 4, H, W) on an opaque colour."""
    color_311 = torch.tensor(color, dtype=image_B4HW.dtype, device=image_B4HW.device)
    alpha = image_B4HW[..., 3:, :, :]
    return (image_B4HW[..., :3, :, :] + (1 - alpha) * color_311.view(3, 1, 1)).clamp(0, 1)


def unpremultiplied(image_B4HW: Tensor) -> Tensor:
    """Returns (B, 4, H, W) with straight colours, black where nothing is."""
    return torch.cat((_straight(image_B4HW), image_B4HW[:, 3:]), dim=1)


def mode_numbers(modes: Sequence[BlendMode]) -> Tensor:
    """Returns the numbers of blend modes, int64.

    Raises:
        ValueError: A name is none of `BLEND_MODES`.
    """
    for mode in modes:
        if mode not in BLEND_MODES:
            raise ValueError(f"blend mode: {mode!r} is none of {', '.join(BLEND_MODES)}")
    return torch.tensor([BLEND_MODES.index(mode) for mode in modes], dtype=torch.int64)


def blend(backdrop: Tensor, source: Tensor, mode: BlendMode) -> Tensor:
    """Returns B(C_b, C_s) of straight colours in [0, 1], each channel by itself."""
    result: Tensor = _BLEND[mode](backdrop, source)
    return result


def _hard_light(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(s <= 0.5, 2 * b * s, _screen(b, 2 * s - 1))


def _screen(b: Tensor, s: Tensor) -> Tensor:
    return b + s - b * s


def _color_dodge(b: Tensor, s: Tensor) -> Tensor:
    dodged = (b / torch.where(s < 1, 1 - s, 1.0)).clamp(max=1)
    return torch.where(b == 0, 0.0, torch.where(s == 1, 1.0, dodged))


def _color_burn(b: Tensor, s: Tensor) -> Tensor:
    burnt = 1 - ((1 - b) / torch.where(s > 0, s, 1.0)).clamp(max=1)
    return torch.where(b == 1, 1.0, torch.where(s == 0, 0.0, burnt))


def _soft_light(b: Tensor, s: Tensor) -> Tensor:
    # The square root is taken from 1/4 on: below, its slope would spoil gradients that are not its.
    lighter = torch.where(b <= 0.25, ((16 * b - 12) * b + 4) * b, b.clamp(min=0.25).sqrt())
    return b + (2 * s - 1) * torch.where(s <= 0.5, b * (1 - b), lighter - b)


_BLEND: dict[BlendMode, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda b, s: s,
    "multiply": lambda b, s: b * s,
    "screen": _screen,
    "overlay": lambda b, s: _hard_light(s, b),
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "color-dodge": _color_dodge,
    "color-burn": _color_burn,
    "hard-light": _hard_light,
    "soft-light": _soft_light,
    "difference": lambda b, s: (b - s).abs(),
    "exclusion": lambda b, s: b + s - 2 * b * s,
}


def _hard_light_slopes(b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    low = s <= 0.5
    return torch.where(low, 2 * s, 2 - 2 * s), torch.where(low, 2 * b, 2 - 2 * b)


def _darken_slopes(b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return (b < s).to(b.dtype), (b >= s).to(b.dtype)


def _color_dodge_slopes(b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.where(b < 1 - s, 1 / torch.where(s < 1, 1 - s, 1.0), 0.0)
    return slope, b * slope * slope


def _color_burn_slopes(b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.where(1 - b < s, 1 / torch.where(s > 0, s, 1.0), 0.0)
    return slope, (1 - b) * slope * slope


def _soft_light_slopes(b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    root = b.clamp(min=0.25).sqrt()
    lighter = torch.where(b <= 0.25, ((16 * b - 12) * b + 4) * b, root)
    steepness = torch.where(b <= 0.25, (48 * b - 24) * b + 4, 0.5 / root)
    low = s <= 0.5
    of_b = 1 + (2 * s - 1) * torch.where(low, 1 - 2 * b, steepness - 1)
    return of_b, 2 * torch.where(low, b * (1 - b), lighter - b)


# The derivatives of B with respect to backdrop and source.
_SLOPES: dict[BlendMode, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "normal": lambda b, s: (torch.zeros_like(b), torch.ones_like(b)),
    "multiply": lambda b, s: (s, b),
    "screen": lambda b, s: (1 - s, 1 - b),
    "overlay": lambda b, s: _hard_light_slopes(s, b)[::-1],
    "darken": _darken_slopes,
    "lighten": lambda b, s: _darken_slopes(b, s)[::-1],
    "color-dodge": _color_dodge_slopes,
    "color-burn": _color_burn_slopes,
    "hard-light": _hard_light_slopes,
    "soft-light": _soft_light_slopes,
    "difference": lambda b, s: ((b - s).sign(), (s - b).sign()),
    "exclusion": lambda b, s: (1 - 2 * s, 1 - 2 * b),
}


def _check_layers(
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
) -> None:
    if coverage.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"coverage: dtype {coverage.dtype}, expected float32 or float64")
    if coverage.dim() != 4 or coverage.shape[1] == 0:
        raise ValueError(
            f"coverage: shape {tuple(coverage.shape)}, expected (B, L, H, W) with L >= 1"
        )
    B, L, H, W = coverage.shape
    like = coverage.dtype
    for name, value, shape, dtype in (
        ("color", color, (B, L, 3), like),
        ("opacity", opacity, (B, L), like),
        ("mode", mode, (B, L), torch.int64),
        ("backdrop", backdrop, (B, 4, H, W), like),
    ):
        if value is not None and (
            value.dtype != dtype or tuple(value.shape) != shape or value.device != coverage.device
        ):
            raise ValueError(
                f"{name}: {value.dtype} of shape {tuple(value.shape)} on {value.device}, expected"
                f" {dtype} of shape {shape} on {coverage.device}, as coverage is"
            )


def _check_modes(mode: Tensor) -> None:
    if mode.numel() and not (int(mode.min()) >= 0 and int(mode.max()) < len(BLEND_MODES)):
        raise ValueError(
            f"mode: numbers from {int(mode.min())} to {int(mode.max())}, expected 0 to"
            f" {len(BLEND_MODES) - 1}, places in BLEND_MODES"
        )


# Reference: the definition.


def _straight(image_B4HW: Tensor) -> Tensor:
    """Returns the colours (B, 3, H, W) of a premultiplied image."""
    alpha = image_B4HW[:, 3:]
    return (image_B4HW[:, :3] / torch.where(alpha > 0, alpha, 1.0)).clamp(0, 1)


def _over(backdrop: Tensor, source: Tensor, alpha: Tensor, mode_B: Tensor | None) -> Tensor:
    """Returns the backdrop (B, 4, H, W) under a source of straight colour and alpha 1.

    Args:
        backdrop: Premultiplied.
        source: (B, 4, H, W), or what broadcasts to it.
        alpha: (B, 1, H, W), of the source.
        mode_B: Blend modes.
    """
    for mode, rows in _rows_by_mode(mode_B):
        below, above = backdrop[rows], source[rows]
        blended = blend(_straight(below), above[:, :3], mode)
        mixed = torch.lerp(above[:, :3].expand_as(blended), blended, below[:, 3:])
        whole = torch.cat((mixed, torch.ones_like(below[:, 3:])), dim=1)
        source = source.expand_as(backdrop).index_copy(0, rows, whole)
    return torch.lerp(backdrop, source.expand_as(backdrop), alpha)


def _rows_by_mode(mode_B: Tensor | None) -> list[tuple[BlendMode, Tensor]]:
    """Returns the modes that are not normal, each with the images that use it."""
    if mode_B is None:
        return []
    used = sorted(set(mode_B.tolist()) - {0})
    return [(BLEND_MODES[n], (mode_B == n).nonzero().squeeze(1)) for n in used]


def _composite_reference(
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
    prefixes: bool,
) -> Tensor:
    """Returns (B, L, 4, H, W) if prefixes are asked for, else (B, 1, 4, H, W)."""
    B, L, H, W = coverage.shape
    images = coverage.new_empty((B, L if prefixes else 1, 4, H, W))
    step = max(1, PIXELS // max(1, H * W))
    for start in range(0, B, step):
        part = slice(start, start + step)
        images[part] = _composite_chunk(
            coverage[part],
            color[part],
            None if opacity is None else opacity[part],
            None if mode is None else mode[part],
            None if backdrop is None else backdrop[part],
            prefixes,
        )
    return images


def _composite_chunk(
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
    prefixes: bool,
) -> Tensor:
    B, L, H, W = coverage.shape
    image = coverage.new_zeros((B, 4, H, W)) if backdrop is None else backdrop
    images = []
    for layer in range(L):
        source = torch.cat((color[:, layer], torch.ones_like(color[:, layer, :1])), dim=1)
        alpha = coverage[:, layer, None]
        if opacity is not None:
            alpha = alpha * opacity[:, layer].view(B, 1, 1, 1)
        layer_mode = None if mode is None else mode[:, layer]
        image = _over(image, source[:, :, None, None], alpha, layer_mode)
        images.append(image)
    return torch.stack(images if prefixes else images[-1:], dim=1)


def _backward_reference(
    grad_BN4HW: Tensor,
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of coverage, color, opacity and backdrop.

    From the last layer to the first: a layer makes `image + alpha * (source - image)` of the image
    below it, and where it has a mode, `source` depends on that image too.
    """
    B, L, H, W = coverage.shape
    images = _composite_reference(coverage, color, opacity, mode, backdrop, prefixes=True)
    lowest = coverage.new_zeros((B, 4, H, W)) if backdrop is None else backdrop
    of_coverage, of_color = torch.empty_like(coverage), torch.empty_like(color)
    of_opacity = coverage.new_empty((B, L))
    grad = torch.zeros_like(lowest)
    for layer in range(L - 1, -1, -1):
        if grad_BN4HW.shape[1] == L:
            grad = grad + grad_BN4HW[:, layer]
        elif layer == L - 1:
            grad = grad_BN4HW[:, 0]
        below = images[:, layer - 1] if layer else lowest
        alpha = coverage[:, layer, None]
        if opacity is not None:
            alpha = alpha * opacity[:, layer].view(B, 1, 1, 1)
        through = alpha * grad[:, :3]  # to the source's colours
        source = torch.cat((color[:, layer], torch.ones_like(color[:, layer, :1])), dim=1)
        source = source[:, :, None, None].expand_as(below)
        to_color, to_below = through, (1 - alpha) * grad
        for name, rows in _rows_by_mode(None if mode is None else mode[:, layer]):
            b, s, alpha_b = _straight(below[rows]), source[rows, :3], below[rows, 3:]
            blended = blend(b, s, name)
            slope_b, slope_s = _SLOPES[name](b, s)
            through_rows = through[rows]
            mixed = torch.lerp(s, blended, alpha_b)
            source = source.index_copy(0, rows, torch.cat((mixed, torch.ones_like(alpha_b)), dim=1))
            slope = 1 - alpha_b + alpha_b * slope_s
            to_color = to_color.index_copy(0, rows, through_rows * slope)
            slope_b = torch.where(alpha_b > 0, slope_b, 0.0)
            of_alpha = (through_rows * (blended - s - b * slope_b)).sum(dim=1, keepdim=True)
            both = torch.cat((through_rows * slope_b, of_alpha), dim=1)
            to_below = to_below.index_add(0, rows, both)
        of_alpha = (grad * (source - below)).sum(dim=1)
        strength = 1.0 if opacity is None else opacity[:, layer].view(B, 1, 1)
        of_coverage[:, layer] = of_alpha * strength
        of_opacity[:, layer] = (of_alpha * coverage[:, layer]).sum(dim=(1, 2))
        of_color[:, layer] = to_color.sum(dim=(2, 3))
        grad = to_below
    return of_coverage, of_color, of_opacity, grad


# Registration.


@torch.library.custom_op("tenfold::composite_layers", mutates_args=())
def _composite(
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
    prefixes: bool,
    backend: str,
) -> Tensor:
    if mode is not None:
        _check_modes(mode)
    if coverage.dtype == torch.float32 and coverage.numel() and uses_triton(coverage, backend):
        return compositing_triton.composite(coverage, color, opacity, mode, backdrop, prefixes)
    return _composite_reference(coverage, color, opacity, mode, backdrop, prefixes)


@_composite.register_fake
def _(
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
    prefixes: bool,
    backend: str,
) -> Tensor:
    B, L, H, W = coverage.shape
    return coverage.new_empty((B, L if prefixes else 1, 4, H, W))


@torch.library.custom_op("tenfold::composite_layers_backward", mutates_args=())
def _composite_backward(
    grad: Tensor,
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward_reference(grad, coverage, color, opacity, mode, backdrop)


@_composite_backward.register_fake
def _(
    grad: Tensor,
    coverage: Tensor,
    color: Tensor,
    opacity: Tensor | None,
    mode: Tensor | None,
    backdrop: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, L, H, W = coverage.shape
    return (
        torch.empty_like(coverage),
        torch.empty_like(color),
        coverage.new_empty((B, L)),
        coverage.new_empty((B, 4, H, W)),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    coverage, color, opacity, mode, backdrop = ctx.saved_tensors
    of_coverage, of_color, of_opacity, of_backdrop = _composite_backward(
        grad, coverage, color, opacity, mode, backdrop
    )
    of_opacity = None if opacity is None else of_opacity
    of_backdrop = None if backdrop is None else of_backdrop
    return of_coverage, of_color, of_opacity, None, of_backdrop, None, None


_composite.register_autograd(_gradients, setup_context=_save_for_backward)
