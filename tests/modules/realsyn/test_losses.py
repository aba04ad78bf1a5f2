"""The losses: against open_clip's and plain formulas, and on several processes against one."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tenfold.modules.realsyn.losses import ContrastiveLoss
from torch import nn
from torch.multiprocessing.spawn import spawn

PAIRS = 16
KINDS = ("clip", "siglip")
SAME = ((True, True), (False, True))  # local_loss, gather_with_grad


def embeddings(pairs=PAIRS, width=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, pairs, width, generator=generator, dtype=torch.float64)
    return F.normalize(both, dim=-1).to(dtype)


def brute(kind, image, text, log_scale, bias):
    """In float64, pair by pair."""
    total = 0.0
    scale = math.exp(log_scale.item())
    logits = [[scale * (i @ t).item() for t in text] for i in image]
    number = len(logits)
    for i in range(number):
        if kind == "siglip":
            for j in range(number):
                z = (logits[i][j] + bias.item()) * (1 if i == j else -1)
                total += math.log1p(math.exp(-z)) / number
        else:
            row = math.log(sum(map(math.exp, logits[i])))
            column = math.log(sum(math.exp(logits[j][i]) for j in range(number)))
            total += (row + column - 2 * logits[i][i]) / 2 / number
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_formulas(kind):
    image, text = embeddings(dtype=torch.float64)
    loss = ContrastiveLoss(kind)
    bias = loss.logit_bias if kind == "siglip" else torch.zeros(1)
    expected = brute(kind, image, text, loss.logit_scale, bias)
    assert loss(image, text).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_open_clips(kind):
    from open_clip.loss import ClipLoss, SigLipLoss  # here: the processes below need not load it

    image, text = embeddings()
    loss = ContrastiveLoss(kind)
    scale = loss.logit_scale.exp()
    if kind == "clip":
        theirs = ClipLoss()(image, text, scale)
        assert scale.item() == pytest.approx(1 / 0.07)
    else:
        theirs = SigLipLoss()(image, text, scale, loss.logit_bias)
    torch.testing.assert_close(loss(image, text), theirs)


def test_the_scale_stays_between_1_and_100():
    loss = ContrastiveLoss()
    for value, kept in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))):
        nn.init.constant_(loss.logit_scale, value)
        loss.clamp()
        assert loss.logit_scale.exp().item() == pytest.approx(kept)


def test_half_precision_under_autocast_is_computed_in_float32():
    image, text = embeddings()
    loss = ContrastiveLoss()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(image, text)
    assert torch.equal(inside, loss(image, text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"local_loss": True, "gather_with_grad": False}, "gather_with_grad: true"),
        ({"label_smoothing": 1.0}, "label_smoothing: 1.0"),
        ({"kind": "siglip", "label_smoothing": 0.1}, "0 for siglip"),
    ],
)
def test_bad_pairs_of_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss(**arguments)


class Towers(nn.Module):
    """Two linear towers and a loss."""

    def __init__(self, kind, **flags):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 5), nn.Linear(6, 5)
        self.loss = ContrastiveLoss(kind, **flags)

    def forward(self, image, text):
        towers = (self.image(image), self.text(text))
        return self.loss(*(F.normalize(features, dim=-1) for features in towers))


def gradients(module, loss):
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def _rank(rank: int, world: int, folder: str):
    torch.set_num_threads(1)
    file = Path(folder) / f"rendezvous{world}"
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=world)
    image, text = embeddings()
    own = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    for kind in KINDS:
        for local_loss, gather_with_grad in (*SAME, (False, False)):
            flags = {"local_loss": local_loss, "gather_with_grad": gather_with_grad}
            expected = torch.load(Path(folder) / f"{kind}.pt", weights_only=True)
            parallel = nn.parallel.DistributedDataParallel(Towers(kind, **flags))
            loss = parallel(image[own], text[own])
            found = gradients(parallel.module, loss)
            whole = loss.detach().clone()
            torch.distributed.all_reduce(whole)
            torch.testing.assert_close(whole / world, expected.pop("value"), rtol=1e-5, atol=1e-6)
            for name, gradient in expected.items():
                share = 1 if gather_with_grad or name.startswith("loss.") else 1 / world
                torch.testing.assert_close(
                    found[name], gradient * share, rtol=1e-5, atol=1e-6, msg=f"{kind} {name}"
                )
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_have_the_gradient_of_one(tmp_path, world):
    for kind in KINDS:
        towers = Towers(kind)
        loss = towers(*embeddings())
        torch.save({"value": loss.detach(), **gradients(towers, loss)}, tmp_path / f"{kind}.pt")
    spawn(_rank, (world, str(tmp_path)), nprocs=world)
