"""Decoding of vision-language models without training: Perception Magnifier and its rivals."""

from .attention_maps import MapSettings
from .beam import BeamSearch
from .contrastive import ICD, M3ID, PAI, SID, VCD, VDD, Contrastive
from .image_edits import API, ViCrop
from .magnifier import PerceptionMagnifier
from .opera import OPERA
from .plain import APCOnly, Greedy, Sample
from .strategy import Asked, Decoded, DecodingStrategy, Session
from .warp import RandomAxisWarp

__all__ = [
    "API",
    "ICD",
    "M3ID",
    "OPERA",
    "PAI",
    "SID",
    "VCD",
    "VDD",
    "APCOnly",
    "Asked",
    "BeamSearch",
    "Contrastive",
    "Decoded",
    "DecodingStrategy",
    "Greedy",
    "MapSettings",
    "PerceptionMagnifier",
    "RandomAxisWarp",
    "Sample",
    "Session",
    "ViCrop",
]
