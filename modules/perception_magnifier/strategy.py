"""What every way of decoding has in common: it is a `custom_generate` of transformers.

    network.generate(**inputs, custom_generate=PerceptionMagnifier(), images=[[picture]],
                     processor=processor, max_new_tokens=10)

A strategy says what the logits of the next token are; the loop, logits processors, stopping and
sampling are here, once. To add one (IBD, say), derive from `DecodingStrategy` and return from
`start` a `Session`; what `Branch` and `Watch` offer is enough for all that are in this package.

Shapes: B questions, L length of the padded prompts, T answered tokens, V vocabulary; images
(3, H, W) in [0, 1].
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..vision_language_model.network import features_of_images, split_features
from .branch import Branch, Costs
from .prompt import Question, SeenImage, pad, see, seen_images
from .watching import watched

Region = tuple[float, float, float, float]  # left, top, right, bottom as shares of the image
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


@dataclass
class Asked:
    """A batch of questions, and all that strategies may know of them.

    Args:
        network: The model.
        processor: Its processor, or None where no strategy needs it.
        input_ids: (B, L), padded on the left.
        questions: Without padding, their images as the model would see them.
        images: For each question its images in their own resolution; None where they are not given.
        boxes: For each question and image the boxes (n, 4) of what is asked about, as shares.
        content: For each question and image the part that is no padding.
        ids: Names of the questions, for their random numbers.
        seed: Of all random numbers.
    """

    network: PreTrainedModel
    processor: Any
    input_ids: Tensor
    questions: list[Question]
    images: list[list[Tensor]] | None
    boxes: list[list[Tensor]] | None
    content: list[list[Region]]
    ids: list[str]
    seed: int
    costs: Costs = field(init=False)

    def __post_init__(self) -> None:
        self.costs = Costs.zeros(len(self.questions))
        self.length = max(len(question.ids) for question in self.questions)

    def branch(self, questions: Sequence[Question], rows: Tensor | None = None) -> Branch:
        """Starts a stream of tokens that is charged for.

        Args:
            questions: Those of the batch, perhaps changed.
            rows: int64, which of the batch; None: all.
        """
        padded = pad(self.network, questions, self.length)
        return Branch(self.network, padded, self.costs, rows)

    def see(
        self,
        images: Sequence[Sequence[Tensor]],
        rows: Sequence[int],
        alter: Callable[[Tensor, int], Tensor] | None = None,
    ) -> list[list[SeenImage]]:
        """Encodes images of some questions.

        Args:
            images: For each of these questions.
            rows: Which of the batch they are.
            alter: See `prompt.see`.
        """
        flat = see(self.network, self.processor, [x for some in images for x in some], alter)
        found = []
        for row, some in zip(rows, images, strict=True):
            found.append(flat[: len(some)])
            flat = flat[len(some) :]
            self.costs.encoded_images[row] += len(some)
        return found

    def words(self, text: str) -> list[int]:
        """Returns the tokens of a text.

        Raises:
            ValueError: There is no processor, or the tokenizer does not know a word.
        """
        if self.processor is None:
            raise ValueError(f"give generate(..., processor=...) to read {text!r}")
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise ValueError(
                f"the tokenizer does not know a word of {text!r}: give the strategy words it knows"
            )
        return ids

    @property
    def image_token(self) -> int:
        """The id of image tokens."""
        return int(self.network.config.image_token_id)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Random numbers of each question, the same in whatever batch it is asked.

        Args:
            purpose: Tells streams of one question apart.
        """
        found = []
        for name in self.ids:
            digest = hashlib.sha256(f"{self.seed}\0{purpose}\0{name}".encode()).digest()
            generator = torch.Generator()
            generator.manual_seed(int.from_bytes(digest[:7], "big"))
            found.append(generator)
        return found

    def originals(self, strategy: str) -> list[list[Tensor]]:
        """Returns the images in their own resolution.

        Raises:
            ValueError: Images or processor were not given.
        """
        if self.images is None or self.processor is None:
            raise ValueError(
                f"{strategy} changes images: give generate(..., images=[[picture], ...], "
                "processor=...), pictures as (3, H, W) in [0, 1], a list for each question"
            )
        return self.images


