"""How near CVR-LLM comes to what its servers can do.

    python tests/benchmarks/reasoning.py [--questions 256] [--seconds 0.2]

A server of known service time answers everything, 64 requests at a time. The loop has seven stages
that wait for each other, so that a batch of B questions takes at least 7 ceil(B / 64) service
times. Printed is what a test took as a multiple of that, by batch size, and of a second test that
finds all answers kept as seconds per question.
"""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from report import ratio
from tenfold.datamodules.scenes import ObjectScenes
from tenfold.datamodules.visual_reasoning import SceneReasoningDataModule
from tenfold.modules.chat import OpenAIChatBackend
from tenfold.modules.cvr_llm import CVRLLMModule

SERVER = Path(__file__).parents[1] / "helpers" / "chat_server.py"
IN_FLIGHT, STAGES = 64, 7


def run(url: str, folder: Path, questions: int, batch_size: int) -> float:
    """Tests once; returns seconds."""
    module = CVRLLMModule(
        llm=OpenAIChatBackend(url, "llm", max_concurrency=IN_FLIGHT),
        captioner=OpenAIChatBackend(url, "captioner", max_concurrency=IN_FLIGHT),
        save_pictures=False,
    )
    scenes = ObjectScenes.caid(sizes=["large"])
    data = SceneReasoningDataModule(
        scenes, tasks=["what"], num_scenes=questions, batch_size=batch_size
    )
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.test(module, data, verbose=False)
    return time.perf_counter() - began


def main(questions: int = 256, seconds: float = 0.2) -> None:
    """Prints the ratios.

    Args:
        questions: Asked in each test.
        seconds: Service time of the server.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, SERVER, "0", folder / "log.jsonl", "--seconds", str(seconds)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            run(url, folder / "warm", 4, 4)
            for batch_size in (16, 64, 256):
                sizes = [batch_size] * (questions // batch_size) + [questions % batch_size]
                waves = sum(math.ceil(size / IN_FLIGHT) for size in sizes)
                floor = STAGES * waves * seconds
                first = run(url, folder / f"{batch_size}", questions, batch_size)
                again = run(url, folder / f"{batch_size}", questions, batch_size)
                print(
                    f"batch_size {batch_size:>3}: {first:6.1f} s, {first / floor:.2f} times the "
                    f"floor of its waves; kept: {1000 * again / questions:.1f} ms per question"
                )
                ratio(
                    f"time of a test / the floor of its waves, batches of {batch_size}",
                    first / floor,
                )
        finally:
            server.kill()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
