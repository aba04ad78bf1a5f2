"""safetensors: single files, and folders as Hugging Face's libraries write and load them."""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import atomic_write, write_json
from .stored import Checkpoint, Piece, StoredTensor, TensorSpec, as_bytes, plain_names, step_in_name

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What belongs to a model and holds no weights.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json", ".gguf", ".h5")
# In a configuration: what differs between checkpoints of a run, and PEFT's sets, in any order.
_OF_NO_RUN = (
    "_name_or_path",
    "transformers_version",
    "peft_version",
    "torch_dtype",
    "dtype",
    "revision",
)
_SETS = {"target_modules", "modules_to_save", "exclude_modules"}
_NOT_COPIED = ("trainer_state.json", "training_args.json", "merge.json", "README.md")


def read_safetensors(path: Path) -> Checkpoint:
    """Opens a single file.

    Raises:
        ValueError: It is damaged, or has a dtype unknown here.
    """
    tensors, metadata = _read_header(path)
    names = plain_names(list(tensors), path)
    step = metadata.get("step", "")
    named = [step_in_name(path), step_in_name(path.parent)]
    return Checkpoint(
        path,
        "safetensors",
        (path,),
        {names[name]: tensor for name, tensor in tensors.items()},
        step=int(step) if step.isdecimal() else next((n for n in named if n is not None), None),
    )


def read_safetensors_folder(folder: Path, stem: str = "model") -> Checkpoint:
    """Opens a folder with a model or an adapter, in one file or several.

    Args:
        folder: The folder.
        stem: "model", or "adapter_model" for PEFT's adapters.

    Raises:
        ValueError: A file is missing or damaged.
    """
    index = folder / f"{stem}.safetensors.index.json"
    tensors: dict[str, StoredTensor] = {}
    if index.is_file():
        try:
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{index} is damaged: it has no readable `weight_map`") from error
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise ValueError(f"{folder} is incomplete: {file.name} is missing")
            stored, _ = _read_header(file)
            listed = {name for name, holder in weight_map.items() if holder == file.name}
            if listed != stored.keys():
                wrong = min(listed ^ stored.keys())
                raise ValueError(f"{index} and {file.name} disagree on where '{wrong}' is")
            tensors |= stored
    else:
        files = [folder / f"{stem}.safetensors"]
        tensors, _ = _read_header(files[0])
    names = plain_names(list(tensors), folder)
    kind = "PEFT adapter" if stem == "adapter_model" else "Hugging Face folder"
    return Checkpoint(
        folder,
        kind,
        tuple(files),
        {names[name]: tensor for name, tensor in tensors.items()},
        step=step_in_name(folder),
        settings=_read_config(folder, stem),
    )


def write_safetensors(
    file: IO[bytes],
    specs: Mapping[str, TensorSpec],
    blocks: Iterator[Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file front to back.

    Args:
        file: Open for writing.
        specs: What is written, in the order of `writing_order`.
        blocks: The tensors' data in that order, each tensor in one block or more.
        metadata: Free text for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, spec in specs.items():
        end = position + spec.num_bytes
        header[name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for spec in specs.values():
        write_blocks(file, spec, blocks)


def write_blocks(file: IO[bytes], spec: TensorSpec, blocks: Iterator[Tensor]) -> None:
    """Writes the blocks of one tensor."""
    missing = spec.num_bytes
    while missing:
        data = as_bytes(next(blocks))
        file.write(data)
        missing -= len(data)


def writing_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names by falling size of an element, so that each tensor begins at a multiple of its own."""
    return sorted(specs, key=lambda name: -specs[name].dtype.itemsize)


@dataclass(frozen=True)
class ShardedWriting:
    """Which tensors go into which file of a folder.

    Attributes:
        shards: File name -> names of its tensors, in writing order.
        total_size: Bytes of all tensors.
    """

    shards: Mapping[str, Sequence[str]]
    total_size: int

    @classmethod
    def plan(
        cls, specs: Mapping[str, TensorSpec], max_shard_size: int, stem: str = "model"
    ) -> "ShardedWriting":
        """Fills files in the tensors' order, each up to `max_shard_size` bytes or one tensor."""
        groups: list[list[str]] = [[]]
        size = 0
        for name, spec in specs.items():
            if groups[-1] and size + spec.num_bytes > max_shard_size:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += spec.num_bytes
        count = len(groups)
        shards = {
            f"{stem}.safetensors" if count == 1 else f"{stem}-{i:05d}-of-{count:05d}.safetensors": (
                writing_order({name: specs[name] for name in names})
            )
            for i, names in enumerate(groups, 1)
        }
        return cls(shards, sum(spec.num_bytes for spec in specs.values()))

    @property
    def order(self) -> list[str]:
        """All tensors' names in the order in which they are written."""
        return [name for names in self.shards.values() for name in names]


def write_safetensors_folder(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    writing: ShardedWriting,
    blocks: Iterator[Tensor],
    stem: str = "model",
) -> None:
    """Writes weights into an existing folder, with an index where there are several files.

    Args:
        folder: Where.
        specs: What.
        writing: In which files.
        blocks: The tensors' data in the order of `writing`.
        stem: "model" or "adapter_model".
    """
    for file_name, names in writing.shards.items():
        with atomic_write(folder / file_name) as file:
            in_file = {name: specs[name] for name in names}
            write_safetensors(file, in_file, blocks, {"format": "pt"})
    if len(writing.shards) > 1:
        index = {
            "metadata": {"total_size": writing.total_size},
            "weight_map": {n: file for file, names in writing.shards.items() for n in names},
        }
        write_json(folder / f"{stem}.safetensors.index.json", index)


def copy_companions(source: Path, target: Path) -> None:
    """Copies what a model's folder holds besides weights: configurations, tokenizer."""
    for path in sorted(source.iterdir()):
        is_weights = path.name.endswith(_WEIGHT_SUFFIXES) or path.name in _NOT_COPIED
        if path.is_file() and not path.name.startswith(".") and not is_weights:
            shutil.copy2(path, target / path.name)


def _read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"no file '{path}'")
    try:
        with safe_open(path, "np") as opened:  # checks that header and size agree
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: '{name}' has the dtype {entry['dtype']}, unknown here")
        shape = tuple(entry["shape"])
        piece = Piece(path, 8 + length + entry["data_offsets"][0], (0,) * len(shape), shape)
        tensors[name] = StoredTensor(DTYPES[entry["dtype"]], shape, (piece,))
    return tensors, metadata


def _read_config(folder: Path, stem: str) -> dict[str, Any]:
    """The model's or adapter's configuration, without what changes along a run."""
    path = folder / ("adapter_config.json" if stem == "adapter_model" else "config.json")
    if not path.is_file():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for key in _SETS.intersection(config):
        config[key] = sorted(config[key]) if isinstance(config[key], list) else config[key]
    return {key: value for key, value in config.items() if key not in _OF_NO_RUN}
