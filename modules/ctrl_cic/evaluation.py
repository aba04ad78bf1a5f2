"""Captions for all highlights of an image, and what is counted about them.

Shapes: B images, T tokens of a target, N tokens of a section.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric

from ..chat import ChatBackend
from ..encoders.encoder import Encoder
from ..metrics.captioning import (
    Bleu,
    CaptionMetrics,
    CaptionScore,
    Cider,
    RougeL,
    clip_scores,
    sentence_clip_scores,
    sentences_with,
)
from ..metrics.captioning import highlight_recall as recall_of
from ..words import WORD, stem
from .control import Control, NoControl, PromptControl, Recalibration
from .highlights import phrase_text, words_of_tokens
from .judge import JudgedCaptions, judge_request, read_scores
from .parts import IGNORED, cross_entropy
from .targets import Targets
from .tokens import Source

if TYPE_CHECKING:
    from .module import CtrlCIC

Highlights = Sequence[Sequence[list[str]]]
Written = Sequence[tuple[tuple[int, int], str]]
HIGHLIGHTED = "highlighted"
PLAIN = "plain"


@dataclass(frozen=True)
class Way:
    """A way of writing captions that a test compares.

    Args:
        name: Of its numbers; those of the first way have none.
        highlighted: Whether captions are for highlights.
        delta: Of `Recalibration`, in place of its own.
    """

    name: str
    highlighted: bool = True
    delta: float | None = None


@dataclass
class Example:
    """An image and its captions, for a figure."""

    picture: Image.Image | None
    title: str
    plain: str
    captions: list[tuple[list[str], str]] = field(default_factory=list)


def ways_of(controller: Control) -> list[Way]:
    """Returns the ways that a test of a controller compares, the main one first."""
    if isinstance(controller, NoControl):
        return [Way(PLAIN, highlighted=False)]
    if isinstance(controller, Recalibration):
        if controller.mode == "oracle":
            return [Way(HIGHLIGHTED)]
        deltas = [Way(f"delta_{delta:g}", delta=delta) for delta in controller.sweep]
        return [Way(HIGHLIGHTED), Way(PLAIN, highlighted=False), *deltas]
    return [Way(HIGHLIGHTED), Way(PLAIN, highlighted=False)]


class CaptionTest(nn.Module):
    """Runs a controller's ways on batches and counts.

    `compute` returns the numbers of `CaptionMetrics`: of the main way as they are (captions for
    highlights; without a controller the same caption for all of them), of others as
    `plain/<number>` and `delta_<d>/<number>`. Captions without a highlight are compared with the
    image's own caption, others with the reference of their highlight where there is one.

    With a controller also the highlight lift, in nats per token of the true caption:
    `lift_highlighted` is how much likelier its own highlight makes the caption's highlighted words
    than a wrong one, `lift_other` the same for its other words. A wrong highlight is the next
    image's for `PromptControl`; for `Recalibration`, the section's words exchange their weights.

    Args:
        controller: What is tested.
        scores: What captions are compared with references by; None: BLEU-4, ROUGE-L, CIDEr-D.
        judge: Rates captions of the main way against the images' own, see `judge`: numbers
            `judge_<aspect>`.
        clip: Encodes images and texts: numbers `clip_score` and `clip_score_sentence` of the main
            way, see `metrics.captioning`.
    """

    def __init__(
        self,
        controller: Control,
        scores: Sequence[CaptionScore] | None = None,
        judge: ChatBackend | None = None,
        clip: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.ways = ways_of(controller)
        chosen = [Bleu(), RougeL(), Cider()] if scores is None else list(scores)
        self.metrics = [CaptionMetrics(chosen) for _ in self.ways]
        self.registered = nn.ModuleList(self.metrics)  # so that they follow the module's device
        self.lift_highlighted, self.lift_other = MeanMetric(), MeanMetric()
        self.judge, self.clip = judge, clip
        self.judged = JudgedCaptions()
        self.clip_score, self.clip_score_sentence = MeanMetric(), MeanMetric()
        self.measures_lift = isinstance(controller, PromptControl | Recalibration)

    def step(
        self, module: "CtrlCIC", batch: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[Example]]:
        """Tests a batch; returns a record for each caption of a highlight, and examples."""
        size = len(batch["ids"])
        texts = batch["section_texts"]
        highlights = [
            [[phrase_text(p, texts[row]) for p in phrases] for phrases in sets]
            for row, sets in enumerate(batch["highlights"])
        ]
        places = [(row, number) for row in range(size) for number in range(len(highlights[row]))]
        written: dict[str, list[str]] = {}
        records = []
        for way, metric in zip(self.ways, self.metrics, strict=True):
            if way.highlighted:
                rows = [row for row, _ in places]
                captions = module.generate(
                    batch,
                    [batch["highlights"][row][number] for row, number in places],
                    rows,
                    way.delta,
                    [batch["references"][row][number] for row, number in places],
                ) if places else []  # fmt: skip
            else:
                plain = module.generate(batch)
                captions = [plain[row] for row, _ in places]
                written["plain of images"] = plain
            written[way.name] = captions
            counted = []
            for (row, number), caption in zip(places, captions, strict=True):
                phrases = highlights[row][number]
                counted.append(
                    {
                        "id": f"{batch['ids'][row]}/{number}",
                        "image": batch["ids"][row],
                        "caption": caption,
                        "reference": batch["references"][row][number] if way.highlighted else "",
                        "phrases": phrases,
                        "alternatives": [p for other in highlights[row] for p in other],
                        "depicted": batch["depicted"][row],
                    }
                )
                records.append(
                    {
                        "id": f"{batch['ids'][row]}/{number}",
                        "row": way.name,
                        "group": batch["groups"][row],
                        "recall": recall_of(caption, phrases),
                    }
                )
            if not way.highlighted:
                counted += self._own(batch, written["plain of images"])
            metric.update(counted)
        main = [*zip(places, written[self.ways[0].name], strict=True)]
        if self.judge is not None:
            self._ask(batch, highlights, main)
        if self.clip is not None:
            self._compare(batch, highlights, main)
        if self.measures_lift and size > 1 and all(batch["captions"]):
            self._lift(module, batch)
        return records, self._examples(batch, highlights, places, written)

    def _own(self, batch: Mapping[str, Any], captions: Sequence[str]) -> list[dict[str, Any]]:
        """Captions without a highlight, to be compared with the images' own."""
        return [
            {
                "id": f"{name}/own",
                "image": name,
                "caption": caption,
                "reference": reference,
                "phrases": [],
                "alternatives": [],
                "depicted": depicted,
            }
            for name, caption, reference, depicted in zip(
                batch["ids"], captions, batch["captions"], batch["depicted"], strict=True
            )
        ]

    def _ask(self, batch: Mapping[str, Any], highlights: Highlights, main: Written) -> None:
        """Asks the judge about the captions of images that have a picture and a caption."""
        assert self.judge is not None
        requests = []
        for (row, number), caption in main:
            picture, reference = batch["pictures"][row], batch["captions"][row]
            if picture is None or not reference:
                continue
            parts = ("page_titles", "section_titles", "section_texts")
            context = ". ".join(batch[part][row] for part in parts if batch[part][row])
            name = f"{batch['ids'][row]}/{number}"
            requests.append(
                judge_request(name, picture, context, highlights[row][number], reference, caption)
            )
        responses = self.judge.generate(requests)
        pairs = zip(requests, responses, strict=True)
        self.judged.update([None if r.error else read_scores(r.text, q.id) for q, r in pairs])

    def _compare(self, batch: Mapping[str, Any], highlights: Highlights, main: Written) -> None:
        """Compares captions with pictures, and with the sentences of their highlights."""
        assert self.clip is not None
        rows = [(row, number, text) for (row, number), text in main if batch["pictures"][row]]
        if not rows:
            return
        captions = [text for _, _, text in rows]
        pictures = [batch["pictures"][row] for row, _, _ in rows]
        self.clip_score.update(clip_scores(self.clip, pictures, captions))
        sentences = [
            sentences_with(
                batch["section_texts"][row],
                highlights[row][number],
                [batch["page_titles"][row], batch["section_titles"][row]],
            )
            for row, number, _ in rows
        ]
        self.clip_score_sentence.update(sentence_clip_scores(self.clip, sentences, captions))

    def _examples(
        self,
        batch: Mapping[str, Any],
        highlights: Sequence[Sequence[list[str]]],
        places: Sequence[tuple[int, int]],
        written: Mapping[str, list[str]],
    ) -> list[Example]:
        pictures = batch.get("pictures") or [None] * len(batch["ids"])
        plain = written.get("plain of images", [""] * len(batch["ids"]))
        titles = zip(batch["page_titles"], batch["section_titles"], strict=True)
        found = [
            Example(picture, " / ".join(filter(None, title)), text)
            for picture, title, text in zip(pictures, titles, plain, strict=True)
        ]
        for (row, number), caption in zip(places, written[self.ways[0].name], strict=True):
            found[row].captions.append((highlights[row][number], caption))
        return found

    @torch.no_grad()
    def _lift(self, module: "CtrlCIC", batch: Mapping[str, Any]) -> None:
        source, images = module.encode(batch)
        relevance = module.relevance_of(batch, source)
        controller = module.controller
        if isinstance(controller, PromptControl):
            words = controller.training_words(source, relevance)
            found = [
                _caption_losses(module, source, images, module.targets(batch["captions"], chosen))
                for chosen in (words, [*words[1:], words[0]])
            ]
        else:
            words = PromptControl().training_words(source, relevance)
            targets = module.targets(batch["captions"], None)
            exchanged = [
                exchange_words(value_N, words_of_tokens(section.tokens))
                for value_N, section in zip(relevance, source.sections, strict=True)
            ]
            found = [
                _caption_losses(
                    module, source, images, targets, controller.training_weights(source, values)
                )
                for values in (relevance, exchanged)
            ]
        # Prompts of different lengths cut captions at different tokens: what both have counts.
        (own_BT, labels_BT), (wrong_BT, others_BT) = found
        size = min(labels_BT.shape[1], others_BT.shape[1])
        labels_BT, others_BT = labels_BT[:, :size], others_BT[:, :size]
        counts_BT = (labels_BT == others_BT) & (labels_BT != IGNORED)
        gain_BT = wrong_BT[:, :size] - own_BT[:, :size]
        marked_BT = self._highlighted_tokens(module, batch["captions"], words, size)
        self.lift_highlighted.update(gain_BT[counts_BT & marked_BT])
        self.lift_other.update(gain_BT[counts_BT & ~marked_BT])

    def _highlighted_tokens(
        self,
        module: "CtrlCIC",
        captions: Sequence[str],
        words: Sequence[Sequence[str]],
        size: int,
    ) -> Tensor:
        """Marks tokens of captions that belong to a word of the highlight, (B, size) bool."""
        marked_BT = torch.zeros(len(captions), size, dtype=torch.bool, device=module.device)
        for row, (caption, chosen) in enumerate(zip(captions, words, strict=True)):
            stems = {stem(word) for word in chosen}
            found = [m.span() for m in WORD.finditer(caption) if stem(m[0]) in stems]
            for index, (start, end) in enumerate(module.contexts.tokens(caption).spans):
                if index < size and any(start < b and end > a for a, b in found):
                    marked_BT[row, index] = True
        return marked_BT

    def compute(self) -> dict[str, float]:
        """Returns all numbers, and starts anew."""
        found: dict[str, float] = {}
        for number, (way, metric) in enumerate(zip(self.ways, self.metrics, strict=True)):
            prefix = f"{way.name}/" if number else ""
            found |= {f"{prefix}{name}": value for name, value in metric.compute().items()}
            metric.reset()
        found |= self.judged.compute()
        self.judged.reset()
        means: dict[str, MeanMetric] = {}
        if self.measures_lift:
            means |= {"lift_highlighted": self.lift_highlighted, "lift_other": self.lift_other}
        if self.clip is not None:
            means |= {"clip_score": self.clip_score}
            means |= {"clip_score_sentence": self.clip_score_sentence}
        for name, mean in means.items():
            if not mean.update_called:  # on this rank; all ranks compute
                mean.update(torch.zeros(0, device=mean.device))
            value = mean.compute().item()
            found |= {} if math.isnan(value) else {name: value}
            mean.reset()
        return found


def _caption_losses(
    module: "CtrlCIC",
    source: Source,
    images: Tensor,
    targets: Targets,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns losses and labels of captions without their prompts, (B, T) each."""
    losses_BT = cross_entropy(module(source, images, targets, weights), targets.labels)
    losses, labels = (
        pad_sequence(
            [row_T[is_T] for row_T, is_T in zip(values_BT, targets.is_caption, strict=True)],
            batch_first=True,
            padding_value=IGNORED,
        )
        for values_BT in (losses_BT, targets.labels)
    )
    return losses, labels


def exchange_words(values: Tensor, words: Sequence[tuple[int, int]]) -> Tensor:
    """Gives each word the mean value of another one: as many high ones, in wrong places.

    Args:
        values: Of tokens, (N,).
        words: First and last token (exclusive) of each word.
    """
    if not words:
        return values
    exchanged = values.clone()
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(len(words)))
    for (start, end), other in zip(words, order.tolist(), strict=True):
        first, last = words[other]
        exchanged[start:end] = values[first:last].mean()
    return exchanged
