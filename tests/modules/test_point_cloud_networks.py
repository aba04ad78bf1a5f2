"""Each backbone against an independent computation of the same network in float64, and its size."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tenfold.modules.point_cloud import DGCNN, PCT, PointNet, PointNet2, Scale, Stage
from tenfold.modules.point_cloud.pointnet import distance_from_orthogonal
from torch import Tensor, nn
from torch_geometric.nn import EdgeConv, PointNetConv

relu, leaky = F.relu, partial(F.leaky_relu, negative_slope=0.2)


def in_float64(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with BatchNorms that do something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.3)
    return network.double().eval()


def cloud(num_points: int) -> Tensor:
    return torch.rand(num_points, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def apply(mlp: nn.Module, x: Tensor, activations: list) -> Tensor:
    """The layers of a SharedMLP by their formulas, on rows (R, C)."""
    modules = [m for m in mlp.layers if isinstance(m, nn.Linear | nn.BatchNorm1d)]
    for linear, norm, activation in zip(modules[::2], modules[1::2], activations, strict=True):
        x = x @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        x = activation(x * norm.weight + norm.bias)
    return x


def identity(x: Tensor) -> Tensor:
    return x


def nearest(points: Tensor, queries: Tensor, k: int) -> Tensor:
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").topk(
        k, largest=False
    )[1]


def farthest(points: Tensor, count: int) -> Tensor:
    """Greedy farthest-point sampling from the leftmost point."""
    chosen = [int(points[:, 0].argmin())]
    while len(chosen) < count:
        distances = torch.cdist(points, points[chosen]).min(dim=1).values
        chosen.append(int(distances.argmax()))
    return torch.tensor(chosen)


@torch.no_grad()
def test_pointnet_is_a_loop_over_points():
    network = in_float64(PointNet(widths=(8, 16, 32), tnet_widths=(8, 16), tnet_hidden=(8,)))
    pos = cloud(30)

    def transform(tnet, x):
        rows = [apply(tnet.points, row[None], [relu, relu])[0] for row in x]
        pooled = torch.from_numpy(np.max([row.numpy() for row in rows], axis=0))
        hidden, last = tnet.cloud
        flat = apply(hidden, pooled[None], [relu]) @ last.weight.T + last.bias
        size = x.shape[1]
        return flat.reshape(size, size) + torch.eye(size).double()

    x = pos @ transform(network.input_transform, pos)
    x = apply(network.early, x, [relu])
    matrix = transform(network.feature_transform, x)
    rows = [apply(network.late, row[None], [relu, identity])[0] for row in x @ matrix]
    expected = np.max([row.numpy() for row in rows], axis=0)
    penalty = np.linalg.norm(matrix.numpy() @ matrix.numpy().T - np.eye(8))
    x, regulariser = network(pos[None])
    np.testing.assert_allclose(x[0].numpy(), expected, rtol=1e-10, atol=1e-12)
    assert regulariser.item() == pytest.approx(penalty, rel=1e-10)
    assert expected.min() < 0  # no activation before the pooling


@torch.no_grad()
def test_pointnet2_is_a_chain_of_torch_geometrics_point_convolutions():
    stages = (
        Stage(20, (Scale(0.5, 64, (8, 16)), Scale(0.8, 64, (8, 8)))),
        Stage(5, (Scale(1.0, 20, (16, 32)),)),
    )
    network = in_float64(PointNet2(stages=stages, widths=(32, 16)))
    pos, x = cloud(64), torch.zeros(64, 0).double()
    expected_pos, expected = pos, x
    for stage, module in zip(stages, network.abstractions, strict=True):
        centers = expected_pos[farthest(expected_pos, stage.num_centers)]
        results = []
        for scale, mlp in zip(stage.scales, module.groups, strict=True):
            inside = torch.cdist(centers, expected_pos) < scale.radius
            assert inside.sum(dim=1).max() <= scale.num_neighbors  # nothing is left out
            assert inside.sum(dim=1).float().mean() > 1.5  # groups are groups
            target, source = inside.nonzero(as_tuple=True)

            def local(message, mlp=mlp):  # theirs has the coordinates behind the features
                message = torch.cat((message[:, -3:], message[:, :-3]), dim=1)
                return apply(mlp, message, [relu, relu])

            convolution = PointNetConv(local, add_self_loops=False)
            results.append(
                convolution(
                    (expected, None), (expected_pos, centers), torch.stack((source, target))
                )
            )
        expected_pos, expected = centers, torch.cat(results, dim=1)
    rows = apply(network.embed, torch.cat((expected_pos, expected), dim=1), [relu, relu])
    x, penalty = network(pos[None])
    torch.testing.assert_close(x[0], rows.max(dim=0).values)
    assert penalty.item() == 0


@torch.no_grad()
def test_dgcnn_is_a_chain_of_torch_geometrics_edge_convolutions():
    network = in_float64(DGCNN(num_neighbors=5, widths=(8, 16, 8), embedding=32))
    pos = cloud(40)
    x, results = pos, []
    for module in network.convolutions:

        def local(edge, mlp=module.edges):  # theirs has the center before the difference
            half = edge.shape[1] // 2
            return apply(mlp, torch.cat((edge[:, half:], edge[:, :half]), dim=1), [leaky])

        source = nearest(x, x, 5).flatten()
        target = torch.arange(40).repeat_interleave(5)
        x = EdgeConv(local, aggr="max")(x, torch.stack((source, target)))
        results.append(x)
    rows = apply(network.embed, torch.cat(results, dim=1), [leaky])
    expected = torch.cat((rows.max(dim=0).values, rows.mean(dim=0)))
    x, penalty = network(pos[None])
    torch.testing.assert_close(x[0], expected)
    assert penalty.item() == 0


@torch.no_grad()
def test_pct_is_its_formulas_written_out():
    network = in_float64(PCT(widths=(8, 8), num_centers=(24, 12), num_neighbors=6, embedding=32))
    pos = cloud(50)
    points, x = pos, apply(network.points, pos, [relu, relu])
    for module, count in zip(network.groupings, (24, 12), strict=True):
        centers = farthest(points, count)
        groups = []
        for center in centers:
            neighbors = nearest(points, points[center][None], 6)[0]
            edges = torch.stack([torch.cat((x[j] - x[center], x[center])) for j in neighbors])
            groups.append(apply(module.layers, edges, [relu, relu]).max(dim=0).values)
        points, x = points[centers], torch.stack(groups)
    grouped, results = x, []
    x = apply(network.centers, x, [relu, relu])
    for layer in network.attention:
        query = np.einsum("dc,nc->nd", layer.query_key.weight, x)
        energy = np.exp(np.einsum("nd,md->nm", query, query))
        attention = energy / np.einsum("nm->n", energy)[:, None]
        attention = attention / (1e-9 + np.einsum("nm->m", attention))
        value = np.einsum("dc,nc->nd", layer.value.weight, x) + layer.value.bias.numpy()
        attended = torch.from_numpy(np.einsum("nm,nc->mc", attention, value))
        x = x + apply(layer.offset, x - attended, [relu])
        results.append(x)
    rows = apply(network.embed, torch.cat((*results, grouped), dim=1), [leaky])
    x, penalty = network(pos[None])
    torch.testing.assert_close(x[0], rows.max(dim=0).values)
    assert penalty.item() == 0


def test_a_rotation_is_not_penalised():
    rotation = torch.linalg.qr(torch.randn(2, 8, 8).double())[0].requires_grad_()
    assert distance_from_orthogonal(rotation).item() < 1e-12
    # ||4 I - I|| of 2 I and ||I - I|| of I, averaged
    matrices = torch.stack((2 * torch.eye(9), torch.eye(9))).requires_grad_()
    penalty = distance_from_orthogonal(matrices)
    penalty.backward()
    assert penalty.item() == pytest.approx((3 * 3 + 0) / 2)
    assert matrices.grad.isfinite().all()


def head(in_features: int, first_bias: bool, second_bias: bool) -> nn.Module:
    """The benchmark's classifier of 40 classes, in->512->256->40."""
    return nn.Sequential(
        nn.Linear(in_features, 512, bias=first_bias),
        nn.BatchNorm1d(512),
        nn.Linear(512, 256, bias=second_bias),
        nn.BatchNorm1d(256),
        nn.Linear(256, 40),
    )


