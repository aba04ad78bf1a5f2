"""Asks a benchmark's questions of one vision-language model, by several ways of decoding.

Shapes: B questions of a batch, V vocabulary; images (3, H, W) in [0, 1].
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..files import atomic_write
from ..metrics.paired import PairedAnswers
from ..metrics.pointing import peaks_in_box
from ..metrics.pope import first_token_probabilities
from ..perception_magnifier import Decoded, DecodingStrategy, Greedy
from ..perception_magnifier.strategy import WHOLE, Region
from ..record_store import RecordStore
from ..vision_language_model import Conversations, load_trained
from ..vision_language_model.network import load_network
from ..vision_language_model.processors import load_processor
from .answers import Answer, answer_key, network_digest, plain_settings
from .figures import Example, examples_figure, table_figure, table_text
from .scorers import PopeScorer, Scorer
from .way import Way

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANSWERS = "answers"  # folder of the run
TABLE = "strategies.md"


class VLMDecodingModule(LightningModule):
    """Decodes only: `tenfold validate`, `test` and `predict`.

    A batch is that of `QuestionDataModule`. All strategies get the same prompts and resize the same
    images. Answers are written when they are there, to `answers/` in the run directory: a command
    that was killed and is given again (with `--overwrite`) asks what is left, on any number of
    processes.

    Logged are `<test or val>/<strategy>/<number>`, the numbers of the scorer; `pointing` for
    strategies that look closer, where boxes are known; and costs: `prefills_per_token`,
    `encoded_images` and `rounds` (means per question), `tokens_per_second`, on GPUs
    `peak_memory_gib`. The name of the strategy is left out if there is one alone. Differences to
    the first strategy, `<strategy>/<set>/...`, and their tests: see `PairedAnswers`.

    Args:
        model: A folder or hub id of transformers, or a checkpoint of `VisionLanguageModel`.
        strategies: Ways of decoding; those of one class need a `label` each. None: greedy.
        labels: What strategies are called; None: by their `name`.
        processor: Folder or hub id; None: the model's.
        scorer: How answers are scored; None: as POPE's.
        max_new_tokens: Length of answers.
        do_sample: Whether strategies that do not say themselves draw tokens by chance.
        pad_to_square: Pads images with the processor's mean colour, as LLaVA-1.5 does.
        num_examples: Images, each with one question, in the figure of each set.
        seed: Of random numbers; each question has its own.

    Raises:
        ValueError: Two strategies of one name.
    """

    network: PreTrainedModel
    conversations: Conversations

    def __init__(
        self,
        model: str,
        strategies: list[DecodingStrategy] | None = None,
        labels: list[str] | None = None,
        processor: str | None = None,
        scorer: Scorer | None = None,
        max_new_tokens: int = 10,
        do_sample: bool = False,
        pad_to_square: bool = False,
        num_examples: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["strategies", "scorer"])
        self.model_source, self.processor_source = model, processor
        strategies = [Greedy()] if strategies is None else strategies
        labels = labels or [strategy.name for strategy in strategies]
        if len(labels) != len(strategies) or len(set(labels)) != len(labels):
            raise ValueError(
                f"labels: {labels} for {len(strategies)} strategies: give "
                "model.init_args.labels, a name of its own for each"
            )
        self.max_new_tokens, self.do_sample = max_new_tokens, do_sample
        self.pad_to_square, self.num_examples, self.seed = pad_to_square, num_examples, seed
        scorer = PopeScorer() if scorer is None else scorer
        pairs = zip(labels, strategies, strict=True)
        self.ways = [Way(label, strategy, deepcopy(scorer)) for label, strategy in pairs]
        self.metrics = nn.ModuleList(self.ways)  # so that they follow the module's device
        self.pairs = PairedAnswers(labels)
        self._examples: list[Example] = []
        self._rows: list[dict[str, float]] = []
        self._store: RecordStore | None = None

    def configure_model(self) -> None:
        """Loads the network once."""
        if hasattr(self, "network"):
            return
        if self.model_source.endswith(".ckpt"):
            trained = load_trained(self.model_source)
            network, conversations = trained.network, trained.conversations
        else:
            network = load_network(self.model_source)
            conversations = Conversations(
                load_processor(self.processor_source or self.model_source)
            )
        self.network = network.train(False).requires_grad_(False)
        self.conversations = conversations

    # Asking

    @torch.no_grad()
    def decode(
        self, batch: Mapping[str, Any], strategy: DecodingStrategy
    ) -> tuple[Decoded, list[str]]:
        """Answers a batch by one strategy; returns what `generate` does, and the texts."""
        padded = [self._padded(image) for image in batch["images"]]
        images = [[image] for image, _ in padded]
        boxes = [
            [boxes_in(content, found)]
            for (_, content), found in zip(padded, batch["boxes"], strict=True)
        ]
        prompts = [[question] for question in batch["questions"]]
        inputs, _ = self.conversations.encode(images, prompts, None, self.device)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        names = zip(batch["sets"], batch["question_ids"], strict=True)
        decoded: Decoded = self.network.generate(  # type: ignore[operator]
            **tokens,
            custom_generate=strategy,
            images=images,
            processor=self.conversations.processor,
            boxes=boxes,
            content=[[content] for _, content in padded],
            question_ids=[f"{name}/{question}" for name, question in names],
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            do_sample=self.do_sample,
            return_dict_in_generate=True,
        )
        return decoded, self.conversations.decode(
            decoded.sequences[:, tokens["input_ids"].shape[1] :]
        )

    def _padded(self, image: Tensor) -> tuple[Tensor, Region]:
        """Returns an image as models see it, and which part of it is no padding."""
        if not self.pad_to_square:
            return image, WHOLE
        return pad_to_square(image, self.conversations.processor.image_processor.image_mean)

    def _answers(self, batch: Mapping[str, Any], way: Way) -> list[Answer]:
        """Returns the answers of one way, asking only what is not yet answered."""
        assert self._store is not None
        names = zip(batch["sets"], batch["question_ids"], batch["questions"], strict=True)
        keys = [answer_key(self._settings[way.label], *parts) for parts in names]
        found = [self._store.get(key) for key in keys]
        missing = [place for place, answer in enumerate(found) if answer is None]
        if missing:
            part = {name: [values[place] for place in missing] for name, values in batch.items()}
            for place, answer in zip(missing, self._ask(part, way), strict=True):
                record = found[place] = {"key": keys[place], **answer}
                self._store.put(record)
        return [answer for answer in found if answer is not None]

    def _ask(self, batch: Mapping[str, Any], way: Way) -> list[Answer]:
        """Asks questions; returns their records."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        decoded, texts = self.decode(batch, way.strategy)  # has texts: the device has finished
        seconds = (time.perf_counter() - began) / len(texts)
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else 0
        tokenizer = self.conversations.tokenizer
        shares = first_token_probabilities(decoded.first_logits, lambda i: tokenizer.decode([i]))
        answers = []
        for row, (text, (p_yes, p_no)) in enumerate(zip(texts, shares.tolist(), strict=True)):
            content = self._padded(batch["images"][row])[1]
            boxes = boxes_in(content, batch["boxes"][row])
            look = decoded.looks[row][0] if decoded.looks else None
            hit = peaks_in_box(look.heat, boxes) if look is not None and len(boxes) else None
            answers.append(
                {
                    "strategy": way.label,
                    "set": batch["sets"][row],
                    "question_id": batch["question_ids"][row],
                    "image": batch["image_names"][row],
                    "category": batch["categories"][row],
                    "prompt": batch["questions"][row],
                    "text": text,
                    "label": batch["answers"][row],
                    "p_yes": p_yes,
                    "p_no": p_no,
                    "hit": hit,
                    "seconds": seconds,
                    "peak_bytes": peak,
                    **decoded.costs.row(row),
                }
            )
            self._keep_example(batch, row, way.label, text, look)
        return answers

    def _keep_example(
        self, batch: Mapping[str, Any], row: int, label: str, text: str, look: Any
    ) -> None:
        """Remembers how the first images' first questions in each set were looked at."""
        name, question = batch["sets"][row], batch["question_ids"][row]
        image_name = batch["image_names"][row]
        of_set = [example for example in self._examples if example.set == name]
        example = next((e for e in of_set if e.id == question), None)
        if example is None:
            if len(of_set) >= self.num_examples or any(e.image_name == image_name for e in of_set):
                return
            example = Example(
                *(name, question, batch["questions"][row], batch["answers"][row], image_name),
                self._padded(batch["images"][row])[0].cpu(),
            )
            self._examples.append(example)
        example.answers[label] = text
        if look is not None:
            example.looks[label] = (look.map.cpu(), look.image.cpu())

    # Evaluation

    def on_validation_start(self) -> None:
        """Opens the answers."""
        self._begin()

    def on_test_start(self) -> None:
        """Opens the answers."""
        self._begin()

    def on_predict_start(self) -> None:
        """Opens the answers."""
        self._begin()

    def _begin(self) -> None:
        folder = Path(self.trainer.default_root_dir) / ANSWERS
        self._store = RecordStore(folder, self.global_rank)
        self._examples, self._rows = [], []
        shared: list[Any] = [
            network_digest(self.network),
            self.conversations.processor.chat_template,
        ]
        shared += [self.max_new_tokens, self.do_sample, self.pad_to_square, self.seed]
        self._settings = {w.label: [*shared, plain_settings(w.strategy)] for w in self.ways}

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Answers and scores a batch."""
        self._evaluate(batch)

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Answers and scores a batch; returns a record for each answer.

        Its metrics are `<set>/accuracy` and `<set>/pointing`, so that a study compares sets.
        """
        records = []
        for way, answers in zip(self.ways, self._evaluate(batch), strict=True):
            for answer in answers:
                name, right = answer["set"], way.scorer.is_right(answer)
                values = {"accuracy": right, "pointing": answer["hit"]}
                records.append(
                    {
                        "id": f"{name}/{answer['question_id']}",
                        "row": way.label,
                        "group": answer["image"],
                        **{f"{name}/{n}": float(v) for n, v in values.items() if v is not None},
                    }
                )
        return {"records": records}

    def _evaluate(self, batch: dict[str, Any]) -> list[list[Answer]]:
        """Returns the answers of each way."""
        everything = []
        for way in self.ways:
            answers = self._answers(batch, way)
            way.update(answers, batch)
            everything.append(answers)
        right = [
            [way.scorer.is_right(answer) for way, answer in zip(self.ways, row, strict=True)]
            for row in zip(*everything, strict=True)
        ]
        known = [place for place, row in enumerate(right) if None not in row]
        self.pairs.update(
            [batch["sets"][place] for place in known],
            [batch["question_ids"][place] for place in known],
            torch.tensor([right[place] for place in known]).reshape(-1, len(self.ways)),
            [batch["answers"][place] for place in known],
        )
        return everything

    def on_validation_epoch_end(self) -> None:
        """Logs all numbers."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Logs all numbers and writes the table of strategies."""
        self._finish("test")
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / ANSWERS / TABLE
            with atomic_write(path, "w") as file:
                file.write(table_text([way.label for way in self.ways], self._rows))

    def _finish(self, stage: str) -> None:
        labels = [way.label for way in self.ways]
        self._rows = [way.compute() for way in self.ways]
        for name, value in self.pairs.compute().items():
            set_name, label, what = name.rsplit("/", 2)
            self._rows[labels.index(label)][f"{set_name}/{what}"] = float(value)
        self.pairs.reset()
        for label, row in zip(labels, self._rows, strict=True):
            prefix = stage if len(labels) == 1 else f"{stage}/{label}"
            for name, number in row.items():
                self.log(f"{prefix}/{name}", number, sync_dist=True)  # equal on all ranks already
        assert self._store is not None
        self._store.close()

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Answers a batch by all strategies; returns a record for each answer."""
        answers = [answer for way in self.ways for answer in self._answers(batch, way)]
        return [{"id": f"{a['strategy']}/{a['set']}/{a['question_id']}", **a} for a in answers]

    # What a run leaves behind

    def run_info(self) -> dict[str, float]:
        """Returns the size of the network, for `metrics.json`."""
        return {"num_parameters": sum(p.numel() for p in self.network.parameters())}

    def figures(self) -> dict[str, "Figure"]:
        """Returns how the first questions were looked at and answered, and a table."""
        found, labels = {}, [way.label for way in self.ways]
        if self._examples:
            found["answers"] = examples_figure(self._examples, labels)
        if self._rows:
            found["strategies"] = table_figure(labels, self._rows)
        return found


def pad_to_square(image: Tensor, colour: Sequence[float]) -> tuple[Tensor, Region]:
    """Pads an image on both sides of its shorter axis; returns it and where it lies.

    Args:
        image: (3, H, W) in [0, 1].
        colour: Of the padding, in [0, 1]; rounded down to 255ths, as LLaVA does.

    Returns:
        The square, and left, top, right, bottom of the image in it as shares.
    """
    height, width = image.shape[1:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    fill = torch.tensor([int(255 * value) / 255 for value in colour]).to(image)
    square = fill[:, None, None].expand(3, side, side).clone()
    square[:, top : top + height, left : left + width] = image
    region = (left / side, top / side, (left + width) / side, (top + height) / side)
    return square, region


def boxes_in(content: Region, boxes_N4: Tensor) -> Tensor:
    """Turns boxes as shares of an image into shares of its padded square."""
    left, top, right, bottom = content
    scale = boxes_N4.new_tensor([right - left, bottom - top] * 2)
    return boxes_N4 * scale + boxes_N4.new_tensor([left, top, left, top])
