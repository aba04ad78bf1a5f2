"""MME's scores (Fu et al. 2023): questions answered, and images understood."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .questions import QuestionMetric

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (
    *HALLUCINATION,
    *("posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation"),
    *("text_translation", "code_reasoning"),
)
TOTALS = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION}
NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles


class MmeMetric(QuestionMetric):
    """Accuracy, accuracy+ and score of each category, and totals with intervals.

    An image has two questions; accuracy+ is the share of images whose questions are all answered
    right. Questions belong together by their image, in whatever order they come. An answer that
    begins with neither yes nor no is wrong.

    `compute` returns float64 numbers: for each category `<category>/accuracy` and
    `<category>/accuracy_plus` in [0, 1], `<category>/score`, 100 times their sum (at most 200), and
    `<category>/unparsed_ratio`; for each total whose categories have all been seen its sum of
    scores: `hallucination` (existence, count, position, color; at most 800), `perception` (all ten;
    2000), `cognition` (four; 800). Of each score and total, `<name>_low` and `<name>_high` are the
    95 % bootstrap interval: 1,000 resamples of the images within each category, from a fixed seed.
    """

    def __init__(self) -> None:
        super().__init__(num_values=2)

    def update(
        self,
        question_ids: Sequence[str | int],
        image_names: Sequence[str],
        categories: Sequence[str],
        answers: Sequence[str],
        texts: Sequence[str],
    ) -> None:
        """Adds answers.

        Args:
            question_ids: Unique for an image.
            image_names: Which image each is about; unique in a category.
            categories: MME's.
            answers: What is right, "yes" or "no".
            texts: What the model said.

        Raises:
            ValueError: An answer that is neither yes nor no, or a name of more than 128 bytes.
        """
        rows = []
        for answer, text in zip(answers, texts, strict=True):
            if answer not in ("yes", "no"):
                raise ValueError(f"answers of MME are yes or no, got {answer!r}")
            said = answer_of_mme(text)
            rows.append((said == answer, said == "other"))
        names = [f"{c}\t{image}" for c, image in zip(categories, image_names, strict=True)]
        self.add(names, question_ids, torch.tensor(rows))

    def compute(self) -> dict[str, Tensor]:
        """Returns the numbers."""
        images: dict[str, list[tuple[float, ...]]] = {}
        for name, rows in self.rows().items():
            category = name.partition("\t")[0]
            right, other = rows.sum(0).tolist()
            images.setdefault(category, []).append((right, len(rows), right == len(rows), other))
        rng = np.random.default_rng(0)
        found: dict[str, float] = {}
        resampled: dict[str, np.ndarray] = {}
        for category, per_image in images.items():
            table = np.array(per_image, dtype=float)
            right, asked, whole, other = table.sum(0)
            found[f"{category}/accuracy"] = right / asked
            found[f"{category}/accuracy_plus"] = whole / len(table)
            found[f"{category}/unparsed_ratio"] = other / asked
            found[f"{category}/score"] = 100 * right / asked + 100 * whole / len(table)
            sums = table[rng.integers(len(table), size=(NUM_RESAMPLES, len(table)))].sum(1)
            scores = 100 * sums[:, 0] / sums[:, 1] + 100 * sums[:, 2] / len(table)
            resampled[f"{category}/score"] = scores
        for total, categories in TOTALS.items():
            if all(category in images for category in categories):
                names = [f"{category}/score" for category in categories]
                found[total] = sum(found[name] for name in names)
                resampled[total] = np.sum([resampled[name] for name in names], axis=0)
        for name, scores in resampled.items():
            found[f"{name}_low"], found[f"{name}_high"] = np.percentile(scores, INTERVAL)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def answer_of_mme(text: str) -> str:
    """Reads an answer: "yes" or "no" if it begins so, in whatever letters, else "other"."""
    start = text.strip().lower()
    return next((answer for answer in ("yes", "no") if start.startswith(answer)), "other")
