"""Free answers judged by a chat model, as LLaVA-Bench and OPERA do.

Two protocols. "Reference": the judge, who sees no image but its captions and boxes, gives a score
to GPT-4's answer and one to the model's. "Vision": it sees the image and two answers and gives each
a score for accuracy and one for detail. Scores are from 1 to 10.

    requests = [reference_request(...) for each question]
    pairs = ask_judge(backend, requests, read_pair)
    metric.update(question_ids, categories, pairs)
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..chat import ChatBackend, ChatRequest, Message
from .questions import QuestionMetric

Pair = tuple[float, float]
Read = TypeVar("Read")
TEMPERATURE, MAX_NEW_TOKENS = 0.2, 1024
NUMBER = r"(\d+(?:\.\d+)?)"
SCALE = 10  # the best score

# Ours: OPERA's asks for the same scores in the same form, in other words.
VISION_PROMPT = """\
Two assistants were shown this image and given the same instruction. Compare their answers with \
what the image shows and rate each from 1 to 10, the higher the better, on two scales.
Accuracy: does it say only what can be seen in the image? Take points off for objects, counts, \
places, colours and relations that the image does not show.
Detailedness: how much of what can be seen does it say? What is not there does not count.
Do not let the order of the answers or their length influence you.

[Instruction]
{question}

[Assistant 1]
{first}
[End of assistant 1]

[Assistant 2]
{second}
[End of assistant 2]

Answer in exactly this form, the score of assistant 1 first:
Accuracy: <score> <score>
Reason: <why>
Detailedness: <score> <score>
Reason: <why>"""


def read_rules(path: str | Path) -> dict[str, dict[str, str]]:
    """Reads LLaVA-Bench's `rule.json`: by category the `role` of answers and the judge's `prompt`.

    Raises:
        ValueError: The file cannot be read or is another.
    """
    try:
        rules = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        return {
            name: {"role": rule["role"], "prompt": rule["prompt"]} for name, rule in rules.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"rules {path}: expected an object of category: {{role, prompt}} ({error})"
        ) from error


def reference_request(
    question_id: str,
    question: str,
    context: str,
    reference: str,
    answer: str,
    rule: Mapping[str, str],
) -> ChatRequest:
    """Asks a judge of text to rate the reference and an answer.

    Args:
        question_id: Becomes the id of the request.
        question: What was asked.
        context: Captions and boxes of the image, as text.
        reference: Comes first, so that its score does.
        answer: The model's.
        rule: `role` and `prompt` of the question's category; see `read_rules`.
    """
    role = rule["role"]
    parts = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, text in ((1, reference), (2, answer)):
        parts.append(f"[{role} {number}]\n{text}\n\n[End of {role} {number}]")
    parts.append(f"[System]\n{rule['prompt']}")
    return _request(Message("user", "\n\n".join(parts) + "\n\n"), question_id)


def vision_request(
    question_id: str,
    image: Image.Image,
    question: str,
    first: str,
    second: str,
    prompt: str = VISION_PROMPT,
) -> ChatRequest:
    """Asks a judge of images to rate two answers for accuracy and detail.

    Args:
        question_id: Becomes the id of the request.
        image: What was asked about.
        question: What was asked.
        first: What is compared with.
        second: The model's answer.
        prompt: With `{question}`, `{first}` and `{second}`; give the published one to compare with
            published scores.
    """
    fields = {"question": question, "first": first, "second": second}
    # Not `format`: a prompt may hold other braces. One pass: an answer may hold such a field.
    text = re.sub(r"\{(question|first|second)\}", lambda found: fields[found[1]], prompt)
    return _request(Message("user", [image, text]), question_id)


def read_pair(text: str) -> Pair | None:
    """Reads the two scores in the first line of a judge of text; None if they are not there.

    The line has the numbers and nothing else but spaces and commas.
    """
    found = re.fullmatch(rf"{NUMBER}[\s,]+{NUMBER}[\s,]*", text.strip().split("\n")[0].strip())
    return _scores(found)


def read_vision_pairs(text: str) -> dict[str, Pair] | None:
    """Reads `accuracy` and `detailedness` of a judge of images; None if one is not there."""
    pairs = {}
    for name in ("accuracy", "detailedness"):
        pair = _scores(re.search(rf"{name}\W*{NUMBER}[ \t,]+{NUMBER}(?![ \t,.]*\d)", text, re.I))
        if pair is None:
            return None
        pairs[name] = pair
    return pairs


def ask_judge(
    backend: ChatBackend,
    requests: Sequence[ChatRequest],
    read: Callable[[str], Read | None],
    progress: str = "",
) -> list[Read | None]:
    """Asks a judge; returns what it said about each, None where that cannot be read.

    Args:
        backend: The judge.
        requests: See `reference_request` and `vision_request`.
        read: `read_pair` or `read_vision_pairs`.
        progress: Title of a progress bar; empty inside a Trainer.
    """
    responses = backend.generate(requests, progress)
    return [None if response.error else read(response.text) for response in responses]


class RelativeScore(QuestionMetric):
    """Scores of the model as shares of those of what it is compared with.

    `compute` returns for each category `<category>/relative`, 100 times the model's mean score over
    the other's; `<category>/model` and `<category>/other`, ten times the mean scores; `relative`,
    `model` and `other` over all questions; and `unparsed_ratio`, the share of judgements that could
    not be read, which count for nothing else. All float64.

    Categories are LLaVA-Bench's ("conv", "detail", "complex"), or of a judge of images "accuracy"
    and "detailedness".
    """

    def __init__(self) -> None:
        super().__init__(num_values=3)

    def update(
        self,
        question_ids: Sequence[str | int],
        categories: Sequence[str],
        pairs: Sequence[Pair | None],
    ) -> None:
        """Adds judgements.

        Args:
            question_ids: Unique in a category.
            categories: What each is reported under.
            pairs: Scores of what is compared with and of the model; None where there are none.
        """
        rows = [(0.0, 0.0, 1.0) if pair is None else (*pair, 0.0) for pair in pairs]
        self.add(categories, question_ids, torch.tensor(rows, dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores; of categories without a judgement that could be read, none."""
        found: dict[str, Tensor] = {}
        by_category = self.rows()
        if not by_category:
            return found
        whole = torch.cat([*by_category.values()])
        named = [(f"{name}/", rows) for name, rows in by_category.items()]
        for prefix, rows in [*named, ("", whole)]:
            read = rows[rows[:, 2] == 0]
            if len(read):
                other, model = read[:, :2].mean(0)
                found[f"{prefix}relative"] = 100 * model / other
                found[f"{prefix}model"], found[f"{prefix}other"] = 10 * model, 10 * other
        found["unparsed_ratio"] = whole[:, 2].mean()
        return found


def _request(message: Message, question_id: str) -> ChatRequest:
    return ChatRequest(
        [message], max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, id=str(question_id)
    )


def _scores(found: re.Match[str] | None) -> Pair | None:
    """The two numbers of a match, if they are scores."""
    if found is None:
        return None
    first, second = float(found[1]), float(found[2])
    return (first, second) if min(first, second) >= 1 and max(first, second) <= SCALE else None
