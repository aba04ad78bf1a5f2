"""Art2Prog so small that a test trains it."""

from typing import Any

import torch
from tenfold.datamodules.programs import ProgramDataModule, ProgramSampler
from tenfold.modules.art2prog import Art2Prog, Language

LANGUAGE = Language(grid=4, radii=(1, 2), max_layers=2, max_lines=14)
BLOCKS = {"model": "resnet18", "layers": [1, 1, 1, 1], "stem_width": 8}
MODEL: dict[str, Any] = {
    "language": LANGUAGE,
    "image_size": 32,
    "state_size": 32,
    "encoder": {**BLOCKS, "channels": [16, 32, 48, 48], "out_index": 2},
    "state_encoder": {**BLOCKS, "channels": [8, 16, 24, 32]},
    "decoder": {"n_layer": 2, "n_embd": 64, "n_head": 4},
}


def sampler(**settings: Any) -> ProgramSampler:
    defaults = {"layer_probs": [0.4, 0.6], "num_edges": (2, 4), "min_area": 1.0}
    return ProgramSampler(LANGUAGE, **{**defaults, **settings})


def data(**settings: Any) -> ProgramDataModule:
    defaults = {"num_train": 64, "num_val": 8, "num_test": 6, "batch_size": 4, "seed": 0}
    sizes = {"image_size": 32, "state_size": 32}
    chosen = {**defaults, **sizes, **settings}
    return ProgramDataModule(chosen.pop("sampler", None) or sampler(), **chosen)


def module(**settings: Any) -> Art2Prog:
    torch.manual_seed(0)
    built = Art2Prog(**{**MODEL, **settings})
    built.configure_model()
    return built


def batch(**settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(data(**settings).train_dataloader()))
    return found
