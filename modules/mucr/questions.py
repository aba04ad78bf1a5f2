"""What is asked about a group of pairs: three levels, and the matching the other way round.

- `c2e`: the cause and the effects of all siblings; which effect is its own? (image level)
- `e2c`: the same from the effect; ours, no number of the paper.
- `cue`: both pictures and phrases; which one names the link? (phrase level)
- `exp`: both pictures; why does the one follow from the other? (sentence level)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image

from ..visual_reasoning.question import Count, Item, Question
from .pair import CAUSE, EFFECT, CausalPair, PairGroup

Task = Literal["c2e", "e2c", "cue", "exp"]
TASKS: tuple[Task, ...] = ("c2e", "cue", "exp")  # the benchmark's
TASK_TEXTS: dict[str, str] = {
    "c2e": (
        "The first picture shows a cause. Exactly one of the options shows the effect that this "
        "very cause has on the same subject. Which one?"
    ),
    "e2c": (
        "The first picture shows an effect. Exactly one of the options shows the cause that had "
        "this very effect on the same subject. Which one?"
    ),
    "cue": (
        "The first picture shows a cause, the second its effect. Which phrase names the causal "
        "link between them?"
    ),
    "exp": (
        "The first picture shows a cause, the second its effect. Explain the causal link in one "
        "to three sentences: what the first picture shows, what the second shows with the same "
        "subject, and why the second follows from the first."
    ),
}


def questions_of(
    group: PairGroup,
    tasks: Sequence[Task],
    name: str = "mucr",
    circular: bool = False,
    seed: int = 0,
) -> list[Item]:
    """Asks about each pair of a group that is asked about.

    Options are in an order that depends on seed, task and pair alone. A right answer counts in
    `accuracy`; four in a closed group in `group_accuracy`; with `circular` a question is also asked
    with its options moved on by one, two, ... places, and right in all counts in
    `circular_accuracy`.

    Args:
        group: Pairs with their pictures.
        tasks: What is asked.
        name: Sets are called `<name>/<task>`.
        circular: Whether to ask again with options moved on.
        seed: Of the orders.
    """
    num_asked = sum(group.asked)
    found: list[Item] = []
    for task in tasks:
        for place, (pair, asked) in enumerate(zip(group.pairs, group.asked, strict=True)):
            if not asked:
                continue
            counts = [Count("accuracy", pair.id)]
            if num_asked == len(group.pairs) and task != "exp":
                counts.append(Count("group_accuracy", group.id, num_asked))
            question = _question(group, place, task, name, tuple(counts)).shuffled(seed)
            turns = len(question.options) if circular else 1
            for turn in range(max(1, turns)):
                found.append(_item(group, _turned(question, turn, turns)))
    return found


def picture_names(pair: CausalPair) -> tuple[str, str]:
    """Names of cause and effect, which nobody is shown."""
    return f"{pair.id}/{CAUSE}", f"{pair.id}/{EFFECT}"


def _question(
    group: PairGroup, place: int, task: Task, name: str, counts: tuple[Count, ...]
) -> Question:
    pair = group.pairs[place]
    common = Question(
        id=pair.id,
        set=f"{name}/{task}",
        text=TASK_TEXTS[task],
        counts=counts,
        group=group.id,
        categories={"category": pair.category, "style": pair.style, "siblings": group.source},
    )
    own = picture_names(pair)
    if task in ("c2e", "e2c"):
        given, asked = (CAUSE, EFFECT) if task == "c2e" else (EFFECT, CAUSE)
        options = [picture_names(sibling)[asked] for sibling in group.pairs]
        captions = [pair.descriptions[given], *(p.descriptions[asked] for p in group.pairs)]
        plain = [pair.captions[given], *(p.captions[asked] for p in group.pairs)]
        images = (own[given], *options)
        return replace(
            common,
            images=images,
            options=tuple(options),
            option_images=tuple(range(1, len(images))),
            answers=(place,),
            captions=tuple(captions),
            extra={"task": task, "plain": dict(zip(images, plain, strict=True))},
        )
    extra = {"task": task, "plain": dict(zip(own, pair.captions, strict=True))}
    common = replace(common, images=own, captions=pair.descriptions, extra=extra)
    if task == "cue":
        return replace(common, options=(pair.cue, *pair.false_cues), answers=(0,), permutation=())
    return replace(common, references=pair.references)


def _turned(question: Question, turn: int, turns: int) -> Question:
    """Moves options on, and says what the answer counts in."""
    if turns <= 1:
        return question
    circular = Count("circular_accuracy", question.id, turns)
    if turn == 0:
        return replace(question, counts=(*question.counts, circular))
    order = [(option + turn) % turns for option in range(turns)]
    turned = question.reordered(order)
    return replace(turned, id=f"{question.id}/turn{turn}", counts=(circular,))


def _item(group: PairGroup, question: Question) -> Item:
    pictures: dict[str, Image.Image] = {}
    for pair in group.pairs:
        pictures |= dict(zip(picture_names(pair), pair.images, strict=True))
    return Item(question, [pictures[name] for name in question.images])
