"""What each rank pays for saving, resuming, stopping and watching, and what that gives on many.

    python tests/benchmarks/scale_out.py                   measures, then computes a plan from it
    python tests/benchmarks/scale_out.py --parameters 70e9 --ranks 512 --network_gb_per_s 12.5

Measured on this machine, in one run: the exchange of flags after each step (processes of gloo on
the loopback), the messages of `RankWatch`, the check for finite weights, writing and verifying a
checkpoint, the random state, and per tensor and rank what sharded checkpoints keep in `.metadata`.
The plan multiplies these; the speed of the cluster's network and file system are assumptions, given
as options. Nothing is kept.
"""

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from jsonargparse import auto_cli
from tenfold.callbacks.checkpointing import _are_finite, is_intact
from tenfold.callbacks.late_flags import LateFlags
from tenfold.callbacks.random_state import get_random_state
from tenfold.callbacks.sharded_checkpoint import are_shards_whole
from tenfold.modules.checkpoint_files.metadata import METADATA, read_metadata
from tenfold.modules.files import atomic_write
from torch.distributed import TCPStore
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.storage import StorageMeta

GB = 1e9
BYTES_PER_PARAMETER = 12  # float32 weights and the two moments of Adam
NUM_TENSORS = 3 * 291  # of a Llama with 32 layers: each weight and its two moments
WATCH_INTERVAL_S = 10.0  # of `RankWatch`


@dataclass
class Costs:
    """Seconds and bytes as measured; speeds in bytes per second."""

    flags: dict[int, float]
    watch_set: float
    watch_read_per_rank: float
    finite: float
    write: float
    verify: float
    random_state: int
    metadata_entry_bytes: float
    metadata_entry_seconds: float


def median_time(work: Callable[[], Any], repeats: int = 7) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _exchange(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    flags = LateFlags()
    seconds = median_time(
        lambda: [flags.exchange(torch.zeros(2, dtype=torch.uint8)) for _ in range(200)]
    )
    if rank == 0:
        Path(folder, f"{size}.txt").write_text(str(seconds / 200))
    dist.destroy_process_group()


def measure_flags() -> dict[int, float]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2, 4):
            mp.spawn(_exchange, (size, folder), nprocs=size)
            found[size] = float(Path(folder, f"{size}.txt").read_text())
    return found


def measure_watch(num_ranks: int = 1000) -> tuple[float, float]:
    """Seconds of one message, and of rank 0's reading, per rank."""
    timeout = timedelta(seconds=60)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    names = [f"rank_{rank}" for rank in range(num_ranks)]
    message = "x" * 120
    for name in names:
        store.set(name, message)
    one = median_time(lambda: [store.set(names[0], message) for _ in range(200)]) / 200
    return one, median_time(lambda: store.multi_get(names)) / num_ranks


