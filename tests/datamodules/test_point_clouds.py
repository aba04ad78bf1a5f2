"""Point-cloud data sets: every format, the embedded furniture, what is refused or left out."""

import logging
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from tenfold.datamodules.point_clouds import convert_furniture, load_split
from tenfold.datamodules.point_clouds.furniture import (
    LICENSES,
    decode_clouds,
    encode_clouds,
    furniture_sha256,
)
from tenfold.datamodules.point_clouds.furniture_classes import class_of
from tenfold.datamodules.point_clouds.meshes import sample_mesh
from tenfold.datamodules.point_clouds.shapes import stratified_split, unit_box, unit_sphere

TETRAHEDRON = "4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def clouds(num: int = 6, num_points: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (num, num_points, 3)).astype(np.float32)


def write_h5(path: Path, points: np.ndarray, labels: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points, labels


def write_modelnet(folder: Path, points: np.ndarray, labels: Any = (2, 0, 1, 1, 2, 0)) -> Path:
    """ModelNet40's HDF5 layout with the second file before the first in the list."""
    folder.mkdir(exist_ok=True)
    labels = np.array(labels, dtype=np.uint8)[:, None]
    write_h5(folder / "ply_data_train0.h5", points[4:], labels[4:])
    write_h5(folder / "ply_data_train1.h5", points[:4], labels[:4])
    write_h5(folder / "ply_data_test0.h5", points[:2], labels[:2])
    prefix = "data/modelnet40_ply_hdf5_2048"
    (folder / "train_files.txt").write_text(
        f"{prefix}/ply_data_train1.h5\n{prefix}/ply_data_train0.h5\n"
    )
    (folder / "test_files.txt").write_text(f"{prefix}/ply_data_test0.h5\n")
    (folder / "shape_names.txt").write_text("bed\nchair\ntable\n")
    return folder


def write_meshes(folder: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    for name in ("bed", "chair"):
        for part in parts:
            (folder / name / part).mkdir(parents=True)
            for k in range(2):
                (folder / name / part / f"{name}_{k}.off").write_text(f"OFF\n{TETRAHEDRON}")
    return folder


# Readers


def test_modelnet_hdf5_files_are_read_in_the_order_of_the_list(tmp_path: Path) -> None:
    points = clouds()
    shapes = load_split(write_modelnet(tmp_path / "modelnet", points), "train")
    assert np.array_equal(shapes.points, points)
    assert shapes.points.dtype == np.float32
    assert shapes.labels.tolist() == [2, 0, 1, 1, 2, 0]
    assert shapes.labels.dtype == np.int64
    assert shapes.class_names == ("bed", "chair", "table")
    assert shapes.names[4] == "ply_data_train0.h5:0"
    assert shapes.up == "y"
    assert len(load_split(tmp_path / "modelnet", "all")) == 8


def test_scanobjectnn_variants_are_told_apart(tmp_path: Path) -> None:
    points = clouds(3)
    for variant, label in (("", 0), ("_augmentedrot_scale75", 14)):
        for part in ("training", "test"):
            path = tmp_path / f"{part}_objectdataset{variant}.h5"
            write_h5(path, points, np.full(3, label))
    assert load_split(tmp_path, "test").labels.tolist() == [0, 0, 0]
    hard = load_split(tmp_path, "train", variant="_augmentedrot_scale75")
    assert hard.class_names[hard.labels[0]] == "toilet"
    with pytest.raises(ValueError, match=r"no test_objectdataset_x\.h5 .* see `variant`"):
        load_split(tmp_path, "test", variant="_x")


@pytest.mark.parametrize("header", ["OFF\n4", "OFF4", "OFF 4", "OFF\r\n4"])
def test_off_headers_of_modelnet_are_read_glued_or_not(header: str, tmp_path: Path) -> None:
    path = tmp_path / "shape.off"
    path.write_bytes((header + TETRAHEDRON[1:]).encode())
    points = sample_mesh(path, 4000, seed=0)
    assert np.allclose(points.mean(axis=0), 0, atol=1e-6)
    assert np.isclose(np.linalg.norm(points, axis=1).max(), 1)
    # Of the four faces the slanted one has sqrt(3) / (3 + sqrt(3)) of the area.
    corners = sample_mesh(path, 1 << 14, seed=1)
    normal = np.ones(3) / np.sqrt(3)
    on_slant = (corners @ normal) > (corners @ normal).max() - 1e-4
    assert abs(on_slant.mean() - 3**0.5 / (3 + 3**0.5)) < 0.02


def test_a_tree_of_off_meshes_gives_labels_by_alphabet_and_its_own_splits(tmp_path: Path) -> None:
    root = write_meshes(tmp_path / "ModelNet10")
    shapes = load_split(root, "train", num_points=64, cache_dir=str(tmp_path / "cache"))
    assert shapes.points.shape == (4, 64, 3)
    assert shapes.labels.tolist() == [0, 0, 1, 1]
    assert shapes.names[3] == "chair/train/chair_1.off"
    assert shapes.meshes is not None
    assert shapes.meshes[3] == root / "chair" / "train" / "chair_1.off"
    assert shapes.up == "z"
    # Equal meshes under different names have samples of their own.
    assert not np.array_equal(shapes.points[0], shapes.points[1])


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "glb"])
def test_any_folder_of_meshes_by_class_is_divided_in_a_fixed_way(
    suffix: str, tmp_path: Path
) -> None:
    box = trimesh.creation.box((1, 2, 3))
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(5):
            box.export(tmp_path / "set" / name / f"{k}.{suffix}")
    options = {"num_points": 32, "cache_dir": str(tmp_path / "cache")}
    parts = {s: load_split(tmp_path / "set", s, **options) for s in ("train", "test", "all")}
    assert [len(parts[s]) for s in ("train", "test", "all")] == [6, 4, 10]
    assert {*parts["train"].names} | {*parts["test"].names} == {*parts["all"].names}
    assert Counter(parts["test"].labels.tolist()) == {0: 2, 1: 2}
    assert parts["all"].up == "y"


