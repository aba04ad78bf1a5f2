"""Names of classes and texts around them, from packages that keep them; nothing is typed in here.

Those of `clip-benchmark`; which 200 classes ImageNet-A and -R have, from timm.
"""

import importlib.resources
import json
from functools import cache
from pathlib import Path
from typing import Any

DEFAULT_TEMPLATES = ("a photo of a {c}.",)


@cache
def class_names(key: str) -> list[str]:
    """Returns the names that `clip-benchmark` has for a data set.

    Raises:
        ValueError: The package is missing.
    """
    names: list[str] = _read("en_classnames.json")[key]
    return names


def templates(key: str | None) -> list[str]:
    """Returns the texts with `{c}` that `clip-benchmark` has for a data set, else a plain one.

    Raises:
        ValueError: The package is missing.
    """
    if key is None:
        return list(DEFAULT_TEMPLATES)
    found: list[str] = _read("en_zeroshot_classification_templates.json")[key]
    return found


@cache
def imagenet_names() -> dict[str, str]:
    """Returns the name of each class of ImageNet by its WordNet id, in the order of the labels.

    Raises:
        ValueError: A package is missing.
    """
    try:
        text = (importlib.resources.files("timm.data") / "_info/imagenet_synsets.txt").read_text()
    except ModuleNotFoundError as error:
        raise ValueError(
            "data: names of ImageNet's classes need timm: pip install 'tenfold[realsyn]'"
        ) from error
    return dict(zip(text.split(), class_names("imagenet1k"), strict=True))


@cache
def _read(name: str) -> Any:
    try:
        folder = importlib.resources.files("clip_benchmark")
    except ModuleNotFoundError as error:
        raise ValueError(
            "data: names of classes and templates need clip-benchmark: pip install "
            "'tenfold[realsyn]', or give templates"
        ) from error
    return json.loads(Path(str(folder / "datasets" / name)).read_text("utf-8"))
