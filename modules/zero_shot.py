"""Classification by the names of the classes alone, with any pair of image and text encoders.

Shapes: B images, C classes, D width of the space that images and texts share.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def class_embeddings(
    encode_text: Callable[[Sequence[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
) -> Tensor:
    """Returns one direction per class, (C, D) of length 1.

    Each name is put into each template; what these texts become is divided by its length, averaged,
    and divided by its length again, as CLIP does.

    Args:
        encode_text: Embeds texts, (B, D).
        class_names: C names.
        templates: With `{c}` in place of the name, such as "a photo of a {c}.".
        batch_size: Texts at a time.

    Raises:
        ValueError: There is no template, or one without `{c}`.
    """
    if not templates:
        raise ValueError("templates: give at least one, such as 'a photo of a {c}.'")
    for template in templates:
        if "{c}" not in template:
            raise ValueError(f"templates: {template!r} has no {{c}} in place of the class's name")
    # No `format`: names may have braces.
    texts = [template.replace("{c}", name) for name in class_names for template in templates]
    parts = [encode_text(texts[k : k + batch_size]) for k in range(0, len(texts), batch_size)]
    of_texts = F.normalize(torch.cat(parts).float(), dim=-1)
    of_classes = of_texts.reshape(len(class_names), len(templates), -1).mean(dim=1)
    return F.normalize(of_classes, dim=-1)


def class_logits(image_BD: Tensor, class_CD: Tensor, integer_logits: bool = False) -> Tensor:
    """Returns 100 times the cosines, (B, C) float32.

    Args:
        image_BD: Embeddings of images, of any length.
        class_CD: From `class_embeddings`.
        integer_logits: Cuts off all decimals, so that many classes tie: what a public evaluation of
            the authors' earlier work does, to compare with its numbers alone.
    """
    logits = 100 * F.normalize(image_BD.float(), dim=-1) @ class_CD.T
    return logits.long().float() if integer_logits else logits
