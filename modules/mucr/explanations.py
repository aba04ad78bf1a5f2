"""Is an explanation right? Judges who read, one who counts words, and the overlap of texts."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..chat import ChatBackend, ChatRequest, ChatResponse
from ..chat.backend import Keep
from ..visual_reasoning.asking import fill
from ..visual_reasoning.question import Question

VERDICT_TOKENS = 256
# Words that stand in any caption.
COMMON_WORDS = "a an the of on in at and with is are was it its to by for his her their"
ANSWER = re.compile(r"\banswer\s*[:*]+\s*", re.IGNORECASE)


def explanation_in(text: str) -> str:
    """Returns what comes after the last "Answer:", or all of a text that has none."""
    parts = ANSWER.split(text)
    return (parts[-1].strip() or text.strip()) if len(parts) > 1 else text.strip()


def judge_request(question: Question, candidate: str, template: str) -> ChatRequest:
    """Asks a judge about an explanation.

    Args:
        question: With its references and the plain captions of both pictures.
        candidate: The explanation.
        template: Names `{input}`.
    """
    captions = [question.extra["plain"][name] for name in question.images]
    given = {
        "cause": captions[0],
        "effect": captions[1],
        "references": list(question.references),
        "candidate": candidate,
    }
    text = fill(template, input=json.dumps(given, indent=1, ensure_ascii=False))
    return ChatRequest(
        text, max_new_tokens=VERDICT_TOKENS, id=f"judge/{question.set}/{question.id}"
    )


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Returns the largest ROUGE-L F1 over the references, in [0, 1].

    It does not see who did what to whom: swapping cause and effect barely changes it.
    """
    from torchmetrics.functional.text import rouge_score

    # torchmetrics takes the best reference by F1 alone for one key.
    scores = rouge_score(candidate, [list(references)], accumulate="best", rouge_keys="rougeL")
    return float(scores["rougeL_fmeasure"])


class WordJudge(ChatBackend):
    """A judge that needs no model: words in common with a reference, and cause before effect.

    For tests and offline recipes. An explanation is correct if its ROUGE-L with a reference is at
    least `threshold`, and words that only the cause's caption has come before those that only the
    effect's has. It knows no synonyms: no judge of what language models write.

    Args:
        threshold: Least ROUGE-L F1, in [0, 1].

    Raises:
        ValueError: The threshold is out of range.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.threshold = threshold

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {"backend": "word judge", "threshold": self.threshold}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        for place, request in enumerate(requests):
            text = "".join(part for part in request.turns[-1].parts if isinstance(part, str))
            given = json.loads(text[text.rindex("Input:") + len("Input:") :])
            yield place, ChatResponse(self._verdict(given))

    def _verdict(self, given: Mapping[str, Any]) -> str:
        overlap = rouge_l(given["candidate"], given["references"])
        ordered = cause_comes_first(given["candidate"], given["cause"], given["effect"])
        reason = f"ROUGE-L {overlap:.2f}, {'cause first' if ordered else 'not cause first'}"
        right = overlap >= self.threshold and ordered
        return f"{reason}\nVerdict: {'correct' if right else 'incorrect'}"


def cause_comes_first(text: str, cause: str, effect: str) -> bool:
    """Whether words of the cause's caption alone come before those of the effect's, on average.

    Each word counts where it comes first. False where one of the two is not mentioned at all.
    """
    of_cause, of_effect = (
        set(_words(caption)) - set(COMMON_WORDS.split()) for caption in (cause, effect)
    )
    words = _words(text)
    places = []
    for own in (of_cause - of_effect, of_effect - of_cause):
        found = [words.index(word) for word in own if word in words]
        if not found:
            return False
        places.append(sum(found) / len(found))
    return places[0] < places[1]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
