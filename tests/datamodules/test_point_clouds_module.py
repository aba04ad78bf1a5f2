"""`PointCloudDataModule`: batches, augmentation, mixing, corrupted test sets, what it remembers."""

import itertools
import logging
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import trimesh
from lightning.pytorch import LightningModule, Trainer
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from tenfold.datamodules.corruptions import corrupt, corruption_rng, shared_subset
from tenfold.datamodules.point_clouds import PointCloudDataModule, load_split
from tenfold.datamodules.point_clouds import corrupted as corrupted_sets
from tenfold.datamodules.point_clouds.augmentation import Augmentation, TrainingClouds
from tenfold.datamodules.point_clouds.mixing import draw_share, match, mix
from tenfold.modules.corruption_names import MODELNET40_C_NAMES, POINTCLOUD_C
from torch import Tensor


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))


def module(**options: Any) -> PointCloudDataModule:
    return PointCloudDataModule(**{"num_points": 64, "seed": 5, **options})


PLAIN = {"scale": None, "shift": 0.0, "shuffle_points": False}


def small_set(path: Path, num: int = 40, num_points: int = 128) -> str:
    """An .npz of boxes of two proportions: as quick to corrupt as it is to read."""
    rng = np.random.default_rng(1)
    y = np.arange(num) % 2
    x = rng.uniform(-0.5, 0.5, (num, num_points, 3)) * np.where(y, 1.0, 0.3)[:, None, None]
    np.savez(path / "small.npz", x=x.astype(np.float32), y=y, test=np.arange(num) >= num - 10)
    return str(path / "small.npz")


def all_batches(loader: Any) -> dict[str, Tensor]:
    batches = list(loader)
    keys = [key for key, value in batches[0].items() if isinstance(value, Tensor)]
    return {key: torch.cat([batch[key] for batch in batches]) for key in keys}


# Splits and batches


def test_training_validation_and_test_shapes_are_disjoint_and_all_classes_are_validated() -> None:
    data = module()
    train, val, test = (
        {*shapes.names} for shapes in (data.train_shapes, data.val_shapes, data.test_shapes)
    )
    assert train | val == {*load_split("furniture", "train").names}
    assert test == {*load_split("furniture", "test").names}
    assert not train & val
    assert {*data.val_shapes.labels.tolist()} == {*range(data.num_classes)} == {*range(13)}
    assert 0.08 < len(val) / len(train | val) < 0.12
    groups = [{*shapes.groups.tolist()} for shapes in (data.train_shapes, data.val_shapes)]  # type: ignore[union-attr]
    assert not groups[0] & groups[1]
    assert {*module(seed=9).val_shapes.names} == val
    assert {*module(split_seed=1).val_shapes.names} != val


def test_batches_hold_the_first_points_of_the_stored_shapes() -> None:
    data = module(**PLAIN, batch_size=16)
    batch = next(iter(data.train_dataloader()))
    assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == {
        "pos": ((16, 64, 3), torch.float32),
        "label": ((16,), torch.int64),
        "index": ((16,), torch.int64),
    }
    for loader, shapes in (
        (data.train_dataloader(), data.train_shapes),
        (data.val_dataloader(), data.val_shapes),
        (data.test_dataloader()[0], data.test_shapes),
        (data.predict_dataloader(), data.test_shapes),
    ):
        seen = all_batches(loader)
        index = seen["index"].numpy()
        assert np.array_equal(seen["pos"].numpy(), shapes.points[index, :64])
        assert np.array_equal(seen["label"].numpy(), shapes.labels[index])
        assert len({*index.tolist()}) == len(index)
    batch = next(iter(data.test_dataloader()[0]))
    assert (batch["corruption"], batch["severity"]) == ("clean", 0)
    assert batch["name"][:2] == list(data.test_shapes.names[:2])


