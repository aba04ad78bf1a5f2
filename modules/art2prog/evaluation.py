"""What metrics compare of programs, and of their tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..metrics.program import ProgramFacts
from .canonical import canonicalise
from .drawing import Renderer
from .language import Language, Program
from .layers import picture_of
from .vocabulary import EOS, Vocabulary

KINDS = (
    *("command", "mode", "coordinate", "radius", "direction", "color", "opacity", "pointer"),
    "end",
)  # fmt: skip


def token_kinds(vocabulary: Vocabulary) -> Tensor:
    """Returns the kind of each token, (V,) int64: places in `KINDS`."""
    kinds = []
    for token in range(len(vocabulary)):
        command = vocabulary.command(token)
        if command is not None:
            name = "mode" if command in vocabulary.modes else "command"
        else:
            known = (k for k in KINDS[2:-1] if vocabulary.number(k, token) is not None)
            name = next(known, "end")
        kinds.append(KINDS.index(name))
    assert KINDS[kinds[EOS]] == "end"
    return torch.tensor(kinds)


def program_facts(
    programs: Sequence[Program], language: Language, renderer: Renderer
) -> list[ProgramFacts]:
    """Returns what is compared of programs, in canonical form.

    Args:
        programs: Checked programs.
        language: Of the programs.
        renderer: Draws them; everything is brought to the CPU.
    """
    canonical = [canonicalise(program, language) for program in programs]
    pictures = [picture_of(program) for program in canonical]
    images, covered = (
        renderer.pictures(pictures).cpu(),
        renderer.coverage(pictures).cpu(),
    )
    found = []
    for row, (program, picture) in enumerate(zip(canonical, pictures, strict=True)):
        whole = covered[row, : len(picture)]
        visible = whole.clone()
        for upper, layer in enumerate(picture):
            if layer.mode == "normal" and layer.opacity is None:
                visible[:upper] *= 1 - whole[upper]
        opacities = [1.0 if x.opacity is None else language.opacities[x.opacity] for x in picture]
        found.append(
            ProgramFacts(
                images[row],
                language.format(program).splitlines(),
                whole,
                visible,
                [layer.color for layer in picture],
                [layer.mode for layer in picture],
                opacities,
                renderer.size / renderer.cells,
            )
        )
    return found
