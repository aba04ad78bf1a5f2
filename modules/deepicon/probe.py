"""What an image embedding knows of an icon's meaning: linear probes on the words of its name.

Shapes: N icons, F features, K keywords.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from .network import DeepIconNetwork
from .tracers import load_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_FOLDS = 5
PIXELS = 24  # side of the pictures that are probed as they are
Matrix = NDArray[np.float64]


def keywords_of(names: Sequence[str], min_icons: int) -> tuple[list[str], NDArray[np.bool_]]:
    """Returns the words that stand in so many names, and which icon has which, (N, K)."""
    words = [set(re.findall(r"[a-z]{2,}", PurePosixPath(name).name.lower())) for name in names]
    counts = Counter(word for found in words for word in found)
    chosen = sorted(word for word, count in counts.items() if count >= min_icons)
    return chosen, np.array([[word in found for word in chosen] for found in words])


def probe(features_NF: Matrix, labels_NK: NDArray[np.bool_]) -> Matrix:
    """Returns the average precision of each keyword, (K,), cross-validated.

    A ridge regression on standardised features scores each icon of a fold, its penalty chosen on
    the others. Icons that look alike may be in different folds, which helps pixels most.

    Args:
        features_NF: Of icons.
        labels_NK: Their keywords.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.zeros(labels_NK.shape)
    folds = KFold(NUM_FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features_NF):
        model = make_pipeline(
            StandardScaler(), RidgeCV(np.logspace(0, 5, 11), alpha_per_target=True)
        )
        model.fit(features_NF[train], labels_NK[train].astype(float))
        scores[test] = model.predict(features_NF[test])
    columns = range(labels_NK.shape[1])
    return np.array([average_precision_score(labels_NK[:, k], scores[:, k]) for k in columns])


class KeywordProbe(LightningModule):
    """Probes the embedding of a trained DeepIcon for the words of icons' names.

    Beside it the same network with random weights, and the pictures as they are. Logs
    `test/<row>/average_precision` for the rows `code`, `random`, `pixels`, and `chance`: the share
    of icons that have the word. Each is a mean over keywords. For one process.

    Args:
        checkpoint: Of a run of `DeepIconModule` from the command line.
        image_size: Side of the pictures that it was trained on.
        min_icons: In how many names a word must stand.
        seed: Of the random weights.

    Raises:
        ValueError: From the test, there is no such checkpoint or word.
    """

    def __init__(
        self, checkpoint: str, image_size: int = 64, min_icons: int = 12, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.checkpoint, self.seed = checkpoint, seed
        self.image_size, self.min_icons = image_size, min_icons
        self.networks = nn.ModuleDict()
        self._rows: dict[str, list[Tensor]] = {"code": [], "random": [], "pixels": []}
        self._names: list[str] = []
        self._keywords: list[str] = []
        self._scores: dict[str, Matrix] = {}

    def on_test_start(self) -> None:
        """Loads the networks."""
        for name in ("code", "random"):
            network = load_module(self.checkpoint).network
            if name == "random":
                _draw_weights(network, self.seed)
            self.networks[name] = network.to(self.device)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps names and features of one batch."""
        image = batch["image"]
        small = F.interpolate(image, (self.image_size, self.image_size), mode="area")
        for name, network in self.networks.items():
            assert isinstance(network, DeepIconNetwork)
            self._rows[name].append(network.encode(small)[0].cpu())
        grey = F.interpolate(image.mean(dim=1, keepdim=True), (PIXELS, PIXELS), mode="area")
        self._rows["pixels"].append(grey.flatten(1).cpu())
        self._names += batch["name"]

    def on_test_epoch_end(self) -> None:
        """Fits the probes and logs how well they find each word."""
        self._keywords, labels = keywords_of(self._names, self.min_icons)
        if not self._keywords:
            raise ValueError(f"min_icons: no word stands in {self.min_icons} names")
        for name, rows in self._rows.items():
            features = torch.cat(rows).double().numpy()
            self._scores[name] = probe(features, labels)
        self._scores["chance"] = labels.mean(axis=0)
        for name, scores in self._scores.items():
            self.log(f"test/{name}/average_precision", float(scores.mean()))
        self.log("test/num_keywords", float(len(self._keywords)))

    def figures(self) -> dict[str, "Figure"]:
        """Returns the average precision of each keyword."""
        return {"keywords": _keyword_figure(self._keywords, self._scores)} if self._scores else {}


def _draw_weights(network: nn.Module, seed: int) -> None:
    """Gives every layer the weights that it would begin with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in network.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()


def _keyword_figure(keywords: Sequence[str], scores: dict[str, Matrix]) -> "Figure":
    from matplotlib.figure import Figure

    order = np.argsort(scores["code"])
    figure = Figure(figsize=(6.4, 1.5 + 0.18 * len(keywords)), layout="constrained")
    axes = figure.add_subplot()
    for name, marker in (("code", "o"), ("random", "x"), ("pixels", "s"), ("chance", "|")):
        label = f"{name}, mean {scores[name].mean():.3f}"
        axes.plot(scores[name][order], range(len(order)), marker, markersize=4, label=label)
    axes.set_yticks(range(len(order)), [keywords[k] for k in order], fontsize=7)
    axes.set(xlabel="average precision", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return figure
