"""Training speed of our PointNet, with maximum and with Set-Mixer, against torch-geometric's parts.

    python tests/benchmarks/point_cloud_training.py [--num_points 256] [--repeats 20]

The plain torch-geometric PointNet is its MLP on the rows of a ragged batch, `global_max_pool`, and
an MLP as head, with the quickstart's widths. All take the same steps: forward, smoothed
cross-entropy, backward, AdamW. Each round times every network once, in turn; the ratios are medians
over rounds, so that a machine that slows down slows all of them.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from report import ratio
from tenfold.modules.point_cloud import PointCloudClassifier, PointNet
from tenfold.modules.set_mixer import SetMixerAggregation
from torch import Tensor, nn
from torch_geometric.nn import MLP, global_max_pool

WIDTHS = (64, 64, 128, 128)
NUM_CLASSES = 13


class PlainPointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points = MLP([3, *WIDTHS], plain_last=False)
        self.head = MLP([WIDTHS[-1], 256, NUM_CLASSES], dropout=[0.5, 0.0])

    def forward(self, pos_BN3: Tensor) -> Tensor:
        num_clouds, num_points, _ = pos_BN3.shape
        batch = torch.arange(num_clouds, device=pos_BN3.device).repeat_interleave(num_points)
        return self.head(global_max_pool(self.points(pos_BN3.flatten(0, 1)), batch, num_clouds))


def ours(aggregation) -> PointCloudClassifier:
    backbone = PointNet(aggregation, widths=WIDTHS, tnet=False, last_activation=True)
    return PointCloudClassifier(backbone, NUM_CLASSES, head_widths=(256,))


def main(num_points: int = 256, batch_size: int = 32, repeats: int = 20) -> None:
    """Prints clouds per second and ratios.

    Args:
        num_points: Points per cloud.
        batch_size: Clouds per step.
        repeats: Rounds that are timed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    networks = {
        "torch-geometric, max": PlainPointNet(),
        "ours, max": ours("max"),
        "ours, Set-Mixer, slots by mean": ours(SetMixerAggregation),
        "ours, Set-Mixer, slots by maximum": ours(lambda c: SetMixerAggregation(c, pooling="max")),
    }
    pos = torch.randn(batch_size, num_points, 3, device=device)
    label = torch.randint(NUM_CLASSES, (batch_size,), device=device)
    steps = {}
    for name, network in networks.items():
        network.to(device).train()
        optimizer = torch.optim.AdamW(network.parameters())

        def step(network=network, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(pos), label, label_smoothing=0.2).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()

        steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 3:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - start)
    reference = seconds["torch-geometric, max"]
    print(f"{device}, {torch.get_num_threads()} threads, {tuple(pos.shape)}")
    faster = {
        name: statistics.median(r / t for r, t in zip(reference, times, strict=True))
        for name, times in seconds.items()
    }
    for name, times in seconds.items():
        speed = batch_size / statistics.median(times)
        print(f"{name:36} {speed:8.0f} clouds/s   {faster[name]:5.2f} x torch-geometric")
    for name in list(networks)[1:]:
        ratio(f"clouds/s of training, {name} / torch-geometric, {num_points} points", faster[name])


if __name__ == "__main__":
    auto_cli(main)
