"""DeepIcon: from the picture of an icon to an SVG of few, ordered, editable paths."""

from .representation import IconCodec, IconRejectedError, IconStyle, IconTensors, Paint

__all__ = ["IconCodec", "IconRejectedError", "IconStyle", "IconTensors", "Paint"]
