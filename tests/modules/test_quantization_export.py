"""Exports: what a folder holds is, bit for bit, what training multiplied with.

Outputs are compared layer by layer, from one input: through several layers the last bit of a sum,
whose order may differ, would now and then move a rounded input by a whole step.
"""

import hashlib
import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from tenfold.kernels.fake_quant import fake_quantize
from tenfold.modules.quantization import QATConfig, QuantizerConfig, prepare_qat, quantized_layers
from tenfold.modules.quantization.export import export_quantized
from tenfold.modules.quantization.inference import Int4Linear, load_quantized
from tenfold.modules.quantization.packed import dequantized_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

BF16 = torch.bfloat16
# Sums of K products of float32, or one rounding to bfloat16, in another order.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, BF16: {"rtol": 2**-7, "atol": 2**-9}}


class Kinds(nn.Module):
    """A layer of each kind, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 12)
        self.conv1d = Conv1D(20, 32)
        self.conv = nn.Conv2d(16, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        image = self.conv(x.view(-1, 16, 2, 1)).flatten(1)
        return torch.cat([self.norm(self.linear(x)), self.conv1d(x), image], dim=-1)


def qat(
    network: nn.Module, weight: dict, activation: dict | None = None, exclude: list | None = None
) -> nn.Module:
    """Prepares a network, and moves what is learned away from where it starts."""
    rounding = None if activation is None else QuantizerConfig(**{"group_size": 8} | activation)
    prepare_qat(
        network, QATConfig(QuantizerConfig(**{"group_size": 8} | weight), rounding, exclude=exclude)
    )
    for name, parameter in network.named_parameters():
        if name.endswith(("scale", "clip")):
            parameter.data *= 0.6 + 0.4 * torch.rand_like(parameter)
    return network


def kinds(weight: dict, activation: dict | None = None, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return qat(Kinds().to(dtype), weight, activation)


def lm(model_type: str = "llama", dtype=torch.float32, tie: bool = False) -> PreTrainedModel:
    sizes = {
        "llama": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
        "olmoe": {
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    }[model_type]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(
        model_type, vocab_size=48, tie_word_embeddings=tie, **(sizes | special)
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    ids = torch.arange(24).view(2, 12)
    was_training = network.training
    output = network.eval()(ids).logits
    network.train(was_training)
    return output


def rounded_state(network: nn.Module) -> dict[str, Tensor]:
    """The plain network's state dict as its forward pass sees it."""
    state = {k: v for k, v in network.state_dict().items() if "_quantizer." not in k}
    for name, layer in quantized_layers(network).items():
        state[f"{name}.weight"] = layer.quantized_weight().detach()
    return state


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# The packed format

WEIGHTS = {
    **{f"{bits} bit": {"bits": bits} for bits in range(2, 9)},
    "per channel": {"group_size": "per_channel"},
    "per tensor": {"group_size": "per_tensor"},
    "8 bit per tensor": {"group_size": "per_tensor", "bits": 8},
    "divisor 7.5": {"divisor": 7.5},
    "odd groups": {"group_size": 1},
    "lsq": {"method": "lsq"},
    "lsq per channel": {"method": "lsq", "group_size": "per_channel"},
    "lwc": {"method": "lwc"},
    "lwc per tensor 3 bit": {"method": "lwc", "group_size": "per_tensor", "bits": 3},
}


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_weights_and_outputs_are_those_of_training(name, dtype, tmp_path):
    network = kinds(WEIGHTS[name], {"bits": 8}, dtype).eval()
    export_quantized(network, tmp_path / "out", "int4")
    assert_same_state(dequantized_state_dict(tmp_path / "out"), rounded_state(network))

    loaded = load_quantized(tmp_path / "out", Kinds())
    is_packed = WEIGHTS[name].get("bits", 4) == 4 and WEIGHTS[name].get("group_size") != 1
    assert isinstance(loaded.linear, Int4Linear) == is_packed
    x = torch.randn(5, 32, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), **TOLERANCE[dtype])


