"""Decoders: masks, shifts and ends, against loops; what is generated obeys the grammar."""

import pytest
import torch
from tenfold.datamodules.icons import GeneratedIconDataModule, GeneratedIcons
from tenfold.modules.deepicon import (
    ClipIconEncoder,
    ConvIconEncoder,
    FlatDecoder,
    HierarchicalDecoder,
    IconCodec,
    TimmIconEncoder,
)
from tenfold.modules.deepicon.commands import FOLLOWS, CommandHead, levels
from tenfold.modules.deepicon.decoders import DecoderSizes, pack_paths
from tenfold.modules.deepicon.flat import END, pack_sequences
from tenfold.modules.deepicon.network import DeepIconNetwork
from tenfold.modules.deepicon.representation import (
    ARG_MASK,
    CLOSE,
    CUBIC,
    EOS,
    LINE,
    MOVE,
    PAD,
    SOS,
    IconTensors,
)

CODEC = IconCodec(max_paths=4, max_commands=12)
SIZES = DecoderSizes(4, 12, False)
SMALL = {"num_heads": 2, "dropout": 0.0, "arg_noise": 0.0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def batch():
    data = GeneratedIconDataModule(
        GeneratedIcons(max_shapes=4), num_train=8, codec=CODEC, image_size=32, batch_size=6
    )
    return next(iter(data.train_dataloader()))


def network(decoder, memory=False) -> DeepIconNetwork:
    encoder = ConvIconEncoder(32, (8, 8), 16)
    return DeepIconNetwork(encoder, decoder, 32, SIZES._replace(with_memory=memory))


def hierarchical(**settings) -> HierarchicalDecoder:
    return HierarchicalDecoder(**{"structure_layers": 1, "path_layers": 2, **SMALL, **settings})


def icons_of(batch) -> IconTensors:
    return IconTensors(*(batch[key] for key in IconTensors._fields))


@pytest.mark.parametrize("memory", [False, True])
def test_losses_are_means_over_commands_not_over_paths(batch, memory):
    """Against a loop that decodes each path alone, not cut and not sorted."""
    model = network(hierarchical(num_groups=3), memory).eval()
    losses, reports = model(batch)
    image, patches = model.encode(batch["image"])
    _, _, paths = model.decoder.slots(image, patches)
    head = model.decoder.paths.head
    nats = distance = error = 0.0
    num_commands = num_args = 0
    for icon in range(len(image)):
        for path in range(4):
            if not batch["visible"][icon, path]:
                continue
            types, args = batch["types"][icon, path][None], batch["args"][icon, path][None]
            memory_1MD = None if patches is None else patches[icon][None]
            hidden = model.decoder.paths(paths[icon, path][None], types, args, memory_1MD)[0]
            for place, type_ in enumerate(types[0].tolist()):
                if type_ == PAD:
                    break
                nats -= head.type_head(hidden[place]).log_softmax(-1)[type_]
                num_commands += 1
                given = head.arguments(hidden[place][None, None])[0, 0]
                used = ARG_MASK[type_]
                distance += ((given - args[0, place])[used] ** 2).sum()
                error += 12 * (given.clamp(-1, 1) - args[0, place])[used].abs().sum()
                num_args += int(used.sum())
    assert losses["type"].number == num_commands
    assert losses["arg"].number == num_args
    torch.testing.assert_close(losses["type"].total, nats, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["arg"].total, distance, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reports["arg_error"].total, error, rtol=1e-4, atol=1e-3)


def test_a_command_is_not_told_what_comes_after_it(batch):
    decoder = network(hierarchical()).decoder.paths.eval()
    types, args = batch["types"][:, 0], batch["args"][:, 0]
    path = torch.randn(6, 32)
    before = decoder(path, types, args)
    changed = args.clone()
    changed[:, 3] = 1.0
    after = decoder(path, types, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    told = ARG_MASK[types[:, 3]].any(-1)
    assert (before[told, 4] != after[told, 4]).any()


@pytest.mark.parametrize("memory", [False, True])
def test_the_cache_changes_nothing(batch, memory):
    """What is generated step by step, read again as a whole, is what was generated."""
    model = network(hierarchical(), memory).eval()
    with torch.no_grad():
        icons = model.generate(batch["image"], threshold=0.0)
        image, patches = model.encode(batch["image"])
        _, _, paths = model.decoder.slots(image, patches)
        memory_NMD = None if patches is None else patches.repeat_interleave(4, 0)
        flat = paths.flatten(0, 1), icons.types.flatten(0, 1), icons.args.flatten(0, 1)
        hidden = model.decoder.paths(*flat, memory_NMD)
        given = model.decoder.paths.head.arguments(hidden).clamp(-1, 1)
    used = ARG_MASK[flat[1]]
    assert used.any()
    torch.testing.assert_close(given[used], flat[2][used], rtol=1e-4, atol=1e-5)


def follows_the_grammar(types: torch.Tensor) -> bool:
    before = torch.cat([torch.tensor([SOS]), types[:-1]])
    allowed = FOLLOWS[before, types]
    # The last place has room for the end alone.
    allowed[-1] |= types[-1] == EOS
    return bool(allowed.all())


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@pytest.mark.parametrize("stop_early", [True, False])
@pytest.mark.parametrize("mode", ["autoregressive", "one_shot", "flat"])
def test_whatever_is_generated_obeys_the_grammar(batch, mode, stop_early, temperature):
    decoder = FlatDecoder(2, **SMALL) if mode == "flat" else hierarchical(path_decoder=mode)
    model = network(decoder).eval()
    icons = model.generate(batch["image"], 0.5, temperature, stop_early)
    assert icons.visible.any(dim=1).all()
    for icon in icons.icons():
        for types in icon.types[icon.visible]:
            assert follows_the_grammar(types)
        assert not icon.args[~ARG_MASK[icon.types]].any()
        assert icon.args.abs().max() <= 1
        CODEC.decode(icon)


def test_early_stops_change_no_icon(batch):
    for decoder in (hierarchical(), FlatDecoder(2, **SMALL)):
        model = network(decoder).eval()
        early, late = (model.generate(batch["image"], stop_early=stop) for stop in (True, False))
        assert torch.equal(early.visible, late.visible)
        for one, other in zip(early, late, strict=True):
            shown = (
                early.visible if one.ndim == 2 else early.visible.view(6, 4, *[1] * (one.ndim - 2))
            )
            assert torch.equal(one * shown, other * shown)


def test_the_only_visible_slot_is_kept(batch):
    icons = network(hierarchical()).eval().generate(batch["image"], threshold=1.0)
    assert icons.visible.sum(dim=1).tolist() == [1] * 6


def test_hungarian_assignment_does_not_care_for_the_order_of_true_paths(batch):
    model = network(hierarchical(path_decoder="one_shot", assignment="hungarian")).eval()
    number = batch["visible"].sum(1)
    turned = {**batch}
    order = torch.arange(4).expand(6, -1).clone()
    for row in range(6):
        order[row, : number[row]] = order[row, : number[row]].flip(0)
    for key in ("types", "args", "paint"):
        turned[key] = batch[key][torch.arange(6)[:, None], order]
    one, other = model(batch)[0], model(turned)[0]
    for name in one:
        torch.testing.assert_close(one[name].total, other[name].total, rtol=1e-4, atol=1e-4)
    ordered = network(hierarchical(path_decoder="one_shot")).eval()
    difference = ordered(batch)[0]["type"].total - ordered(turned)[0]["type"].total
    assert difference.abs() > 1e-2
    with pytest.raises(ValueError, match="one_shot"):
        hierarchical(assignment="hungarian")


def test_paths_are_packed_by_length():
    slots, groups = pack_paths([[3, 9], [4], [2, 5, 3]], 4, 3, torch.device("cpu"))
    assert slots.tolist() == [8, 0, 10, 4, 9, 1]
    assert groups == [(0, 2, 3), (2, 4, 4), (4, 6, 9)]


def test_the_flat_sequence_holds_every_path_and_its_paint(batch):
    packed = pack_sequences(icons_of(batch), batch["lengths"])
    for icon in range(6):
        expected = [
            t
            for p, n in enumerate(batch["lengths"][icon])
            for t in batch["types"][icon, p, :n].tolist()
        ]
        row = packed.types[icon].tolist()
        assert row[: len(expected)] == expected
        assert row[len(expected)] == END
        assert set(row[len(expected) + 1 :]) <= {PAD}
        paints = packed.paint[icon][packed.paint[icon] >= 0].tolist()
        assert paints == batch["paint"][icon][batch["visible"][icon]].tolist()


def test_levels_are_the_nearest():
    args = torch.linspace(-1, 1, 1001)
    head = CommandHead(8, arg_head="categorical")
    back = head.values(torch.nn.functional.one_hot(levels(args), 256).float())
    assert (back - args).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("settings", [{"arg_head": "categorical"}, {"type_conditioned_args": True}])
def test_other_heads_train_and_generate(batch, settings):
    model = network(hierarchical(**settings))
    losses, _ = model(batch)
    sum(term.total / term.number for term in losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    CODEC.decode(model.eval().generate(batch["image"]).icons()[0])


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("mode", ["autoregressive", "one_shot", "flat"])
def test_every_parameter_is_trained(batch, mode, memory):
    """DDP waits for ever for a gradient that never comes."""
    decoder = FlatDecoder(2, **SMALL) if mode == "flat" else hierarchical(path_decoder=mode)
    model = network(decoder, memory)
    losses, _ = model(batch)
    sum(term.total / term.number for term in losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "projection_dim": 24}
CLIP |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: ClipIconEncoder(config=CLIP),
        lambda: TimmIconEncoder("resnet10t", image_size=32),
        lambda: TimmIconEncoder("vit_tiny_patch16_224", image_size=224),
    ],
    ids=["clip", "resnet", "vit"],
)
def test_encoders_say_how_large_what_they_return_is(encoder):
    one = encoder()
    one.build()
    seen = one.eval()(torch.rand(2, 3, 48, 48))
    assert seen.pooled.shape == (2, one.out_features)
    assert seen.patches.shape == (2, one.num_patches, one.patch_features)


def test_a_frozen_tower_is_not_trained(batch):
    encoder = ClipIconEncoder(config=CLIP, freeze=True)
    model = DeepIconNetwork(encoder, hierarchical(), 32, SIZES)
    losses, _ = model(batch)
    losses["type"].total.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.embed[0].weight.grad is not None


def test_clips_pixels_are_those_of_its_processor():
    from transformers import CLIPImageProcessorPil

    image = torch.rand(1, 3, 32, 32)
    encoder = ClipIconEncoder(config=CLIP)
    encoder.build()
    seen = []
    encoder.tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    encoder(image)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_rescale=False)
    expected = processor(image[0].permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_the_grammar_lets_no_outline_end_before_it_has_begun():
    assert FOLLOWS[SOS].nonzero().flatten().tolist() == [MOVE]
    assert not FOLLOWS[MOVE, EOS]
    assert FOLLOWS[CLOSE].nonzero().flatten().tolist() == [MOVE, EOS]
    for drawing in (LINE, CUBIC):
        assert FOLLOWS[drawing].sum() == 5
