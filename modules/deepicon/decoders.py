"""From an image embedding to paths: DeepIcon's hierarchy of decoders, and a flat one beside it.

Shapes: B icons, P path slots, N paths of a batch that are decoded, L commands of a path, S the most
of them with the end, D width, M patches of the picture, A arguments.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .commands import ArgEmbedding, ArgHead, ArgLoss, CommandHead, Term, only
from .layers import Block, Cache
from .representation import EOS, PAD, SOS, IconTensors, Paint

PathMode = Literal["autoregressive", "one_shot"]
Assignment = Literal["ordered", "hungarian"]


class DecoderSizes(NamedTuple):
    """What a decoder is built for; the model says so.

    Attributes:
        max_paths: P.
        max_commands: S - 1.
        with_memory: Whether layers look at patches.
    """

    max_paths: int
    max_commands: int
    with_memory: bool


class PackedPaths(NamedTuple):
    """Which paths of a batch are decoded, the shortest first.

    Attributes:
        slots: (N,) int64, places in the flattened (B * P).
        groups: Of paths of like length: start, end, length of the longest with its end.
    """

    slots: Tensor
    groups: list[tuple[int, int, int]]


def pack_paths(
    lengths: Sequence[Sequence[int]], max_paths: int, num_groups: int, device: torch.device
) -> PackedPaths:
    """Sorts visible paths by length into groups, each of which is cut to its longest path.

    Args:
        lengths: For each icon those of its visible paths, on the host.
        max_paths: P.
        num_groups: At most so many.
        device: Of the slots.
    """
    found = sorted(
        (length, icon * max_paths + path)
        for icon, row in enumerate(lengths)
        for path, length in enumerate(row)
    )
    ends = [round(len(found) * (group + 1) / num_groups) for group in range(num_groups)]
    groups = [(start, end, found[end - 1][0]) for start, end in pairwise([0, *ends]) if end > start]
    slots = torch.tensor([slot for _, slot in found], dtype=torch.int64)
    return PackedPaths(slots.to(device, non_blocking=True), groups)


class StructureDecoder(nn.Module):
    """Turns an image embedding into path slots.

    Args:
        width: D.
        num_layers: Transformer layers.
        num_heads: Of each.
        hidden: Width of their MLPs.
        dropout: In training.
        num_paths: P.
        with_memory: Whether they look at patches.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        num_paths: int,
        with_memory: bool,
    ) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(num_paths, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, hidden, dropout, True, with_memory) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image_BD: Tensor, memory_BMD: Tensor | None = None) -> Tensor:
        """Returns hidden states of the slots, (B, P, D)."""
        x_BPD = self.slots.expand(len(image_BD), -1, -1)
        for block in self.blocks:
            x_BPD = block(x_BPD, image_BD, memory_BMD)
        out: Tensor = self.norm(x_BPD)
        return out

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"slots"}


