"""The ablation of the supervision: paths that are learned from pictures alone, as Im2Vec's are.

Shapes: B icons, P paths, C curves of each, S side of the picture.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.polygon_raster import cubic_edges, soft_coverage
from .commands import Term
from .decoders import DecoderSizes, StructureDecoder
from .layers import Block
from .representation import CUBIC, EOS, MOVE, NUM_ARGS, PAD, VIEW_BOX, IconTensors

NUM_CHORDS = 5  # of a curve, as drawn in training


class RasterDecoder(nn.Module):
    """The one-shot decoder, told by the picture alone whether its strokes are right.

    Every icon has all P paths of C curves each, for pictures say nothing of which commands or how
    many paths there are; they are drawn by a differentiable rasteriser, and the squared error of
    pixels is minimised. All paths are strokes.

    Args:
        structure_layers: Of the structure decoder.
        path_layers: Of the path decoder.
        num_heads: Of each layer.
        hidden: Width of their MLPs; None: four times the model's.
        dropout: In training.
        num_curves: C.
        raster_size: Side of the drawings that are compared, in pixels.
        softness: Of their borders, in pixels.
    """

    loss_names = ("raster",)
    report_names: tuple[str, ...] = ()

    def __init__(
        self,
        structure_layers: int = 4,
        path_layers: int = 12,
        num_heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.1,
        num_curves: int = 4,
        raster_size: int = 32,
        softness: float = 0.5,
    ) -> None:
        super().__init__()
        self.structure_layers, self.path_layers = structure_layers, path_layers
        self.num_heads, self.hidden, self.dropout = num_heads, hidden, dropout
        self.num_curves, self.raster_size, self.softness = num_curves, raster_size, softness

    def build(self, width: int, sizes: DecoderSizes) -> None:
        """Makes the networks, once.

        Raises:
            ValueError: The codec has no room for so many curves.
        """
        if sizes.max_commands < self.num_curves + 1:
            raise ValueError(
                f"num_curves {self.num_curves}: paths have {sizes.max_commands} commands"
            )
        self.sizes = sizes
        shape = (self.num_heads, self.hidden or 4 * width, self.dropout)
        self.structure = StructureDecoder(
            width, self.structure_layers, *shape, sizes.max_paths, sizes.with_memory
        )
        self.positions = nn.Parameter(torch.randn(self.num_curves + 1, width) * 0.02)
        self.layers = nn.ModuleList(
            Block(width, *shape, True, sizes.with_memory) for _ in range(self.path_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.points = nn.Linear(width, NUM_ARGS)

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"positions"}

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, to be sharded."""
        return [*self.structure.blocks, *self.layers]

    def arguments(self, image_BD: Tensor, memory_BMD: Tensor | None) -> Tensor:
        """Returns the arguments of M and of C curves, (B, P, C + 1, 6) float32 in [-1, 1]."""
        paths_BPD = self.structure(image_BD, memory_BMD)
        B, P, _ = paths_BPD.shape
        memory = None if memory_BMD is None else memory_BMD.repeat_interleave(P, dim=0)
        x_NLD = self.positions.expand(B * P, -1, -1)
        for block in self.layers:
            x_NLD = block(x_NLD, paths_BPD.flatten(0, 1), memory)
        with torch.autocast(x_NLD.device.type, enabled=False):
            args: Tensor = self.points(self.norm(x_NLD).float()).tanh()
        return args.view(B, P, -1, NUM_ARGS)

    def losses(
        self, image_BD: Tensor, memory_BMD: Tensor | None, batch: dict[str, Any]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Returns the loss `raster`."""
        args = self.arguments(image_BD, memory_BMD)
        width_B = batch["style"][:, 0].to(args)
        drawn_BSS = draw_strokes(args, width_B, self.raster_size, self.softness)
        size = (self.raster_size, self.raster_size)
        goal = nn.functional.interpolate(batch["image"].float(), size, mode="area").mean(dim=1)
        error = (drawn_BSS - goal).square()
        number = torch.tensor(error.numel(), device=error.device)
        return {"raster": Term(error.sum(), number)}, {}

    def generate(
        self,
        image_BD: Tensor,
        memory_BMD: Tensor | None,
        threshold: float,
        temperature: float,
        stop_early: bool,
    ) -> IconTensors:
        """Returns icons, all of as many paths; the other arguments have no meaning here."""
        args_BPLA = self.arguments(image_BD, memory_BMD)
        B, P, L, _ = args_BPLA.shape
        types = torch.full((B, P, self.sizes.max_commands + 1), PAD, device=args_BPLA.device)
        types[..., 0], types[..., 1:L], types[..., L] = MOVE, CUBIC, EOS
        args = args_BPLA.new_zeros(*types.shape, NUM_ARGS)
        args[:, :, :L] = args_BPLA
        args[:, :, 0, :4] = 0
        visible = torch.ones(B, P, dtype=torch.bool, device=args.device)
        return IconTensors(types, args, visible, torch.zeros_like(visible, dtype=torch.int64))


def draw_strokes(
    args_BPLA: Tensor,
    width_B: Tensor,
    size: int,
    softness: float,
    num_chords: int = NUM_CHORDS,
) -> Tensor:
    """Draws strokes of curves; differentiable.

    Args:
        args_BPLA: (B, P, C + 1, 6) of M and curves, in [-1, 1].
        width_B: Of all strokes of an icon, in units of 24.
        size: S.
        softness: Of borders, in pixels.
        num_chords: Of a curve.

    Returns:
        (B, S, S) luminance, black on white.
    """
    scale = size / VIEW_BOX
    points = (args_BPLA.float() + 1) * (size / 2)
    ends = points[..., 4:]
    control = torch.stack(
        [ends[:, :, :-1], points[:, :, 1:, 0:2], points[:, :, 1:, 2:4], ends[:, :, 1:]], dim=-2
    )
    edges = cubic_edges(control, num_chords).flatten(2, 3)
    B, P, _, _ = edges.shape
    width_BP = (width_B * scale)[:, None].expand(B, P).contiguous()
    covered_BPSS = soft_coverage(
        edges.contiguous(), (size, size), width_BL=width_BP, softness=softness
    )
    return (1 - covered_BPSS).prod(dim=1)
