"""Chat models of a hundred thousand random parameters, saved as users save theirs."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large weights make a model that is sure of itself: ties would hide what a test looks for.
    "initializer_range": 0.3,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48}
VISION |= {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
TEMPLATE = """\
{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}{{ eos_token }}\
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
PARTS = """\
{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}"""


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer, learned.decoder = byte_level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(["is this a red square ? Answer: A B C D "] * 9, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=learned, **names)
    made.chat_template = TEMPLATE
    return made


def save_text_model(folder: Path, kind: str = "llama") -> str:
    words = tokenizer()
    torch.manual_seed(0)
    if kind == "gpt2":  # positions are learned: padding on the left would shift them
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
        config = GPT2Config(vocab_size=len(words), initializer_range=0.3, **sizes, **IDS)
        network = GPT2LMHeadModel(config)
    elif kind == "qwen2":
        network = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), **LLAMA, **IDS))
    else:
        network = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **LLAMA, **IDS))
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_image_model(folder: Path) -> str:
    words = tokenizer("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(vocab_size=len(words), **LLAMA, **IDS),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE.replace("{{ turn['content'] }}", PARTS),
    )
    processor.save_pretrained(folder)
    return str(folder)
