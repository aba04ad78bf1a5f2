import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.influence import outlier_influence
from tenfold.modules.outlier_filter import InDegreeFilter
from tenfold.modules.point_cloud import PointCloudClassifier, PointNet


def test_isolated_points_are_left_out_and_surfaces_kept():
    torch.manual_seed(0)
    surface = F.normalize(torch.randn(4, 500, 3), dim=-1)
    corners = 2 * torch.tensor([[1.0, 1, 1], [-1, -1, 1], [1, -1, -1]]).expand(4, 3, 3)
    kept = InDegreeFilter(8, 2)(torch.cat([surface, corners], dim=1))
    assert not kept[:, 500:].any()
    assert kept[:, :500].float().mean() > 0.98


def test_in_degrees_are_those_of_all_distances():
    torch.manual_seed(0)
    pos = torch.randn(2, 60, 3, dtype=torch.float64)
    nearest = torch.cdist(pos, pos).argsort(dim=2)[..., 1:6]
    degree = torch.stack([near.flatten().bincount(minlength=60) for near in nearest])
    for minimum in (1, 3, 5):
        assert torch.equal(InDegreeFilter(5, minimum)(pos), degree >= minimum)


def test_the_tree_and_the_kernel_agree():
    torch.manual_seed(0)
    pos, real = torch.randn(3, 50, 3), torch.arange(50) < torch.tensor([[50], [17], [3]])
    filter_ = InDegreeFilter(6, 3)
    by_tree = filter_._in_degrees_by_tree(pos, real)
    assert torch.equal(filter_._in_degrees(pos, real).where(real, 0), by_tree)


def test_a_cloud_of_few_points_is_never_emptied():
    for num_points in (1, 2, 3):
        assert InDegreeFilter(8, 8)(torch.randn(2, num_points, 3)).any(dim=1).all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_neither_order_nor_padding_matters(num_points, num_neighbors, minimum, seed):
    generator = torch.Generator().manual_seed(seed)
    # A coarse grid has ties and copies; copies are alike but for their place.
    pos = torch.randint(0, 4, (1, num_points, 3), generator=generator).float()
    filter_ = InDegreeFilter(num_neighbors, min(minimum, num_neighbors))
    kept = filter_(pos)

    def of(pos, kept):
        return sorted(map(tuple, pos[0, kept[0]].tolist()))

    shuffle = torch.randperm(num_points, generator=generator)
    assert of(pos[:, shuffle], filter_(pos[:, shuffle])) == of(pos, kept)
    padded = torch.cat([pos, torch.full((1, 3, 3), torch.nan)], dim=1).nan_to_num(9.0)
    mask = torch.arange(num_points + 3)[None] < num_points
    assert torch.equal(filter_(padded, mask), F.pad(kept, (0, 3)))


def test_a_classifier_filters_in_evaluation_only():
    torch.manual_seed(0)
    backbone = PointNet(tnet=False, widths=(16, 32), last_activation=True)
    model = PointCloudClassifier(backbone, 3, (8,), outlier_filter=InDegreeFilter(8, 4))
    pos = F.normalize(torch.randn(4, 300, 3), dim=-1)
    outlier = torch.full((4, 1, 3), 3.0)

    def moved() -> float:
        return outlier_influence(model, pos, outlier).max().item()

    model.head[-2].p = 0.0  # nothing random
    assert moved() > 0.1
    model.eval()
    assert moved() < 1e-5


def test_weights_do_not_depend_on_the_filter():
    backbone = PointNet(tnet=False, widths=(16, 32), last_activation=True)
    plain = PointCloudClassifier(backbone, 3, (8,))
    filtered = PointCloudClassifier(backbone, 3, (8,), outlier_filter=InDegreeFilter())
    assert plain.state_dict().keys() == filtered.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "num_neighbors must be 1"), ((4, 5), r"min_in_degree must be in \[0, num_neighbors")],
)
def test_numbers_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        InDegreeFilter(*arguments)
