"""A captioner of a few thousand random parameters, and a batch that it can read."""

import torch
from tenfold.modules.ctrl_cic import CtrlCIC, RelevancePredictor

WORDS = "a the red blue cell cells wall walls divide grow has . - of notes plants shows"
SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
# Large weights: small ones would hide what a test looks for.
CONFIG = SIZES | {"model_type": "t5", "initializer_factor": 3.0}
LONG = CONFIG | {
    "model_type": "longt5",
    "encoder_attention_type": "transient-global",
    "local_radius": 3,
    "global_block_size": 4,
}
TEXTS = [
    "the red cell has a wall . blue cells divide",
    "",
    "cells grow . the wall of the cell has a red wall",
]


def build(seed=0, **arguments) -> CtrlCIC:
    torch.manual_seed(seed)
    settings = {"config": CONFIG, "vocabulary": WORDS, "image_dim": 6}
    settings |= {"generation": {"max_new_tokens": 7}} | arguments
    if "pretrained" in arguments:
        settings |= {"config": None, "vocabulary": None}
    module = CtrlCIC(**settings)
    module.configure_model()
    return module.eval()


def build_predictor(seed=0, **arguments) -> RelevancePredictor:
    torch.manual_seed(seed)
    settings = {"config": CONFIG, "vocabulary": WORDS, "image_dim": 6} | arguments
    module = RelevancePredictor(**settings)
    module.configure_model()
    return module.eval()


def batch_of(texts=TEXTS, **replaced):
    size = len(texts)
    generator = torch.Generator().manual_seed(1)
    return {
        "ids": [str(number) for number in range(size)],
        "groups": ["book"] * size,
        "page_titles": ["plants", "notes", "cells"][:size],
        "section_titles": ["the wall", "", "a cell"][:size],
        "section_texts": list(texts),
        "other_captions": [["a blue cell", ""], [], ["the plants"]][:size],
        "page_urls": ["a.html"] * size,
        "other_sections": [[("notes", "plants grow", ("a wall",))]] * size,
        "captions": ["the red wall", "a cell", "cells grow"][:size],
        "images": torch.randn(size, 6, generator=generator),
        "highlights": [[["red", "cell"], ["cells divide"]], [], [["wall"]]][:size],
        "references": [["the red wall", ""], [], ["cells grow"]][:size],
        "depicted": [["plants"], [], []][:size],
    } | replaced