def test_random_points_differ_between_epochs_and_cover_what_is_stored() -> None:
    how = Augmentation(random_points=True, scale=None, shift=0.0)
    clouds = TrainingClouds(load_split("furniture", "train"), 64, how, seed=0)
    epochs = clouds.__getitems__([(epoch, 7) for epoch in range(600)])["pos"].tolist()
    every = {tuple(point) for cloud in epochs for point in cloud}
    assert every == {*map(tuple, clouds.shapes.points[7].tolist())}
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("how", "edge"), [("unit_sphere", None), ("box", 2.0)])
def test_clouds_are_normalised_after_their_points_are_chosen(how: Any, edge: float | None) -> None:
    data = module(**PLAIN, normalize=how)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()[0]):
        pos = all_batches(loader)["pos"]
        if edge is None:
            torch.testing.assert_close(pos.norm(dim=2).amax(dim=1), torch.ones(len(pos)))
        else:
            edges = pos.amax(dim=1) - pos.amin(dim=1)
            torch.testing.assert_close(edges.amax(dim=1), torch.full((len(pos),), edge))


# Augmentation


def items(augmentation: Augmentation, keys: list[tuple[int, int]], seed: int = 0) -> np.ndarray:
    shapes = load_split("furniture", "train")
    clouds = TrainingClouds(shapes, 256, augmentation, seed)
    return clouds.__getitems__(keys)["pos"].numpy().astype(np.float64)


def stored(num: int) -> np.ndarray:
    return load_split("furniture", "train").points[:num, :256].astype(np.float64)


def test_scale_and_shift_have_the_ranges_of_the_benchmark() -> None:
    keys = list(itertools.product(range(40), range(20)))
    got = items(Augmentation(shuffle=False), keys).reshape(40, 20, 256, 3)
    want = stored(20)[None]
    scale = np.ptp(got, axis=2) / np.ptp(want, axis=2)
    shift = got.mean(axis=2) - scale * want.mean(axis=2)
    assert np.allclose(got, want * scale[:, :, None] + shift[:, :, None], atol=1e-5)
    for draws, low, high in ((scale, 2 / 3, 3 / 2), (shift, -0.2, 0.2)):
        assert low - 1e-5 <= draws.min() < low + 0.01 * (high - low)
        assert high + 1e-5 >= draws.max() > high - 0.01 * (high - low)
        assert abs(draws.mean() - (low + high) / 2) < 0.02 * (high - low)
        # The three axes are independent.
        assert np.abs(np.corrcoef(draws.reshape(-1, 3).T) - np.eye(3)).max() < 0.12


@pytest.mark.parametrize("rotate", ["vertical", "so3"])
def test_rotations_keep_distances_and_the_vertical_axis_where_it_is_named(rotate: Any) -> None:
    how = Augmentation(scale=None, shift=0, shuffle=False, rotate=rotate)
    got, want = items(how, [(0, k) for k in range(9)]), stored(9)
    for a, b in zip(got, want, strict=True):
        assert np.allclose(cdist(a, a), cdist(b, b), atol=1e-5)
        matrix = np.linalg.lstsq(b, a, rcond=None)[0]
        assert np.isclose(np.linalg.det(matrix), 1, atol=1e-4)
        assert not np.allclose(matrix, np.eye(3), atol=0.01)
        assert np.allclose(matrix[1], [0, 1, 0], atol=1e-4) == (rotate == "vertical")


def test_jitter_dropout_and_shuffling_change_what_they_say() -> None:
    keys = [(0, k) for k in range(50)]
    none = {"scale": None, "shift": 0.0}
    noise = items(Augmentation(**none, shuffle=False, jitter=0.02), keys) - stored(50)
    assert abs(noise.std() - 0.02) < 0.001
    assert np.abs(noise).max() <= 0.1 + 1e-6
    dropped = items(Augmentation(**none, shuffle=False, dropout=0.8), keys)
    is_first = (dropped == dropped[:, :1]).all(axis=2)
    assert np.array_equal(dropped[~is_first], stored(50)[~is_first])
    shares = is_first[:, 1:].mean(axis=1)
    assert 0.3 < shares.mean() < 0.5
    assert shares.max() < 0.9
    shuffled = items(Augmentation(**none), keys)
    assert not np.array_equal(shuffled, stored(50))
    for a, b in zip(shuffled, stored(50), strict=True):
        assert sorted(map(tuple, a)) == sorted(map(tuple, b))


