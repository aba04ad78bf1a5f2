"""MuCR (arXiv 2408.08105): which effect belongs to which cause, and which phrase names the link.

`SiameseMatcher` is trained on pairs of pictures, `MuCRModule` asks any chat model, and
`construction` makes such pairs of captions.
"""

from .composite import CompositeImage
from .evaluation import MuCRModule
from .explanations import WordJudge
from .image_encoder import SmallConvNet
from .matcher import SiameseMatcher

__all__ = ["CompositeImage", "MuCRModule", "SiameseMatcher", "SmallConvNet", "WordJudge"]
