"""Writing programs line by line, each line executed before the next: greedy, by beams, by chance.

The grammar mask leaves only tokens from which a program can still be finished, so that every result
is one. All pictures of a batch are written at once; those that are finished leave it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .drawing import Renderer, blank_states
from .language import Program
from .layers import Result, execute_line, picture_of
from .network import ProgramNetwork
from .vocabulary import BOS, Grammar, Vocabulary


@dataclass
class Candidate:
    """A program for a picture.

    Attributes:
        program: Valid.
        score: Its log-probability under the grammar mask, in nats.
        unforced: Whether the likeliest token was always one that the mask allows: of a greedy
            program, whether it would have been valid without the mask.
        error: Mean square difference of its picture, colours from 0 to 1; NaN if not rendered.
    """

    program: Program
    score: float
    unforced: bool
    error: float = float("nan")


@dataclass
class _Sketch:
    """A program in the making."""

    picture: int
    grammar: Grammar
    results: list[Result] = field(default_factory=list)
    score: float = 0.0
    unforced: bool = True
    last: int = BOS
    by_chance: bool = False

    def copy(self) -> "_Sketch":
        return replace(self, grammar=self.grammar.copy(), results=[*self.results])

    def push(self, token: int, logp: float) -> bool:
        """Appends a token; returns whether it completes a line, which is then executed."""
        self.last = token
        self.score += logp
        if self.grammar.is_finished:
            return False
        if not self.grammar.push(token):
            return False
        self.results.append(execute_line(self.grammar.lines[-1], self.results))
        return True


@torch.no_grad()
def write_programs(
    network: ProgramNetwork,
    vocabulary: Vocabulary,
    image: Tensor,
    renderer: Renderer,
    beams: int = 1,
    samples: int = 1,
    temperature: float = 1.0,
) -> list[list[Candidate]]:
    """Writes programs for pictures.

    Args:
        network: In evaluation mode.
        vocabulary: Its tokens.
        image: (B, 3, S, S) in [0, 1].
        renderer: Draws what lines leave behind, in the size that the network knows.
        beams: Programs that are kept for each picture; 1 is greedy.
        samples: Programs for each picture, all but the first (greedy) drawn by chance; 1 or more,
            not together with beams.
        temperature: What logits are divided by when they are drawn from.

    Returns:
        For each picture its programs, the likeliest first.

    Raises:
        ValueError: Numbers below 1, or beams and samples at once.
    """
    if beams < 1 or samples < 1 or (beams > 1 and samples > 1):
        raise ValueError(f"beams {beams} and samples {samples}: expected 1 or more, not both above")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: expected above 0")
    writer = _Writer(network, vocabulary, image, renderer, beams, samples, temperature)
    found = writer.run()
    return [
        sorted(
            (Candidate(s.grammar.program, s.score, s.unforced) for s in sketches),
            key=lambda candidate: -candidate.score,
        )
        for sketches in found
    ]


def rerank(
    candidates: Sequence[list[Candidate]], image: Tensor, renderer: Renderer
) -> list[list[Candidate]]:
    """Sorts the programs of each picture by how near they come to it.

    Args:
        candidates: For each picture its programs; each gets its `error`.
        image: (B, 3, S, S) in [0, 1].
        renderer: Of size S.
    """
    pictures = [picture_of(c.program) for row in candidates for c in row]
    drawn = iter(renderer.pictures(pictures).to(image.device))
    for row, target in zip(candidates, image, strict=True):
        for candidate in row:
            candidate.error = float((next(drawn) - target).square().mean())
    return [sorted(row, key=lambda c: (c.error, -c.score)) for row in candidates]


class _Writer:
    """The state of writing: one row per program in the making, K rows per picture."""

    def __init__(
        self,
        network: ProgramNetwork,
        vocabulary: Vocabulary,
        image: Tensor,
        renderer: Renderer,
        beams: int,
        samples: int,
        temperature: float,
    ) -> None:
        self.network, self.vocabulary, self.renderer = network, vocabulary, renderer
        self.image, self.device = image, image.device
        self.copies = max(beams, samples)
        self.beams, self.temperature = beams, temperature
        # Beams begin equal: all but the first wait until they differ.
        self.rows = [
            _Sketch(
                picture,
                Grammar(vocabulary),
                score=-np.inf if beams > 1 and copy else 0.0,
                by_chance=samples > 1 and copy > 0,
            )
            for picture in range(len(image))
            for copy in range(self.copies)
        ]
        self.cache = network.begin(image, self.copies)
        self.features = self._encode(
            blank_states(1, renderer.size).expand(len(self.rows), -1, -1, -1), self.rows
        )

    def run(self) -> list[list[_Sketch]]:
        """Writes until all programs are finished."""
        found: list[list[_Sketch]] = [[] for _ in self.image]
        while self.rows:
            self._step()
            done = self._finished()
            if done:
                for row in done:
                    found[self.rows[row].picture].append(self.rows[row])
                gone = set(done)
                self._keep([row for row in range(len(self.rows)) if row not in gone])
        return [[s for s in sketches if s.score > -np.inf] for sketches in found]

    def _finished(self) -> list[int]:
        """Returns rows that need not go on: whole pictures for beams, single programs else."""
        ends = [sketch.grammar.is_finished for sketch in self.rows]
        if self.beams == 1:
            return [row for row, end in enumerate(ends) if end]
        groups = range(0, len(ends), self.copies)
        done = [group for group in groups if all(ends[group : group + self.copies])]
        return [group + copy for group in done for copy in range(self.copies)]

    def _keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        if rows:
            self.cache.batch_select_indices(index)
        if self.features is not None:
            self.features = self.features[index]

    def _step(self) -> None:
        places = [sketch.grammar.place for sketch in self.rows]
        numbers = [
            [sketch.last for sketch in self.rows],
            [place.line for place in places],
            [place.slot for place in places],
        ]
        token_R, line_R, slot_R = torch.tensor(numbers, device=self.device)
        logits_RV = self.network.step(self.cache, token_R, line_R, slot_R, self.features)
        allowed = np.stack([sketch.grammar.allowed() for sketch in self.rows])
        mask_RV = torch.from_numpy(allowed).to(self.device)
        is_allowed_R = mask_RV.gather(1, logits_RV.argmax(dim=1, keepdim=True)).squeeze(1)
        for sketch, is_allowed in zip(self.rows, is_allowed_R.tolist(), strict=True):
            sketch.unforced &= is_allowed
        logp_RV = logits_RV.masked_fill(~mask_RV, -torch.inf).log_softmax(dim=1)
        chosen = self._beam(logp_RV) if self.beams > 1 else self._choose(logp_RV)
        rows, completed = [], []
        for row, (parent, token, logp) in enumerate(chosen):
            sketch = self.rows[parent]
            rows.append(sketch.copy() if self.beams > 1 else sketch)
            if rows[-1].push(token, logp):
                completed.append(row)
        self.rows = rows
        if self.beams > 1:
            index = torch.tensor([parent for parent, _, _ in chosen], device=self.device)
            self.cache.reorder_cache(index)  # type: ignore[arg-type] # any integers will do
            if self.features is not None:
                self.features = self.features[index]
        if completed and self.features is not None:
            sketches = [self.rows[row] for row in completed]
            states = self.renderer.states([sketch.results[-1] for sketch in sketches])
            encoded = self._encode(states, sketches)
            assert encoded is not None
            self.features[completed] = encoded.to(self.features.dtype)

    def _encode(self, states: Tensor, sketches: list[_Sketch]) -> Tensor | None:
        if self.network.state_encoder is None:
            return None
        index = torch.tensor([sketch.picture for sketch in sketches], device=self.device)
        pixels = states.to(self.device) / 255
        return self.network.encode_states(pixels, self.image, index)

    def _choose(self, logp_RV: Tensor) -> list[tuple[int, int, float]]:
        """Returns for each row itself, its next token and the log-probability of that."""
        token_R = logp_RV.argmax(dim=1)
        if self.copies > 1:
            drawn_R = (logp_RV / self.temperature).softmax(dim=1).multinomial(1).squeeze(1)
            by_chance_R = torch.tensor([s.by_chance for s in self.rows], device=self.device)
            token_R = torch.where(by_chance_R, drawn_R, token_R)
        logp_R = logp_RV.gather(1, token_R[:, None]).squeeze(1)
        return list(zip(range(len(self.rows)), token_R.tolist(), logp_R.tolist(), strict=True))

    def _beam(self, logp_RV: Tensor) -> list[tuple[int, int, float]]:
        """Returns for each row the one that it goes on from, its token, its log-probability."""
        score_R = torch.tensor([sketch.score for sketch in self.rows], device=self.device)
        total_BX = (score_R[:, None] + logp_RV).view(-1, self.beams * logp_RV.shape[1])
        score_BK, place_BK = total_BX.topk(self.beams, dim=1)
        chosen = []
        for group, (scores, places) in enumerate(
            zip(score_BK.tolist(), place_BK.tolist(), strict=True)
        ):
            for score, place in zip(scores, places, strict=True):
                if score == -np.inf:  # fewer ways to go on than beams: a copy that counts nothing
                    place = places[0]
                row, token = divmod(place, logp_RV.shape[1])
                row += group * self.beams
                chosen.append((row, token, score - self.rows[row].score))
        return chosen
