"""DeepIcon, trained and used.

"DeepIcon: A Hierarchical Network for Layer-wise Icon Vectorization", Bing, Zhang, Cai, DICTA 2024,
arXiv 2410.15760. What of it could be read says which networks and losses there are; the sizes, the
loss of the arguments and all of training are ours.

Shapes: B icons, S side of the pictures, P path slots, L commands of each.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric

from ..encoders import Encoder
from ..files import atomic_write
from ..metrics.vector import IconMetrics, LpipsNetwork
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..svg import render, write_svg
from ..training_progress import ProgressModule, TrainingProgress
from .commands import Term
from .decoders import DecoderSizes
from .encoders import IconEncoder
from .evaluation import compare, examples, true_icons
from .figures import contact_sheet
from .network import DeepIconNetwork, IconDecoder
from .representation import IconCodec, IconStyle, IconTensors, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES = 16
DEFAULT_WEIGHTS = {"visibility": 1.0, "type": 1.0, "arg": 10.0, "paint": 1.0, "raster": 100.0}


class DeepIconModule(ProgressModule):
    """Turns pictures of icons into SVGs of few, ordered, editable paths.

    An encoder and an MLP make one embedding of a picture; a structure decoder makes path slots of
    it; a path decoder makes commands of each slot. It is supervised by the vector structure alone,
    no picture is drawn in training. In a notebook:

        module = DeepIconModule.load_from_checkpoint("last.ckpt")     # trained by `tenfold fit`
        module.generate(pictures)                     # a list of SVG texts

    A batch is a dict: `image` (B, 3, S, S) float32 in [0, 1], dark on white; `types`, `args`,
    `visible`, `paint`, see `IconTensors`; `lengths`, a list of B lists: commands of each visible
    path, its end among them, on the host, so that no step waits for the device; `style` (B, 3), see
    `style_numbers`; `name`, a list of B strings.

    Logged in training, as means since the last logging step: `train/loss` and its parts before
    weighting, `train/loss_visibility`, `loss_type` (nats), `loss_arg` and `loss_paint`, and, told
    the true commands before each, `train/type_accuracy` and `arg_error` (units of 24). Validation
    and test: the same, and what `IconMetrics` says of free generation.

    Args:
        encoder: Of pictures: `ConvIconEncoder`, `ClipIconEncoder`, `TimmIconEncoder`.
        decoder: Of paths: `HierarchicalDecoder`, or to compare with `FlatDecoder`, `RasterDecoder`.
        codec: What the tensors mean; the same as the data's.
        width: Of the decoders and of the embedding.
        token_memory: Whether decoders also look at the patches of the picture, not only at the one
            embedding that DeepIcon has.
        weights: Of the losses `visibility`, `type`, `arg`, `paint` and, of `RasterDecoder`,
            `raster`; by default 1, 1, 10, 1 and 100.
        visibility_threshold: Probability from which a path slot exists.
        temperature: Of drawn commands; 0 takes the likeliest.
        snap: Grid of predicted coordinates, in units of 24; None: as they come.
        metric_size: Side of the pictures that metrics compare, in pixels.
        metric_encoders: Image encoders by name whose similarity is measured as well, as `dino` and
            `clip`; they need weights.
        metric_lpips: Network by which LPIPS is measured in the test, with torchvision's weights.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.
        encoder_lr: Factor of the learning rate of the encoder's parameters.
        val_generate_batches: Batches of a validation for which icons are generated; None: all.
        stroke_width: Of the strokes of `predict`, in units of 24; test and validation take the true
            one, so that both pictures are drawn alike.

    Raises:
        ValueError: Unknown losses, a number out of range; from a step icons of another size.
    """

    network: DeepIconNetwork

    def __init__(
        self,
        encoder: IconEncoder,
        decoder: nn.Module,
        codec: IconCodec = IconCodec(),  # noqa: B008 - frozen
        width: int = 512,
        token_memory: bool = False,
        weights: dict[str, float] | None = None,
        visibility_threshold: float = 0.5,
        temperature: float = 0.0,
        snap: float | None = None,
        metric_size: int = 96,
        metric_encoders: dict[str, Encoder] | None = None,
        metric_lpips: LpipsNetwork | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-4, weight_decay=0.01, betas=(0.9, 0.98)
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        encoder_lr: float = 1.0,
        val_generate_batches: int | None = 4,
        stroke_width: float = 2.0,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():  # of networks as hyperparameters: these are taken out
            warnings.simplefilter("ignore")
            self.save_hyperparameters(ignore=["metric_encoders"])
        # The command line has saved descriptions; what was made by hand has none.
        made = ("encoder", "decoder", "codec")
        self.save_hyperparameters(
            ignore=["metric_encoders", *(k for k in made if not isinstance(self.hparams[k], dict))]
        )
        save_plain_hyperparameters(self)
        if unknown := set(weights or {}) - DEFAULT_WEIGHTS.keys():
            raise ValueError(f"weights: unknown {', '.join(sorted(unknown))}")
        if not 0 <= visibility_threshold <= 1 or temperature < 0:
            raise ValueError(
                f"visibility_threshold {visibility_threshold} and temperature {temperature}: "
                "expected a probability, and 0 or more"
            )
        self.parts = (encoder, decoder)
        self.codec, self.width, self.token_memory = codec, width, token_memory
        self.weights = DEFAULT_WEIGHTS | (weights or {})
        self.visibility_threshold, self.temperature = visibility_threshold, temperature
        self.snap, self.metric_size = snap, metric_size
        self.metric_encoders, self.metric_lpips = metric_encoders, metric_lpips
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.encoder_lr, self.val_generate_batches = encoder_lr, val_generate_batches
        self.stroke_width = stroke_width
        self.seed = torch.initial_seed()
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        self.val_losses, self.test_losses = nn.ModuleDict(), nn.ModuleDict()
        for losses in (self.val_losses, self.test_losses):
            losses.update({_log_name(name): MeanMetric() for name in self._names()})
        self.val_icons = IconMetrics(self.metric_size)
        self.test_icons = IconMetrics(self.metric_size, self.metric_encoders, self.metric_lpips)
        self.progress = TrainingProgress(1 + len(self._names()), unit="icons", loss_unit="weighted")
        self._examples: list[dict[str, Any]] = []
        self._generating = [0, 0.0]  # icons and seconds of free generation

    def _names(self) -> list[str]:
        """Names of losses and of what is reported beside them."""
        decoder = cast(IconDecoder, self.parts[1])
        return [*decoder.loss_names, *decoder.report_names]

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        encoder, decoder = self.parts
        sizes = DecoderSizes(self.codec.max_paths, self.codec.max_commands, self.token_memory)
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.network = DeepIconNetwork(encoder, decoder, self.width, sizes)
        self.shard_network()

    def shard_network(self) -> None:
        """Shards the network where a strategy asks for it; callbacks change layers before."""
        blocks = self.network.icon_decoder.blocks
        shard_over_devices(self, [*blocks, self.network.encoder, self.network])
        if isinstance(self.network, FSDPModule):
            register_fsdp_forward_method(self.network, "generate")
            register_fsdp_forward_method(self.network, "encode")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""

        def make(groups: Any) -> Optimizer:
            instance = self.make_optimizer(self._split(groups))
            for group in instance.param_groups:
                group["lr"] *= group.pop("lr_factor")
            return instance

        return configure_optimizers(self, make, self.make_lr_scheduler)

    def _split(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Divides parameter groups into those of the encoder and others."""
        own = set(self.network.encoder.parameters()) if self.encoder_lr != 1 else set()
        found = []
        for group in groups:
            for factor, is_encoder in ((1.0, False), (self.encoder_lr, True)):
                chosen = [p for p in group["params"] if (p in own) == is_encoder]
                if chosen:
                    found.append({**group, "params": chosen, "lr_factor": factor})
        return found

    # Losses

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Returns what training minimises, its parts and reports, and how many each counts.

        Each part is a mean over all icons of the batch, on all ranks together: a mean over icons of
        means would make much of short paths.
        """
        expected = (self.codec.max_paths, self.codec.max_commands + 1)
        if batch["types"].shape[1:] != expected:
            raise ValueError(
                f"types: {tuple(batch['types'].shape[1:])} of paths and commands, the model has "
                f"{expected}: give model and data the same codec"
            )
        losses, reports = self.network(batch)
        terms: dict[str, Term] = losses | reports
        counts = torch.stack([term.number for term in terms.values()]).double()
        totals = torch.stack([term.total for term in terms.values()])
        shares = counts.clamp(min=1)
        if self._trainer is not None and self.trainer.world_size > 1 and self.training:
            # The gradients are averaged over ranks: their sum over the global count is wanted.
            everywhere = counts.clone()
            dist.all_reduce(everywhere)
            shares = everywhere.clamp(min=1) / self.trainer.world_size
        means = dict(zip(terms, totals / shares.to(totals), strict=True))
        loss = torch.stack([self.weights[name] * means[name] for name in losses]).sum()
        return loss, means, dict(zip(terms, counts, strict=True))

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss, means, _ = self.losses(batch)
        values = torch.stack([loss.detach(), *(means[name].detach() for name in self._names())])
        self.progress.step(values, len(batch["image"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            found = self.progress.mean_losses(self.trainer.strategy.reduce)
            self.log("train/loss", found[0], prog_bar=True)
            for name, value in zip(self._names(), found[1:], strict=True):
                self.log(f"train/{_log_name(name)}", value, prog_bar=name == "arg_error")
            self.log("train/icons_per_second", self.progress.tokens_per_second())
        return loss

    def on_validation_start(self) -> None:
        """Stops the clock of training, and forgets the examples of the last validation."""
        super().on_validation_start()
        self._examples = []

    # Evaluation

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the losses and, of the first ones, generated icons to the metrics."""
        self._add_losses(batch, _by_name(self.val_losses))
        limit = self.val_generate_batches
        if limit is None or batch_idx < limit:
            self._add_icons(batch, self.val_icons)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        values = self._compute(_by_name(self.val_losses), self.val_icons)
        for name, value in values.items():
            # Equal on all devices already; sync_dist only tells Lightning so.
            bar = name in ("loss", "count_accuracy", "matched_f1")
            self.log(f"val/{name}", value, prog_bar=bar, sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", values["loss"])

    def on_test_start(self) -> None:
        """Forgets the examples of validation."""
        self._examples = []
        self._generating = [0, 0.0]

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Adds one batch to the test metrics; returns a record for each icon."""
        self._add_losses(batch, _by_name(self.test_losses))
        return {"records": self._add_icons(batch, self.test_icons)}

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        for name, value in self._compute(_by_name(self.test_losses), self.test_icons).items():
            self.log(f"test/{name}", value, sync_dist=True)
        icons, seconds = self._generating
        self.log("test/icons_per_second", icons / seconds, sync_dist=True)

    def _add_losses(self, batch: dict[str, Any], metrics: Mapping[str, MeanMetric]) -> None:
        _, means, counts = self.losses(batch)
        for name in self._names():
            metrics[_log_name(name)].update(means[name], counts[name])

    def _add_icons(self, batch: dict[str, Any], metric: IconMetrics) -> list[dict[str, Any]]:
        """Generates icons, compares them with the true ones, and returns a record for each."""
        start = time.perf_counter()
        icons = self.predict_icons(batch["image"]).icons()
        self._generating[0] += len(icons)
        self._generating[1] += time.perf_counter() - start
        styles = [style_of(numbers) for numbers in batch["style"]]
        predicted = [
            self.codec.decode(icon, style, snap=self.snap)
            for icon, style in zip(icons, styles, strict=True)
        ]
        true = true_icons(batch, self.codec)
        number = NUM_EXAMPLES - len(self._examples)
        self._examples += examples(number, batch["image"], batch["name"], predicted, true)
        return compare(metric, "icons", batch["name"], predicted, true)

    def _compute(self, losses: Mapping[str, MeanMetric], icons: IconMetrics) -> dict[str, float]:
        """Returns all metrics by name, and forgets what they were computed from."""
        values = {name: metric.compute().item() for name, metric in losses.items()}
        own = [name for name in self._names() if name in self.weights]
        values["loss"] = sum(self.weights[name] * values[_log_name(name)] for name in own)
        values |= {name: value.item() for name, value in icons.compute().items()}
        for metric in (*losses.values(), icons):
            metric.reset()
        return values

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Returns a record for each picture, with its SVG and how far that is from the picture."""
        style = IconStyle(self.stroke_width)
        icons = self.predict_icons(batch["image"]).icons()
        documents = [self.codec.decode(icon, style, snap=self.snap) for icon in icons]
        size = batch["image"].shape[-1]
        errors = (render(documents, (size, size)) - batch["image"].cpu()).square().mean((1, 2, 3))
        return [
            {
                "id": name,
                "svg": write_svg(document),
                "paths": sum(1 for _ in document.shapes()),
                "commands": sum(
                    len(path.segments) for shape in document.shapes() for path in shape.subpaths
                ),
                "mse": error,
            }
            for name, document, error in zip(batch["name"], documents, errors.tolist(), strict=True)
        ]

    def save_prediction(self, record: dict[str, Any], folder: Path) -> None:
        """Writes the SVG of a record."""
        with atomic_write(folder / f"{record['id']}.svg", "w") as file:
            file.write(record["svg"])

    # Use

    @torch.no_grad()
    def predict_icons(self, image_B3SS: Tensor) -> IconTensors:
        """Returns the icons of pictures, on the CPU."""
        with self._evaluating():
            icons = self.network.generate(
                image_B3SS,
                self.visibility_threshold,
                self.temperature,
                # Ranks that share layers must take as many steps as each other.
                stop_early=not isinstance(self.network, FSDPModule),
            )
        return IconTensors(*(part.cpu() for part in icons))

    def generate(
        self, image_B3SS: Tensor, style: IconStyle | None = None, view_box: float = 24.0
    ) -> list[str]:
        """Returns pictures as SVG texts: one `<path id="layer-j">` per path, the lowest first.

        Args:
            image_B3SS: float32 in [0, 1], dark on white, of the size the encoder is made for.
            style: Of strokes; by default as wide as `stroke_width` says, round.
            view_box: Side of the view box.
        """
        self.configure_model()
        icons = self.predict_icons(image_B3SS.to(self.device)).icons()
        style = style or IconStyle(self.stroke_width)
        return [write_svg(self.codec.decode(icon, style, view_box, self.snap)) for icon in icons]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Puts the network into evaluation mode for a while."""
        was_training = self.network.training
        self.network.train(False)
        try:
            yield
        finally:
            self.network.train(was_training)

    # What a run leaves behind

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        return {
            "num_parameters": sum(p.numel() for p in self.network.parameters()),
            "icons_seen": self.progress.tokens,
            "icons_per_second": self.progress.mean_tokens_per_second(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns loss curves, and a contact sheet of the last icons that were generated."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._examples:
            found["icons"] = contact_sheet(self._examples)
        return found


def _log_name(name: str) -> str:
    return f"loss_{name}" if name in DEFAULT_WEIGHTS else name


def _by_name(metrics: nn.ModuleDict) -> Mapping[str, MeanMetric]:
    """Returns the metrics of losses as what they are."""
    return cast(Mapping[str, MeanMetric], metrics)