def test_mesh_samples_do_not_depend_on_the_other_meshes(tmp_path: Path) -> None:
    root = write_meshes(tmp_path / "set")
    options = {"num_points": 16, "cache_dir": str(tmp_path / "cache")}
    first = load_split(root, "train", seed=3, **options)
    (root / "bed" / "train" / "aaa.off").write_text(f"OFF\n{TETRAHEDRON}")
    assert np.array_equal(load_split(root, "train", seed=3, **options).points[1:], first.points)
    assert not np.array_equal(load_split(root, "train", seed=4, **options).points[1:], first.points)


@pytest.mark.slow
def test_mesh_samples_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    root = write_meshes(tmp_path / "set")
    one, two = (
        load_split(root, "train", num_points=16, cache_dir=str(tmp_path / f"{n}"), num_workers=n)
        for n in (0, 2)
    )
    assert np.array_equal(one.points, two.points)


def test_sampled_meshes_are_read_from_the_cache_and_made_again_if_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_meshes(tmp_path / "set")
    options = {"num_points": 16, "cache_dir": str(tmp_path / "cache")}
    first = load_split(root, "test", **options)
    (path,) = (tmp_path / "cache" / "point_clouds").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(trimesh, "load", lambda *args, **kwargs: pytest.fail("sampled again"))
        assert np.array_equal(load_split(root, "test", **options).points, first.points)
    path.write_bytes(path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_split(root, "test", **options).points, first.points)
    assert "damaged" in caplog.text


