"""Icons with their pictures: of packages and folders, generated ones, DeepSVG's tensors."""

from .generated import GeneratedIcons
from .module import GeneratedIconDataModule, IconDataModule
from .sources import IconSource

__all__ = [
    "GeneratedIconDataModule",
    "GeneratedIcons",
    "IconDataModule",
    "IconSource",
]
