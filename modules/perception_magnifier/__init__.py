"""Perception Magnifier: decoding of vision-language models that enlarges what is looked at."""

from .warp import RandomAxisWarp

__all__ = ["RandomAxisWarp"]
