"""The files of a corrupted test set: layout, processes, going on, and what is never overwritten."""

import hashlib
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import trimesh
from tenfold.datamodules.corruptions import CorruptedClouds, shared_subset
from tenfold.datamodules.corruptions.files import write_suite
from tenfold.datamodules.point_clouds.shapes import ShapeSet

CELLS = list(product(("background", "distortion_rbf", "cutout"), (1, 4)))


def shapes(n: int = 70, meshes: tuple[Path, ...] | None = None) -> ShapeSet:
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (n, 200, 3)).astype(np.float32)
    labels = np.arange(n, dtype=np.int64) % 3
    names = tuple(f"shape_{k}" for k in range(n))
    return ShapeSet(points, labels, ("a", "b", "c"), names, meshes)


def write(out: Path, split: ShapeSet | None = None, cells=CELLS, **options):
    options = {"source": "test", "num_points": 128, "say": lambda line: None, **options}
    return write_suite(split or shapes(), out, cells, **options)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_layout_is_that_of_modelnet40_c(tmp_path):
    written = write(tmp_path / "out")
    assert written.num_clouds == 6 * 70
    assert len(written.made) == 8
    names = {f"data_{c}_{s}.npy" for c, s in CELLS} | {"data_original.npy", "label.npy"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"manifest.json"}
    labels = np.load(tmp_path / "out/label.npy")
    assert labels.dtype == np.int64
    assert (labels == shapes().labels[:, None]).all()
    original = np.load(tmp_path / "out/data_original.npy")
    assert (original == shapes().points[:, shared_subset(2021, "original", 0, 200, 128)]).all()
    for corruption, severity in CELLS:
        clouds = np.load(tmp_path / f"out/data_{corruption}_{severity}.npy")
        assert clouds.dtype == np.float32
        dataset = CorruptedClouds(
            shapes().points, shapes().labels, corruption, severity, num_points=128
        )
        for index in (0, 63, 64, 69):  # at both sides of the edges of chunks
            assert (clouds[index] == dataset[index]["pos"]).all()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["seed"] == 2021
    assert manifest["data_sha256"] == shapes().data_hash
    assert manifest["versions"]["numpy"] == np.__version__
    for name, entry in manifest["files"].items():
        array = np.load(tmp_path / "out" / name)
        assert entry["shape"] == list(array.shape)
        assert entry["sha256"] == hashes(tmp_path / "out")[name]


def test_two_processes_write_the_same_bytes_as_one(tmp_path):
    write(tmp_path / "one", jobs=1)
    write(tmp_path / "two", cells=CELLS[::-1], jobs=2)
    one, two = hashes(tmp_path / "one"), hashes(tmp_path / "two")
    del one["manifest.json"], two["manifest.json"]  # its files are in the order of the making
    assert one == two


def test_an_error_in_another_process_names_the_shape(tmp_path):
    split = shapes()
    split.points[65, 3] = np.nan
    with pytest.raises(ValueError, match=r"shape 65 \(shape_65\): 1 of 200 points are not finite"):
        write(tmp_path / "out", split, cells=CELLS[:1], jobs=2)
    assert not list((tmp_path / "out").glob("data_background*"))


def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    write(tmp_path / "whole")
    lines: list[str] = []

    def stop_at_the_third(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", say=stop_at_the_third)
    left = {p.name for p in (tmp_path / "out").glob("*.npy")}
    assert left == {"data_original.npy", "label.npy", *(line.split()[0] for line in lines)}
    seconds = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.npy")}
    again = write(tmp_path / "out")
    assert len(again.kept) == 3
    assert len(again.made) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in seconds.items())
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_damaged_and_missing_files_are_made_again_and_others_added(tmp_path):
    write(tmp_path, cells=CELLS[:3])
    before = hashes(tmp_path)
    damaged, missing = tmp_path / "data_background_1.npy", tmp_path / "label.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    missing.unlink()
    written = write(tmp_path, cells=CELLS[:4])
    assert set(written.made) == {damaged.name, missing.name, "data_distortion_rbf_4.npy"}
    after = hashes(tmp_path)
    del before["manifest.json"]
    assert before.items() <= after.items()
    assert json.loads((tmp_path / "manifest.json").read_text())["files"].keys() == {*after} - {
        "manifest.json"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 7}, "made with seed 2021, not 7: choose another --out, or pass --overwrite"),
        ({"num_points": 100}, "made with num_points 128, not 100"),
        ({"split": shapes(69)}, "made with data_sha256"),
    ],
)
def test_other_settings_are_refused_and_replace_everything_with_overwrite(
    tmp_path, options, message
):
    write(tmp_path, cells=CELLS[:3])
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match=message):
        write(tmp_path, cells=CELLS[:1], **options)
    assert hashes(tmp_path) == before
    write(tmp_path, cells=CELLS[:1], overwrite=True, **options)
    # Files of the earlier settings that were not asked for again are gone, not left beside.
    names = {"data_background_1.npy", "data_original.npy", "label.npy", "manifest.json"}
    assert hashes(tmp_path).keys() == names
    assert hashes(tmp_path)["data_background_1.npy"] != before["data_background_1.npy"]


def test_a_downloaded_benchmark_is_never_touched(tmp_path):
    np.save(tmp_path / "data_uniform_1.npy", np.zeros(3))
    before = hashes(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"data_uniform_1.npy and no manifest.json"):
            write(tmp_path, overwrite=overwrite)
    assert hashes(tmp_path) == before
    (tmp_path / "data_uniform_1.npy").unlink()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        write(tmp_path, overwrite=True)


def test_meshes_give_occlusion_and_lidar_in_the_order_of_the_shapes(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.ply")
        trimesh.creation.box((1, 1 + k, 2)).export(paths[-1])
    cells = [("occlusion", 2), ("lidar", 2), ("lidar", 3), ("uniform", 1)]
    split = shapes(5, tuple(paths))
    write(tmp_path / "out", split, cells)
    for corruption, severity in cells:
        clouds = np.load(tmp_path / f"out/data_{corruption}_{severity}.npy")
        assert clouds.shape == (5, 96 if corruption == "lidar" else 128, 3)
        dataset = CorruptedClouds(
            split.points, split.labels, corruption, severity, num_points=128, meshes=paths
        )
        assert all((clouds[k] == dataset[k]["pos"]).all() for k in range(5))
    paths[1].write_bytes(b"ply\n")
    with pytest.raises(ValueError, match=r"shape 1 \(.*1\.ply\): cannot be read as a mesh"):
        write(tmp_path / "again", split, cells)
    with pytest.raises(ValueError, match="occlusion requires meshes, and test has points only"):
        write(tmp_path / "more", shapes(), cells)
