"""Point clouds with labels: data sets, corrupted test sets, augmentation, batches."""

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import default_collate

from ...modules.corruption_names import NEEDS_MESH, SEVERITIES
from ..corruptions import resolve_corruptions
from ..loading import ResumableDataLoader
from .augmentation import Augmentation, Normalize, TrainingClouds, normalized
from .corrupted import CorruptedFiles, TestClouds, make_corrupted
from .mixing import Mixing
from .readers import Format, Split, load_split
from .shapes import ShapeSet, stratified_split
from .unlabelled import UnlabelledClouds, collate_single

__all__ = ["PointCloudDataModule", "ShapeSet", "load_split"]

log = logging.getLogger(__name__)


class PointCloudDataModule(LightningDataModule):
    """Batches of labelled point clouds, and the test sets of the corruption benchmarks.

    Without `root` the data are the embedded furniture set: 411 CAD models of 13 classes, each
    2,048 points. A batch is a dict: pos (B, N, 3) float32, label (B,) int64, index (B,) int64 (the
    number of the shape in its split). Validation and test batches also carry `corruption` ("clean"
    for none) and `severity` (0 for clean), the same for the whole batch; training batches with
    `mixing` carry `label_weights` (B, K), a distribution over the classes.

    The training split is divided into training and validation shapes; the test split is looked at
    in `test` and `predict` only. `test_dataloader` gives one loader per set: clean first, then
    corruption by corruption, severity by severity. Corrupted clouds are never cut or rescaled.
    They are read from `corrupted_root`, or else made here, once, and kept in the cache; those made
    here are comparable with the published files in distribution, not bit by bit.

    Args:
        root: "furniture", or the path of a data set; see `load_split` for the formats.
        format: Its format; "auto" looks what lies there.
        variant: Of ScanObjectNN's files, such as "_augmentedrot_scale75".
        num_points: N, points per cloud in training, validation and the clean test.
        train_points: Which N of the stored points training uses: the "first" (the benchmark), or
            "random" ones anew each time. Validation and test use the first.
        normalize: Whether clouds that are not corrupted are brought into the unit sphere or the box
            [-1, 1]^3 after the N points are chosen.
        batch_size: Shapes per batch and device.
        val_fraction: Share of the training split for validation, per class, in [0, 1).
        split_seed: Seed of that division; the same for runs that are compared.
        scale: Range of the random factor per axis in training; null for none.
        shift: Largest random shift per axis.
        shuffle_points: Whether training gives the points of a cloud in a random order.
        rotate: Random rotation in training: about the "vertical" axis, any ("so3"), or "none".
        jitter: Standard deviation of noise on the coordinates in training.
        dropout: Largest share of points that training replaces by one point of the cloud.
        mixing: "pointcutmix_r", "pointcutmix_k", "pointmixup" or "none"; see `mixing.mix`.
        corruptions: What is tested besides clean clouds: "none", or names, "all" (the 15 of
            ModelNet40-C; with `corrupted_root`, all that is there), "mesh_free" (13 of them),
            "pointcloud_c" (7), or a list of these. Those that need meshes are left out, with a
            message, where there are none.
        severities: Severities of each corruption, of 1 to 5.
        corrupted_root: Folder with corrupted test sets, as downloaded (ModelNet40-C .npy,
            PointCloud-C .h5) or made by `tenfold corrupt`. None makes them.
        val_corruptions: As `corruptions`, for validation; these are always made here. Validation
            then has a list of loaders in the order of those of the test.
        val_severities: Severities in validation.
        corruption_seed: Seed of the corruptions that are made here.
        num_workers: Processes that read batches; 0 reads in the main process, which is enough
            unless `mixing` is on.
        seed: Seed of order and augmentation; None takes that of `seed_everything`.
        mesh_points: Points sampled from a mesh, if the data set consists of meshes.
        predict_root: Folder or file of clouds or meshes without labels that `predict` reads one by
            one; None predicts the clean test split.
        cache_dir: Where sampled meshes and corrupted clouds are kept; by default `$TENFOLD_CACHE`,
            else `~/.cache/tenfold`.
        strict: Whether a single bad shape is an error; else such are left out and counted.

    Raises:
        ValueError: From the constructor an impossible argument; later, data that cannot be used.
    """

    def __init__(
        self,
        root: str = "furniture",
        format: Format = "auto",  # noqa: A002 - the word for it
        variant: str = "",
        num_points: int = 1024,
        train_points: Literal["first", "random"] = "first",
        normalize: Normalize = "none",
        batch_size: int = 32,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        scale: tuple[float, float] | None = (2 / 3, 3 / 2),
        shift: float = 0.2,
        shuffle_points: bool = True,
        rotate: Literal["none", "vertical", "so3"] = "none",
        jitter: float = 0.0,
        dropout: float = 0.0,
        mixing: Mixing = "none",
        corruptions: str | list[str] = "none",
        severities: list[int] | None = None,
        corrupted_root: str | None = None,
        val_corruptions: str | list[str] = "none",
        val_severities: list[int] | None = None,
        corruption_seed: int = 2021,
        num_workers: int = 0,
        seed: int | None = None,
        mesh_points: int = 2048,
        predict_root: str | None = None,
        cache_dir: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        counts = {"num_points": num_points, "batch_size": batch_size, "mesh_points": mesh_points}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        self.root, self.format, self.variant = root, format, variant
        self.num_points, self.normalize = num_points, normalize
        self.augmentation = Augmentation(
            random_points=train_points == "random",
            normalize=normalize,
            rotate=rotate,
            scale=scale,
            shift=shift,
            jitter=jitter,
            dropout=dropout,
            shuffle=shuffle_points,
            mixing=mixing,
        )
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.corrupted_root = corrupted_root
        self.corruptions = _names(corruptions)
        self.val_corruptions = _names(val_corruptions)
        self.severities = _checked_severities(severities)
        self.val_severities = _checked_severities(val_severities)
        if self.val_corruptions and not val_fraction:
            raise ValueError("val_corruptions needs a val_fraction above 0")
        if corrupted_root is not None and not self.corruptions:
            raise ValueError("corrupted_root is given, but corruptions is none (all, or names)")
        self.corruption_seed = corruption_seed
        self.seed = torch.initial_seed() if seed is None else seed
        self.mesh_points, self.predict_root = mesh_points, predict_root
        self.cache_dir, self.strict = cache_dir, strict
        self._read: dict[Split, ShapeSet] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; reads the training split if that has not been done."""
        return self._split("train").class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def train_shapes(self) -> ShapeSet:
        """The shapes that are trained on."""
        return self._split("train").subset(~self._is_val)

    @cached_property
    def val_shapes(self) -> ShapeSet:
        """The shapes of validation, from the training split."""
        return self._split("train").subset(self._is_val)

    @property
    def test_shapes(self) -> ShapeSet:
        """The shapes of the test split."""
        return self._split("test")

    @cached_property
    def val_sets(self) -> list[TestClouds]:
        """What validation loads: clean clouds, then `val_corruptions`."""
        if not self.val_fraction:
            return []
        clean = [self._clean(self.val_shapes)]
        return clean + self._made(self.val_shapes, self.val_corruptions, self.val_severities)

    @cached_property
    def test_sets(self) -> list[TestClouds]:
        """What the test loads, each with its `corruption` and `severity`, in this order."""
        if self.corrupted_root is None:
            shapes = self._split("test")
            return [self._clean(shapes), *self._made(shapes, self.corruptions, self.severities)]
        files = CorruptedFiles(self.corrupted_root, self.num_classes)
        names = files.corruptions if self.corruptions == ["all"] else None
        wanted = [
            (name, severity)
            for name in names or resolve_corruptions(self.corruptions)
            for severity in self.severities
        ]
        clean = files.clean() or self._clean(self._split("test"))
        return [clean, *(files.load(name, severity) for name, severity in wanted)]

    def prepare_data(self) -> None:
        """Fills the cache with what the stage needs; Lightning does so once per node."""
        self._split("train")
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            _ = self.val_sets
        elif stage == TrainerFn.TESTING:
            _ = self.test_sets

    def train_dataloader(self) -> ResumableDataLoader:
        """Loads augmented training shapes, in an order of its own in each epoch."""
        self._check_enough(self.train_shapes)
        clouds = TrainingClouds(self.train_shapes, self.num_points, self.augmentation, self.seed)
        return self._loader(clouds, shuffle=True, drop_last=True, randomness=True)

    def val_dataloader(self) -> ResumableDataLoader | list[ResumableDataLoader]:
        """Loads the validation shapes in order; a list of loaders with `val_corruptions`."""
        if not self.val_fraction:
            return []
        loaders = [self._loader(clouds) for clouds in self.val_sets]
        return loaders if self.val_corruptions else loaders[0]

    def test_dataloader(self) -> list[ResumableDataLoader]:
        """Loads the test sets: clean, then corruption by corruption, severity by severity."""
        return [self._loader(clouds) for clouds in self.test_sets]

    def predict_dataloader(self) -> ResumableDataLoader:
        """Loads the clouds of `predict_root` one by one, or the clean test split, with names."""
        if self.predict_root is None:
            return self._loader(self._clean(self._split("test")))
        clouds = UnlabelledClouds(self.predict_root, self.mesh_points, self.normalize == "box")
        return self._loader(clouds, batch_size=1, collate_fn=collate_single)

    def decode(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the name of the class to a record with a `label`."""
        return {**record, "class_name": self.class_names[int(record["label"])]}

    def run_info(self) -> dict[str, Any]:
        """Returns what a run should remember of its data, as JSON values."""
        info = {
            "data_hash": self._split("train").data_hash,
            "root": self.root,
            "num_classes": self.num_classes,
            "num_points": self.num_points,
            "num_train_shapes": len(self.train_shapes),
            "num_val_shapes": len(self.val_shapes) if self.val_fraction else 0,
            "num_skipped_shapes": sum(len(shapes.skipped) for shapes in self._read.values()),
        }
        if "test" in self._read:
            info["test_data_hash"] = self._read["test"].data_hash
            info["num_test_shapes"] = len(self._read["test"])
        if self.corruptions:
            made = f"made here with seed {self.corruption_seed}"
            info["corrupted_sets"] = made if self.corrupted_root is None else self.corrupted_root
        return info

    def state_dict(self) -> dict[str, Any]:
        """Returns the hashes by which a checkpoint knows its data again."""
        classes = hashlib.sha256(repr(self.class_names).encode()).hexdigest()
        return {"classes": classes, "data": self._split("train").data_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the hashes of a checkpoint with those of this data.

        Raises:
            ValueError: The classes differ, so that labels mean something else; or in `fit` the
                data differ, so that the run cannot go on where it stopped.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        here = self.state_dict()
        for name in ("classes", "data") if fitting else ("classes",):
            if state_dict[name] != here[name]:
                raise ValueError(
                    f"the checkpoint was trained with other {name} (SHA-256 "
                    f"{state_dict[name][:12]}, here {here[name][:12]}): use the data settings of "
                    "its run" + (", or load only the weights" if name == "data" else "")
                )

    @cached_property
    def _is_val(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        shapes = self._split("train")
        return stratified_split(shapes.labels, shapes.groups, self.val_fraction, self.split_seed)

    def _split(self, split: Split) -> ShapeSet:
        if split not in self._read:
            shapes = load_split(
                self.root,
                split,
                self.format,
                num_points=self.mesh_points,
                strict=self.strict,
                variant=self.variant,
                cache_dir=self.cache_dir,
                num_workers=self.num_workers,
            )
            if shapes.skipped:
                log.warning(
                    "left out %d bad shapes; first: %s", len(shapes.skipped), shapes.skipped[0]
                )
            self._read[split] = shapes
        return self._read[split]

    def _clean(self, shapes: ShapeSet) -> TestClouds:
        self._check_enough(shapes)
        points = normalized(shapes.points[:, : self.num_points], self.normalize)
        return TestClouds(points, shapes.labels, names=shapes.names)

    def _made(self, shapes: ShapeSet, names: list[str], severities: list[int]) -> list[TestClouds]:
        wanted = resolve_corruptions(names)
        left_out = [name for name in wanted if name in NEEDS_MESH and shapes.meshes is None]
        if left_out:
            log.warning(
                "%s left out: made from meshes, and '%s' has points only",
                " and ".join(left_out),
                self.root,
            )
        return [
            make_corrupted(
                shapes, name, severity, self.num_points, self.corruption_seed, self.cache_dir
            )
            for name in wanted
            if name not in left_out
            for severity in severities
        ]

    def _check_enough(self, shapes: ShapeSet) -> None:
        stored = shapes.points.shape[1]
        if stored < self.num_points:
            raise ValueError(
                f"'{self.root}' has {stored} points per shape, fewer than num_points "
                f"{self.num_points} (use {stored} or fewer)"
            )

    def _loader(self, dataset: Any, **kwargs: Any) -> ResumableDataLoader:
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": _collate,
            **(shard or {}),
            **kwargs,
        }
        return ResumableDataLoader(dataset, **options)


def _collate(samples: Any) -> Any:
    """Passes on what is a batch already, as the data sets here read them."""
    return samples if isinstance(samples, dict) else default_collate(samples)


def _names(corruptions: str | list[str]) -> list[str]:
    names = [corruptions] if isinstance(corruptions, str) else corruptions
    names = [] if names == ["none"] else names
    resolve_corruptions(names)
    return names


def _checked_severities(severities: list[int] | None) -> list[int]:
    chosen = list(SEVERITIES) if severities is None else severities
    if not chosen or any(s not in SEVERITIES for s in chosen):
        raise ValueError(f"severities must be some of 1, 2, 3, 4, 5, got {chosen}")
    return chosen
