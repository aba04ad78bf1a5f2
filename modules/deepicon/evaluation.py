"""What every way from pictures to paths is measured by, and what is drawn of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..metrics.vector import IconMetrics, compare_icons
from ..svg import Document
from .representation import IconCodec, IconTensors, style_of


def true_icons(batch: Mapping[str, Any], codec: IconCodec) -> list[Document]:
    """Returns the icons of a batch as documents."""
    icons = IconTensors(*(batch[key].cpu() for key in IconTensors._fields)).icons()
    styles = [style_of(numbers) for numbers in batch["style"]]
    return [codec.decode(icon, style) for icon, style in zip(icons, styles, strict=True)]


def compare(
    metric: IconMetrics,
    row: str,
    names: Sequence[str],
    predicted: Sequence[Document],
    true: Sequence[Document],
) -> list[dict[str, Any]]:
    """Adds icons to a metric; returns a record for each."""
    compared = [compare_icons(*pair, metric.size) for pair in zip(predicted, true, strict=True)]
    metric.update(names, compared, metric.similarities(predicted, true))
    return [
        {
            "id": f"{row}/{name}",
            "row": row,
            "group": name,
            "f1": one.f1,
            "count_error": one.count_error,
            "mse": one.mse,
            "ink_iou": one.ink_iou,
            "redundant": one.num_redundant,
        }
        for name, one in zip(names, compared, strict=True)
    ]


def examples(
    number: int,
    image_B3SS: Tensor,
    names: Sequence[str],
    predicted: Sequence[Document],
    true: Sequence[Document],
) -> list[dict[str, Any]]:
    """Returns so many icons for a contact sheet."""
    grey = image_B3SS[:number].float().mean(dim=1).cpu().tolist()
    rows = zip(grey, names, predicted, true, strict=False)
    return [
        {"image": image, "title": name, "predicted": one, "true": other}
        for image, name, one, other in rows
    ]
