"""Fully sharded towers, by chunks or not, have the gradients of one process with all pairs."""

from pathlib import Path

import pytest
import torch
from tenfold.modules.realsyn import ClipPretraining
from tiny_pairs import SMALL
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

PAIRS, WORLD = 8, 2


def build(**changes):
    torch.manual_seed(0)
    return ClipPretraining(**SMALL, **changes)


def batch(rows):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (PAIRS, 3, 16, 16), generator=generator, dtype=torch.uint8)
    texts = [f"text number {k}" for k in range(PAIRS)]
    return {"images": images[rows], "texts": texts[rows]}


def gradients(module, rows):
    module.loss(batch(rows)).backward()
    found = {}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def _rank(rank: int, folder: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    rows = slice(rank * PAIRS // WORLD, (rank + 1) * PAIRS // WORLD)
    for loss in ("clip", "siglip"):
        expected = torch.load(Path(folder) / f"{loss}.pt", weights_only=True)
        for chunk_size in (None, 2):
            module = build(loss=loss, chunk_size=chunk_size)
            module._device_mesh = mesh  # what ModelParallelStrategy sets
            module.configure_model()
            assert isinstance(module.criterion.logit_scale, DTensor)
            for name, gradient in gradients(module, rows).items():
                # Of tensors: an element may be what rounding leaves of a sum that is 0.
                error = (gradient - expected[name]).norm()
                assert error <= 1e-5 * expected[name].norm() + 1e-6, f"{loss} {name}: {error}"
            module.criterion.clamp()
            assert module.encode_text(["a"]).shape == (1, SMALL["embed_dim"])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shards_and_chunks_have_the_gradients_of_the_whole(tmp_path):
    for loss in ("clip", "siglip"):
        module = build(loss=loss)
        module.configure_model()
        torch.save(gradients(module, slice(None)), tmp_path / f"{loss}.pt")
    spawn(_rank, (str(tmp_path),), nprocs=WORLD)