def test_an_exported_weight_is_the_formula(tmp_path):
    """Against the kernel on the plain weight, not against the layer."""
    network = kinds({"bits": 4, "divisor": 7.0})
    export_quantized(network, tmp_path / "out", "int4")
    state = dequantized_state_dict(tmp_path / "out")
    weight = network.linear.weight.detach()
    assert torch.equal(state["linear.weight"], fake_quantize(weight, 8, divisor=7.0))
    expected = fake_quantize(network.conv1d.weight.detach().t().contiguous(), 8, divisor=7.0).t()
    assert torch.equal(state["conv1d.weight"], expected)


@pytest.mark.parametrize(
    "activation",
    [None, {"bits": 4}, {"group_size": "per_token", "method": "lac"}, {"grid": "fp4_e2m1"}],
)
def test_inputs_are_rounded_when_they_were_in_training(activation, tmp_path):
    network = kinds({}, activation).eval()
    export_quantized(network, tmp_path / "out", "int4")
    loaded = load_quantized(tmp_path / "out", Kinds())
    x = torch.randn(5, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), **TOLERANCE[torch.float32])
        weights_only = Kinds()
        weights_only.load_state_dict(dequantized_state_dict(tmp_path / "out"))
        assert torch.allclose(weights_only(x), network(x), atol=1e-5) == (activation is None)


def test_packing_saves_what_four_bits_save(tmp_path):
    network = qat(nn.Sequential(nn.Linear(128, 128, bias=False)), {"group_size": 32})
    written = export_quantized(network, tmp_path / "out", "int4")
    assert written.bytes_before == 4 * 128**2
    assert written.precisions == {"4 bit G=32 absmax": 1}
    codes_and_scales = 128**2 // 2 + 4 * 128**2 // 32
    assert codes_and_scales <= written.bytes_after < codes_and_scales + 300  # the file's header
    loaded = load_quantized(tmp_path / "out", nn.Sequential(nn.Linear(128, 128, bias=False)))
    assert list(loaded.parameters()) == []
    assert sum(b.numel() * b.element_size() for b in loaded.buffers()) == codes_and_scales


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "olmoe"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_packed_language_model_loads_by_itself(model_type, tie, dtype, tmp_path):
    network = qat(lm(model_type, dtype, tie), {"group_size": 16})
    export_quantized(network, tmp_path / "out", "int4")
    assert_same_state(dequantized_state_dict(tmp_path / "out"), rounded_state(network))
    random = torch.get_rng_state()
    loaded = load_quantized(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), random)
    assert not loaded.training
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tie
    packed = [m for m in loaded.modules() if isinstance(m, Int4Linear)]
    assert len(packed) == len(quantized_layers(network))
    torch.testing.assert_close(logits(loaded), logits(network), **TOLERANCE[dtype])


def test_a_packed_language_model_generates(tmp_path):
    network = qat(lm(), {"group_size": 16}, {"bits": 8, "group_size": 16})
    network.generation_config.max_new_tokens = 5
    export_quantized(network, tmp_path / "out", "int4")
    ids = torch.arange(6).view(1, 6)
    generated = load_quantized(tmp_path / "out").generate(ids, do_sample=False)
    assert generated.shape == (1, 11)
    assert torch.equal(generated, network.eval().generate(ids, do_sample=False))


def test_one_layer_under_two_names_stays_one(tmp_path):
    def twice(network: nn.Sequential) -> nn.Sequential:
        return network.append(network[0])

    network = qat(twice(nn.Sequential(nn.Linear(16, 16), nn.ReLU())), {})
    export_quantized(network, tmp_path / "out", "int4")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(stored) == ["0.bias", "0.weight_packed", "0.weight_scale"]
    plain = twice(nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    loaded = load_quantized(tmp_path / "out", plain)
    assert isinstance(loaded[0], Int4Linear)
    assert loaded[2] is loaded[0]
    x = torch.randn(3, 16)
    torch.testing.assert_close(loaded(x), network(x), **TOLERANCE[torch.float32])


def test_packed_layers_pass_gradients_to_their_inputs(tmp_path):
    network = kinds({})
    export_quantized(network, tmp_path / "out", "int4")
    x = torch.randn(2, 32, requires_grad=True)
    load_quantized(tmp_path / "out", Kinds()).linear(x).sum().backward()
    expected = network.linear.quantized_weight().sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected)