def measure_files(folder: Path, megabytes: int) -> dict[str, float]:
    """Bytes per second of the three things that happen to every byte of a checkpoint."""
    tensors = {str(k): torch.randn(1 << 20) for k in range(megabytes // 4)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    path = folder / "x.ckpt"

    def write() -> None:
        with atomic_write(path) as file:
            torch.save(tensors, file)

    return {
        "finite": size / median_time(lambda: _are_finite(tensors.values())),
        "write": size / median_time(write, repeats=5),
        "verify": size / median_time(lambda: is_intact(path), repeats=5),
    }


def measure_metadata(folder: Path, num_ranks: int) -> tuple[float, float]:
    """Bytes and seconds per shard of a tensor in `.metadata`, read and checked as on resuming."""
    tensors = {f"model.layers.{k}.weight": torch.zeros(8, 8) for k in range(20)}
    dcp.save({"state_dict": tensors}, checkpoint_id=folder, no_dist=True)
    torch.save({}, folder / "meta.pt")
    metadata = read_metadata(folder)
    (name,) = {place.relative_path for place in metadata.storage_data.values()}
    for fqn, described in list(metadata.state_dict_metadata.items()):
        place = metadata.storage_data.pop(next(i for i in metadata.storage_data if i.fqn == fqn))
        described.chunks = []  # type: ignore[union-attr]
        for rank in range(num_ranks):
            offset = torch.Size([8 * rank, 0])
            described.chunks.append(ChunkStorageMetadata(offset, torch.Size([8, 8])))  # type: ignore[union-attr]
            shard = type(place)(name, place.offset, place.length, place.transform_descriptors)
            metadata.storage_data[MetadataIndex(fqn, offset, rank)] = shard
    metadata.storage_meta = StorageMeta()
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    entries = len(metadata.storage_data)
    seconds = median_time(lambda: are_shards_whole(folder), repeats=3)
    return (folder / METADATA).stat().st_size / entries, seconds / entries


def measure(megabytes: int, ranks: int) -> Costs:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        torch.save(get_random_state(), state)
        entry_bytes, entry_seconds = measure_metadata(Path(folder) / "shards", ranks)
        watch_set, watch_read = measure_watch(ranks)
        return Costs(
            flags=measure_flags(),
            watch_set=watch_set,
            watch_read_per_rank=watch_read,
            random_state=state.stat().st_size,
            metadata_entry_bytes=entry_bytes,
            metadata_entry_seconds=entry_seconds,
            **measure_files(Path(folder), megabytes),
        )


def plan(
    costs: Costs, parameters: float, ranks: int, file_system: float, network: float
) -> list[tuple[str, str]]:
    """Rows of the table: what, and how much."""
    checkpoint = parameters * BYTES_PER_PARAMETER
    shard = checkpoint / ranks
    entries = NUM_TENSORS * ranks
    metadata = entries * costs.metadata_entry_bytes
    gathered = checkpoint * (1 / network + 1 / min(costs.write, file_system))
    watching = ranks * costs.watch_set / WATCH_INTERVAL_S
    return [
        ("checkpoint, all ranks together", f"{checkpoint / GB:.0f} GB"),
        ("of it each rank's shard", f"{shard / 1e6:.0f} MB"),
        ("each rank writes its shard", f"{shard / costs.write:.2f} s"),
        ("the file system takes all shards", f"{checkpoint / file_system:.1f} s"),
        (
            "the same as one file through rank 0",
            f"{gathered:.0f} s, {checkpoint / GB:.0f} GB there",
        ),
        ("`.metadata`, written by rank 0, read by every rank", f"{metadata / 1e6:.0f} MB"),
        ("its check before resuming", f"{entries * costs.metadata_entry_seconds:.1f} s"),
        ("three checkpoints on disk, one more while saving", f"{4 * checkpoint / GB:.0f} GB"),
        ("finite weights, per save and rank", f"{shard / 3 / costs.finite * 1e3:.1f} ms"),
        ("random state, gathered per save", f"{costs.random_state * ranks / 1e6:.1f} MB"),
        ("flags per step", "2 bytes, one all-reduce, not waited for"),
        ("`RankWatch`, messages to rank 0", f"{ranks / WATCH_INTERVAL_S:.0f} per second"),
        ("which take of one core there", f"{100 * watching:.2f} %"),
        (
            "  and to read all, when nothing moves",
            f"{ranks * costs.watch_read_per_rank * 1e3:.0f} ms",
        ),
    ]


def main(
    parameters: float = 7e9,
    ranks: int = 1000,
    file_system_gb_per_s: float = 20.0,
    network_gb_per_s: float = 25.0,
    megabytes: int = 256,
) -> None:
    """Measures costs per rank and computes what they come to.

    Args:
        parameters: Of the model.
        ranks: Devices over which it is sharded.
        file_system_gb_per_s: What the shared file system writes for all nodes together.
        network_gb_per_s: Of one node.
        megabytes: Size of the checkpoint that is written here.
    """
    costs = measure(megabytes, ranks)
    print("measured here:")
    for size, seconds in costs.flags.items():
        print(f"  flags, {size} process(es): {seconds * 1e6:.0f} us per step")
    print(f"  RankWatch: {costs.watch_set * 1e6:.0f} us per message, ", end="")
    print(f"{costs.watch_read_per_rank * 1e6:.1f} us per rank to read {ranks}")
    for name in ("finite", "write", "verify"):
        print(f"  {name}: {getattr(costs, name) / GB:.2f} GB/s on one core")
    print(f"  random state: {costs.random_state} bytes per rank")
    print(f"  .metadata: {costs.metadata_entry_bytes:.0f} bytes and ", end="")
    print(f"{costs.metadata_entry_seconds * 1e6:.1f} us per shard of a tensor")
    print(f"\n| {parameters / GB:g}B parameters on {ranks} devices, FSDP2 | |\n|---|---|")
    speeds = file_system_gb_per_s * GB, network_gb_per_s * GB
    for what, amount in plan(costs, parameters, ranks, *speeds):
        print(f"| {what} | {amount} |")


if __name__ == "__main__":
    auto_cli(main)
