"""Logistic regression on frozen features: CLIP's linear probe.

Shapes: N training images, M test images, F features, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics.classification import ScoreName, score_of

GRID = tuple(10.0**power for power in range(-6, 7, 2))


def linear_probe(
    train_NF: Tensor,
    train_label_N: Tensor,
    test_MF: Tensor,
    test_label_M: Tensor,
    num_classes: int,
    score: ScoreName = "accuracy",
    grid: Sequence[float] = GRID,
    max_iter: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Fits scikit-learn's multinomial logistic regression (L-BFGS) and tests it.

    Its regularisation is chosen on a fifth of the training images, class by class; then it is
    fitted to all of them. Test images play no part in it.

    Args:
        train_NF: Features, of any length.
        train_label_N: Labels from 0.
        test_MF: Features.
        test_label_M: Labels from 0.
        num_classes: C; a class without training images gets no test image right.
        score: What the classifier is chosen and reported by.
        grid: Inverse strengths of regularisation to choose from.
        max_iter: Iterations at most.
        seed: Of the division.

    Returns:
        `score` in [0, 1] and `strength`, the number of the grid that was chosen.

    Raises:
        ValueError: There are fewer than two classes to learn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    train, labels = train_NF.double().cpu().numpy(), train_label_N.cpu().numpy()
    if len(np.unique(labels)) < 2:
        raise ValueError("linear probe: the training images are all of one class")
    counts = np.bincount(labels, minlength=num_classes)
    can_divide = counts[counts > 0].min() >= 2 and len(labels) >= 5 * np.count_nonzero(counts)
    parts = train_test_split(
        np.arange(len(labels)),
        test_size=0.2,
        random_state=seed,
        stratify=labels if can_divide else None,
    )

    def fit(strength: float, rows: Any) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=max_iter).fit(train[rows], labels[rows])

    def value(model: LogisticRegression, features: Tensor, target: Tensor) -> float:
        logits = torch.full((len(features), num_classes), -torch.inf)
        found = torch.from_numpy(model.predict_log_proba(features.double().cpu().numpy())).float()
        logits[:, torch.from_numpy(model.classes_)] = found
        return score_of(score, logits, target.cpu())

    held_out = torch.from_numpy(parts[1])
    values = [value(fit(c, parts[0]), train_NF[held_out], train_label_N[held_out]) for c in grid]
    best = grid[int(np.argmax(values))]
    final = fit(best, np.arange(len(labels)))
    return {"score": value(final, test_MF, test_label_M), "strength": best}
