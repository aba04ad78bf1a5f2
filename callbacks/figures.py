"""The one way out for pictures: whatever is offered, as files and in TensorBoard."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ..modules.files import atomic_write


class FigureWriter(Callback):
    """Writes what `figures()` returns to `figures/<name>.png` and to TensorBoard, W&B or MLflow.

    A module or a callback opts in with a method `figures() -> dict[str, Figure | Tensor]`; tensors
    are images of shape (3, H, W) or (1, H, W), float in [0, 1] or uint8. Drawn when a command ends,
    and during training after a validation, at most once in `min_seconds`.

    Args:
        min_seconds: Least time between two drawings during training, in seconds.
    """

    def __init__(self, min_seconds: float = 60.0) -> None:
        self.min_seconds = min_seconds
        self._last_drawn = float("-inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws after a validation; during training only when the last drawing is old enough."""
        is_recent = time.monotonic() - self._last_drawn < self.min_seconds
        if not (trainer.sanity_checking or (is_recent and trainer.state.fn == TrainerFn.FITTING)):
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final state."""
        self._draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what the test shows."""
        self._draw(trainer, pl_module)

    @rank_zero_only
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owners = (pl_module, *trainer.callbacks)  # type: ignore[attr-defined] # set at run time
        offers = [getattr(owner, "figures", None) for owner in owners]
        figures = {name: figure for offer in offers if offer for name, figure in offer().items()}
        for name, figure in figures.items():
            path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
            self._save(path, figure)
            for logger in trainer.loggers:
                self._log(logger, name, figure, path, trainer.global_step)
        self._last_drawn = time.monotonic()

    @staticmethod
    def _log(logger: Logger, name: str, figure: Any, path: Path, step: int) -> None:
        match logger:
            case TensorBoardLogger() if isinstance(figure, Tensor):
                logger.experiment.add_image(name, figure, step)
            case TensorBoardLogger():
                logger.experiment.add_figure(name, figure, step, close=False)
            case WandbLogger():
                logger.log_image(f"figures/{name}", [str(path)])
            case MLFlowLogger():
                logger.experiment.log_artifact(logger.run_id, str(path), "figures")

    @staticmethod
    def _save(path: Path, figure: Any) -> None:
        with atomic_write(path) as file:
            if isinstance(figure, Tensor):
                from torchvision.utils import save_image

                image = figure.float() / 255 if not figure.is_floating_point() else figure
                save_image(image, file, format="png")
            else:
                figure.savefig(file, format="png", dpi=120)
