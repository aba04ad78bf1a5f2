"""`tenfold merge` against mergekit and against `cat`: time and memory of the same linear merge.

    python tests/benchmarks/merge.py --mergekit /path/to/venv/bin/mergekit-yaml
    python tests/benchmarks/merge.py --memory true

Both average the same sharded bf16 checkpoints of a Llama in fp32 and write bf16; the outputs are
compared. The programs take turns; each time is the median over rounds, from start to end of the
process, with that of the least disturbed round beside it, and each peak the sampled anonymous
memory (RssAnon: what file caches do not explain). `import torch` alone is measured too, as no
program here does without. `cat` reads the inputs into nothing: what the disk or the page cache
allows. With `--cold true` the inputs are dropped from the page cache before each run. `--memory
true` measures ours for few and many, small and large checkpoints. Nothing is asserted about time,
and nothing is kept.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from report import ratio
from safetensors.torch import load_file
from tenfold.modules.checkpoint_files import ShardedWriting, TensorSpec, write_safetensors_folder
from transformers import LlamaConfig

TENFOLD = (sys.executable, "-m", "tenfold.recipes.cli")
HIDDEN, VOCABULARY = 2048, 16000
SHARD = 300_000_000


def llama(num_bytes: float) -> LlamaConfig:
    """A Llama whose bf16 weights have about `num_bytes` bytes."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_attention_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    layer = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * 4 * HIDDEN)
    config.num_hidden_layers = max(1, round((num_bytes - 4 * HIDDEN * VOCABULARY) / layer))
    return config


