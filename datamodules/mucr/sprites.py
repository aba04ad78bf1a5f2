"""A writer and a painter that need no model: they know the sprites' few statements and looks.

`SpriteImageBackend` reads what a description says and draws it; `SpriteWriter` writes such
descriptions. So a benchmark is built, killed and built again on any machine.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...modules.chat.backend import ChatBackend, Keep
from ...modules.chat.messages import ChatRequest, ChatResponse
from ...modules.mucr.construction.images import ImageBackend, ImageRequest
from ..scenes.cause_effect import (
    NAMES,
    STATEMENTS,
    CausePair,
    Looks,
    Statement,
    arrange,
)
from ..scenes.scene import COLOURS, Style, to_pil

KNOWN = "see datamodules/scenes/cause_effect.py for the statements that sprites can show"
_COLOUR = "|".join(COLOURS)
_SUBJECT = (
    rf"(?:(?P<body>{_COLOUR}) )?(?P<name>{'|'.join(sorted(NAMES.values(), key=len, reverse=True))})"
    rf"(?: with (?P<accent>{_COLOUR}) parts)?"
)
_PLACE = rf"(?: on an? (?P<background>{_COLOUR}) background)?"


class Said(NamedTuple):
    """What a caption or a description says.

    Attributes:
        statement: What happens.
        moment: 0 before, 1 after.
        category: Of the subject.
        looks: Of the subject; None where the text does not tell.
    """

    statement: Statement
    moment: int
    category: str
    looks: Looks | None


def _patterns() -> list[tuple[Statement, int, re.Pattern[str]]]:
    found = []
    for statement in STATEMENTS:
        for moment, text in enumerate((statement.cause, statement.effect)):
            before, after = (re.escape(part) for part in text.split("{}"))
            found.append((statement, moment, re.compile(before + _SUBJECT + after + _PLACE)))
    return found


_PATTERNS = _patterns()


def understand(text: str) -> Said:
    """Reads a caption or a description of the sprites, wherever it stands in a text.

    Raises:
        ValueError: There is none.
    """
    for statement, moment, pattern in _PATTERNS:
        found = pattern.search(text)
        if found is None:
            continue
        category = next(kind for kind, name in NAMES.items() if name == found["name"])
        colours = [found[part] for part in ("body", "accent", "background")]
        looks = Looks(*colours) if None not in colours else None
        return Said(statement, moment, category, looks)
    raise ValueError(f"sprites cannot show {text[:200]!r}: {KNOWN}")


class SpriteImageBackend(ImageBackend):
    """Draws what a prompt says, if it is about what sprites can show."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `ImageBackend`."""
        return {"backend": "sprites"}

    def paint(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[int, Image.Image]]:
        """See `ImageBackend`."""
        for place, request in enumerate(requests):
            said = understand(request.prompt)
            if said.looks is None:
                raise ValueError(f"the prompt does not tell the colours: {request.prompt[:200]!r}")
            style: Style = "comic" if "comic" in request.prompt.lower() else "photograph"
            seed = (request.seed, said.moment)
            room = request.size // 16
            moved = np.random.default_rng(seed).integers(-room, room + 1, size=4).tolist()
            scene = arrange(
                said.statement,
                said.moment,
                said.category,
                said.looks,
                style,
                request.size,
                moved,
                seed,
            )
            yield place, to_pil(scene.render())


class SpriteWriter(ChatBackend):
    """Writes what `BenchmarkBuilder` asks for, in the few words of the sprites."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {"backend": "sprite writer"}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        for place, request in enumerate(requests):
            text = "".join(part for part in request.turns[-1].parts if isinstance(part, str))
            yield place, ChatResponse(json.dumps(_write(text)))


def _write(prompt: str) -> Any:
    """Returns what is asked for, by the input at the end of the prompt."""
    wanted = json.loads(prompt[prompt.rindex("Input:") + len("Input:") :])
    said = understand(wanted["cause_caption"])
    statement = said.statement
    if "n" in wanted:
        return _versions(said, int(wanted["n"]), prompt)
    if "cause_description" not in wanted:
        return {"cue": statement.cue, "false_cue": list(statement.false_cues)}
    looks = understand(wanted["cause_description"]).looks
    if looks is None:
        raise ValueError(f"no colours in {wanted['cause_description']!r}")
    scenes = [arrange(statement, m, said.category, looks, "flat", 16) for m in (0, 1)]
    pair = CausePair(scenes[0], scenes[1], statement, said.category, looks)
    return {"causal_reason": pair.references}


def _versions(said: Said, number: int, prompt: str) -> list[dict[str, Any]]:
    """Returns versions of a statement that differ in colours, which depend on the prompt alone."""
    digest = hashlib.sha256(prompt.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    names = list(COLOURS)
    versions = []
    for place in rng.permutation(len(names) ** 3)[:number].tolist():
        looks = Looks(*(names[place // len(names) ** k % len(names)] for k in range(3)))
        scenes = [arrange(said.statement, m, said.category, looks, "flat", 16) for m in (0, 1)]
        pair = CausePair(scenes[0], scenes[1], said.statement, said.category, looks)
        cause, effect = pair.descriptions
        subject = f"{looks.body} {NAMES[said.category]} with {looks.accent} parts"
        cues = [subject, f"{looks.background} background"]
        versions.append(
            {
                "subject": subject,
                "visual_cues": cues,
                "cause_description": cause,
                "effect_description": effect,
            }
        )
    return versions
