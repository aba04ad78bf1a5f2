"""What holds for every backbone: order, padding and number of points, training, quantisation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.point_cloud import DGCNN, PCT, PointNet, PointNet2, Scale, Stage
from tenfold.modules.quantization import QATConfig, QuantizerConfig, prepare_qat
from torch import Tensor, nn

BACKBONES = {
    "pointnet": lambda **pools: PointNet(
        widths=(16, 16, 32), tnet_widths=(16, 32), tnet_hidden=(16,), **pools
    ),
    "pointnet2": lambda **pools: PointNet2(
        stages=(
            Stage(32, (Scale(0.2, 8, (8, 16)), Scale(0.5, 16, (8, 16)))),
            Stage(8, (Scale(0.8, 8, (16, 32)),)),
        ),
        widths=(32, 32),
        **pools,
    ),
    "dgcnn": lambda **pools: DGCNN(num_neighbors=6, widths=(8, 16), embedding=32, **pools),
    "pct": lambda **pools: PCT(
        widths=(8, 8), num_centers=(32, 16), num_neighbors=6, num_attention=2, embedding=32, **pools
    ),
}
POOLS = {
    "max": {"aggregation": "max"},
    "set_mixer": {"aggregation": "set_mixer"},
    "local": {"aggregation": "set_mixer", "local_aggregation": "set_mixer"},
}
KINDS = [
    (name, pools)
    for name in BACKBONES
    for pools in POOLS
    if (name, pools) != ("pointnet", "local")  # has no neighbourhoods
]
every_kind = pytest.mark.parametrize(("name", "pools"), KINDS)
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def build(name: str, pools: str = "max") -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name](**POOLS[pools])


def trained(name: str, pools: str = "max") -> nn.Module:
    """A backbone in evaluation mode whose BatchNorms have the statistics of a batch."""
    network = build(name, pools)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None  # averages: those of the batch, nothing of the start
    with torch.no_grad():
        network(uniform(100, clouds=8) * (uniform(1, clouds=8).abs() + 0.1))  # boxes, not one cube
    return network.eval()


def uniform(num_points: int, seed: int = 0, clouds: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(clouds, num_points, 3, generator=generator) * 2 - 1


def lattice(num_points: int, levels: int, seed: int = 0) -> Tensor:
    """Points on a grid: equal distances, equal coordinates, and points that occur repeatedly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (2, num_points, 3), generator=generator) / 4 - 0.5


CLOUDS = {
    "uniform": uniform(200),
    "plane": uniform(200) * torch.tensor([1.0, 1.0, 0.0]),
    "lattice": lattice(200, 5),
    "duplicates": uniform(50).repeat(1, 4, 1),
    "one place": torch.full((2, 40, 3), 0.3),
}


def difference(network: nn.Module, first: tuple, second: tuple) -> float:
    """In float64, where sums in another order are equal on every processor."""
    network = network.double()
    with torch.no_grad():
        one, other = (network(pos.double(), *rest)[0] for pos, *rest in (first, second))
    return (one - other).abs().max().item()


def padded(pos: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """The points at random places among points that are none, in the order they had."""
    clouds, count, _ = pos.shape
    mask = torch.zeros(clouds, num_points, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(num_points)[:count]] = True
    out = torch.full((clouds, num_points, 3), 7.0)
    out[mask] = pos.flatten(0, 1)
    return out, mask


# Order, padding and number of points


@every_kind
@pytest.mark.parametrize("cloud", CLOUDS)
def test_order_of_the_points_does_not_matter(name, pools, cloud):
    network, pos = trained(name, pools), CLOUDS[cloud]
    shuffled = pos[:, torch.randperm(pos.shape[1])]
    assert difference(network, (pos,), (shuffled,)) < 1e-9


@every_backbone
@settings(max_examples=10, deadline=None)
@given(num_points=st.integers(1, 60), levels=st.integers(1, 6), seed=st.integers(0, 99))
def test_order_does_not_matter_on_any_lattice(name, num_points, levels, seed):
    network, pos = trained(name), lattice(num_points, levels, seed)
    shuffled = pos[:, torch.randperm(num_points)]
    assert difference(network, (pos,), (shuffled,)) < 1e-9


@every_backbone
def test_the_points_do_matter(name):
    assert difference(trained(name), (uniform(200),), (uniform(200, seed=1),)) > 1e-2


@every_kind
@pytest.mark.parametrize("cloud", CLOUDS)
def test_padding_does_not_matter(name, pools, cloud):
    network, pos = trained(name, pools), CLOUDS[cloud]
    assert difference(network, (pos,), padded(pos, 333)) < 1e-9


@every_kind
def test_clouds_do_not_see_their_neighbours_in_the_batch(name, pools):
    network, pos = trained(name, pools).double(), uniform(90).double()
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[1, 40:] = False
    with torch.no_grad():
        together = network(pos, mask)[0]
        alone = torch.cat([network(pos[:1])[0], network(pos[1:, :40])[0]])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["pointnet", "dgcnn"])