class PathDecoder(nn.Module):
    """Turns path embeddings into commands, one after the other or all at once.

    Args:
        width: D.
        num_layers: Transformer layers.
        num_heads: Of each.
        hidden: Width of their MLPs.
        dropout: In training.
        max_commands: S - 1.
        mode: "autoregressive": the embedding is what comes before the first command.
            "one_shot": it is added to queries in every layer.
        head: Types and arguments.
        with_memory: Whether layers look at patches.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        max_commands: int,
        mode: PathMode,
        head: CommandHead,
        with_memory: bool,
    ) -> None:
        super().__init__()
        self.mode, self.head, self.length = mode, head, max_commands + 1
        one_shot = mode == "one_shot"
        self.positions = nn.Parameter(torch.randn(self.length, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, hidden, dropout, one_shot, with_memory)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"positions"}

    def forward(
        self,
        path_ND: Tensor,
        types_NL: Tensor | None = None,
        args_NLA: Tensor | None = None,
        memory_NMD: Tensor | None = None,
    ) -> Tensor:
        """Returns the hidden states that predict each command, (N, L, D).

        Args:
            path_ND: Embeddings.
            types_NL: The commands before, which the autoregressive mode is told; one shot: none.
            args_NLA: Their arguments.
            memory_NMD: Patches of each path's picture.
        """
        if self.mode == "one_shot":
            x_NLD = self.positions.expand(len(path_ND), -1, -1)
            for block in self.blocks:
                x_NLD = block(x_NLD, path_ND, memory_NMD)
            out: Tensor = self.norm(x_NLD)
            return out
        assert types_NL is not None
        assert args_NLA is not None
        told = self.head.embed(types_NL[:, :-1], args_NLA[:, :-1])
        x_NLD = torch.cat([path_ND[:, None].to(told.dtype), told], dim=1)
        x_NLD = x_NLD + self.positions[: x_NLD.shape[1]]
        for block in self.blocks:
            x_NLD = block(x_NLD, None, memory_NMD, causal=True)
        hidden: Tensor = self.norm(x_NLD)
        return hidden

    def generate(
        self,
        path_ND: Tensor,
        memory_NMD: Tensor | None = None,
        temperature: float = 0.0,
        stop_early: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Returns types (N, S) and arguments (N, S, A) that obey the grammar.

        Args:
            path_ND: Embeddings.
            memory_NMD: Patches of each path's picture.
            temperature: Of what is drawn; 0 takes the likeliest.
            stop_early: Whether to stop when all paths have ended, which waits for the device and
                takes a number of steps that depends on the data.
        """
        num = len(path_ND)
        types_NS = torch.full((num, self.length), PAD, device=path_ND.device)
        args_NSA = torch.zeros(num, self.length, 6, device=path_ND.device)
        before_N = torch.full((num,), SOS, device=path_ND.device)
        hidden_NSD = self(path_ND, None, None, memory_NMD) if self.mode == "one_shot" else None
        caches = [Cache(self.length) for _ in self.blocks]
        x_N1D = path_ND[:, None].float() + self.positions[:1]
        for step in range(self.length):
            if hidden_NSD is not None:
                hidden_ND = hidden_NSD[:, step]
            else:
                for block, cache in zip(self.blocks, caches, strict=True):
                    x_N1D = block(x_N1D, None, memory_NMD, cache=cache)
                hidden_ND = self.norm(x_N1D)[:, 0]
            allowed_NT = self.head.follows[before_N]
            if step == self.length - 1:  # there is no room but for the end
                ended_N1 = before_N[:, None] >= EOS
                allowed_NT = torch.where(ended_N1, only(PAD, before_N), only(EOS, before_N))
            before_N, args_NA = self.head.commands(hidden_ND, allowed_NT, temperature)
            types_NS[:, step], args_NSA[:, step] = before_N, args_NA
            if stop_early and bool((before_N >= EOS).all()):
                break
            if hidden_NSD is None and step + 1 < self.length:
                told = self.head.embed(before_N[:, None], args_NA[:, None])
                x_N1D = told + self.positions[step + 1]
        return types_NS, args_NSA


