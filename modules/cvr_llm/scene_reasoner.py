"""A reasoner that is a few rules, for scenes of shapes: what a language model would do, for free.

It sees texts only, knows what "where is the circle" needs, asks the captioner for that, and answers
from what it is told. Where it is told too little it guesses, as a test taker must.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..chat import ChatBackend, ChatRequest, ChatResponse
from ..chat.backend import Keep

# "a red circle top left": what a caption says of an object.
FACT = re.compile(r"\ban? (\w+) (\w+) ((?:top|bottom) (?:left|right))\b")
PLACE = re.compile(r"\b(?:top|bottom) (?:left|right)\b")
OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
DESCRIPTION = re.compile(r"^(?:Image \d+|What is known of image \d+ of \d+): (.*)$", re.MULTILINE)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")


class SceneReasoner(ChatBackend):
    """Stands for the language model of CVR-LLM, for `SceneReasoningDataModule` and its prompts.

    - Asked for a question, it asks the task's own; for the place of a kind of shape it needs the
      colour first, and, once that is known, the place of that colour: a captioner that answers one
      thing at a time needs to be asked twice.
    - Asked for an answer, it takes the option that the descriptions name; else the one that
      follows from a fact of a caption ("a red circle top left"); else it guesses, by a hash of the
      question, among the options that no fact rules out.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {"backend": "scene reasoner", "version": 1}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        for place, request in enumerate(requests):
            prompt = "".join(str(part) for part in request.turns[-1].parts)
            # Solved examples come before the question that is meant.
            prompt = prompt.rpartition("---\n")[2]
            is_asked_to_ask = prompt.rstrip().endswith("Question:")
            text = _question(prompt) if is_asked_to_ask else _answer(prompt, request.digest)
            yield place, ChatResponse(text)


def _question(prompt: str) -> str:
    """What to ask the captioner."""
    task = _task(prompt)
    known = " ".join(DESCRIPTION.findall(prompt))
    kind = re.fullmatch(r"Where is the (\w+)\?", task)
    if kind is None:
        return task
    colour = _colour_of(kind[1], known)
    return f"Where is the {colour} shape?" if colour else f"What colour is the {kind[1]}?"


def _answer(prompt: str, digest: str) -> str:
    """The letter of an option, and why."""
    task, options = _task(prompt), dict(OPTION.findall(prompt))
    known = " ".join(DESCRIPTION.findall(prompt))
    loose = FACT.sub(" ", known)  # answers to questions, not captions
    named = [letter for letter, option in options.items() if re.search(rf"\b{option}\b", loose)]
    if len(named) == 1:
        return f"The description says {options[named[0]]}.\nAnswer: {named[0]}"
    wanted, ruled_out = _from_facts(task, FACT.findall(known))
    for letter, option in options.items():
        if option == wanted:
            return f"The caption says {option}.\nAnswer: {letter}"
    left = [letter for letter, option in options.items() if option not in ruled_out]
    left = left or sorted(options)
    return f"I have to guess.\nAnswer: {left[int(digest[:8], 16) % len(left)]}"


def _task(prompt: str) -> str:
    """The question that is to be answered: the last line that is one."""
    return [line for line in prompt.split("\n") if line.endswith("?")][-1]


def _colour_of(kind: str, known: str) -> str:
    """The colour of a kind of shape, as far as it is known."""
    for colour, fact_kind, _ in FACT.findall(known):
        if fact_kind == kind:
            return str(colour)
    loose = FACT.sub(" ", known).split()
    return next((word for word in loose if word in COLOURS), "")


def _from_facts(task: str, facts: Sequence[tuple[str, str, str]]) -> tuple[str, set[str]]:
    """What facts say that the answer is, and what they say that it is not."""
    ruled_out: set[str] = set()
    for colour, kind, place in facts:
        named = {f"What is the {colour} shape?": kind, f"What colour is the {kind}?": colour}
        places = {f"Where is the {colour} shape?": place, f"Where is the {kind}?": place}
        if task in named | places:
            return (named | places)[task], ruled_out
        # No two shapes of a scene share a kind or a colour; they may share a quarter.
        ruled_out |= {colour, kind}
    return "", ruled_out
