"""Tiny vision-language models of every family."""

from lightning.pytorch import seed_everything
from tenfold.modules.vision_language_model import VisionLanguageModel

VOCABULARY = "what is the red blue digit ? a in image yes no top left right describe . 3 5 7"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
IDEFICS = {"vision_config": VISION, "text_config": TEXT, "scale_factor": 2}
CONFIGS = {
    "conv": {
        "model_type": "llava",
        "vision_config": {
            "model_type": "conv_vision",
            "hidden_size": 24,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_config": TEXT,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    },
    "llava": {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": TEXT,
    },
    "llava_next": {
        "model_type": "llava_next",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": TEXT,
        "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
    },
    "idefics3": {"model_type": "idefics3", **IDEFICS},
    "smolvlm": {"model_type": "smolvlm", **IDEFICS},
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 8,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        "text_config": {**TEXT, "rope_parameters": ROPE},
    },
}


def build(config="conv", **settings) -> VisionLanguageModel:
    """A network from seed 1, with its dense head."""
    seed_everything(1, verbose=False)
    settings = {"patch_classes": [4, 10], **settings}
    if "pretrained" not in settings:
        settings |= {"config": CONFIGS[config], "image_size": 32}
        settings = {"vocabulary": VOCABULARY, **settings}
    module = VisionLanguageModel(**settings)
    module.configure_model()
    return module
