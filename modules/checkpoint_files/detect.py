"""Which format a path has."""

from pathlib import Path
from typing import Literal

from .lightning import read_lightning
from .safetensors import read_safetensors, read_safetensors_folder
from .stored import Checkpoint

Format = Literal["lightning", "safetensors", "huggingface", "adapter", "distributed"]
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


def find_format(path: Path) -> Format | None:
    """The format of a checkpoint, None where `path` is none (as a folder of checkpoints).

    Raises:
        ValueError: `path` is a checkpoint of a format that is not read here.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return "safetensors"
        if path.suffix == ".ckpt":
            return "lightning"
        raise ValueError(f"{path} is no .ckpt and no .safetensors file")
    if (path / ".metadata").is_file():
        return "distributed"
    if (path / "adapter_config.json").is_file():
        if not (path / "adapter_model.bin").is_file():
            return "adapter"
    elif any((path / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json")):
        return "huggingface"
    for name in _PICKLES:
        if (path / name).is_file():
            raise ValueError(f"{path} holds pickled weights ({name}): save it as safetensors")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the headers of a checkpoint.

    Raises:
        ValueError: There is none, or it is damaged, incomplete or holds Python objects.
    """
    match find_format(path):
        case "lightning":
            return read_lightning(path)
        case "safetensors":
            return read_safetensors(path)
        case "huggingface":
            return read_safetensors_folder(path)
        case "adapter":
            return read_safetensors_folder(path, "adapter_model")
        case "distributed":
            from .distributed import read_distributed  # loads much of torch.distributed

            return read_distributed(path)
    raise ValueError(f"'{path}' is no checkpoint")
