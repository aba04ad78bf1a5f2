"""Training of two towers, for images and for texts, in one space, as CLIP and SigLIP do.

Shapes: b pairs of this process, B items, L tokens, C width of a tower, D width of the shared space.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

from ..metrics.retrieval import PairRetrieval
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .losses import ContrastiveLoss, LossName, pair_loss
from .tokenizers import build_tokenizer
from .towers import ImageTower, TextTower, Tower, build_image_tower, build_text_tower

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_EVALUATED_TEXTS = 8  # of an image; more would say no more


class ClipPretraining(ProgressModule):
    """Trains an image tower and a text tower so that pairs are similar, and others are not.

    The towers are built in `configure_model`. In a notebook:

        module = ClipPretraining.load_from_checkpoint("last.ckpt")
        similarity = module.encode_image(images) @ module.encode_text(["a cat", "a dog"]).T

    A batch is a dict: `images` (b, 3, S, S) uint8, or float in [0, 1]; `texts`, b strings; `index`
    (b,) int64; optionally `num_broken`, how many records had to be replaced. In evaluation also
    `captions`, for each image a list of strings, empty where a record was broken. In distributed
    training all batches have one size.

    The loss is that of all processes' batches together (see `ContrastiveLoss`): more devices are
    more negatives. `accumulate_grad_batches` adds none; `chunk_size` makes room for a larger batch.

    Logged in training: `train/loss` in nats per pair (mean since the last logging step),
    `train/scale`, what similarities are multiplied by, `train/broken`, replaced records per batch.
    Validation and test: `loss`, whose batches are those of each process alone, and over the whole
    set `image_to_text_r1`, `text_to_image_r1` and so on (`modules.metrics.retrieval`), where
    several texts of an image each count.

    Args:
        image_tower: `model_type` of a transformers model and arguments of its config class, or
            `timm`, an architecture, and arguments of `timm.create_model`, or `pretrained`, a folder
            or hub id of transformers.
        text_tower: `model_type` and arguments, or `pretrained`.
        embed_dim: D; None: without linear maps, both towers being equally wide.
        tokenizer: "clip", "words" (hashed, for small runs), or a folder or hub id of transformers.
        vocab_size: Of "words".
        text_length: L, tokens per text, begin and end included.
        loss: "clip" or "siglip".
        local_loss: See `ContrastiveLoss`.
        gather_with_grad: See `ContrastiveLoss`.
        label_smoothing: See `ContrastiveLoss`.
        chunk_size: Computes towers for so many pairs at a time and once more in the backward pass,
            so that memory grows with this number and not with the batch (a gradient cache). Not for
            towers with BatchNorm, whose statistics would be those of a chunk.
        freeze: Regular expressions, searched for in names of parameters such as
            `image_tower.network.embeddings`: never trained.
        image_mean: Of each channel, subtracted.
        image_std: Of each channel, divided by.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.
        compile: Compiles each layer with `torch.compile`.
        activation_checkpointing: Recomputes each layer's activations in the backward pass.

    Raises:
        ValueError: Settings that contradict each other, or unknown ones.
    """

    image_tower: ImageTower
    text_tower: TextTower

    def __init__(
        self,
        image_tower: dict[str, Any],
        text_tower: dict[str, Any],
        embed_dim: int | None = 512,
        tokenizer: str = "clip",
        vocab_size: int | None = None,
        text_length: int = 77,
        loss: LossName = "clip",
        local_loss: bool = True,
        gather_with_grad: bool = True,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
        freeze: list[str] | None = None,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,  # noqa: A002 - the name users know
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        save_plain_hyperparameters(self)
        for name, number, least in (
            ("embed_dim", embed_dim, 1),
            ("text_length", text_length, 3),
            ("chunk_size", chunk_size, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name} must be {least} or more, got {number}")
        for pattern in freeze or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"freeze: {pattern!r} is malformed: {error}") from error
        self.image_settings, self.text_settings = dict(image_tower), dict(text_tower)
        self.embed_dim, self.text_length, self.chunk_size = embed_dim, text_length, chunk_size
        self.freeze_patterns = list(freeze or [])
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.compile_layers = compile
        self.activation_checkpointing = activation_checkpointing
        self.tokenizer = build_tokenizer(tokenizer, vocab_size)
        self.criterion = ContrastiveLoss(loss, local_loss, gather_with_grad, label_smoothing)
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            if len(value) != 3:
                raise ValueError(f"{name}: {list(value)}, expected a number for each of 3 channels")
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        self.seed = torch.initial_seed()
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_retrieval, self.test_retrieval = PairRetrieval(), PairRetrieval()
        self.progress = TrainingProgress(num_losses=2, unit="pairs", loss_unit="nats / pair")
        self.num_broken = 0
        self._examples: dict[str, Any] = {}

    def configure_model(self) -> None:
        """Builds the towers once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "image_tower"):
            return
        self.image_tower = build_image_tower(self.image_settings, self.embed_dim, self.seed)
        self.text_tower = build_text_tower(
            self.text_settings, self.tokenizer, self.text_length, self.embed_dim, self.seed
        )
        widths = (self.image_tower.width, self.text_tower.width)
        if self.embed_dim is None and widths[0] != widths[1]:
            raise ValueError(
                f"embed_dim: null needs towers of one width, these have {widths[0]} and {widths[1]}"
            )
        for name, parameter in self.named_parameters():
            if any(re.search(pattern, name) for pattern in self.freeze_patterns):
                parameter.requires_grad_(False)
        if self.chunk_size is not None:
            for name, layer in self.named_modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    raise ValueError(
                        f"chunk_size: {name} is a BatchNorm, whose statistics would be those of a "
                        "chunk: choose towers without one, or set chunk_size to null"
                    )
        for tower in (self.image_tower, self.text_tower):
            if self.activation_checkpointing:
                tower.recompute_activations()
            if self.compile_layers:
                for layer in tower.layers():
                    layer.compile()
        self.shard_network()

    def shard_network(self) -> None:
        """Shards layers, towers and the loss where a strategy asks for it."""
        parts: list[nn.Module] = []
        for tower in (self.image_tower, self.text_tower):
            parts += [*tower.layers(), tower]
        shard_over_devices(self, [*parts, self.criterion])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    # Embeddings

    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """Returns embeddings of images in the shared space, of length 1, (B, D) float32.

        Args:
            images_B3SS: uint8, or float in [0, 1], of the size that the tower takes.
        """
        return _unit(self._chunked(self.image_tower, self.pixels(images_B3SS)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns embeddings of texts in the shared space, of length 1, (B, D) float32."""
        tokens = self.tokenizer.encode(texts, self.text_length)
        inputs = [ids.to(self.device, non_blocking=True) for ids in tokens]
        return _unit(self._chunked(self.text_tower, *inputs))

    def image_features(self, images_B3SS: Tensor) -> Tensor:
        """Returns what the image tower pools, before the shared space, (B, C) float32.

        Of any length: for linear probes.
        """
        features: Tensor = self.image_tower(self.pixels(images_B3SS), project=False)
        return features.float()

    def pixels(self, images_B3SS: Tensor) -> Tensor:
        """Returns images as the tower takes them: normalised, on its device, in its precision."""
        images = images_B3SS.to(self.device)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        pixels: Tensor = (images - self.image_mean) / self.image_std  # type: ignore[operator]
        return pixels.to(next(self.image_tower.parameters()).dtype)

    def _chunked(self, tower: Tower, *inputs: Tensor) -> Tensor:
        """Runs a tower, in training by chunks whose activations are not kept."""
        size = self.chunk_size
        if size is None or not torch.is_grad_enabled() or len(inputs[0]) <= size:
            features: Tensor = tower(*inputs)
            return features
        chunks = zip(*(torch.split(part, size) for part in inputs), strict=True)
        return torch.cat([checkpoint(tower, *chunk, use_reentrant=False) for chunk in chunks])

    # Training

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Returns what training minimises, in nats per pair."""
        loss: Tensor = self.criterion(
            self.encode_image(batch["images"]), self.encode_text(batch["texts"])
        )
        return loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self.loss(batch)
        num_broken = batch.get("num_broken", 0)
        self.num_broken += num_broken
        values = torch.stack([loss.detach(), loss.new_tensor(num_broken)])
        self.progress.step(values, len(batch["images"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            mean, broken = self.progress.mean_losses(self.trainer.strategy.reduce)
            self.log("train/loss", mean, prog_bar=True)
            self.log("train/broken", broken)
            self.log("train/scale", _whole(self.criterion.logit_scale).exp().item())
            self.log("train/pairs_per_second", self.progress.tokens_per_second())
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | Any, optimizer_closure: Any = None
    ) -> None:
        """Keeps the temperature in its range after each step."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.criterion.clamp()

    def on_validation_start(self) -> None:
        """Stops the clock of training, and forgets the examples of the last validation."""
        super().on_validation_start()
        self._examples = {}

    # Evaluation

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the validation metrics."""
        self._evaluate(batch, self.val_loss, self.val_retrieval)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        values = self._compute(self.val_loss, self.val_retrieval)
        for name, value in values.items():
            # Equal on all devices already; sync_dist only tells Lightning so.
            bar = name in ("loss", "image_to_text_r1")
            self.log(f"val/{name}", value, prog_bar=bar, sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", values["loss"])

    def on_test_start(self) -> None:
        """Forgets the examples of validation."""
        self._examples = {}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds one batch to the test metrics."""
        self._evaluate(batch, self.test_loss, self.test_retrieval)

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        for name, value in self._compute(self.test_loss, self.test_retrieval).items():
            self.log(f"test/{name}", value, sync_dist=True)

    def _evaluate(
        self, batch: dict[str, Any], mean_loss: MeanMetric, retrieval: PairRetrieval
    ) -> None:
        captions = [texts[:MAX_EVALUATED_TEXTS] for texts in batch["captions"]]
        texts = [text for own in captions for text in own]
        # Also where there is nothing to encode: sharded towers need all processes.
        image_BD = self.encode_image(batch["images"])
        text_TD = self.encode_text(texts or [""])[: len(texts)]
        counts_B = torch.tensor([len(own) for own in captions], device=image_BD.device)
        is_whole_B = counts_B > 0
        image_BD, counts_B = image_BD[is_whole_B], counts_B[is_whole_B]
        index_B = batch["index"][is_whole_B]
        retrieval.update(image_BD, index_B, text_TD, index_B.repeat_interleave(counts_B))
        first_BD = text_TD[counts_B.cumsum(0) - counts_B]
        loss = self._loss_here(image_BD, first_BD)
        if len(index_B):
            mean_loss.update(loss, len(index_B))
        if len(index_B) and not self._examples:
            self._keep_examples(batch["images"][is_whole_B], image_BD, first_BD, captions)

    def _loss_here(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """The loss of these pairs by themselves: ranks need not have as many in evaluation."""
        pairs = (image_BD, text_BD)
        bias = self.criterion.logit_bias
        scale = _whole(self.criterion.logit_scale).exp()
        return pair_loss(pairs, pairs, scale, None if bias is None else _whole(bias))

    def _keep_examples(
        self, images: Tensor, image_BD: Tensor, text_BD: Tensor, captions: list[list[str]]
    ) -> None:
        """Remembers some images and texts for the figure, as plain types."""
        count = min(len(image_BD), 12)
        images = images[:count]
        images = images if images.dtype == torch.uint8 else (images * 255).round().byte()
        similarity = (image_BD[:count] @ text_BD[:count].T).float()
        self._examples = {
            "images": images.cpu(),
            "texts": [texts[0] for texts in captions if texts][:count],
            "similarity": similarity.cpu(),
        }

    def _compute(self, mean_loss: MeanMetric, retrieval: PairRetrieval) -> dict[str, float]:
        values = {"loss": mean_loss.compute(), **retrieval.compute()}
        mean_loss.reset()
        retrieval.reset()
        return {name: value.item() for name, value in values.items()}

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Returns for each image its texts, each with its similarity in [-1, 1]."""
        image_BD = self.encode_image(batch["images"])
        records = []
        for index, image_D, texts in zip(
            batch["index"].tolist(), image_BD, batch["captions"], strict=True
        ):
            similarity = (self.encode_text(texts) @ image_D).tolist() if texts else []
            records.append({"id": str(index), "texts": texts, "similarity": similarity})
        return records

    # What a run leaves behind

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores counts and loss curves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_progress"]["num_broken"] = self.num_broken

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them; a checkpoint without them (merged, converted) starts at zero."""
        super().on_load_checkpoint(checkpoint)
        if "training_progress" in checkpoint:
            self.num_broken = checkpoint["training_progress"]["num_broken"]

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        parameters = [*self.parameters()]
        return {
            "num_parameters": sum(p.numel() for p in parameters),
            "num_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "pairs_seen": self.progress.tokens,
            "pairs_per_second": self.progress.mean_tokens_per_second(),
            "num_broken_records": self.num_broken,
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns the loss curves, and how similar some images and texts are."""
        from .figures import similarity_figure

        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._examples:
            found["similarity"] = similarity_figure(**self._examples)
        return found


def _unit(rows_BD: Tensor) -> Tensor:
    return F.normalize(rows_BD.float(), dim=-1)


def _whole(parameter: Tensor) -> Tensor:
    """A parameter that a strategy may have sharded, as one tensor without gradient."""
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().float()
