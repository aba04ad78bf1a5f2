"""The corruptions of ModelNet40-C and PointCloud-C: one cloud, a dataset, or a folder of files."""

from .ray_casting import UpAxis, load_mesh
from .suite import (
    MESH_FREE,
    CorruptedClouds,
    corrupt,
    corruption_rng,
    resolve_corruptions,
    shared_subset,
)

__all__ = [
    "MESH_FREE",
    "CorruptedClouds",
    "UpAxis",
    "corrupt",
    "corruption_rng",
    "load_mesh",
    "resolve_corruptions",
    "shared_subset",
]
