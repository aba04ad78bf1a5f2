"""From hidden states to commands: heads, embeddings, losses, and the grammar of a path.

Shapes: N paths, L positions, D width, T types, A arguments.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import FourierFeatures
from .representation import (
    ARG_MASK,
    CLOSE,
    CUBIC,
    EOS,
    LINE,
    MOVE,
    NUM_ARGS,
    NUM_TYPES,
    PAD,
    SOS,
    VIEW_BOX,
)

ArgHead = Literal["continuous", "categorical"]
ArgEmbedding = Literal["fourier", "linear"]
ArgLoss = Literal["mse", "l1", "smooth_l1"]
NUM_LEVELS = 256  # of a categorical argument
SMOOTH = 0.05  # where smooth L1 turns from a square into a line, in [-1, 1]

# What may follow what; a path begins with M, and an outline is not ended before it has a segment.
FOLLOWS = torch.zeros(NUM_TYPES, NUM_TYPES, dtype=torch.bool)
for _before, _after in {
    SOS: (MOVE,),
    MOVE: (LINE, CUBIC),
    LINE: (MOVE, LINE, CUBIC, CLOSE, EOS),
    CUBIC: (MOVE, LINE, CUBIC, CLOSE, EOS),
    CLOSE: (MOVE, EOS),
    EOS: (PAD,),
    PAD: (PAD,),
}.items():
    FOLLOWS[_before, list(_after)] = True


class Term(NamedTuple):
    """A loss as a sum and what it is divided by, so that ranks can be added up."""

    total: Tensor
    number: Tensor


class CommandHead(nn.Module):
    """Types and arguments of commands from hidden states, and the embedding of commands.

    Arguments are computed in float32 whatever autocast says: in bfloat16 a coordinate near the
    border is known to a twentieth of a unit only, and what is generated is fed back.

    Args:
        width: D.
        arg_head: "continuous": numbers in [-1, 1]; "categorical": 256 levels each.
        arg_embedding: How arguments are embedded: as Fourier features, or as they are.
        arg_loss: Of continuous arguments.
        type_conditioned: Whether arguments are told the type of their command.
        num_octaves: Of the Fourier features.
        embeds: Whether it embeds commands as well, which decoding at one shot does not need.
    """

    def __init__(
        self,
        width: int,
        arg_head: ArgHead = "continuous",
        arg_embedding: ArgEmbedding = "fourier",
        arg_loss: ArgLoss = "mse",
        type_conditioned: bool = False,
        num_octaves: int = 6,
        embeds: bool = True,
    ) -> None:
        super().__init__()
        self.categorical, self.arg_loss = arg_head == "categorical", arg_loss
        if embeds:
            self.type_embedding = nn.Embedding(NUM_TYPES, width)
            self.features = FourierFeatures(num_octaves if arg_embedding == "fourier" else 0)
            self.arg_embedding = nn.Linear(self.features.width(NUM_ARGS), width)
            nn.init.normal_(self.type_embedding.weight, std=0.02)
        self.type_head = nn.Linear(width, NUM_TYPES)
        self.next_type = nn.Embedding(NUM_TYPES, width) if type_conditioned else None
        out = NUM_ARGS * (NUM_LEVELS if self.categorical else 1)
        self.arg_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
        self.register_buffer("mask", ARG_MASK.clone(), persistent=False)
        self.register_buffer("follows", FOLLOWS.clone(), persistent=False)

    mask: Tensor
    follows: Tensor

    def embed(self, types_NL: Tensor, args_NLA: Tensor) -> Tensor:
        """Returns the embedding of commands, (N, L, D) float32; unused arguments do not count."""
        used = torch.where(self.mask[types_NL], args_NLA, 0.0)
        with torch.autocast(used.device.type, enabled=False):
            told: Tensor = self.arg_embedding(self.features(used)) + self.type_embedding(types_NL)
        return told

    def arguments(self, hidden_NLD: Tensor, types_NL: Tensor | None = None) -> Tensor:
        """Returns (N, L, A) float32 in [-1, 1], or logits (N, L, A, 256), of the commands ahead."""
        if self.next_type is not None:
            assert types_NL is not None
            hidden_NLD = hidden_NLD + self.next_type(types_NL)
        with torch.autocast(hidden_NLD.device.type, enabled=False):
            out: Tensor = self.arg_head(hidden_NLD.float())
        if self.categorical:
            return out.view(*out.shape[:-1], NUM_ARGS, NUM_LEVELS)
        return out

    def losses(
        self, hidden_NLD: Tensor, types_NL: Tensor, args_NLA: Tensor
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Compares what positions predict with the commands that are right.

        Args:
            hidden_NLD: At the position before each command.
            types_NL: The commands; what is PAD does not count.
            args_NLA: Their arguments.

        Returns:
            The losses `type` (cross-entropy in nats) and `arg`; and, not to be minimised,
            `type_accuracy` and `arg_error`, in units of the view box of 24.
        """
        counts_NL = types_NL != PAD
        logits_NLT = self.type_head(hidden_NLD).float()
        nats = F.cross_entropy(logits_NLT.mT, types_NL, ignore_index=PAD, reduction="none")
        num = counts_NL.sum()
        right = ((logits_NLT.argmax(-1) == types_NL) & counts_NL).sum()
        used = self.mask[types_NL]
        given = self.arguments(hidden_NLD, types_NL)
        distance = self._argument_loss(given, args_NLA)
        num_args = used.sum()
        error = (self.values(given.detach()) - args_NLA).abs() * used
        return (
            {"type": Term(nats.sum(), num), "arg": Term((distance * used).sum(), num_args)},
            {
                "type_accuracy": Term(right.float(), num),
                "arg_error": Term(error.sum() * (VIEW_BOX / 2), num_args),
            },
        )

    def _argument_loss(self, given: Tensor, args_NLA: Tensor) -> Tensor:
        if self.categorical:
            return F.cross_entropy(given.movedim(-1, 1), levels(args_NLA), reduction="none")
        if self.arg_loss == "mse":
            return (given - args_NLA).square()
        if self.arg_loss == "l1":
            return (given - args_NLA).abs()
        return F.smooth_l1_loss(given, args_NLA, reduction="none", beta=SMOOTH)

    def values(self, given: Tensor, temperature: float = 0.0) -> Tensor:
        """Returns arguments (..., A) in [-1, 1] of what `arguments` returned."""
        if not self.categorical:
            return given.clamp(-1, 1)
        return chosen(given, temperature) * (2 / (NUM_LEVELS - 1)) - 1

    def commands(
        self, hidden_ND: Tensor, allowed_NT: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Returns types (N,) and arguments (N, A) of the commands ahead.

        Args:
            hidden_ND: At the positions before.
            allowed_NT: Which types may be taken, bool, at least one each.
            temperature: Of what is drawn; 0 takes the likeliest.
        """
        logits_NT = self.type_head(hidden_ND).float().masked_fill(~allowed_NT, -torch.inf)
        types_N = chosen(logits_NT, temperature)
        given = self.arguments(hidden_ND[:, None], types_N[:, None])
        args_NA = self.values(given, temperature)[:, 0]
        return types_N, torch.where(self.mask[types_N], args_NA, 0.0)


def only(type_: int, like: Tensor) -> Tensor:
    """Returns a row that allows this type alone, (T,) bool, on the device of `like`."""
    return torch.arange(NUM_TYPES, device=like.device) == type_


def levels(args: Tensor) -> Tensor:
    """Returns the numbers of the levels nearest to arguments in [-1, 1], int64."""
    return ((args + 1) * ((NUM_LEVELS - 1) / 2)).round().long()


def chosen(logits: Tensor, temperature: float) -> Tensor:
    """Returns the likeliest, or with a temperature a drawn one, of the last dimension."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    shares = (logits / temperature).softmax(dim=-1)
    return torch.multinomial(shares.flatten(0, -2), 1).view(shares.shape[:-1])
