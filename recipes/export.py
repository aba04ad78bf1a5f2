"""`tenfold export`: what a quantised run has learned, as files that other programs load.

Imports torch only when the command runs.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .arguments import Arguments, read_arguments
from .classes import import_named
from .errors import note

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from torch import nn

    from ..callbacks.quantization import QuantizationAwareTraining
    from ..modules.quantization.export import Export


def export(
    ckpt: Path | None = None,
    run_dir: Path | None = None,
    format: Literal["hf", "fake", "int4", "compressed-tensors"] = "int4",  # noqa: A002
    out: Path | None = None,
    config: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the network of a quantised run: packed, rounded, or for vLLM.

    `tenfold export --run_dir runs/language_model/quickstart/version_0 --format int4 --out packed`
    exports the best checkpoint of a run, or its last where none was ranked. Written is the
    module's `network`, else its only child with parameters, else the module as a whole.

    Args:
        ckpt: Checkpoint to export, with its run's config.yaml two folders above, or --config.
        run_dir: Run to export from, instead of --ckpt.
        format: `int4`: codes and scales, loaded by `load_quantized`. `compressed-tensors`: the
            checkpoint that vLLM and transformers load. `fake`: rounded weights in the layout of
            transformers or timm. `hf`: that layout with weights in full precision.
        out: Folder to write.
        config: The recipe that builds the model and quantises it; default: the run's config.yaml.
            With one that a plain run's checkpoint was not trained by, its weights are rounded now.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: A file is missing or damaged, or the run is not quantised; one line with the
            fix.
    """
    if out is None:
        raise ValueError("export needs a folder to write: --out DIR")
    ckpt = _find_checkpoint(ckpt, run_dir)
    arguments = _read_config(config or ckpt.absolute().parent.parent / "config.yaml", ckpt)
    from ..modules.quantization.export import export_quantized, refuse_existing

    refuse_existing(out, overwrite)
    module = _load(arguments, ckpt)
    written = export_quantized(_network(module), out, format, overwrite)
    for line in written.notes:
        note(line)
    print(_summary(written, ckpt))


def _find_checkpoint(ckpt: Path | None, run_dir: Path | None) -> Path:
    """Returns the checkpoint that the options name."""
    if (ckpt is None) == (run_dir is None):
        raise ValueError("export needs either --ckpt FILE or --run_dir DIR")
    if ckpt is not None:
        if not ckpt.is_file():
            raise ValueError(f"--ckpt: no file '{ckpt}'")
        return ckpt
    assert run_dir is not None
    from ..callbacks.checkpointing import newest_intact_checkpoint
    from ..callbacks.run_recorder import read_metrics

    if not run_dir.is_dir():
        raise ValueError(f"--run_dir: no folder '{run_dir}'")
    best = read_metrics(run_dir).get("fit", {}).get("best_checkpoint")
    found = run_dir / best if best else newest_intact_checkpoint(run_dir / "checkpoints")
    if found is None or not found.is_file():
        raise ValueError(f"--run_dir: no intact checkpoint in {run_dir / 'checkpoints'}")
    return found


def _read_config(path: Path, ckpt: Path) -> Arguments:
    """Reads the recipe of the run, and imports the classes that it names."""
    if not path.is_file():
        raise ValueError(f"no file '{path}', which says how {ckpt} was trained: give --config FILE")
    sys.path.insert(0, str(Path.cwd()))  # a recipe may name classes of the folder it is run in
    arguments = read_arguments(["--config", str(path)])
    import_named(arguments.names)
    return arguments


def _load(arguments: Arguments, ckpt: Path) -> "LightningModule":
    """Builds the module of a recipe, quantised as it says, with the weights of a checkpoint."""
    from ..callbacks.quantization import QuantizationAwareTraining
    from ..modules.quantization import prepare_qat
    from .initial_weights import copy_weights, read_checkpoint
    from .trainer_cli import BuildCLI

    checkpoint = read_checkpoint(ckpt)
    recipe = BuildCLI(arguments)
    module: LightningModule = recipe.model
    module.configure_model()
    rounding = [c for c in recipe.callbacks if isinstance(c, QuantizationAwareTraining)]
    for callback in rounding:
        prepare_qat(module, callback.config)
    copy_weights(module, checkpoint["state_dict"], ckpt)
    for callback in rounding:
        _take_up(callback, module, checkpoint.get("callbacks", {}), ckpt)
    return module


def _take_up(
    callback: "QuantizationAwareTraining",
    module: "LightningModule",
    states: dict[str, Any],
    ckpt: Path,
) -> None:
    """Compares the recipe's rounding with the checkpoint's; begins it where training had not.

    Args:
        callback: What the recipe says.
        module: The quantised module, with the weights of the checkpoint.
        states: The callbacks' states in the checkpoint.
        ckpt: The checkpoint, for messages.

    Raises:
        ValueError: The checkpoint was rounded otherwise.
    """
    from ..modules.quantization import quantized_layers

    state = states.get(callback.state_key)
    if state is None:  # a plain run's, or merged
        note(f"{ckpt} does not say how it was rounded in training: the recipe's rounding is used")
        return
    callback.load_state_dict(state)
    if not state["has_started"]:
        note(f"{ckpt} is older than the start of rounding: its weights are rounded now")
        for layer in quantized_layers(module).values():
            layer.initialize()


def _network(module: "LightningModule") -> "nn.Module":
    """Returns `module.network`, else the only child with parameters, else the module itself."""
    children = {n: m for n, m in module.named_children() if any(True for _ in m.parameters())}
    if "network" in children:
        return children["network"]
    return next(iter(children.values())) if len(children) == 1 else module


def _summary(written: "Export", ckpt: Path) -> str:
    """What was written, and how to load it."""
    layers = [f"  {count} layers: {text}" for text, count in written.precisions.items()]
    before, after = written.bytes_before, written.bytes_after
    return "\n".join(
        [
            f"{written.folder}: {written.format}, from {ckpt}",
            *layers,
            f"  {before:,} bytes of tensors, {after:,} written: ratio {before / after:.2f}",
            f"  load it: {written.loading}",
        ]
    )
