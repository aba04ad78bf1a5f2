"""What a model is asked, apart from the model: tokens, places for images, and their features.

Shapes: B questions, L sequence length, F image features of a question, D width of the language
model; images (3, H, W) in [0, 1].
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..vision_language_model.network import features_of_images

# What image processors give for each image besides pixels.
PER_IMAGE = ("image_grid_thw", "image_sizes")


@dataclass(frozen=True)
class SeenImage:
    """An image as the language model gets it.

    Args:
        features: (F, D).
        about: What else the processor says of it, by name: `image_grid_thw` (3,), `image_sizes`.
    """

    features: Tensor
    about: dict[str, Tensor]


@dataclass(frozen=True)
class Question:
    """One question with its images.

    Args:
        ids: Tokens of the prompt, (L,) int64; as many image tokens as the images have features.
        images: In the order of their places.
    """

    ids: Tensor
    images: tuple[SeenImage, ...] = ()

    def with_images(self, images: Sequence[SeenImage]) -> "Question":
        """The same question about images of the same numbers of features."""
        return replace(self, images=tuple(images))

    def without_images(self, image_token: int, instead: Sequence[int] = ()) -> "Question":
        """The question alone.

        Args:
            image_token: The id of image tokens.
            instead: Tokens in the place of each image.
        """
        is_image = self.ids == image_token
        starts = is_image & ~torch.cat([is_image[:1] & False, is_image[:-1]])
        pieces = []
        for token, is_first, is_part in zip(self.ids, starts, is_image, strict=True):
            if is_first:
                pieces += list(instead)
            if not is_part:
                pieces.append(int(token))
        return Question(self.ids.new_tensor(pieces))

    def with_words(self, image_token: int, words: Sequence[int]) -> "Question":
        """The question with tokens before its text, after the last image."""
        places = (self.ids == image_token).nonzero()
        at = int(places[-1]) + 1 if len(places) else 0
        more = self.ids.new_tensor(list(words))
        return replace(self, ids=torch.cat([self.ids[:at], more, self.ids[at:]]))


@dataclass(frozen=True)
class Padded:
    """Questions as one batch for a forward pass, padded on the left.

    Args:
        embeds: (B, L, D), embeddings of tokens and images.
        mask: (B, L) int64, 1 where there is a token.
        positions: int64, (B, L) or, for models that place images in a grid, (3, B, L).
        is_image: (B, L) bool, which tokens are those of images.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    is_image: Tensor


def pad(network: PreTrainedModel, questions: Sequence[Question], length: int = 0) -> Padded:
    """Makes a batch of questions.

    Positions are the model's own, of the sequence in which nothing is hidden.

    Args:
        network: The model.
        questions: At least one.
        length: Pads at least to this.

    Raises:
        ValueError: The images of a question have more or fewer features than it has places.
    """
    device = questions[0].ids.device
    length = max(length, *(len(question.ids) for question in questions))
    ids_BL = torch.zeros(len(questions), length, dtype=torch.int64, device=device)
    mask_BL = torch.zeros_like(ids_BL)
    for row, question in enumerate(questions):
        ids_BL[row, length - len(question.ids) :] = question.ids
        mask_BL[row, length - len(question.ids) :] = 1
    image_BL = (ids_BL == network.config.image_token_id) & mask_BL.bool()
    embeds_BLD = network.get_input_embeddings()(ids_BL)
    for question, count in zip(questions, image_BL.sum(dim=1).tolist(), strict=True):
        given = sum(len(image.features) for image in question.images)
        if given != count:
            raise ValueError(
                f"a question has places for {count} image features, its images have {given}: is an "
                "image missing?"
            )
    images = [image for question in questions for image in question.images]
    if images:
        features_FD = torch.cat([image.features for image in images]).to(embeds_BLD.dtype)
        embeds_BLD = embeds_BLD.masked_scatter(image_BL[..., None], features_FD)
    about = {
        name: torch.stack([image.about[name] for image in images])
        for name in PER_IMAGE
        if images and name in images[0].about
    }
    positions = _positions(network, ids_BL, mask_BL, image_BL, about)
    return Padded(embeds_BLD, mask_BL, positions, image_BL)


def _positions(
    network: PreTrainedModel,
    ids_BL: Tensor,
    mask_BL: Tensor,
    image_BL: Tensor,
    about: dict[str, Tensor],
) -> Tensor:
    derive = getattr(network.base_model, "get_rope_index", None)
    if derive is None:
        return (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    known = inspect.signature(derive).parameters
    given = {"input_ids": ids_BL, "attention_mask": mask_BL, "mm_token_type_ids": image_BL.int()}
    given |= about
    positions, _ = derive(**{name: value for name, value in given.items() if name in known})
    found: Tensor = positions
    return found


def see(
    network: PreTrainedModel,
    processor: Any,
    images: Sequence[Tensor],
    alter: Callable[[Tensor, int], Tensor] | None = None,
) -> list[SeenImage]:
    """Encodes images, all through the same resizing of float tensors.

    Args:
        network: The model.
        processor: Its processor.
        images: (3, H, W) float in [0, 1].
        alter: Called with the pixels of each image as the vision tower gets them, normalised and
            of whatever shape, and its place; returns others.

    Raises:
        ValueError: An image is smaller than a patch.
    """
    patch = getattr(network.config.vision_config, "patch_size", 1)
    patch = patch if isinstance(patch, int) else max(patch)
    for image in images:
        if min(image.shape[1:]) < patch:
            height, width = image.shape[1:]
            raise ValueError(
                f"an image of {width}x{height} pixels is smaller than a patch of the encoder, "
                f"{patch}x{patch}: leave it out (the DataModule's min_image_side) or enlarge it"
            )
    encoded = processor.image_processor(
        images=[[image.float()] for image in images], return_tensors="pt", do_rescale=False
    )
    inputs = {name: value.to(network.device) for name, value in encoded.items()}
    if alter is not None:
        pixels = inputs["pixel_values"]
        sizes = [1] * len(images)
        if len(pixels) != len(images):  # patches one after the other, Qwen-VL
            sizes = inputs["image_grid_thw"].prod(dim=-1).tolist()
        parts = [alter(part, place) for place, part in enumerate(torch.split(pixels, sizes))]
        inputs["pixel_values"] = torch.cat(parts)
    inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
    return seen_images(features_of_images(network, inputs), inputs, len(images))


def seen_images(
    features: Sequence[Tensor], inputs: dict[str, Any], num_images: int
) -> list[SeenImage]:
    """Puts together features of images and what a processor said of them.

    Args:
        features: Parts (F, D): of images, or of conversations whose images have as many each.
        inputs: What the processor returned.
        num_images: How many there are.

    Raises:
        ValueError: The features cannot be dealt to so many images.
    """
    if len(features) != num_images:
        total = sum(map(len, features))
        if not num_images or total % num_images:
            raise ValueError(
                f"{total} image features in {len(features)} parts are not those of {num_images} "
                "images: give generate(..., images=[[picture], ...]) for each question, and let "
                "the processor cut no tiles (do_image_splitting or crop_to_patches: false)"
            )
        features = torch.split(torch.cat([*features]), total // num_images)
    return [
        SeenImage(part, {name: inputs[name][i] for name in PER_IMAGE if name in inputs})
        for i, part in enumerate(features)
    ]
