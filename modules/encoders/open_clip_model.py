"""Encoders of open_clip."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from .network import FLOATS, Inputs, NetworkEncoder, check_preprocessing
from .weights import LOAD_ERRORS, load_error, missing_package

_PRECISIONS = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}


class OpenClipEncoder(NetworkEncoder):
    """A two-tower model of open_clip; embeddings are in the space that both towers share.

    Pooling and the length at which texts are cut are part of an open_clip configuration.

    Args:
        model: A folder with `open_clip_config.json` and weights, or an architecture such as
            "ViT-B-32", which needs `seed` or `checkpoint`.
        preprocessing: Replaces settings of the model's own: `size`, `mean`, `std`,
            `interpolation`, `resize_mode`, `fill_color`.
        kwargs: See `NetworkEncoder`.

    Raises:
        ValueError: See `NetworkEncoder`; or open_clip is not installed.
    """

    supports_images = True
    supports_texts = True

    def __init__(
        self,
        model: str,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.preprocessing = preprocessing

    def _build(self) -> nn.Module:
        try:
            import open_clip
            from open_clip.transform import PreprocessCfg, image_transform_v2
        except ImportError as error:
            raise missing_package("open_clip_torch", "encoders") from error
        local = Path(self.model).is_dir()
        if not local and not self._random:
            raise ValueError(
                f"model: no folder {self.model!r}; nothing is downloaded here: give a folder, or "
                "seed or checkpoint for an architecture of open_clip"
            )
        name = f"local-dir:{self.model}" if local else self.model
        try:
            network: Any = open_clip.create_model(
                name,
                load_weights=not self._random,
                require_pretrained=not self._random,
                pretrained_text=False,
                precision="fp32" if self._random else _PRECISIONS[self.dtype],
            )
            self._tokenizer: Any = open_clip.get_tokenizer(name)
        except LOAD_ERRORS as error:
            raise load_error(self.model, error) from error
        settings = PreprocessCfg(**network.visual.preprocess_cfg)
        check_preprocessing(self.preprocessing, asdict(settings))
        replaced = PreprocessCfg(**{**asdict(settings), **(self.preprocessing or {})})
        self._transform: Any = image_transform_v2(replaced, is_train=False)
        built: nn.Module = network
        return built

    def _image_input(self, image: Image.Image) -> Inputs:
        return {"image": self._transform(image)}

    def _text_input(self, text: str) -> Inputs:
        return {"text": self._tokenizer([text])[0]}

    def _embed_images(self, inputs: Inputs) -> Tensor:
        embeddings: Tensor = self._network.encode_image(inputs["image"].to(FLOATS[self.dtype]))
        return embeddings

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        embeddings: Tensor = self._network.encode_text(inputs["text"])
        return embeddings