@pytest.mark.parametrize("mixing", ["none", "pointcutmix_r"])
def test_an_item_depends_on_seed_epoch_and_index_and_not_on_its_batch(mixing: Any) -> None:
    how = Augmentation(random_points=True, jitter=0.01, rotate="so3", dropout=0.5, mixing=mixing)
    one = items(how, [(3, 7)])[0]
    assert np.array_equal(items(how, [(3, 5), (0, 7), (3, 7)])[2], one)
    for other in (items(how, [(4, 7)]), items(how, [(3, 8)]), items(how, [(3, 7)], seed=1)):
        assert not np.array_equal(other[0], one)


def test_training_goes_on_where_it_stopped_and_workers_change_nothing() -> None:
    data = module(batch_size=32, rotate="vertical")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    want = list(loader)
    stopped = data.train_dataloader()
    stopped.sampler.set_epoch(1)
    for _ in zip(range(3), stopped, strict=False):
        pass
    resumed = module(batch_size=32, rotate="vertical", num_workers=1).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed)
    assert len(rest) == len(want) - 3
    for a, b in zip(rest, want[3:], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


# Mixing


def test_a_match_uses_each_point_once_and_is_nearly_the_shortest() -> None:
    shapes = load_split("furniture", "train")
    rng = np.random.default_rng(0)
    excess = []
    for num_points in (1, 7, 32, 33, 200, 257):
        a, b = shapes.points[rng.integers(len(shapes), size=2), :num_points]
        partner = match(a, b)
        assert sorted(partner.tolist()) == list(range(num_points))
        costs = cdist(a, b)
        rows, columns = linear_sum_assignment(costs)
        best = costs[rows, columns].sum()
        excess.append(costs[np.arange(num_points), partner].sum() / best - 1)
        if num_points <= 32:
            assert excess[-1] < 1e-6
    assert max(excess) < 0.25
    assert np.array_equal(match(a, a), np.arange(len(a)))


@pytest.mark.parametrize("mixing", ["pointcutmix_r", "pointcutmix_k"])
def test_cutmix_replaces_its_share_of_the_points_by_matched_ones(mixing: Any) -> None:
    a, b = load_split("furniture", "train").points[[0, 100], :200]
    mixed = mix(mixing, a, b, 0.3, np.random.default_rng(0))
    replaced = (mixed != a).any(axis=1)
    assert replaced.sum() == 60
    assert np.array_equal(mixed[replaced], b[match(a, b)][replaced])
    # Neighbours of one point, or points from everywhere.
    radius = np.linalg.norm(a[:, None] - a[None], axis=2)
    is_ball = any(
        {*np.argsort(row, kind="stable")[:60]} == {*np.flatnonzero(replaced)} for row in radius
    )
    assert is_ball == (mixing == "pointcutmix_k")


def test_mixup_moves_points_along_their_matches() -> None:
    a, b = load_split("furniture", "train").points[[0, 100], :200]
    mixed = mix("pointmixup", a, b, 0.25, np.random.default_rng(0))
    assert np.allclose(mixed, 0.75 * a + 0.25 * b[match(a, b)], atol=1e-6)


def test_shares_are_drawn_as_the_papers_draw_them() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([draw_share("pointcutmix_r", 200, rng) for _ in range(4000)])
    assert abs((shares == 0).mean() - 0.5) < 0.03
    mixed = shares[shares > 0] * 200
    assert np.allclose(mixed, np.rint(mixed))
    assert mixed.min() >= 1
    assert abs(mixed.mean() - 100) < 5
    rates = np.array([draw_share("pointmixup", 200, rng) for _ in range(4000)])
    assert rates.min() >= 0
    assert rates.max() <= 0.5
    # E |b - 1/2| for b from Beta(0.4, 0.4), integrated numerically.
    u = np.linspace(0, 1, 2**20 + 1)[1:-1]
    density = (u * (1 - u)) ** -0.6
    assert abs(rates.mean() - (0.5 - (np.abs(u - 0.5) * density).sum() / density.sum())) < 0.01


def test_mixed_batches_carry_the_weights_of_both_labels(tmp_path: Path) -> None:
    data = module(**PLAIN, mixing="pointcutmix_r", batch_size=64)
    batch = next(iter(data.train_dataloader()))
    weights, pos = batch["label_weights"], batch["pos"].numpy()
    assert weights.shape == (64, 13)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(64))
    original = data.train_shapes.points[batch["index"].numpy(), :64]
    share = torch.from_numpy((pos != original).any(axis=2).mean(axis=1))
    own = weights.gather(1, batch["label"][:, None])[:, 0]
    # Where the partner has the same label its share counts for that too.
    others = weights.scatter(1, batch["label"][:, None], 0).amax(dim=1)
    is_other = others > 0
    torch.testing.assert_close(others[is_other].double(), share[is_other])
    torch.testing.assert_close(own[is_other].double(), 1 - share[is_other])
    assert is_other.sum() > 20


