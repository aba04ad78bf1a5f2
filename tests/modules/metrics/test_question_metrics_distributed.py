"""Two processes, one question seen by both: the numbers are those of one process."""

from pathlib import Path

import pytest
import torch
from tenfold.modules.metrics.chair import ChairMetric
from tenfold.modules.metrics.judging import RelativeScore
from tenfold.modules.metrics.mme import HALLUCINATION, MmeMetric
from tenfold.modules.metrics.pointing import PointingGame
from tenfold.modules.metrics.questions import ExactAnswers
from torch.multiprocessing.spawn import spawn

NUMBER = 24


def filled(places, synonyms):
    """Each metric with the questions of some places."""
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(NUMBER, generator=generator) < 0.6).tolist()
    maps = torch.rand(NUMBER, 4, 4, generator=generator)
    metrics = [MmeMetric(), ChairMetric(synonyms), PointingGame(), RelativeScore(), ExactAnswers()]
    mme, chair, pointing, relative, exact = metrics
    for i in places:
        text = ["no", "yes"][right[i]]
        category = HALLUCINATION[i % 4]
        mme.update([i // 12], [f"{i // 4 % 3}.jpg"], [category], ["yes"], [text])
        chair.update([i], ["A dog" if right[i] else "A cat and a dog"], [["dog"]], [["A cup"]])
        box = torch.tensor([[0.0, 0.0, 0.6, 0.6]])
        pointing.update([category], [i], maps[i : i + 1], [box])
        relative.update([i], [category], [(i % 10 + 1, 5) if right[i] else None])
        exact.update([category], [i], [text], ["yes"])
    return metrics


def numbers(metrics):
    return [{k: float(v) for k, v in metric.compute().items()} for metric in metrics]


def _rank(rank: int, folder: str):
    file, synonyms = Path(folder) / "rendezvous", str(Path(folder) / "synonyms.txt")
    expected = numbers(filled(range(NUMBER), synonyms))
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    for places in ([*range(0, NUMBER, 2), 5], [*range(1, NUMBER, 2)]), (range(NUMBER), ()):
        assert numbers(filled(places[rank], synonyms)) == [pytest.approx(e) for e in expected]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_together_are_one_process(tmp_path):
    (tmp_path / "synonyms.txt").write_text("dog\ncat\ncup\n")
    spawn(_rank, (str(tmp_path),), nprocs=2)
