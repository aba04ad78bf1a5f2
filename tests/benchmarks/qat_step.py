"""What W4A4 training costs: a whole training step with fake quantisation against one without.

    python tests/benchmarks/qat_step.py

Trains the same language model both ways in turns: forward, backward, clipping, AdamW. On CPU it is
the quickstart's model in float32 (target: at most 1.5 times the step), on CUDA the 297M and the
595M model of the QAT scaling law under bfloat16 autocast, plain and compiled (target: below 10 %
more). Prints a markdown table of ratios. Nothing is asserted about time, and nothing is kept.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from report import ratio
from tenfold.modules.causal_lm import build_config, decoder_layers, random_network
from tenfold.modules.optimization import parameter_groups
from tenfold.modules.quantization import QATConfig, QuantizerConfig, prepare_qat

QUICKSTART = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PAPER = {
    "vocab_size": 100352,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 24,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
}


def make_step(
    config: dict[str, Any], group_size: int | None, batch: tuple[int, int], device: str, fast: bool
) -> Callable[[], None]:
    """Returns one training step of a model, quantised in groups or (None) not at all."""
    with torch.device(device):
        network = random_network(build_config(config), seed=0).train()
    if group_size is not None:
        quantizer = QuantizerConfig(group_size=group_size)
        prepare_qat(network, QATConfig(quantizer, quantizer))
    if fast:
        for layer in decoder_layers(network):
            layer.compile()
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=1e-3, fused=device == "cuda")
    ids = torch.randint(config["vocab_size"], batch, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network(ids, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> tuple[float, float, float]:
    """Returns milliseconds of both steps, in turns, and the median of the ratios in pairs."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            steps[name]()
            if number >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    plain, quantised = times.values()
    pairs = [two / one for one, two in zip(plain, quantised, strict=True)]
    return statistics.median(plain), statistics.median(quantised), statistics.median(pairs)


def main(rounds: int = 15, num_threads: int = 2) -> None:
    """Prints the table.

    Args:
        rounds: Repetitions of both steps; medians count.
        num_threads: Threads of torch on CPU.
    """
    torch.set_num_threads(num_threads)
    if torch.cuda.is_available():
        device, batch, group_size, target = "cuda", (8, 2048), 128, 1.1
        cases = {
            f"{name}{', compiled' if fast else ''}": (PAPER | {"num_hidden_layers": depth}, fast)
            for name, depth in (("297M", 12), ("595M", 24))
            for fast in (False, True)
        }
    else:
        device, batch, group_size, target = "cpu", (16, 128), 32, 1.5
        cases = {"quickstart": (QUICKSTART, False)}
    print(f"{device}, torch {torch.__version__}, {batch[0]} x {batch[1]} tokens, G {group_size}\n")
    print("| model | plain, ms | W4A4, ms | W4A4 / plain |\n|---|---|---|---|")
    medians = {}
    for name, (config, fast) in cases.items():
        torch.compiler.reset()
        steps = {
            precision: make_step(config, size, batch, device, fast)
            for precision, size in (("plain", None), ("w4a4", group_size))
        }
        plain, quantised, medians[name] = in_turns(steps, rounds)
        print(f"| {name} | {plain:.1f} | {quantised:.1f} | {medians[name]:.3f} |")
    print()
    for name, median in medians.items():
        ratio(f"time of a step on {device}, W4A4 / plain, {name}", median, at_most=target)


if __name__ == "__main__":
    auto_cli(main)