# Corrupted test sets


def test_made_test_sets_are_the_suites_in_a_fixed_order_and_size(tmp_path: Path) -> None:
    data = module(
        root=small_set(tmp_path), corruptions=["background", "cutout"], severities=[5, 1], **PLAIN
    )
    loaders = data.test_dataloader()
    found = [next(iter(loader)) for loader in loaders]
    assert [(batch["corruption"], batch["severity"]) for batch in found] == [
        ("clean", 0),
        ("background", 5),
        ("background", 1),
        ("cutout", 5),
        ("cutout", 1),
    ]
    # At 64 points: 64 // 20 and 64 // 45 are appended; nothing is cut off.
    assert [batch["pos"].shape[1] for batch in found[:3]] == [64, 67, 65]
    shapes = data.test_shapes
    subset = shared_subset(2021, "background", 5, 128, 64)
    rng = corruption_rng(2021, "background", 5, 3)
    want = corrupt(shapes.points[3], "background", 5, rng, 64, subset=subset)
    assert np.array_equal(found[1]["pos"][3].numpy(), want)
    assert found[1]["label"].tolist() == shapes.labels.tolist()


def test_made_test_sets_are_kept_and_belong_to_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"root": small_set(tmp_path), "corruptions": ["gaussian"], "severities": [3]}
    first = all_batches(module(**options).test_dataloader()[1])["pos"]
    folder = tmp_path / "cache" / "point_clouds"
    (path,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(corrupted_sets, "CorruptedClouds", lambda *a, **k: pytest.fail("made again"))
        again = all_batches(module(**options).test_dataloader()[1])["pos"]
    assert torch.equal(again, first)
    other = all_batches(module(**options, corruption_seed=1).test_dataloader()[1])["pos"]
    assert not torch.equal(other, first)
    assert len(list(folder.iterdir())) == 2
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = all_batches(module(**options).test_dataloader()[1])["pos"]
    assert torch.equal(again, first)
    assert f"{path} is damaged" in caplog.text


def test_sets_that_need_meshes_are_left_out_with_a_line_or_made_from_meshes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"corruptions": ["lidar", "density"], "severities": [2]}
    with caplog.at_level(logging.WARNING):
        data = module(root=small_set(tmp_path), **options)
        names = [clouds.corruption for clouds in data.test_sets]
    assert names == ["clean", "density"]
    assert [r.getMessage() for r in caplog.records] == [
        f"lidar left out: made from meshes, and '{data.root}' has points only"
    ]
    for name, part in itertools.product(("a", "b"), ("train", "test")):
        (tmp_path / "set" / name / part).mkdir(parents=True)
        trimesh.creation.icosphere().export(tmp_path / "set" / name / part / "0.ply")
    data = module(root=str(tmp_path / "set"), mesh_points=128, val_fraction=0.0, **options)
    assert [clouds.corruption for clouds in data.test_sets] == ["clean", "lidar", "density"]
    assert next(iter(data.test_dataloader()[1]))["pos"].shape == (2, 48, 3)