def test_an_npz_is_divided_by_its_own_column_or_per_class(tmp_path: Path) -> None:
    points, labels = clouds(20), np.repeat([0, 1], 10)
    np.savez(tmp_path / "plain.npz", x=points, y=labels)
    assert [len(load_split(tmp_path / "plain.npz", s)) for s in ("train", "test")] == [14, 6]
    is_test = np.arange(20) % 4 == 0
    np.savez(tmp_path / "own.npz", x=points, y=labels, test=is_test, c=["no", "yes"])
    shapes = load_split(tmp_path / "own.npz", "test")
    assert np.array_equal(shapes.points, points[is_test])
    assert shapes.class_names == ("no", "yes")


# What is wrong


def test_what_lies_at_a_path_is_found_out_or_told_to_be_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data at '.*/nothing' \(expected a file"):
        load_split(tmp_path / "nothing", "train")
    (tmp_path / "empty" / "readme").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'.*empty' is no known data set \(expected"):
        load_split(tmp_path / "empty", "train")
    with pytest.raises(ValueError, match="split must be train, test or all, got 'val'"):
        load_split("furniture", "val")  # type: ignore[arg-type]


def test_a_file_of_the_list_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_modelnet(tmp_path / "modelnet", clouds())
    (folder / "ply_data_train1.h5").unlink()
    with pytest.raises(ValueError, match=r"lacks ply_data_train1\.h5, which train_files\.txt"):
        load_split(folder, "train")
    (folder / "ply_data_train1.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"cannot read .*ply_data_train1\.h5"):
        load_split(folder, "train")


def test_wrong_ranks_lengths_and_labels_are_refused(tmp_path: Path) -> None:
    points = clouds()
    folder = write_modelnet(tmp_path / "a", points, labels=(2, 0, 3, 1, 2, 0))
    with pytest.raises(ValueError, match=r"label of ply_data_train1\.h5:2 is 3, expected 0 to 2"):
        load_split(folder, "train")
    write_h5(folder / "ply_data_test0.h5", points[:, :, :2], np.zeros(6, dtype=int))
    with pytest.raises(ValueError, match=r"ply_data_test0\.h5: .*\(n, P, 3\), found \(6, 32, 2\)"):
        load_split(folder, "test")
    for labels, message in ((np.zeros(5, int), "6 clouds in x, but 5"), (np.zeros(6), "integers")):
        np.savez(tmp_path / "bad.npz", x=points, y=labels)
        with pytest.raises(ValueError, match=message):
            load_split(tmp_path / "bad.npz", "all")
    np.savez(tmp_path / "bad.npz", x=points)
    with pytest.raises(ValueError, match=r"expected an \.npz with x \(n, P, 3\) and y \(n,\)"):
        load_split(tmp_path / "bad.npz", "all")


def test_a_missing_class_folder_is_named(tmp_path: Path) -> None:
    root = write_meshes(tmp_path / "set")
    for path in (root / "chair" / "test").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no mesh in '.*/chair/test' \(expected \.off, \.obj"):
        load_split(root, "test", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cloud_that_is_not_finite_is_left_out_or_refused(value: float, tmp_path: Path) -> None:
    points = clouds()
    points[3, 7, 1] = value
    folder = write_modelnet(tmp_path / "modelnet", points)
    shapes = load_split(folder, "train")
    assert np.array_equal(shapes.points, points[[0, 1, 2, 4, 5]])
    assert shapes.labels.tolist() == [2, 0, 1, 2, 0]
    assert [re.sub(".*train1", "train1", line) for line in shapes.skipped] == [
        "train1.h5:3: points are not finite"
    ]
    with pytest.raises(ValueError, match=r"ply_data_train1\.h5:3: points are not finite"):
        load_split(folder, "train", strict=True)


BAD_MESHES = {
    "no faces": ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "points without faces"),
    "no area": ("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "no face with an area"),
    "nothing": ("", "cannot be read as a mesh"),
    "nan": ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 nan 0\n3 0 1 2\n", "vertices not finite"),
}


@pytest.mark.parametrize("kind", BAD_MESHES)
def test_an_empty_mesh_is_left_out_and_named_or_refused(kind: str, tmp_path: Path) -> None:
    text, message = BAD_MESHES[kind]
    root = write_meshes(tmp_path / "set")
    (root / "bed" / "train" / "bed_0.off").write_text(text)
    options = {"num_points": 16, "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # made, then from the cache
        shapes = load_split(root, "train", **options)
        assert len(shapes) == 3
        assert len(shapes.skipped) == 1
        assert message in shapes.skipped[0]
        assert "bed_0.off" in shapes.skipped[0]
    with pytest.raises(ValueError, match=message):
        load_split(root, "train", strict=True, **options)


# Splits and scales


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
def test_a_split_keeps_groups_whole_and_takes_some_of_each_class(
    shapes: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels = np.array([label for label, _ in shapes])
    groups = np.array([10 * label + group for label, group in shapes])
    chosen = stratified_split(labels, groups, fraction, seed)
    assert np.array_equal(chosen, stratified_split(labels, groups, fraction, seed))
    assert not {*groups[chosen]} & {*groups[~chosen]}
    for label in {*labels}:
        mine = labels == label
        sizes = np.unique(groups[mine], return_counts=True)[1]
        target = max(1, round(fraction * mine.sum()))
        num_chosen = chosen[mine].sum()
        assert (num_chosen > 0) == (len(sizes) > 1)
        assert num_chosen <= max(target, sizes.min())
        assert num_chosen < mine.sum() or target == mine.sum()
        if (sizes == 1).all() and len(sizes) > 1:
            assert num_chosen == target


def test_the_scales_are_those_of_the_benchmarks() -> None:
    points = clouds(3) * [[[1, 2, 5]]] + 7
    for k, scaled in enumerate(unit_sphere(points)):
        assert np.allclose(scaled.mean(axis=0), 0, atol=1e-12)
        assert np.isclose(np.linalg.norm(scaled, axis=1).max(), 1)
        edges = np.ptp(unit_box(points)[k], axis=0)
        assert np.isclose(edges.max(), 2)
        assert np.allclose(edges / edges.max(), np.ptp(points[k], axis=0) / np.ptp(points[k][:, 2]))
        assert np.allclose(unit_box(points)[k].max(axis=0), edges / 2)


# The embedded set


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 21), st.integers(1, 40), st.integers(0, 99))
def test_coding_a_set_of_points_costs_at_most_half_a_step_of_the_grid(
    num_bits: int, num_points: int, seed: int
) -> None:
    points = clouds(2, num_points, seed)
    decoded = decode_clouds(encode_clouds(points, num_bits), num_points, num_bits)
    step = 2 / (2**num_bits - 1)
    grid = np.rint((points.astype(np.float64) + 1) / step).astype(np.int64)
    found = np.rint((decoded.astype(np.float64) + 1) / step).astype(np.int64)
    for k in range(2):
        assert sorted(map(tuple, grid[k])) == sorted(map(tuple, found[k]))


def test_the_furniture_set_is_the_one_that_was_published() -> None:
    assert furniture_sha256() == "db062a09fa4d7202f1d66b286b27741e0b9702200778b519e79a66dc0545f979"
    shapes = load_split("furniture", "all")
    counts = {shapes.class_names[k]: n for k, n in Counter(shapes.labels.tolist()).items()}
    assert counts == {
        "bed": 16,
        "cabinet": 34,
        "chair": 51,
        "door": 17,
        "lamp": 32,
        "person": 29,
        "plant": 39,
        "plug": 32,
        "sofa": 35,
        "table": 48,
        "vehicle": 29,
        "vessel": 32,
        "window": 17,
    }
    assert shapes.points.shape == (411, 2048, 3)
    assert len({*shapes.names}) == 411
    radius = np.linalg.norm(shapes.points, axis=2).max(axis=1)
    assert np.allclose(radius, 1, atol=5e-4)
    assert np.allclose(shapes.points.mean(axis=1), 0, atol=5e-4)


def test_furniture_splits_are_stratified_and_versions_of_a_model_share_one() -> None:
    train, test = load_split("furniture", "train"), load_split("furniture", "test")
    assert (len(train), len(test)) == (287, 124)
    assert not {*train.names} & {*test.names}
    assert train.groups is not None
    assert test.groups is not None
    assert not {*train.groups.tolist()} & {*test.groups.tolist()}
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert share.min() > 0.28
    assert share.max() < 0.33


def test_no_furniture_test_shape_has_a_twin_in_training() -> None:
    train, test = load_split("furniture", "train"), load_split("furniture", "test")
    trees = [cKDTree(points) for points in unit_box(train.points)]
    for label, points in zip(test.labels, unit_box(test.points), strict=True):
        own = np.asarray(cKDTree(points).query(points[:256], k=2)[0])[:, 1].mean()
        for k in np.flatnonzero(train.labels == label):
            # Two samples of one surface are as near to each other as a sample is to itself.
            assert trees[k].query(points[:256])[0].mean() > 1.01 * own


def test_the_first_points_of_a_furniture_shape_are_a_fair_sample() -> None:
    points = load_split("furniture", "train").points
    half, all_points = points[:, :1024], points
    assert np.abs(half.mean(axis=1) - all_points.mean(axis=1)).max() < 0.1
    ratio = np.ptp(half, axis=1) / np.ptp(all_points, axis=1)
    assert np.median(ratio) > 0.98


def test_every_furniture_shape_has_an_author_and_a_free_license() -> None:
    text = LICENSES.read_text("utf-8")
    sections = re.split(r"^(CC\S+): \d+ models$", text, flags=re.MULTILINE)[1:]
    licensed = {
        line.partition(":")[0]: (license_name, line.partition(", by ")[2])
        for license_name, body in zip(sections[::2], sections[1::2], strict=True)
        for line in body.partition("Left out")[0].splitlines()
        if ", by " in line
    }
    shapes = load_split("furniture", "all")
    assert {*licensed} == {*shapes.names}
    assert {name for name, _ in licensed.values()} == {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
    assert all(author for _, author in licensed.values())
    expected = {
        "Scopia": "CC-BY-3.0",
        "KatorLegaz": "CC-BY-3.0-US",
        "Reallusion": "CC-BY-3.0-US",
        "BlendSwap-CC-BY": "CC-BY-3.0",
        "BlendSwap-CC-0": "CC0-1.0",
    }
    others = {k: v[0] for k, v in licensed.items() if v[0] != expected[k.partition("/")[0]]}
    # The library of CC0 models has two whose own files say CC-BY: the stricter one holds.
    sofas = "BlendSwap-CC-0/blendswap-cc-0/winchester"
    assert others == {f"{sofas}Armchair": "CC-BY-3.0", f"{sofas}Sofa": "CC-BY-3.0"}


# The converter


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("license=Creative Commons Attribution 3.0 Unported license", "CC-BY-3.0"),
        ("Released under\nCreative Commons Attribution 3.0\n", "CC-BY-3.0"),
        ("Creative Commons Attribution 3.0 United States license", "CC-BY-3.0-US"),
        ("Creative Commons Zero (Public Domain)", "CC0-1.0"),
        ("Creative Commons Attribution-ShareAlike 3.0", None),
        ("Creative Commons Attribution-NonCommercial 3.0", None),
        ("GNU General Public License", None),
        ("free for everybody", None),
    ],
)
def test_only_free_licenses_are_recognised(text: str, want: str | None) -> None:
    assert convert_furniture.license_of(text) == want


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("Desk lamp", "lamp"),
        ("Glass table", "table"),
        ("Glass door cabinet", "cabinet"),
        ("Indoor plant", "plant"),
        ("Doormat", None),
        ("Armchair", "sofa"),
        ("Plate, glass and cutlery", None),
        ("Smoke detector", None),
    ],
)
def test_names_are_taken_word_by_word_with_a_precedence(name: str, want: str | None) -> None:
    assert class_of("library/model", name) == want


def write_library(root: Path, name: str, license_text: str, models: dict[str, dict]) -> None:
    """A .sh3f library whose models are boxes of given edges."""
    path = root / "usr/share/sweethome3d/furniture" / f"{name}.sh3f"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"license={license_text}"]
    with zipfile.ZipFile(path, "w") as library:
        for number, (model, entry) in enumerate(models.items(), start=1):
            lines += [
                f"id#{number}=x",
                f"name#{number}={entry['name']}",
                f"model#{number}=/lib/{model}/{model}.obj",
                f"creator#{number}=Somebody",
            ]
            if "rotation" in entry:
                lines.append(f"modelRotation#{number}={entry['rotation']}")
            box = trimesh.creation.box(entry["edges"])
            library.writestr(f"lib/{model}/{model}.obj", box.export(file_type="obj"))
            if "license" in entry:
                library.writestr(f"lib/{model}/BLENDSWAP_LICENSE.txt", entry["license"])
        library.writestr("PluginFurnitureCatalog.properties", "\n".join(lines).encode("latin-1"))


def test_the_converter_turns_upright_groups_versions_and_leaves_out_other_licenses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cc_by = "Creative Commons Attribution 3.0 Unported license"
    for name in convert_furniture.LIBRARIES[2:]:
        write_library(tmp_path, name, cc_by, {})
    write_library(
        tmp_path,
        "BlendSwap-CC-0",
        "Public domain",
        {
            "tall": {"name": "Door", "edges": (1, 3, 0.2)},
            # The same box in other units, lying on its back with a rotation that lifts it.
            "lying": {
                "name": "Door",
                "edges": (10, 2, 30),
                "rotation": "1 0 0 0 0 1 0 -1 0",
            },
            "wide": {"name": "Garage door", "edges": (4, 2, 0.2)},
        },
    )
    models = {
        "table": {"name": "Table", "edges": (2, 1, 1)},
        "nc": {
            "name": "Table",
            "edges": (1, 1, 1),
            "license": "Released under\nCreative Commons Attribution-NonCommercial 3.0\n",
        },
        "radiator": {"name": "Radiator", "edges": (1, 1, 1)},
    }
    write_library(tmp_path, "BlendSwap-CC-BY", cc_by, models)
    for out in ("a", "b"):
        convert_furniture.convert(tmp_path, tmp_path / out / "set.npz", tmp_path / out / "meshes")
    first, second = ((tmp_path / out / "set.npz").read_bytes() for out in ("a", "b"))
    assert first == second
    stored = np.load(tmp_path / "a" / "set.npz")
    names = [name.rpartition("/")[2] for name in stored["names"].tolist()]
    assert names == ["lying", "tall", "wide", "table"]
    points = decode_clouds(stored["planes"], 2048, 12)
    edges = np.ptp(points, axis=1)
    assert np.allclose(edges[0] / edges[0, 1], [1 / 3, 1, 0.2 / 3], atol=0.01)
    lying, tall, wide, table = stored["groups"].tolist()
    assert lying == tall
    assert len({tall, wide, table}) == 3
    assert stored["is_test"].tolist() in ([False, False, True, False], [True, True, False, False])
    text = (tmp_path / "a" / "FURNITURE_LICENSES.txt").read_text("utf-8")
    assert "BlendSwap-CC-BY/lib/nc: another licence" in text
    assert "BlendSwap-CC-0/lib/tall: Door, by Somebody (door)" in text
    # The meshes lie in the frame of the points: a box's points lie on its sides.
    (path,) = (tmp_path / "a" / "meshes").rglob("*tall.ply")
    low, high = trimesh.load_mesh(path).bounds
    to_side = np.minimum(np.abs(points[1] - low), np.abs(points[1] - high)).min(axis=1)
    assert to_side.max() < 5e-4


def test_the_converter_names_a_missing_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"BlendSwap-CC-0\.sh3f \(unpack sweethome3d-furniture"):
        convert_furniture.convert(tmp_path, tmp_path / "set.npz")
