"""What control costs: training steps with and without controllers, captions in batches and alone.

    python tests/benchmarks/ctrl_cic.py [--repeats 15] [--threads 1]

Steps of 32 made records (forward, backward, clipping, AdamW), controllers taken in turn: medians in
CPU seconds, which other processes disturb less, and per token of encoder and decoder as ratios to
no controller (P-Ctrl writes longer targets). The predictor of R-Ctrl is a model of its own. Then 64
captions, in one batch and one by one.
"""

import statistics
import time
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.contextual_captions import ContextualCaptionDataModule, FactExamples
from tenfold.modules.ctrl_cic import (
    CtrlCIC,
    NoControl,
    PromptControl,
    Recalibration,
    RelevancePredictor,
)
from tenfold.modules.optimization import parameter_groups

RECIPE = Path(__file__).parents[2] / "recipes" / "ctrl_cic" / "quickstart.yaml"


def main(repeats: int = 15, threads: int = 1) -> None:
    """Prints both tables.

    Args:
        repeats: Rounds; each takes every kind of step once.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    arguments = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]
    shared = {name: arguments[name] for name in ("config", "vocabulary", "image_dim")}
    data = ContextualCaptionDataModule(FactExamples(num_facts=12), batch_size=32, seed=0)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    controllers = {"none": NoControl(), "P-Ctrl": PromptControl(), "R-Ctrl": Recalibration()}
    modules = {name: CtrlCIC(**shared, controller=c) for name, c in controllers.items()}
    modules["predictor"] = RelevancePredictor(**shared)
    steps, tokens = {}, {}
    for name, module in modules.items():
        module.configure_model()
        optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-4)
        source = module.contexts.encode(batch)
        tokens[name] = int(source.mask.sum())
        if name != "predictor":
            tokens[name] += int(module.token_losses(batch)[1].labels.ne(-100).sum())

        def step(module=module, optimizer=optimizer):
            if isinstance(module, RelevancePredictor):
                losses, _, _, mask = module._token_losses(batch)
                loss = losses.sum() / mask.sum()
            else:
                loss = module.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        steps[name] = step
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    per_token = {name: statistics.median(s) / tokens[name] for name, s in seconds.items()}
    for name, taken in seconds.items():
        print(
            f"{name:10} {statistics.median(taken):.4f} s, {tokens[name]} tokens, "
            f"{tokens[name] / statistics.median(taken):.0f} tokens/s, per token "
            f"{per_token[name] / per_token['none']:.2f} x none"
        )
    module = modules["P-Ctrl"].eval()
    rows, highlights = list(range(32)) * 2, [["lantern", "compass"], ["drum"]] * 32
    settings = {"max_new_tokens": 16, "min_new_tokens": 16}
    timed = {}
    for size in (64, 1):
        start = time.process_time()
        for k in range(0, 64, size):
            module.generate(batch, highlights[k : k + size], rows[k : k + size], **settings)
        timed[size] = 64 / (time.process_time() - start)
    print(
        f"captions/s: {timed[64]:.1f} in a batch of 64, {timed[1]:.1f} one by one: "
        f"{timed[64] / timed[1]:.1f} x"
    )
    for name, target in {"P-Ctrl": 1.1, "R-Ctrl": 1.1, "predictor": None}.items():
        longer = per_token[name] / per_token["none"]
        ratio(f"CPU time of a step per token, {name} / none", longer, at_most=target)
    ratio("captions per CPU second, 64 in a batch / one by one", timed[64] / timed[1])


if __name__ == "__main__":
    auto_cli(main)
