"""DeepIcon: from the picture of an icon to an SVG of few, ordered, editable paths."""

from .decoders import HierarchicalDecoder
from .encoders import ClipIconEncoder, ConvIconEncoder, TimmIconEncoder
from .flat import FlatDecoder
from .module import DeepIconModule
from .representation import IconCodec, IconError, IconStyle, IconTensors, Paint

__all__ = [
    "ClipIconEncoder",
    "ConvIconEncoder",
    "DeepIconModule",
    "FlatDecoder",
    "HierarchicalDecoder",
    "IconCodec",
    "IconError",
    "IconStyle",
    "IconTensors",
    "Paint",
    "TimmIconEncoder",
]
