"""Asks chat models MuCR's questions: forms of input, strategies, a judge of explanations."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image

from ..chat import ChatBackend, ChatRequest, Message
from ..chat.messages import Part
from ..metrics.questions import QuestionMeans
from ..visual_reasoning.asking import Reply, ask_all, fill, template_hash
from ..visual_reasoning.module import ReasoningModule
from ..visual_reasoning.parsing import Parsed, letters, read_choice
from ..visual_reasoning.question import Item, Question
from ..visual_reasoning.rows import Row, row_of
from .composite import CompositeImage
from .explanations import explanation_in, judge_request, rouge_l
from .forms import InputForm, pictures_of, show
from .prompts import DIRECT, PROMPTS

Strategy = Literal["zero_shot", "icl", "cot", "vccot", "vccot_two_call", "cocot"]
TEXT_FORMS = ("text", "core_text", "caption_then_text")


class MuCRModule(ReasoningModule):
    """Asks a chat model questions about causes and effects; `tenfold test` and `predict`.

    A batch is a list of `Item`, from `CausalQuestions`. Logged are for each level (`c2e`, `cue`,
    `exp`) `test/mucr/<level>/accuracy` and, where asked, `group_accuracy` (all four pairs of a
    group) and `circular_accuracy` (right wherever the options stand), with `_chance`, `_low` and
    `_high` (95 %, whole groups drawn again) and `_n`; `test/mucr/exp/rouge_l`; what it costs,
    `calls_per_question` and `tokens_per_question`, what questions share counted for each. See
    `ReasoningModule` for files and resuming.

    Args:
        backend: Who is asked.
        judge: Who says whether an explanation is right; needed for the level `exp`. It sees
            references, captions and the explanation, no picture.
        input_form: How the pictures reach the model, see `forms.show`. Numbers of text forms are
            not multimodal ones.
        strategy: "zero_shot"; "icl": with solved questions before it (`num_demonstrations` of the
            data); "cot"; "vccot": visual-cue chain of thought, in one call, or two, of which the
            first lists the cues of each picture; "cocot": similarities and differences first.
        answer_mode: "generate" reads what the model writes. "loglik" takes the most probable
            letter, for backends that score and strategies that answer at once.
        prompts: Texts that replace those of `modules.mucr.prompts`, by name.
        direct_tokens: Length of an answer without reasoning.
        reasoning_tokens: Of one with.
        explanation_tokens: Of an explanation without reasoning.
        temperature: Of the answers.
        max_attempts: How often a question may be asked whose answer cannot be read. With
            temperature 0 a model repeats itself.
        tile: Side of a picture in a composite image, in pixels.
        draw_letters: Whether options of a composite image have their letters in it.
        save_pictures: Whether to write small copies of the pictures, for the report.

    Raises:
        ValueError: A number out of range, an unknown prompt, or settings that do not go together.
    """

    backend_names = ("backend", "judge")

    def __init__(
        self,
        backend: ChatBackend,
        judge: ChatBackend | None = None,
        input_form: InputForm = "multi_image",
        strategy: Strategy = "zero_shot",
        answer_mode: Literal["generate", "loglik"] = "generate",
        prompts: dict[str, str] | None = None,
        direct_tokens: int = 16,
        reasoning_tokens: int = 512,
        explanation_tokens: int = 160,
        temperature: float = 0.0,
        max_attempts: int = 1,
        tile: int = 336,
        draw_letters: bool = True,
        save_pictures: bool = True,
    ) -> None:
        super().__init__(save_pictures)
        self.save_hyperparameters(ignore=["backend", "judge"])
        self.backend, self.judge = backend, judge
        if unknown := set(prompts or {}) - set(PROMPTS):
            raise ValueError(f"prompts: {sorted(unknown)} are none of {', '.join(PROMPTS)}")
        if answer_mode == "loglik" and (strategy not in DIRECT or not backend.supports_scoring):
            raise ValueError(
                f"answer_mode loglik needs a backend that scores ({type(backend).__name__}) and a "
                f"strategy that answers at once, zero_shot or icl, not {strategy}"
            )
        if strategy == "vccot_two_call" and input_form in TEXT_FORMS:
            raise ValueError(f"strategy vccot_two_call looks at pictures: not with {input_form}")
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, got {max_attempts}")
        self.input_form: InputForm = input_form
        self.strategy: Strategy = strategy
        self.answer_mode = answer_mode
        self.prompts = {**PROMPTS, **(prompts or {})}
        self.tokens = (direct_tokens, reasoning_tokens, explanation_tokens)
        self.temperature, self.max_attempts = temperature, max_attempts
        self.composite = CompositeImage(tile, draw_letters)
        self.costs = QuestionMeans(num_values=2)
        self.overlaps = QuestionMeans(num_values=1)

    # Asking

    def answer(self, items: Sequence[Item]) -> list[Row]:
        """Answers questions; returns a row for each, in their order.

        Raises:
            ValueError: An explanation is asked for and there is no judge; a question has no solved
                ones for `icl`; there is no description for a text form.
        """
        if self.judge is None and any(item.question.is_open for item in items):
            raise ValueError(
                "explanations need a judge: set model.init_args.judge, or leave exp out of "
                "data.init_args.tasks"
            )
        looked = self._look(items)
        requests = [self._request(item, looked) for item in items]
        readers = [_reader(item.question) for item in items]
        replies = ask_all(self.backend, requests, readers, self.max_attempts)
        judged = self._judge(items, replies)
        return [
            self._row(item, request, reply, judged.get(place), looked)
            for place, (item, request, reply) in enumerate(
                zip(items, requests, replies, strict=True)
            )
        ]

    def _look(self, items: Sequence[Item]) -> dict[str, Reply]:
        """Asks about each picture by itself, where the form or the strategy wants it; by name."""
        kind = {"caption_then_text": "caption"}.get(self.input_form, "")
        kind = "cues" if self.strategy == "vccot_two_call" else kind
        if not kind:
            return {}
        pictures: dict[str, Image.Image] = {}
        for item in items:
            for shown in (item, *self._demonstrations(item)):
                pictures |= dict(zip(shown.question.images, pictures_of(shown), strict=True))
        requests = [
            ChatRequest(
                [Message("user", [picture, "\n" + self.prompts[kind]])],
                max_new_tokens=self.tokens[2],
                temperature=self.temperature,
                id=f"{kind}/{name}",
            )
            for name, picture in pictures.items()
        ]
        replies = ask_all(self.backend, requests, None, self.max_attempts)
        return dict(zip(pictures, replies, strict=True))

    def _request(self, item: Item, looked: dict[str, Reply]) -> ChatRequest:
        turns: list[Message] = []
        for solved in self._demonstrations(item):
            turns += [
                Message("user", self._message(solved, looked)),
                Message("assistant", _solution(solved.question)),
            ]
        turns.append(Message("user", self._message(item, looked)))
        question = item.question
        names = letters(len(question.options)) if self.answer_mode == "loglik" else []
        direct, reasoning, explanation = self.tokens
        length = direct if self.strategy in DIRECT else reasoning
        if question.is_open:
            length = explanation + (0 if self.strategy in DIRECT else reasoning)
        return ChatRequest(
            turns,
            max_new_tokens=length,
            temperature=self.temperature,
            choices=names,
            id=f"{question.set}/{question.id}",
        )

    def _demonstrations(self, item: Item) -> list[Item]:
        if self.strategy != "icl":
            return []
        solved: list[Item] = item.question.extra.get("demonstrations", [])
        if not solved:
            raise ValueError(
                "strategy icl shows solved questions: set data.init_args.num_demonstrations to 1 "
                "or more"
            )
        return solved

    def _message(self, item: Item, looked: dict[str, Reply]) -> list[Part]:
        """Returns question, pictures, options, strategy and how to end, in this order."""
        question = item.question
        said = {name: looked[name].text for name in question.images if name in looked}
        notes = said if self.strategy == "vccot_two_call" else None
        third = "reject" if question.option_images else "event"
        strategy = fill(self.prompts[self.strategy], third=self.prompts[third])
        if question.is_open:
            ending = "explanation_alone" if self.strategy in DIRECT else "explanation"
        elif self.answer_mode == "loglik":
            ending = "letter_scored"
        else:
            ending = "letter_alone" if self.strategy in DIRECT else "letter"
        closing = "\n".join(text for text in (strategy, self.prompts[ending]) if text)
        shown = show(item, self.input_form, self.composite, said, notes)
        return [question.text + "\n", *shown, closing]

    def _judge(self, items: Sequence[Item], replies: Sequence[Reply]) -> dict[int, Reply]:
        """Returns by place what the judge says of explanations."""
        places = [
            place
            for place, (item, reply) in enumerate(zip(items, replies, strict=True))
            if item.question.is_open and not reply.error
        ]
        if not places:
            return {}
        assert self.judge is not None
        requests = [
            judge_request(
                items[place].question, explanation_in(replies[place].text), self.prompts["judge"]
            )
            for place in places
        ]
        return dict(zip(places, ask_all(self.judge, requests), strict=True))

    def _row(
        self,
        item: Item,
        request: ChatRequest,
        reply: Reply,
        judged: Reply | None,
        looked: dict[str, Reply],
    ) -> Row:
        question = item.question
        before = [looked[name] for name in question.images if name in looked]
        kind = "cues" if self.strategy == "vccot_two_call" else "caption"
        steps: list[dict[str, Any]] = [
            {"step": kind, "image": place, "prompt": self.prompts[kind], "text": looked[name].text}
            for place, name in enumerate(question.images)
            if name in looked
        ]
        asked = [part if isinstance(part, str) else "[picture]" for part in request.turns[-1].parts]
        steps.append(
            {"step": "answer", "image": None, "prompt": "".join(asked), "text": reply.text}
        )
        replies = [*before, reply, *([judged] if judged else [])]
        overlap = {}
        if question.is_open:
            overlap["rouge_l"] = rouge_l(explanation_in(reply.text), question.references)
        return row_of(
            question,
            raw=reply.text,
            verdict_raw=judged.text if judged else "",
            steps=steps,
            pictures=self.pictures_of(item),
            # What was said about a picture that nobody could look at is no answer.
            error=next((each.error for each in replies if each.error), ""),
            calls=sum(each.attempts for each in replies),
            tokens=sum(each.tokens for each in replies),
            seconds=sum(each.seconds for each in replies),
            model=reply.model,
            form=self.input_form,
            strategy=self.strategy,
            answer_mode=self.answer_mode,
            seen=[list(image.size) for turn in request.turns for image in turn.images],
            **overlap,
        )

    # Counting

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answers and scores a batch; see `ReasoningModule`."""
        found = super().test_step(batch, batch_idx, dataloader_idx)
        rows = found["predictions"]
        costs = [[float(row["calls"]), float(row["tokens"])] for row in rows]
        self._add(self.costs, rows, costs)
        explained = [row for row in rows if "rouge_l" in row]
        self._add(self.overlaps, explained, [[row["rouge_l"]] for row in explained])
        # A question that is asked again with its options moved is no item of a comparison.
        first = [any(c["name"] == "accuracy" for c in row["counts"]) for row in rows]
        records = [r for r, is_first in zip(found["records"], first, strict=True) if is_first]
        return {**found, "records": records}

    def _add(self, metric: QuestionMeans, rows: Sequence[Row], values: list[list[float]]) -> None:
        names, ids = [row["set"] for row in rows], [row["id"] for row in rows]
        table = torch.tensor(values, dtype=torch.float64).reshape(-1, metric.num_values)
        metric.update(names, ids, table)

    def on_test_epoch_end(self) -> None:
        """Logs and writes the scores, and what they cost."""
        super().on_test_epoch_end()
        numbers = {"calls_per_question": (self.costs, 0), "tokens_per_question": (self.costs, 1)}
        numbers["rouge_l"] = (self.overlaps, 0)
        for what, (metric, column) in numbers.items():
            for name, values in metric.compute().items():
                value = values.reshape(-1)[column].float()  # one number comes without a dimension
                self.log(f"test/{name}/{what}", value, sync_dist=True)
        self.costs.reset()
        self.overlaps.reset()

    def run_info(self) -> dict[str, Any]:
        """Returns who answered and judged, and what the prompts were, for `metrics.json`."""
        return {**super().run_info(), "prompts": template_hash(self.prompts)}


def _reader(question: Question) -> Any:
    """Returns what reads an answer: only what will count is of use."""

    def read(text: str) -> Parsed:
        if question.is_open:
            return Parsed() if explanation_in(text) else Parsed(status="failed")
        return read_choice(text, question.shown_options)

    return read


def _solution(question: Question) -> str:
    """Returns the right answer of a solved question, in the form that is asked for."""
    if question.is_open:
        return question.references[0]
    return f"Answer: {letters(len(question.options))[question.answers[0]]}"
