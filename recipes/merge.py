"""`tenfold merge`: one checkpoint from the weighted average of several, offline.

`merge_inputs` finds and orders the checkpoints; `modules/checkpoint_merge.py` averages. Imports
torch only when the command runs.
"""

import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..modules.merge_weights import DecayShape, MergeScheme, Scheme
from .errors import note
from .merge_job import (
    PROVENANCE_FILE,
    MergeJob,
    describe,
    notes,
    refuse_lack_of_space,
    remarks,
    size_text,
    write,
)

if TYPE_CHECKING:
    from ..modules.checkpoint_files import Checkpoint

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DEFAULT_SHARD_SIZE = "5GB"


def merge(
    inputs: list[str] | None = None,
    out: Path | None = None,
    scheme: Scheme = "sma",
    decay_shape: DecayShape = "linear",
    ema_alpha: float = 0.2,
    min_lr_ratio: float = 0.0,
    weights: str | None = None,
    normalize: bool = False,
    allow_unnormalized: bool = False,
    last: int | None = None,
    min_interval: int | None = None,
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    buffers: Literal["last", "average"] = "last",
    optimizer_state: Literal["reset", "latest", "average"] | None = None,
    lora_mode: Literal["factors", "delta"] | None = None,
    max_shard_size: str = _DEFAULT_SHARD_SIZE,
    allow_different_runs: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Average checkpoints of one run into a better one, without training.

    `tenfold merge runs/my/version_0 --last 10 --out merged.safetensors`. The end of --out says
    what is written: `X.safetensors`; `X.ckpt`, the newest checkpoint with merged weights, for
    `fit --ckpt_path`, `test --ckpt_path` and --init_from; else a folder as Hugging Face's libraries
    load it. Tensors are read in small blocks and summed in fp32. Of one checkpoint this is a copy:
    a folder of shards in one file.

    Args:
        inputs: Checkpoints (.ckpt, .safetensors, folders of Hugging Face, PEFT or sharded
            training), run directories (their merging ring, else step_*.ckpt) or quoted patterns;
            before all options. Sorted by step where known, else oldest first as given.
        out: File or folder to write.
        scheme: How checkpoints are weighted: `sma` all alike, `wma` 1, 2, ... N, `ema` as an
            exponential average, `wsm` as a decay of --decay-shape would, `qam` likewise with a
            correction, `custom` by --weights.
        decay_shape: Decay that `wsm` and `qam` emulate.
        ema_alpha: Weight of the newest checkpoint in `ema`.
        min_lr_ratio: Last learning rate of the emulated decay, as a fraction of the first.
        weights: Weights of `custom`, oldest first: 0.2,0.3,0.5.
        normalize: Scale --weights to sum 1.
        allow_unnormalized: Take --weights that are negative or do not sum to 1.
        last: Merge only the newest so many.
        min_interval: Leave out checkpoints fewer steps than this before the next one taken.
        dtype: Of the floating tensors written.
        buffers: Running statistics of BatchNorm: those of the newest checkpoint, or averaged.
        optimizer_state: In a .ckpt: `reset` (default) empties it and keeps its settings, `latest`
            keeps the newest checkpoint's, `average` averages moments and keeps its step.
        lora_mode: How PEFT adapters are merged: `factors` averages A and B, which is not the
            average of B A; `delta` averages B A and cuts it back to the same rank.
        max_shard_size: Largest file in a folder.
        allow_different_runs: Merge checkpoints whose settings differ.
        dry_run: Print what would be done, from the headers of the files.
        overwrite: Replace an earlier result.

    Raises:
        ValueError: The checkpoints do not fit together or are damaged, or the options contradict
            each other; one line with the fix.
    """
    if not inputs:
        raise ValueError("merge needs checkpoints: `tenfold merge a.ckpt b.ckpt --out merged.ckpt`")
    if out is None:
        raise ValueError("merge needs --out: X.safetensors, X.ckpt or a folder")
    _refuse_contradictions(weights, scheme, normalize, allow_unnormalized, out, optimizer_state)
    for flag, value in (("--last", last), ("--min-interval", min_interval)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be 1 or more, got {value}")
    shard_size = _parse_size(max_shard_size)
    _refuse_existing(out, overwrite)

    import torch

    from ..modules.checkpoint_files import open_checkpoint
    from ..modules.checkpoint_merge import plan_merge
    from .merge_inputs import find_inputs, order_checkpoints, refuse_different_runs

    paths = find_inputs(inputs)
    checkpoints = order_checkpoints([open_checkpoint(path) for path in paths], last, min_interval)
    _refuse_overlap(out, [checkpoint.path for checkpoint in checkpoints])
    _refuse_mixed_formats(checkpoints, out, lora_mode, optimizer_state)
    if not allow_different_runs:
        refuse_different_runs(checkpoints)
    rule = _scheme(
        scheme, decay_shape, ema_alpha, min_lr_ratio, weights, normalize, allow_unnormalized
    )
    numbers = _weights(rule, checkpoints)
    if out.suffix == ".ckpt" and optimizer_state is None:
        optimizer_state = "reset"
    plan = plan_merge(
        checkpoints,
        numbers,
        dtype=None if dtype == "same" else getattr(torch, dtype),
        buffers=buffers,
        optimizer_state=optimizer_state == "average",
    )
    job = MergeJob(
        out=out,
        checkpoints=checkpoints,
        weights=numbers,
        scheme=rule,
        plan=plan,
        dtype=dtype,
        optimizer_state=optimizer_state,
        lora_mode=lora_mode,
        max_shard_size=shard_size,
        buffers=buffers,
    )
    for line in notes(job):
        note(line)
    print(describe(job), flush=True)
    if dry_run:
        return
    refuse_lack_of_space(job)
    started = time.monotonic()
    write(job)
    seconds = time.monotonic() - started
    print(
        f"{out}: {size_text(job.bytes_to_write)} from {size_text(job.bytes_to_read)} in "
        f"{seconds:.1f} s"
    )
    for line in remarks(job):
        note(line)


def _refuse_contradictions(
    weights: str | None,
    scheme: str,
    normalize: bool,
    allow_unnormalized: bool,
    out: Path,
    optimizer_state: str | None,
) -> None:
    if weights is None and scheme == "custom":
        raise ValueError("--scheme custom needs --weights, such as 0.2,0.3,0.5")
    if weights is not None and scheme not in ("sma", "custom"):
        raise ValueError(f"--weights and --scheme {scheme} contradict each other: give one")
    if weights is None and (normalize or allow_unnormalized):
        raise ValueError("--normalize and --allow-unnormalized are for --weights")
    if normalize and allow_unnormalized:
        raise ValueError("--normalize and --allow-unnormalized contradict each other: give one")
    if optimizer_state is not None and out.suffix != ".ckpt":
        raise ValueError("--optimizer-state is for checkpoints to go on from: --out X.ckpt")


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} exists: choose another --out or pass --overwrite")
    is_folder = out.suffix not in (".ckpt", ".safetensors")
    if is_folder != out.is_dir() or (is_folder and not (out / PROVENANCE_FILE).is_file()):
        raise ValueError(f"{out} is no earlier merge, so it is not overwritten: delete it first")


def _refuse_overlap(out: Path, paths: Sequence[Path]) -> None:
    target = out.resolve()
    for path in paths:
        source = path.resolve()
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            raise ValueError(f"--out {out} lies in the input {path} or holds it: choose another")


def _refuse_mixed_formats(
    checkpoints: "Sequence[Checkpoint]",
    out: Path,
    lora_mode: str | None,
    optimizer_state: str | None,
) -> None:
    from ..modules.adapter_merge import check_adapters

    formats = {checkpoint.format for checkpoint in checkpoints}
    if "PEFT adapter" in formats:
        if len(formats) > 1:
            raise ValueError(f"inputs are of different kinds: {' and '.join(sorted(formats))}")
        if lora_mode is None:
            raise ValueError(
                "averaging A and B of adapters is not averaging B A: choose --lora-mode factors "
                "(A and B) or delta (B A, cut back to the same rank)"
            )
        if out.suffix in (".ckpt", ".safetensors"):
            raise ValueError(f"an adapter is a folder: --out {out.with_suffix('')}")
        check_adapters(checkpoints, by_delta=lora_mode == "delta")
    elif lora_mode is not None:
        raise ValueError("--lora-mode is for PEFT adapters, and there is none")
    if out.suffix != ".ckpt":
        return
    if formats != {"Lightning checkpoint"}:
        raise ValueError(
            f"a .ckpt is made from .ckpt files, not from a {min(formats)}: --out "
            f"{out.with_suffix('.safetensors')}"
        )
    if optimizer_state in ("latest", "average"):
        asked = checkpoints if optimizer_state == "average" else checkpoints[-1:]
        for checkpoint in asked:
            if not checkpoint.has_optimizer_state:
                raise ValueError(f"{checkpoint.path} has no optimizer state: use reset")


def _scheme(
    scheme: Scheme,
    decay_shape: DecayShape,
    ema_alpha: float,
    min_lr_ratio: float,
    weights: str | None,
    normalize: bool,
    allow_unnormalized: bool,
) -> MergeScheme:
    return MergeScheme(
        scheme=scheme if weights is None else "custom",
        decay_shape=decay_shape,
        ema_alpha=ema_alpha,
        min_lr_ratio=min_lr_ratio,
        custom_weights=None if weights is None else _parse_weights(weights, normalize),
        allow_unnormalized=allow_unnormalized,
    )


def _weights(scheme: MergeScheme, checkpoints: "Sequence[Checkpoint]") -> list[float]:
    """A weight for each checkpoint; says on what they rest."""
    from .merge_inputs import is_irregular, known_steps

    steps = known_steps(checkpoints)
    if steps is None:
        note("not every step is known: the order given is taken as oldest first")
    areas: list[float] | None = None
    if steps is not None and scheme.scheme in ("wsm", "qam") and is_irregular(steps):
        areas = [float(step) for step in steps]
        note("steps are uneven: weights follow them, as at a constant learning rate")
    weights = scheme.weights(len(checkpoints), areas)
    total = math.fsum(weights)
    if min(weights) < 0 or not math.isclose(total, 1, abs_tol=1e-6):
        print(f"warning: weights are negative or sum to {total:g}, not 1", file=sys.stderr)
    return weights


def _parse_weights(text: str, normalize: bool) -> list[float]:
    try:
        numbers = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(f"--weights: '{text}' is no list of numbers such as 0.2,0.3,0.5") from None
    if not normalize:
        return numbers
    total = sum(numbers)
    if total == 0:
        raise ValueError("--weights sum to 0, so --normalize cannot scale them")
    return [number / total for number in numbers]


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"([\d.]+)\s*([KMG]I?B)?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"--max-shard-size: '{text}' is no size such as {_DEFAULT_SHARD_SIZE}")
    return size