def shapes(config: LlamaConfig) -> dict[str, TensorSpec]:
    """Names and shapes of its weights, as transformers writes them."""
    h, i = config.hidden_size, config.intermediate_size
    found = {"model.embed_tokens.weight": (config.vocab_size, h), "model.norm.weight": (h,)}
    found["lm_head.weight"] = (config.vocab_size, h)
    for k in range(config.num_hidden_layers):
        layer = f"model.layers.{k}"
        found |= {f"{layer}.self_attn.{x}_proj.weight": (h, h) for x in "qkvo"}
        found |= {f"{layer}.mlp.{x}_proj.weight": (i, h) for x in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (h, i)
        found |= {f"{layer}.{x}_layernorm.weight": (h,) for x in ("input", "post_attention")}
    return {name: TensorSpec(torch.bfloat16, shape) for name, shape in found.items()}


def make_checkpoints(folder: Path, count: int, num_bytes: float) -> list[Path]:
    """Writes checkpoints of random weights, near each other as those of one run are.

    One list of random numbers, repeated, makes all of them: programs do not notice, and it is fast.
    """
    numbers = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    config = llama(num_bytes)
    specs = shapes(config)
    writing = ShardedWriting.plan(specs, SHARD)
    paths = []
    for step in range(count):
        path = folder / f"checkpoint-{100 * (step + 1)}"
        path.mkdir(parents=True)
        config.save_pretrained(path)

        def blocks(step: int = step):
            some = (numbers + 0.1 * numbers.roll(17 * step + 1)).bfloat16()
            for name in writing.order:
                count = specs[name].num_elements
                yield some.repeat(-(-count // len(some)))[:count]

        write_safetensors_folder(path, specs, writing, blocks())
        paths.append(path)
    return paths


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return own + sum(anonymous_bytes(int(child)) for child in children)


def measure(command: Sequence[str], inputs: Sequence[Path], cold: bool) -> tuple[float, int]:
    """Runs a command; returns its seconds and its peak of anonymous memory."""
    os.sync()  # or it would wait for what an earlier one has left to the disk
    if cold:
        for path in (file for folder in inputs for file in folder.glob("*.safetensors")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    peak = 0
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.01):
                peak = max(peak, anonymous_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
        if status:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}:\n{log.read()}")
    return seconds, peak


def largest_difference(one: Path, other: Path) -> float:
    """Between two merged folders, in units in the last place of bf16 (relative 2^-8)."""
    largest = 0.0
    files = [sorted(folder.glob("*.safetensors")) for folder in (one, other)]
    mine, others = ({k: v for f in group for k, v in load_file(f).items()} for group in files)
    if mine.keys() != others.keys():
        raise RuntimeError(f"different tensors: {sorted(mine.keys() ^ others.keys())[:3]}")
    for name, value in mine.items():
        a, b = value.float(), others[name].float()
        ulp = torch.exp2(torch.floor(torch.log2(torch.maximum(a.abs(), b.abs()))) - 7)
        largest = max(largest, ((a - b).abs() / ulp).nan_to_num(0).max().item())
    return largest


def compare(
    folder: Path, mergekit: str | None, count: int, gigabytes: float, rounds: int, cold: bool
) -> None:
    """Prints the table of times and peaks."""
    inputs = make_checkpoints(folder, count, gigabytes * 1e9)
    files = [str(file) for path in inputs for file in sorted(path.glob("*.safetensors"))]
    size = sum(Path(file).stat().st_size for file in files)
    ours, theirs = folder / "ours", folder / "mergekit"
    recipe = folder / "linear.yml"
    models = [{"model": str(path), "parameters": {"weight": 1 / count}} for path in inputs]
    settings = {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16"}
    recipe.write_text(yaml.safe_dump({"models": models, **settings}))
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "cat": ["sh", "-c", 'exec cat "$@" > /dev/null', "cat", *files],
        "tenfold": [*TENFOLD, "merge", *map(str, inputs), "--out", str(ours)],
    }
    if mergekit:
        commands["mergekit"] = [mergekit, str(recipe), str(theirs), "--quiet"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[int]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(ours if name == "tenfold" else theirs, ignore_errors=True)
            seconds, peak = measure(command, inputs, cold)
            times[name].append(seconds)
            peaks[name].append(peak)
    state = "cold" if cold else "cached"
    print(f"\n{count} bf16 checkpoints of {size / count / 1e9:.2f} GB, {state}, {rounds} rounds")
    print(
        "| | seconds (least to most) | GB/s read | time / ours | least / least | peak MB | / ours |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    median = {name: statistics.median(values) for name, values in times.items()}
    top = {name: max(values) for name, values in peaks.items()}
    for name in commands:
        spread = f"{min(times[name]):.1f} to {max(times[name]):.1f}"
        rate = "" if name == "import torch" else f"{size / median[name] / 1e9:.2f}"
        print(
            f"| {name} | {median[name]:.1f} ({spread}) | {rate} "
            f"| {median[name] / median['tenfold']:.2f} "
            f"| {min(times[name]) / min(times['tenfold']):.2f} "
            f"| {top[name] / 1e6:.0f} | {top[name] / top['tenfold']:.2f} |"
        )
    if mergekit:
        print(f"largest difference of the outputs: {largest_difference(ours, theirs):.2f} bf16 ulp")
    print()
    ratio("seconds, cat / tenfold merge", median["cat"] / median["tenfold"])
    if mergekit:
        ratio(
            "seconds, mergekit / tenfold merge", median["mergekit"] / median["tenfold"], at_least=2
        )
        ratio("peak memory, mergekit / tenfold merge", top["mergekit"] / top["tenfold"], at_least=3)


def tabulate_memory(folder: Path, counts: Sequence[int], sizes: Sequence[float]) -> None:
    """Prints our peak for each number and size of checkpoints, beside that of `import torch`."""
    _, base = measure([sys.executable, "-c", "import torch"], [], False)
    print(f"\npeak of anonymous memory: `import torch` alone {base / 1e6:.0f} MB; merging")
    print("| checkpoints | GB each | peak MB | above `import torch` |")
    print("| ---: | ---: | ---: | ---: |")
    for size in sizes:
        inputs = make_checkpoints(folder / f"{size}", max(counts), size * 1e9)
        for count in counts:
            target = folder / "merged"
            command = [*TENFOLD, "merge", *map(str, inputs[:count]), "--out", str(target)]
            _, peak = measure(command, [], False)
            shutil.rmtree(target)
            print(
                f"| {count} | {size} | {peak / 1e6:.0f} | {(peak - base) / 1e6:.0f} |", flush=True
            )
        shutil.rmtree(folder / f"{size}")


def main(
    mergekit: str | None = None,
    memory: bool = False,
    count: int = 4,
    gigabytes: float = 1.0,
    rounds: int = 5,
    cold: bool = False,
    folder: str | None = None,
) -> None:
    """Prints the tables.

    Args:
        mergekit: Path of `mergekit-yaml`, in a virtual environment of its own.
        memory: Measure our memory instead, for 2 and 12 checkpoints of 0.25 and 1 GB.
        count: Checkpoints to merge.
        gigabytes: Size of each.
        rounds: Runs of each program.
        cold: Drop the inputs from the page cache before each run.
        folder: Where the checkpoints are made: a disk with room for them; by default /tmp.
    """
    print(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg(), "torch": torch.__version__}))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if memory:
            tabulate_memory(Path(scratch), (2, 12), (0.25, 1.0))
        else:
            compare(Path(scratch), mergekit, count, gigabytes, rounds, cold)


if __name__ == "__main__":
    auto_cli(main)
