"""Models that paint a picture from a text, wherever they run."""

import base64
import binascii
import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import torch
from PIL import Image, UnidentifiedImageError

from ...chat.openai_server import check_server
from ...descriptions import Rebuildable

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ImageRequest(NamedTuple):
    """A picture that is wanted.

    Attributes:
        prompt: What it shows.
        size: Its side in pixels; it is a square.
        seed: Of the random numbers; the two pictures of a pair share one, which helps their
            subjects to look alike.
    """

    prompt: str
    size: int
    seed: int


class ImageBackend(Rebuildable, ABC):
    """Paints pictures. Recipes choose the class."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides a picture beside the request, as plain JSON without secrets."""

    @abstractmethod
    def paint(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[int, Image.Image]]:
        """Yields (place of the request, RGB picture), in the order in which pictures are ready.

        Raises:
            ValueError: A picture could not be painted; those that were have been yielded before.
        """


class DiffusersImageBackend(ImageBackend):
    """A text-to-image model of diffusers, in this process.

    A picture depends on its request alone, not on the others of its batch, as far as the arithmetic
    of the device allows.

    Args:
        model: Folder or hub id of a pipeline that `AutoPipelineForText2Image` loads.
        num_inference_steps: Steps of the sampler.
        guidance_scale: How closely it keeps to the prompt; None: the pipeline's own.
        negative_prompt: What pictures shall not show; empty: none.
        batch_size: Pictures at a time.
        dtype: Of weights and arithmetic.
        device: "auto" is this process's current GPU, else the CPU.

    Raises:
        ValueError: A number below 1; on first use: the pipeline cannot be loaded.
        ImportError: diffusers is not installed.
    """

    def __init__(
        self,
        model: str,
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        batch_size: int = 4,
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        device: str = "auto",
    ) -> None:
        if importlib.util.find_spec("diffusers") is None:
            raise ImportError(
                "painting needs the package diffusers: pip install 'tenfold[diffusion]'"
            )
        limits = {"num_inference_steps": num_inference_steps, "batch_size": batch_size}
        for name, number in limits.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        self.model = model
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.batch_size = batch_size
        self.dtype: Literal["float32", "bfloat16", "float16"] = dtype
        self.device = device

    @property
    def identity(self) -> dict[str, Any]:
        """See `ImageBackend`."""
        settings = dict(self.__getstate__())
        for name in ("device", "batch_size"):
            del settings[name]
        return {"backend": "diffusers", **settings}

    def paint(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[int, Image.Image]]:
        """See `ImageBackend`."""
        pipeline = self._load()
        for start in range(0, len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            settings: dict[str, Any] = {"num_inference_steps": self.num_inference_steps}
            if self.guidance_scale is not None:
                settings["guidance_scale"] = self.guidance_scale
            if self.negative_prompt:
                settings["negative_prompt"] = [self.negative_prompt] * len(part)
            # On the CPU, so that a seed means the same on every device.
            generators = [torch.Generator().manual_seed(request.seed) for request in part]
            sizes = {request.size for request in part}
            if len(sizes) > 1:
                raise ValueError(f"pictures of one call have one size, got {sorted(sizes)}")
            (size,) = sizes
            prompts = [request.prompt for request in part]
            made = pipeline(prompts, generator=generators, height=size, width=size, **settings)
            for place, image in enumerate(made.images):
                yield start + place, image.convert("RGB")

    def _load(self) -> Any:
        if "_pipeline" not in vars(self):
            import diffusers

            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            loader: Any = diffusers.AutoPipelineForText2Image  # its methods have no types
            try:
                pipeline = loader.from_pretrained(self.model, torch_dtype=FLOATS[self.dtype])
            except (OSError, ValueError) as error:
                said = " ".join(str(error).split())[:300]
                raise ValueError(f"image model {self.model} cannot be loaded: {said}") from error
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(device)
        return self._pipeline


class OpenAIImageBackend(ImageBackend):
    """A server that speaks OpenAI's image generation: `POST <base_url>/images/generations`.

    Connection errors and the statuses 408, 409, 429 and 5xx are tried again with growing pauses.

    Args:
        base_url: Where the server is, such as http://localhost:8000/v1. No secrets in it.
        model: The model's name on this server.
        version: Tells models of the same name apart.
        api_key_env: Environment variable with the key, which is stored nowhere.
        max_concurrency: Requests in flight.
        timeout: Seconds that one try may take.
        max_retries: Further tries of a request.
        extra_body: Anything else that this server takes in a request. `{seed}` as a value stands
            for the request's seed.

    Raises:
        ValueError: `base_url` holds a password or a query, or a number is out of range.
        ImportError: openai is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        version: str = "",
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 4,
        timeout: float = 600.0,
        max_retries: int = 6,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        check_server(base_url, "image servers")
        if max_concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise ValueError(
                f"max_concurrency {max_concurrency}, timeout {timeout}, max_retries {max_retries}: "
                "expected 1 or more, more than 0, 0 or more"
            )
        self.base_url, self.model, self.version = base_url, model, version
        self.api_key_env, self.max_concurrency = api_key_env, max_concurrency
        self.timeout, self.max_retries = timeout, max_retries
        self.extra_body = extra_body or {}

    @property
    def identity(self) -> dict[str, Any]:
        """See `ImageBackend`. The address is not part of it: servers move."""
        settings = {"model": self.model, "version": self.version, "extra_body": self.extra_body}
        return {"backend": "openai images", **settings}

    def paint(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[int, Image.Image]]:
        """See `ImageBackend`."""
        import openai

        key = os.environ.get(self.api_key_env, "")
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
        failures: list[str] = []
        with client, ThreadPoolExecutor(self.max_concurrency) as pool:
            places = {
                pool.submit(self._ask, client, request): place
                for place, request in enumerate(requests)
            }
            try:
                for answer in as_completed(places):
                    try:
                        yield places[answer], answer.result()
                    except (openai.OpenAIError, ValueError) as error:
                        said = " ".join(str(error).split())[:300]
                        failures.append(said.replace(key, "***") if key else said)
            finally:
                pool.shutdown(cancel_futures=True)
        if failures:
            raise ValueError(
                f"{len(failures)} of {len(requests)} pictures were not painted by "
                f"{urlsplit(self.base_url).netloc}; the last: {failures[-1]}"
            )

    def _ask(self, client: Any, request: ImageRequest) -> Image.Image:
        extra = {
            name: request.seed if value == "{seed}" else value
            for name, value in self.extra_body.items()
        }
        answer = client.images.generate(
            model=self.model,
            prompt=request.prompt,
            size=f"{request.size}x{request.size}",
            response_format="b64_json",
            n=1,
            extra_body=extra or None,
        )
        encoded = answer.data[0].b64_json if answer.data else None
        if not encoded:
            raise ValueError("the server sent no picture (b64_json) in its answer")
        try:
            return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        except (binascii.Error, UnidentifiedImageError, OSError) as error:
            raise ValueError(f"what the server sent is no picture: {error}") from error
