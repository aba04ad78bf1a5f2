"""What the writer is asked for, and whether what it wrote will do. The wording is ours."""

import json
import re
from typing import Any, NamedTuple

PROMPTS = {
    "expand": """\
You write scenes for pairs of pictures. In each pair the first picture shows a cause and the \
second its effect. Below is a causal statement as two captions. Write {n} versions of it that \
differ in who the subject is and what can be seen of them, so that a viewer could tell from the \
pictures alone which effect belongs to which cause.

Rules:
- The subject is of the category given.
- Give each version 2 to 4 visual cues: appearance, clothing, place. No two versions share all.
- Both descriptions of a version name the subject and repeat every cue word for word.
- A description is one sentence about what the picture shows. No names of people, no written text.

Answer with a JSON list of {n} objects and nothing else, each with the keys "subject", \
"visual_cues" (a list of strings), "cause_description" and "effect_description".

Input:
{input}""",
    "cue": """\
A causal statement is shown in two pictures, cause and effect. Name the causal link between them \
in one to three words (the cue). Then give three other phrases of that length that fit the \
pictures or their subject but do not name the link (the false cues); a reader who sees the \
pictures must be able to tell that they are wrong.

Answer with a JSON object and nothing else: {"cue": "...", "false_cue": ["...", "...", "..."]}

Input:
{input}""",
    "explain": """\
Two pictures show a cause and its effect. Explain in one to three sentences why the second \
follows from the first. Write three explanations in different words. Each says what the first \
image shows, what the second image shows with the same subject, and what links them.

Answer with a JSON object and nothing else: {"causal_reason": ["...", "...", "..."]}

Input:
{input}""",
    "photograph": "A photograph: {description}. Natural light, one scene, no text, no border.",
    "comic": (
        "A comic drawing in flat colours with black outlines: {description}. "
        "One panel, no text, no speech bubbles."
    ),
}
NUM_FALSE_CUES = NUM_REASONS = 3
FIRST = re.compile(r"\b(first|one|1)\b", re.IGNORECASE)
SECOND = re.compile(r"\b(second|two|2|then)\b", re.IGNORECASE)


class Version(NamedTuple):
    """One version of a causal statement.

    Attributes:
        subject: Who it is about.
        visual_cues: What is seen of them in both pictures.
        cause_description: What the first picture shows.
        effect_description: What the second shows.
    """

    subject: str
    visual_cues: tuple[str, ...]
    cause_description: str
    effect_description: str


class Cue(NamedTuple):
    """The phrase that names a link, and others."""

    cue: str
    false_cues: tuple[str, ...]


def read_versions(text: str, number: int) -> list[Version]:
    """Reads the answer to "expand".

    Raises:
        ValueError: Why it will not do.
    """
    rows = _json(text, list)
    if len(rows) != number or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"expected a list of {number} objects")
    versions = []
    for row in rows:
        cues = row.get("visual_cues")
        texts = [_phrase(row, key) for key in ("subject", "cause_description")]
        effect = _phrase(row, "effect_description")
        if not isinstance(cues, list) or not cues or not all(_is_phrase(cue) for cue in cues):
            raise ValueError("visual_cues must be a list of texts")
        for cue in cues:
            if not all(_normal(cue) in _normal(text) for text in (texts[1], effect)):
                raise ValueError(f"the visual cue {cue!r} is not in both descriptions")
        versions.append(Version(texts[0], tuple(map(str.strip, cues)), texts[1], effect))
    for field in ("cause_description", "effect_description"):
        if len({_normal(getattr(version, field)) for version in versions}) != number:
            raise ValueError(f"two versions have the same {field}")
    if any(_normal(v.cause_description) == _normal(v.effect_description) for v in versions):
        raise ValueError("cause and effect of a version are the same")
    return versions


def read_cue(text: str) -> Cue:
    """Reads the answer to "cue".

    Raises:
        ValueError: Why it will not do.
    """
    row = _json(text, dict)
    cue, others = _phrase(row, "cue"), row.get("false_cue")
    if not isinstance(others, list) or not all(_is_phrase(other) for other in others):
        raise ValueError("false_cue must be a list of texts")
    phrases = [cue, *map(str.strip, others)]
    if len({_normal(phrase) for phrase in phrases}) != 1 + NUM_FALSE_CUES or len(phrases) != 4:
        raise ValueError(f"expected a cue and {NUM_FALSE_CUES} other phrases, all different")
    return Cue(cue, tuple(phrases[1:]))


def read_reasons(text: str) -> tuple[str, ...]:
    """Reads the answer to "explain".

    Raises:
        ValueError: Why it will not do.
    """
    reasons = _json(text, dict).get("causal_reason")
    if not isinstance(reasons, list) or not all(_is_phrase(reason) for reason in reasons):
        raise ValueError("causal_reason must be a list of texts")
    if len({_normal(reason) for reason in reasons}) != NUM_REASONS or len(reasons) != NUM_REASONS:
        raise ValueError(f"expected {NUM_REASONS} different explanations")
    for reason in reasons:
        if not (FIRST.search(reason) and SECOND.search(reason)):
            raise ValueError("an explanation does not say what the first and the second image show")
    return tuple(map(str.strip, reasons))


def _json(text: str, kind: type) -> Any:
    """Reads the JSON in an answer, also one in a code block."""
    opening, closing = ("[", "]") if kind is list else ("{", "}")
    start, end = text.find(opening), text.rfind(closing)
    try:
        value = json.loads(text[start : end + 1]) if start >= 0 else None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"expected a JSON {kind.__name__}")
    return value


def _phrase(row: dict[str, Any], key: str) -> str:
    if not _is_phrase(row.get(key)):
        raise ValueError(f"{key} must be a text")
    return str(row[key]).strip()


def _is_phrase(value: Any) -> bool:
    return isinstance(value, str) and bool(_normal(value))


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
