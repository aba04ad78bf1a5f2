"""Which tensors a merge is about, their weighted sums, and the way back to a module's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tenfold.modules.weight_averaging import (
    Trajectory,
    WeightSwap,
    buffer_names,
    mergeable_tensors,
    weighted_sum,
)
from torch import nn
from torchmetrics import MeanMetric


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.base.weight
        self.frozen = nn.Linear(3, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.metric = MeanMetric()
        self.metric.persistent(True)


def test_what_is_merged():
    network = Network()
    expected = {"base.weight", "base.bias", "norm.weight", "norm.bias", "steps"}
    expected |= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    tensors = mergeable_tensors(network)
    assert tensors.keys() == expected
    assert tensors["base.weight"].data_ptr() == network.tied.weight.data_ptr()
    assert "frozen.weight" in mergeable_tensors(network, include_frozen=True)
    assert {"steps", "norm.running_mean"} <= buffer_names(network)


def test_a_compiled_module_has_plain_names():
    compiled = nn.Sequential(torch.compile(nn.Linear(2, 2)), nn.Linear(2, 1))
    assert any("_orig_mod" in name for name in compiled.state_dict())
    assert mergeable_tensors(compiled).keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}


def merge(tensors, weights):
    return weighted_sum([lambda t=t: t for t in tensors], weights)


def test_equal_tensors_come_out_as_they_went_in():
    tensor = torch.from_numpy(np.random.default_rng(0).normal(size=1000)).float()
    assert torch.equal(merge([tensor] * 7, [1 / 7] * 7), tensor)


@given(st.data())
def test_sums_are_those_of_float64_rounded_once(data):
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    num = data.draw(st.integers(1, 12))
    weights = data.draw(st.lists(st.floats(-1, 1), min_size=num, max_size=num))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    tensors = [torch.from_numpy(rng.normal(size=(4, 3))).to(dtype) for _ in range(num)]
    total = merge(tensors, weights)
    exact = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    assert total.dtype == torch.float32
    assert torch.allclose(total.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_wide_types_stay_wide(dtype):
    tensors = [torch.ones(2, dtype=dtype), torch.full((2,), 3, dtype=dtype)]
    assert torch.equal(merge(tensors, [0.25, 0.75]), torch.full((2,), 2.5, dtype=dtype))


def test_an_input_is_never_written_to():
    first = torch.ones(3)
    assert torch.equal(merge([first, first], [1.0, 1.0]), torch.full((3,), 2.0))
    assert torch.equal(first, torch.ones(3))


def test_statistics_of_a_trajectory():
    rng = np.random.default_rng(0)
    path = {"a": rng.normal(size=(5, 6)), "b": rng.normal(size=(5, 2))}
    trajectory = Trajectory(5)
    for values in path.values():
        trajectory.add([torch.from_numpy(v) for v in values], torch.from_numpy(values.mean(0)))
    whole = np.hstack(list(path.values()))
    steps = np.diff(whole, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    cosines = (steps[:-1] * steps[1:]).sum(1) / (lengths[:-1] * lengths[1:])
    found = trajectory.statistics()
    drift = np.linalg.norm(whole[-1] - whole[0]) / lengths.sum()
    assert found["drift_ratio"] == pytest.approx(drift, rel=1e-5)
    assert found["update_cosine"] == pytest.approx(cosines.mean(), rel=1e-5)
    norms = np.linalg.norm(whole.mean(0)) / np.linalg.norm(whole[-1])
    assert found["norm_ratio"] == pytest.approx(norms, rel=1e-5)


def test_a_straight_and_a_resting_trajectory():
    straight, resting = Trajectory(3), Trajectory(3)
    straight.add([torch.tensor([float(i), 1.0]) for i in range(3)], torch.tensor([1.0, 1.0]))
    resting.add([torch.zeros(2)] * 3, torch.zeros(2))
    assert straight.statistics()["drift_ratio"] == pytest.approx(1)
    assert straight.statistics()["update_cosine"] == pytest.approx(1)
    assert resting.statistics() == {"drift_ratio": 0.0, "norm_ratio": 1.0}
    single = Trajectory(1)
    single.add([torch.ones(2)], torch.ones(2))
    assert single.statistics() == {"drift_ratio": 0.0, "norm_ratio": 1.0}


@pytest.mark.parametrize("inference", [False, True])
def test_own_values_come_back_bit_for_bit(inference):
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    versions = network.base.weight._version
    swap = WeightSwap(network, mergeable_tensors(network))
    with torch.inference_mode(inference):
        swap.put(lambda: ((name, torch.full_like(t, 3)) for name, t in swap.tensors.items()))
        assert (network.tied.weight == 3).all()
        assert swap.own is not None
        swap.restore()
        swap.restore()
    assert swap.own is None
    assert network.base.weight._version > versions  # so that caches of it notice
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_own_values_come_back_when_the_others_end_in_the_middle():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    swap = WeightSwap(network, mergeable_tensors(network))

    def broken():
        yield "0.weight", torch.zeros(2, 2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        swap.put(broken)
    assert (network[0].weight == 0).all()
    swap.restore()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
