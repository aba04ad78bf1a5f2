"""What the decoder shall write: captions, with or without a prompt before them.

Shapes: B captions, T tokens of a target.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .control import CAPTION, MASK, SEPARATOR
from .parts import IGNORED
from .tokens import ContextTokenizer


class Targets(NamedTuple):
    """What the decoder shall write.

    Attributes:
        labels: (B, T) int64, -100 where nothing is learned.
        decoder_ids: (B, T) int64, what it reads before each.
        is_caption: (B, T) bool: tokens of the caption and its end, not of a prompt.
    """

    labels: Tensor
    decoder_ids: Tensor
    is_caption: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Returns the same on a device."""
        return Targets(*(tensor.to(device) for tensor in self))


def make_targets(
    contexts: ContextTokenizer,
    captions: Sequence[str],
    words: Sequence[Sequence[str]] | None,
    *,
    max_length: int,
    start_token: int,
    fill_with_padding: bool = False,
    learn_prompts: bool = True,
) -> Targets:
    """Turns captions, and what stands before them, into targets.

    Args:
        contexts: Turns texts into tokens.
        captions: B captions.
        words: For each the words of its prompt; None: there are no prompts.
        max_length: Tokens of a target, the end token included.
        start_token: Id of the token that the decoder reads first.
        fill_with_padding: Whether all targets have the full length, padding being learned.
        learn_prompts: Whether prompts are learned too.
    """
    rows, sizes = [], []
    for row, caption in enumerate(captions):
        prefix = [] if words is None else prompt_ids(contexts, words[row])
        ids = [*prefix, *contexts.ids(caption)][: max_length - 1]
        sizes.append(min(len(prefix), len(ids)))
        ids.append(contexts.eos)
        if fill_with_padding:
            ids += [contexts.pad] * (max_length - len(ids))
        rows.append(torch.tensor(ids))
    labels_BT = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    after_BT = torch.arange(labels_BT.shape[1]) >= torch.tensor(sizes)[:, None]
    is_caption_BT = after_BT & (labels_BT != IGNORED)
    start_B1 = torch.full_like(labels_BT[:, :1], start_token)
    read_BT = labels_BT.masked_fill(labels_BT == IGNORED, contexts.pad)
    decoder_ids_BT = torch.cat((start_B1, read_BT[:, :-1]), dim=1)
    if not learn_prompts:
        labels_BT = labels_BT.masked_fill(~is_caption_BT, IGNORED)
    return Targets(labels_BT, decoder_ids_BT, is_caption_BT)


def prompt_ids(contexts: ContextTokenizer, words: Sequence[str]) -> list[int]:
    """Returns the tokens of `<MSK> a <SEP> b <CPT>`."""
    ids = [contexts.marker(MASK)]
    for number, word in enumerate(words):
        ids += [contexts.marker(SEPARATOR)] if number else []
        ids += contexts.ids(word)
    return [*ids, contexts.marker(CAPTION)]
