"""What is trained when: phases by optimizer step."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Phase:
    """A part of a training run.

    Args:
        start: When it begins: an optimizer step, or a fraction of the run when it is a float below
            1.
        answer_weight: What the loss of the answers is multiplied by.
        patch_weight: What the dense loss of the patches is multiplied by.
        freeze: Regular expressions, searched for in the names of parameters
            (`network.model.vision_tower.layers.0.weight`): these are not stepped in this phase.
        kinds: Only questions of these kinds are learned from; conversations without any are left
            out. None: all questions.
    """

    start: int | float = 0
    answer_weight: float = 1.0
    patch_weight: float = 0.0
    freeze: list[str] = field(default_factory=list)
    kinds: list[str] | None = None

    def select(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leaves out questions, and conversations, that the phase does not learn from.

        Args:
            batch: That of `VisionLanguageModel`, with `kinds`.

        Raises:
            ValueError: No question is left.
        """
        if self.kinds is None:
            return batch
        chosen = [[k for k, kind in enumerate(row) if kind in self.kinds] for row in batch["kinds"]]
        rows = [row for row, places in enumerate(chosen) if places]
        if not rows:
            raise ValueError(
                f"phases: no question of the kinds {self.kinds} in a batch of {len(chosen)} "
                "conversations: ask more of them, or use larger batches"
            )
        found = dict(batch)
        for name in ("questions", "answers", "kinds"):
            found[name] = [[batch[name][row][k] for k in chosen[row]] for row in rows]
        images = batch["images"]
        found["images"] = images[rows] if isinstance(images, Tensor) else [images[r] for r in rows]
        for name in ("boxes", "box_labels"):
            if batch.get(name) is not None:  # a row for each image
                of_rows = batch[name].unflatten(0, (len(chosen), -1))[rows]
                found[name] = of_rows.flatten(0, 1)
        return found


def check_phases(phases: Sequence[Phase], freeze: Sequence[str]) -> None:
    """Refuses phases that leave a step without one, or that train nothing.

    Args:
        phases: Of a run.
        freeze: Expressions for what is never trained.

    Raises:
        ValueError: There is none, the first does not begin at 0, a start is out of range, weights
            are negative or both 0, or an expression is malformed.
    """
    if not phases or phases[0].start != 0:
        raise ValueError("phases: the first must begin at 0")
    for phase in phases:
        if phase.start < 0 or (isinstance(phase.start, float) and phase.start >= 1):
            raise ValueError(
                f"phases: start {phase.start} is neither a number of steps nor a fraction of the "
                "run below 1"
            )
        weights = (phase.answer_weight, phase.patch_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"phases: answer_weight and patch_weight {weights} train nothing")
    for pattern in [*freeze, *(pattern for phase in phases for pattern in phase.freeze)]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"freeze: {pattern!r} is malformed: {error}") from error


def phase_at(phases: Sequence[Phase], step: int, num_steps: float) -> Phase:
    """Returns the phase of an optimizer step of a run of `num_steps`.

    Raises:
        ValueError: A later phase begins before an earlier one.
    """
    starts = [p.start if isinstance(p.start, int) else p.start * num_steps for p in phases]
    if starts != sorted(starts):
        raise ValueError(f"phases: they begin at steps {starts}; put them in order")
    return next(p for p, start in reversed([*zip(phases, starts, strict=True)]) if step >= start)
