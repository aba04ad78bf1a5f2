"""Backbones for point clouds: PointNet, PointNet++, DGCNN and PCT as in the ModelNet40-C benchmark.

All map coordinates to one vector per cloud, `forward(pos_BN3, mask_BN=None) -> (x_BC, penalty)`,
with C = `out_channels`; the penalty is a scalar to add to the loss, 0 unless a backbone has one.
Every one takes `aggregation`, what pools the points (see `modules.aggregation`).
"""

from .classifier import PointCloudClassifier
from .dgcnn import DGCNN
from .pct import PCT
from .pointnet import PointNet
from .pointnet2 import STAGES, PointNet2, Scale, Stage

__all__ = [
    "DGCNN",
    "PCT",
    "STAGES",
    "PointCloudClassifier",
    "PointNet",
    "PointNet2",
    "Scale",
    "Stage",
]
