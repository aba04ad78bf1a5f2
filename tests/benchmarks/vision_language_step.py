"""What a training step of the small vision-language model costs, and what encoding adds to it.

    python tests/benchmarks/vision_language_step.py [--threads 1] [--repeats 15]

Steps of 64 images with one question and with six, taken in turn: the network alone on inputs that
are encoded already (forward, backward, clipping, AdamW), the module (with tokens and pixels), and
the module with drawing the scenes. Medians in seconds, and ratios to the network alone.
"""

import statistics
import time
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from report import ratio
from tenfold.datamodules.scenes import ObjectScenes, SceneDataModule
from tenfold.modules.optimization import parameter_groups
from tenfold.modules.vision_language_model import Phase, VisionLanguageModel

RECIPE = Path(__file__).parents[2] / "recipes" / "vision_language_model" / "quickstart.yaml"


def main(threads: int = 1, repeats: int = 15) -> None:
    """Prints the table.

    Args:
        threads: Of torch.
        repeats: Rounds; each takes every kind of step once.
    """
    torch.set_num_threads(threads)
    arguments = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]
    names = ("config", "vocabulary", "image_size", "patch_classes")
    module = VisionLanguageModel(**{name: arguments[name] for name in names})
    module.configure_model()
    size = sum(p.numel() for p in module.network.parameters())
    print(f"{size / 1e6:.2f}M parameters, batch of 64, {threads} thread(s)")
    phase = Phase(patch_weight=0.5)
    for number in (1, 6):
        scenes = ObjectScenes(sizes=["large"], questions_per_image=number)
        batches = iter(SceneDataModule(scenes, seed=0).train_dataloader())
        batch = next(batches)
        encoded = module.encode(batch)
        optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-3)

        def network_loss(encoded=encoded):
            logits = module(encoded.inputs).logits.flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, encoded.labels.flatten())

        losses = {
            "network": network_loss,
            "module": lambda batch=batch: module.loss(batch, phase),
            "module and scenes": lambda batches=batches: module.loss(next(batches), phase),
        }
        seconds = {name: [] for name in losses}
        for _ in range(repeats):
            for name, loss in losses.items():
                start = time.perf_counter()
                loss().backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        best = {name: min(taken) for name, taken in seconds.items()}
        for name, median in medians.items():
            print(
                f"{number} question(s), {name:18} {median:.3f} s (least {best[name]:.3f}), "
                f"{median / medians['network']:.2f} x network"
            )
        for name in ("module", "module and scenes"):
            longer = medians[name] / medians["network"]
            ratio(f"time of a step, {name} / network alone, {number} question(s)", longer)


if __name__ == "__main__":
    auto_cli(main)
