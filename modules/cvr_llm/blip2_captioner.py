"""BLIP-2 as a captioner: it answers questions about one image, and is no chat model."""

import time
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration

from ..chat import ChatBackend, ChatRequest, ChatResponse
from ..chat.backend import Keep
from ..files import sha256_of_folder


class Blip2Captioner(ChatBackend):
    """Describes images by BLIP-2 with a FlanT5 or OPT decoder, the captioner of the paper.

    A request is one turn with one image and a text. Decoding is greedy or by beams; a request's
    temperature is not looked at. Weights are loaded at first use; a folder is identified by its
    content.

    Args:
        model: A folder or a repository of the hub, such as Salesforce/blip2-flan-t5-xxl.
        revision: Of the repository.
        prompt_format: What the model reads, with `{text}`; decoders were tuned to this one.
        dtype: Of weights: "auto" is what they are stored in; or "float32", "bfloat16", "float16".
        device: "auto" is this process's current GPU, else the CPU.
        batch_size: Images per batch.
        num_beams: 1 is greedy.

    Raises:
        ValueError: A number below 1; on first use, the model cannot be loaded.
    """

    supports_images = True

    def __init__(
        self,
        model: str,
        revision: str = "main",
        prompt_format: str = "Question: {text} Answer:",
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 8,
        num_beams: int = 1,
    ) -> None:
        if min(batch_size, num_beams) < 1:
            raise ValueError("batch_size and num_beams must be 1 or more")
        self.model, self.revision = model, revision
        self.prompt_format = prompt_format
        self.dtype, self.device = dtype, device
        self.batch_size, self.num_beams = batch_size, num_beams

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        model, revision = self.model, self.revision
        if Path(model).is_dir():
            if "_sha256" not in vars(self):
                self._sha256 = sha256_of_folder(Path(model))
            model, revision = Path(model).name, self._sha256
        return {
            "backend": "blip2",
            "model": model,
            "revision": revision,
            "dtype": self.dtype,
            "prompt_format": self.prompt_format,
            "num_beams": self.num_beams,
        }

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        if "_loaded" not in vars(self):
            # A copy has no weights: so they go with this object, at once.
            self._loaded = _Loaded(copy(self))
        # Of one length each: what is generated is cut for a batch, not for a request.
        order = sorted(range(len(requests)), key=lambda place: requests[place].max_new_tokens)
        for begin in range(0, len(order), self.batch_size):
            places = order[begin : begin + self.batch_size]
            responses = self._loaded.describe([requests[place] for place in places])
            yield from zip(places, responses, strict=True)


class _Loaded:
    """Network and processor on a device."""

    def __init__(self, settings: Blip2Captioner) -> None:
        self.settings = settings
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                settings.model, revision=settings.revision
            )
            network: Any = Blip2ForConditionalGeneration.from_pretrained(
                settings.model, revision=settings.revision, dtype=settings.dtype
            )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"captioner: cannot load {settings.model!r}: {reason}") from error
        self.network = network.to(self.device).eval()

    @torch.inference_mode()
    def describe(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        """Answers a batch."""
        began = time.monotonic()
        pairs = [_image_and_text(request) for request in requests]
        texts = [self.settings.prompt_format.replace("{text}", text) for _, text in pairs]
        inputs = self.processor(
            images=[image.convert("RGB") for image, _ in pairs],
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        length = max(request.max_new_tokens for request in requests)
        written = self.network.generate(
            **inputs, max_new_tokens=length, num_beams=self.settings.num_beams, do_sample=False
        )
        if not self.network.config.text_config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]  # a decoder repeats its prompt
        answers = self.processor.batch_decode(written, skip_special_tokens=True)
        seconds = time.monotonic() - began
        counts = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            ChatResponse(
                text.strip(), prompt_tokens=count, seconds=seconds, model=self.settings.model
            )
            for text, count in zip(answers, counts, strict=True)
        ]


def _image_and_text(request: ChatRequest) -> tuple[Image.Image, str]:
    turns = request.turns
    images = [image for turn in turns for image in turn.images]
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    if len(turns) != 1 or len(images) != 1 or len(texts) != 1:
        raise ValueError(
            "Blip2Captioner takes one turn with one image and one text: for anything else use a "
            "chat model"
        )
    return images[0], texts[0].strip()
