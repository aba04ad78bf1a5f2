"""Encoders that this library has trained itself."""

from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor, nn

from ..image_transforms import evaluation_transform
from .network import FLOATS, Inputs, NetworkEncoder
from .weights import LOAD_ERRORS, load_error, sha256_of_checkpoint


class ContrastiveEncoder(NetworkEncoder):
    """The two towers of a `ClipPretraining` run.

    Images are resized and cut as in its evaluation: the shorter side, bicubic, then the middle.

    Args:
        model: A checkpoint of the run (`checkpoints/last.ckpt`), which tells how to build it.
        pooling: "projection": in the space that both towers share. "pooler": images alone, what
            their tower makes of its tokens before that.
        kwargs: See `NetworkEncoder`, but for `seed` and `checkpoint`.

    Raises:
        ValueError: See `NetworkEncoder`; or there is no such checkpoint, or one of another module.
    """

    supports_images = True

    def __init__(
        self,
        model: str,
        pooling: Literal["projection", "pooler"] = "projection",
        **kwargs: Any,
    ) -> None:
        for name in ("seed", "checkpoint"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: weights are those of model, a checkpoint")
        super().__init__(model, **kwargs)
        if pooling not in ("projection", "pooler"):
            raise ValueError(f"pooling: {pooling!r} is none of projection, pooler")
        self.pooling: Literal["projection", "pooler"] = pooling

    @property
    def supports_texts(self) -> bool:
        """Whether texts have a place in the same space."""
        return self.pooling == "projection"

    @property
    def identity(self) -> dict[str, Any]:
        """See `NetworkEncoder`."""
        if "_sha256" not in vars(self):
            self._sha256 = sha256_of_checkpoint(self.model)
        return {**super().identity, "model": f"sha256:{self._sha256}"}

    def _build(self) -> nn.Module:
        # Here, because its towers use this package.
        from ..realsyn.module import ClipPretraining

        if not Path(self.model).is_file():
            raise ValueError(f"model: no checkpoint {self.model!r}")
        try:
            network = ClipPretraining.load_from_checkpoint(
                self.model, map_location="cpu", weights_only=True
            )
        except (*LOAD_ERRORS, TypeError) as error:
            raise load_error(self.model, error) from error
        self._transform: Any = evaluation_transform(network.image_tower.image_size)
        converted: nn.Module = network.to(FLOATS[self.dtype])
        return converted

    def _image_input(self, image: Image.Image) -> Inputs:
        return {"image": self._transform(image)}

    def _text_input(self, text: str) -> Inputs:
        ids, mask = self._network.tokenizer.encode([text], self._network.text_length)
        return {"ids": ids[0], "mask": mask[0]}

    def _embed_images(self, inputs: Inputs) -> Tensor:
        pixels = self._network.pixels(inputs["image"])
        embeddings: Tensor = self._network.image_tower(pixels, project=self.pooling == "projection")
        return embeddings

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        embeddings: Tensor = self._network.text_tower(inputs["ids"], inputs["mask"])
        return embeddings