def write_modelnet40_c(folder: Path, labels: np.ndarray, cells: dict[tuple[str, int], Any]) -> str:
    folder.mkdir()
    np.save(folder / "label.npy", labels[:, None])
    for (name, severity), points in cells.items():
        np.save(folder / f"data_{name}_{severity}.npy", points)
    return str(folder)


def test_downloaded_modelnet40_c_files_are_tested_as_stored(tmp_path: Path) -> None:
    labels = np.array([1, 0, 1])
    rng = np.random.default_rng(0)
    cells = {
        (name, severity): rng.uniform(-9, 9, (3, 50 + 7 * severity, 3))  # float64, as some are
        for name in ("background", "occlusion")
        for severity in (1, 2)
    }
    root = write_modelnet40_c(tmp_path / "c", labels, cells)
    np.save(tmp_path / "c" / "data_original.npy", np.zeros((3, 9, 3)))
    np.save(tmp_path / "c" / "data_scale_of_mine_1.npy", np.zeros((3, 9, 3)))
    data = module(
        root=small_set(tmp_path), corrupted_root=root, corruptions="all", severities=[1, 2]
    )
    batches = [next(iter(loader)) for loader in data.test_dataloader()[1:]]
    assert [(b["corruption"], b["severity"]) for b in batches] == [
        ("occlusion", 1),
        ("occlusion", 2),
        ("background", 1),
        ("background", 2),
    ]
    for batch in batches:
        want = cells[batch["corruption"], batch["severity"]].astype(np.float32)
        assert batch["pos"].dtype == torch.float32
        assert np.array_equal(batch["pos"].numpy(), want)
        assert batch["label"].tolist() == labels.tolist()
    with pytest.raises(ValueError, match=r"lacks occlusion 3 \(it has occlusion, background"):
        _ = module(root=data.root, corrupted_root=root, corruptions="all").test_sets


def test_downloaded_pointcloud_c_files_have_levels_from_zero_and_a_clean_set(
    tmp_path: Path,
) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (4, 30, 3)).astype(np.float32)
    (tmp_path / "c").mkdir()
    names = [f"{name}_{level}" for name in POINTCLOUD_C for level in range(5)]
    for k, name in enumerate(["clean", *names]):
        with h5py.File(tmp_path / "c" / f"{name}.h5", "w") as file:
            file["data"], file["label"] = points + k, np.array([[0], [1], [1], [0]])
    data = module(
        root=small_set(tmp_path), corrupted_root=str(tmp_path / "c"), corruptions="pointcloud_c"
    )
    batches = [next(iter(loader)) for loader in data.test_dataloader()]
    assert [(b["corruption"], b["severity"]) for b in batches] == [
        ("clean", 0),
        *itertools.product(POINTCLOUD_C, range(1, 6)),
    ]
    for k, batch in enumerate(batches):
        assert np.array_equal(batch["pos"].numpy(), points + np.float32(k))


