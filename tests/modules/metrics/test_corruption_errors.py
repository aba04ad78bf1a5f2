"""The means of ModelNet40-C and PointCloud-C, against the numbers that were published."""

from itertools import product
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.corruption_names import (
    CLEAN,
    MODELNET40_C,
    MODELNET40_C_NAMES,
    NEEDS_MESH,
    POINTCLOUD_C,
    SEVERITIES,
)
from tenfold.modules.metrics.corruption_errors import (
    DGCNN_ACCURACIES,
    CorruptionErrorRates,
    mean_corruption_error,
    relative_mean_corruption_error,
    summarize_error_rates,
)
from torch.multiprocessing.spawn import spawn

MODELS = ("PointNet", "PointNet++", "DGCNN", "RSCNN", "PCT", "SimpleView")
# Error rates in percent of the official checkpoints, means over five severities.
PUBLISHED = {
    "clean": (9.3, 7.0, 7.4, 7.7, 7.1, 6.1),
    "occlusion": (52.3, 54.7, 59.2, 51.8, 56.6, 55.5),
    "lidar": (54.8, 66.5, 81.0, 68.4, 76.7, 82.2),
    "density_inc": (10.4, 16.0, 14.1, 16.8, 11.8, 13.7),
    "density": (11.6, 10.0, 17.3, 13.2, 14.3, 17.2),
    "cutout": (12.0, 10.7, 15.4, 13.8, 14.5, 20.1),
    "uniform": (12.4, 20.4, 14.6, 24.6, 12.1, 14.4),
    "gaussian": (14.4, 16.4, 16.6, 18.4, 13.9, 14.2),
    "impulse": (29.1, 35.2, 24.9, 46.2, 39.1, 24.6),
    "upsampling": (14.0, 17.2, 19.1, 20.1, 17.4, 17.7),
    "background": (93.6, 18.5, 53.1, 18.3, 57.9, 46.8),
    "rotation": (36.8, 27.6, 19.1, 29.2, 18.1, 30.7),
    "shear": (25.4, 13.4, 12.1, 17.0, 11.6, 18.5),
    "distortion": (21.3, 15.2, 13.1, 18.1, 12.4, 17.0),
    "distortion_rbf": (18.6, 16.4, 14.5, 19.2, 13.0, 17.9),
    "distortion_rbf_inv": (17.8, 15.4, 14.0, 18.6, 12.6, 17.2),
}
PUBLISHED_NOISE = (32.7, 21.5, 25.7, 25.5, 28.1, 23.5)
PUBLISHED_ER_COR = (28.3, 23.6, 25.9, 26.2, 25.5, 27.2)
# Error rates in percent per severity.
PUBLISHED_SEVERITIES = {
    "PointNet": {
        "uniform": (11.1, 11.1, 11.8, 13.5, 14.7),
        "gaussian": (11.5, 12.0, 14.2, 15.8, 18.8),
        "impulse": (26.1, 26.1, 29.5, 30.3, 33.3),
        "upsampling": (13.6, 13.7, 13.6, 14.1, 15.0),
        "background": (91.7, 92.8, 93.4, 94.5, 95.3),
    },
    "PointNet++": {
        "uniform": (9.7, 12.1, 16.7, 25.5, 38.2),
        "gaussian": (9.3, 10.3, 13.8, 18.8, 29.7),
        "impulse": (22.4, 25.2, 31.6, 40.0, 56.6),
        "upsampling": (12.0, 13.2, 14.6, 18.0, 28.2),
        "background": (14.1, 15.5, 17.5, 19.5, 26.1),
    },
    "DGCNN": {
        "uniform": (9.2, 10.3, 12.8, 17.0, 23.9),
        "gaussian": (9.2, 11.9, 14.5, 19.3, 28.0),
        "impulse": (17.6, 18.1, 23.4, 27.5, 38.0),
        "upsampling": (12.4, 13.0, 15.3, 20.5, 34.2),
        "background": (50.9, 51.0, 52.3, 53.6, 57.5),
    },
    "PCT": {
        "uniform": (9.3, 10.1, 11.7, 13.5, 15.8),
        "gaussian": (9.4, 10.9, 12.9, 15.9, 20.3),
        "impulse": (25.0, 29.5, 35.9, 44.4, 60.7),
        "upsampling": (12.4, 13.5, 13.9, 17.5, 29.5),
        "background": (47.2, 52.3, 55.9, 60.8, 73.3),
    },
}
POINTNET_ACCURACIES = {
    "clean": 0.907,
    "scale": 0.881,
    "jitter": 0.797,
    "rotate": 0.591,
    "dropout_global": 0.876,
    "dropout_local": 0.778,
    "add_global": 0.121,
    "add_local": 0.562,
}


