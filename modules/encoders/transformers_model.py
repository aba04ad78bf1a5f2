"""Encoders of transformers: two towers, an image tower alone, and BLIP-2's query transformer."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as IMAGE_MODELS,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as TWO_TOWERS,
)

from .network import FLOATS, Inputs, NetworkEncoder, check_preprocessing
from .weights import LOAD_ERRORS, load_error, load_transformers, read_config

Pooling = Literal["projection", "pooler", "cls", "mean"]
QueryPooling = Literal["mean", "first"]


class _FolderEncoder(NetworkEncoder):
    """What a folder of transformers brings: configuration, tokenizer and image processor.

    Args:
        model: A folder that `save_pretrained` wrote, with processor and tokenizer.
        max_length: Tokens per text, padding included; None: as many as there are positions.
        preprocessing: Replaces settings of the folder's image processor, such as
            `{do_center_crop: false}`.
        kwargs: See `NetworkEncoder`.
    """

    def __init__(
        self,
        model: str,
        max_length: int | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        self.max_length = max_length
        self.preprocessing = preprocessing

    def _read_config(self) -> PreTrainedConfig:
        if "_config" not in vars(self):
            self._config = read_config(self.model)
        return self._config

    def _load_network(self, auto: Any) -> nn.Module:
        dtype = FLOATS[self.dtype]
        return load_transformers(auto, self.model, self._read_config(), dtype, self._random)

    def _load_image_processor(self) -> None:
        try:
            found = AutoImageProcessor.from_pretrained(self.model)  # type: ignore[no-untyped-call]
            check_preprocessing(self.preprocessing, found.to_dict())
            self._image_processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                self.model, **(self.preprocessing or {})
            )
        except LOAD_ERRORS as error:
            raise load_error(self.model, error) from error

    def _load_tokenizer(self, num_positions: int) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.model)
        except LOAD_ERRORS as error:
            raise load_error(self.model, error) from error
        self._length = self.max_length or num_positions
        if self._length > num_positions:
            raise ValueError(f"max_length: {self._length}; {self.model} has {num_positions}")

    def _image_input(self, image: Image.Image) -> Inputs:
        inputs = self._image_processor(image, return_tensors="pt")
        return {name: tensor[0] for name, tensor in inputs.items()}

    def _text_input(self, text: str) -> Inputs:
        tokens = self._tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return {name: tensor[0] for name, tensor in tokens.items()}


class TransformersEncoder(_FolderEncoder):
    """CLIP, SigLIP and other two-tower models of transformers; DINOv2, ViT and other image models.

    Texts are padded to `max_length`, as SigLIP was trained; CLIP does not see its padding.

    Args:
        model: A folder that `save_pretrained` wrote, with processor and tokenizer.
        pooling: "projection": in the space that both towers share. "pooler": what a tower itself
            makes of its tokens, before the projection. "cls": its first token. "mean": the mean of
            its tokens, in images that of the class token too.
        max_length: Tokens per text, padding included; None: as many as there are positions.
        preprocessing: Replaces settings of the folder's image processor, such as
            `{do_center_crop: false}`.
        kwargs: See `NetworkEncoder`.

    Raises:
        ValueError: See `NetworkEncoder`; or the model has no such pooling.
    """

    supports_images = True

    def __init__(
        self,
        model: str,
        pooling: Pooling = "projection",
        max_length: int | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, max_length, preprocessing, **kwargs)
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling: {pooling!r} is none of {', '.join(get_args(Pooling))}")
        self.pooling: Pooling = pooling

    @property
    def supports_texts(self) -> bool:
        """Whether it has two towers."""
        return self._read_config().model_type in TWO_TOWERS

    def _read_config(self) -> PreTrainedConfig:
        config = super()._read_config()
        kind = config.model_type
        if kind == "blip-2" or kind not in (IMAGE_MODELS.keys() | TWO_TOWERS.keys()):
            raise ValueError(
                f"model: {self.model} is a {kind}, no pair of towers and no image tower: take "
                "Blip2Encoder for BLIP-2, SentenceEncoder for a text model"
            )
        return config

    def _build(self) -> nn.Module:
        if self.pooling == "projection" and not self.supports_texts:
            raise ValueError(
                f"pooling: {self.model} has an image tower alone, and no projection: take pooler, "
                "cls or mean"
            )
        network = self._load_network(AutoModel)
        if self.supports_texts:
            self._load_tokenizer(self._read_config().text_config.max_position_embeddings)
        self._load_image_processor()
        return network

    def _embed_images(self, inputs: Inputs) -> Tensor:
        pixels = inputs["pixel_values"].to(self._network.dtype)
        inputs = {**inputs, "pixel_values": pixels}
        if self.pooling == "projection":
            projected: Tensor = self._network.get_image_features(**inputs).pooler_output
            return projected
        tower = self._network.vision_model if self.supports_texts else self._network
        output = tower(**inputs)
        # Only towers for images of any shape (SigLIP 2) have padding.
        mask = inputs.get("pixel_attention_mask")
        shape = output.last_hidden_state.shape[:2]
        return self._pool(output, pixels.new_ones(shape) if mask is None else mask)

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        if self.pooling == "projection":
            projected: Tensor = self._network.get_text_features(**inputs).pooler_output
            return projected
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        return self._pool(self._network.text_model(**inputs), mask)

    def _pool(self, output: Any, mask_BL: Tensor) -> Tensor:
        tokens_BLD: Tensor = output.last_hidden_state
        if self.pooling == "mean":
            return masked_mean(tokens_BLD, mask_BL)
        if self.pooling == "cls":
            return tokens_BLD[:, 0]
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"pooling: {self.model} has no pooler: take cls or mean")
        return pooled.flatten(1)


class Blip2Encoder(_FolderEncoder):
    """BLIP-2 with its retrieval heads (transformers' `Blip2ForImageTextRetrieval`).

    An image gives one vector per query token; BLIP-2's own similarity is the largest over queries,
    which no single vector can give.

    Args:
        model: A folder that `save_pretrained` wrote, with processor and tokenizer.
        pooling: How queries become one vector: their "mean", after each was divided by its norm in
            the projected space, or the "first". For pairs, of the queries' last states.
        max_length: Tokens per text, padding included; None: as many as there are positions.
        preprocessing: Replaces settings of the folder's image processor.
        kwargs: See `NetworkEncoder`.
    """

    supports_images = True
    supports_texts = True

    def __init__(
        self,
        model: str,
        pooling: QueryPooling = "mean",
        max_length: int | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, max_length, preprocessing, **kwargs)
        if pooling not in get_args(QueryPooling):
            raise ValueError(f"pooling: {pooling!r} is none of {', '.join(get_args(QueryPooling))}")
        self.pooling: QueryPooling = pooling

    def encode_pairs(self, pairs: Sequence[tuple[Image.Image, str]]) -> Tensor:
        """Encodes images and texts that belong together, each pair into one vector.

        The query tokens attend to the text and to the image, as for BLIP-2's matching head.

        Args:
            pairs: Images with their texts.

        Returns:
            (N, D) embeddings on the CPU, D the width of the query transformer.

        Raises:
            ValueError: An image cannot be read, or something is no pair.
        """
        if not len(pairs):
            return self.encode_pairs([(Image.new("RGB", (32, 32)), "a")])[:0]
        return self._encode("pairs", pairs, self._pair_input, self._embed_pairs)

    def _pair_input(self, pair: tuple[Image.Image, str]) -> Inputs:
        image, text = pair
        return {**self._rgb_input(image), **self._checked_text_input(text)}

    def _build(self) -> nn.Module:
        config = self._read_config()
        if config.model_type != "blip-2" or not config.qformer_config.use_qformer_text_input:
            raise ValueError(f"model: {self.model} is no BLIP-2 with retrieval heads")
        self._load_tokenizer(config.qformer_config.max_position_embeddings)
        self._load_image_processor()
        return self._load_network(Blip2ForImageTextRetrieval)

    def _queries(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Query tokens (B, Q, D) and what they attend to."""
        network = self._network
        seen_BPD = network.vision_model(pixels.to(network.vision_model.dtype)).last_hidden_state
        queries = network.query_tokens.expand(len(pixels), -1, -1)
        return queries, {
            "encoder_hidden_states": seen_BPD.to(network.qformer.dtype),
            "encoder_attention_mask": pixels.new_ones(seen_BPD.shape[:2], dtype=torch.long),
        }

    def _embed_images(self, inputs: Inputs) -> Tensor:
        queries, seen = self._queries(inputs["pixel_values"])
        states_BQD = self._network.qformer(query_embeds=queries, **seen).last_hidden_state
        head = self._network.vision_projection
        projected_BQD = head(states_BQD.to(head.weight.dtype))
        return self._pool(normalize(projected_BQD.float(), dim=-1))

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        embedded = self._network.embeddings(input_ids=inputs["input_ids"])
        states_BLD = self._network.qformer(
            query_embeds=embedded, query_length=0, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        head = self._network.text_projection
        projected: Tensor = head(states_BLD[:, 0].to(head.weight.dtype))
        return projected

    def _embed_pairs(self, inputs: Inputs) -> Tensor:
        queries, seen = self._queries(inputs["pixel_values"])
        num_queries = queries.shape[1]
        mask = inputs["attention_mask"]
        states_BLD = self._network.qformer(
            query_embeds=self._network.embeddings(inputs["input_ids"], query_embeds=queries),
            query_length=num_queries,
            attention_mask=torch.cat([mask.new_ones(len(mask), num_queries), mask], 1),
            **seen,
        ).last_hidden_state
        return self._pool(states_BLD[:, :num_queries])

    def _pool(self, states_BQD: Tensor) -> Tensor:
        return states_BQD.mean(1) if self.pooling == "mean" else states_BQD[:, 0]


def masked_mean(tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean of the tokens where the mask is 1, (B, D) float32."""
    mask_BL1 = mask_BL.float()[..., None]
    return (tokens_BLD.float() * mask_BL1).sum(1) / mask_BL1.sum(1)
