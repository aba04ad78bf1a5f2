"""Decoders that change the image once, by attention, and then answer greedily.

Shapes: B questions; images (3, H, W), their maps (h, w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision_language_model.conversation import Conversations
from .attention_maps import MapSettings, attention_maps
from .perception_map import upsample
from .plain import PlainSession
from .prompt import Question, SeenImage
from .strategy import Asked, DecodingStrategy, Session

RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)  # sides of ViCrop's windows, in sides of what is encoded
DESCRIBE = "Write a general description of the image."


class API(DecodingStrategy):
    """Attention prompting on images (arXiv 2409.17143): what is not looked at becomes black.

    The map is the model's own; the paper's other one, of CLIP, is not here.

    Args:
        maps: How attention becomes a map. None: of one layer, 5 / 8 of the way (20 of 32), without
            refinement.
    """

    needs_attention = True

    def __init__(self, maps: MapSettings | None = None) -> None:
        self.maps = maps

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        images = asked.originals("API")
        settings = self.maps
        if settings is None:
            num_layers = asked.network.config.get_text_config().num_hidden_layers
            layer = max(1, round(num_layers * 20 / 32))
            settings = MapSettings(start_layer=layer, single_layer=True, max_iterations=0)
        heat = attention_maps(asked, asked.questions, settings)
        shown = [
            [
                image * upsample(settings.enhanced(part), (image.shape[1], image.shape[2]))
                for image, part in zip(some, parts, strict=True)
            ]
            for some, parts in zip(images, heat, strict=True)
        ]
        seen = asked.see(shown, range(len(images)))
        pairs = zip(asked.questions, seen, strict=True)
        return PlainSession(asked, [question.with_images(of) for question, of in pairs])


class ViCrop(DecodingStrategy):
    """ViCrop with relative attention (arXiv 2502.17422): asks about the image and a crop of it.

    The crop is where the question draws attention that a general prompt does not. Of windows of
    several sizes it is the one that stands out most from the windows beside it.

    Args:
        layer: Whose attention counts, from 1. None: 15 / 32 of the way (the released code's 14
            counts from 0).
        general_prompt: Attention to the image in general.
    """

    needs_attention = True

    def __init__(self, layer: int | None = None, general_prompt: str = DESCRIBE) -> None:
        self.layer, self.general_prompt = layer, general_prompt

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        images = asked.originals("ViCrop")
        num_layers = asked.network.config.get_text_config().num_hidden_layers
        layer = self.layer or max(1, round(num_layers * 15 / 32))
        settings = MapSettings(
            start_layer=layer, single_layer=True, head_reduction="mean", max_iterations=0
        )
        conversations = Conversations(asked.processor)
        prompts = [[self.general_prompt]] * len(images)
        inputs, _ = conversations.encode(images, prompts, None, asked.input_ids.device)
        general = [
            Question(ids[kept.bool()], question.images)
            for ids, kept, question in zip(
                inputs["input_ids"], inputs["attention_mask"], asked.questions, strict=True
            )
        ]
        specific, unspecific = (
            attention_maps(asked, questions, settings) for questions in (asked.questions, general)
        )
        side = getattr(asked.network.config.vision_config, "image_size", None)
        crops = [
            [
                crop(image, part / base.clamp(min=1e-12), side if isinstance(side, int) else 336)
                for image, part, base in zip(some, *parts, strict=True)
            ]
            for some, *parts in zip(images, specific, unspecific, strict=True)
        ]
        seen = asked.see(crops, range(len(images)))
        special = set(asked.processor.tokenizer.all_special_ids) - {
            asked.processor.tokenizer.bos_token_id,
            asked.processor.tokenizer.eos_token_id,
            asked.processor.tokenizer.pad_token_id,
        }
        return PlainSession(
            asked,
            [
                with_more_images(question, more, asked.image_token, special)
                for question, more in zip(asked.questions, seen, strict=True)
            ],
        )


def crop(image: Tensor, map_hw: Tensor, side: int) -> Tensor:
    """Cuts out the window that stands out most.

    Args:
        image: (3, H, W).
        map_hw: Attention to each cell.
        side: Of the smallest window, in pixels; windows are no larger than the image.
    """
    height, width = image.shape[1:]
    rows, columns = map_hw.shape
    best, found = -torch.inf, (0, 0, rows, columns)
    for ratio in RATIOS:
        h = min(rows, max(1, round(ratio * side * rows / height)))
        w = min(columns, max(1, round(ratio * side * columns / width)))
        means = F.avg_pool2d(map_hw[None, None], (h, w), stride=1)[0, 0]
        y, x = divmod(int(means.argmax()), means.shape[1])
        beside = [
            means[y + dy, x + dx]
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
            if 0 <= y + dy < means.shape[0] and 0 <= x + dx < means.shape[1]
        ]
        excess = float(means[y, x] - torch.stack(beside).mean()) if beside else 0.0
        if excess > best:
            best, found = excess, (y, x, h, w)
    y, x, h, w = found
    top, bottom = round(y * height / rows), round((y + h) * height / rows)
    left, right = round(x * width / columns), round((x + w) * width / columns)
    return image[:, top:bottom, left:right]


def with_more_images(
    question: Question, more: list[SeenImage], image_token: int, special: set[int]
) -> Question:
    """Asks about further images, each after the image that it belongs to.

    Args:
        question: About as many images.
        more: The further images.
        image_token: Id of the tokens that stand for features.
        special: Tokens that belong to an image where they stand beside these.
    """
    ids = question.ids.tolist()
    places = [at for at, token in enumerate(ids) if token == image_token]
    pieces: list[int] = []
    images: list[SeenImage] = []
    done = first = 0
    for own, other in zip(question.images, more, strict=True):
        run = places[first : first + len(own.features)]
        first += len(run)
        start, end = run[0], run[-1] + 1
        while start > done and ids[start - 1] in special and ids[start - 1] != image_token:
            start -= 1
        while end < len(ids) and ids[end] in special and ids[end] != image_token:
            end += 1
        before, after = ids[start : run[0]], ids[run[-1] + 1 : end]
        pieces += [*ids[done:end], *before, *[image_token] * len(other.features), *after]
        images += [own, other]
        done = end
    return Question(question.ids.new_tensor(pieces + ids[done:]), tuple(images))