def test_broken_corrupted_files_are_named(tmp_path: Path) -> None:
    root = small_set(tmp_path)

    def load(name: str, labels: Any, points: Any) -> Any:
        folder = write_modelnet40_c(tmp_path / name, np.array(labels), {("shear", 1): points})
        options = {"corrupted_root": folder, "corruptions": ["shear"], "severities": [1]}
        return module(root=root, **options).test_sets

    good = np.zeros((2, 9, 3))
    for name, labels, points, message in (
        ("label", [0, 2], good, r"labels from 0 to 2, expected 0 to 1 as in the clean data"),
        ("count", [0, 1, 1], good, r"data_shear_1\.npy: 2 clouds, but 3 labels"),
        ("rank", [0, 1], np.zeros((2, 9)), r"shape \(n, M, 3\), found \(2, 9\)"),
        ("nan", [0, 1], good * np.nan, r"points of shape 0 are not finite \(2 shapes\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load(name, labels, points)
    (tmp_path / "label" / "data_shear_1.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"cannot read .*data_shear_1\.npy"):
        _ = module(
            root=root, corrupted_root=str(tmp_path / "label"), corruptions="all", severities=[1]
        ).test_sets
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no corrupted sets in '.*/empty' \(expected"):
        _ = module(root=root, corrupted_root=str(tmp_path / "empty"), corruptions="all").test_sets


def test_validation_on_corrupted_shapes_does_not_look_at_the_test_split(tmp_path: Path) -> None:
    data = module(
        root=small_set(tmp_path), val_fraction=0.2, val_corruptions=["jitter"], val_severities=[4]
    )
    loaders = data.val_dataloader()
    assert isinstance(loaders, list)
    clean, jitter = (all_batches(loader) for loader in loaders)
    batch = next(iter(loaders[1]))
    assert (batch["corruption"], batch["severity"]) == ("jitter", 4)
    assert clean["label"].tolist() == jitter["label"].tolist() == data.val_shapes.labels.tolist()
    assert "num_test_shapes" not in data.run_info()
    assert isinstance(module(val_fraction=0.2).val_dataloader(), torch.utils.data.DataLoader)
    assert module(val_fraction=0.0).val_dataloader() == []


@pytest.mark.slow
def test_all_75_sets_of_the_furniture_meshes_free_suite_have_the_benchmarks_sizes() -> None:
    data = PointCloudDataModule(corruptions="all", seed=0)
    sizes = {(c.corruption, c.severity): c.points.shape for c in data.test_sets}
    assert len(sizes) == 1 + 13 * 5
    assert {name for name, _ in sizes} == {"clean", *MODELNET40_C_NAMES} - {"occlusion", "lidar"}
    want = {
        "density": (949, 874, 799, 724, 649),
        "cutout": (964, 934, 874, 814, 724),
        "upsampling": (1228, 1280, 1365, 1536, 2048),
        "background": (1046, 1049, 1053, 1058, 1075),
    }
    for (name, severity), shape in sizes.items():
        num_points = want[name][severity - 1] if name in want else 1024
        assert shape == (124, num_points, 3)


# Prediction


def test_clouds_without_labels_are_read_one_by_one_with_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "scans" / "deep"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    clouds = {n: 10 * rng.uniform(-1, 1, (n, 3)) + 50 for n in (20, 30, 40, 50)}
    np.save(folder / "a.npy", clouds[20])
    np.savetxt(folder / "b.xyz", np.c_[clouds[30], rng.uniform(size=(30, 3))])
    np.savetxt(folder / "c.txt", clouds[40], delimiter=",")
    trimesh.PointCloud(clouds[50]).export(folder / "d.ply")
    trimesh.creation.box().export(folder / "e.stl")
    data = module(predict_root=str(tmp_path / "scans"), mesh_points=77)
    batches = list(data.predict_dataloader())
    assert [batch["name"] for batch in batches] == [
        [f"deep/{name}"] for name in ("a.npy", "b.xyz", "c.txt", "d.ply", "e.stl")
    ]
    assert [batch["pos"].shape for batch in batches] == [(1, n, 3) for n in (20, 30, 40, 50, 77)]
    for batch, cloud in zip(batches, clouds.values(), strict=False):
        centered = cloud - cloud.mean(axis=0)
        want = centered / np.linalg.norm(centered, axis=1).max()
        assert np.allclose(batch["pos"][0], want, atol=1e-5)
    (folder / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*a\.npy as points"):
        next(iter(data.predict_dataloader()))
    with pytest.raises(ValueError, match=r"no cloud at '.*nothing' \(expected \.npy"):
        module(predict_root=str(tmp_path / "nothing")).predict_dataloader()


# What a run remembers


class Fitted(LightningModule):
    """Learns one number, and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.weight - batch["pos"].mean()) ** 2

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(("val", dataloader_idx, batch["corruption"]))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(("test", dataloader_idx, batch["corruption"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def test_a_trainer_fits_and_tests_on_it_and_a_checkpoint_knows_its_data(tmp_path: Path) -> None:
    options = {
        "root": small_set(tmp_path),
        "batch_size": 8,
        "corruptions": ["uniform"],
        "severities": [1],
        "val_corruptions": ["uniform"],
        "val_severities": [2],
    }
    data, model = module(**options), Fitted()
    fitting = trainer(tmp_path)
    fitting.fit(model, data)
    trainer(tmp_path).test(model, data)
    assert {*model.seen} == {
        ("val", 0, "clean"),
        ("val", 1, "uniform"),
        ("test", 0, "clean"),
        ("test", 1, "uniform"),
    }
    path = tmp_path / "model.ckpt"
    fitting.save_checkpoint(path)
    arrays = dict(np.load(options["root"]))
    np.savez(tmp_path / "other.npz", **{**arrays, "x": arrays["x"] + 1})
    np.savez(tmp_path / "classes.npz", **arrays, c=["a", "b"])
    other = {**options, "root": str(tmp_path / "other.npz")}
    with pytest.raises(ValueError, match=r"trained with other data .* or load only the weights"):
        trainer(tmp_path).fit(Fitted(), module(**other), ckpt_path=path)
    trainer(tmp_path).test(Fitted(), module(**other), ckpt_path=path)
    classes = {**options, "root": str(tmp_path / "classes.npz")}
    with pytest.raises(ValueError, match="trained with other classes"):
        trainer(tmp_path).test(Fitted(), module(**classes), ckpt_path=path)


def test_run_info_counts_shapes_and_tells_the_data_by_a_hash(tmp_path: Path) -> None:
    arrays = dict(np.load(small_set(tmp_path)))
    arrays["x"][1, 0] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    data = module(root=str(tmp_path / "bad.npz"), val_fraction=0.2)
    info = data.run_info()
    assert info["num_skipped_shapes"] == 1
    assert info["num_train_shapes"] + info["num_val_shapes"] == 29
    assert info["data_hash"] == load_split(tmp_path / "bad.npz", "train").data_hash
    assert info["data_hash"] != module(root=small_set(tmp_path)).run_info()["data_hash"]
    with pytest.raises(ValueError, match="points are not finite"):
        module(root=str(tmp_path / "bad.npz"), strict=True).run_info()


def test_a_module_that_is_pickled_for_a_worker_gives_the_same_batches() -> None:
    loader = module(**PLAIN).train_dataloader()
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[0, 3]["pos"], loader.dataset[0, 3]["pos"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 0}, "num_points must be 1 or more, got 0"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"scale": (2.0, 1.0)}, "scale must be two numbers 0 < low <= high"),
        ({"jitter": -0.1}, "jitter must be 0 or more"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"severities": [6]}, "severities must be some of 1, 2, 3, 4, 5"),
        ({"corruptions": ["gausian"]}, "unknown corruption 'gausian': there is gaussian"),
        ({"corrupted_root": "x"}, "corrupted_root is given, but corruptions is none"),
        ({"val_fraction": 0.0, "val_corruptions": "all"}, "val_corruptions needs a val_fraction"),
    ],
)
def test_an_impossible_argument_is_refused_at_once(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_more_points_than_are_stored_are_refused() -> None:
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        with pytest.raises(ValueError, match="2048 points per shape, fewer than num_points 4096"):
            getattr(module(num_points=4096), loader)()
