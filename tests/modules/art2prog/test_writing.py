"""The network and how it writes programs."""

import math

import numpy as np
import pytest
import tiny_programs
import torch
from tenfold.modules.art2prog.drawing import Renderer, blank_states
from tenfold.modules.art2prog.language import Language
from tenfold.modules.art2prog.layers import execute
from tenfold.modules.art2prog.search import rerank, write_programs
from tenfold.modules.art2prog.vocabulary import BOS, PAD, Grammar


@pytest.fixture(scope="module")
def batch():
    return tiny_programs.batch(batch_size=6)


@pytest.fixture(scope="module", params=[False, True], ids=["states", "residual"])
def module(request, batch):
    """A module whose batch norms have seen data, its weights larger than they begin."""
    built = tiny_programs.module(residual_channel=request.param)
    for _ in range(20):
        built(batch)
    for parameter in built.network.body.parameters():
        parameter.data *= 2
    return built.eval()


def test_a_state_never_changes_the_tokens_before_it(module, batch):
    """Leakage: noise in what line l left behind changes tokens of later lines alone."""
    before = module(batch)
    for line in range(1, 6):
        noisy = {**batch, "state": batch["state"].clone()}
        places = batch["state_index"][batch["line"] == line].unique()
        noise = torch.randint(0, 256, noisy["state"][places].shape, dtype=torch.uint8)
        noisy["state"][places] = noise
        after = module(noisy)
        is_real = batch["target"] != PAD
        earlier, own = batch["line"] < line, (batch["line"] == line) & is_real
        assert torch.equal(after[earlier & is_real], before[earlier & is_real])
        assert (after[own] - before[own]).abs().amax(dim=-1).min() > 1e-5


