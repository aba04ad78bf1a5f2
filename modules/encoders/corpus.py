"""An image and text encoder that is learned from a corpus in seconds, without any download."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..files import atomic_path
from .encoder import Encoder

Floats = NDArray[np.float32]
SIDE = 64
CELLS = 8
BINS = 8
COLOURS = 4
_FILE = "corpus_encoder.safetensors"
_TOKEN = r"\b[^\W_]\w+\b"
NOTHING_LEARNED = "encoder: nothing has been learned yet: call learn, or run the pipeline's stages"


class CorpusEncoder(Encoder):
    """Latent semantic analysis of texts, and a regression of images onto the texts beside them.

    A stand-in for CLIP where no weights can be had: the text tower is TF-IDF and a truncated SVD;
    the image tower takes colours and edge directions, random Fourier features of these, and a ridge
    regression onto the embedding of the text that stands beside an image. Both are closed forms. It
    knows the words and looks of its corpus and nothing else; expect weak alignment.

    An embedding depends on its item alone. Texts without a known word are zeros.

    Args:
        folder: Where what was learned is kept; None: set by whoever learns.
        dimensions: D.
        min_count: A word must be in so many texts.
        num_features: Random Fourier features of images.
        ridge: Weight of the penalty, relative to the number of images.
        seed: Of the SVD's start and of the random features.
    """

    supports_images = True
    supports_texts = True

    def __init__(
        self,
        folder: str | None = None,
        dimensions: int = 256,
        min_count: int = 3,
        num_features: int = 4096,
        ridge: float = 0.01,
        seed: int = 0,
    ) -> None:
        if dimensions < 2 or min_count < 1 or num_features < 2 or ridge <= 0:
            raise ValueError(
                "encoder: dimensions and num_features must be 2 or more, min_count 1 or more and "
                f"ridge more than 0, got {dimensions}, {num_features}, {min_count} and {ridge}"
            )
        self.folder = folder
        self.dimensions = dimensions
        self.min_count = min_count
        self.num_features = num_features
        self.ridge = ridge
        self.seed = seed

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that decide what is learned."""
        found = {k: v for k, v in self.__getstate__().items() if k != "folder"}
        return {"encoder": type(self).__name__, **found}

    @property
    def identity(self) -> dict[str, Any]:
        """See `Encoder`.

        Raises:
            ValueError: Nothing has been learned yet.
        """
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {**self.settings, "learned": f"sha256:{digest}"}

    def learn(
        self, texts: Sequence[str], pairs: Iterable[tuple[Image.Image, str]]
    ) -> dict[str, float]:
        """Learns both towers and writes them into the folder.

        Args:
            texts: Of the corpus.
            pairs: Images and the texts beside them; each image is looked at once.

        Returns:
            Words known, images used, and the share of the variance of their texts' embeddings
            that images explain (in sample).

        Raises:
            ValueError: There is too little to learn from.
        """
        from safetensors.numpy import save_file
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        # `sublinear` counts, as one word repeated says little more.
        weigher = TfidfVectorizer(
            min_df=self.min_count, sublinear_tf=True, stop_words="english", token_pattern=_TOKEN
        )
        try:
            weights = weigher.fit_transform(texts)
        except ValueError as error:
            raise ValueError(f"encoder: too few texts to learn from: {error}") from error
        number = len(weigher.vocabulary_)
        if number <= self.dimensions:
            raise ValueError(
                f"encoder: {number} words are in {self.min_count} texts or more, which is too few "
                f"for {self.dimensions} dimensions: lower dimensions, or give more documents"
            )
        svd = TruncatedSVD(self.dimensions, n_iter=7, random_state=self.seed).fit(weights)
        components = svd.components_.T.astype(np.float32)
        looks, beside = [], []
        for image, text in pairs:
            looks.append(_look(image))
            beside.append(text)
        if len(looks) < 2:
            raise ValueError("encoder: fewer than 2 images with a text beside them to learn from")
        learned = {
            "idf": weigher.idf_.astype(np.float32),
            "components": components,
            "text_mean": np.asarray(weights.mean(0) @ components, dtype=np.float32).reshape(-1),
            **self._learn_images(np.stack(looks)),
        }
        words = sorted(weigher.vocabulary_, key=weigher.vocabulary_.__getitem__)
        self._keep(learned, words)
        targets = self._texts(beside).astype(np.float64)
        features = np.stack([self._features(look) for look in looks]).astype(np.float64)
        known = (targets != 0).any(1)
        features, targets = features[known], targets[known]
        mean, goal = features.mean(0), targets.mean(0)
        centred = features - mean
        gram = centred.T @ centred
        gram[np.diag_indices_from(gram)] += self.ridge * len(centred)
        weights_FD = np.linalg.solve(gram, centred.T @ (targets - goal))
        explained = 1 - np.square(centred @ weights_FD - (targets - goal)).sum() / max(
            1e-12, np.square(targets - goal).sum()
        )
        learned["feature_mean"] = mean.astype(np.float32)
        learned["regression"] = weights_FD.astype(np.float32)
        folder = self._folder
        with atomic_path(folder / _FILE) as temporary:
            save_file(learned, temporary, metadata={"words": "\n".join(words)})
        self._keep(learned, words)
        return {"words": number, "images": len(features), "explained": float(explained)}

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Encoder`."""
        self._load()
        found = np.zeros((len(images), self.dimensions), np.float32)
        for row in range(len(images)):
            feature = self._features(_look(images[row])) - self._learned["feature_mean"]
            found[row] = feature @ self._learned["regression"]
        return torch.from_numpy(_unit(found))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder`."""
        if isinstance(texts, str):
            raise ValueError("texts: a single text; give a list of texts")
        self._load()
        return torch.from_numpy(self._texts(texts))

    @property
    def _folder(self) -> Path:
        if self.folder is None:
            raise ValueError("encoder: CorpusEncoder has no folder yet: give init_args.folder")
        return Path(self.folder)

    @property
    def _path(self) -> Path:
        path = self._folder / _FILE
        if not path.is_file():
            raise ValueError(f"{NOTHING_LEARNED} ({path})")
        return path

    def _load(self) -> None:
        if "_learned" not in vars(self):
            from safetensors import safe_open

            with safe_open(self._path, "np") as file:
                learned = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                words = file.metadata()["words"].split("\n")
            self._keep(learned, words)

    def _keep(self, learned: dict[str, Any], words: list[str]) -> None:
        self._learned = learned
        self._words = {word: number for number, word in enumerate(words)}

    def _learn_images(self, looks_NF: Floats) -> dict[str, Floats]:
        """Scales of the looks, and the random directions and phases of their features."""
        generator = np.random.default_rng(self.seed)
        scale = looks_NF.std(0) + 1e-3
        scaled = (looks_NF - looks_NF.mean(0)) / scale
        some = scaled[generator.permutation(len(scaled))[:1000]]
        squares = np.square(some).sum(1)
        distances = squares[:, None] + squares[None, :] - 2 * some @ some.T
        width = np.sqrt(np.median(np.maximum(distances[np.triu_indices(len(some), 1)], 1e-6)))
        directions = generator.standard_normal((looks_NF.shape[1], self.num_features)) / width
        phases = generator.uniform(0, 2 * np.pi, self.num_features)
        return {
            "look_mean": looks_NF.mean(0).astype(np.float32),
            "look_scale": scale.astype(np.float32),
            "directions": directions.astype(np.float32),
            "phases": phases.astype(np.float32),
        }

    def _features(self, look_F: Floats) -> Floats:
        known = self._learned
        scaled = (look_F - known["look_mean"]) / known["look_scale"]
        angles = scaled @ known["directions"] + known["phases"]
        return np.asarray(np.sqrt(2 / self.num_features) * np.cos(angles), dtype=np.float32)

    def _texts(self, texts: Sequence[str]) -> Floats:
        found = np.zeros((len(texts), self.dimensions), np.float32)
        known = self._learned
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"texts[{row}]: a {type(text).__name__} is no text")
            counts: dict[int, int] = {}
            for word in _find_words(text):
                if word in self._words:
                    number = self._words[word]
                    counts[number] = counts.get(number, 0) + 1
            if counts:
                numbers = np.array(sorted(counts))
                times = np.array([counts[n] for n in numbers], np.float32)
                weights = (1 + np.log(times)) * known["idf"][numbers]
                weights /= np.sqrt(np.square(weights).sum())
                found[row] = weights @ known["components"][numbers] - known["text_mean"]
        return _unit(found)


def _find_words(text: str) -> list[str]:
    return re.findall(_TOKEN, text.lower())


def _unit(rows_ND: Floats) -> Floats:
    norms = np.sqrt(np.square(rows_ND.astype(np.float64)).sum(1, keepdims=True))
    return (rows_ND / np.where(norms > 0, norms, 1)).astype(np.float32)


def _look(image: Image.Image) -> Floats:
    """Colours of an image by place and over all, its edge directions by place, and its shape."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"a {type(image).__name__} is no PIL image: open it by PIL.Image.open")
    rgb = image.convert("RGB")
    small = rgb.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(small, dtype=np.float32) / 255
    cell = SIDE // CELLS
    colours = pixels.reshape(CELLS, cell, CELLS, cell, 3).mean((1, 3))
    levels = np.minimum((pixels * COLOURS).astype(int), COLOURS - 1)
    codes = (levels[..., 0] * COLOURS + levels[..., 1]) * COLOURS + levels[..., 2]
    shares = np.bincount(codes.reshape(-1), minlength=COLOURS**3) / codes.size
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(grey)
    size = np.hypot(down, right)
    bins = ((np.arctan2(down, right) % np.pi) / np.pi * BINS).astype(int) % BINS
    edges = np.zeros((CELLS, CELLS, BINS), np.float32)
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    np.add.at(edges, (rows // cell, columns // cell, bins.reshape(-1)), size.reshape(-1))
    shape = [np.log(rgb.width), np.log(rgb.height), np.log(rgb.width / rgb.height)]
    return np.concatenate(
        [colours.reshape(-1), np.sqrt(shares), np.sqrt(edges.reshape(-1)), shape]
    ).astype(np.float32)
