"""The requests of CVR-LLM: what is asked of captioner, language model and judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..chat import ChatBackend, ChatRequest, Message
from ..chat.messages import Part
from ..visual_reasoning.asking import Reader, ask_all, ask_letters, fill
from ..visual_reasoning.parsing import (
    Parsed,
    lettered,
    letters,
    read_choice,
    read_choices,
    read_label,
)
from ..visual_reasoning.question import Question
from ..visual_reasoning.rows import VERDICTS
from .prompts import Prompts
from .work import Work, described

AnswerMode = Literal["generate", "loglik"]


@dataclass
class Asker:
    """Asks for what a stage needs, of all questions together, and notes the answers.

    Args:
        llm: Who asks about images and answers.
        captioner: Who describes images; None: descriptions come with the data.
        prompts: What they are told.
        answer_mode: How options are chosen.
        max_question_tokens: Length of questions and captions.
        max_answer_tokens: Length of answers.
        temperature: Of the language model.
        max_attempts: How often an answer that cannot be read is asked for.
    """

    llm: ChatBackend
    captioner: ChatBackend | None
    prompts: Prompts
    answer_mode: AnswerMode
    max_question_tokens: int
    max_answer_tokens: int
    temperature: float
    max_attempts: int

    def caption(self, works: Sequence[Work]) -> None:
        """Describes images without a question; what comes with the data is taken as it is."""
        for work in works:
            if self.captioner is None:
                work.generic = list(work.question.captions)
        if self.captioner is not None:
            self._describe(works, "generic", lambda work, image: self.prompts.caption)
            for work in works:
                work.generic = _texts(work, "generic")
        for work in works:
            work.initial = work.descriptions = list(work.generic)

    def describe(self, works: Sequence[Work]) -> None:
        """Equation 1: a question for the task, and the captioner's answer."""
        self._ask_about_images(works, "initial", self.prompts.ask_initial)
        for work in works:
            work.initial = work.descriptions = _texts(work, "initial")

    def refine(self, works: Sequence[Work], number: int, merge: bool) -> None:
        """Equation 2: a question that doubts the tentative answer, and the captioner's answer.

        Args:
            works: Each with a tentative answer.
            number: Of the round, from 1.
            merge: Whether the new description comes after the old one or in its place.
        """
        step = f"revised {number}"
        self._ask_about_images(works, step, self.prompts.ask_followup)
        for work in works:
            revised = _texts(work, step)
            if merge and not work.error:
                pairs = zip(work.descriptions, revised, strict=True)
                revised = [f"{before} {after}" for before, after in pairs]
            work.descriptions = revised

    def predict(self, works: Sequence[Work]) -> None:
        """Answers from what is known."""
        works = [work for work in works if not work.error]
        chosen = [w for w in works if self.answer_mode == "loglik" and not w.question.is_open]
        written = [work for work in works if work not in chosen]
        requests = [self._answer_request(work) for work in written]
        readers = [reader_of(work.question) for work in written]
        replies = ask_all(self.llm, requests, readers, self.max_attempts)
        scored = ask_letters(
            self.llm,
            [self._answer_request(work) for work in chosen],
            [len(work.question.answers) for work in chosen],
        )
        for work, reply in zip([*written, *chosen], [*replies, *scored], strict=True):
            work.note(reply, "answer")
            work.reply, work.model = reply, reply.model

    def judge(self, works: Sequence[Work], judge: ChatBackend) -> None:
        """Has free answers judged."""
        requests = []
        for work in works:
            references = "\n".join(f"- {text}" for text in work.question.references)
            text = fill(
                self.prompts.judge,
                question=work.question.text,
                descriptions=described(work.descriptions, self.prompts),
                references=references,
                candidate=work.raw,
            )
            requests.append(
                ChatRequest([Message("user", text)], self.max_answer_tokens, id=work.id)
            )
        for work, reply in zip(
            works, ask_all(judge, requests, read_verdict, self.max_attempts), strict=True
        ):
            work.note(reply, "verdict")
            work.verdict = reply.text

    def _ask_about_images(self, works: Sequence[Work], step: str, template: str) -> None:
        """Has a question written about each image, and has it answered."""
        pairs = _images_of(works)
        requests = [self._question_request(template, work, image) for work, image in pairs]
        replies = ask_all(self.llm, requests)
        asked: dict[tuple[str, int], str] = {}
        for (work, image), reply in zip(pairs, replies, strict=True):
            question = one_question(reply.text)
            work.note(reply, f"ask {step}", image)
            if not question and not reply.error:
                work.error = work.error or f"ask {step}: no question about image {image + 1}"
            asked[work.id, image] = question
        self._describe(works, step, lambda work, image: asked[work.id, image])

    def _describe(
        self, works: Sequence[Work], step: str, prompt_of: Callable[[Work, int], str]
    ) -> None:
        assert self.captioner is not None
        pairs = _images_of(works)
        requests = []
        for work, image in pairs:
            picture = work.item.pictures[image]
            if picture is None:
                raise ValueError(f"{work.id}: no image to describe: set data.init_args.image_dir")
            content: list[Part] = [picture, prompt_of(work, image)]
            requests.append(
                ChatRequest([Message("user", content)], self.max_question_tokens, id=work.id)
            )
        for (work, image), reply in zip(pairs, ask_all(self.captioner, requests), strict=True):
            work.note(reply, step, image, prompt_of(work, image))

    def _question_request(self, template: str, work: Work, image: int) -> ChatRequest:
        question = work.question
        text = fill(
            template,
            task=question.task,
            question=question.text,
            options=lettered(question.shown_options),
            image=str(image + 1),
            images=str(len(question.images)),
            description=work.descriptions[image] if work.descriptions else "",
            prediction=self._prediction(work),
        )
        messages = [Message("system", self.prompts.ask_system), Message("user", text)]
        return ChatRequest(
            messages, self.max_question_tokens, temperature=self.temperature, id=work.id
        )

    def _prediction(self, work: Work) -> str:
        """A tentative answer as the question writer sees it: letters with what they stand for."""
        reply, question = work.reply, work.question
        if reply is None or question.is_open or reply.parsed.status != "ok":
            return " ".join(work.raw.split())
        names, shown = letters(len(question.options)), question.shown_options
        return ", ".join(f"{names[place]}. {shown[place]}" for place in reply.parsed.choices)

    def _answer_request(self, work: Work) -> ChatRequest:
        question, prompts = work.question, self.prompts
        number = len(question.answers)
        if question.is_open:
            instruction = prompts.explain
        elif question.metric == "jaccard":
            instruction = fill(prompts.choose_several, number=str(number))
        else:
            instruction = prompts.choose_one
        text = fill(
            prompts.answer,
            demonstrations="".join(shown.text for shown in work.examples),
            task=question.task,
            descriptions=described(work.descriptions, prompts),
            question=question.text,
            options=lettered(question.shown_options),
            instruction=instruction,
        )
        scored = self.answer_mode == "loglik" and not question.is_open
        return ChatRequest(
            [Message("system", prompts.answer_system), Message("user", text)],
            self.max_answer_tokens,
            temperature=self.temperature,
            choices=letters(len(question.options)) if scored else (),
            id=work.id,
        )


def reader_of(question: Question) -> Reader:
    """Returns what reads answers to a question."""
    if question.is_open:
        return lambda text: Parsed() if text.strip() else Parsed(status="failed")
    options = question.shown_options
    if question.metric == "jaccard":
        return partial(read_choices, options=options, number=len(question.answers))
    return partial(read_choice, options=options)


def read_verdict(text: str) -> Parsed:
    """Says whether a judge's text has a verdict."""
    return Parsed(status="ok" if read_label(text, VERDICTS) else "failed")


def one_question(text: str) -> str:
    """Returns the question in what a question writer said: the first line that ends with one."""
    lines = [line.strip().strip("\"'*").strip() for line in text.split("\n") if line.strip()]
    line = next((line for line in lines if line.endswith("?")), lines[0] if lines else "")
    return line.removeprefix("Question:").strip()


def _images_of(works: Sequence[Work]) -> list[tuple[Work, int]]:
    return [(w, image) for w in works if not w.error for image in range(len(w.question.images))]


def _texts(work: Work, step: str) -> list[str]:
    """What the captioner said in a step, of each image."""
    return [noted["text"].strip() for noted in work.steps if noted["step"] == step]
