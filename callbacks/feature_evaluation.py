"""Evaluations of a model by its embeddings alone: zero-shot, retrieval, linear probe.

They take data sets of their own from YAML and call `encode_image` and `encode_text` of the module,
whichever it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ..modules.linear_probe import GRID, linear_probe
from ..modules.metrics.classification import IGNORED, ClassificationScore
from ..modules.metrics.retrieval import PairRetrieval
from ..modules.zero_shot import class_embeddings, class_logits


class FeatureEvaluation(Callback, ABC):
    """What the evaluations share: when they run, and under which names they log.

    Logged as `val/<name>/<dataset>` and `test/<name>/<dataset>`, and with several data sets as
    `.../average`, the plain mean over them.

    Args:
        datasets: What to evaluate on, by the names to log under.
        name: Of the evaluation; two of one kind in one run need different ones.
        every_n_validations: During training after every so many validations; 0: only when the
            command is `validate` or `test`, or at the test after `fit`.
    """

    needs: tuple[str, ...] = ("encode_image", "encode_text")

    def __init__(
        self,
        datasets: Mapping[str, LightningDataModule],
        name: str,
        every_n_validations: int = 1,
    ) -> None:
        if not datasets:
            raise ValueError(f"{name}: datasets: give at least one")
        if every_n_validations < 0:
            raise ValueError(f"every_n_validations must be 0 or more, got {every_n_validations}")
        self.datasets = dict(datasets)
        self.name = name
        self.every_n_validations = every_n_validations
        self._num_validations = 0
        self._is_ready = False

    @property
    def state_key(self) -> str:
        """By which a checkpoint tells evaluations of one kind apart."""
        return f"{type(self).__qualname__}/{self.name}"

    @abstractmethod
    def evaluate(
        self, trainer: Trainer, module: Any, data: LightningDataModule
    ) -> dict[str, float]:
        """Returns the results of one data set, equal on all processes; "" is the main one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the module and opens the data."""
        for method in self.needs:
            if not callable(getattr(pl_module, method, None)):
                raise ValueError(
                    f"{type(self).__name__} needs a model with {method}, which "
                    f"{type(pl_module).__name__} has not"
                )
        if self._is_ready:
            return
        for data in self.datasets.values():
            if trainer.local_rank == 0:
                data.prepare_data()
            trainer.strategy.barrier("evaluation data")
            data.setup("test")
        self._is_ready = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates when it is time."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._num_validations += 1
            every = self.every_n_validations
            if not every or self._num_validations % every:
                return
        self._log_all(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates."""
        self._log_all(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """Where the count of validations is."""
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._num_validations = int(state_dict["num_validations"])

    @torch.no_grad()
    def _log_all(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        sums: dict[str, list[float]] = {}
        for dataset, data in self.datasets.items():
            for name, value in self.evaluate(trainer, module, data).items():
                suffix = f"/{name}" if name else ""
                module.log(f"{stage}/{self.name}/{dataset}{suffix}", value, sync_dist=True)
                sums.setdefault(suffix, []).append(value)
        if len(self.datasets) > 1:
            for suffix, values in sums.items():
                mean = sum(values) / len(values)
                module.log(f"{stage}/{self.name}/average{suffix}", mean, sync_dist=True)


class ZeroShotEvaluation(FeatureEvaluation):
    """Classifies images by the names of the classes alone.

    A data set is a DataModule with `class_names`, `templates`, `metric` ("accuracy",
    "mean_per_class" or "roc_auc") and test batches of `images` and `label`, such as
    `ClassificationDataModule`. Robustness is the same on other data sets, under another name.

    Args:
        datasets: See `FeatureEvaluation`.
        name: See `FeatureEvaluation`.
        every_n_validations: See `FeatureEvaluation`.
        integer_logits: See `modules.zero_shot.class_logits`.
    """

    def __init__(
        self,
        datasets: dict[str, LightningDataModule],
        name: str = "zero_shot",
        every_n_validations: int = 1,
        integer_logits: bool = False,
    ) -> None:
        super().__init__(datasets, name, every_n_validations)
        self.integer_logits = integer_logits

    def evaluate(
        self, trainer: Trainer, module: Any, data: LightningDataModule
    ) -> dict[str, float]:
        """See `FeatureEvaluation`."""
        names, templates, metric = _of(data, "class_names", "templates", "metric")
        class_CD = class_embeddings(module.encode_text, names, templates)
        score = ClassificationScore(metric, len(names)).to(module.device)
        for batch in _batches(module, data.test_dataloader()):
            image_BD = module.encode_image(batch["images"])
            score.update(class_logits(image_BD, class_CD, self.integer_logits), batch["label"])
        return {"": float(score.compute())}


class RetrievalEvaluation(FeatureEvaluation):
    """Finds the texts of an image among all texts, and the image of a text among all images.

    A data set is a DataModule with test batches of `images`, `captions` (for each image a list of
    texts) and `index`, such as `CaptionDataModule` or `MultiTextDataModule`.

    Args:
        datasets: See `FeatureEvaluation`.
        name: See `FeatureEvaluation`.
        every_n_validations: See `FeatureEvaluation`.
        prefix: Put before each caption; the paper's authors take "a photo of ".
        top_k: Among how many of the most similar.
    """

    def __init__(
        self,
        datasets: dict[str, LightningDataModule],
        name: str = "retrieval",
        every_n_validations: int = 1,
        prefix: str = "",
        top_k: tuple[int, ...] = (1, 5, 10),
    ) -> None:
        super().__init__(datasets, name, every_n_validations)
        self.prefix, self.top_k = prefix, tuple(top_k)

    def evaluate(
        self, trainer: Trainer, module: Any, data: LightningDataModule
    ) -> dict[str, float]:
        """See `FeatureEvaluation`."""
        metric = PairRetrieval(self.top_k).to(module.device)
        for batch in _batches(module, data.test_dataloader()):
            captions = [[self.prefix + text for text in own] for own in batch["captions"]]
            texts = [text for own in captions for text in own]
            image_BD = module.encode_image(batch["images"])
            text_TD = module.encode_text(texts or [""])[: len(texts)]
            counts_B = torch.tensor([len(own) for own in captions], device=image_BD.device)
            index_B = batch["index"]
            has_text_B = counts_B > 0
            metric.update(
                image_BD[has_text_B],
                index_B[has_text_B],
                text_TD,
                index_B.repeat_interleave(counts_B),
            )
        return {name: float(value) for name, value in metric.compute().items()}


class LinearProbeEvaluation(FeatureEvaluation):
    """Fits a logistic regression on image features, data set by data set.

    Features are those of the module's `image_features`, if it has it, else of `encode_image`. A
    data set is a DataModule with `class_names`, `metric`, and training and test batches of `images`
    and `label`, without augmentation. Rank 0 fits, the others wait: minutes for a large data set.

    Args:
        datasets: See `FeatureEvaluation`.
        name: See `FeatureEvaluation`.
        every_n_validations: See `FeatureEvaluation`.
        grid: Inverse strengths of regularisation, of which the best on a fifth of the training
            images is taken.
        max_iter: Iterations of a fit at most.
    """

    needs = ("encode_image",)

    def __init__(
        self,
        datasets: dict[str, LightningDataModule],
        name: str = "linear_probe",
        every_n_validations: int = 0,
        grid: tuple[float, ...] = GRID,
        max_iter: int = 1000,
    ) -> None:
        super().__init__(datasets, name, every_n_validations)
        self.grid, self.max_iter = tuple(grid), max_iter

    def evaluate(
        self, trainer: Trainer, module: Any, data: LightningDataModule
    ) -> dict[str, float]:
        """See `FeatureEvaluation`."""
        names, metric = _of(data, "class_names", "metric")
        train = self._features(module, data.train_dataloader())
        test = self._features(module, data.test_dataloader())
        found = {"score": 0.0}
        if trainer.is_global_zero:
            found = linear_probe(
                *train, *test, len(names), metric, grid=self.grid, max_iter=self.max_iter
            )
        return {"": float(trainer.strategy.broadcast(found["score"]))}

    def _features(self, module: Any, loader: Any) -> tuple[Tensor, Tensor]:
        """Features and labels of all processes, on the CPU, without unreadable images."""
        encode = getattr(module, "image_features", module.encode_image)
        features, labels = [], []
        for batch in _batches(module, loader):
            rows = encode(batch["images"])
            known = batch["label"] != IGNORED
            features.append(rows[known].float().cpu())
            labels.append(batch["label"][known].cpu())
        own = (torch.cat(features), torch.cat(labels))
        if not (dist.is_available() and dist.is_initialized()):
            return own
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _of(data: LightningDataModule, *names: str) -> list[Any]:
    for name in names:
        if not hasattr(data, name):
            raise ValueError(
                f"datasets: {type(data).__name__} has no {name}: give a DataModule of labelled "
                "images, such as ClassificationDataModule"
            )
    return [getattr(data, name) for name in names]


def _batches(module: LightningModule, loader: Any) -> Iterator[dict[str, Any]]:
    """The batches of a loader on the module's device."""
    for batch in loader:
        yield {
            name: value.to(module.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
