"""Chain-of-Comparison (section 4.5 of CVR-LLM): a judge compares two descriptions, step by step.

The paper always shows the caption first. Judges prefer a place, whatever stands there: here every
comparison is made in both orders, and a verdict that changes with the order is "equal".
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ..chat import ChatBackend, ChatRequest, Message
from ..metrics.questions import QuestionMetric
from ..visual_reasoning.asking import Reply, ask_all, fill, keep_answers, template_hash
from ..visual_reasoning.module import ANSWERS
from ..visual_reasoning.parsing import Parsed, read_label
from .pairs import Pair

Step = Literal["perception", "incongruity", "context", "link", "direct"]
Verdict = Literal["caption", "description", "equal", "failed"]
LABELS = ("text 1", "text 2", "equal")
OUTCOMES: tuple[Verdict, ...] = get_args(Verdict)
STEPS: dict[Step, str] = {
    "perception": "Initial perception: which text is more striking and informative at first sight?",
    "incongruity": (
        "Recognising incongruity: which text shows better what departs from what one expects?"
    ),
    "context": (
        "Contextual analysis: which text gives better the circumstances that are needed to "
        "interpret the image?"
    ),
    "link": "Linking to the question: which text is of more direct use for the task's question?",
    "direct": "Which text is of more use for the task?",
}
PROMPT = """\
Two texts about the same image or images, for a task.

Task: {task}

Text 1:
{first}

Text 2:
{second}

{step}
The order of the texts and their length mean nothing. Give a reason in one sentence, then end with \
one line: "Verdict: Text 1", "Verdict: Text 2" or "Verdict: equal"."""
NEXT = """\
{step}
Again give a reason in one sentence, then end with one line: "Verdict: Text 1", "Verdict: Text 2" \
or "Verdict: equal"."""


@dataclass(frozen=True)
class Compared:
    """What a judge said of a pair in one step.

    Args:
        step: Of the chain.
        verdict: Over both orders; "failed" if one of them could not be read.
        consistent: Whether both orders gave the same.
        raw: The judge's texts, one for each order.
    """

    step: str
    verdict: Verdict
    consistent: bool
    raw: tuple[str, ...]


class ComparisonShares(QuestionMetric):
    """Shares of verdicts by step.

    `compute` returns `<step>/caption`, `<step>/description` and `<step>/equal` of the comparisons
    that could be read, `<step>/order_consistency` of these, and `<step>/parse_fail_rate`; and the
    same of `mean`, over steps.
    """

    def __init__(self) -> None:
        super().__init__(num_values=len(OUTCOMES) + 1)

    def update(self, pairs: Sequence[Pair], compared: Sequence[Sequence[Compared]]) -> None:
        """Adds comparisons.

        Args:
            pairs: What was compared.
            compared: Of each pair, each step.
        """
        rows = [
            (found.step, pair.id, [*(found.verdict == o for o in OUTCOMES), found.consistent])
            for pair, steps in zip(pairs, compared, strict=True)
            for found in steps
        ]
        values = torch.tensor([row for _, _, row in rows], dtype=torch.float64)
        self.add([step for step, _, _ in rows], [name for _, name, _ in rows], values)

    def compute(self) -> dict[str, Tensor]:
        """Returns the shares."""
        found: dict[str, Tensor] = {}
        for step, rows in self.rows().items():
            was_read = rows[:, OUTCOMES.index("failed")] == 0
            found[f"{step}/parse_fail_rate"] = 1 - was_read.double().mean()
            if was_read.any():
                means = rows[was_read].mean(dim=0)
                found |= {f"{step}/{name}": means[k] for k, name in enumerate(OUTCOMES[:3])}
                found[f"{step}/order_consistency"] = means[-1]
        names = {name.rpartition("/")[2] for name in found}
        for name in sorted(names):
            values = [value for full, value in found.items() if full.endswith(f"/{name}")]
            found[f"mean/{name}"] = torch.stack(values).mean()
        return found


class ChainOfComparisonModule(LightningModule):
    """Compares captions with context-aware descriptions: `tenfold test`.

    A batch is a list of `Pair`. The steps of a chain are turns of one conversation, so that the
    judge goes on from what it has seen. Answers are kept in the run's `answers/`.

    Args:
        judge: Who compares.
        steps: Of the chain; "direct" asks once, without steps.
        swap_order: Whether both orders are asked for. Without it the caption comes first, as in the
            paper, and a judge who prefers a place decides the result.
        max_new_tokens: Length of each verdict with its reason.
        max_attempts: How often a verdict that cannot be read is asked for.

    Raises:
        ValueError: No step, or one twice.
    """

    def __init__(
        self,
        judge: ChatBackend,
        steps: Sequence[Step] = ("perception", "incongruity", "context", "link"),
        swap_order: bool = True,
        max_new_tokens: int = 128,
        max_attempts: int = 1,
    ) -> None:
        super().__init__()
        if not steps or len(set(steps)) != len(steps):
            raise ValueError(f"steps: {list(steps)}, expected each once of {list(STEPS)}")
        self.judge, self.steps, self.swap_order = judge, list(steps), swap_order
        self.max_new_tokens, self.max_attempts = max_new_tokens, max_attempts
        self.shares = ComparisonShares()

    def setup(self, stage: str) -> None:
        """Sees to it that no verdict is asked for twice."""
        self.judge = keep_answers(self.judge, Path(self.trainer.default_root_dir) / ANSWERS)

    def compare(self, pairs: Sequence[Pair]) -> list[list[Compared]]:
        """Compares pairs; returns for each what was said in each step."""
        orders = (False, True) if self.swap_order else (False,)
        talks = [_Talk(pair, swapped) for pair in pairs for swapped in orders]
        for number, step in enumerate(self.steps):
            template = NEXT if number else PROMPT
            requests = [talk.request(template, step, self.max_new_tokens) for talk in talks]
            replies = ask_all(self.judge, requests, _read, self.max_attempts)
            for talk, reply in zip(talks, replies, strict=True):
                talk.hear(reply)
        size = len(orders)
        return [
            [_together(talks[k : k + size], number, step) for number, step in enumerate(self.steps)]
            for k in range(0, len(talks), size)
        ]

    def test_step(
        self, batch: list[Pair], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Compares a batch; returns what a study compares and all that was said."""
        compared = self.compare(batch)
        self.shares.update(batch, compared)
        records = [
            {
                "id": pair.id,
                "row": found.step,
                "group": pair.group,
                **{f"coc/{name}": float(found.verdict == name) for name in OUTCOMES},
            }
            for pair, steps in zip(batch, compared, strict=True)
            for found in steps
        ]
        rows = [
            {**pair._asdict(), "compared": [asdict(found) for found in steps]}
            for pair, steps in zip(batch, compared, strict=True)
        ]
        return {"records": records, "predictions": rows}

    def on_test_epoch_end(self) -> None:
        """Logs the shares."""
        for name, value in self.shares.compute().items():
            self.log(f"test/{name}", value, sync_dist=True)  # equal on all ranks already
        self.shares.reset()

    def run_info(self) -> dict[str, Any]:
        """Returns who judged, and by which words, for `metrics.json`."""
        steps = {str(name): text for name, text in STEPS.items()}
        return {
            "backends": {"judge": self.judge.identity},
            "prompts_sha256": template_hash({"first": PROMPT, "next": NEXT, **steps}),
            "swap_order": self.swap_order,
        }


