"""Beam search over one stream of tokens, as transformers does it.

Shapes: B questions, K beams of each, M candidates of each, L length so far, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import PlainSession
from .strategy import Asked, Decoded, DecodingStrategy, Session, padding_id

NEVER = -1e9


class BeamSearch(DecodingStrategy):
    """The likeliest of several answers that are continued side by side.

    Equal to `generate(num_beams=...)` with `early_stopping` False. The prompt is run once, then its
    cache is repeated.

    Args:
        num_beams: K.
        length_penalty: Log-probabilities are divided by length to this power: above 0 longer
            answers are favoured.

    Raises:
        ValueError: Fewer than one beam.
    """

    name = "beam"

    def __init__(self, num_beams: int = 5, length_penalty: float = 1.0) -> None:
        if num_beams < 1:
            raise ValueError(f"num_beams: {num_beams}, expected 1 or more")
        self.num_beams, self.length_penalty = num_beams, length_penalty

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return PlainSession(asked)

    def decode(
        self, asked: Asked, logits_processor: Any, stopping_criteria: Any, generation_config: Any
    ) -> Decoded:
        """See `DecodingStrategy`."""
        num_beams, prompt_length = self.num_beams, asked.input_ids.shape[1]
        batch, device = len(asked.questions), asked.input_ids.device
        branch = asked.branch(asked.questions)
        first_logits_BV = branch.forward(torch.ones(batch, dtype=torch.bool, device=device))
        logits_NV = first_logits_BV.repeat_interleave(num_beams, dim=0)
        branch.select(torch.arange(batch, device=device).repeat_interleave(num_beams))
        ids_NL = asked.input_ids.repeat_interleave(num_beams, dim=0)
        scores_BK = torch.full((batch, num_beams), NEVER, device=device)
        scores_BK[:, 0] = 0  # at first all beams are the same
        found = [FinishedBeams(num_beams) for _ in range(batch)]
        ends = generation_config.eos_token_id
        num_candidates = num_beams * max(2, 1 + (len(ends) if isinstance(ends, list) else 1))
        while True:
            log_p_NV = logits_processor(ids_NL, logits_NV.log_softmax(dim=-1))
            total_BKV = scores_BK[..., None] + log_p_NV.view(batch, num_beams, -1)
            vocabulary = total_BKV.shape[2]
            size = min(num_candidates, num_beams * vocabulary)
            scores_BM, places_BM = total_BKV.flatten(1).topk(size, dim=1)
            first_B1 = torch.arange(batch, device=device)[:, None] * num_beams
            parents_BM, tokens_BM = first_B1 + places_BM // vocabulary, places_BM % vocabulary
            sequences = torch.cat([ids_NL[parents_BM.flatten()], tokens_BM.reshape(-1, 1)], dim=1)
            ended_BM = stopping_criteria(sequences, None).view(batch, size)
            sequences = sequences.view(batch, size, -1)
            length = sequences.shape[2] - prompt_length
            open_B = torch.tensor([one.is_open for one in found])
            asked.costs.tokens += open_B
            for row, one in enumerate(found):
                for place in ended_BM[row, :num_beams].nonzero()[:, 0].tolist():
                    score = float(scores_BM[row, place]) / length**self.length_penalty
                    one.add(score, sequences[row, place])
            scores_BK, chosen_BK = scores_BM.masked_fill(ended_BM, NEVER).topk(num_beams, dim=1)
            for row, one in enumerate(found):
                one.close(float(scores_BK[row, 0]) / length**self.length_penalty)
            if ended_BM.all() or not any(one.is_open for one in found):
                break
            ids_NL = sequences.gather(1, chosen_BK[..., None].expand(-1, -1, sequences.shape[2]))
            ids_NL = ids_NL.flatten(0, 1)
            branch.select(parents_BM.gather(1, chosen_BK).flatten())
            branch.append(ids_NL[:, -1])
            active_B = torch.tensor([one.is_open for one in found], device=device)
            logits_NV = branch.forward(active_B.repeat_interleave(num_beams))
        best = [one.best if one.kept else sequences[row, 0] for row, one in enumerate(found)]
        longest, pad_id = max(map(len, best)), padding_id(generation_config)
        padded = [F.pad(ids, (0, longest - len(ids)), value=pad_id) for ids in best]
        return Decoded(torch.stack(padded), first_logits_BV, asked.costs)


class FinishedBeams:
    """The best finished answers of a question, as many as there are beams.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size, self.is_open = size, True
        self.kept: list[tuple[float, Tensor]] = []

    @property
    def best(self) -> Tensor:
        """Prompt and answer of the best."""
        return self.kept[0][1]

    def add(self, score: float, ids: Tensor) -> None:
        """Keeps an answer if it is among the best."""
        if self.is_open:
            self.kept.append((score, ids))
            self.kept.sort(key=lambda item: -item[0])
            self.kept = self.kept[: self.size]

    def close(self, best_running: float) -> None:
        """Ends the search when what goes on cannot become better than the worst that is kept."""
        if len(self.kept) == self.size and best_running <= self.kept[-1][0]:
            self.is_open = False