@dataclass(frozen=True)
class Look:
    """How a strategy looked at the image of a question when it began to answer.

    Args:
        heat: (h, w), attention to each cell.
        map: (h, w) in [0, 1], the perception map.
        image: (3, H, W), what was looked at instead of the image.
        rounds: Forward passes with hidden cells.
    """

    heat: Tensor
    map: Tensor
    image: Tensor
    rounds: int


@dataclass
class Decoded:
    """Answers.

    Args:
        sequences: (B, L + T) int64, prompts included.
        first_logits: (B, V) float32, of the first token, before logits processors.
        costs: Of each question.
        looks: For each question one `Look` for each image, where the strategy has any.
    """

    sequences: Tensor
    first_logits: Tensor
    costs: Costs
    looks: list[list[Look]] | None = None


class Session(ABC):
    """What a strategy knows while it answers one batch."""

    looks: list[list[Look]] | None = None

    @abstractmethod
    def next_logits(self, active_B: Tensor) -> Tensor:
        """Returns the logits of the next token, (B, V) float32.

        Args:
            active_B: bool, the questions that are not yet answered.
        """

    @abstractmethod
    def append(self, token_B: Tensor) -> None:
        """Is told the token that was chosen."""


class DecodingStrategy(ABC):
    """A way to choose next tokens.

    Attributes:
        name: What reports call it; default: the class's name in small letters.
        needs_attention: Whether it looks at attention weights.
    """

    name: str = ""
    needs_attention = False
    do_sample: bool | None = None  # None: as `generate` was told

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()

    @abstractmethod
    def start(self, asked: Asked) -> Session:
        """Begins to answer a batch."""

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        images: Sequence[Sequence[Tensor]] | None = None,
        processor: Any = None,
        boxes: Sequence[Sequence[Tensor]] | None = None,
        content: Sequence[Sequence[Region]] | None = None,
        question_ids: Sequence[str] | None = None,
        seed: int = 0,
        **model_kwargs: Any,
    ) -> Decoded | Tensor:
        """Answers a batch; `generate` calls this.

        Args:
            model: Any image-text-to-text model of transformers with `get_image_features`.
            input_ids: Of `generate`, as the next three.
            logits_processor: Applied to the strategy's logits.
            stopping_criteria: End answers.
            generation_config: `do_sample` and `return_dict_in_generate` count here.
            images: For each question its images, float in [0, 1], in their own resolution. With
                the processor, all that is seen is encoded from these; pixels need not be given.
            processor: The model's.
            boxes: For each question and image what is asked about, (n, 4); an oracle wants it.
            content: For each question and image what is no padding; None: all of it.
            question_ids: For random numbers; None: the place in the batch.
            seed: Of random numbers.
            **model_kwargs: What `generate` prepared: mask, pixels or features.

        Returns:
            `Decoded` with `return_dict_in_generate`, else its sequences.

        Raises:
            ValueError: Something that the strategy needs is missing.
        """
        asked = _asked(model, input_ids, model_kwargs, images, processor)
        asked.seed = seed
        if boxes is not None:
            asked.boxes = [list(some) for some in boxes]
        if content is not None:
            asked.content = [list(some) for some in content]
        if question_ids is not None:
            asked.ids = [str(name) for name in question_ids]
        with watched(model) if self.needs_attention else nullcontext():
            decoded = self.decode(asked, logits_processor, stopping_criteria, generation_config)
        return decoded if generation_config.return_dict_in_generate else decoded.sequences

    def decode(
        self, asked: Asked, logits_processor: Any, stopping_criteria: Any, generation_config: Any
    ) -> Decoded:
        """Answers a batch token by token."""
        session = self.start(asked)
        ids_BL = asked.input_ids
        active_B = torch.ones(len(ids_BL), dtype=torch.bool, device=ids_BL.device)
        sample = generation_config.do_sample if self.do_sample is None else self.do_sample
        generators = asked.generators("token") if sample else None
        pad_id = padding_id(generation_config)
        first_logits_BV = None
        while True:
            logits_BV = session.next_logits(active_B)
            first_logits_BV = logits_BV if first_logits_BV is None else first_logits_BV
            scores_BV = self.process(logits_processor(ids_BL, logits_BV))
            token_B = choose(scores_BV, generators).masked_fill(~active_B, pad_id)
            ids_BL = torch.cat([ids_BL, token_B[:, None]], dim=1)
            asked.costs.tokens += active_B.cpu()
            active_B = active_B & ~stopping_criteria(ids_BL, None)
            if not active_B.any():
                return Decoded(ids_BL, first_logits_BV, asked.costs, session.looks)
            session.append(token_B)

    def process(self, scores_BV: Tensor) -> Tensor:
        """Changes scores after all logits processors; here not."""
        return scores_BV


