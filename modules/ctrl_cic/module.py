"""Captions of images in their contexts, steered by a highlight (Ctrl-CIC, ECCV 2024).

Shapes: B sources, S tokens of a source, T tokens of a target, N tokens of a section, F width of
image features, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric
from transformers import GenerationConfig

from ..causal_lm import check_keys, recompute_activations
from ..chat import ChatBackend
from ..encoders.encoder import Encoder
from ..metrics.captioning import CaptionScore
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .control import Control, NoControl, PromptControl, Recalibration
from .evaluation import CaptionTest, Example
from .gallery import (
    NUM_EXAMPLES,
    captions_figure,
    join_cards,
    sweep_figure,
    thumbnail,
    write_card,
)
from .highlights import Phrase, phrase_text
from .network import (
    CaptionNetwork,
    add_lora,
    build_config,
    build_language_model,
    load_projection,
    save_projection,
)
from .parts import IGNORED, cross_entropy, describe, make_part, tokenizer_of
from .predictor import RelevancePredictor
from .relevance import EncoderRelevance, LexicalRelevance, RelevanceScorer
from .targets import Targets, make_targets
from .tokens import ContextTokenizer, PageContext, Source
from .writing import caption_text, caption_weights, decoder_prompts

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


class CtrlCIC(ProgressModule):
    """Trains a captioner of T5's kind with or without a controller, and writes captions.

    `network.language` is the plain transformers model. It reads the page's and the section's title,
    the section's text, captions of the section's other images, and one image feature. In a
    notebook:

        module = CtrlCIC.load_from_checkpoint("last.ckpt", weights_only=True).eval()
        module.generate(batch, [["cell membrane"]])

    A batch is a dict: `page_titles`, `section_titles`, `section_texts` and `captions`, lists of B
    strings; `other_captions`, B lists of strings; `images` (B, F) float features; `ids`, B
    strings. For `context="page"` see `ContextTokenizer.encode`. Optional: `relevance`, B tensors
    (N,) of normalised scores that were computed before. For testing and prediction: `highlights`,
    for each image a list of highlights, which are lists of phrases (strings, or pairs of first and
    last character in the section's text); `references`, for each highlight a caption that is
    right, or ""; `depicted`, for each image phrases that only the image tells; `pictures`, PIL
    images or None; `groups`, strings.

    Logged in training: `train/loss` (nats per target token) and `train/caption_loss` (without
    prompts). Validation: the same as `val/...`. With `Recalibration` both use the true caption's
    relevance as weights. Test: see `CaptionTest`; captions without a highlight never see the
    reference.

    Args:
        config: Architecture for random weights: `model_type` (t5, longt5, mt5, umt5) and arguments
            of its config class.
        pretrained: Folder or hub id to load instead, such as google/long-t5-tglobal-base.
        vocabulary: With `config`: all words that contexts and captions may have.
        tokenizer: Folder or hub id of a tokenizer; None: that of `pretrained`, or one made of
            `vocabulary`.
        controller: How a highlight reaches the caption; None: not at all.
        relevance: Scores tokens by captions, for training with a controller; None: by words.
        predictor: Checkpoint of a `RelevancePredictor`, for captions by `Recalibration`.
        image_dim: Width F of image features.
        visual_projection: Whether a linear layer brings features to the model's width; None: if
            they have another.
        max_source_length: Tokens of a source, the image's slot included.
        max_target_length: Tokens of a target. The paper has 192 with `PromptControl`, for 128.
        context: "section", or the whole "page".
        blind: Whether image features are replaced by zeros, for measuring what the image gives.
        lora: Arguments of peft's `LoraConfig`: trains adapters, embeddings and projection alone.
        label_smoothing: In training.
        loss_on_padding: Whether targets are filled up with padding tokens that count in the loss,
            as in the released code, whose losses compare with no others.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.
        activation_checkpointing: Recomputes each layer's activations in the backward pass.
        generation: Arguments of transformers' `generate`. Default: 128 tokens, greedy.
        scores: What captions are compared with references by; None: BLEU-4, ROUGE-L, CIDEr-D.
        judge: Chat model that rates captions in a test; needs pictures.
        clip: Encoder of images and texts that a test compares captions with; needs pictures.

    Raises:
        ValueError: Settings that contradict each other, or unknown ones.
    """

    network: CaptionNetwork

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        vocabulary: str | None = None,
        tokenizer: str | None = None,
        controller: Control | None = None,
        relevance: RelevanceScorer | None = None,
        predictor: str | None = None,
        image_dim: int = 768,
        visual_projection: bool | None = None,
        max_source_length: int = 512,
        max_target_length: int = 128,
        context: PageContext = "section",
        blind: bool = False,
        lora: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        loss_on_padding: bool = False,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=5e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        activation_checkpointing: bool = False,
        generation: dict[str, Any] | None = None,
        scores: list[CaptionScore] | None = None,
        judge: ChatBackend | None = None,
        clip: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["controller", "relevance", "scores", "judge", "clip"])
        save_plain_hyperparameters(self)
        self.controller = make_part(Control, controller, "controller") or NoControl()
        self.relevance = make_part(RelevanceScorer, relevance, "relevance") or LexicalRelevance()
        parts = {"controller": self.controller, "relevance": self.relevance}
        self.save_hyperparameters({name: describe(part) for name, part in parts.items()})
        self.pretrained, self.predictor_path = pretrained, predictor
        self.image_dim, self.visual_projection, self.blind = image_dim, visual_projection, blind
        self.max_target_length, self.lora = max_target_length, lora
        self.label_smoothing, self.loss_on_padding = label_smoothing, loss_on_padding
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.activation_checkpointing = activation_checkpointing
        self.generation = {"max_new_tokens": 128, "do_sample": False} | (generation or {})
        check_keys("generation", self.generation, vars(GenerationConfig()))  # type: ignore[no-untyped-call]
        loaded = tokenizer_of(config, pretrained, vocabulary, tokenizer)
        self.contexts = ContextTokenizer(
            loaded, self.controller.markers, max_source_length, context
        )
        self.config = None if config is None else build_config(config, self.contexts)
        self.seed = torch.initial_seed()
        self.val_loss, self.val_caption_loss = MeanMetric(), MeanMetric()
        self.captions_tested = CaptionTest(self.controller, scores, judge, clip)
        self.progress = TrainingProgress(num_losses=2, unit="images", loss_unit="nats / token")
        # In a tuple, so that it is no part of this module: neither trained nor saved with it.
        self.loaded_predictor: tuple[RelevancePredictor, ...] = ()
        self._examples: list[Example] = []
        self._test_values: dict[str, float] = {}

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        source = self.pretrained if self.config is None else self.config
        assert source is not None
        language = build_language_model(source, self.contexts, self.seed)
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.network = CaptionNetwork(language, self.image_dim, self.visual_projection)
            if self.pretrained is not None and device.type != "meta":
                load_projection(self.network, self.pretrained)
            if self.lora is not None:
                add_lora(self.network, self.lora)
        self.network.train()  # loading leaves it in evaluation mode
        if self.activation_checkpointing:
            recompute_activations(self.network.language)
        if isinstance(self.relevance, EncoderRelevance) and device.type != "meta":
            self.relevance.check_vocabulary(self.contexts.tokenizer.get_vocab())
        self.shard_network()

    def shard_network(self) -> None:
        """Shards each layer where a strategy asks for it; callbacks change layers before."""
        shard_over_devices(self, [*self.network.layers(), self.network])
        self.network.register_generation()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    # Losses

    def forward(
        self, source: Source, images: Tensor, targets: Targets, weights: Tensor | None = None
    ) -> Tensor:
        """Returns the logits of targets, (B, T, V)."""
        logits: Tensor = self.network(source.ids, source.mask, images, targets.decoder_ids, weights)
        return logits

    def encode(self, batch: Mapping[str, Any]) -> tuple[Source, Tensor]:
        """Turns a batch into sources and image features (B, F)."""
        images_BF = batch["images"].to(self.device)
        if self.blind:
            images_BF = torch.zeros_like(images_BF)
        return self.contexts.encode(batch, self.device), images_BF

    def targets(self, captions: Sequence[str], words: Sequence[Sequence[str]] | None) -> Targets:
        """Turns captions, and the words of the prompts before them, into targets."""
        controller = self.controller
        return make_targets(
            self.contexts,
            captions,
            words,
            max_length=self.max_target_length,
            start_token=self.start_token,
            fill_with_padding=self.loss_on_padding,
            learn_prompts=not isinstance(controller, PromptControl) or controller.loss_on_prefix,
        ).to(self.device)

    @property
    def start_token(self) -> int:
        """Id of the token that the decoder reads first."""
        start: int = self.network.language.config.decoder_start_token_id
        return start

    def relevance_of(
        self, batch: Mapping[str, Any], source: Source, captions: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Returns the relevance of section tokens for captions, (N,) each, on this device.

        Args:
            batch: Its `relevance`, if it has one, is that of its own captions.
            source: Of the batch.
            captions: None: those of the batch.
        """
        if captions is None and batch.get("relevance") is not None:
            return [scores.to(self.device) for scores in batch["relevance"]]
        tokens = [
            self.contexts.tokens(caption)
            for caption in (batch["captions"] if captions is None else captions)
        ]
        sections = [section.tokens for section in source.sections]
        return [scores.to(self.device) for scores in self.relevance.relevance(sections, tokens)]

    def token_losses(
        self, batch: Mapping[str, Any], smoothing: float = 0.0
    ) -> tuple[Tensor, Targets]:
        """Returns the cross-entropy of each token of a batch's targets, (B, T), and the targets."""
        source, images = self.encode(batch)
        relevance: list[Tensor] = []
        if self.controller.needs_relevance:
            relevance = self.relevance_of(batch, source)
        words = self.controller.training_words(source, relevance)
        weights = self.controller.training_weights(source, relevance)
        targets = self.targets(batch["captions"], words)
        logits = self(source, images, targets, weights)
        return cross_entropy(logits, targets.labels, smoothing), targets

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns what training minimises, in nats per target token."""
        return self._losses(batch, self.label_smoothing)[0]

    def _losses(self, batch: Mapping[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Returns the mean over all that is learned, and over captions."""
        losses_BT, targets = self.token_losses(batch, smoothing)
        learned_BT = targets.labels != IGNORED
        loss = losses_BT.sum() / learned_BT.sum()
        caption_loss = (losses_BT * targets.is_caption).sum() / targets.is_caption.sum()
        return loss, caption_loss.detach()

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss, caption_loss = self._losses(batch, self.label_smoothing)
        num_images = len(batch["captions"]) * self.trainer.world_size
        self.progress.step(torch.stack([loss.detach(), caption_loss]), num_images)
        if self.is_logging_step(batch_idx):
            means = self.progress.mean_losses(self.trainer.strategy.reduce)
            self.log("train/loss", means[0], prog_bar=True)
            self.log("train/caption_loss", means[1])
            self.log("train/images_per_second", self.progress.tokens_per_second())
        return loss

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the validation losses."""
        losses_BT, targets = self.token_losses(batch)
        self.val_loss.update(losses_BT[targets.labels != IGNORED])
        self.val_caption_loss.update(losses_BT[targets.is_caption])

    def on_validation_epoch_end(self) -> None:
        """Logs the validation losses and adds one to the history."""
        loss = self.val_loss.compute().item()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)  # equal on all ranks already
        self.log("val/caption_loss", self.val_caption_loss.compute().item(), sync_dist=True)
        self.val_loss.reset()
        self.val_caption_loss.reset()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", loss)

    # Captions

    @torch.no_grad()
    def generate(
        self,
        batch: Mapping[str, Any],
        highlights: Sequence[Sequence[Phrase] | None] | None = None,
        rows: Sequence[int] | None = None,
        delta: float | None = None,
        references: Sequence[str] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Writes captions.

        Args:
            batch: See the class.
            highlights: For each caption the phrases that it should be about; None, of one or of
                all: without a highlight.
            rows: For each caption the image of the batch that it is for; None: one for each image.
            delta: In place of the one of `Recalibration`.
            references: For each caption one that is right, for `Recalibration` in mode "oracle".
            generation: Arguments of transformers' `generate`, which win over the module's. With
                `num_return_sequences` there are so many captions in turn.

        Raises:
            ValueError: The controller needs predicted weights, and there is no predictor.
        """
        rows = list(range(len(batch["section_texts"]))) if rows is None else list(rows)
        given: Sequence[Sequence[Phrase] | None] = highlights or [None] * len(rows)
        source, images = self.encode(batch)
        settings = {**self.generation, **generation}
        with self._evaluating(), torch.compiler.set_stance("force_eager"):
            weights = caption_weights(self, batch, source, images, rows, given, delta, references)
            source, images = source.rows(rows), images[torch.tensor(rows, device=self.device)]
            settings |= decoder_prompts(self, source, given)
            if self.network_is_sharded and self.trainer.world_size > 1:
                settings["synced_gpus"] = True  # all ranks take part in every step of each
            outputs = self.network.generate(source.ids, source.mask, images, weights, **settings)
        return [caption_text(self, ids) for ids in outputs.tolist()]

    @property
    def network_is_sharded(self) -> bool:
        """Whether parameters are split over devices."""
        return self._trainer is not None and self.device_mesh is not None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Puts the network into evaluation mode for a while."""
        was_training = self.network.training
        self.network.train(False)
        try:
            yield
        finally:
            self.network.train(was_training)

    # Test and prediction

    def on_test_start(self) -> None:
        """Forgets the examples of an earlier test."""
        self._examples = []

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Writes captions for all highlights of a batch; returns a record for each."""
        records, examples = self.captions_tested.step(self, batch)
        self._examples = (self._examples + examples)[:NUM_EXAMPLES]
        return {"records": records}

    def on_test_epoch_end(self) -> None:
        """Logs the test's numbers."""
        self._test_values = self.captions_tested.compute()
        for name, value in self._test_values.items():
            self.log(f"test/{name}", value, sync_dist=True)  # equal on all ranks already

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Writes captions without and with highlights; returns a record for each image."""
        size = len(batch["ids"])
        plain = self.generate(batch) if not self._is_oracle else [""] * size
        rows = [row for row in range(size) for _ in batch["highlights"][row]]
        phrases = [phrases for row in batch["highlights"] for phrases in row]
        written = iter(self.generate(batch, phrases, rows) if rows else [])
        pictures = batch.get("pictures") or [None] * size
        records = []
        for row in range(size):
            text = batch["section_texts"][row]
            records.append(
                {
                    "id": batch["ids"][row],
                    "page_title": batch["page_titles"][row],
                    "section_title": batch["section_titles"][row],
                    "section_text": text,
                    "reference": batch["captions"][row],
                    "caption": plain[row],
                    "highlighted": [
                        {"phrases": [phrase_text(p, text) for p in given], "caption": next(written)}
                        for given in batch["highlights"][row]
                    ],
                    "picture": thumbnail(pictures[row]),
                }
            )
        return records

    @property
    def _is_oracle(self) -> bool:
        return isinstance(self.controller, Recalibration) and self.controller.mode == "oracle"

    def save_prediction(self, record: dict[str, Any], folder: "Path") -> None:
        """Writes a record as a card of the gallery."""
        write_card(record, folder)

    def on_predict_end(self) -> None:
        """Joins the cards to `figures/gallery.html`."""
        from pathlib import Path

        self.trainer.strategy.barrier("cards written")
        if self.trainer.is_global_zero:
            join_cards(Path(self.trainer.default_root_dir))

    # What a run leaves behind

    def save_pretrained(self, folder: str) -> None:
        """Writes model and tokenizer so that transformers and `pretrained` load the folder.

        Raises:
            ValueError: With `lora`: adapters are not merged here.
        """
        if self.lora is not None:
            raise ValueError("save_pretrained: merge the adapters first, or train without lora")
        self.network.language.save_pretrained(folder)
        self.contexts.tokenizer.save_pretrained(folder)
        save_projection(self.network, folder)

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        parameters = [*self.network.parameters()]
        return {
            "num_parameters": sum(p.numel() for p in parameters),
            "num_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "images_seen": self.progress.tokens,
            "images_per_second": self.progress.mean_tokens_per_second(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns loss curves and, after a test, captions by highlight and recall by delta."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._examples:
            found["captions"] = captions_figure(self._examples)
        if any(name.startswith("delta_") for name in self._test_values):
            found["sweep"] = sweep_figure(self._test_values)
        return found
