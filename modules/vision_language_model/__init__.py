"""Vision-language models: trained, fine-tuned, asked."""

from .conv_vision import ConvVisionConfig, ConvVisionModel, register_conv_vision
from .conversation import Conversations
from .module import VisionLanguageModel
from .network import image_features, with_features
from .phases import Phase
from .trained import load_trained

__all__ = [
    "ConvVisionConfig",
    "ConvVisionModel",
    "Conversations",
    "Phase",
    "VisionLanguageModel",
    "image_features",
    "load_trained",
    "register_conv_vision",
    "with_features",
]