def test_a_token_never_changes_what_comes_before_it(module, batch):
    before = module(batch)
    for place in (1, 5, 11):
        changed = {**batch, "token": batch["token"].clone()}
        changed["token"][:, place:] = BOS
        after = module(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_the_image_reaches_every_token(module, batch):
    other = {**batch, "image": 255 - batch["image"]}
    changed = (module(other) - module(batch)).abs().amax(dim=-1)
    assert changed.min() > 1e-6


def test_paper_is_nothing_to_see(module):
    """Else batch norm's running means lag behind what the first layer makes of so much white."""
    seen = []
    encoders = (module.network.encoder, module.network.state_encoder)
    hooks = [e.conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for e in encoders]
    white = torch.ones(1, 3, 32, 32)
    module.network.encode_images(white)
    blank = blank_states(1, 32) / 255
    module.network.encode_states(blank, white, torch.tensor([0]))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    assert not any(image.any() for image in seen)


def teacher_forced(module, program, image):
    """The log-probability of a program under the mask, from one pass without a cache."""
    tokens, places = module.vocabulary.encode(program)
    states = Renderer(module.language, 32).states(execute(program))
    line = torch.tensor([[place.line for place in places]])
    logits = module(
        {
            "image": image[None],
            "token": torch.tensor([[BOS, *tokens[:-1]]]),
            "line": line,
            "slot": torch.tensor([[place.slot for place in places]]),
            "state": torch.cat((blank_states(1, 32), states)),
            "state_index": line,
            "picture_index": torch.zeros(len(states) + 1, dtype=torch.int64),
        }
    )[0]
    grammar, total = Grammar(module.vocabulary), 0.0
    for token, row in zip(tokens, logits, strict=True):
        masked = row.masked_fill(~torch.from_numpy(grammar.allowed()), -math.inf)
        total += float(masked.log_softmax(dim=0)[token])
        grammar.push(token)
    return total


def write(module, batch, **settings):
    renderer = Renderer(module.language, 32)
    return write_programs(
        module.network, module.vocabulary, batch["image"] / 255, renderer, **settings
    )


@pytest.mark.parametrize("settings", [{}, {"beams": 3}, {"samples": 4}])
@torch.no_grad()
def test_scores_are_those_of_one_pass_and_programs_are_valid(module, batch, settings):
    """Caches, masks, states and places in step-by-step writing, against training's one pass."""
    found = write(module, batch, **settings)
    assert [len(row) for row in found] == [max(settings.values(), default=1)] * 6
    for row, image in zip(found, batch["image"], strict=True):
        assert [c.score for c in row] == sorted((c.score for c in row), reverse=True)
        for candidate in row:
            module.language.check(candidate.program)
            expected = teacher_forced(module, candidate.program, image)
            assert candidate.score == pytest.approx(expected, rel=1e-4, abs=1e-3)


def every_program(vocabulary):
    """All programs of a language, by trying every allowed token."""
    waiting, found = [Grammar(vocabulary)], []
    while waiting:
        grammar = waiting.pop()
        if grammar.is_finished:
            found.append(grammar.program)
            continue
        for token in np.flatnonzero(grammar.allowed()):
            waiting.append(grammar.copy())
            waiting[-1].push(int(token))
    return found


@torch.no_grad()
def test_beams_that_lose_nothing_find_the_likeliest_of_all_programs():
    palette = ((200, 0, 0), (0, 0, 200))
    language = Language(grid=2, radii=(), palette=palette, max_layers=1, max_lines=4)
    module = tiny_programs.module(language=language).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    programs = every_program(module.vocabulary)
    assert len(set(programs)) == len(programs) > 100
    best = max(programs, key=lambda program: teacher_forced(module, program, image[0]))
    found = write(module, {"image": image}, beams=len(programs))[0]
    assert found[0].program == best
    assert {candidate.program for candidate in found} == set(programs)
    assert sum(math.exp(candidate.score) for candidate in found) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_nearest_picture_is_taken(module, batch):
    image = batch["image"] / 255
    found = rerank(write(module, batch, beams=4), image, Renderer(module.language, 32))
    for row in found:
        assert [c.error for c in row] == sorted(c.error for c in row)
    likely = module.generate(image, beams=4)
    near = module.generate(image, beams=4, rerank_by="render")

    def errors(programs):
        pictures = [execute(program)[-1] for program in programs]
        drawn = Renderer(module.language, 32).pictures(pictures)
        return (drawn - image).square().mean(dim=(1, 2, 3))

    assert (errors(near) <= errors(likely) + 1e-7).all()
    assert [row[0].program for row in found] == near


@torch.no_grad()
def test_samples_are_many_and_the_first_is_greedy(module, batch):
    torch.manual_seed(3)
    found = write(module, batch, samples=5)
    greedy = write(module, batch)
    for row, (alone,) in zip(found, greedy, strict=True):
        assert alone.program in [candidate.program for candidate in row]
        assert len({module.language.format(candidate.program) for candidate in row}) > 1
    torch.manual_seed(3)
    again = write(module, batch, samples=5)
    assert [[c.program for c in row] for row in again] == [[c.program for c in r] for r in found]


def test_without_states_the_image_alone_is_looked_at():
    built = tiny_programs.module(use_intermediate=False).eval()
    batch = tiny_programs.batch(with_states=False)
    assert "state" not in batch
    assert built.network.state_encoder is None
    assert torch.isfinite(built.loss(batch))
    for program in built.generate(batch["image"] / 255):
        built.language.check(program)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 2, "samples": 2}, "only one of them"),
        ({"beams": 0}, "beams must be 1 or more"),
        ({"use_intermediate": False, "residual_channel": True}, "needs use_intermediate"),
        ({"decoder": {"n_layers": 2}}, "n_layers"),
        ({"encoder": {"model": "resnet19", "out_index": 2}}, "resnet19"),
        ({"encoder": {"model": "resnet18", "width": 2, "out_index": 2}}, "encoder: timm cannot"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_programs.module(**settings)


def test_missing_states_are_named():
    with pytest.raises(ValueError, match="with_states"):
        tiny_programs.module().loss(tiny_programs.batch(with_states=False))
