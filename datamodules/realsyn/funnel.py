"""The funnel: how many images and sentences each stage leaves, beside RealSyn's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from .steps import Finished

# Share that a stage of RealSyn drops, of its own counts (table of section 3, arXiv 2502.13512v3).
PAPER = {
    "quality": (0.152, 0.146),
    "meaning": (None, 0.363),
    "redundancy": (0.305, 0.276),
    "similarity band": (0.150, None),
}


@dataclass(frozen=True)
class Level:
    """What is left after a stage.

    Attributes:
        stage: Its name.
        images: Images, None where the stage has nothing to do with them.
        sentences: Likewise.
        reasons: What it dropped and why: (kind, reason, number).
    """

    stage: str
    images: int | None
    sentences: int | None
    reasons: tuple[tuple[str, str, int], ...] = ()


def funnel_of(finished: Mapping[str, Finished]) -> list[Level]:
    """The levels of the stages that have run.

    Images are references in documents until copies are dropped, and then different images.
    """
    levels: list[Level] = []

    def reasons(*names: str) -> tuple[tuple[str, str, int], ...]:
        found: dict[tuple[str, str], int] = {}
        for name in names:
            if name in finished:
                for kind, counted in finished[name].stats.reasons.items():
                    for reason, number in counted.items():
                        found[kind, reason] = found.get((kind, reason), 0) + number
        return tuple((*key, number) for key, number in found.items() if number)

    def count(name: str, what: str) -> int:
        return finished[name].stats.counts.get(what, 0)

    if "extract/sentences" in finished:
        images = count("extract/pages", "image references")
        held_out = count("extract/pages", "image references held out")
        sentences = count("extract/sentences", "sentences")
        levels.append(Level("extraction", images - held_out, sentences))
    if "filter/quality" in finished:
        images, sentences = (count("filter/quality", kind) for kind in ("images", "sentences"))
        levels.append(Level("quality", images, sentences, reasons("filter/quality")))
    name = "filter/perplexity" if "filter/perplexity" in finished else "filter/meaning"
    if name in finished:
        dropped = reasons("filter/meaning", "filter/perplexity")
        levels.append(Level("meaning", None, count(name, "sentences"), dropped))
    joins = {kind: f"filter/{kind}_duplicates/join" for kind in ("images", "sentences")}
    if joins["sentences"] in finished:
        images, sentences = (count(join, kind) for kind, join in joins.items())
        dropped = reasons("filter/firsts", *joins.values())
        levels.append(Level("redundancy", images, sentences, dropped))
    if "retrieve/texts" in finished:
        used = count("retrieve/uses", "different sentences used")
        levels.append(Level("retrieval", count("retrieve/texts", "images"), used))
    if "balance/band" in finished:
        images = count("balance/band", "images")
        levels.append(Level("similarity band", images, None, reasons("balance/band")))
    if "balance/select" in finished:
        images = count("balance/select", "images")
        levels.append(Level("balance", images, None, reasons("balance/select")))
    return levels


def describe_funnel(finished: Mapping[str, Finished]) -> str:
    """The funnel as a table of text."""
    levels = funnel_of(finished)
    lines = [f"{'stage':<16}{'images':>12}{'':>9}{'sentences':>14}{'':>9}"]
    before: dict[str, int] = {}
    for level in levels:
        line = f"{level.stage:<16}"
        for kind, number, width in (
            ("images", level.images, 12),
            ("sentences", level.sentences, 14),
        ):
            known = f"{number:,}" if number is not None else ""
            change = ""
            if number is not None and level.stage != "retrieval":
                if before.get(kind):
                    change = f"{number / before[kind] - 1:+.1%}"
                before[kind] = number
            line += f"{known:>{width}}{change:>9}"
        lines.append(line.rstrip())
    if any(level.stage == "retrieval" for level in levels):
        lines.append("(sentences at retrieval: different ones that were found for some image)")
    return "\n".join(lines)


def list_problems(finished: Mapping[str, Finished], most: int = 5) -> list[str]:
    """Lines that name what was skipped, the first ones."""
    found = [line for step in finished.values() for line in step.stats.problems]
    if len(found) > most:
        return [*found[:most], f"... and more like these, in stats.json ({len(found)} named there)"]
    return found
