"""Where a run's weights come from when they are neither random nor those of a resumed run.

`--init_from FILE` takes the weights of a checkpoint, `--init_from_merge` the merge of several
("PMA-init", arXiv 2505.12082, section 4.4); the optimizer and all else start anew.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..callbacks.checkpointing import AtomicCheckpointIO
from ..modules.merge_weights import DecayShape, Scheme
from .errors import note
from .merge import merge

MERGED_FILE = "init_from_merge.safetensors"

# Parameters of a quantizer, which a checkpoint may have and a run may not.
QUANTIZER_PARAMETER = re.compile(r"\.(weight|input)_quantizer\.(scale|clip)$")


@dataclass
class MergedInit:
    """What `--init_from_merge` merges, as `tenfold merge` does.

    Args:
        inputs: Checkpoints, run directories (their merging ring, else step_*.ckpt) or patterns.
        last: Merge only the newest so many.
        scheme: How they are weighted.
        decay_shape: Decay that "wsm" and "qam" emulate.
        min_interval: Leave out checkpoints fewer steps than this before the next one taken.
    """

    inputs: list[str]
    last: int | None = None
    scheme: Scheme = "sma"
    decay_shape: DecayShape = "linear"
    min_interval: int | None = None

    def write(self, run_dir: Path) -> None:
        """Merges into a file of the run directory.

        Raises:
            ValueError: As `tenfold merge`.
        """
        merge(
            self.inputs,
            run_dir / MERGED_FILE,
            scheme=self.scheme,
            decay_shape=self.decay_shape,
            last=self.last,
            min_interval=self.min_interval,
            overwrite=True,
        )


class InitialWeights(Callback):
    """Loads the weights of a checkpoint, and nothing else of it, before the first batch.

    Args:
        path: A Lightning checkpoint or a safetensors file whose names match the module's.
        merged_from: What it was merged from, for `metrics.json`.
    """

    def __init__(self, path: Path, merged_from: MergedInit | None = None) -> None:
        self.path = path
        self.merged_from = merged_from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notices a missing file before any work is done."""
        trainer.strategy.barrier()  # the first process may have just merged it
        if not self.path.exists():
            raise ValueError(f"--init_from: no file '{self.path}'")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the weights for training."""
        load_weights(pl_module, self.path)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the weights for the command `validate`."""
        if trainer.state.fn == "validate":
            load_weights(pl_module, self.path)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the weights for the command `test`, not over a checkpoint that a fit ended with."""
        if trainer.ckpt_path is None:
            load_weights(pl_module, self.path)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the weights for the command `predict`."""
        load_weights(pl_module, self.path)

    def run_info(self) -> dict[str, Any]:
        """Returns where the weights came from, for `metrics.json`."""
        origin = asdict(self.merged_from) if self.merged_from else str(self.path)
        return {"initial_weights": origin}


def load_weights(module: LightningModule, path: Path) -> None:
    """Copies the weights in a file into a module, a quantised one or not.

    Raises:
        ValueError: As `read_checkpoint` and `copy_weights`.
    """
    copy_weights(module, read_checkpoint(path)["state_dict"], path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a Lightning checkpoint, or the weights in a safetensors file as its `state_dict`.

    Raises:
        ValueError: The file is damaged, holds Python objects, or no `state_dict`.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {"state_dict": load_file(path)}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no `state_dict`")
    return checkpoint


def copy_weights(module: LightningModule, weights: dict[str, Any], path: Path) -> None:
    """Copies weights into a module, whose layers fill in what can be made from them.

    A quantised layer takes learned scales from a plain weight. Those of a quantised checkpoint that
    this module has no use for are left out, with a note.

    Args:
        module: Where to.
        weights: A state dict.
        path: Where it was read, for messages.

    Raises:
        ValueError: The names or shapes differ; the message gives examples.
    """
    own = module.state_dict()
    learned = {n for n in weights.keys() - own.keys() if QUANTIZER_PARAMETER.search(n)}
    if learned:
        note(f"{len(learned)} learned scales in {path} are left out: this run has none like them")
    weights = {name: value for name, value in weights.items() if name not in learned}
    shapes = [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
    _refuse(path, "has other shapes for", shapes)
    report = module.load_state_dict(weights, strict=False)
    # A quantizer's are missing only where its weight is, which they start from; of tied weights
    # safetensors files name one.
    given = {own[name].data_ptr() for name in weights.keys() & own.keys()}
    missing = [
        name
        for name in report.missing_keys
        if not QUANTIZER_PARAMETER.search(name) and own[name].data_ptr() not in given
    ]
    _refuse(path, "lacks", missing)
    _refuse(path, "has unknown", report.unexpected_keys)


def _refuse(path: Path, problem: str, names: list[str]) -> None:
    """Raises an error of one line about weights, if there are any."""
    if names:
        raise ValueError(
            f"{path} {problem} {len(names)} weights of this model, such as {min(names)}"
        )
