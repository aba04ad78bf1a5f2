"""Weights and processors from local files, whole or refused."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from ..checkpoint_files import open_checkpoint

# What reading a model's files raises when they are missing, damaged or do not fit.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError)


def require_folder(model: str) -> Path:
    """Returns the folder of a model.

    Raises:
        ValueError: There is none.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ValueError(
            f"model: no folder {model!r}; nothing is downloaded here, get it by "
            "`hf download NAME --local-dir FOLDER`"
        )
    return folder


def missing_package(package: str, extra: str) -> ValueError:
    """The one line that tells what to install."""
    return ValueError(f"encoder: {package} is missing: pip install 'tenfold[{extra}]'")


def load_error(model: str, error: Exception) -> ValueError:
    """The one line that tells why a model cannot be loaded."""
    return ValueError(f"model: cannot load {model!r}: {' '.join(str(error).split())}")


def read_config(model: str) -> PreTrainedConfig:
    """Reads the configuration of a transformers model.

    Raises:
        ValueError: There is none, or none that transformers knows.
    """
    folder = require_folder(model)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise load_error(model, error) from error
    return config


def load_transformers(
    auto: Any,
    model: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    random: bool,
    spare: str = "",
) -> nn.Module:
    """Makes a transformers model, with the folder's weights or random ones.

    Args:
        auto: The class, or one of transformers' Auto classes.
        model: The folder.
        config: What is in it.
        dtype: Of weights that are read; random ones are float32.
        random: Whether the weights are drawn.
        spare: Beginning of the names of weights that may be missing, as nothing uses them.

    Raises:
        ValueError: Files are missing or damaged, or weights of the network are not in them.
    """
    if random:
        network: nn.Module = getattr(auto, "from_config", auto)(config)
        return network
    try:
        network, found = auto.from_pretrained(
            model, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise load_error(model, error) from error
    missing = sorted(
        name for name in found["missing_keys"] if not (spare and name.startswith(spare))
    )
    if missing:
        raise ValueError(
            f"model: {model!r} lacks {len(missing)} weights of {type(network).__name__}, such as "
            f"{missing[0]}: give seed for random ones, or another folder"
        )
    return network


def load_checkpoint(network: nn.Module, path: str, prefix: str) -> None:
    """Replaces all weights of a network by tensors of a checkpoint; nothing is unpickled.

    Raises:
        ValueError: There is no checkpoint, or its tensors are not the network's.
    """
    stored = {
        name.removeprefix(prefix): tensor
        for name, tensor in open_checkpoint(Path(path)).tensors.items()
        if name.startswith(prefix)
    }
    target = network.state_dict()
    missing, others = sorted(target.keys() - stored.keys()), sorted(stored.keys() - target.keys())
    shapes = [n for n in target.keys() & stored.keys() if target[n].shape != stored[n].shape]
    if missing or others or shapes:
        what = (
            f"lacks {missing[0]}"
            if missing
            else f"has {others[0]}, which the network has not"
            if others
            else f"has {sorted(shapes)[0]} in another shape"
        )
        raise ValueError(
            f"checkpoint: {path!r} {what} (names after checkpoint_prefix {prefix!r}): give the "
            "prefix and the model of its network"
        )
    for name, tensor in stored.items():
        data = torch.empty(tensor.num_bytes, dtype=torch.uint8)
        tensor.read(0, tensor.num_elements, data)
        target[name].copy_(data.view(tensor.dtype).view(tensor.shape))


def sha256_of_checkpoint(path: str) -> str:
    """SHA-256 of the content of a checkpoint's files."""
    whole = hashlib.sha256()
    for part in open_checkpoint(Path(path)).files:
        with part.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
