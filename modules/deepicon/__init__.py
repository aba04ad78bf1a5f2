"""DeepIcon: from the picture of an icon to an SVG of few, ordered, editable paths."""

from .decoders import HierarchicalDecoder
from .encoders import ClipIconEncoder, ConvIconEncoder, TimmIconEncoder
from .flat import FlatDecoder
from .module import DeepIconModule
from .probe import KeywordProbe
from .raster import RasterDecoder
from .representation import IconCodec, IconError, IconStyle, IconTensors, Paint
from .tracers import AutoTrace, Potrace, Tracer, TrainedTracer, VTracer
from .tracing import TracingModule

__all__ = [
    "AutoTrace",
    "ClipIconEncoder",
    "ConvIconEncoder",
    "DeepIconModule",
    "FlatDecoder",
    "HierarchicalDecoder",
    "IconCodec",
    "IconError",
    "IconStyle",
    "IconTensors",
    "KeywordProbe",
    "Paint",
    "Potrace",
    "RasterDecoder",
    "TimmIconEncoder",
    "Tracer",
    "TracingModule",
    "TrainedTracer",
    "VTracer",
]
