"""Which inputs resist rounding: kurtosis, clipping and noise at every site, while training."""

import csv
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from ..modules.files import atomic_write
from ..modules.metrics.activations import ActivationStatistics
from ..modules.quantization import FakeQuantLayer, Quantizer
from ..modules.quantization.layers import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "activation_stats.csv"


class ActivationStatsMonitor(Callback):
    """Measures the inputs of layers in one training step out of `every_n_steps`.

    Logged as means over layers of a kind, such as `activations/mlp.down_proj/kurtosis`: kurtosis
    (Pearson's, 3 for a Gaussian), amax, and where the input is rounded clip_fraction, zero_fraction
    and snr_db (see `ActivationStatistics`). The last measurement of every layer is in
    `activation_stats.csv` in the run directory and in the figure `activation_stats`.

    Hooks exist during the measured steps only, which run uncompiled; training is not changed.

    Args:
        every_n_steps: Optimizer steps between measurements; the first comes after as many.
        include: Regular expressions, searched for in dotted names: layers to measure. Null: those
            that are quantised, or without any every linear layer and convolution.

    Raises:
        ValueError: Nothing matches.
    """

    def __init__(self, every_n_steps: int = 100, include: list[str] | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be 1 or more, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.include = include
        self.rows: dict[str, dict[str, float]] = {}
        self._metrics: dict[str, ActivationStatistics] = {}
        self._measuring = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """The last measurement: layer -> statistic -> value."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the layers."""
        self._sites(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the inputs of this batch, when it is time."""
        is_first = batch_idx % trainer.accumulate_grad_batches == 0
        if not is_first or (trainer.global_step + 1) % self.every_n_steps:
            return
        self._measuring.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in self._sites(pl_module).items():
            metric = ActivationStatistics().to(pl_module.device)
            self._metrics[name] = metric
            hook = layer.register_forward_pre_hook(_measure(metric))
            self._measuring.callback(hook.remove)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Logs what was measured."""
        self._measuring.close()
        if not self._metrics:
            return
        self.rows = {
            name: {key: float(value) for key, value in metric.compute().items()}
            for name, metric in self._metrics.items()
            if metric.update_called
        }
        self._metrics = {}
        for kind, statistics in self.kinds().items():
            for key, value in statistics.items():
                pl_module.log(f"activations/{kind}/{key}", value)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Takes the hooks away."""
        self._measuring.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table and shows its means."""
        if not self.rows or not trainer.is_global_zero:
            return
        names = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        with atomic_write(Path(trainer.default_root_dir) / FILE, "w") as file:
            writer = csv.DictWriter(file, ["layer", *names], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"layer": layer} | row for layer, row in self.rows.items())
        lines = [f"  {'layers, means':<28}" + "".join(f"{name:>15}" for name in names)]
        for kind, row in self.kinds().items():
            cells = [f"{row[name]:15.4g}" if name in row else " " * 15 for name in names]
            lines.append(f"  {kind:<28}" + "".join(cells))
        rank_zero_info("\n".join(["inputs of layers:", *lines]))

    def kinds(self) -> dict[str, dict[str, float]]:
        """Returns means over the layers whose names differ in a number only."""
        groups: dict[str, list[dict[str, float]]] = {}
        for name, row in self.rows.items():
            parts = [re.sub(r"^\d+$", "*", part) for part in name.split(".")[-2:]]
            groups.setdefault(".".join(parts), []).append(row)
        return {
            kind: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
            for kind, rows in groups.items()
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns the statistics of every layer, one panel each, once there are any."""
        return {"activation_stats": draw(self.rows)} if self.rows else {}

    def _sites(self, module: nn.Module) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = dict(module.named_modules())
        layers = {name: m for name, m in modules.items() if isinstance(m, tuple(KINDS))}
        if self.include is None:
            is_rounded = {n for n, m in layers.items() if isinstance(m, FakeQuantLayer)}
            chosen = is_rounded or set(layers)
        else:
            chosen = {n for n in layers for pattern in self.include if re.search(pattern, n)}
        if not chosen:
            raise ValueError(
                f"include: {self.include or 'linear layers and convolutions'} matches no layer of "
                f"{type(module).__name__}"
            )
        return {name: module for name, module in modules.items() if name in chosen}


def _measure(metric: ActivationStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        quantizer = layer.input_quantizer if isinstance(layer, FakeQuantLayer) else None
        if not isinstance(quantizer, Quantizer) or not quantizer.enabled:
            metric.update(x)
            return
        assert isinstance(layer, FakeQuantLayer)
        x = x.movedim(layer.feature_dim, -1)
        with torch.no_grad():
            metric.update(x, quantizer(x), quantizer.clips(x))

    return hook


def draw(rows: dict[str, dict[str, float]]) -> "Figure":
    """Draws statistics of layers: a panel per statistic, a line per kind of layer, by depth."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    titles = {
        "kurtosis": "kurtosis (Gaussian: 3)",
        "snr_db": "signal to rounding noise (dB)",
        "zero_fraction": "rounded to zero (share of values)",
        "clip_fraction": "clipped (share of values)",
    }
    shown = [name for name in titles if any(name in row for row in rows.values())]
    num_rows, num_columns = (len(shown) + 1) // 2, min(len(shown), 2)
    figure = Figure(figsize=(3.6 * num_columns + 2.4, 2.8 * num_rows), layout="constrained")
    lines = _lines(rows)
    for position, name in enumerate(shown, start=1):
        axes = figure.add_subplot(num_rows, num_columns, position, title=titles[name])
        for label, values in lines.items():
            axes.plot([row.get(name, math.nan) for row in values], "o-", markersize=4, label=label)
        axes.set_xlabel("layer")
        if name == "kurtosis":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    return figure


def _lines(rows: dict[str, dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Returns the rows of each kind of layer; kinds that share their inputs have one line."""
    kinds: dict[str, list[dict[str, float]]] = {}
    for layer, row in rows.items():
        kinds.setdefault(layer.rsplit(".", 1)[-1], []).append(row)
    names: dict[str, list[str]] = {}
    for kind, values in kinds.items():
        names.setdefault(repr(values), []).append(kind)
    return {", ".join(same): kinds[same[0]] for same in names.values()}
