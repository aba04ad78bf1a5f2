"""Image and text encoders of several libraries behind one interface, as recipes choose them.

    encoder:
      class_path: TransformersEncoder
      init_args: {model: /models/clip-vit-base-patch32, batch_size: 64}

`build_encoder` makes one from such a description, in a worker process or on another machine.
"""

from .contrastive import ContrastiveEncoder
from .corpus import CorpusEncoder
from .encoder import Encoder, PairedEncoder, build_encoder
from .network import NetworkEncoder
from .open_clip_model import OpenClipEncoder
from .sentences import SentenceEncoder
from .timm_model import TimmEncoder
from .transformers_model import Blip2Encoder, TransformersEncoder

__all__ = [
    "Blip2Encoder",
    "ContrastiveEncoder",
    "CorpusEncoder",
    "Encoder",
    "NetworkEncoder",
    "OpenClipEncoder",
    "PairedEncoder",
    "SentenceEncoder",
    "TimmEncoder",
    "TransformersEncoder",
    "build_encoder",
]