# Damage


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "out"
    export_quantized(kinds({}), path, "int4")
    return path


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-3] ^= 0x10
    (path / "model.safetensors").write_bytes(content)


def truncate(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-9])


def edit(change):
    def damage(path: Path) -> None:
        content = json.loads((path / "config.json").read_text())
        change(content)
        (path / "config.json").write_text(json.dumps(content))

    return damage


def rewrite(change):
    """Damage that the checksum does not show."""

    def damage(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")
        digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        edit(lambda content: content.update(sha256=digest))(path)

    return damage


DAMAGES = {
    "byte": (flip_a_byte, r"model.safetensors is damaged: its SHA-256 .* export again"),
    "truncated": (truncate, r"model.safetensors is damaged: its SHA-256"),
    "no tensors": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "no json": (lambda p: (p / "config.json").write_text("{"), "config.json is damaged"),
    "other json": (lambda p: (p / "config.json").write_text("[1]"), "config.json is damaged"),
    "other format": (edit(lambda c: c.update(format="x")), "format x version 1, but this tenfold"),
    "new version": (edit(lambda c: c.update(version=9)), r"packed version 9, but .* version 1"),
    "no layers": (edit(lambda c: c.pop("layers")), "config.json is damaged: it lacks layers"),
    "no shape": (
        edit(lambda c: c["layers"]["linear"]["weight"].pop("shape")),
        "config.json is damaged: layer linear",
    ),
    "shape": (
        edit(lambda c: c["layers"]["linear"]["weight"].update(shape=[12, 64])),
        r"linear.weight_packed has shape \(12, 16\), config.json says \(12, 32\)",
    ),
    "no codes": (rewrite(lambda t: t.pop("conv.weight_packed")), "conv.weight_packed is missing"),
    "scale": (
        rewrite(lambda t: t.update({"conv1d.weight_scale": torch.ones(20, 3)})),
        r"conv1d.weight_scale has shape \(20, 3\), config.json says \(20, 4\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_one_clear_error(damage, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    make, message = DAMAGES[damage]
    make(tmp_path / "out")
    for read in (dequantized_state_dict, lambda path: load_quantized(path, Kinds())):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / "out")
        assert "\n" not in str(error.value)


def test_another_network_is_refused(folder):
    with pytest.raises(ValueError, match="is no model of transformers"):
        load_quantized(folder)
    with pytest.raises(ValueError, match=r"has unknown 8 tensors .*: build the network .* a Kinds"):
        load_quantized(folder, nn.Sequential())
    wide = Kinds()
    wide.norm = nn.LayerNorm(13)
    with pytest.raises(ValueError, match=r"has other shapes for 2 tensors .* norm\.bias"):
        load_quantized(folder, wide)


# Full precision and rounded


@pytest.mark.parametrize("weight", [{}, {"method": "lsq"}, {"grid": "fp4_e2m1"}], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_hf_and_fake_load_with_from_pretrained(weight, model_type, dtype, tmp_path):
    network = qat(lm(model_type, dtype, tie=True), {"group_size": 16} | weight)
    plain = {k: v for k, v in network.state_dict().items() if "_quantizer." not in k}
    export_quantized(network, tmp_path / "hf", "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert_same_state(loaded.state_dict(), plain)

    export_quantized(network, tmp_path / "fake", "fake")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fake")
    assert_same_state(loaded.state_dict(), rounded_state(network))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(logits(loaded), logits(network), **TOLERANCE[dtype])
    assert {"float32": torch.float32, "bfloat16": BF16}[
        json.loads((tmp_path / "fake" / "config.json").read_text())["dtype"]
    ] is dtype


def test_fake_rounds_also_before_the_start_of_rounding(tmp_path):
    network = kinds({})
    expected = rounded_state(network)
    for layer in quantized_layers(network).values():
        layer.enable(False)
    export_quantized(network, tmp_path / "out", "fake")
    assert_same_state(load_file(tmp_path / "out" / "model.safetensors"), expected)
    assert not network.linear.weight_quantizer.enabled


def test_fake_of_any_other_network_is_its_state_dict(tmp_path):
    network = kinds({"method": "lwc"}, {})
    written = export_quantized(network, tmp_path / "out", "fake")
    loaded = Kinds()
    load_model(loaded, tmp_path / "out" / "model.safetensors")
    assert_same_state(loaded.state_dict(), rounded_state(network))
    assert "does not round activations" in written.notes[0]
    with pytest.raises(ValueError, match="Kinds is a model of neither transformers nor timm"):
        export_quantized(network, tmp_path / "hf", "hf")


def test_timm_models_load_with_create_model(tmp_path):
    import timm

    network = timm.create_model("resnet10t", num_classes=3)
    prepare_qat(network, QATConfig(QuantizerConfig(group_size="per_channel"), None))
    network.eval()
    export_quantized(network, tmp_path / "out", "fake")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert_same_state(loaded.state_dict(), rounded_state(network))


# compressed-tensors


def compressed_state(folder: Path) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    logits(loaded)  # it decompresses itself at the first call
    state = {k: v for k, v in loaded.state_dict().items() if not k.endswith(("_scale", "_shape"))}
    return loaded, state


COMPRESSED = {
    "4 bit groups": {"group_size": 32},
    "8 bit groups": {"group_size": 32, "bits": 8},
    "channel": {"group_size": "per_channel"},
    "tensor": {"group_size": "per_tensor"},
    "divisor": {"group_size": 32, "divisor": 7.5},
    "lsq": {"group_size": 32, "method": "lsq"},
    "lwc": {"group_size": "per_channel", "method": "lwc"},
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_loads_with_transformers(name, tmp_path):
    """float32 scales: weights are equal to the last bit, and logits up to the order of sums."""
    network = qat(lm(), COMPRESSED[name])
    written = export_quantized(network, tmp_path / "out", "compressed-tensors")
    assert written.notes == []
    loaded, state = compressed_state(tmp_path / "out")
    assert_same_state(state, rounded_state(network))
    torch.testing.assert_close(logits(loaded), logits(network), **TOLERANCE[torch.float32])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert config["ignore"] == ["lm_head"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert not hasattr(network.config, "quantization_config")


def test_compressed_tensors_holds_several_schemes_and_tied_embeddings(tmp_path):
    network = lm(tie=True)
    config = QATConfig(
        QuantizerConfig(group_size=32),
        None,
        overrides={"down_proj$": {"weight": {"bits": 8, "group_size": "per_channel"}}},
    )
    prepare_qat(network, config)
    export_quantized(network, tmp_path / "out", "compressed-tensors")
    loaded, state = compressed_state(tmp_path / "out")
    assert_same_state(state, rounded_state(network))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_compressed_tensors_in_bfloat16_rounds_scales(tmp_path):
    """AbsMax of bfloat16 weights, divided by 8, is a bfloat16; a learned scale is not."""
    exact = qat(lm(dtype=BF16), {"group_size": 32})
    written = export_quantized(exact, tmp_path / "exact", "compressed-tensors")
    assert "scales are rounded to torch.bfloat16" in written.notes[0]
    assert_same_state(compressed_state(tmp_path / "exact")[1], rounded_state(exact))

    learned = qat(lm(dtype=BF16), {"group_size": 32, "method": "lwc"})
    export_quantized(learned, tmp_path / "learned", "compressed-tensors")
    _, state = compressed_state(tmp_path / "learned")
    for name, tensor in rounded_state(learned).items():
        # One rounding of the scale and one of the product, 2^-9 each.
        torch.testing.assert_close(state[name], tensor, rtol=2**-7, atol=0)


def test_compressed_tensors_says_what_it_does_not_hold(tmp_path):
    network = qat(lm("olmoe"), {"group_size": 16}, {"group_size": 16})
    written = export_quantized(network, tmp_path / "out", "compressed-tensors")
    assert written.notes == [
        "the run rounded activations too; this format holds weights only",
        "vLLM has no fast kernel for groups of 16: only of (32, 64, 128) and rows",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert r"re:model\.layers\.0\.mlp\.experts.*" in config["ignore"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: qat(lm("gpt2"), {}), r"c_attn: .* nn.Linear weights, this is a Conv1D: use"),
        (
            lambda: qat(lm(), {"bits": 3}),
            "4 or 8 bit integer weights, this one is 3 bit G=8 absmax",
        ),
        (lambda: qat(lm(), {"grid": "fp4_e2m1"}), "this one is fp4_e2m1 G=8 absmax"),
        (lambda: kinds({}), "for models of transformers, not Kinds: use --format int4"),
    ],
)
def test_compressed_tensors_refuses_what_it_cannot_hold(network, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_quantized(network(), tmp_path / "out", "compressed-tensors")
    assert list(tmp_path.iterdir()) == []


# What an export leaves alone

FORMATS = ["hf", "fake", "int4", "compressed-tensors"]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_live_model_goes_on_as_if_nothing_had_happened(format_, tmp_path):
    network = qat(
        lm(), {"group_size": 16, "method": "lsq"}, {"group_size": 16, "method": "lac"}
    ).train()
    before, config = deepcopy(network.state_dict()), network.config.to_dict()
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    identities = {name: id(parameter) for name, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    export_quantized(network, tmp_path / "out", format_)

    assert_same_state(network.state_dict(), before)
    assert network.config.to_dict() == config
    assert [(n, type(m), m.training) for n, m in network.named_modules()] == modules
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == identities
    ids = torch.arange(24).view(2, 12)
    network(ids, labels=ids).loss.backward()
    optimizer.step()
    for name, layer in quantized_layers(network).items():
        assert not torch.equal(layer.weight, before[f"{name}.weight"]), name


@pytest.mark.parametrize("format_", FORMATS)
def test_an_existing_folder_is_kept_until_overwrite(format_, tmp_path):
    out = tmp_path / "out"
    first, second = qat(lm(), {"group_size": 32}), qat(lm(), {"group_size": 32})
    second.model.norm.weight.data.fill_(3.0)
    export_quantized(first, out, format_)
    content = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists: choose another folder, or pass --overwrite"):
        export_quantized(second, out, format_)
    assert (out / "model.safetensors").read_bytes() == content
    (out / "stale.txt").touch()
    export_quantized(second, out, format_, overwrite=True)
    assert (load_file(out / "model.safetensors")["model.norm.weight"] == 3).all()
    assert not (out / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_never_deleted(tmp_path):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="holds no export, so it is not overwritten"):
        export_quantized(kinds({}), tmp_path / "thesis", "int4", overwrite=True)
    assert (tmp_path / "thesis").is_dir()


@pytest.mark.parametrize("format_", ["int4", "fake", "compressed-tensors"])
def test_a_failed_export_leaves_the_old_one(format_, tmp_path):
    network = qat(lm(), {"group_size": 32})
    export_quantized(network, tmp_path / "out", format_)
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    network.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"down_proj.weight holds NaN or infinity: training diver"):
        export_quantized(network, tmp_path / "out", format_, overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format_", ["int4", "fake", "compressed-tensors"])
def test_without_quantised_weights_there_is_nothing_to_export(format_, tmp_path):
    only_inputs = lm()
    prepare_qat(only_inputs, QATConfig(None, QuantizerConfig(group_size=16)))
    for network in (lm(), only_inputs):
        with pytest.raises(
            ValueError, match=r"no weight .* is quantised.*--config overlays/qat_w4"
        ):
            export_quantized(network, tmp_path / "out", format_)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_packed_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="the grid fp4_e2m1 has no integer codes: use --format fa"):
        export_quantized(kinds({"grid": "fp4_e2m1"}), tmp_path / "out", "int4")
    with pytest.raises(ValueError, match="the network is a single layer without a name"):
        export_quantized(qat(nn.Linear(8, 8), {}), tmp_path / "out", "int4")
    with pytest.raises(ValueError, match="format: 'onnx' is none of hf, fake, int4, compressed"):
        export_quantized(kinds({}), tmp_path / "out", "onnx")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
