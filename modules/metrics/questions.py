"""What metrics of answered questions share: each question counts once, on any number of ranks."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

NAME_BYTES = 128
KEY_WORDS = 2  # int64 words of a question's hash


class QuestionMetric(Metric):
    """Keeps a row of numbers under a name for each question.

    Which names there are need not be known before, and ranks may meet different ones. A question
    that comes again, as samplers repeat them, does not count again: the first in rank order stays.

    Args:
        num_values: Numbers in a row.
    """

    full_state_update = False
    names: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        for state in ("names", "keys", "values"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def add(self, names: Sequence[str], question_ids: Sequence[str | int], values: Tensor) -> None:
        """Adds rows.

        Args:
            names: What each is reported under; part of what makes a question the same.
            question_ids: Of each question, unique under its name.
            values: (B, num_values).

        Raises:
            ValueError: A name of more than 128 bytes.
        """
        encoded = [name.encode() for name in names]
        for name in encoded:
            if len(name) > NAME_BYTES:
                raise ValueError(f"the name {name.decode()!r} has more than {NAME_BYTES} bytes")
        padded = b"".join(name.ljust(NAME_BYTES, b"\0") for name in encoded)
        pairs = zip(names, question_ids, strict=True)
        hashes = b"".join(hashlib.sha256(f"{n}\0{q}".encode()).digest()[:16] for n, q in pairs)
        size, device = len(encoded), self.device
        names_BN = np.frombuffer(bytearray(padded), dtype=np.uint8).reshape(size, NAME_BYTES)
        keys_BK = np.frombuffer(bytearray(hashes), dtype=np.int64).reshape(size, KEY_WORDS)
        self.names.append(torch.from_numpy(names_BN).to(device))
        self.keys.append(torch.from_numpy(keys_BK).to(device))
        self.values.append(values.double().reshape(size, self.num_values).to(device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the rows of all ranks, see `torchmetrics.Metric`.

        A rank without a question brings none, but of the shape and type of the others'.
        """
        if isinstance(self.keys, list) and not self.keys:
            self.add([], [], torch.empty(0, self.num_values))
        super().sync(*args, **kwargs)

    def rows(self) -> dict[str, Tensor]:
        """Returns by name the rows of its questions, each once, (n, num_values) float64."""
        names, keys, values = (_whole(part) for part in (self.names, self.keys, self.values))
        if len(keys) == 0:  # also where no rank has seen a question
            return {}
        places: dict[tuple[int, ...], int] = {}
        members: dict[bytes, list[int]] = {}
        for place, (key, name) in enumerate(zip(keys.tolist(), names.cpu().numpy(), strict=True)):
            if places.setdefault(tuple(key), place) == place:
                members.setdefault(name.tobytes().rstrip(b"\0"), []).append(place)
        return {name.decode(): values[members[name]] for name in sorted(members)}


class ExactAnswers(QuestionMetric):
    """Shares of answers whose first word is right: for questions with an answer of one word.

    `compute` returns `<name>/accuracy` for each set, float64.
    """

    def __init__(self) -> None:
        super().__init__(num_values=1)

    def update(
        self,
        sets: Sequence[str],
        question_ids: Sequence[str | int],
        texts: Sequence[str],
        answers: Sequence[str],
    ) -> None:
        """Adds answers.

        Args:
            sets: What each is reported under.
            question_ids: Unique in a set.
            texts: What the model said.
            answers: What is right.
        """
        right = [first_word(t) == first_word(a) for t, a in zip(texts, answers, strict=True)]
        self.add(sets, question_ids, torch.tensor(right))

    def compute(self) -> dict[str, Tensor]:
        """Returns the shares."""
        return {f"{name}/accuracy": rows[:, 0].mean() for name, rows in self.rows().items()}


class QuestionMeans(QuestionMetric):
    """Means of numbers of questions: `compute` returns for each name (num_values,) float64."""

    def update(
        self, names: Sequence[str], question_ids: Sequence[str | int], values: Tensor
    ) -> None:
        """Adds rows, see `add`."""
        self.add(names, question_ids, values)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means."""
        return {name: rows.mean(dim=0) for name, rows in self.rows().items()}


def first_word(text: str) -> str:
    """Returns the first word in small letters, without what is no letter or digit around it."""
    word = next(iter(text.lower().split()), "")
    return word.strip(".,;:!?\"'()[]*")


def _whole(parts: list[Tensor] | Tensor) -> Tensor:
    """Joins a state, which is one tensor after a reduction over ranks."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.empty(0)
