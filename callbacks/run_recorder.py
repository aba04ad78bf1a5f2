"""`metrics.json`: everything needed to compare runs, written once per command."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..modules.files import write_json

PACKAGES = ("tenfold", "torch", "lightning", "transformers", "numpy")


def read_metrics(run_dir: str | Path) -> dict[str, Any]:
    """The content of a run's `metrics.json`, empty when no command has finished in it yet."""
    path = Path(run_dir) / "metrics.json"
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class RunRecorder(Callback):
    """Adds a command's results to `metrics.json` when the command ends well.

    The file holds one section per command (`fit`, `validate`, `test`, `predict`) with the last
    value of every logged metric, and `run` with seed, versions, code revision, device, wall time,
    and what module, DataModule and callbacks offer through `run_info() -> dict`. A section exists
    if and only if its command finished.

    Args:
        seed: Seed of the run, as given.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._command = ""
        self._started = 0.0
        self._has_trained = False
        self._earlier_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far, over all resumes."""
        return {"wall_time_s": self._wall_time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint stopped."""
        if self._command == "fit":
            self._earlier_seconds = float(state_dict["wall_time_s"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock of a command."""
        self._command = stage
        self._earlier_seconds = 0.0
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells a run that trains from a finished one that is resumed once more."""
        self._has_trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records `fit`, unless there was nothing left to train."""
        if not self._has_trained and "fit" in read_metrics(_run_dir(trainer)):
            return
        results: dict[str, Any] = {"step": trainer.global_step, "epoch": trainer.current_epoch}
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, "best_checkpoint", None)
        if best is not None:
            results["best_checkpoint"] = f"checkpoints/{best}"
            results[f"best_{checkpoint.monitor}"] = checkpoint.best[best]  # type: ignore[union-attr]
        self._record(trainer, pl_module, results)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records `validate` when that is the command."""
        if self._command == "validate":
            self._record(trainer, pl_module, {})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records `test`."""
        self._record(trainer, pl_module, {})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records `predict`."""
        self._record(trainer, pl_module, {})

    def _wall_time(self) -> float:
        return round(self._earlier_seconds + time.monotonic() - self._started, 3)

    @rank_zero_only
    def _record(
        self, trainer: Trainer, pl_module: LightningModule, results: dict[str, Any]
    ) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        info: dict[str, Any] = {}
        for owner in (trainer.datamodule, pl_module, *trainer.callbacks):  # type: ignore[attr-defined]
            offer = getattr(owner, "run_info", None)
            info |= offer() if offer else {}
        metrics = read_metrics(_run_dir(trainer))
        metrics[self._command] = {
            **results,
            **dict(sorted(logged.items())),
            "wall_time_s": self._wall_time(),
        }
        metrics["run"] = {
            **metrics.get("run", {}),
            "seed": self.seed,
            "device": device_name(trainer),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": {"python": platform.python_version(), **installed_versions()},
            "code_revision": code_revision(),
            **info,
        }
        write_json(_run_dir(trainer) / "metrics.json", metrics)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def device_name(trainer: Trainer) -> str:
    """The accelerator's name, or the processor's architecture."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def code_revision() -> str | None:
    """The git commit of the checkout that this code runs from, None for an installed package."""
    package = Path(__file__).resolve().parents[1]
    if not (package / ".git").exists():
        return None
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-modified" if changes else commit


def _run_dir(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)
