"""Encoders that run a network in this process, in batches of which no row depends on another."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..files import sha256_of_folder
from .encoder import Encoder
from .weights import load_checkpoint, sha256_of_checkpoint

T = TypeVar("T")
Inputs = Mapping[str, Tensor]
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NetworkEncoder(Encoder):
    """What all networks share: loading at first use, batches, output, identity.

    An embedding depends on its image or text alone, to the last bit, not on the other items of a
    call or on how a data set is divided into calls. For that, every batch has `batch_size` rows -
    the last one is filled up -, texts are padded to lengths that depend on the text alone, and
    images are prepared one by one. The arithmetic must also give a row the same bits wherever in
    the batch it stands; at sizes that do not fit a processor's tiles it does not, so that only
    multiples of 16 are taken, and the first batch of each shape is tested. The same bits need the
    same kind of machine, the same libraries and the same number of threads.

    A call with one item costs as much as a full batch: take `batch_size: 1` for such calls.

    Nothing is downloaded.

    Args:
        model: A folder; some encoders also take the name of an architecture.
        seed: Draws random weights in place of the model's; needs no weights in the folder.
        checkpoint: A file or folder of our own (.ckpt, .safetensors, a sharded checkpoint) whose
            tensors replace all weights of the network.
        checkpoint_prefix: What the names of these tensors begin with there, as "network.".
        batch_size: Rows per batch: 1, or a multiple of 16.
        normalize: Whether to divide embeddings by their L2 norm, in float32.
        dtype: Of weights and arithmetic.
        output_dtype: Of the embeddings, "float32" or "float16".
        device: "auto" is this process's current GPU, else the CPU.

    Raises:
        ValueError: A value is out of range. On first use: the model cannot be loaded, or its rows
            depend on their place.
    """

    def __init__(
        self,
        model: str,
        *,
        seed: int | None = None,
        checkpoint: str | None = None,
        checkpoint_prefix: str = "",
        batch_size: int = 32,
        normalize: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        output_dtype: Literal["float32", "float16"] = "float32",
        device: str = "auto",
    ) -> None:
        if batch_size < 1 or (batch_size > 1 and batch_size % 16):
            raise ValueError(f"batch_size must be 1 or a multiple of 16, got {batch_size}")
        for name, given in (("dtype", dtype), ("output_dtype", output_dtype)):
            if given not in FLOATS:
                raise ValueError(f"{name}: {given!r} is none of {', '.join(FLOATS)}")
        if seed is not None and checkpoint is not None:
            raise ValueError("seed and checkpoint: give one, random weights or those of a file")
        self.model = model
        self.seed = seed
        self.checkpoint = checkpoint
        self.checkpoint_prefix = checkpoint_prefix
        self.batch_size = batch_size
        self.normalize = normalize
        self.dtype: Literal["float32", "bfloat16", "float16"] = dtype
        self.output_dtype: Literal["float32", "float16"] = output_dtype
        self.device = device

    @property
    def identity(self) -> dict[str, Any]:
        """See `Encoder`. Files are read once, at about 1 s per GB."""
        if "_identity" not in vars(self):
            settings = dict(sorted(self.__getstate__().items()))
            del settings["device"]
            if Path(self.model).is_dir():
                settings["model"] = f"sha256:{sha256_of_folder(Path(self.model))}"
            if self.checkpoint is not None:
                settings["checkpoint"] = f"sha256:{sha256_of_checkpoint(self.checkpoint)}"
            self._identity = {"encoder": type(self).__name__, **settings}
        return dict(self._identity)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Encoder`."""
        if not self.supports_images:
            return super().encode_images(images)
        if not len(images):
            return self.encode_images([Image.new("RGB", (32, 32))])[:0]
        return self._encode("images", images, self._rgb_input, self._embed_images)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder`."""
        if not self.supports_texts:
            return super().encode_texts(texts)
        if isinstance(texts, str):
            raise ValueError("texts: a single text; give a list of texts")
        if not len(texts):
            return self.encode_texts(["a"])[:0]
        return self._encode("texts", texts, self._checked_text_input, self._embed_texts)

    @abstractmethod
    def _build(self) -> nn.Module:
        """Makes the network, on the CPU, and what prepares its inputs.

        Weights are random where `_random`, else those of the model's files in `dtype`.
        """

    @property
    def _random(self) -> bool:
        """Whether the network is made without its model's weights."""
        return self.seed is not None or self.checkpoint is not None

    def _rgb_input(self, image: Image.Image) -> Inputs:
        if not isinstance(image, Image.Image):
            raise TypeError(f"a {type(image).__name__} is no PIL image: open it by PIL.Image.open")
        return self._image_input(image.convert("RGB"))

    def _checked_text_input(self, text: str) -> Inputs:
        if not isinstance(text, str):
            raise TypeError(f"a {type(text).__name__} is no text")
        return self._text_input(text)

    def _image_input(self, image: Image.Image) -> Inputs:
        """One RGB image as the network's inputs, without a batch dimension."""
        raise NotImplementedError

    def _text_input(self, text: str) -> Inputs:
        """One text as the network's inputs, without a batch dimension."""
        raise NotImplementedError

    def _embed_images(self, inputs: Inputs) -> Tensor:
        """(B, D), not normalised, from a batch of inputs on the device."""
        raise NotImplementedError

    def _embed_texts(self, inputs: Inputs) -> Tensor:
        """(B, D), not normalised, from a batch of inputs on the device."""
        raise NotImplementedError

    def _load(self) -> None:
        """Makes network and processors, once."""
        if "_network" in vars(self):
            return
        with torch.random.fork_rng(devices=[]):  # the global generator stays as it was
            if self._random:
                torch.manual_seed(self.seed or 0)
            network = self._build()
        if self.checkpoint is not None:
            load_checkpoint(network, self.checkpoint, self.checkpoint_prefix)
        device = self.device
        if device == "auto":
            cuda = torch.cuda.is_available()
            device = f"cuda:{torch.cuda.current_device()}" if cuda else "cpu"
        self._device = torch.device(device)
        self._tested: set[Any] = set()
        network = network.to(FLOATS[self.dtype]) if self._random else network
        self._network: Any = network.to(self._device).eval().requires_grad_(False)

    def _encode(
        self,
        kind: str,
        items: Sequence[T],
        prepare: Callable[[T], Inputs],
        embed: Callable[[Inputs], Tensor],
    ) -> Tensor:
        """Collects inputs of one shape until there is a batch of them; at the end, fills up."""
        self._load()
        waiting: dict[Any, list[tuple[int, Inputs]]] = {}
        done: list[tuple[list[int], Tensor]] = []
        for index in range(len(items)):
            try:
                inputs = prepare(items[index])
            except (OSError, TypeError, ValueError) as error:
                said = " ".join(str(error).split())
                raise ValueError(f"{kind}[{index}]: cannot be prepared: {said}") from error
            shape = (kind, *((name, tensor.shape) for name, tensor in inputs.items()))
            batch = waiting.setdefault(shape, [])
            batch.append((index, inputs))
            if len(batch) == self.batch_size:
                done.append(self._run(shape, waiting.pop(shape), embed))
        done += [self._run(shape, batch, embed) for shape, batch in waiting.items()]
        embeddings_ND = done[0][1].new_empty(len(items), done[0][1].shape[1])
        for indices, rows in done:
            embeddings_ND[indices] = rows
        return embeddings_ND

    @torch.inference_mode()
    def _run(
        self, shape: Any, batch: list[tuple[int, Inputs]], embed: Callable[[Inputs], Tensor]
    ) -> tuple[list[int], Tensor]:
        """Returns the items' places and embeddings (n, D) on the CPU."""
        indices = [index for index, _ in batch]
        filled = [inputs for _, inputs in batch]
        filled += filled[:1] * (self.batch_size - len(batch))
        inputs = {
            name: torch.stack([one[name] for one in filled]).to(self._device) for name in filled[0]
        }
        with torch.autocast(self._device.type, enabled=False):  # whatever the Trainer's precision
            rows_BD = embed(inputs)
            if shape not in self._tested:
                self._test_rows(inputs, rows_BD, embed)
                self._tested.add(shape)
        rows_BD = rows_BD.float()
        if self.normalize:
            rows_BD = normalize(rows_BD, dim=-1)
        rows = rows_BD.to(FLOATS[self.output_dtype]).cpu()[: len(batch)]
        for index, finite in zip(indices, rows.isfinite().all(-1).tolist(), strict=True):
            if not finite:
                raise ValueError(
                    f"{shape[0]}[{index}]: the embedding is not finite with dtype {self.dtype} and "
                    f"output_dtype {self.output_dtype}: take float32, or check the weights"
                )
        return indices, rows

    def _test_rows(
        self, inputs: Inputs, rows_BD: Tensor, embed: Callable[[Inputs], Tensor]
    ) -> None:
        """Refuses a batch size at which a row's place shows in its bits.

        The last row's item is put into all rows, which must then agree after every layer: of what a
        layer rounds differently, little reaches the embedding, and for another item it may be more.
        """
        places_that_differ: list[Tensor] = []

        def compare(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim and len(output) == self.batch_size:
                places_that_differ.append(_differ(output, output[-1:]))

        hooks = [layer.register_forward_hook(compare) for layer in self._network.modules()]
        try:
            same = {
                name: tensor[-1:].repeat_interleave(self.batch_size, 0)
                for name, tensor in inputs.items()
            }
            same_BD = embed(same)
        finally:
            for hook in hooks:
                hook.remove()
        places_that_differ.append(_differ(same_BD, rows_BD[-1:]))
        if torch.stack(places_that_differ).any():
            raise ValueError(
                f"batch_size: with {self.batch_size} rows an embedding depends on its place in the "
                f"batch on {self._device}: take 1, another multiple of 16, or (on a CPU) another "
                "number of threads"
            )


def check_preprocessing(given: Mapping[str, Any] | None, known: Mapping[str, Any]) -> None:
    """Refuses settings of the preprocessing that it does not have: libraries ignore them.

    Raises:
        ValueError: A key of `given` is not in `known`.
    """
    for key in given or {}:
        if key not in known:
            raise ValueError(
                f"preprocessing: unknown {key!r}; known are {', '.join(sorted(known))}"
            )


def _differ(rows: Tensor, row: Tensor) -> Tensor:
    """Whether any of `rows` differs from `row`; what is not a number is equal to itself."""
    return ((rows != row) & ~(rows.isnan() & row.isnan())).any()
