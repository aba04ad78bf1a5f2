"""`tenfold corrupt`, from its options to its files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from tenfold.modules.corruption_names import MODELNET40_C_NAMES, NEEDS_MESH, POINTCLOUD_C
from tenfold.recipes.cli import main
from tenfold.recipes.corrupt import corrupt


@pytest.fixture
def shapes(tmp_path, monkeypatch) -> Path:
    """Twelve clouds of two classes in an .npz."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).uniform(-0.6, 0.6, (12, 300, 3)).astype(np.float32)
    np.savez(tmp_path / "shapes.npz", x=x, y=np.arange(12) % 2)
    return tmp_path / "shapes.npz"


def files(folder: Path) -> set[str]:
    return {path.stem.removeprefix("data_") for path in folder.glob("data_*.npy")}


def test_without_meshes_two_corruptions_are_left_out_and_said_so(shapes, tmp_path, capsys):
    out = tmp_path / "out"
    corrupt(str(shapes), out, severities=[2], num_points=128, jobs=1)
    assert files(out) == {f"{c}_2" for c in set(MODELNET40_C_NAMES) - NEEDS_MESH} | {"original"}
    printed = capsys.readouterr()
    for name in NEEDS_MESH:
        assert f"note: {name} requires meshes" in printed.err
    assert "data_background_2.npy" in printed.err
    assert "clouds/s" in printed.err
    assert f"{out}: 15 files written, 0 were there" in printed.out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"] == dict.fromkeys(["occlusion", "lidar"], "requires meshes")
    corrupt(str(shapes), out, severities=[2], num_points=128, jobs=1)
    assert f"{out}: 0 files written, 13 were there" in capsys.readouterr().out


def test_a_folder_of_meshes_gives_all_fifteen(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    for label, edge in (("cube", 1.0), ("plank", 0.2)):
        for k in range(2):
            path = tmp_path / "meshes" / label / "test" / f"{label}_{k}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            trimesh.creation.box((1, 1 + k, edge)).export(path)
            train = path.parents[1] / "train" / path.name
            train.parent.mkdir(exist_ok=True)
            train.write_bytes(path.read_bytes())
    out = tmp_path / "out"
    corrupt(str(tmp_path / "meshes"), out, severities=[1], num_points=128, jobs=1)
    assert files(out) == {f"{c}_1" for c in MODELNET40_C_NAMES} | {"original"}
    assert np.load(out / "data_occlusion_1.npy").shape == (4, 128, 3)
    assert np.load(out / "data_lidar_1.npy").shape == (4, 96, 3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["up"] == "z"
    assert manifest["left_out"] == {}
    # The plank, thin along z, is seen from above: its large face is most of what is seen.
    plank = np.load(out / "data_occlusion_1.npy")[np.load(out / "label.npy")[:, 0] == 1]
    assert (np.ptp(plank, axis=1)[:, 2] < 0.6).all()


def test_the_seven_of_pointcloud_c_by_one_word(shapes, tmp_path):
    out = tmp_path / "out"
    corrupt(str(shapes), out, ["pointcloud_c"], [1, 5], num_points=128, jobs=1)
    assert files(out) == {f"{c}_{s}" for c in POINTCLOUD_C for s in (1, 5)} | {"original"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": None}, "corrupt needs a folder to write: --out DIR"),
        ({"corruptions": ["gausian"]}, "unknown corruption 'gausian': there is gaussian"),
        ({"corruptions": ["lidar"]}, "lidar requires meshes, and .*shapes.npz has points only"),
        ({"severities": [0]}, "--severities must be of 1, 2, 3, 4, 5"),
        ({"severities": []}, "--severities must be of 1, 2, 3, 4, 5"),
        ({"jobs": 0}, "--jobs must be 1 or more"),
        ({"seed": -1}, "--seed must be 0 or more"),
        ({"num_points": 500}, "300 points, fewer than the 500 asked for"),
        ({"num_points": 10}, "num_points must be 64 or more"),
    ],
)
def test_bad_options_are_one_line(shapes, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(**{"input": str(shapes), "out": tmp_path / "out", "jobs": 1, **options})
    assert not (tmp_path / "out").exists()


def test_the_command_line_reads_several_names_and_reports_errors_on_one_line(
    shapes, tmp_path, capsys
):
    out = tmp_path / "out"
    common = ["corrupt", "--input", str(shapes), "--out", str(out), "--num_points", "128"]
    assert main([*common, "--corruptions", "shear", "scale", "--severities", "1", "5"]) == 0
    assert files(out) == {"shear_1", "shear_5", "scale_1", "scale_5", "original"}
    assert main([*common, "--corruptions", "shear", "--seed", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out} was made with seed 2021, not 1")


@pytest.mark.slow
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(tmp_path):
    x = np.random.default_rng(0).uniform(-0.6, 0.6, (150, 2048, 3)).astype(np.float32)
    np.savez(tmp_path / "shapes.npz", x=x, y=np.arange(150) % 2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tenfold.recipes.cli", "corrupt", "--jobs", "2"]
    command += ["--input", str(tmp_path / "shapes.npz"), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list(out.glob("data_[!o]*.npy"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert "Traceback" not in error
    written = json.loads((out / "manifest.json").read_text())["files"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert 2 < len(list(out.glob("*.npy"))) < 67
    for path in out.glob("*.npy"):
        assert list(np.load(path).shape) == written[path.name]["shape"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert len(list(out.glob("*.npy"))) == 67
