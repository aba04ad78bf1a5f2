"""Lightning's single-file checkpoints."""

import mmap
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from .pickled import load_headers, load_mapped, locate, map_bytes, read_checksums
from .safetensors import write_blocks
from .stored import Checkpoint, TensorSpec, plain_names

OptimizerState = Literal["reset", "latest", "average"]

# Of Lightning's WeightAveraging: `state_dict` then holds the average.
LIVE = "current_model_state"
_ALIGNMENT = 64


def read_lightning(path: Path) -> Checkpoint:
    """Opens a `.ckpt` file.

    Raises:
        ValueError: It is damaged, holds Python objects, or is none of Lightning's.
    """
    content = load_headers(path, path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(f"{path} is no Lightning checkpoint: it has no `state_dict`")
    checksums = read_checksums(path)
    weights: Mapping[str, Any] = content[LIVE if LIVE in content else "state_dict"]
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    names = plain_names(list(tensors), path)
    notes = []
    if LIVE in content:
        notes.append(
            "the live weights are merged, not the averages that WeightAveraging keeps beside them"
        )
    others = sorted(weights.keys() - tensors.keys())
    if others:
        notes.append(f"{', '.join(others)}: no tensors, not merged")
    states = content.get("optimizer_states") or []
    hyperparameters = content.get("hyper_parameters") or {}
    return Checkpoint(
        path,
        "Lightning checkpoint",
        (path,),
        {names[name]: locate(t, name, path, checksums) for name, t in tensors.items()},
        step=content.get("global_step"),
        settings=run_settings(hyperparameters),
        optimizer_tensors={
            name: locate(holder[key], name, path, checksums)
            for name, holder, key in _optimizer_tensors(states)
        },
        has_optimizer_state=bool(states),
        notes=tuple(notes),
    )


def run_settings(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters without what Lightning adds to them."""
    return {key: value for key, value in hyperparameters.items() if not key.startswith("_")}


def write_lightning(
    file: IO[bytes],
    specs: Mapping[str, TensorSpec],
    blocks: Iterator[Tensor],
    like: Path,
    aliases: Mapping[str, str],
    optimizer_state: OptimizerState,
    provenance: Mapping[str, Any],
    scratch_folder: Path,
) -> None:
    """Writes a checkpoint that is another one with other weights.

    `torch.save` writes it from memory maps: of `like`, and of an unnamed temporary file with the
    tensors given. So it takes little memory, and twice the tensors' size on disk while it runs.

    Args:
        file: Open for writing.
        specs: What replaces tensors of `like`: of its `state_dict` (by plain name), and with
            "average" of its optimizers (by dotted path).
        blocks: Their data in that order.
        like: Checkpoint to take everything else from.
        aliases: Plain names of tensors that are another one's data -> that one's name.
        optimizer_state: "reset" empties the optimizers and keeps their settings, the others keep
            what is not in `specs`.
        provenance: Plain values for the key `merge_provenance`.
        scratch_folder: Where the temporary file is.
    """
    with tempfile.TemporaryFile(dir=scratch_folder) as scratch:
        positions = {}
        for name, spec in specs.items():
            scratch.seek(-(-scratch.tell() // _ALIGNMENT) * _ALIGNMENT)
            positions[name] = scratch.tell()
            write_blocks(scratch, spec, blocks)
        scratch.flush()
        tensors = _map_tensors(scratch, specs, positions)
        checkpoint = load_mapped(like)
        for key in {"state_dict", LIVE} & checkpoint.keys():
            weights: MutableMapping[str, Any] = checkpoint[key]
            names = plain_names([n for n, v in weights.items() if isinstance(v, Tensor)], like)
            for name, plain in names.items():
                weights[name] = tensors[aliases.get(plain, plain)]
        states = checkpoint.get("optimizer_states") or []
        if optimizer_state == "reset":
            for state in states:
                state["state"] = {}
        for name, holder, key in _optimizer_tensors(states):
            holder[key] = tensors.get(name, holder[key])
        checkpoint["merge_provenance"] = dict(provenance)
        torch.save(checkpoint, file)


def _map_tensors(
    scratch: IO[bytes], specs: Mapping[str, TensorSpec], positions: Mapping[str, int]
) -> dict[str, Tensor]:
    if not any(spec.num_bytes for spec in specs.values()):
        return {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    mapped = mmap.mmap(scratch.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: map_bytes(mapped, positions[name], spec.num_bytes).view(spec.dtype).view(spec.shape)
        for name, spec in specs.items()
    }


def _optimizer_tensors(states: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    """(Dotted path, dict or list that holds it, its key there) of every tensor in the states."""
    for i, state in enumerate(states):
        yield from _nested_tensors(state, f"optimizer_states.{i}")


def _nested_tensors(value: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, dict):
        entries: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        return
    for key, inner in entries:
        if isinstance(inner, Tensor):
            yield f"{path}.{key}", value, key
        else:
            yield from _nested_tensors(inner, f"{path}.{key}")
