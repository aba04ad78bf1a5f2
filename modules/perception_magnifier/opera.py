"""OPERA (arXiv 2311.17911): beams that lean on one token of theirs are punished and taken back.

Shapes: K beams, N candidates (beams times tokens), L length so far, R tokens of the answer so far,
V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .beam import NEVER, FinishedBeams
from .branch import Branch
from .plain import PlainSession
from .strategy import Asked, Decoded, DecodingStrategy, Session, padding_id
from .watching import Watch, check_seen

NUM_EARLY = 10  # tokens of an answer that are punished for looking away from the image instead
SCALE = 1e-7
EXCLUDED = -999.0  # logits of tokens that are no candidates


@dataclass
class _Beams:
    """Beams at one length, as they were chosen.

    Args:
        ids: (K, L).
        scores: (K,) sums of log-probabilities.
        attention: (K, R, R), what each token of the answer attends to in it.
        summaries: For each beam the places that its tokens leaned on, from the first late one on.
    """

    ids: Tensor
    scores: Tensor
    attention: Tensor
    summaries: list[list[int]] = field(default_factory=list)


class OPERA(DecodingStrategy):
    """Beam search with an over-trust penalty and retrospection.

    Each beam's likeliest tokens are tried. Of the attention of the last layer among the answer's
    tokens (largest head, rows that sum to 1, times `scale_factor`), products down the columns show
    a token that all later ones lean on; the largest product, times 1e-7, is the penalty. The first
    ten tokens are rewarded for their attention to the image instead. When all beams have leaned on
    one place more than `threshold` times, they go back behind it and choose other tokens there.
    Questions of a batch are answered one after the other.

    Args:
        num_beams: K.
        scale_factor: Of attention.
        threshold: See above.
        num_attn_candidates: Tokens that are tried for each beam, and times that beams go back to
            one place.
        penalty_weights: Of the penalty.
        window_size: Tokens of the answer that the penalty looks at.
        length_penalty: See `BeamSearch`.

    Raises:
        ValueError: A number is below 1.
    """

    needs_attention = True

    def __init__(
        self,
        num_beams: int = 5,
        scale_factor: float = 50.0,
        threshold: int = 15,
        num_attn_candidates: int = 5,
        penalty_weights: float = 1.0,
        window_size: int = 512,
        length_penalty: float = 1.0,
    ) -> None:
        for name, number in (
            *(("num_beams", num_beams), ("num_attn_candidates", num_attn_candidates)),
            *(("window_size", window_size), ("threshold", threshold)),
        ):
            if number < 1:
                raise ValueError(f"{name}: {number}, expected 1 or more")
        self.num_beams, self.scale_factor, self.threshold = num_beams, scale_factor, threshold
        self.num_attn_candidates, self.penalty_weights = num_attn_candidates, penalty_weights
        self.window_size, self.length_penalty = window_size, length_penalty

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return PlainSession(asked)

    def decode(
        self, asked: Asked, logits_processor: Any, stopping_criteria: Any, generation_config: Any
    ) -> Decoded:
        """See `DecodingStrategy`."""
        answers, first = [], []
        for row in range(len(asked.questions)):
            search = _Search(self, asked, row)
            answers.append(search.run(logits_processor, stopping_criteria))
            first.append(search.first_logits_V)
        pad_id, longest = padding_id(generation_config), max(map(len, answers))
        padded = [F.pad(ids, (0, longest - len(ids)), value=pad_id) for ids in answers]
        return Decoded(torch.stack(padded), torch.stack(first), asked.costs)

    def penalty(self, row_NL: Tensor, attention_NRR: Tensor, is_image_L: Tensor) -> Any:
        """Returns the penalty of each candidate (N,), and which place it leans on (N,) int64.

        Args:
            row_NL: What a candidate attends to; rows sum to 1.
            attention_NRR: What the answer's tokens, the candidate last, attend to among themselves.
            is_image_L: bool, places of images.
        """
        num_answered = attention_NRR.shape[1]
        if num_answered <= NUM_EARLY:
            looked_N = row_NL[:, is_image_L].sum(dim=1)
            return -looked_N, torch.zeros_like(looked_N, dtype=torch.int64)
        first = max(0, num_answered - self.window_size)
        local_NRR = self.scale_factor * attention_NRR[:, first:, first:].double()
        above = torch.ones_like(local_NRR[0], dtype=torch.bool).triu(1)
        products_NR = local_NRR.masked_fill(above, 1).prod(dim=1)
        largest_N, place_N = products_NR.max(dim=1)
        return (SCALE * largest_N).float(), place_N + first


class _Search:
    """The search for one answer."""

    def __init__(self, strategy: OPERA, asked: Asked, row: int) -> None:
        self.strategy, self.asked, self.row = strategy, asked, row
        self.network, self.num_beams = asked.network, strategy.num_beams
        self.last_layer = self.network.config.get_text_config().num_hidden_layers
        self.prompt_length = asked.input_ids.shape[1]
        self.forbidden: dict[int, set[int]] = {}  # tokens by length of the answer
        self.num_returns: dict[int, int] = {}
        self.first_logits_V = torch.empty(0)

    def run(self, logits_processor: Any, stopping_criteria: Any) -> Tensor:
        """Returns prompt and answer, (L,)."""
        strategy, num_beams = self.strategy, self.num_beams
        prompt_L = self.asked.input_ids[self.row]
        beams = _Beams(
            prompt_L.expand(num_beams, -1),
            torch.tensor([0.0] + [NEVER] * (num_beams - 1), device=prompt_L.device),
            torch.zeros(num_beams, 0, 0, device=prompt_L.device),
            [[] for _ in range(num_beams)],
        )
        branch, logits_KV = self._begin(beams)
        self.first_logits_V = logits_KV[0]
        past = [beams]  # by length of the answer
        finished = FinishedBeams(num_beams)
        while True:
            length = beams.attention.shape[1]  # of the answer so far
            for token in self.forbidden.get(length, ()):
                logits_KV[:, token] = -torch.inf
            count = min(strategy.num_attn_candidates, logits_KV.shape[1])
            values_KC, tokens_KC = logits_KV.topk(count, dim=1)
            tried = self._try(branch, beams, tokens_KC)
            penalty_N, place_N, attention_NRR, next_NV = tried
            values_KC = values_KC - strategy.penalty_weights * penalty_N.view_as(values_KC)
            scored_KV = torch.full_like(logits_KV, EXCLUDED).scatter(1, tokens_KC, values_KC)
            log_p_KV = logits_processor(beams.ids, scored_KV.log_softmax(dim=-1))
            total_N = (beams.scores[:, None] + log_p_KV.gather(1, tokens_KC)).flatten()
            order_M = total_N.topk(min(2 * num_beams, len(total_N))).indices
            sequences = torch.cat(
                [beams.ids.repeat_interleave(count, dim=0), tokens_KC.reshape(-1, 1)], dim=1
            )[order_M]
            ended_M = stopping_criteria(sequences, None)
            self.asked.costs.tokens[self.row] += 1
            size = (length + 1) ** strategy.length_penalty
            for place in ended_M[:num_beams].nonzero()[:, 0].tolist():
                finished.add(float(total_N[order_M[place]]) / size, sequences[place])
            scores_M = total_N[order_M].masked_fill(ended_M, NEVER)
            scores_K, chosen_K = scores_M.topk(min(num_beams, len(scores_M)))
            finished.close(float(scores_K[0]) / size)
            if ended_M.all() or not finished.is_open:
                return finished.best if finished.kept else sequences[0]
            origin_K = order_M[chosen_K]
            leaned = (
                place_N[origin_K].tolist() if length + 1 > NUM_EARLY else [None] * len(origin_K)
            )
            summaries = [
                beams.summaries[parent] + ([] if place is None else [place])
                for parent, place in zip((origin_K // count).tolist(), leaned, strict=True)
            ]
            beams = _Beams(sequences[chosen_K], scores_K, attention_NRR[origin_K], summaries)
            branch.select(origin_K)
            logits_KV = next_NV[origin_K]
            past = [*past[: length + 1], beams]
            back = self._return_to(beams)
            if back is not None:
                chosen = past[back + 1].ids[:, self.prompt_length + back].tolist()
                self.forbidden.setdefault(back, set()).update(chosen)
                beams, past = past[back], past[: back + 1]
                branch, logits_KV = self._begin(beams)

    def _begin(self, beams: _Beams) -> tuple[Branch, Tensor]:
        """Starts a branch over prompt and answers so far; returns the next logits (K, V)."""
        question = self.asked.questions[self.row]
        rows = torch.full((len(beams.ids),), self.row)
        answered_KR = beams.ids[:, self.prompt_length :]
        if answered_KR.shape[1] == 0:  # all are the same
            branch = self.asked.branch([question], rows[:1])
            logits_1V = branch.forward(torch.ones(1, dtype=torch.bool, device=rows.device))
            branch.select(torch.zeros(len(beams.ids), dtype=torch.int64, device=beams.ids.device))
            return branch, logits_1V.repeat(len(beams.ids), 1)
        branch = self.asked.branch([question] * len(beams.ids), rows)
        for token_K in answered_KR.T:
            branch.append(token_K)
        return branch, branch.forward(torch.ones(len(rows), dtype=torch.bool))

    def _try(
        self, branch: Branch, beams: _Beams, tokens_KC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs the candidates; returns penalties, places, attention and next logits of each."""
        count = tokens_KC.shape[1]
        parents_N = torch.arange(len(tokens_KC), device=tokens_KC.device).repeat_interleave(count)
        branch.select(parents_N)
        branch.append(tokens_KC.flatten())
        watch = Watch(self.last_layer, self.last_layer)
        active_N = torch.ones(len(parents_N), dtype=torch.bool, device=tokens_KC.device)
        next_NV = branch.forward(active_N, watch)
        row_NL = check_seen(watch, self.network)[0].amax(dim=1)
        row_NL = row_NL / row_NL.sum(dim=1, keepdim=True)
        length = beams.attention.shape[1] + 1
        attention_NRR = F.pad(beams.attention[parents_N], (0, 1, 0, 1))
        attention_NRR[:, -1] = row_NL[:, -length:]
        is_image_L = branch.is_image[0]
        penalty_N, place_N = self.strategy.penalty(row_NL, attention_NRR, is_image_L)
        return penalty_N, place_N, attention_NRR, next_NV

    def _return_to(self, beams: _Beams) -> int | None:
        """Returns the length of the answer that all beams go back to, None if they go on."""
        if not all(beams.summaries):
            return None
        modes = {max(set(one), key=one.count) for one in beams.summaries}
        if len(modes) > 1:
            return None
        place = modes.pop()
        is_often = all(one.count(place) > self.strategy.threshold for one in beams.summaries)
        num_returns = self.num_returns.get(place, 0)
        if not is_often or place < NUM_EARLY or num_returns >= self.strategy.num_attn_candidates:
            return None
        self.num_returns[place] = num_returns + 1
        return place + 1
