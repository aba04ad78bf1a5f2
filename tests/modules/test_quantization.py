"""Fake-quantised layers: what is rounded, what is learned, and that nothing else changes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tenfold.kernels.fake_quant import fake_quantize
from tenfold.modules.causal_lm import build_config, random_network
from tenfold.modules.quantization import (
    FakeQuantLayer,
    FakeQuantLinear,
    QATConfig,
    QuantizerConfig,
    prepare_qat,
    quantized_layers,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SMALL = QuantizerConfig(group_size=8)


def config(
    weight: QuantizerConfig | None = SMALL, activation: QuantizerConfig | None = SMALL, **kwargs
) -> QATConfig:
    return QATConfig(weight, activation, **kwargs)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.block = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x).relu()))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rounded(x: Tensor, group_size: int = 8, **kwargs) -> Tensor:
    return fake_quantize(x, group_size, **kwargs)


# Layers


def test_a_linear_layer_multiplies_rounded_by_rounded(net):
    plain = copy.deepcopy(net)
    prepare_qat(net, config())
    x = torch.randn(5, 16)
    layer = plain.first
    expected = F.linear(rounded(x), rounded(layer.weight), layer.bias)
    assert torch.equal(net.first(x), expected)


@pytest.mark.parametrize("which", ["weight", "activation"])
def test_one_side_alone(net, which):
    plain = copy.deepcopy(net)
    prepare_qat(net, config(**{"weight": None, "activation": None, which: SMALL}))
    x = torch.randn(5, 16)
    parts = {"weight": plain.first.weight, "activation": x}
    parts[which] = rounded(parts[which])
    expected = F.linear(parts["activation"], parts["weight"], plain.first.bias)
    assert torch.equal(net.first(x), expected)


@pytest.mark.parametrize("group_size", [8, "whole row", "per_tensor"])
@pytest.mark.parametrize(
    ("layer", "shape", "to_rows"),
    [
        (Conv1D(12, 16), (2, 3, 16), lambda w: w.t()),
        (nn.Conv1d(16, 4, 3), (2, 16, 9), lambda w: w.movedim(1, -1).flatten(1)),
        (nn.Conv2d(16, 4, 1), (2, 16, 5, 5), lambda w: w.movedim(1, -1).flatten(1)),
        (nn.Conv2d(16, 8, 3, padding=1, stride=2, groups=2), (2, 16, 6, 6), None),
        (nn.Conv3d(16, 4, 2), (1, 16, 3, 3, 3), lambda w: w.movedim(1, -1).flatten(1)),
    ],
    ids=["Conv1D", "Conv1d", "1x1", "Conv2d, groups", "Conv3d"],
)
def test_other_layers_round_along_the_features(layer, shape, to_rows, group_size):
    network = nn.Sequential(copy.deepcopy(layer))
    sizes = ("per_channel", "per_token") if group_size == "whole row" else (group_size,) * 2
    prepare_qat(network, QATConfig(*(QuantizerConfig(group_size=size) for size in sizes)))
    x = torch.randn(shape)
    feature_dim = -1 if isinstance(layer, Conv1D) else 1
    features = x.movedim(feature_dim, -1)
    to_rows = to_rows or (lambda w: w.movedim(1, -1).flatten(1))
    rows = to_rows(layer.weight)
    if group_size == "per_tensor":
        features = rounded(features.reshape(-1), features.numel()).view(features.shape)
        rows = rounded(rows.reshape(-1), rows.numel()).view(rows.shape)
    else:
        features = rounded(features, 8 if group_size == 8 else features.shape[-1])
        rows = rounded(rows, 8 if group_size == 8 else rows.shape[-1])
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        weight = expected.weight
        if isinstance(layer, Conv1D):
            weight.copy_(rows.t())
        else:
            kernel = weight.shape[2:]
            weight.copy_(rows.view(len(rows), *kernel, -1).movedim(-1, 1))
    y = network(x)
    torch.testing.assert_close(y, expected(features.movedim(-1, feature_dim)))
    y.sum().backward()
    assert network[0].weight.grad.abs().sum() > 0


def test_a_layer_is_the_same_object_with_the_same_parameters_and_keys(net):
    first, weight, keys = net.first, net.first.weight, list(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters())
    prepare_qat(net, config())
    assert net.first is first
    assert net.first.weight is weight
    assert isinstance(net.first, nn.Linear)
    assert isinstance(net.first, FakeQuantLinear)
    assert list(net.state_dict()) == keys
    assert {id(p) for p in net.parameters()} == {
        id(p) for group in optimizer.param_groups for p in group["params"]
    }


def test_a_plain_state_loads_into_a_quantised_network_and_back(net):
    plain = copy.deepcopy(net)
    prepare_qat(net, config())
    net.load_state_dict({k: v + 1 for k, v in plain.state_dict().items()})
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.first.weight, net.first.weight)


def test_copies_are_independent(net):
    prepare_qat(net, config())
    other = copy.deepcopy(net)
    x = torch.randn(2, 16)
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        other.first.weight.zero_()
    assert not torch.equal(other(x), net(x))


def test_not_enabled_is_plain(net):
    x = torch.randn(5, 16)
    expected = net(x)
    prepare_qat(net, config())
    for layer in quantized_layers(net).values():
        layer.enable(False)
    assert torch.equal(net(x), expected)


def test_half_precision_networks_stay_in_it(net):
    net.bfloat16()
    prepare_qat(net, config())
    y = net(torch.randn(4, 16).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_autocast_rounds_the_master_weight(net):
    prepare_qat(net, config(activation=None))
    seen = []
    net.first.weight_quantizer.register_forward_pre_hook(lambda m, a: seen.append(a[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(4, 16))
    assert (seen, y.dtype) == ([torch.float32], torch.bfloat16)


# Which layers


def test_patterns_say_what_is_quantised_and_how(net):
    done = prepare_qat(
        net,
        config(
            exclude=["head"],
            overrides={"block": {"activation": {"bits": 8}}, r"block\.2": {"weight": None}},
        ),
    )
    assert list(done.layers) == ["first", "block.0", "block.2"]
    assert net.block[0].input_quantizer.config.bits == 8
    assert net.block[0].weight_quantizer.config.bits == 4
    assert net.block[2].weight_quantizer is None
    assert net.block[2].input_quantizer.config.bits == 8
    assert type(net.head) is nn.Linear
    assert "block.* (1): weight 4 bit G=8 absmax · activation 8 bit G=8 absmax" in done.table()


def test_the_head_of_a_language_model_is_left_by_default():
    settings = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    network = random_network(build_config(settings | heads), 0)
    done = prepare_qat(network, config())
    assert len(done.layers) == 14
    assert type(network.lm_head) is nn.Linear
    assert not done.uncovered


@pytest.mark.parametrize("model_type", ["olmoe", "gpt2", "t5"])
def test_other_architectures(model_type):
    from transformers import AutoConfig, AutoModel

    sizes = {
        "olmoe": {
            "hidden_size": 16,
            "eos_token_id": None,
            "intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "t5": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2},
    }[model_type]
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = sizes | (heads if model_type == "olmoe" else {}) | {"vocab_size": 32}
    network = AutoModel.from_config(AutoConfig.for_model(model_type, **settings))
    done = prepare_qat(network, config())
    kinds = {type(m).__name__ for m in network.modules() if isinstance(m, FakeQuantLayer)}
    ids = torch.randint(32, (2, 6))
    more = {"decoder_input_ids": ids} if model_type == "t5" else {}
    output = network(input_ids=ids, **more).last_hidden_state
    output.square().sum().backward()
    grads = [m.weight.grad for m in network.modules() if isinstance(m, FakeQuantLayer)]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    if model_type == "olmoe":  # the experts are three-dimensional parameters
        assert any("experts" in name for name in done.uncovered)
        assert len(done.layers) == 8
    else:
        assert not done.uncovered
        assert kinds == {"FakeQuantConv1D" if model_type == "gpt2" else "FakeQuantLinear"}


def test_what_is_not_covered_is_named():
    network = nn.Sequential(nn.Linear(16, 16), nn.MultiheadAttention(16, 2), nn.Embedding(8, 16))
    done = prepare_qat(network, config())
    assert list(done.layers) == ["0"]
    assert done.uncovered == ["1", "1.out_proj"]


def test_indivisible_layers_are_an_error_or_are_left():
    network = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 8))
    message = r"0: weight group_size 8 does not divide its 3 input features: .*indivisible: skip"
    with pytest.raises(ValueError, match=message):
        prepare_qat(network, config())
    assert type(network[1]) is nn.Linear  # nothing was changed
    done = prepare_qat(network, config(indivisible="skip"))
    assert (list(done.layers), done.indivisible) == (["1"], ["0"])
    with pytest.raises(ValueError, match="the group size divides the features of no layer"):
        prepare_qat(nn.Sequential(nn.Linear(3, 16)), config(indivisible="skip"))


def test_preparing_twice_changes_nothing_and_otherwise_is_refused(net):
    first = prepare_qat(net, config())
    quantizer = net.first.weight_quantizer
    assert prepare_qat(net, config()).layers == first.layers
    assert net.first.weight_quantizer is quantizer
    with pytest.raises(ValueError, match="first is already quantised otherwise"):
        prepare_qat(net, config(activation=None))


def test_a_weight_shared_with_a_plain_layer_is_refused():
    settings = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
    more = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    tied = {"tie_word_embeddings": True}
    network = random_network(build_config(settings | more | tied), 0)
    with pytest.raises(ValueError, match=r"lm_head shares its weight with model.embed_tokens"):
        prepare_qat(network, config(exclude=["no such layer|mlp"]))
    done = prepare_qat(network, config())
    assert "lm_head" not in done.layers
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_tied_quantised_layers_stay_tied():
    network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    network[1].weight = network[0].weight
    prepare_qat(network, config())
    assert network[1].weight is network[0].weight
    network(torch.randn(2, 16)).sum().backward()
    assert network[0].weight.grad is not None


def test_one_layer_under_two_names_is_quantised_once():
    network = nn.ModuleDict({"one": nn.Linear(16, 16)})
    network["other"] = network["one"]
    assert list(prepare_qat(network, config()).layers) == ["one"]
    assert network["other"] is network["one"]
    assert isinstance(network["other"], FakeQuantLinear)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizerConfig(bits=1), "bits must be from 2 to 8, got 1"),
        (lambda: QuantizerConfig(bits=9), "bits must be from 2 to 8, got 9"),
        (lambda: QuantizerConfig(method="minmax"), "method: 'minmax' is none of absmax, lsq"),
        (lambda: QuantizerConfig(group_size=0), "group_size must be 1 or more, got 0"),
        (lambda: QuantizerConfig(group_size="per_row"), "group_size: 'per_row' is neither"),
        (lambda: QuantizerConfig(divisor=0), "divisor must be positive, got 0"),
        (lambda: QATConfig(None, None), "weight and activation are both null"),
        (lambda: config(QuantizerConfig(method="lac")), "weight: method 'lac' is not for a weight"),
        (lambda: config(activation=QuantizerConfig(method="lsq")), "method 'lsq' is not for a"),
        (
            lambda: config(QuantizerConfig(group_size="per_token")),
            "'per_token' is not for a weight",
        ),
        (lambda: config(overrides={"(": {}}), r"pattern '\(' is no regular expression"),
        (
            lambda: config(overrides={"a": {"input": {}}}),
            "'input' is neither weight nor activation",
        ),
        (lambda: config(overrides={"a": {"weight": {"bit": 4}}}), "unknown key 'bit'; there are"),
        (
            lambda: config(overrides={"a": {"weight": {"bits": 1}}}),
            r"overrides\['a'\].weight: bits",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"include": ["nothing"]}, "pattern 'nothing' matches no module of Net"),
        ({"exclude": ["nothing"]}, "pattern 'nothing' matches no module of Net"),
        ({"overrides": {"nothing": {"weight": None}}}, "pattern 'nothing' matches no module"),
        ({"include": [r"block\.1"]}, "nothing to quantise"),
    ],
)
def test_patterns_that_match_nothing_are_errors(net, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_qat(net, config(**change))


def test_a_short_name_for_the_precision():
    assert config().precision == "w4a4"
    assert config(activation=None).precision == "w4a16"
    eight = {"down_proj$": {"activation": {"bits": 8}}}
    assert config(overrides=eight).precision == "w4a4[down_proj$:a8]"
    assert config(QuantizerConfig(grid="fp4_e2m1")).precision == "wfp4a4"


# Learned scales


def learned(method: str, **kwargs) -> QATConfig:
    quantizer = QuantizerConfig(group_size=8, method=method, **kwargs)
    return config(activation=quantizer) if method == "lac" else config(weight=quantizer)


@pytest.mark.parametrize(
    ("method", "name", "shape"),
    [
        ("lsq", "weight_quantizer.scale", (24, 2)),
        ("lwc", "weight_quantizer.clip", (24, 2)),
        ("lac", "input_quantizer.clip", (2,)),
    ],
)
def test_learned_scales_are_parameters_that_move(net, method, name, shape):
    prepare_qat(net, learned(method))
    param = dict(net.first.named_parameters())[name]
    assert param.shape == shape
    before = param.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(32, 16) * 3).square().mean().backward()
    assert param.grad.abs().sum() > 0
    optimizer.step()
    for layer in quantized_layers(net).values():
        layer.project()
    assert not torch.equal(param, before)
    assert param.min() > 0
    assert name.endswith("scale") or param.max() <= 1


def test_lsq_starts_from_the_weights_and_scales_its_gradient(net):
    weight = net.first.weight.detach().clone()
    prepare_qat(net, learned("lsq"))
    expected = 2 * weight.view(24, 2, 8).abs().mean(-1) / math.sqrt(7)
    torch.testing.assert_close(net.first.weight_quantizer.scale.detach(), expected)
    scale = expected.clone().requires_grad_()
    fake_quantize(weight, 8, scale=scale).sum().backward()
    net.first.quantized_weight().sum().backward()
    mine = net.first.weight_quantizer.scale.grad
    torch.testing.assert_close(mine, scale.grad / math.sqrt(8 * 7))


def test_learned_scales_missing_from_a_plain_state_start_from_its_weights(net):
    plain = copy.deepcopy(net)
    with torch.no_grad():
        plain.first.weight.mul_(5)
    prepare_qat(net, learned("lsq"))
    before = net.first.weight_quantizer.scale.detach().clone()
    assert not net.load_state_dict(plain.state_dict()).missing_keys
    torch.testing.assert_close(net.first.weight_quantizer.scale.detach(), before * 5)
    state = net.state_dict()
    state["first.weight_quantizer.scale"] = before
    net.load_state_dict(state)
    assert torch.equal(net.first.weight_quantizer.scale, before)


def test_weight_decay_spares_learned_scales(net):
    from tenfold.modules.optimization import parameter_groups

    prepare_qat(net, learned("lwc"))
    decayed, spared = parameter_groups(net)
    clip = net.first.weight_quantizer.clip
    assert any(p is clip for p in spared["params"])
    assert not any(p is clip for p in decayed["params"])


def test_learned_parameters_have_a_zero_gradient_while_not_enabled(net):
    prepare_qat(net, learned("lac"))
    for layer in quantized_layers(net).values():
        layer.enable(False)
    net(torch.randn(3, 16)).sum().backward()
    assert net.first.input_quantizer.clip.grad.abs().sum() == 0


# Rounding a weight once


@pytest.mark.parametrize("method", ["absmax", "lsq"])
def test_a_cached_weight_changes_neither_values_nor_gradients(net, method):
    prepare_qat(net, config(QuantizerConfig(group_size=8, method=method)))
    other = copy.deepcopy(net)
    for layer in quantized_layers(net).values():
        layer.cache_weight = True
    x = torch.randn(4, 16)
    for _ in range(3):  # accumulation: three backward passes
        for network in (net, other):
            network(x).square().sum().backward()
    for (name, one), two in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name


def test_a_cached_weight_is_rounded_once_until_it_changes(net):
    prepare_qat(net, config(activation=None))
    layer, calls = net.first, []
    layer.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    layer.cache_weight = True
    x = torch.randn(4, 16)
    layer(x)
    layer(x)
    assert len(calls) == 1
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    layer(x).sum().backward()
    optimizer.step()
    y = layer(x)
    assert len(calls) == 2
    assert torch.equal(y, F.linear(x, rounded(layer.weight), layer.bias))
    layer.weight.data.mul_(2)  # no version tells
    layer.drop_cached_weight()
    assert torch.equal(layer(x), F.linear(x, rounded(layer.weight), layer.bias))


def test_a_quantised_network_compiles_into_one_graph(net):
    prepare_qat(net, config(QuantizerConfig(group_size=8, method="lsq")))
    x = torch.randn(6, 16)
    fast = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(x), net(x))
    mine = torch.autograd.grad(fast(x).sum(), net.first.weight)
    torch.testing.assert_close(mine, torch.autograd.grad(net(x).sum(), net.first.weight))


def test_recomputed_activations_give_the_same_gradients(net):
    from torch.utils.checkpoint import checkpoint

    prepare_qat(net, config())
    x = torch.randn(6, 16, requires_grad=True)
    expected = torch.autograd.grad(net(x).square().sum(), (x, net.block[0].weight))
    again = checkpoint(net, x, use_reentrant=False).square().sum()
    for one, two in zip(
        torch.autograd.grad(again, (x, net.block[0].weight)), expected, strict=True
    ):
        assert torch.equal(one, two)


# Rounding an input once


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor, between=lambda x: None) -> Tensor:
        q = self.q_proj(x)
        between(x)
        return self.o_proj(q * self.k_proj(x))


def count_roundings(monkeypatch) -> list[Tensor]:
    from tenfold.modules.quantization import layers

    seen: list[Tensor] = []

    def counted(x: Tensor, *args, **kwargs) -> Tensor:
        seen.append(x)
        return fake_quantize(x, *args, **kwargs)

    monkeypatch.setattr(layers, "fake_quantize", counted)
    return seen


def test_neighbours_round_the_input_they_share_once(monkeypatch):
    attention = Attention()
    prepare_qat(attention, config(weight=None))
    other = copy.deepcopy(attention)
    for layer in quantized_layers(other).values():
        layer.input_quantizer.is_shared = False
    x = torch.randn(4, 16, requires_grad=True)
    seen = count_roundings(monkeypatch)
    mine = attention(x)
    assert len(seen) == 2  # of q_proj and k_proj one, of o_proj one
    expected = other(x)
    assert len(seen) == 5
    assert torch.equal(mine, expected)
    inputs = (x, attention.q_proj.weight, attention.k_proj.weight)
    others = (x, other.q_proj.weight, other.k_proj.weight)
    grads = torch.autograd.grad(mine.square().sum(), inputs)
    for one, two in zip(grads, torch.autograd.grad(expected.square().sum(), others), strict=True):
        assert torch.equal(one, two)
    for _ in range(2):  # the same tensor again, after its graph is gone
        attention(x).sum().backward()


def test_a_changed_input_is_rounded_again(monkeypatch):
    attention = Attention()
    prepare_qat(attention, config(weight=None))
    x = torch.randn(4, 16)
    plain = Attention()
    plain.load_state_dict(attention.state_dict())
    y = attention(x.clone(), between=lambda x: x.mul_(3))
    q = F.linear(rounded(x), plain.q_proj.weight, plain.q_proj.bias)
    k = F.linear(rounded(3 * x), plain.k_proj.weight, plain.k_proj.bias)
    assert torch.equal(y, F.linear(rounded(q * k), plain.o_proj.weight, plain.o_proj.bias))
    with torch.inference_mode():  # where no version tells
        again = attention(x.clone(), between=lambda x: x.mul_(3))
    assert torch.equal(again, y)


def test_a_shared_rounding_is_forgotten_with_its_input():
    attention = Attention()
    prepare_qat(attention, config())
    with torch.no_grad():
        attention(torch.randn(4, 16))
    assert attention.q_proj.input_quantizer._last is None
    x = torch.randn(4, 16)
    attention.q_proj(x)
    assert attention.q_proj.input_quantizer._last is not None
    assert copy.deepcopy(attention).q_proj.input_quantizer._last is None


@pytest.mark.parametrize("change", [{"method": "lac"}, {"ste": "through_scale"}])
def test_what_needs_its_own_backward_pass_is_not_shared(change):
    attention = Attention()
    prepare_qat(attention, config(activation=QuantizerConfig(group_size=8, **change)))
    quantizers = {id(layer.input_quantizer) for layer in quantized_layers(attention).values()}
    assert len(quantizers) == 3
