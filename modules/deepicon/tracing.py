"""Tracers compared on the same icons and by the same metrics as DeepIcon."""

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch import nn

from ..metrics.vector import IconMetrics
from .evaluation import compare, examples, true_icons
from .figures import contact_sheet, pareto_figure
from .representation import IconCodec, style_of
from .tracers import Tracer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES = 8


class TracingModule(LightningModule):
    """Tests tracers side by side; there is nothing to train.

    Logs `test/<label>/<metric>`, see `IconMetrics`, and `test/<label>/icons_per_second`; one record
    for each icon and tracer; figures: a contact sheet of each, and `pareto`: how far the number of
    paths is off against how much of the paths and of the ink is right.

    Args:
        tracers: What is compared.
        labels: Of each; by default the names of their classes.
        codec: The same as the data's.
        metric_size: Side of the pictures that metrics compare, in pixels.

    Raises:
        ValueError: Not one tracer, or not one label for each.
    """

    def __init__(
        self,
        tracers: list[Tracer],
        labels: list[str] | None = None,
        codec: IconCodec = IconCodec(),  # noqa: B008 - frozen
        metric_size: int = 96,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["tracers", "codec"])
        self.labels = labels or [type(tracer).__name__ for tracer in tracers]
        if not tracers or len(set(self.labels)) != len(tracers):
            raise ValueError(
                f"labels: {len(set(self.labels))} different ones for {len(tracers)} tracers"
            )
        self.tracers, self.codec = tracers, codec
        self.metrics = nn.ModuleList(IconMetrics(metric_size) for _ in tracers)
        self._seconds = [0.0 for _ in tracers]
        self._examples: dict[str, list[dict[str, Any]]] = {label: [] for label in self.labels}
        self._values: dict[str, dict[str, float]] = {}

    def on_test_start(self) -> None:
        """Gets what each tracer needs."""
        for tracer in self.tracers:
            tracer.prepare()

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Traces one batch with each; returns a record for each icon and tracer."""
        true, names = true_icons(batch, self.codec), batch["name"]
        images, styles = batch["image"].cpu(), [style_of(numbers) for numbers in batch["style"]]
        records = []
        for place, (tracer, label) in enumerate(zip(self.tracers, self.labels, strict=True)):
            start = time.perf_counter()
            predicted = [tracer.trace(*pair) for pair in zip(images, styles, strict=True)]
            self._seconds[place] += time.perf_counter() - start
            metric = self.metrics[place]
            assert isinstance(metric, IconMetrics)
            records += compare(metric, label, names, predicted, true)
            shown = self._examples[label]
            shown += examples(NUM_EXAMPLES - len(shown), images, names, predicted, true)
        return {"records": records}

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of each tracer."""
        for label, metric, seconds in zip(self.labels, self.metrics, self._seconds, strict=True):
            assert isinstance(metric, IconMetrics)
            values = {name: value.item() for name, value in metric.compute().items()}
            values["icons_per_second"] = len(metric.rows().get("icons", ())) / max(seconds, 1e-9)
            self._values[label] = values
            for name, value in values.items():
                self.log(f"test/{label}/{name}", value, sync_dist=True)

    def figures(self) -> dict[str, "Figure"]:
        """Returns a contact sheet of each tracer, and their errors against each other."""
        found = {f"icons_{label}": contact_sheet(self._examples[label]) for label in self.labels}
        if len(self._values) > 1:
            found["pareto"] = pareto_figure(self._values)
        return found
