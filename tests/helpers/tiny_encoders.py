"""Encoders of some ten thousand random parameters, saved as users save or download theirs."""

import json
from pathlib import Path

import open_clip
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

# Large weights: small ones would hide what a test looks for.
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
WIDTH |= {"num_attention_heads": 2, "initializer_range": 0.2}
SQUARE = {"height": 32, "width": 32}
TEXTS = [
    "a red square",
    "",
    "three small green triangles beside a large blue circle, seen from far above " * 3,
    "a cat",
    "the dog barks at a tree",
    "red",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
]


def pictures(count: int) -> list[Image.Image]:
    """Noise in several sizes and modes."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        shape = (40 + 7 * (index % 3), 36 + 11 * (index % 2), 4)
        values = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
        made.append(Image.fromarray(values).convert(["RGB", "RGBA", "L"][index % 3]))
    return made


def tokenizer(folder: Path, max_length: int, names: list[str]) -> int:
    """Saves a byte-level tokenizer that puts <s> and </s> around a text; returns its size."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<s>", "<image>", "<mask>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(TEXTS, trainer)
    # The largest id, as CLIP's: its text tower looks for it.
    learned.add_special_tokens(["</s>"])
    end = learned.token_to_id("</s>")
    learned.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=learned,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=max_length,
        model_input_names=names,
    ).save_pretrained(folder)
    return learned.get_vocab_size()


def save_clip(folder: Path) -> str:
    size = tokenizer(folder, 24, ["input_ids", "attention_mask"])
    torch.manual_seed(0)
    text = WIDTH | {"vocab_size": size, "max_position_embeddings": 24}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": size - 1}
    vision = WIDTH | {"hidden_size": 48, "image_size": 32, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(folder)
    return str(folder)


def save_siglip(folder: Path) -> str:
    size = tokenizer(folder, 24, ["input_ids"])
    torch.manual_seed(0)
    text = WIDTH | {"vocab_size": size, "max_position_embeddings": 24, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": size - 1}
    vision = WIDTH | {"image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size=SQUARE).save_pretrained(folder)
    return str(folder)


def save_siglip2(folder: Path) -> str:
    size = tokenizer(folder, 24, ["input_ids"])
    torch.manual_seed(0)
    text = WIDTH | {"vocab_size": size, "max_position_embeddings": 24, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": size - 1}
    vision = WIDTH | {"num_patches": 16, "patch_size": 8}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return str(folder)


def save_blip2(folder: Path) -> str:
    size = tokenizer(folder, 24, ["input_ids", "attention_mask"])
    torch.manual_seed(0)
    queries = Blip2QFormerConfig(
        **WIDTH,
        vocab_size=size,
        max_position_embeddings=24,
        encoder_hidden_size=32,
        cross_attention_frequency=1,
        use_qformer_text_input=True,
    )
    vision = Blip2VisionConfig(**WIDTH, image_size=32, patch_size=8)
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=queries.to_dict(),
        num_query_tokens=4,
        image_text_hidden_size=24,
        image_token_index=None,
    )
    network = Blip2ForImageTextRetrieval(config)
    torch.nn.init.normal_(network.query_tokens)
    network.save_pretrained(folder)
    BlipImageProcessor(size=SQUARE).save_pretrained(folder)
    return str(folder)


def save_dinov2(folder: Path) -> str:
    torch.manual_seed(0)
    settings = {k: v for k, v in WIDTH.items() if k != "intermediate_size"}
    Dinov2Model(Dinov2Config(**settings, image_size=32, patch_size=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(folder)
    return str(folder)


def save_timm(folder: Path) -> str:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=2
    )
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    network.pretrained_cfg = network.pretrained_cfg | {"input_size": [3, 32, 32]}
    save_for_hf(network, folder, model_args=arguments, safe_serialization=True)
    return str(folder)


def save_open_clip(folder: Path) -> str:
    folder.mkdir()
    layers = {"layers": 2, "width": 32}
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": layers | {"image_size": 32, "patch_size": 8, "head_width": 16},
            "text_cfg": layers | {"context_length": 24, "vocab_size": 49408, "heads": 2},
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return str(folder)


def save_bert(folder: Path) -> str:
    size = tokenizer(folder, 128, ["input_ids", "attention_mask"])
    torch.manual_seed(0)
    config = BertConfig(**WIDTH, vocab_size=size, max_position_embeddings=128)
    BertModel(config).save_pretrained(folder)
    return str(folder)
