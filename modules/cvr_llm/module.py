"""CVR-LLM (Li et al., EMNLP 2024): a language model reasons about images that it has asked about.

A captioner describes each image: first as an answer to a question that the language model wrote for
the task, then as an answer to one that it wrote to doubt its own tentative answer (CaID, equations
1 and 2). It then answers from texts alone, after k solved examples that look and read alike
(CVR-ICL, equations 3 to 5).
"""

from collections.abc import Sequence
from typing import Any, Literal

from ..chat import ChatBackend
from ..visual_reasoning.gather import gather_shares, share_of
from ..visual_reasoning.module import ReasoningModule
from ..visual_reasoning.question import Item
from ..visual_reasoning.rows import Row, row_of
from .asking import AnswerMode, Asker
from .prompts import Prompts
from .selection import Example, ExampleSelector, joint_vectors
from .work import Demonstration, Work, demonstration_of


class CVRLLMModule(ReasoningModule):
    """Answers by CVR-LLM; its parts can be left out one by one.

    The rows of the paper's ablation: "Base" is `first_prompt: generic`, `num_refine_rounds: 0`,
    `num_examples: 0`; "+CaID" has the defaults of the first two; "+CVR-ICL" has examples and a
    selector; all of it is the full method.

    What is asked of a question with n images, in this order: n generic captions (of a captioner), n
    questions about images and n answers, a tentative answer, once more so with examples, n further
    questions and n answers, the answer: 2 n + 3 requests to the language model, 3 n to the
    captioner.

    Solved examples come from the DataModule's `pool`: usually the other test questions with what
    the model itself has answered to them first, never with what is right.

    Args:
        llm: Who asks about images and answers; needs no eyes.
        captioner: Who describes images. None: descriptions that come with the data are all there
            is, as with `first_prompt: generic`.
        selector: Chooses examples; needed if `num_examples` is not 0.
        judge: Says whether free answers are right; needed for data that have such.
        num_examples: k.
        num_refine_rounds: How often a tentative answer is doubted; the paper's is once.
        first_prompt: "task": the first description answers a question that was written for the task
            (equation 1). "generic": it is a caption, as in the paper's appendix.
        merge_descriptions: Whether the answer is given from the first description and the later
            ones together, else from the last one.
        examples_from: "pseudo": examples have the model's own tentative answers. "gold": they have
            the right ones, for a pool that is not tested.
        answer_mode: "generate" writes an answer that is then read; "loglik" takes the most probable
            letter, of backends that score choices.
        prompts: What models are told.
        max_question_tokens: Length of questions and captions.
        max_answer_tokens: Length of answers.
        temperature: Of the language model.
        max_attempts: How often an answer that cannot be read is asked for.
        save_pictures: See `ReasoningModule`.

    Raises:
        ValueError: Settings that contradict each other.
    """

    backend_names = ("llm", "captioner", "judge")

    def __init__(
        self,
        llm: ChatBackend,
        captioner: ChatBackend | None = None,
        selector: ExampleSelector | None = None,
        judge: ChatBackend | None = None,
        num_examples: int = 0,
        num_refine_rounds: int = 1,
        first_prompt: Literal["task", "generic"] = "task",
        merge_descriptions: bool = True,
        examples_from: Literal["pseudo", "gold"] = "pseudo",
        answer_mode: AnswerMode = "generate",
        prompts: Prompts | None = None,
        max_question_tokens: int = 64,
        max_answer_tokens: int = 256,
        temperature: float = 0.0,
        max_attempts: int = 1,
        save_pictures: bool = True,
    ) -> None:
        super().__init__(save_pictures)
        if captioner is None and (first_prompt == "task" or num_refine_rounds):
            raise ValueError(
                "captioner: none, so there is nobody to ask: set first_prompt to generic and "
                "num_refine_rounds to 0, or give a captioner"
            )
        if min(num_examples, num_refine_rounds) < 0:
            raise ValueError("num_examples and num_refine_rounds must be 0 or more")
        if num_examples and selector is None:
            raise ValueError(f"num_examples: {num_examples}, and no selector to choose them")
        self.llm, self.captioner, self.judge = llm, captioner, judge
        self.selector, self.num_examples = selector, num_examples
        self.num_refine_rounds, self.first_prompt = num_refine_rounds, first_prompt
        self.merge_descriptions, self.examples_from = merge_descriptions, examples_from
        self.prompts = prompts or Prompts()
        self.limits = (max_question_tokens, max_answer_tokens)
        self.answer_mode, self.temperature = answer_mode, temperature
        self.max_attempts = max_attempts
        self._examples: list[Demonstration] = []

    def setup(self, stage: str) -> None:
        """See `ReasoningModule`.

        Raises:
            ValueError: A backend cannot do what it is for.
        """
        captioner, llm = self.captioner, self.llm
        if captioner is not None and not captioner.supports_images:
            raise ValueError(f"captioner: {type(captioner).__name__} takes no images")
        if self.answer_mode == "loglik" and not llm.supports_scoring:
            raise ValueError(f"answer_mode: {type(llm).__name__} cannot score letters: generate")
        super().setup(stage)

    @property
    def asker(self) -> Asker:
        """Writes and sends the requests."""
        return Asker(
            self.llm,
            self.captioner,
            self.prompts,
            self.answer_mode,
            *self.limits,
            self.temperature,
            self.max_attempts,
        )

    def on_test_start(self) -> None:
        """Solves the pool, each rank its share."""
        self._prepare_pool()

    def on_predict_start(self) -> None:
        """As for a test."""
        self._prepare_pool()

    def answer(self, items: Sequence[Item]) -> list[Row]:
        """See `ReasoningModule`."""
        asker = self.asker
        works = self._begin(items)
        for number in range(1, self.num_refine_rounds + 1):
            if self.num_examples:
                self._choose_examples(works)
                asker.predict(works)
            asker.refine(works, number, self.merge_descriptions)
        self._choose_examples(works)
        if self.num_examples or self.num_refine_rounds:
            asker.predict(works)
        verdicts = self._judge(works)
        return [self._row(work, verdict) for work, verdict in zip(works, verdicts, strict=True)]

    def run_info(self) -> dict[str, Any]:
        """See `ReasoningModule`; also the hash of the prompts and the size of the pool."""
        info = {"prompts_sha256": self.prompts.digest, "num_pool": len(self._examples)}
        return {**super().run_info(), **info}

    # The first pass, which examples and questions share

    def _begin(self, items: Sequence[Item]) -> list[Work]:
        """Describes the images and answers without examples: a pseudo label."""
        asker = self.asker
        works = [Work(item) for item in items]
        asker.caption(works)
        if self.first_prompt == "task":
            asker.describe(works)
        asker.predict(works)
        return works

    def _prepare_pool(self) -> None:
        """Solves the questions that examples are taken from; all ranks get all of them."""
        if not self.num_examples:
            return
        assert self.selector is not None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined] # set at run time
        pool, size = data.pool(), data.batch_size
        share = list(share_of(len(pool)))
        own: list[Demonstration] = []
        for begin in range(0, len(share), size):
            works = self._begin([pool[place] for place in share[begin : begin + size]])
            examples = self._examples_of(works)
            own += [
                demonstration_of(work, example, self.prompts, self.examples_from)
                for work, example in zip(works, examples, strict=True)
            ]
        solved = gather_shares(own)
        # What has no readable answer solves nothing.
        self._examples = [shown for shown in solved if shown.answer]
        self.selector.fit([shown.example for shown in self._examples])

    def _choose_examples(self, works: Sequence[Work]) -> None:
        if not self.num_examples:
            return
        assert self.selector is not None
        chosen = self.selector.select(self._examples_of(works), self.num_examples)
        for work, places in zip(works, chosen, strict=True):
            work.examples = [self._examples[place] for place in places]

    def _examples_of(self, works: Sequence[Work]) -> list[Example]:
        """What selectors see of questions: their text with descriptions, their images."""
        assert self.selector is not None
        texts = [work.text for work in works]
        vectors: list[Any] = [None] * len(works)
        seen = [[p for p in work.item.pictures if p is not None] for work in works]
        if self.selector.encoder is not None and all(seen):
            vectors = list(joint_vectors(self.selector.encoder, seen, texts))
        return [
            Example(
                id=work.id,
                kind=f"{work.question.set}/{work.question.kind}",
                group=work.question.group,
                images=frozenset(work.question.images),
                text=text,
                vector=vector,
            )
            for work, text, vector in zip(works, texts, vectors, strict=True)
        ]

    # The end

    def _judge(self, works: Sequence[Work]) -> list[str]:
        """Returns what the judge says of free answers; nothing of others."""
        judged = [work for work in works if work.question.is_open and not work.error]
        if judged and self.judge is None:
            raise ValueError("judge: none, and the data have questions with free answers")
        if judged:
            assert self.judge is not None
            self.asker.judge(judged, self.judge)
        return [work.verdict for work in works]

    def _row(self, work: Work, verdict: str) -> Row:
        return row_of(
            work.question,
            raw=work.raw,
            verdict_raw=verdict,
            steps=work.steps,
            pictures=self.pictures_of(work.item),
            error=work.error,
            calls=work.calls,
            tokens=work.tokens,
            seconds=work.seconds,
            model=work.model,
            descriptions={
                "generic": work.generic,
                "initial": work.initial,
                "context": work.descriptions,
            },
            examples=[shown.example.id for shown in work.examples],
        )
