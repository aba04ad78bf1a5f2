"""CLIP and SigLIP trained on images with several texts each (RealSyn, arXiv 2502.12513)."""

from .losses import ContrastiveLoss
from .module import ClipPretraining

__all__ = ["ClipPretraining", "ContrastiveLoss"]