def published_counts(model: str) -> dict[tuple[str, int], int]:
    """Wrong shapes out of 1,000 in each cell, the severities where published, else their mean."""
    column = MODELS.index(model)
    rows = {c: (PUBLISHED[c][column],) * 5 for c in MODELNET40_C_NAMES}
    rows |= PUBLISHED_SEVERITIES.get(model, {})
    cells = {(c, s): row[s - 1] for c, row in rows.items() for s in SEVERITIES}
    return {cell: round(10 * rate) for cell, rate in cells.items()} | {
        (CLEAN, 0): round(10 * PUBLISHED["clean"][column])
    }


def update(metric: CorruptionErrorRates, cell: tuple[str, int], wrong: int, total: int = 1000):
    labels = torch.arange(total) % 7
    predictions = labels.clone()
    predictions[:wrong] += 1
    metric.update(predictions, labels, *cell)


@pytest.mark.parametrize("model", MODELS)
def test_summary_rows_of_the_official_baselines_come_out(model):
    metric = CorruptionErrorRates()
    for cell, wrong in published_counts(model).items():
        update(metric, cell, wrong)
    found = {name: 100 * float(rate) for name, rate in metric.compute().items()}
    column = MODELS.index(model)
    # All published numbers are rounded to 0.1, the cells as well as their means.
    assert found["er_cor"] == pytest.approx(PUBLISHED_ER_COR[column], abs=0.05)
    assert found["er_noise"] == pytest.approx(PUBLISHED_NOISE[column], abs=0.05)
    assert found["er_clean"] == pytest.approx(PUBLISHED["clean"][column])
    for corruption in MODELNET40_C_NAMES:
        published = PUBLISHED[corruption][column]
        assert found[f"er/{corruption}"] == pytest.approx(published, abs=0.07)
    assert found["er/background/5"] == pytest.approx(published_counts(model)["background", 5] / 10)


@pytest.mark.parametrize("model", MODELS)
def test_summary_rows_follow_from_the_row_means_alone(model):
    column = MODELS.index(model)
    rates = {(c, s): PUBLISHED[c][column] for c in MODELNET40_C_NAMES for s in SEVERITIES}
    found = summarize_error_rates(rates)
    assert found["er_cor"] == pytest.approx(PUBLISHED_ER_COR[column], abs=0.05)
    assert found["er_noise"] == pytest.approx(PUBLISHED_NOISE[column], abs=0.05)
    for family, names in MODELNET40_C.items():
        mean = fmean(PUBLISHED[c][column] for c in names)
        assert found[f"er_{family}"] == pytest.approx(mean)


def test_mce_and_rmce_are_those_published_for_pointnet_and_one_for_dgcnn():
    assert round(mean_corruption_error(POINTNET_ACCURACIES), 3) == 1.422
    assert round(relative_mean_corruption_error(POINTNET_ACCURACIES), 3) == 1.488
    assert mean_corruption_error(DGCNN_ACCURACIES) == 1
    assert relative_mean_corruption_error(DGCNN_ACCURACIES) == 1


def test_mce_comes_from_counted_clouds_once_all_levels_were_seen():
    metric = CorruptionErrorRates()
    for corruption, severity in product(POINTCLOUD_C, SEVERITIES):
        # Levels differ around the mean that was published.
        wrong = round(1000 * (1 - POINTNET_ACCURACIES[corruption])) + 10 * (severity - 3)
        update(metric, (corruption, severity), wrong)
        complete = (corruption, severity) == (POINTCLOUD_C[-1], SEVERITIES[-1])
        assert ("mce" in metric.compute()) == complete
    assert "rmce" not in metric.compute()
    update(metric, (CLEAN, 0), round(1000 * (1 - POINTNET_ACCURACIES[CLEAN])))
    found = metric.compute()
    assert round(float(found["mce"]), 3) == 1.422
    assert round(float(found["rmce"]), 3) == 1.488
    assert not any(name.startswith("er_cor") for name in found)


def test_a_mean_over_fewer_corruptions_or_severities_says_so_in_its_name():
    mesh_free = [c for c in MODELNET40_C_NAMES if c not in NEEDS_MESH]
    found = summarize_error_rates({(c, s): 0.1 * s for c in mesh_free for s in SEVERITIES})
    means = {name for name in found if "/" not in name}
    assert means == {"er_cor_13", "er_density_3", "er_noise", "er_transformation"}
    assert found["er_cor_13"] == pytest.approx(0.3)

    found = summarize_error_rates({(c, s): 0.1 * s for c in mesh_free for s in (1, 3, 5)})
    means = {name for name in found if "/" not in name}
    assert means == {
        "er_cor_13_s135",
        "er_density_3_s135",
        "er_noise_s135",
        "er_transformation_s135",
    }
    assert "er/gaussian_s135" in found
    assert "er/gaussian" not in found


