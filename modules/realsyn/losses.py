"""Contrastive losses over a batch that is spread over processes.

Shapes: b pairs of this process, B of all processes together, D width of an embedding.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

LossName = Literal["clip", "siglip"]

# Scale and bias at the begin: CLIP's temperature 0.07; section 3.2 of SigLIP (arXiv 2303.15343).
_START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10.0), -10.0)}
MAX_LOG_SCALE = math.log(100.0)


class ContrastiveLoss(nn.Module):
    """The symmetric softmax loss of CLIP or the sigmoid loss of SigLIP, with its temperature.

    Each process has its own pairs and sees the embeddings of all others, so that the loss is that
    of the whole batch. What a strategy then makes of the gradients, their mean over processes, is
    the gradient of one process with the whole batch where `gather_with_grad` is True. Where it is
    False, gradients of the towers are 1 / (number of processes) of that, those of the scale are
    not: a recipe to replay others' runs, in which clipping by norm then means something else.

    Args:
        kind: Which loss.
        local_loss: Whether a process computes the loss of its own rows only, (b, B) logits in place
            of (B, B). The result is the same.
        gather_with_grad: Whether gradients flow to the processes that embeddings came from.
        label_smoothing: Of CLIP's targets, in [0, 1).

    Attributes:
        logit_scale: (1,) logarithm of what similarities are multiplied by.
        logit_bias: (1,) added to them; SigLIP's only.

    Raises:
        ValueError: `local_loss` without `gather_with_grad`, whose gradient points elsewhere, or a
            smoothing that the loss does not have.
    """

    def __init__(
        self,
        kind: LossName = "clip",
        local_loss: bool = True,
        gather_with_grad: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if local_loss and not gather_with_grad:
            raise ValueError(
                "local_loss: true with gather_with_grad: false gives a gradient that points "
                "elsewhere on several processes: set gather_with_grad: true"
            )
        if not 0 <= label_smoothing < 1 or (label_smoothing and kind == "siglip"):
            raise ValueError(
                f"label_smoothing: {label_smoothing}, expected a number in [0, 1), and 0 for siglip"
            )
        self.kind: LossName = kind
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.label_smoothing = label_smoothing
        log_scale, bias = _START[kind]
        # Not scalars, which FSDP2 cannot split.
        self.logit_scale = nn.Parameter(torch.full((1,), log_scale))
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), bias))

    def forward(self, image_bD: Tensor, text_bD: Tensor) -> Tensor:
        """Returns the loss in nats per pair, a scalar in float32.

        Args:
            image_bD: Embeddings of this process's images, of length 1.
            text_bD: Those of their texts; as many on every process.
        """
        with torch.autocast(image_bD.device.type, enabled=False):
            image_bD, text_bD = image_bD.float(), text_bD.float()
            image_BD = gather(image_bD, self.gather_with_grad)
            text_BD = gather(text_bD, self.gather_with_grad)
            first = 0
            if self.local_loss:
                first = 0 if len(image_BD) == len(image_bD) else dist.get_rank() * len(image_bD)
            else:
                image_bD, text_bD = image_BD, text_BD
            bias = None if self.logit_bias is None else self.logit_bias.float()
            return pair_loss(
                (image_bD, text_bD),
                (image_BD, text_BD),
                self.logit_scale.float().exp(),
                bias,
                first,
                self.label_smoothing,
            )

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps the scale between 1 and 100, as CLIP does after every step."""
        self.logit_scale.clamp_(0.0, MAX_LOG_SCALE)


def pair_loss(
    rows: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    scale: Tensor,
    bias: Tensor | None = None,
    first: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Returns the loss of some pairs among all, in nats per pair, a scalar.

    Args:
        rows: Embeddings of images and texts of the pairs, (b, D) each, of length 1.
        others: Those of all pairs, (B, D) each.
        scale: (1,) what similarities are multiplied by.
        bias: (1,) added to them, for the sigmoid loss; None: the softmax loss.
        first: Place of the first of the pairs among all.
        label_smoothing: Of the softmax loss's targets.
    """
    target_b = torch.arange(first, first + len(rows[0]), device=rows[0].device)
    if bias is None:
        both = (
            F.cross_entropy(scale * own @ all_.T, target_b, label_smoothing=label_smoothing)
            for own, all_ in zip(rows, others[::-1], strict=True)
        )
        return torch.stack([*both]).mean()
    logits_bB = scale * rows[0] @ others[1].T + bias
    sign_bB = -torch.ones_like(logits_bB)
    sign_bB.scatter_(1, target_b[:, None], 1.0)
    return -F.logsigmoid(sign_bB * logits_bB).sum(dim=1).mean()


def gather(rows_bD: Tensor, with_grad: bool = True) -> Tensor:
    """Concatenates the rows of all processes in the order of their ranks, (B, D).

    Args:
        rows_bD: This process's; as many on every process.
        with_grad: Whether gradients flow to all of them, or to this process's own only.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_bD
    if with_grad:
        rows_BD: Tensor = _Gather.apply(rows_bD)
        return rows_BD
    parts = list(_gathered(rows_bD.detach()).split(len(rows_bD)))  # type: ignore[no-untyped-call]
    parts[dist.get_rank()] = rows_bD
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Brings rows of all processes together, and in the backward pass their gradients back.

    A row's gradient is the sum of what all processes have for it.
    """

    @staticmethod
    def forward(ctx: Any, rows_bD: Tensor) -> Tensor:
        """Concatenates."""
        ctx.num_rows = len(rows_bD)
        return _gathered(rows_bD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sums over processes, and keeps this one's rows."""
        # Not `reduce_scatter`, which not every backend has; embeddings are small.
        total_BD = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_BD)
        first = dist.get_rank() * ctx.num_rows
        return total_BD[first : first + ctx.num_rows]


def _gathered(rows_bD: Tensor) -> Tensor:
    parts = [torch.empty_like(rows_bD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_bD.contiguous())
    return torch.cat(parts)
