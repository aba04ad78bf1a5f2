"""Wires RealSyn's pipeline: here alone its stages meet networks. Imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..datamodules.realsyn import DocumentReader, LocalExecutor, Pipeline, RayExecutor, Settings
from ..datamodules.realsyn.executors import Executor
from ..datamodules.realsyn.filtering import SentenceHook
from ..modules.encoders import CorpusEncoder, Encoder
from ..modules.perplexity import CausalPerplexity
from ..modules.text_fusion import ChatCaptioner, FusionItem, TextFusion


def build_pipeline(
    settings: Settings,
    out: str,
    documents: list[DocumentReader],
    encoder: Encoder,
    fusion: TextFusion | None = None,
    captioner: ChatCaptioner | None = None,
    perplexity: CausalPerplexity | None = None,
    hooks: list[SentenceHook] | None = None,
    executor: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
    threads: int = 1,
    overwrite: bool = False,
) -> Pipeline:
    """Makes the pipeline of a recipe.

    Args:
        settings: All plain choices.
        out: Folder to write; all machines must see it.
        documents: Readers of the documents, in order.
        encoder: Embeds images and texts in one space.
        fusion: Makes the synthetic text of an image; null: there is none.
        captioner: Describes images for it; null: no captions.
        perplexity: A language model that measures sentences; null: none does.
        hooks: More filters of sentences, such as one of your own for personal data.
        executor: Where work runs: "local", processes of this machine; "ray", a Ray cluster.
        jobs: Processes; null: one per core, or per GPU for steps with a network where Ray has some.
        address: Of the Ray cluster; null starts one on this machine, "auto" finds one.
        gpus_per_worker: GPUs of a Ray worker in steps with a network.
        threads: Of a process; other numbers than 1 may change the last bits of embeddings.
        overwrite: Make stages again whose settings have changed.

    Raises:
        ValueError: A value is wrong.
    """
    if not documents:
        raise ValueError("documents: give at least one reader")
    if not (encoder.supports_images and encoder.supports_texts):
        raise ValueError(
            f"encoder: {type(encoder).__name__} has not both towers: choose one for images and "
            "texts, or put two into a PairedEncoder"
        )
    if executor == "local" and address is not None:
        raise ValueError("address is of a Ray cluster: add --executor ray")
    runner: Executor
    if executor == "ray":
        runner = RayExecutor(address, jobs, gpus_per_worker, threads)
    else:
        runner = LocalExecutor(jobs, threads)
    if isinstance(encoder, CorpusEncoder) and encoder.folder is None:
        encoder.folder = str(Path(out) / "filter" / "encoder" / "learned")
    return Pipeline(
        Path(out),
        documents,
        encoder,
        runner,
        settings,
        make_item=make_item,
        fusion=fusion,
        captioner=captioner,
        scorer=perplexity,
        hooks=hooks or [],
        overwrite=overwrite,
    )


def make_item(name: str, sentence: str, caption: str, tags: Sequence[str]) -> FusionItem:
    """What the generator of synthetic texts takes."""
    return FusionItem(name, sentence, caption, list(tags))
