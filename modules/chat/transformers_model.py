"""Chat models of transformers in this process: texts and images in, batches, exact choices."""

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    TopPLogitsWarper,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..files import sha256_of_file, sha256_of_folder
from .backend import ChatBackend, Keep
from .messages import ChatRequest, ChatResponse, Message, best_choice

if TYPE_CHECKING:
    from ..vision_language_model import VisionLanguageModel

Ids = tuple[int, ...]


class TransformersChatBackend(ChatBackend):
    """Runs a chat model of transformers, with images where its processor takes them.

    Weights are loaded at first use and are no part of the module that holds the backend: they are
    neither trained nor saved with it. Requests go through in batches of similar length. Decoding
    is what the request says: defaults that come with a model, such as a repetition penalty, do not
    count. A sampled answer depends on its request alone, not on the batch or torch's generators.

    A folder is identified by the content of its files, which is read once (about 1 s per GB), and
    so is a checkpoint.

    Args:
        model: A folder, a repository of the hub, or a checkpoint of `VisionLanguageModel`.
        revision: Of the repository; "main" may move, a commit does not.
        dtype: "auto" is what the weights are stored in; or "float32", "bfloat16", "float16".
        device: "auto" is this process's current GPU, else the CPU.
        batch_size: Requests per batch.
        chat_template: Jinja template, in place of the model's.
        chat_template_kwargs: Variables for the template, such as `enable_thinking: false`.
        attn_implementation: As in transformers, such as "sdpa".
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        ValueError: On first use: the model cannot be loaded, or is no chat model.
    """

    supports_scoring = True

    def __init__(
        self,
        model: str,
        revision: str = "main",
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 8,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.model = model
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self.chat_template = chat_template
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.attn_implementation = attn_implementation
        self.trust_remote_code = trust_remote_code

    @property
    def supports_images(self) -> bool:
        """Whether it is one of transformers' image-text-to-text models."""
        return _takes_images(self._read_config())

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        model, revision = self.model, self.revision
        folder = Path(model)
        if folder.exists():
            if "_sha256" not in vars(self):
                is_file = folder.is_file()
                self._sha256 = sha256_of_file(folder) if is_file else sha256_of_folder(folder)
            model, revision = folder.name, self._sha256
        return {
            "backend": "transformers",
            "model": model,
            "revision": revision,
            "dtype": self.dtype,
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        if "_loaded" not in vars(self):
            # A copy has no weights: so they go with this object, at once.
            self._loaded = _LoadedModel(copy(self), self._read_config(), self._trained)

        def kind(index: int) -> tuple[bool, bool, int, tuple[str, ...]]:
            request = requests[index]
            images = any(turn.images for turn in request.turns)
            return bool(request.choices), images, request.max_new_tokens, tuple(request.stop)

        # The longest first: what does not fit into memory fails at once.
        order = sorted(range(len(requests)), key=lambda i: (kind(i), -_size(requests[i])))
        for _, group in groupby(order, kind):
            indices = list(group)
            for begin in range(0, len(indices), self.batch_size):
                batch = indices[begin : begin + self.batch_size]
                responses = self._loaded.answer([requests[index] for index in batch])
                yield from zip(batch, responses, strict=True)

    @property
    def _trained(self) -> "VisionLanguageModel | None":
        """The model of a checkpoint; None if it is none."""
        if not self.model.endswith(".ckpt"):
            return None
        if "_module" not in vars(self):
            from ..vision_language_model import load_trained

            self._module = load_trained(self.model)
        return self._module

    def _read_config(self) -> PreTrainedConfig:
        if (trained := self._trained) is not None:
            config: PreTrainedConfig = trained.network.config
            return config
        if "_config" not in vars(self):
            try:
                self._config: PreTrainedConfig = AutoConfig.from_pretrained(
                    self.model, revision=self.revision, trust_remote_code=self.trust_remote_code
                )
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"model: cannot load {self.model!r}: {_one_line(error)}"
                ) from error
        return self._config


class RowSampler(LogitsProcessor):
    """Makes greedy search sample, each row with its own settings and its own generator.

    The largest of log-probabilities with Gumbel noise is a draw from their distribution, so that
    what a row gets does not depend on those beside it.

    Args:
        requests: One per row; with temperature 0 its row stays as it is.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self.rows = [
            (
                row,
                request.temperature,
                TopPLogitsWarper(request.top_p),
                torch.Generator().manual_seed(int(request.digest[:15], 16)),
            )
            for row, request in enumerate(requests)
            if request.temperature > 0
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores (B, V) with noise in the rows that sample."""
        noisy_BV = scores.clone() if self.rows else scores
        for row, temperature, top_p, generator in self.rows:
            scores_1V = top_p(input_ids[row : row + 1], scores[row : row + 1] / temperature)
            exponential_V = torch.empty(scores_1V.shape[1]).exponential_(generator=generator)
            noisy_BV[row] = scores_1V[0] - exponential_V.log().to(scores.device)
        return noisy_BV


class _LoadedModel:
    """Network and processor on a device."""

    def __init__(
        self,
        settings: TransformersChatBackend,
        config: PreTrainedConfig,
        trained: "VisionLanguageModel | None",
    ) -> None:
        self.settings = settings
        self.takes_images = _takes_images(config)
        text_config = config.get_text_config()
        if config.is_encoder_decoder or text_config.is_encoder_decoder:
            raise ValueError(f"model: {settings.model} is an encoder-decoder, no chat model")
        self.max_length = getattr(text_config, "max_position_embeddings", None) or math.inf
        self.processor, network = self._load(trained)
        if settings.chat_template is None and self.processor.chat_template is None:
            raise ValueError(f"model: {settings.model} has no chat template: give chat_template")
        device = settings.device
        if device == "auto":
            cuda = torch.cuda.is_available()
            device = f"cuda:{torch.cuda.current_device()}" if cuda else "cpu"
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.tokenizer: Any = getattr(self.processor, "tokenizer", self.processor)
        ends = network.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = ends if isinstance(ends, list) else [ends]
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.ends[0])
        self.keeps_logits = "logits_to_keep" in inspect.signature(network.forward).parameters
        network.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=self.ends, pad_token_id=self.tokenizer.pad_token_id
        )

    def _load(self, trained: "VisionLanguageModel | None") -> tuple[Any, Any]:
        """Returns processor and network."""
        settings = self.settings
        if trained is not None:
            network: Any = trained.network
            if settings.dtype != "auto":
                network = network.to(dtype=getattr(torch, settings.dtype))
            return trained.conversations.processor, network
        auto = AutoModelForImageTextToText if self.takes_images else AutoModelForCausalLM
        code = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
        try:
            processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                settings.model, **code
            )
            network = auto.from_pretrained(
                settings.model,
                dtype=settings.dtype,
                attn_implementation=settings.attn_implementation,
                **code,
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model: cannot load {settings.model!r}: {_one_line(error)}"
            ) from error
        return processor, network

    @torch.inference_mode()
    def answer(self, batch: list[ChatRequest]) -> list[ChatResponse]:
        """Answers requests of one kind: all with choices, or all of one length and stop texts."""
        started = time.monotonic()
        inputs = self._inputs(batch, "left")
        lengths = inputs["attention_mask"].sum(1).tolist()
        needed = [n + self._num_new(request) for request, n in zip(batch, lengths, strict=True)]
        fits = [length <= self.max_length for length in needed]
        fitting = [request for request, fit in zip(batch, fits, strict=True) if fit]
        if 0 < len(fitting) < len(batch):
            inputs = self._inputs(fitting, "left")
        with torch.autocast(self.device.type, enabled=False):  # whatever the Trainer's precision
            if not fitting:
                answers: list[ChatResponse] = []
            elif batch[0].choices:
                answers = self._choose(fitting)
            else:
                answers = self._generate(fitting, inputs)
        seconds = time.monotonic() - started
        answered = iter(answers)
        problem = "{} tokens with the answer, and {} has room for {}"
        model, room = self.settings.model, self.max_length
        return [
            replace(next(answered), prompt_tokens=length, seconds=seconds, model=model)
            if fit
            else ChatResponse("", "error", error=problem.format(total, model, room))
            for length, total, fit in zip(lengths, needed, fits, strict=True)
        ]

    def _num_new(self, request: ChatRequest) -> int:
        if request.choices:
            return max(len(ids) for choice in request.choices for ids in self._beginnings(choice))
        return request.max_new_tokens

    def _generate(self, batch: list[ChatRequest], inputs: dict[str, Tensor]) -> list[ChatResponse]:
        stop = {"stop_strings": list(batch[0].stop), "tokenizer": self.tokenizer}
        ids_BL = self.network.generate(
            **inputs,
            max_new_tokens=batch[0].max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([RowSampler(batch)]),
            **(stop if batch[0].stop else {}),
        )
        written = ids_BL[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._read(*pair) for pair in zip(batch, written, strict=True)]

    def _read(self, request: ChatRequest, ids: list[int]) -> ChatResponse:
        over = {*self.ends, self.tokenizer.pad_token_id}
        num_written = next((i for i, token in enumerate(ids) if token in over), len(ids))
        text = self.tokenizer.decode(ids[:num_written], skip_special_tokens=True)
        stops = [place for stop in request.stop if (place := text.find(stop)) >= 0]
        ended = stops or num_written < len(ids)
        return ChatResponse(
            text=text[: min(stops)] if stops else text,
            finish_reason="stop" if ended else "length",
            completion_tokens=num_written,
        )

    def _choose(self, batch: list[ChatRequest]) -> list[ChatResponse]:
        """Scores choices; those that share all but their last token share a row.

        So letters cost one row together: the prompt.
        """
        # A row, the request's place and the tokens after its prompt -> choices to be read from it.
        rows: dict[tuple[int, Ids], list[tuple[int, Ids]]] = {}
        for place, request in enumerate(batch):
            begun = [(n, ids) for n, c in enumerate(request.choices) for ids in self._beginnings(c)]
            for number, ids in sorted(begun, key=lambda pair: -len(pair[1])):
                covers = (row for row in rows if row[0] == place and _begins(ids[:-1], row[1]))
                row = next(covers, (place, ids[:-1]))
                rows.setdefault(row, []).append((number, ids))
        scores = [[-math.inf] * len(request.choices) for request in batch]
        work, size = list(rows.items()), self.settings.batch_size
        for part in (work[begin : begin + size] for begin in range(0, len(work), size)):
            tables = self._log_probabilities([(batch[place], ids) for (place, ids), _ in part])
            for ((place, _), begun), table_TV in zip(part, tables, strict=True):
                for number, ids in begun:
                    score = sum(table_TV[t, token].item() for t, token in enumerate(ids))
                    scores[place][number] = float(np.logaddexp(scores[place][number], score))
        return [best_choice(*pair) for pair in zip(batch, scores, strict=True)]

    def _log_probabilities(self, rows: list[tuple[ChatRequest, Ids]]) -> list[Tensor]:
        """Runs prompts with the first tokens of an answer.

        Returns:
            Per row (1 + number of tokens, V) float32: natural log-probabilities of the token after
            the prompt and after each token.
        """
        inputs = self._inputs([request for request, _ in rows], "right")
        lengths = inputs["attention_mask"].sum(1).tolist()
        shape = inputs["input_ids"].shape
        extra = max(len(ids) for _, ids in rows)
        inputs = {
            name: pad(tensor, (0, extra)) if tensor.shape == shape else tensor
            for name, tensor in inputs.items()
        }
        for row, (length, (_, ids)) in enumerate(zip(lengths, rows, strict=True)):
            end = length + len(ids)
            inputs["input_ids"][row, length:end] = torch.tensor(ids, dtype=torch.long)
            inputs["attention_mask"][row, length:end] = 1
        # Logits of what is before are not wanted: a vocabulary times a prompt is large.
        skipped = min(lengths) - 1
        keep = {"logits_to_keep": shape[1] + extra - skipped} if self.keeps_logits else {}
        logits_BLV = self.network(**inputs, use_cache=False, **keep).logits
        skipped = shape[1] + extra - logits_BLV.shape[1]
        begins = [length - 1 - skipped for length in lengths]
        return [
            logits_BLV[row, begin : begin + 1 + len(ids)].float().log_softmax(-1).cpu()
            for row, (begin, (_, ids)) in enumerate(zip(begins, rows, strict=True))
        ]

    def _beginnings(self, choice: str) -> list[Ids]:
        """The token sequences with which an answer may start a choice: with a space or without."""
        texts = (choice, f" {choice}")
        bare, spaced = (
            tuple(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts
        )
        return [bare] if _begins(bare, spaced) else [bare, spaced]

    def _inputs(self, batch: list[ChatRequest], padding_side: str) -> dict[str, Tensor]:
        self.tokenizer.padding_side = padding_side
        conversations = [[self._turn(turn) for turn in request.turns] for request in batch]
        padding: dict[str, Any] = {"padding": True}
        if self.processor is not self.tokenizer:
            padding = {"processor_kwargs": padding}
        try:
            inputs = self.processor.apply_chat_template(
                conversations,
                chat_template=self.settings.chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **padding,
                **self.settings.chat_template_kwargs,
            )
        except TemplateError as error:
            raise ValueError(
                f"model: the chat template of {self.settings.model} refuses the messages: "
                f"{_one_line(error)}"
            ) from error
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _turn(self, message: Message) -> dict[str, Any]:
        if not self.takes_images:
            return {"role": message.role, "content": "".join(str(part) for part in message.parts)}
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part.convert("RGB")}
            for part in message.parts
        ]
        return {"role": message.role, "content": content}


def _takes_images(config: PreTrainedConfig) -> bool:
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _size(request: ChatRequest) -> int:
    """About how long a request is, in characters."""
    parts = [part for turn in request.turns for part in turn.parts]
    return sum(len(part) if isinstance(part, str) else 1000 for part in parts)


def _begins(start: Ids, ids: Ids) -> bool:
    return ids[: len(start)] == start


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