def test_a_corruption_that_lacks_severities_is_in_no_mean_with_others():
    rates = {(c, s): 0.5 for c in ("uniform", "gaussian") for s in SEVERITIES}
    rates["background", 3] = 1.0
    found = summarize_error_rates(rates)
    assert found["er_noise_2"] == 0.5
    assert found["er_cor_2"] == 0.5
    assert found["er/background_s3"] == 1.0


def test_the_macro_rate_is_the_mean_over_the_classes_that_occur():
    metric = CorruptionErrorRates(num_classes=4)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    predictions = torch.tensor([0, 0, 0, 1, 0, 2, 3])
    metric.update(predictions, labels, CLEAN, 0)
    found = metric.compute()
    assert float(found["er_clean"]) == pytest.approx(3 / 7)
    assert float(found["macro_er_clean"]) == pytest.approx((1 / 4 + 1 + 0) / 3)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_batches_and_their_order_do_not_matter(data):
    cells = [("uniform", 1), ("uniform", 2), ("scale", 4), (CLEAN, 0)]
    samples = data.draw(
        st.lists(
            st.tuples(st.sampled_from(cells), st.integers(0, 2), st.integers(0, 2)),
            min_size=1,
            max_size=30,
        )
    )
    one, parts = CorruptionErrorRates(num_classes=3), CorruptionErrorRates(num_classes=3)
    for cell in cells:
        chosen = [(p, y) for c, p, y in samples if c == cell]
        if chosen:
            predictions, labels = torch.tensor(chosen).unbind(1)
            one.update(predictions, labels, *cell)
    for cell, prediction, label in data.draw(st.permutations(samples)):
        parts.update(torch.tensor([prediction]), torch.tensor([label]), *cell)
    assert one.compute() == parts.compute()
    for cell in cells:
        hits = [p != y for c, p, y in samples if c == cell]
        name = "er_clean" if cell[0] == CLEAN else f"er/{cell[0]}/{cell[1]}"
        assert (name in one.compute()) == bool(hits)
        if hits:
            assert float(one.compute()[name]) == pytest.approx(fmean(hits))


def _rank(rank: int, file: str):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    metric = CorruptionErrorRates()
    # 3 of 10 shapes wrong on one rank, 1 of 2 on the other, and a cell that only one has seen.
    update(metric, ("gaussian", 2), wrong=(3, 1)[rank], total=(10, 2)[rank])
    if rank == 1:
        update(metric, ("gaussian", 3), wrong=1, total=4)
    found = metric.compute()
    assert float(found["er/gaussian/2"]) == pytest.approx(4 / 12)
    assert float(found["er/gaussian/3"]) == pytest.approx(1 / 4)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_add_their_counts(tmp_path):
    spawn(_rank, (str(tmp_path / "rendezvous"),), nprocs=2)


def test_adding_the_states_of_two_metrics_is_counting_both():
    one, other, both = (CorruptionErrorRates() for _ in range(3))
    update(one, ("gaussian", 2), wrong=3, total=10)
    update(other, ("gaussian", 2), wrong=1, total=2)
    update(both, ("gaussian", 2), wrong=3, total=10)
    update(both, ("gaussian", 2), wrong=1, total=2)
    for name, reduction in one._reductions.items():
        stacked = torch.stack([getattr(one, name), getattr(other, name)])
        assert torch.equal(reduction(stacked), getattr(both, name))
    assert float(both.compute()["er/gaussian/2"]) == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, 2.0]], [1], "uniform", 1), "shape"),
        (([1.0], [1], "uniform", 1), "classes"),
        (([1], [1], "unifrom", 1), "unknown corruption 'unifrom'"),
        (([1], [1], "uniform", 6), "severity of uniform must be one of 1, 2, 3, 4, 5, got 6"),
        (([1], [1], "uniform", 0), "severity"),
        (([1], [1], "clean", 1), "severity of clean must be one of 0"),
        (([1], [9], "clean", 0), "labels must be in 0 .. 2"),
        (([1], [-1], "clean", 0), "labels must be in 0 .. 2"),
    ],
)
def test_what_cannot_be_counted_is_refused(arguments, message):
    predictions, labels, *cell = arguments
    metric = CorruptionErrorRates(num_classes=3)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(predictions), torch.tensor(labels), *cell)
    assert metric.compute() == {}
