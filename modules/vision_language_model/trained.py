"""Models of `VisionLanguageModel`'s checkpoints, to be asked."""

from pathlib import Path

from .module import VisionLanguageModel


def load_trained(checkpoint: str) -> VisionLanguageModel:
    """Loads a checkpoint of `VisionLanguageModel`, on the CPU, with nothing left to train.

    Args:
        checkpoint: Path of the file.

    Raises:
        ValueError: There is no such file.
    """
    if not Path(checkpoint).is_file():
        raise ValueError(f"model: there is no checkpoint {checkpoint!r}: train one first")
    module = VisionLanguageModel.load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=True
    )
    module.train(False).requires_grad_(False)
    return module
