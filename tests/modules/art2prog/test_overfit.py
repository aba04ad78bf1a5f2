"""Sixty-four programs can be learnt by heart: masks, shifts, states and pointers line up."""

import pytest
import tiny_programs
import torch
from lightning.pytorch import Trainer
from tenfold.modules.art2prog.evaluation import program_facts
from tenfold.modules.metrics.program import compare_programs

NUM_PROGRAMS = 64


@pytest.mark.slow
@pytest.mark.parametrize("use_intermediate", [True, False])
def test_sixty_four_programs_are_learnt_by_heart(use_intermediate):
    torch.manual_seed(0)
    module = tiny_programs.module(
        use_intermediate=use_intermediate,
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-3),
    )
    data = tiny_programs.data(
        num_train=NUM_PROGRAMS, batch_size=32, cache=NUM_PROGRAMS, with_states=use_intermediate
    )
    trainer = Trainer(
        max_steps=800,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, data)
    batches = list(data.train_dataloader())
    with torch.no_grad():  # the statistics of the last weights, not of those on the way
        for batch in 8 * batches:
            module.train()(batch)
    module.eval()
    programs, texts = [], []
    for batch in batches:
        programs += module.generate(batch["image"] / 255)
        texts += batch["program"]
    targets = [module.language.parse(text) for text in texts]
    facts = [program_facts(p, module.language, module._renderer(32)) for p in (programs, targets)]
    values = [compare_programs(*pair) for pair in zip(*facts, strict=True)]
    assert len(values) == NUM_PROGRAMS
    assert sum(value["exact_match"] for value in values) == NUM_PROGRAMS
    assert all(value["mse"] == 0 for value in values)