def choose(scores_BV: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Returns the likeliest token of each row or, with generators, one by chance, (B,)."""
    if generators is None:
        return scores_BV.argmax(dim=-1)
    shares_BV = scores_BV.softmax(dim=-1).cpu()
    drawn = [
        torch.multinomial(shares_V, 1, generator=generator)
        for shares_V, generator in zip(shares_BV, generators, strict=True)
    ]
    return torch.cat(drawn).to(scores_BV.device)


def padding_id(generation_config: Any) -> int:
    """Returns the token that follows the end of an answer."""
    for found in (generation_config.pad_token_id, generation_config.eos_token_id):
        if found is not None:
            return int(found[0] if isinstance(found, list) else found)
    return 0


def _asked(
    network: PreTrainedModel,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    images: Sequence[Sequence[Tensor]] | None,
    processor: Any,
) -> Asked:
    """Reads what `generate` prepared."""
    device = network.device
    mask_BL = model_kwargs.get("attention_mask")
    mask_BL = torch.ones_like(input_ids) if mask_BL is None else mask_BL
    rows = [ids[kept.bool()] for ids, kept in zip(input_ids, mask_BL, strict=True)]
    if images is not None and processor is not None:
        counts = [len(some) for some in images]
        flat = [image.to(device) for some in images for image in some]
        seen = see(network, processor, flat) if flat else []
    else:
        features = _prepared_features(network, model_kwargs)
        # What belongs to whom cannot be told otherwise.
        counts = [len(features) // len(rows)] * len(rows)
        seen = seen_images(features, model_kwargs, sum(counts))
    questions = []
    for ids, count in zip(rows, counts, strict=True):
        questions.append(Question(ids, tuple(seen[:count])))
        seen = seen[count:]
    asked = Asked(
        network=network,
        processor=processor,
        input_ids=input_ids,
        questions=questions,
        images=None if images is None else [[x.to(device) for x in some] for some in images],
        boxes=None,
        content=[[WHOLE] * count for count in counts],
        ids=[str(row) for row in range(len(rows))],
        seed=0,
    )
    asked.costs.encoded_images += torch.tensor(counts)
    return asked


def _prepared_features(network: PreTrainedModel, model_kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns the image features of what `generate` was given."""
    # Since 5.23 it encodes images itself; before, it leaves the pixels to the model.
    outputs = model_kwargs.get("mm_encoder_outputs") or {}
    if outputs.get("image") is None:
        has_pixels = model_kwargs.get("pixel_values") is not None
        return features_of_images(network, model_kwargs) if has_pixels else []
    if hasattr(network.base_model, "get_rope_index") and "image_grid_thw" not in model_kwargs:
        raise ValueError(
            f"{type(network).__name__}: transformers' generate does not tell the shapes of images; "
            "give generate(..., images=[[picture], ...], processor=...) as well"
        )
    return split_features(outputs["image"])
