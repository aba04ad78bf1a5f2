"""Processors of transformers: loaded, or made here for models that start from random weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
import transformers
from transformers import (
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from ..causal_lm import check_keys
from .conversation import Conversations
from .network import build_config

# Questions and answers one after the other: what a model that knows nothing needs no roles for.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
BASIC_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}


class Family(NamedTuple):
    """How models of one kind mark the place of an image.

    Attributes:
        image: What the chat template writes; the processor repeats a token of it.
        special: The special tokens of its processor, by names of config arguments.
    """

    image: str
    special: dict[str, str]


_IDEFICS = Family(
    "<image>",
    {
        "image_token_id": "<image>",
        "around_token_id": "<fake_token_around_image>",
        "global_token_id": "<global-img>",
        "end_of_utterance_token_id": "<end_of_utterance>",
    },
)
_QWEN = Family(
    "<|vision_start|><|image_pad|><|vision_end|>",
    {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
)
_LLAVA = Family("<image>", {"image_token_id": "<image>"})
FAMILIES = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
}


def from_settings(
    settings: Mapping[str, Any], processor: str | None, vocabulary: str | None, image_size: int
) -> tuple[PreTrainedConfig, Conversations]:
    """Makes the config of a model with random weights, and its conversations.

    Args:
        settings: See `network.build_config`.
        processor: Folder or hub id of a processor; None: one is made of the next two.
        vocabulary: All words, with blanks between them.
        image_size: Side of what the model sees, in pixels.

    Raises:
        ValueError: Neither a vocabulary nor a processor is given, or both; no processor can be
            made for this type of model; or see `network.build_config`.
    """
    settings = plain_dict(settings)
    if (vocabulary is None) == (processor is None):
        raise ValueError(
            "config: give exactly one of model.init_args.vocabulary (all words that occur) and "
            ".processor (a folder or hub id)"
        )
    if processor is not None:
        loaded = load_processor(processor)
        tokenizer = loaded.tokenizer
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in BASIC_TOKENS}
        ids |= {"image_token_id": loaded.image_token_id, "vocab_size": len(tokenizer)}
        return build_config(settings, ids), Conversations(loaded)
    assert vocabulary is not None
    check_keys("config.model_type", [settings.get("model_type", "llava")], FAMILIES)
    family = FAMILIES[settings.get("model_type", "llava")]
    tokenizer = word_tokenizer(vocabulary, family)
    config = build_config(settings, token_ids(tokenizer, family))
    return config, Conversations(make_processor(config, tokenizer, image_size))


def word_tokenizer(vocabulary: str, family: Family) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of whole words, lower-cased, and punctuation.

    Args:
        vocabulary: The words, with blanks between them.
        family: Whose special tokens it gets.

    Raises:
        ValueError: There is no word.
    """
    words = list(dict.fromkeys(vocabulary.lower().split()))
    if not words:
        raise ValueError("vocabulary: it has no words; list all that occur, with blanks between")
    special = [*BASIC_TOKENS.values(), *family.special.values()]
    ids = {word: i for i, word in enumerate([*special, *(w for w in words if w not in special)])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, BASIC_TOKENS["unk"]))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokens = {f"{name}_token": token for name, token in BASIC_TOKENS.items()}
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend, padding_side="left", **tokens
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special.values())})
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerFast, family: Family) -> dict[str, int]:
    """Returns what a config has to know of a tokenizer of `word_tokenizer`."""
    special = {f"{name}_token_id": token for name, token in BASIC_TOKENS.items()} | family.special
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary[token] for name, token in special.items()}
    return {**ids, "vocab_size": len(tokenizer)}


def make_processor(config: Any, tokenizer: PreTrainedTokenizerFast, image_size: int) -> Any:
    """Makes the processor of a model with random weights.

    Pictures are resized to a square of `image_size` and never cut or split, but for LLaVA-NeXT.

    Args:
        config: The model's.
        tokenizer: Of `word_tokenizer`.
        image_size: Side of what the model sees, in pixels.
    """
    t: Any = transformers
    family = FAMILIES[config.model_type]
    template = CHAT_TEMPLATE.replace("IMAGE", family.image)
    vision = config.vision_config
    square = {"height": image_size, "width": image_size}
    if family is _LLAVA:
        strategy = config.vision_feature_select_strategy
        if config.model_type == "llava":
            make, images = t.LlavaProcessor, t.CLIPImageProcessor(size=square, do_center_crop=False)
        else:
            make = t.LlavaNextProcessor
            images = t.LlavaNextImageProcessor(
                size=square, crop_size=square, image_grid_pinpoints=config.image_grid_pinpoints
            )
        return make(
            images,
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=int(strategy == "default"),
            chat_template=template,
        )
    if family is _IDEFICS:
        side = {"longest_edge": image_size}
        images = t.Idefics3ImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
        length = (image_size // vision.patch_size // config.scale_factor) ** 2
        return t.Idefics3Processor(images, tokenizer, length, chat_template=template)
    area = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    grid = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    is_old = config.model_type == "qwen2_vl"
    processor_class = t.Qwen2VLProcessor if is_old else t.Qwen2_5_VLProcessor
    return processor_class(
        t.Qwen2VLImageProcessor(size=area, **grid),
        tokenizer,
        t.Qwen2VLVideoProcessor(size=area, **grid),
        chat_template=template,
    )


def load_processor(source: str) -> Any:
    """Loads the processor of a folder or hub repository.

    Raises:
        ValueError: There is none, or it is no processor of images and text.
    """
    try:
        processor = AutoProcessor.from_pretrained(source)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"processor: cannot load {source!r}: {reason}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"processor: {source!r} has no processor of images and text")
    return processor


def plain_dict(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copies nested settings as plain dicts, as jsonargparse may give other mappings."""
    return {
        name: plain_dict(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }
