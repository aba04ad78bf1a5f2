"""Training and asking of any image-text-to-text model of transformers.

Shapes: B conversations, K images of each, H and W of images, L sequence length, V vocabulary, O
objects, T dense tasks, D width of the language model, F image features in all.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import GenerationConfig, PreTrainedModel

from ..causal_lm import check_keys, decoder_layers, recompute_activations
from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from .conversation import IGNORED, Conversations, Encoded, Images
from .dense import PatchHead
from .figures import accuracy_figure, answers_figure
from .metrics import AnswerAccuracy
from .network import add_lora, build_network, image_features, load_network, save_lora
from .phases import Phase, check_phases, phase_at
from .processors import from_settings, load_processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES = 8  # in the figure of answers
NUM_GUESSES = 3


class VisionLanguageModel(ProgressModule):
    """Trains, fine-tunes and asks a vision-language model.

    `network` is the plain transformers model, built in `configure_model` together with its
    processor, so that `save_pretrained(folder)` writes what `transformers` and its servers load.
    In a notebook:

        module = VisionLanguageModel(pretrained="folder")
        module.configure_model()
        module.generate([[picture]], [["What is this?"]])

    A batch is a dict: `images` (B, K, 3, H, W) float in [0, 1], or for each conversation a list of
    tensors or PIL images; `questions`, `answers` and `kinds` (of questions, for reports): for each
    conversation a list of as many strings; `group` a list of B strings, `index` (B,) int64. For the
    dense loss `boxes` (B * K, O, 4), left, top, right, bottom as shares of the image, and
    `box_labels` (B * K, O, T) int64 from 1; empty boxes are none. In evaluation each conversation
    has one question; it counts as answered when every token of the answer is the likeliest.

    Logged in training, as means since the last logging step: `train/loss` (what is minimised),
    `train/answer_loss` (nats per answer token) and, with `patch_classes`, `train/patch_loss`.
    Validation and test: `loss`, `accuracy`, `accuracy_<kind>`; test also `accuracy/<group>` and
    `accuracy/<group>/<kind>`.

    Args:
        config: Architecture for random initialisation: `model_type` (llava, idefics3, smolvlm,
            qwen2_vl, qwen2_5_vl; others with a `processor`) and arguments of its config class, with
            those of `text_config` and `vision_config` nested. The vision tower may be
            `conv_vision`. Ids of special tokens and the size of the vocabulary are filled in.
        pretrained: Folder or hub id to load instead of `config`.
        vocabulary: With `config`: all words that questions and answers may have.
        image_size: With `config`: side of the square that pictures are resized to, in pixels.
        processor: Folder or hub id of a processor; None: that of `pretrained`, or one that is made
            of `vocabulary` and `image_size`.
        lora: Arguments of peft's `LoraConfig`: trains adapters alone.
        freeze: Regular expressions, searched for in names of parameters: never trained.
        phases: What is trained when; None: answers, from first to last.
        patch_classes: Classes of each task of the dense loss.
        augmentation: Called in training with images (B * K, 3, H, W) and boxes (B * K, O, 4) or
            None; returns both.
        optimizer: Makes the optimizer. Only matrices are decayed.
        lr_scheduler: Makes the schedule.
        compile: Compiles each layer with `torch.compile`. The first steps take longer.
        activation_checkpointing: Recomputes each layer's activations in the backward pass.
        generation: Arguments of transformers' `generate`. Default: 64 tokens, greedy.

    Raises:
        ValueError: Settings that contradict each other, or unknown ones.
    """

    network: PreTrainedModel
    conversations: Conversations

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        vocabulary: str | None = None,
        image_size: int = 48,
        processor: str | None = None,
        lora: dict[str, Any] | None = None,
        freeze: list[str] | None = None,
        phases: list[Phase] | None = None,
        patch_classes: list[int] | None = None,
        augmentation: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-4, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,  # noqa: A002 - the name users know
        activation_checkpointing: bool = False,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["augmentation", "phases"])
        save_plain_hyperparameters(self)
        if (config is None) == (pretrained is None):
            raise ValueError(
                "give exactly one of model.init_args.config (random weights) and .pretrained "
                "(a folder or hub id); set the other to null"
            )
        # From a checkpoint they come as the dicts that are saved here.
        given: list[Any] = [Phase()] if phases is None else phases
        self.phases = [p if isinstance(p, Phase) else Phase(**p) for p in given]
        self.save_hyperparameters({"phases": [asdict(phase) for phase in self.phases]})
        self.freeze_patterns = list(freeze or [])
        check_phases(self.phases, self.freeze_patterns)
        self.patch_classes = patch_classes
        if any(phase.patch_weight for phase in self.phases) and patch_classes is None:
            raise ValueError("phases: patch_weight needs model.init_args.patch_classes")
        self.pretrained = pretrained
        self.lora = lora
        self.augmentation = augmentation
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.compile_layers = compile
        self.activation_checkpointing = activation_checkpointing
        self.generation = {"max_new_tokens": 64, "do_sample": False} | (generation or {})
        check_keys("generation", self.generation, vars(GenerationConfig()))  # type: ignore[no-untyped-call]
        if config is None:
            self.conversations = Conversations(load_processor(processor or str(pretrained)))
        else:
            self.config, self.conversations = from_settings(
                config, processor, vocabulary, image_size
            )
        self.seed = torch.initial_seed()
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics and the counters that a checkpoint carries."""
        self.val_accuracy = AnswerAccuracy()
        self.test_accuracy = AnswerAccuracy()
        self.progress = TrainingProgress(num_losses=3, unit="images", loss_unit="nats")
        self._examples: list[dict[str, Any]] = []
        self._test_values: dict[str, float] = {}

    def configure_model(self) -> None:
        """Builds `network` once; on the meta device when called under `torch.device("meta")`."""
        if hasattr(self, "network"):
            return
        if self.pretrained is not None:
            network = load_network(self.pretrained)
        else:
            network = build_network(self.config, self.seed)
        self.network = network.train()  # loading leaves it in evaluation mode
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            if self.lora is not None:
                add_lora(self.network, self.lora)
            if self.patch_classes is not None:
                width = self.network.config.get_text_config().hidden_size
                self.patch_head = PatchHead(width, self.patch_classes)
        for name, parameter in self.named_parameters():
            if any(re.search(pattern, name) for pattern in self.freeze_patterns):
                parameter.requires_grad_(False)
        if self.activation_checkpointing:
            recompute_activations(self.network)
        if self.compile_layers:
            for layer in decoder_layers(self.network):
                layer.compile()
        self.shard_network()

    def shard_network(self) -> None:
        """Shards each layer where a strategy asks for it; callbacks change layers before."""
        heads = [] if self.patch_classes is None else [self.patch_head]
        shard_over_devices(self, [*decoder_layers(self.network), self.network, *heads])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    # Losses

    def forward(self, inputs: Mapping[str, Any], **kwargs: Any) -> Any:
        """Returns transformers' output for what a processor returned; `.logits` is (B, L, V)."""
        return self.network(**inputs, use_cache=False, **kwargs)

    def encode(self, batch: Mapping[str, Any]) -> Encoded:
        """Turns a batch into what the network takes, and labels (B, L), -100 outside of answers."""
        return self._encode(batch["images"], batch["questions"], batch["answers"])

    def _encode(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None,
    ) -> Encoded:
        """Encodes conversations for the network, in its precision."""
        inputs, labels = self.conversations.encode(images, questions, answers, self.device)
        dtype = self.network.dtype
        cast = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
        return Encoded(cast, labels)

    def loss(self, batch: Mapping[str, Any], phase: Phase | None = None) -> Tensor:
        """Returns what training minimises in a phase; None: in the present one.

        That is the cross-entropy per answer token and the dense loss, both in nats and weighted.
        """
        return self._losses(batch, phase or self.phase)[0]

    def _losses(
        self, batch: Mapping[str, Any], phase: Phase
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns the loss and its two parts; None for a part that need not be computed."""
        batch = phase.select(batch)
        boxes = batch.get("boxes")
        if self.augmentation is not None and self.training:
            images, boxes = self.augmentation(batch["images"].flatten(0, 1), boxes)
            batch = {**batch, "images": images.reshape(batch["images"].shape)}
        inputs, labels_BL = self.encode(batch)
        # Where processes share gradients, each must give one for every parameter.
        is_shared = self._trainer is not None and self.trainer.world_size > 1
        answer_loss = patch_loss = None
        if phase.answer_weight or is_shared:
            output = self(inputs, output_hidden_states=self.patch_classes is not None)
            num_tokens = (labels_BL != IGNORED).sum().clamp(min=1)
            answer_loss = _cross_entropy(output.logits, labels_BL).sum() / num_tokens
        if phase.patch_weight or (is_shared and self.patch_classes is not None):
            if boxes is None:
                raise ValueError(
                    "batch: no boxes and box_labels, which phases with patch_weight need"
                )
            if answer_loss is None:
                features_FD = image_features(self.network, inputs)
            else:  # what the first layer got in the places of the images
                is_image = inputs["input_ids"] == self.network.config.image_token_id
                features_FD = output.hidden_states[0][is_image]
            patch_loss = self.patch_head.loss(features_FD, boxes, batch["box_labels"])
        parts = ((phase.answer_weight, answer_loss), (phase.patch_weight, patch_loss))
        terms = [weight * part for weight, part in parts if part is not None]
        return torch.stack(terms).sum(), answer_loss, patch_loss

    @property
    def phase(self) -> Phase:
        """The phase of the present training step; without a Trainer the last."""
        if self._trainer is None:
            return self.phases[-1]
        num_steps: float = 0
        if any(isinstance(phase.start, float) for phase in self.phases):
            num_steps = self.trainer.estimated_stepping_batches
        return phase_at(self.phases, self.trainer.global_step, num_steps)

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss, answer_loss, patch_loss = self._losses(batch, self.phase)
        parts = [loss.new_zeros(()) if x is None else x for x in (answer_loss, patch_loss)]
        num_images = sum(len(images) for images in batch["images"]) * self.trainer.world_size
        self.progress.step(torch.stack([loss, *parts]), num_images)
        if self.is_logging_step(batch_idx):
            means = self.progress.mean_losses(self.trainer.strategy.reduce)
            self.log("train/loss", means[0], prog_bar=True)
            self.log("train/answer_loss", means[1])
            if self.patch_classes is not None:
                self.log("train/patch_loss", means[2])
            self.log("train/images_per_second", self.progress.tokens_per_second())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves out parameters that the phase freezes."""
        patterns = self.phase.freeze
        for name, parameter in self.named_parameters() if patterns else ():
            if any(re.search(pattern, name) for pattern in patterns):
                parameter.grad = None  # parameters without gradient are not stepped

    def on_validation_start(self) -> None:
        """Stops the clock of training, and forgets the examples of the last validation."""
        super().on_validation_start()
        self._examples = []

    # Evaluation

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds one batch to the validation metrics."""
        self._evaluate(batch, self.val_accuracy)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics and adds the loss to the history."""
        values = self._compute(self.val_accuracy)
        for name, value in values.items():
            if "/" not in name:
                # Equal on all devices already; sync_dist only tells Lightning so.
                bar = name in ("loss", "accuracy")
                self.log(f"val/{name}", value, prog_bar=bar, sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", values["loss"])

    def on_test_start(self) -> None:
        """Forgets the examples of validation."""
        self._examples = []

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Adds one batch to the test metrics; returns a record for each question."""
        correct_B, nats_B, num_tokens_B = self._evaluate(batch, self.test_accuracy)
        scenes = batch.get("scene", batch["index"]).tolist()
        rows = zip(
            *(batch["index"].tolist(), scenes, batch["group"], batch["kinds"]),
            *(correct_B.tolist(), (nats_B / num_tokens_B).tolist()),
            strict=True,
        )
        return {
            "records": [
                {
                    "id": str(index),
                    "row": f"{group}/{kind}",
                    "group": str(scene),
                    "accuracy": float(correct),
                    "loss": loss,
                }
                for index, scene, group, (kind,), correct, loss in rows
            ]
        }

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._test_values = self._compute(self.test_accuracy)
        for name, value in self._test_values.items():
            self.log(f"test/{name}", value, sync_dist=True)

    def _evaluate(
        self, batch: dict[str, Any], metric: AnswerAccuracy
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns whether each answer is right, its nats and its tokens, (B,) each."""
        inputs, labels_BL = self.encode(batch)
        logits_BLV = self(inputs).logits
        is_answer_BL = labels_BL != IGNORED
        correct_B = ((logits_BLV.argmax(dim=-1) == labels_BL) | ~is_answer_BL).all(dim=1)
        nats_B = _cross_entropy(logits_BLV, labels_BL).sum(dim=1)
        num_tokens_B = is_answer_BL.sum(dim=1)
        kinds = [kind for (kind,) in batch["kinds"]]
        metric.update(correct_B, nats_B, num_tokens_B, batch["group"], kinds)
        if len(self._examples) < NUM_EXAMPLES:
            self._keep_examples(batch, logits_BLV, is_answer_BL)
        return correct_B, nats_B, num_tokens_B

    def _keep_examples(
        self, batch: dict[str, Any], logits_BLV: Tensor, is_answer_BL: Tensor
    ) -> None:
        """Remembers images and guesses for the figure, as plain types."""
        rows = range(min(NUM_EXAMPLES - len(self._examples), len(logits_BLV)))
        first_B = is_answer_BL.int().argmax(dim=1)
        for row in rows:
            shares, ids = logits_BLV[row, first_B[row]].float().softmax(dim=-1).topk(NUM_GUESSES)
            words = self.conversations.tokenizer.convert_ids_to_tokens(ids.tolist())
            pictures = [image for image in batch["images"][row] if isinstance(image, Tensor)]
            self._examples.append(
                {
                    "images": [picture.float().cpu().tolist() for picture in pictures],
                    "question": batch["questions"][row][0],
                    "answer": batch["answers"][row][0],
                    "guesses": [*zip(words, shares.tolist(), strict=True)],
                }
            )

    def _compute(self, metric: AnswerAccuracy) -> dict[str, float]:
        values = {name: value.item() for name, value in metric.compute().items()}
        metric.reset()
        return values

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Answers the first question of each conversation; returns a record for each."""
        asked = [questions[:1] for questions in batch["questions"]]
        answers = self.generate(batch["images"], asked)
        rows = zip(batch["index"].tolist(), asked, answers, batch["answers"], strict=True)
        return [
            {"id": str(index), "question": question, "answer": answer, "expected": expected[0]}
            for index, (question,), answer, expected in rows
        ]

    # Asking

    @torch.no_grad()
    def generate(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answers the last question of each conversation.

        Args:
            images: (B, K, 3, H, W) float in [0, 1], or lists of tensors or PIL images.
            questions: For each conversation its questions.
            answers: For each the answers to all but the last; None: there is one question.
            **generation: Arguments of transformers' `generate`, which win over the module's.
        """
        inputs, _ = self._encode(images, questions, answers)
        settings = {**self.generation, **generation}
        with self._evaluating(), torch.compiler.set_stance("force_eager"):
            outputs = self.network.generate(**inputs, **settings)  # type: ignore[operator]
        return self.conversations.decode(outputs[:, inputs["input_ids"].shape[1] :])

    @torch.no_grad()
    def score(
        self, images: Images, questions: Sequence[Sequence[str]], options: Sequence[str]
    ) -> Tensor:
        """Returns the log-probability of each option as the whole answer, (B, options) float32."""
        columns = []
        with self._evaluating():
            for option in options:
                answers = [[option]] * len(questions)
                inputs, labels = self._encode(images, questions, answers)
                columns.append(-_cross_entropy(self(inputs).logits, labels).sum(dim=1))
        return torch.stack(columns, dim=1)

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

    def save_pretrained(self, folder: str) -> None:
        """Writes network and processor so that transformers loads them from the folder.

        With `lora` the adapters alone, so that peft does.
        """
        if self.lora is None:
            self.network.save_pretrained(folder)
        else:
            save_lora(self.network, folder)
        self.conversations.processor.save_pretrained(folder)

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
        """Returns loss curves, pictures with answers and, after a test, a table of accuracies."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._examples:
            found["answers"] = answers_figure(self._examples)
        if self._test_values:
            overall = 100 * self._test_values["accuracy"]
            found["accuracy"] = accuracy_figure(
                self._test_values, f"right answers (%): {overall:.1f} of all"
            )
        return found


def _cross_entropy(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Returns cross-entropy in nats, (B, L) float32, 0 where ignored."""
    logits = logits_BLV.float().flatten(0, 1)
    losses = F.cross_entropy(logits, labels_BL.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels_BL)
