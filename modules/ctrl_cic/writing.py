"""Writing captions: the weights of tokens, the decoder's prompts, and what it wrote as text.

Shapes: B sources, S tokens of a source, N tokens of a section, F width of image features.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .control import CAPTION, PromptControl, Recalibration
from .highlights import Phrase
from .predictor import RelevancePredictor
from .targets import prompt_ids
from .tokens import Source

if TYPE_CHECKING:
    from .module import CtrlCIC


def caption_weights(
    module: "CtrlCIC",
    batch: Mapping[str, Any],
    source: Source,
    images: Tensor,
    rows: Sequence[int],
    highlights: Sequence[Sequence[Phrase] | None],
    delta: float | None,
    references: Sequence[str] | None,
) -> Tensor | None:
    """Returns the weights of the tokens of each caption's source."""
    controller = module.controller
    if not isinstance(controller, Recalibration):
        return None
    repeated = source.rows(rows)
    if controller.mode == "oracle":
        if references is None:
            return controller.training_weights(repeated, controller.flat(repeated))
        relevance = module.relevance_of(batch, repeated, references)
        return controller.training_weights(repeated, relevance)
    values = (
        predicted_weights(module, source, images)
        if controller.needs_predictor
        else controller.flat(source)
    )
    phrases = [phrases or [] for phrases in highlights]
    chosen = [values[row] for row in rows]
    return controller.weights(repeated, chosen, phrases, module.contexts.ids, delta)


def predicted_weights(module: "CtrlCIC", source: Source, images: Tensor) -> list[Tensor]:
    """Returns the predictor's weights of section tokens, (N,) each; loads it at first use.

    Raises:
        ValueError: There is none, or it has other tokens.
    """
    if not module.loaded_predictor:
        if module.predictor_path is None:
            raise ValueError(
                "controller: captions by Recalibration need model.init_args.predictor, a "
                "checkpoint of RelevancePredictor (or mode: fixed, without one)"
            )
        loaded = RelevancePredictor.load_from_checkpoint(
            module.predictor_path, map_location="cpu", weights_only=True
        )
        if len(loaded.contexts) != len(module.contexts):
            raise ValueError(
                f"predictor: {module.predictor_path} has {len(loaded.contexts)} tokens, the "
                f"captioning model {len(module.contexts)}: train both with one tokenizer"
            )
        loaded.freeze()
        module.loaded_predictor = (loaded,)
    predictor = module.loaded_predictor[0].to(module.device)
    return predictor.predicted(source, images)


def decoder_prompts(
    module: "CtrlCIC", source: Source, highlights: Sequence[Sequence[Phrase] | None]
) -> dict[str, Tensor]:
    """Returns the decoder's prompts, padded on the left; captions without one begin freely."""
    phrases = [phrases or [] for phrases in highlights]
    words = module.controller.prompt_words(source, phrases)
    if words is None:
        return {}
    prompts = [
        [module.start_token, *([] if given is None else prompt_ids(module.contexts, row))]
        for given, row in zip(highlights, words, strict=True)
    ]
    length = max(map(len, prompts))
    ids = [[module.contexts.pad] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "decoder_input_ids": torch.tensor(ids, device=module.device),
        "decoder_attention_mask": torch.tensor(mask, device=module.device),
    }


def caption_text(module: "CtrlCIC", ids: list[int]) -> str:
    """Returns the caption of written tokens: what stands after the last `<CPT>`."""
    if isinstance(module.controller, PromptControl):
        marker = module.contexts.marker(CAPTION)
        if marker not in ids:
            return ""
        ids = ids[len(ids) - ids[::-1].index(marker) :]
    return module.contexts.text(ids)
