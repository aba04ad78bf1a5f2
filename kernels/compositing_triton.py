"""Triton code of `compositing`: a pixel stays in registers through all layers.

The number of a layer's mode is the same for a whole program, so that only one blend function is
computed. Nothing here has been timed on a GPU yet.
"""

from torch import Tensor

from .backend import jit, tl

BLOCK = 512  # pixels of a program


@jit
def _hard_light(b, s):  # type: ignore[no-untyped-def]
    twice = 2.0 * s - 1.0
    return tl.where(s <= 0.5, 2.0 * b * s, b + twice - b * twice)


@jit
def _blend(b, s, mode):  # type: ignore[no-untyped-def]
    """B(C_b, C_s); the numbers are places in `BLEND_MODES`."""
    result = s
    if mode == 1:
        result = b * s
    elif mode == 2:
        result = b + s - b * s
    elif mode == 3:
        result = _hard_light(s, b)
    elif mode == 4:
        result = tl.minimum(b, s)
    elif mode == 5:
        result = tl.maximum(b, s)
    elif mode == 6:
        dodged = tl.minimum(tl.div_rn(b, tl.where(s < 1.0, 1.0 - s, 1.0)), 1.0)
        result = tl.where(b == 0.0, 0.0, tl.where(s == 1.0, 1.0, dodged))
    elif mode == 7:
        burnt = 1.0 - tl.minimum(tl.div_rn(1.0 - b, tl.where(s > 0.0, s, 1.0)), 1.0)
        result = tl.where(b == 1.0, 1.0, tl.where(s == 0.0, 0.0, burnt))
    elif mode == 8:
        result = _hard_light(b, s)
    elif mode == 9:
        root = tl.sqrt(tl.maximum(b, 0.25))
        lighter = tl.where(b <= 0.25, ((16.0 * b - 12.0) * b + 4.0) * b, root)
        result = b + (2.0 * s - 1.0) * tl.where(s <= 0.5, b * (1.0 - b), lighter - b)
    elif mode == 10:
        result = tl.abs(b - s)
    elif mode == 11:
        result = b + s - 2.0 * b * s
    return result


@jit
def _channel(c_b, alpha_b, color, alpha_s, mode):  # type: ignore[no-untyped-def]
    """One channel, premultiplied, after a layer of one colour."""
    source = tl.zeros_like(c_b) + color
    if mode != 0:
        straight = tl.div_rn(c_b, tl.where(alpha_b > 0.0, alpha_b, 1.0))
        straight = tl.minimum(tl.maximum(straight, 0.0), 1.0)
        source += alpha_b * (_blend(straight, source, mode) - source)
    return c_b + alpha_s * (source - c_b)


@jit
def _composite_kernel(  # type: ignore[no-untyped-def]
    coverage_ptr,
    color_ptr,
    opacity_ptr,
    mode_ptr,
    backdrop_ptr,
    out_ptr,
    L,
    P,
    HAS_OPACITY: tl.constexpr,
    HAS_MODE: tl.constexpr,
    HAS_BACKDROP: tl.constexpr,
    PREFIXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK of the P pixels of one image."""
    image = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = p < P
    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    alpha = tl.zeros((BLOCK,), tl.float32)
    if HAS_BACKDROP:
        below = backdrop_ptr + image * 4 * P + p
        red = tl.load(below, mask=mask, other=0.0)
        green = tl.load(below + P, mask=mask, other=0.0)
        blue = tl.load(below + 2 * P, mask=mask, other=0.0)
        alpha = tl.load(below + 3 * P, mask=mask, other=0.0)
    for layer in range(L):
        place = image * L + layer
        alpha_s = tl.load(coverage_ptr + place * P + p, mask=mask, other=0.0)
        if HAS_OPACITY:
            alpha_s *= tl.load(opacity_ptr + place)
        mode = tl.full((), 0, tl.int64)
        if HAS_MODE:
            mode = tl.load(mode_ptr + place)
        red = _channel(red, alpha, tl.load(color_ptr + place * 3), alpha_s, mode)
        green = _channel(green, alpha, tl.load(color_ptr + place * 3 + 1), alpha_s, mode)
        blue = _channel(blue, alpha, tl.load(color_ptr + place * 3 + 2), alpha_s, mode)
        alpha += alpha_s * (1.0 - alpha)
        if PREFIXES or layer == L - 1:
            out = out_ptr + (place if PREFIXES else image) * 4 * P + p
            tl.store(out, red, mask=mask)
            tl.store(out + P, green, mask=mask)
            tl.store(out + 2 * P, blue, mask=mask)
            tl.store(out + 3 * P, alpha, mask=mask)


def composite(
    coverage_BLHW: Tensor,
    color_BL3: Tensor,
    opacity_BL: Tensor | None,
    mode_BL: Tensor | None,
    backdrop_B4HW: Tensor | None,
    prefixes: bool,
) -> Tensor:
    """Returns what `compositing.composite_layers` does, (B, L or 1, 4, H, W); float32."""
    B, L, H, W = coverage_BLHW.shape
    out = coverage_BLHW.new_empty((B, L if prefixes else 1, 4, H, W))

    def pointer(value: Tensor | None) -> Tensor:
        return out if value is None else value.contiguous()  # one that is never read

    _composite_kernel[(B, -(-H * W // BLOCK))](
        coverage_BLHW.contiguous(),
        color_BL3.contiguous(),
        pointer(opacity_BL),
        pointer(mode_BL),
        pointer(backdrop_B4HW),
        out,
        L,
        H * W,
        HAS_OPACITY=opacity_BL is not None,
        HAS_MODE=mode_BL is not None,
        HAS_BACKDROP=backdrop_B4HW is not None,
        PREFIXES=prefixes,
        BLOCK=BLOCK,
    )
    return out