@pytest.mark.parametrize(
    ("network", "biases", "size", "millions"),
    [
        # Sizes: weights, biases and BatchNorms of the layers in the benchmark's repository, added
        # up. Millions: as published, by the PCT paper (PCT, DGCNN) and by ModelNet-R (the others).
        (PointNet, (True, True), 3_471_473, 3.47),
        (partial(PointNet2, stages="ssg"), (False, False), 1_472_360, 1.47),
        (PointNet2, (False, False), 1_742_856, 1.74),
        (DGCNN, (False, True), 1_809_576, 1.81),
        (PCT, (False, True), 2_876_136, 2.88),
    ],
)
def test_sizes_are_the_published_ones(network, biases, size, millions):
    with torch.device("meta"):
        backbone = network()
        modules = nn.ModuleList([backbone, head(backbone.out_channels, *biases)])
    assert sum(p.numel() for p in modules.parameters()) == size
    assert round(size / 1e6, 2) == millions


def test_pointnet_of_the_paper_has_five_layers():
    """Five layers and the second T-Net behind two of them: 2 x (64 x 64 + 3 x 64) more weights."""
    with torch.device("meta"):
        paper = PointNet(widths=(64, 64, 64, 128, 1024), tnet_layer=2)
        benchmark = PointNet()
    sizes = [sum(p.numel() for p in network.parameters()) for network in (paper, benchmark)]
    assert sizes[0] - sizes[1] == 2 * (64 * 64 + 3 * 64)
    assert [m.out_features for m in paper.early.layers if isinstance(m, nn.Linear)] == [64, 64]


@torch.no_grad()
def test_t_nets_can_be_left_out_and_can_keep_the_maximum():
    plain = in_float64(PointNet(widths=(8, 16), tnet=False, last_activation=True))
    pos = cloud(20)
    expected = apply(plain.late, apply(plain.early, pos, [relu]), [relu]).max(dim=0).values
    torch.testing.assert_close(plain(pos[None])[0][0], expected)
    assert plain(pos[None])[1].item() == 0
    for choice, width in (("same", 64), ("max", 32)):
        network = PointNet("max_mean", tnet_widths=(32,), tnet_aggregation=choice)
        assert network.out_channels == 2048
        assert network.input_transform.cloud[0].layers[0].in_features == width
        assert network.feature_transform.cloud[0].layers[0].in_features == width
