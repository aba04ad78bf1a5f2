"""Names of the corruptions of two point-cloud benchmarks, as their files carry them.

ModelNet40-C: Sun et al., "Benchmarking Robustness of 3D Point Cloud Recognition Against Common
Corruptions", 2022. PointCloud-C: Ren et al., "Benchmarking and Analyzing Point Cloud Classification
under Corruptions", ICML 2022.
"""

CLEAN = "clean"
SEVERITIES = (1, 2, 3, 4, 5)
MODELNET40_C: dict[str, tuple[str, ...]] = {
    "density": ("occlusion", "lidar", "density_inc", "density", "cutout"),
    "noise": ("uniform", "gaussian", "impulse", "upsampling", "background"),
    "transformation": ("rotation", "shear", "distortion", "distortion_rbf", "distortion_rbf_inv"),
}
NEEDS_MESH = frozenset({"occlusion", "lidar"})
POINTCLOUD_C: tuple[str, ...] = (
    "scale",
    "jitter",
    "rotate",
    "dropout_global",
    "dropout_local",
    "add_global",
    "add_local",
)
MODELNET40_C_NAMES: tuple[str, ...] = tuple(c for names in MODELNET40_C.values() for c in names)
