"""Training, testing and use of Art2Prog.

Shapes: B pictures, S their side, T tokens, N states, V vocabulary.
"""

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric

from ..files import atomic_write, write_json
from ..metrics.program import ProgramScores, TokenScores, compare_programs
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import gathered, shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .drawing import Renderer
from .evaluation import KINDS, program_facts, token_kinds
from .export import LANGUAGE, export_program, png_base64
from .figures import Example, programs_figure
from .language import Language, Program
from .network import DECODER, ENCODER, STATE_ENCODER, ProgramNetwork
from .search import Candidate, rerank, write_programs
from .vocabulary import MAX_SLOTS, PAD, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES = 12  # in the contact sheet


class Art2Prog(ProgressModule):
    """Writes the drawing program of a picture; each line sees what the lines before it have drawn.

    A batch is that of `ProgramDataModule`. In a notebook:

        module = Art2Prog.load_from_checkpoint("last.ckpt").eval()
        (program,) = module.generate(picture[None])       # (1, 3, S, S) in [0, 1]
        print(module.language.format(program))

    Logged in training, as means since the last logging step: `train/loss` (nats per token),
    `train/programs_per_second`. Validation and test: `loss`, `token_accuracy` and
    `token_accuracy_<kind>` with the true program given; the numbers of
    `modules.metrics.program.ProgramScores` of programs that were written, in validation those of
    the first `val_programs`; and `seconds_per_image`.

    Args:
        language: What programs may say; the same as the data's.
        image_size: S, in pixels.
        state_size: Side of what lines leave behind, in pixels.
        encoder: Arguments of `timm.create_model`, see `ProgramNetwork`; None: ResNet-18.
        state_encoder: The same of the states' encoder; None: a small ResNet.
        use_intermediate: Whether states are looked at; False is the image-only ablation.
        residual_channel: Whether the difference of picture and state is shown as well.
        decoder: Arguments of `transformers.GPT2Config`; None: 6 layers of width 384.
        beams: Programs that are kept while writing; 1 is greedy.
        samples: Programs that are written by chance beside the greedy one, that included.
        rerank: Which of several programs is taken: the likeliest, or that whose picture is nearest.
        val_programs: How many programs each process writes in a validation.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.

    Raises:
        ValueError: Settings that contradict each other, or unknown ones.
    """

    network: ProgramNetwork

    def __init__(
        self,
        language: Language | None = None,
        image_size: int = 128,
        state_size: int = 64,
        encoder: dict[str, Any] | None = None,
        state_encoder: dict[str, Any] | None = None,
        use_intermediate: bool = True,
        residual_channel: bool = False,
        decoder: dict[str, Any] | None = None,
        beams: int = 1,
        samples: int = 1,
        rerank: Literal["likelihood", "render"] = "likelihood",
        val_programs: int = 128,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=3e-4, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.language = Language() if language is None else Language.of(language)
        self.save_hyperparameters(ignore=["language"])
        self.save_hyperparameters({"language": self.language.settings()})
        save_plain_hyperparameters(self)
        if residual_channel and not use_intermediate:
            raise ValueError("residual_channel needs use_intermediate: true")
        for name, number in {"beams": beams, "samples": samples}.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if beams > 1 and samples > 1:
            raise ValueError("beams and samples: only one of them may be above 1")
        self.image_size, self.state_size = image_size, state_size
        self.encoder_settings = encoder or ENCODER
        self.state_settings = (state_encoder or STATE_ENCODER) if use_intermediate else None
        self.decoder_settings = decoder or DECODER
        self.residual_channel = residual_channel
        self.beams, self.samples, self.rerank_by = beams, samples, rerank
        self.val_programs = val_programs
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.vocabulary = Vocabulary(self.language)
        self.kinds = token_kinds(self.vocabulary)
        self.seed = torch.initial_seed()
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        for stage in ("val", "test"):
            for name, metric in {
                "tokens": TokenScores(KINDS),
                "scores": ProgramScores(),
                "seconds": MeanMetric(),
            }.items():
                setattr(self, f"{stage}_{name}", metric)
        self.progress = TrainingProgress(unit="programs", loss_unit="nats / token")
        self._examples: list[Example] = []
        self._num_written = 0

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.network = ProgramNetwork(
                len(self.vocabulary),
                self.language.max_lines,
                MAX_SLOTS,
                self.image_size,
                self.encoder_settings,
                self.state_settings,
                self.decoder_settings,
                self.residual_channel,
            )
        self.shard_network()

    def shard_network(self) -> None:
        """Shards each layer where a strategy asks for it; callbacks change layers before."""
        shard_over_devices(self, [*self.network.body.h, self.network])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    def setup(self, stage: str) -> None:
        """Compares the language with that of the data.

        Raises:
            ValueError: They differ.
        """
        data = getattr(self.trainer, "datamodule", None)
        for name in ("language", "image_size", "state_size"):
            theirs = getattr(data, name, None)
            ours = getattr(self, name)
            if theirs is None or theirs == ours:
                continue
            if name == "language":
                pairs = zip(theirs.settings().items(), ours.settings().items(), strict=True)
                name, theirs, ours = next(
                    (f"language.{key}", a, b) for (key, a), (_, b) in pairs if a != b
                )
            raise ValueError(
                f"model.init_args.{name} is {ours}, that of the data {theirs}: give both the same"
            )

    # Training

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns logits of all tokens of a batch, (B, T, V) float32."""
        states: tuple[Tensor | None, ...] = (None, None, None)
        if self.state_settings is not None:
            if "state" not in batch:
                raise ValueError(
                    "batch: no states, which the network looks at: set data.init_args.with_states"
                    " to true, or model.init_args.use_intermediate to false"
                )
            states = (
                batch["state"] / 255,
                batch["state_index"],
                batch["picture_index"],
            )
        logits: Tensor = self.network(
            batch["image"] / 255, batch["token"], batch["line"], batch["slot"], *states
        )
        return logits

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns what training minimises: the mean cross-entropy of all tokens, in nats."""
        logits_BTV = self(batch)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1), batch["target"].flatten(), ignore_index=PAD
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self.loss(batch)
        self.progress.step(loss.detach()[None], len(batch["image"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            reduce = self.trainer.strategy.reduce
            self.log("train/loss", self.progress.mean_losses(reduce)[0], prog_bar=True)
            self.log("train/programs_per_second", self.progress.tokens_per_second())
        return loss

    # Evaluation

    def on_validation_start(self) -> None:
        """Stops the clock of training, and forgets the examples of the last validation."""
        super().on_validation_start()
        self._begin()

    def on_test_start(self) -> None:
        """Forgets the examples of validation."""
        self._begin()

    def _begin(self) -> None:
        self._examples, self._num_written = [], 0

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the validation metrics, and writes programs for some pictures."""
        self._evaluate_tokens(batch, "val")
        number = min(len(batch["image"]), self.val_programs - self._num_written)
        if number > 0:
            self._evaluate_programs(batch, number, "val")

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Adds one batch to the test metrics; returns a record for each program."""
        self._evaluate_tokens(batch, "test")
        values = self._evaluate_programs(batch, len(batch["image"]), "test")
        return {
            "records": [
                {"id": str(index), "row": "art2prog", "group": str(index), **row}
                for index, row in zip(batch["index"].tolist(), values, strict=True)
            ]
        }

    def _evaluate_tokens(self, batch: dict[str, Any], stage: str) -> None:
        """Counts tokens that are right when all before them are the true ones."""
        logits_BTV, target_BT = self(batch), batch["target"]
        is_real = target_BT != PAD
        right_BT = logits_BTV.argmax(dim=-1) == target_BT
        loss_BT = F.cross_entropy(logits_BTV.mT, target_BT, reduction="none")
        kind_BT = self.kinds.to(target_BT.device)[target_BT]
        tokens = getattr(self, f"{stage}_tokens")
        tokens.update(loss_BT[is_real], right_BT[is_real], kind_BT[is_real])

    def _evaluate_programs(
        self, batch: dict[str, Any], number: int, stage: str
    ) -> list[dict[str, float]]:
        """Writes programs for the first pictures of a batch; compares them with the true ones."""
        began = time.perf_counter()
        found = self.candidates(batch["image"][:number] / 255)
        seconds = (time.perf_counter() - began) / number
        best = [row[0] for row in found]
        targets = [self.language.parse(text) for text in batch["program"][:number]]
        renderer = self._renderer(self.image_size)
        facts, true = (
            program_facts(programs, self.language, renderer)
            for programs in ([candidate.program for candidate in best], targets)
        )
        values = [
            {**compare_programs(*pair), "valid_unmasked": float(candidate.unforced)}
            for *pair, candidate in zip(facts, true, best, strict=True)
        ]
        layers = [len(each.colors) for each in true]
        getattr(self, f"{stage}_scores").update(values, layers)
        getattr(self, f"{stage}_seconds").update(seconds, weight=number)
        self._num_written += number
        for target, candidate, a, b in zip(targets, best, true, facts, strict=True):
            if len(self._examples) < NUM_EXAMPLES:
                true_text, text = map(self.language.format, (target, candidate.program))
                self._examples.append(Example(true_text, text, a.image, b.image))
        return values

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        values = self._log_metrics("val")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", values["loss"])

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in ("tokens", "scores"):
            metric = getattr(self, f"{stage}_{name}")
            found |= {name: value.item() for name, value in metric.compute().items()}
            metric.reset()
        seconds = getattr(self, f"{stage}_seconds")
        if self.val_programs or stage == "test":
            found["seconds_per_image"] = seconds.compute().item()
        seconds.reset()
        for name, value in found.items():
            # Equal on all devices already; sync_dist only tells Lightning so.
            bar = name in ("loss", "exact_match", "exec_match")
            self.log(f"{stage}/{name}", value, prog_bar=bar, sync_dist=True)
        return found

    # Writing programs

    def generate(self, image: Tensor, **settings: Any) -> list[Program]:
        """Returns the best program for each picture; see `candidates`."""
        return [row[0].program for row in self.candidates(image, **settings)]

    def candidates(
        self,
        image: Tensor,
        beams: int | None = None,
        samples: int | None = None,
        rerank_by: Literal["likelihood", "render"] | None = None,
    ) -> list[list[Candidate]]:
        """Returns programs for each picture, the best first.

        Args:
            image: (B, 3, S, S) in [0, 1].
            beams: Instead of the module's.
            samples: Instead of the module's.
            rerank_by: Instead of the module's.
        """
        was_training = self.network.training
        self.network.train(False)
        try:
            with gathered(self.network):
                found = write_programs(
                    self.network,
                    self.vocabulary,
                    image.to(self.device),
                    self._renderer(self.state_size),
                    beams or self.beams,
                    samples or self.samples,
                )
        finally:
            self.network.train(was_training)
        if (rerank_by or self.rerank_by) == "render":
            found = rerank(found, image.to(self.device), self._renderer(self.image_size))
        return found

    def _renderer(self, size: int) -> Renderer:
        """Returns a renderer, the same for each size: it keeps what it has drawn."""
        known = self.__dict__.setdefault("_renderers", {})
        if size not in known:
            known[size] = Renderer(self.language, size)
        renderer: Renderer = known[size]
        return renderer

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Writes programs for a batch of pictures; returns a record for each."""
        image = batch["image"] / 255
        found = rerank(self.candidates(image), image, self._renderer(self.image_size))
        if self.rerank_by == "likelihood":
            found = [sorted(row, key=lambda candidate: -candidate.score) for row in found]
        names = batch.get("name") or [f"{index:06d}" for index in batch["index"].tolist()]
        expected = batch.get("program") or [None] * len(names)
        rows = zip(names, found, expected, batch["image"], strict=True)
        return [
            {
                "id": name,
                "program": self.language.format(best.program),
                "lines": self.language.to_json(best.program),
                "log_probability": best.score,
                "mse": best.error,
                "expected": text,
                "png": png_base64(pixels),
            }
            for name, (best, *_), text, pixels in rows
        ]

    def save_prediction(self, record: dict[str, Any], folder: Path) -> None:
        """Writes a program as `.a2p`, `.json`, `.svg` and `.ora`, and its picture as `.png`.

        The picture does not stay in the record, which goes into the manifest; the language does,
        beside it, as `language.json`.
        """
        stem = folder / str(record["id"])
        with atomic_write(f"{stem}.png") as file:
            file.write(base64.b64decode(record.pop("png")))
        write_json(f"{stem}.json", record)
        export_program(self.language.from_json(record["lines"], str(stem)), self.language, stem)
        if not (language := folder / LANGUAGE).exists():
            write_json(language, self.language.settings())

    # What a run leaves behind

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        return {
            "num_parameters": sum(p.numel() for p in self.network.parameters()),
            "programs_seen": self.progress.tokens,
            "programs_per_second": self.progress.mean_tokens_per_second(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns the loss curves, and pictures beside those of the programs written for them."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._examples:
            found["programs"] = programs_figure(self._examples)
        return found
