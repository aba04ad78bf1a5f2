"""What is known of a question while it is worked on."""

from dataclasses import dataclass, field
from typing import Any

from ..visual_reasoning.asking import Reply, fill
from ..visual_reasoning.parsing import lettered, letters
from ..visual_reasoning.question import Item, Question
from .prompts import Prompts
from .selection import Example


@dataclass(frozen=True)
class Demonstration:
    """A solved example.

    Args:
        example: As selectors see it.
        text: As a prompt has it.
        answer: What it says is the answer; empty where none could be read.
    """

    example: Example
    text: str
    answer: str


@dataclass
class Work:
    """A question on its way to an answer.

    Args:
        item: Question and images.
        generic: A caption of each image.
        initial: The first description of each image that the answer is given from.
        descriptions: What is known of each image now.
        examples: Solved examples that the answer is given after.
        reply: The last answer.
        verdict: What the judge said of it.
        steps: What was asked, as rows have it.
        error: Why there is no answer; what has one is left alone.
    """

    item: Item
    generic: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    examples: list[Demonstration] = field(default_factory=list)
    reply: Reply | None = None
    verdict: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    model: str = ""

    @property
    def question(self) -> Question:
        """The question."""
        return self.item.question

    @property
    def id(self) -> str:
        """Of the question, with its set."""
        return f"{self.question.set}/{self.question.id}"

    @property
    def raw(self) -> str:
        """The last answer's text."""
        return self.reply.text if self.reply is not None else ""

    @property
    def text(self) -> str:
        """The task with descriptions in the place of images, as selectors compare it."""
        question = self.question
        options = () if question.option_images else question.options
        return "\n".join([question.text, *options, *self.descriptions])

    def note(self, reply: Reply, step: str, image: int | None = None, prompt: str = "") -> None:
        """Counts a reply and keeps it as a step; without an answer the work ends here."""
        self.calls += reply.attempts
        self.tokens += reply.tokens
        self.seconds += reply.seconds
        self.steps.append({"step": step, "image": image, "prompt": prompt, "text": reply.text})
        if reply.error:
            self.error = self.error or f"{step}: {reply.error}"


def described(descriptions: list[str], prompts: Prompts) -> str:
    """Writes descriptions of all images, numbered."""
    return "\n".join(
        fill(prompts.description, number=str(number), text=text)
        for number, text in enumerate(descriptions, start=1)
    )


def demonstration_of(
    work: Work, example: Example, prompts: Prompts, answers_from: str
) -> Demonstration:
    """Makes a solved example of a question that was answered without examples.

    Args:
        work: The question.
        example: As selectors see it.
        prompts: How it is written.
        answers_from: "pseudo" for what the model has answered, "gold" for what is right.
    """
    answer = gold_answer(work.question) if answers_from == "gold" else said_answer(work)
    text = fill(
        prompts.demonstration,
        descriptions=described(work.descriptions, prompts),
        question=work.question.text,
        options=lettered(work.question.shown_options),
        answer=answer,
    )
    return Demonstration(example, text, answer)


def said_answer(work: Work) -> str:
    """What the model has answered, in the form of an example; empty if it cannot be read."""
    reply = work.reply
    if work.error or reply is None or reply.parsed.status != "ok":
        return ""
    if work.question.is_open:
        return " ".join(reply.text.split())
    names = letters(len(work.question.options))
    return ", ".join(names[place] for place in reply.parsed.choices)


def gold_answer(question: Question) -> str:
    """What is right, in the form of an example."""
    if question.is_open:
        return question.references[0] if question.references else ""
    names = letters(len(question.options))
    return ", ".join(names[place] for place in question.answers)
