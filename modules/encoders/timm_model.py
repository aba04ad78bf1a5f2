"""Image encoders of timm."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from .network import FLOATS, Inputs, NetworkEncoder, check_preprocessing
from .weights import LOAD_ERRORS, load_error, missing_package


class TimmEncoder(NetworkEncoder):
    """An image model of timm, without its classifier.

    Args:
        model: A folder as timm's `save_for_hf` writes, or an architecture such as
            "vit_small_patch16_224", which needs `seed` or `checkpoint`.
        pooling: timm's `global_pool`, such as "avg" or "token", of the same final tokens; None:
            the model's own.
        model_args: More arguments of the architecture, such as `{img_size: 96}`; `num_classes`
            keeps the last layer, as a projection to that width.
        preprocessing: Replaces settings of the model's own: `input_size`, `interpolation`, `mean`,
            `std`, `crop_pct`, `crop_mode`.
        kwargs: See `NetworkEncoder`.

    Raises:
        ValueError: See `NetworkEncoder`; or timm is not installed.
    """

    supports_images = True

    def __init__(
        self,
        model: str,
        pooling: str | None = None,
        model_args: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if "global_pool" in (model_args or {}):
            # It would change the layers, and timm would leave out weights that no longer fit.
            raise ValueError("model_args: give pooling in place of global_pool")
        if pooling is not None and "num_classes" in (model_args or {}):
            raise ValueError("pooling and model_args.num_classes: give one")
        self.pooling = pooling
        self.model_args = model_args
        self.preprocessing = preprocessing

    def _build(self) -> nn.Module:
        try:
            import timm
            from timm.data.config import resolve_model_data_config
            from timm.data.transforms_factory import create_transform
        except ImportError as error:
            raise missing_package("timm", "encoders") from error
        local = Path(self.model).is_dir()
        if not local and not self._random:
            raise ValueError(
                f"model: no folder {self.model!r}; nothing is downloaded here: give a folder, or "
                "seed or checkpoint for an architecture of timm"
            )
        settings = {"num_classes": 0, **(self.model_args or {})}
        name = f"local-dir:{self.model}" if local else self.model
        try:
            network: Any = timm.create_model(name, pretrained=not self._random, **settings)
            if self.pooling is not None:
                network.reset_classifier(0, self.pooling)
        except (*LOAD_ERRORS, TypeError, AssertionError) as error:
            raise load_error(self.model, error) from error
        trained = network.pretrained_cfg.get("num_classes")
        if not self._random and settings["num_classes"] not in (0, trained):
            raise ValueError(
                f"model_args: num_classes {settings['num_classes']}, but {self.model} was trained "
                f"with {trained}: the layer would be random"
            )
        resolved = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
        if "img_size" in settings:
            size = settings["img_size"]
            resolved["input_size"] = (3, size, size) if isinstance(size, int) else (3, *size)
        check_preprocessing(self.preprocessing, resolved)
        try:
            self._transform: Any = create_transform(**{**resolved, **(self.preprocessing or {})})
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"preprocessing: {' '.join(str(error).split())}") from error
        converted: nn.Module = network.to(FLOATS[self.dtype])
        return converted

    def _image_input(self, image: Image.Image) -> Inputs:
        return {"image": self._transform(image)}

    def _embed_images(self, inputs: Inputs) -> Tensor:
        embeddings: Tensor = self._network(inputs["image"].to(FLOATS[self.dtype]))
        if embeddings.ndim != 2:
            raise ValueError(
                f"pooling: {self.pooling!r} gives {tuple(embeddings.shape[1:])} per image, no "
                "vector: take another, such as avg"
            )
        return embeddings
