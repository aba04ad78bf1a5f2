"""Checkpoints on disk, in every format that training leaves them in, as byte ranges in files.

Opening one reads headers and no tensor: each tensor is then a `StoredTensor`, of which any part can
be read. `open_checkpoint` recognises the format; the writers take tensors block by block.
"""

from .detect import Format, find_format, open_checkpoint
from .lightning import write_lightning
from .safetensors import (
    ShardedWriting,
    copy_companions,
    write_safetensors,
    write_safetensors_folder,
    writing_order,
)
from .stored import Checkpoint, Piece, StoredTensor, TensorSpec, fingerprint

__all__ = [
    "Checkpoint",
    "Format",
    "Piece",
    "ShardedWriting",
    "StoredTensor",
    "TensorSpec",
    "copy_companions",
    "find_format",
    "fingerprint",
    "open_checkpoint",
    "write_lightning",
    "write_safetensors",
    "write_safetensors_folder",
    "writing_order",
]
