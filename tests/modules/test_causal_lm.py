import pytest
import torch
from tenfold.modules.causal_lm import (
    build_config,
    decoder_layers,
    flops_per_token,
    num_non_embedding_parameters,
    pretrained_network,
    random_network,
)
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 64}, "config: unknown 'hiden_size'; did you mean hidden_size"),
        ({"zzz": 1}, "config: unknown 'zzz'; transformers has no such key"),
        ({"model_type": "lama"}, "config.model_type: unknown 'lama'; did you mean .*llama"),
        ({"model_type": "vit"}, "config.model_type: unknown 'vit'"),
        ({"hidden_size": "wide"}, "config: .*'hidden_size' expected int, got str"),
        ({"hidden_size": 33}, r"config: .*hidden size \(33\) is not a multiple"),
    ],
)
def test_wrong_settings_are_named(dense, change, message):
    with pytest.raises(ValueError, match=message) as error:
        build_config(dense | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["rope_theta", "attn_implementation", "head_dim"])
def test_settings_that_transformers_takes_silently_are_accepted(dense, key):
    values = {"rope_theta": 5e5, "attn_implementation": "eager", "head_dim": 16}
    config = build_config(dense | {key: values[key]})
    if key == "rope_theta":
        assert config.rope_parameters["rope_theta"] == 5e5


def test_special_tokens_are_unset_unless_given(experts):
    config = build_config(experts)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert build_config(experts | {"eos_token_id": 3}).eos_token_id == 3
    embedding = random_network(config, 0).get_input_embeddings().weight
    assert bool((embedding != 0).any(dim=1).all())  # no row silenced as padding


def test_random_weights_depend_on_the_seed_alone(dense):
    config = build_config(dense)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = random_network(config, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = random_network(config, 7), random_network(config, 8)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_meta_device_holds_shapes_only(dense):
    with torch.device("meta"):
        network = random_network(build_config(dense), 0)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    real = random_network(build_config(dense), 0)
    assert [p.shape for p in network.parameters()] == [p.shape for p in real.parameters()]


def test_pretrained_weights_come_back_in_the_default_dtype(dense, tmp_path):
    source = random_network(build_config(dense), 3).to(torch.bfloat16)
    source.save_pretrained(tmp_path)
    network = pretrained_network(str(tmp_path))
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, source.state_dict()[name].float())
    with torch.device("meta"):
        assert pretrained_network(str(tmp_path)).lm_head.weight.is_meta


def test_missing_pretrained_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pretrained: cannot load '.*nowhere'") as error:
        pretrained_network(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_decoder_layers_are_the_repeated_ones(any_config):
    layers = decoder_layers(random_network(build_config(any_config), 0))
    assert [type(layer).__name__[-12:] for layer in layers] == ["DecoderLayer"] * 2


def test_non_embedding_parameters_by_hand(dense):
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    per_layer = attention + 3 * 32 * 48 + 2 * 32
    for tied in (False, True):
        network = random_network(build_config(dense | {"tie_word_embeddings": tied}), 0)
        assert num_non_embedding_parameters(network) == 2 * per_layer + 32


def test_flops_by_hand(dense, experts):
    length, width, vocab = 24, 32, 32
    attention = 2 * width * width + 2 * width * 16  # q, o, k, v weights
    scores = 2 * 2 * length * width  # q k^T and weights times v, per token
    layer = 2 * (attention + 3 * width * 48) + scores
    assert flops_per_token(build_config(dense), length) == pytest.approx(
        3 * (2 * layer + 2 * width * vocab),
        rel=0.02,  # the first layer's input needs no gradient
    )
    active = 2 * (attention + 4 * width + 2 * 3 * width * 48) + scores  # router, 2 of 4 experts
    assert flops_per_token(build_config(experts), length) == pytest.approx(
        3 * (2 * active + 2 * width * vocab), rel=0.02
    )


def test_counting_flops_leaves_the_random_state_alone(dense):
    state = torch.get_rng_state()
    flops_per_token(build_config(dense), 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_saved_networks_load_without_this_library(dense, tmp_path):
    network = random_network(build_config(dense), 0)
    network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, network.lm_head.weight)