def test_what_is_pooled_has_the_order_of_the_points(name):
    """So that an aggregation that goes by the order sees that of training in evaluation too."""
    network, pos, order = trained(name), CLOUDS["lattice"], torch.randperm(200)
    pooled = []
    network.pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        network(pos)
        network(pos[:, order])
    torch.testing.assert_close(pooled[1], pooled[0][:, order], atol=1e-5, rtol=0)
    assert (pooled[1] - pooled[0]).abs().max() > 0.1


@every_kind
@pytest.mark.parametrize("num_points", [1, 2, 5, 33, 4096])
def test_any_number_of_points_and_a_single_cloud(name, pools, num_points):
    network = trained(name, pools)
    pos = uniform(num_points, clouds=1)
    x, penalty = network(pos)
    assert x.shape == (1, network.out_channels)
    assert x.isfinite().all()
    assert penalty.shape == ()


# Training


@every_kind
def test_batchnorm_learns_from_real_points_alone(name, pools):
    pos = uniform(100, clouds=4)
    plain, masked = build(name, pools), build(name, pools)
    x, penalty = plain(pos)
    (x.square().mean() + penalty).backward()
    x_masked, penalty_masked = masked(*padded(pos, 150))
    (x_masked.square().mean() + penalty_masked).backward()
    torch.testing.assert_close(x_masked, x, atol=1e-4, rtol=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(masked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


@every_kind
def test_gradients_reach_every_weight_and_the_points(name, pools):
    network = build(name, pools)
    pos = uniform(100, clouds=4).requires_grad_()
    x, penalty = network(pos)
    (x * torch.randn(x.shape)).sum().add(penalty).backward()
    assert pos.grad.abs().sum() > 0
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        if parameter.ndim > 1:  # a bias before a BatchNorm has no effect
            assert parameter.grad.abs().max() > 1e-7, key


@every_backbone
@pytest.mark.parametrize("pools", ["max", "set_mixer"])
def test_a_batch_is_learned(name, pools):
    network = build(name, pools)
    head = nn.Linear(network.out_channels, 4)
    points = uniform(64, clouds=16)
    sphere = F.normalize(points, dim=-1)
    shapes = [points, sphere, points * torch.tensor([1, 1, 0.05]), points * torch.tensor([1, 0, 0])]
    pos = torch.cat([shape[4 * k : 4 * k + 4] for k, shape in enumerate(shapes)])
    labels = torch.arange(4).repeat_interleave(4)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=5e-3)
    losses = []
    for _ in range(25):
        x, penalty = network(pos[:, torch.randperm(64)])
        loss = F.cross_entropy(head(x), labels)
        optimizer.zero_grad()
        (loss + 0.001 * penalty).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


# Quantisation and compilation


@every_backbone
def test_every_product_with_weights_can_be_quantised(name):
    network = build(name)
    linear = {key for key, module in network.named_modules() if isinstance(module, nn.Linear)}
    weight = QuantizerConfig(group_size="per_channel")
    activation = QuantizerConfig(group_size="per_token")
    preparation = prepare_qat(network, QATConfig(weight, activation), backend="reference")
    assert set(preparation.layers) == linear
    assert preparation.uncovered == []
    x, penalty = network(uniform(60, clouds=3))
    (x.sum() + penalty).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@every_backbone
def test_a_backbone_is_one_graph(name):
    """`fullgraph` refuses Python that depends on data; the outputs are those of eager code."""
    network, pos = trained(name), uniform(64)
    graph = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(graph(pos)[0], network(pos)[0], atol=1e-5, rtol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointNet(widths=(64, 0)), "widths: .*expected numbers of at least 1"),
        (lambda: PointNet(tnet_layer=3), "tnet_layer: 3, expected a layer before the last"),
        (lambda: PointNet2(stages="mrg"), "stages: 'mrg', expected ssg, msg or own stages"),
        (lambda: PointNet2(widths=()), "widths: .*expected numbers of at least 1"),
        (lambda: Scale(0.0, 16, (8,)), "radius: 0.0, expected a positive number"),
        (lambda: Stage(16, ()), "scales: empty, expected at least one"),
        (lambda: DGCNN(num_neighbors=0), "num_neighbors: 0, expected numbers of at least 1"),
        (lambda: PCT(num_centers=(512, 0)), "num_centers: .*expected numbers of at least 1"),
    ],
)
def test_wrong_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
