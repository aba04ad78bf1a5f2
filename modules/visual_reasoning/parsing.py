"""What a model has chosen, read from what it said. What cannot be read is no answer, never a guess.

In this order:

1. What follows the last "answer: " or "answer is ": letters, or the text of an option.
2. Letters alone on the last line, in brackets or not.
3. The options whose texts are in what was said: as many as are asked for.

A lone "A" or "I" before a word is an article or a pronoun, not a letter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed", "error"]

ANSWER = re.compile(r"\banswers?\b\W{0,4}(?::|\bis\b|\bare\b)[ \t:*]*", re.IGNORECASE)
BOXED = re.compile(r"\$*\\boxed\{\s*(?:\\text\{)?([^{}]*)\}+\$*")
NEGATION = re.compile(r"\b(none|neither|nor|not|no|never|cannot)\b|n't\b", re.IGNORECASE)
MARKS = "()[]{}*_`\"'“”‘’.,;:$"  # noqa: RUF001 - quotation marks that models write
JOINERS = {"and", "or", "&", "option", "options", "image", "images", "choice", "choices", "the"}
# After a lone "A" these show that it was a letter; after "I" nothing does.
AFTER_LETTER = {"because", "since", "as", "and", "or", "is", "for", "which", "&"}


@dataclass(frozen=True)
class Parsed:
    """What was read.

    Args:
        choices: Places of the chosen options, in the order in which they were named.
        status: "ok"; "failed" where nothing could be read; "error" where nothing was said.
        warnings: What was odd: "too_many", "too_few", "unknown".
    """

    choices: tuple[int, ...] = ()
    status: Status = "ok"
    warnings: tuple[str, ...] = ()


FAILED = Parsed(status="failed")


def letters(number: int) -> list[str]:
    """Returns the names of so many options: A, B, C, ...

    Raises:
        ValueError: More than 26.
    """
    if number > 26:
        raise ValueError(f"{number} options, and letters for 26")
    return [chr(ord("A") + place) for place in range(number)]


def lettered(options: Sequence[str]) -> str:
    """Writes options in lines: "A. a red square"."""
    pairs = zip(letters(len(options)), options, strict=True)
    return "\n".join(f"{letter}. {text}" for letter, text in pairs)


def read_choice(text: str, options: Sequence[str]) -> Parsed:
    """Reads which one of the options was chosen; failed if it is none, or more than one.

    Args:
        text: What the model said.
        options: As they were shown, without their letters.
    """
    found, unknown = _read(text, options)
    return Parsed((found[0],)) if len(found) == 1 and not unknown else FAILED


def read_choices(text: str, options: Sequence[str], number: int) -> Parsed:
    """Reads which options were chosen: the first `number` of those that were named.

    Too many, too few and unknown ones are warnings; failed if there is none.

    Args:
        text: What the model said.
        options: As they were shown, without their letters.
        number: How many were asked for.
    """
    found, unknown = _read(text, options)
    if not found:
        return FAILED
    warnings = ["unknown"] if unknown else []
    if len(found) != number:
        warnings.append("too_many" if len(found) > number else "too_few")
    return Parsed(tuple(found[:number]), warnings=tuple(warnings))


def read_label(text: str, labels: Sequence[str], name: str = "verdict") -> str | None:
    """Reads the last "<name>: <label>", or a label that is alone on the last line; else None.

    Args:
        text: What a judge said.
        labels: What it may say; case does not matter.
        name: What the label follows.
    """
    either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    marked = re.findall(
        rf"\b{re.escape(name)}\b\W{{0,4}}(?::|\bis\b)[\W_]*({either})\b", text, re.IGNORECASE
    )
    last = _last_line(text).strip(MARKS + " ")
    said = marked[-1] if marked else last
    return next((label for label in labels if label.lower() == said.lower()), None)


def _read(text: str, options: Sequence[str]) -> tuple[list[int], bool]:
    """Returns the options that were named, each once, and whether others were."""
    text = BOXED.sub(r"\n\1\n", text)
    marks = list(ANSWER.finditer(text))
    if marks:
        rest = text[marks[-1].end() :].lstrip()
        # "Answer:" may stand above its answer. What comes later does not belong to it.
        said = rest.split("\n")[0] if rest else ""
        as_text = _named_by_text(said, options)
        if len(as_text) == 1 and _normal(said) == _normal(options[as_text[0]]):
            return as_text, False
        if NEGATION.search(said):
            as_text = []
        found, unknown = _named_by_letter(said, options)
        if found or unknown:
            return found, unknown
    last = _named_by_letter(_last_line(text), options, alone=True)
    if last[0] or last[1]:
        return last
    return as_text if marks else _named_by_text(text, options), False


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.split("\n")) if line.strip()), "")


def _named_by_letter(
    line: str, options: Sequence[str], alone: bool = False
) -> tuple[list[int], bool]:
    """Reads letters (or the numbers of images) from where the line begins.

    Args:
        line: What is read, up to the first word that is none.
        options: As shown.
        alone: Whether nothing else may be in the line.
    """
    names = {letter: place for place, letter in enumerate(letters(len(options)))}
    for place, option in enumerate(options):
        if image := re.fullmatch(r"Image (\d+)", option):
            names[image[1]] = place
    words = [word for word in re.split(r"[\s,;/]+", line) if word.strip(MARKS)]
    found: list[int] = []
    unknown = False
    for number, word in enumerate(words):
        bare = word.strip(MARKS)
        following = words[number + 1].strip(MARKS) if number + 1 < len(words) else ""
        if bare.lower() in JOINERS:
            continue
        is_name = re.fullmatch(r"[A-Z]|\d+", bare) or (len(words) == 1 and len(bare) == 1)
        if not is_name or _is_word(word, following):
            if alone:
                return [], False
            break
        named = names.get(bare.upper())
        if named is None:
            unknown = True
        elif named not in found:
            found.append(named)
    return found, unknown


def _is_word(word: str, following: str) -> bool:
    """Whether "A" or "I" is an article or a pronoun: a word in small letters comes after it."""
    if word.strip("\"'“‘*_") not in ("A", "I") or not following[:1].islower():  # noqa: RUF001
        return False
    return word.endswith("I") or following not in AFTER_LETTER


def _named_by_text(text: str, options: Sequence[str]) -> list[int]:
    """Returns the options whose texts are in a text; a longer one hides those within it."""
    rest = f" {_normal(text)} "
    found = []
    for place in sorted(range(len(options)), key=lambda place: -len(_normal(options[place]))):
        wanted = f" {_normal(options[place])} "
        if wanted.strip() and wanted in rest:
            found.append(place)
            rest = rest.replace(wanted, " | ")
    return sorted(found)


def _normal(text: str) -> str:
    """Words in small letters with one space between them."""
    return " ".join(re.findall(r"\w+", text.lower()))
