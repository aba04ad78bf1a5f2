"""The ablation of the hierarchy: all commands of an icon as one sequence, one decoder.

Shapes: as in `decoders`; L is the length of the whole sequence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .commands import ArgEmbedding, ArgHead, ArgLoss, CommandHead, Term, only
from .decoders import DecoderSizes
from .layers import Block, Cache
from .representation import EOS, MOVE, PAD, SOS, IconTensors, Paint

END = SOS  # of the icon: no path holds this type, so that it needs no number of its own


class PackedSequence(NamedTuple):
    """All commands of each icon in a row, paths ended by EOS, the icon by END.

    Attributes:
        types: (B, L) int64, PAD at the end.
        args: (B, L, 6).
        paint: (B, L) int64, at each EOS that of the path it ends; -100 elsewhere.
    """

    types: Tensor
    args: Tensor
    paint: Tensor


def pack_sequences(icons: IconTensors, lengths: Sequence[Sequence[int]]) -> PackedSequence:
    """Joins the visible paths of each icon.

    Args:
        icons: Of a batch.
        lengths: For each icon those of its visible paths, on the host.
    """
    B, P, S = icons.types.shape
    longest = max(map(sum, lengths)) + 1
    places = torch.full((B, longest), P * S)  # one after the last: what is put at the end
    for icon, row in enumerate(lengths):
        own = [path * S + place for path, length in enumerate(row) for place in range(length)]
        places[icon, : len(own)] = torch.tensor(own)
        places[icon, len(own)] = P * S + 1
    places = places.to(icons.types.device, non_blocking=True)
    tail = places.new_tensor([PAD, END]).expand(B, -1)
    types = torch.cat([icons.types.flatten(1), tail], dim=1).gather(1, places)
    args = torch.cat([icons.args.flatten(1, 2), icons.args.new_zeros(B, 2, 6)], dim=1)
    args = args.gather(1, places[..., None].expand(-1, -1, 6))
    paint = icons.paint.gather(1, (places // S).clamp(max=P - 1))
    return PackedSequence(types, args, torch.where(types == EOS, paint, -100))


class FlatDecoder(nn.Module):
    """One causal transformer over the commands of all paths, one after the other.

    Args:
        num_layers: Transformer layers.
        num_heads: Of each.
        hidden: Width of their MLPs; None: four times the model's.
        dropout: In training.
        arg_head: See `CommandHead`, as for what follows.
        arg_embedding: How arguments are embedded.
        arg_loss: Of continuous arguments.
        type_conditioned_args: Whether arguments are told the type of their command.
        arg_noise: Standard deviation of noise on the arguments it is told in training.
    """

    loss_names = ("type", "arg", "paint")
    report_names = ("type_accuracy", "arg_error")

    def __init__(
        self,
        num_layers: int = 16,
        num_heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.1,
        arg_head: ArgHead = "continuous",
        arg_embedding: ArgEmbedding = "fourier",
        arg_loss: ArgLoss = "mse",
        type_conditioned_args: bool = False,
        arg_noise: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_layers, self.num_heads, self.hidden = num_layers, num_heads, hidden
        self.dropout, self.arg_noise = dropout, arg_noise
        self.head_settings: dict[str, Any] = {
            "arg_head": arg_head,
            "arg_embedding": arg_embedding,
            "arg_loss": arg_loss,
            "type_conditioned": type_conditioned_args,
        }

    def build(self, width: int, sizes: DecoderSizes) -> None:
        """Makes the network, once."""
        self.sizes = sizes
        self.length = sizes.max_paths * (sizes.max_commands + 1) + 1
        self.head = CommandHead(width, **self.head_settings)
        self.head.follows[[EOS, END]] = False
        self.head.follows[EOS, [MOVE, END]] = True
        self.head.follows[END, PAD] = True
        self.positions = nn.Parameter(torch.randn(self.length, width) * 0.02)
        hidden = self.hidden or 4 * width
        self.layers = nn.ModuleList(
            Block(width, self.num_heads, hidden, self.dropout, False, sizes.with_memory)
            for _ in range(self.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, len(Paint))

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"positions"}

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, to be sharded."""
        return [*self.layers]

    def losses(
        self, image_BD: Tensor, memory_BMD: Tensor | None, batch: dict[str, Any]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Returns the losses `type`, `arg`, `paint`, and what is only reported."""
        icons = IconTensors(*(batch[key] for key in IconTensors._fields))
        packed = pack_sequences(icons, batch["lengths"])
        told = packed.args
        if self.training and self.arg_noise:
            told = told + self.arg_noise * torch.randn_like(told)
        start = image_BD[:, None].float()
        x_BLD = torch.cat([start, self.head.embed(packed.types[:, :-1], told[:, :-1])], dim=1)
        x_BLD = x_BLD + self.positions[: x_BLD.shape[1]]
        for block in self.layers:
            x_BLD = block(x_BLD, None, memory_BMD, causal=True)
        hidden = self.norm(x_BLD)
        losses, reports = self.head.losses(hidden, packed.types, packed.args)
        paint_logits = self.paint(hidden).float().mT
        nats = F.cross_entropy(paint_logits, packed.paint, ignore_index=-100, reduction="sum")
        return {**losses, "paint": Term(nats, (packed.paint >= 0).sum())}, reports

    def generate(
        self,
        image_BD: Tensor,
        memory_BMD: Tensor | None,
        threshold: float,
        temperature: float,
        stop_early: bool,
    ) -> IconTensors:
        """Returns icons; `threshold` has no meaning here. See `PathDecoder.generate`."""
        B, (P, S) = len(image_BD), (self.sizes.max_paths, self.sizes.max_commands + 1)
        device = image_BD.device
        types = torch.full((B, P + 1, S + 1), PAD, device=device)
        args = torch.zeros(B, P + 1, S + 1, 6, device=device)
        paint = torch.zeros(B, P + 1, dtype=torch.int64, device=device)
        rows = torch.arange(B, device=device)
        path, place = torch.zeros_like(rows), torch.zeros_like(rows)
        before = torch.full((B,), EOS, device=device)
        caches = [Cache(self.length) for _ in self.layers]
        x_B1D = image_BD[:, None].float() + self.positions[:1]
        for step in range(self.length):
            for block, cache in zip(self.layers, caches, strict=True):
                x_B1D = block(x_B1D, None, memory_BMD, cache=cache)
            hidden = self.norm(x_B1D)[:, 0]
            allowed = self.head.follows[before]
            if step == 0:  # an icon has a path
                allowed = only(MOVE, before).expand(B, -1)
            is_full = (place == S - 1) & (before < EOS)
            allowed = torch.where(is_full[:, None], only(EOS, before), allowed)
            is_last = (path == P) & (before == EOS)
            allowed = torch.where(is_last[:, None], only(END, before), allowed)
            next_types, next_args = self.head.commands(hidden, allowed, temperature)
            types[rows, path, place], args[rows, path, place] = next_types, next_args
            ended = next_types == EOS
            paint[rows, path] = torch.where(ended, self.paint(hidden).argmax(-1), paint[rows, path])
            path = path + ended
            place = torch.where(ended, 0, (place + 1).clamp(max=S))
            before = next_types
            if stop_early and bool(((before == END) | (before == PAD)).all()):
                break
            told = self.head.embed(before[:, None], next_args[:, None])
            if step + 1 < self.length:
                x_B1D = told + self.positions[step + 1]
        types, args, paint = types[:, :P, :S], args[:, :P, :S], paint[:, :P]
        return IconTensors(types, args, (types[..., 0] == MOVE), paint)