class HierarchicalDecoder(nn.Module):
    """DeepIcon's decoder: first the paths, then the commands of each, all paths at a time.

    Args:
        structure_layers: Of the structure decoder (the paper: 4).
        path_layers: Of the path decoder (the paper: 12).
        path_decoder: "autoregressive" or "one_shot".
        num_heads: Of each layer.
        hidden: Width of their MLPs; None: four times the model's.
        dropout: In training.
        assignment: "ordered": slot j is path j. "hungarian": the slots that fit best, one-shot
            only; costs P times as much.
        arg_head: See `CommandHead`, as for what follows.
        arg_embedding: How arguments are embedded.
        arg_loss: Of continuous arguments.
        type_conditioned_args: Whether arguments are told the type of their command.
        arg_noise: Standard deviation of noise on the arguments that the autoregressive decoder is
            told in training, against its own errors later.
        num_groups: Groups of like length in which paths are decoded in training: most are short.

    Raises:
        ValueError: Hungarian assignment of an autoregressive decoder.
    """

    loss_names = ("visibility", "type", "arg", "paint")
    report_names = ("visibility_accuracy", "type_accuracy", "arg_error")

    def __init__(
        self,
        structure_layers: int = 4,
        path_layers: int = 12,
        path_decoder: PathMode = "autoregressive",
        num_heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.1,
        assignment: Assignment = "ordered",
        arg_head: ArgHead = "continuous",
        arg_embedding: ArgEmbedding = "fourier",
        arg_loss: ArgLoss = "mse",
        type_conditioned_args: bool = False,
        arg_noise: float = 0.01,
        num_groups: int = 3,
    ) -> None:
        super().__init__()
        if assignment == "hungarian" and path_decoder != "one_shot":
            raise ValueError(
                "assignment: hungarian needs path_decoder: one_shot; an autoregressive one would "
                "have to read every path in every slot"
            )
        self.structure_layers, self.path_layers = structure_layers, path_layers
        self.path_mode, self.num_heads, self.hidden = path_decoder, num_heads, hidden
        self.dropout, self.assignment = dropout, assignment
        self.head_settings: dict[str, Any] = {
            "arg_head": arg_head,
            "arg_embedding": arg_embedding,
            "arg_loss": arg_loss,
            "type_conditioned": type_conditioned_args,
        }
        self.arg_noise, self.num_groups = arg_noise, num_groups

    def build(self, width: int, sizes: DecoderSizes) -> None:
        """Makes the networks, once."""
        hidden = self.hidden or 4 * width
        shape = (self.num_heads, hidden, self.dropout)
        self.structure = StructureDecoder(
            width, self.structure_layers, *shape, sizes.max_paths, sizes.with_memory
        )
        embeds = self.path_mode == "autoregressive"
        head = CommandHead(width, **self.head_settings, embeds=embeds)
        self.visibility, self.paint = nn.Linear(width, 2), nn.Linear(width, len(Paint))
        self.path = nn.Linear(width, width)
        self.paths = PathDecoder(
            *(width, self.path_layers, *shape, sizes.max_commands, self.path_mode, head),
            sizes.with_memory,
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, to be sharded."""
        return [*self.structure.blocks, *self.paths.blocks]

    def slots(self, image_BD: Tensor, memory_BMD: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns visibility logits (B, P, 2), paint logits (B, P, 4), embeddings (B, P, D)."""
        x_BPD = self.structure(image_BD, memory_BMD)
        return self.visibility(x_BPD).float(), self.paint(x_BPD).float(), self.path(x_BPD)

    def losses(
        self, image_BD: Tensor, memory_BMD: Tensor | None, batch: dict[str, Any]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Returns the losses `visibility`, `paint`, `type`, `arg`, and what is only reported."""
        visible_logits, paint_logits, paths_BPD = self.slots(image_BD, memory_BMD)
        if self.assignment == "hungarian":
            batch, hidden = self._assigned(visible_logits, paths_BPD, memory_BMD, batch)
            losses, reports = self.paths.head.losses(
                hidden,
                batch["types"].flatten(0, 1).masked_fill(~batch["visible"].flatten()[:, None], PAD),
                batch["args"].flatten(0, 1),
            )
        else:
            losses, reports = self._path_losses(paths_BPD, memory_BMD, batch)
        visible_BP = batch["visible"]
        nats = F.cross_entropy(visible_logits.mT, visible_BP.long(), reduction="none")
        paint = F.cross_entropy(paint_logits.mT, batch["paint"], reduction="none") * visible_BP
        total = visible_BP.new_tensor(visible_BP.numel(), dtype=torch.int64)
        right = (visible_logits.argmax(-1) == visible_BP).all(dim=1).float()
        count = visible_BP.new_tensor(len(right), dtype=torch.int64)
        return (
            {
                "visibility": Term(nats.sum(), total),
                "paint": Term(paint.sum(), visible_BP.sum()),
                **losses,
            },
            {**reports, "visibility_accuracy": Term(right.sum(), count)},
        )

    def _path_losses(
        self, paths_BPD: Tensor, memory_BMD: Tensor | None, batch: dict[str, Any]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        is_told = self.path_mode == "autoregressive"
        slots, groups = pack_paths(
            *(batch["lengths"], paths_BPD.shape[1], self.num_groups if is_told else 1),
            paths_BPD.device,
        )
        types_NS = batch["types"].flatten(0, 1)[slots]
        args_NSA = batch["args"].flatten(0, 1)[slots]
        paths_ND = paths_BPD.flatten(0, 1)[slots]
        icon_N = slots // paths_BPD.shape[1]
        memory_NMD = None if memory_BMD is None else memory_BMD[icon_N]
        told = args_NSA
        if self.training and self.arg_noise and is_told:
            told = args_NSA + self.arg_noise * torch.randn_like(args_NSA)
        found = []
        for start, end, length in groups:
            rows = slice(start, end)
            length = length if is_told else types_NS.shape[1]
            hidden = self.paths(
                paths_ND[rows],
                types_NS[rows, :length],
                told[rows, :length],
                None if memory_NMD is None else memory_NMD[rows],
            )
            found.append(
                self.paths.head.losses(hidden, types_NS[rows, :length], args_NSA[rows, :length])
            )
        return add_terms([f[0] for f in found]), add_terms([f[1] for f in found])

    def _assigned(
        self,
        visible_logits: Tensor,
        paths_BPD: Tensor,
        memory_BMD: Tensor | None,
        batch: dict[str, Any],
    ) -> tuple[dict[str, Any], Tensor]:
        """Puts the true paths into the slots that fit best; returns the batch and hidden states."""
        B, P, _ = paths_BPD.shape
        memory = None if memory_BMD is None else memory_BMD.repeat_interleave(P, dim=0)
        hidden = self.paths(paths_BPD.flatten(0, 1), None, None, memory)
        with torch.no_grad():
            cost_BGP = self._costs(visible_logits, hidden.view(B, P, *hidden.shape[1:]), batch)
        order_BP = torch.stack(
            [
                torch.from_numpy(_best_order(cost, visible))
                for cost, visible in zip(
                    cost_BGP.cpu().numpy(), batch["visible"].cpu().numpy(), strict=True
                )
            ]
        ).to(paths_BPD.device)
        rows = torch.arange(B, device=order_BP.device)[:, None]
        keys = ("types", "args", "visible", "paint")
        return {**batch, **{key: batch[key][rows, order_BP] for key in keys}}, hidden

    def _costs(self, visible_logits: Tensor, hidden_BPSD: Tensor, batch: dict[str, Any]) -> Tensor:
        """Returns what each slot costs for each true path, (B, true, slot)."""
        head = self.paths.head
        types_BGS, args_BGSA = batch["types"], batch["args"]
        used = head.mask[types_BGS].float()
        logits = head.type_head(hidden_BPSD).float().log_softmax(dim=-1)
        P = hidden_BPSD.shape[1]
        costs = []
        given = head.values(head.arguments(hidden_BPSD, None)) if head.next_type is None else None
        for true in range(P):
            types_BS, counts_BS = types_BGS[:, true], types_BGS[:, true] != PAD
            nats = -logits.gather(-1, types_BS[:, None, :, None].expand(-1, P, -1, -1))[..., 0]
            type_cost = (nats * counts_BS[:, None]).sum(-1) / counts_BS.sum(-1).clamp(min=1)[
                :, None
            ]
            args_BPSA = given
            if args_BPSA is None:
                told = types_BS[:, None].expand(-1, P, -1)
                args_BPSA = head.values(head.arguments(hidden_BPSD, told))
            mask = used[:, true][:, None]
            distance = (args_BPSA - args_BGSA[:, true][:, None]).square() * mask
            arg_cost = distance.sum((-1, -2)) / mask.sum((-1, -2)).clamp(min=1)
            costs.append(2 * arg_cost + type_cost)
        cost_BGP = torch.stack(costs, dim=1)
        return cost_BGP - visible_logits.log_softmax(-1)[..., 1][:, None]

    def generate(
        self,
        image_BD: Tensor,
        memory_BMD: Tensor | None,
        threshold: float,
        temperature: float,
        stop_early: bool,
    ) -> IconTensors:
        """Returns icons; a slot exists where its visibility is above the threshold, or the best.

        See `PathDecoder.generate`.
        """
        visible_logits, paint_logits, paths_BPD = self.slots(image_BD, memory_BMD)
        share_BP = visible_logits.softmax(dim=-1)[..., 1]
        best_B1 = share_BP.argmax(dim=1, keepdim=True)
        visible_BP = (share_BP > threshold).scatter(1, best_B1, True)
        B, P = visible_BP.shape
        # Without early stopping the number of paths does not depend on the data either.
        chosen = visible_BP if stop_early else torch.ones_like(visible_BP)
        slots = chosen.flatten().nonzero().flatten()
        memory = None if memory_BMD is None else memory_BMD[slots // P]
        paths_ND = paths_BPD.flatten(0, 1)[slots]
        types_NS, args_NSA = self.paths.generate(paths_ND, memory, temperature, stop_early)
        types = types_NS.new_full((B * P, types_NS.shape[1]), PAD)
        args = args_NSA.new_zeros((B * P, *args_NSA.shape[1:]))
        types[slots], args[slots] = types_NS, args_NSA
        return IconTensors(
            types.view(B, P, -1),
            args.view(B, P, *args.shape[1:]),
            visible_BP,
            paint_logits.argmax(dim=-1),
        )


def add_terms(parts: list[dict[str, Term]]) -> dict[str, Term]:
    """Adds up terms of the same names."""
    return {
        name: Term(
            torch.stack([part[name].total for part in parts]).sum(),
            torch.stack([part[name].number for part in parts]).sum(),
        )
        for name in parts[0]
    }


def _best_order(
    cost_GP: "np.ndarray[Any, np.dtype[np.float32]]",
    visible_G: "np.ndarray[Any, np.dtype[np.bool_]]",
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Returns for each slot the true path that it should become; the rest are invisible ones."""
    true = np.flatnonzero(visible_G)
    rows, slots = linear_sum_assignment(cost_GP[true])
    order = np.full(len(visible_G), -1)
    order[slots] = true[rows]
    order[order < 0] = np.flatnonzero(~visible_G)
    return order
