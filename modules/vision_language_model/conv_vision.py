"""A vision tower of a few convolutions, for models that are trained from nothing in minutes.

A vision transformer has to learn that a digit is the same digit wherever it lies in a patch; a
convolution does not. transformers knows it as `model_type: conv_vision`, so that it stands in the
config of any model whose vision tower is a config of its own (LLaVA), and is saved and loaded with
it. To load such a model without `VisionLanguageModel`, call `register_conv_vision()` first.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ConvVisionConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Settings of `ConvVisionModel`.

    Attributes:
        hidden_size: C, width of the features.
        image_size: Side of the pictures in pixels, a multiple of `patch_size`.
        patch_size: Pixels per feature: a power of two, 2 or more; each halving is a convolution.
        num_channels: Of the pictures.
        num_final_layers: Convolutions after the last halving; each lets a feature see two patches
            farther.
    """

    model_type = "conv_vision"
    base_config_key = "vision_config"

    hidden_size: int = 64
    image_size: int = 48
    patch_size: int = 8
    num_channels: int = 3
    num_final_layers: int = 1


class ConvVisionModel(PreTrainedModel):
    """Halves the picture by convolution and pooling until one feature is left per patch.

    Learned positions are added at the end. There is no class token: LLaVA needs
    `vision_feature_select_strategy: full` and `vision_feature_layer: -1`.

    Shapes:
        pixel_values: (N, 3, H, W); returns features (N, H * W / patch_size ** 2, C).

    Raises:
        ValueError: The patch size is no power of two, or does not divide the image size; or there
            is no final layer.
    """

    config_class = ConvVisionConfig
    base_model_prefix = "conv_vision"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: ConvVisionConfig) -> None:
        super().__init__(config)
        patch, width = config.patch_size, config.hidden_size
        num_blocks = patch.bit_length() - 1
        if patch < 2 or 2**num_blocks != patch or config.image_size % patch:
            raise ValueError(
                f"config.vision_config: patch_size {patch} must be a power of two, 2 or more, that "
                f"divides image_size {config.image_size}"
            )
        if config.num_final_layers < 1:
            raise ValueError(
                f"config.vision_config: num_final_layers {config.num_final_layers}, expected 1 or "
                "more"
            )
        widths = [max(8, width >> (num_blocks - 1 - i)) for i in range(num_blocks)]
        widths[-1] = width
        layers: list[nn.Module] = []
        in_channels = config.num_channels
        for out_channels in widths:
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            in_channels = out_channels
        for _ in range(config.num_final_layers - 1):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1))
        num_patches = (config.image_size // patch) ** 2
        self.position_embedding = nn.Embedding(num_patches, width)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        """Returns the features as `last_hidden_state` and as the only one of `hidden_states`."""
        features_NPC = self.layers(pixel_values).flatten(2).mT + self.position_embedding.weight
        return BaseModelOutputWithPooling(
            last_hidden_state=features_NPC, hidden_states=(features_NPC,)
        )

    def no_weight_decay(self) -> set[str]:
        """Names what weight decay spares."""
        return {"position_embedding.weight"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation: transformers' normal(0, 0.02) is for widths of thousands.
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.2)


def register_conv_vision() -> None:
    """Tells transformers of `conv_vision`; more than once does no harm."""
    AutoConfig.register(ConvVisionConfig.model_type, ConvVisionConfig, exist_ok=True)
    AutoModel.register(ConvVisionConfig, ConvVisionModel, exist_ok=True)