class _Talk:
    """The conversation about a pair in one order."""

    def __init__(self, pair: Pair, swapped: bool) -> None:
        self.pair, self.swapped = pair, swapped
        self.messages: list[Message] = []
        self.replies: list[Reply] = []

    def request(self, template: str, step: Step, max_new_tokens: int) -> ChatRequest:
        """Asks for the next verdict."""
        texts = [self.pair.caption, self.pair.description]
        first, second = reversed(texts) if self.swapped else texts
        text = fill(template, task=self.pair.task, first=first, second=second, step=STEPS[step])
        self.messages.append(Message("user", text))
        return ChatRequest(list(self.messages), max_new_tokens, id=self.pair.id)

    def hear(self, reply: Reply) -> None:
        """Notes a verdict."""
        self.replies.append(reply)
        self.messages.append(Message("assistant", reply.text))

    def verdict(self, number: int) -> Verdict:
        """The verdict of a step, by what the texts are and not by their places."""
        label = read_label(self.replies[number].text, LABELS)
        if label is None:
            return "failed"
        if label == "equal":
            return "equal"
        return "description" if (label == "text 2") != self.swapped else "caption"


def _together(talks: Sequence[_Talk], number: int, step: Step) -> Compared:
    """Puts the verdicts of all orders into one."""
    verdicts = [talk.verdict(number) for talk in talks]
    verdict: Verdict = verdicts[0] if len(set(verdicts)) == 1 else "equal"
    if "failed" in verdicts:
        verdict = "failed"
    raw = tuple(talk.replies[number].text for talk in talks)
    return Compared(step, verdict, len(set(verdicts)) == 1, raw)


def _read(text: str) -> Parsed:
    return Parsed(status="ok" if read_label(text, LABELS) else "failed")
