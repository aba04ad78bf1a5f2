"""Captions judged by a chat model that sees the image, as the paper asks GPT-4V.

A judge reads the context, the highlight, a reference caption and the model's caption, and gives
each 1 to 5 for four aspects. A system's score is the geometric mean of its scores over those of
the reference: above 1 it is the better one. The prompt is ours: it asks for the same aspects in the
same form as the released one, in other words.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from ..chat import ChatRequest, Message

ASPECTS = {
    "context": "Relevance with Context",
    "highlight": "Relevance with Highlight",
    "image": "Consistency with Image",
    "overall": "Overall Quality",
}
SCALE = 5
SHORT_SIDE = 224  # of the image that the judge sees, in pixels
MAX_NEW_TOKENS = 4096
PROMPT = """\
Two assistants wrote a caption for the image shown here, which belongs to a document. A reader \
highlighted a part of the document; the caption should be about that part. Rate both captions, \
each aspect by itself, with a whole number from 1 (worst) to 5 (best):
- Relevance with Context: what the caption says belongs to the context. It need not cover all of it.
- Relevance with Highlight: the highlighted part is reflected in the caption, and prominent.
- Consistency with Image: the caption says nothing that is clearly not in the image.
- Overall Quality: how useful the caption is, all this taken together.
Do not let the order of the captions or their length influence you.

[Context]
{context}
[End of context]

[Highlight]
{highlight}
[End of highlight]

[ASSISTANT1]
{first}
[End of ASSISTANT1]

[ASSISTANT2]
{second}
[End of ASSISTANT2]

Answer in exactly this form:
[ASSISTANT1-Reasoning]: <why>
[ASSISTANT2-Reasoning]: <why>
[Comparison-Reasoning]: <why>
[ASSISTANT1-Score]:
- Relevance with Context: <number>
- Relevance with Highlight: <number>
- Consistency with Image: <number>
- Overall Quality: <number>
[ASSISTANT2-Score]:
- Relevance with Context: <number>
- Relevance with Highlight: <number>
- Consistency with Image: <number>
- Overall Quality: <number>"""
SCORES = re.compile(r"\[ASSISTANT([12])-Score\]\s*:?(.*?)(?=\[ASSISTANT|\Z)", re.DOTALL | re.I)
LINE = re.compile(r"^\W*([a-z ]+?)\W*:\W*(\d+)\b", re.MULTILINE | re.I)


def reference_is_first(name: str) -> bool:
    """Says whether the reference is assistant 1: for half of all, decided by the request's id."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def judge_request(
    name: str,
    picture: Image.Image,
    context: str,
    highlight: Sequence[str],
    reference: str,
    caption: str,
    prompt: str = PROMPT,
) -> ChatRequest:
    """Asks a judge about one caption.

    Args:
        name: Becomes the id of the request, and decides who is assistant 1.
        picture: The image; its shorter side becomes 224 pixels.
        context: Titles and text, as the captioner reads them.
        highlight: Phrases, one a line.
        reference: What the caption is compared with.
        caption: The model's.
        prompt: With `{context}`, `{highlight}`, `{first}` and `{second}`.
    """
    pair = (reference, caption) if reference_is_first(name) else (caption, reference)
    fields = {"context": context, "highlight": "\n".join(highlight)}
    fields |= {"first": pair[0], "second": pair[1]}
    # Not `format`: a prompt may hold other braces. One pass: a text may hold such a field.
    text = re.sub(r"\{(context|highlight|first|second)\}", lambda found: fields[found[1]], prompt)
    factor = SHORT_SIDE / min(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    image = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return ChatRequest(
        [Message("user", [text, image])], max_new_tokens=MAX_NEW_TOKENS, temperature=0.0, id=name
    )


def read_scores(text: str, name: str) -> dict[str, tuple[int, int]] | None:
    """Reads a judgement: for each aspect the scores of the reference and of the caption.

    Args:
        text: What the judge said. "Overall" will do for "Overall Quality".
        name: The id of the request.

    Returns:
        Scores by short names of the aspects; None if one of them is not there, or out of range.
    """
    blocks = {number: _aspects(block) for number, block in SCORES.findall(text)}
    first, second = blocks.get("1", {}), blocks.get("2", {})
    if not reference_is_first(name):
        first, second = second, first
    if not ASPECTS.keys() <= first.keys() & second.keys():
        return None
    pairs = {aspect: (first[aspect], second[aspect]) for aspect in ASPECTS}
    in_range = all(0 <= score <= SCALE for pair in pairs.values() for score in pair)
    return pairs if in_range else None


def _aspects(block: str) -> dict[str, int]:
    found = {}
    for name, score in LINE.findall(block):
        for short, full in ASPECTS.items():
            if name.strip().lower() in (full.lower(), full.split()[0].lower()):
                found[short] = int(score)
    return found


class JudgedCaptions(Metric):
    """Geometric means of a system's scores over those of the reference.

    `compute` returns `judge_<aspect>` for the four aspects, `judge_unparsed`, the share of
    judgements that could not be read and count for nothing else, and `num_judged`. A caption with
    score 0 gets 1 more, and so does its reference, as in the released code.
    """

    full_state_update = False
    logs: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logs", torch.zeros(len(ASPECTS), dtype=torch.float64), "sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), "sum")  # read, not read

    def update(self, judgements: Sequence[Mapping[str, tuple[int, int]] | None]) -> None:
        """Adds judgements, as `read_scores` returns them."""
        for pairs in judgements:
            self.counts[0 if pairs is not None else 1] += 1
            if pairs is not None:
                ratios = [_ratio(*pairs[aspect]) for aspect in ASPECTS]
                self.logs += torch.tensor(ratios, dtype=torch.float64, device=self.device).log()

    def compute(self) -> dict[str, float]:
        """Returns the numbers; none where nothing was judged."""
        read, unread = self.counts.tolist()
        if not read + unread:
            return {}
        found: dict[str, Any] = {"judge_unparsed": unread / (read + unread), "num_judged": read}
        if read:
            means = (self.logs / read).exp().tolist()
            found |= {f"judge_{name}": mean for name, mean in zip(ASPECTS, means, strict=True)}
        return found


def _ratio(reference: int, caption: int) -> float:
    if not caption:
        reference, caption = reference + 1, caption + 1
    return caption / max(reference, 1)
