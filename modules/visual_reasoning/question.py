"""What is asked: images, a text, options or none, and what is right."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

MetricName = Literal["accuracy", "jaccard"]


@dataclass(frozen=True)
class Count:
    """One number that a question counts in.

    Questions that are only right together, such as Winoground's two decisions about one caption
    pair, name the same unit: it is worth the product of their values.

    Args:
        name: What the number is called: "accuracy", "text", "group".
        unit: What the questions share; unique under its name in a set.
        size: How many questions a unit has. One of which some are missing does not count.
    """

    name: str
    unit: str
    size: int = 1


@dataclass(frozen=True)
class Question:
    """A question that has one answer.

    Args:
        id: Unique in its set.
        set: What it is reported under: "winogavil/5_6".
        text: As it is asked, without options.
        task: The whole task in a sentence or two, for whoever writes questions about the images.
        images: Names, in the order in which they are shown.
        options: To choose from; of options that are images, their names, which nobody is shown.
            None: a free answer.
        option_images: Of each option the place of its image in `images`; empty if they are texts.
        answers: Places of the right options, all of which are to be chosen.
        references: Right free answers, for a judge.
        captions: Descriptions of the images that come with the data, one each or none.
        counts: What it counts in; none: in `metric`, for itself.
        metric: "accuracy": the one right option, or a judge's verdict. "jaccard": the overlap of
            the chosen and the right options, in [0, 1].
        group: What is not independent of each other: intervals resample groups, and nothing of its
            own group is shown to a question as a solved example. Empty: its id.
        kind: Questions of one set and kind can be solved examples for each other.
        categories: What results are also reported by, name and value.
        permutation: Of each option its place in the file.
        extra: What else the data have.

    Raises:
        ValueError: Numbers that do not fit.
    """

    id: str
    set: str
    text: str
    task: str = ""
    images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    option_images: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    counts: tuple[Count, ...] = ()
    metric: MetricName = "accuracy"
    group: str = ""
    kind: str = ""
    categories: Mapping[str, str] = field(default_factory=dict)
    permutation: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"question {self.id} of {self.set}"
        if self.option_images and len(self.option_images) != len(self.options):
            raise ValueError(f"{where}: {len(self.option_images)} images of {self._num_options}")
        if self.captions and len(self.captions) != len(self.images):
            raise ValueError(f"{where}: {len(self.captions)} captions, {len(self.images)} images")
        if any(not 0 <= place < len(self.options) for place in self.answers):
            raise ValueError(f"{where}: right answers {self.answers} of {self._num_options}")
        if self.options and not self.answers:
            raise ValueError(f"{where}: no right answer among {self._num_options}")
        if self.metric == "accuracy" and len(self.answers) > 1:
            raise ValueError(f"{where}: several right answers are counted by metric 'jaccard'")
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if not self.counts:
            object.__setattr__(self, "counts", (Count(self.metric, self.id),))
        if not self.permutation:
            object.__setattr__(self, "permutation", tuple(range(len(self.options))))

    @property
    def _num_options(self) -> str:
        return f"{len(self.options)} options"

    @property
    def is_open(self) -> bool:
        """Whether the answer is a text of one's own."""
        return not self.options

    @property
    def shown_options(self) -> list[str]:
        """Options as a prompt has them: texts, or "Image 2"."""
        if not self.option_images:
            return list(self.options)
        return [f"Image {place + 1}" for place in self.option_images]

    def reordered(self, order: Sequence[int]) -> "Question":
        """Returns the question with its options in another order; images and answers follow.

        Args:
            order: Of each new option its place now.
        """
        places = sorted(self.option_images)
        source = list(range(len(self.images)))
        for place, option in zip(places, order, strict=False):
            source[place] = self.option_images[option]
        images, captions = self.images, self.captions
        return replace(
            self,
            options=tuple(self.options[option] for option in order),
            option_images=tuple(places),
            images=tuple(images[place] for place in source),
            captions=tuple(captions[place] for place in source) if captions else (),
            answers=tuple(sorted(list(order).index(place) for place in self.answers)),
            permutation=tuple(self.permutation[option] for option in order),
        )

    def shuffled(self, seed: int) -> "Question":
        """Returns the question with its options in an order that depends on seed, set and id."""
        digest = hashlib.sha256(f"{seed}\0{self.set}\0{self.id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return self.reordered(generator.permutation(len(self.options)).tolist())


class Item(NamedTuple):
    """A question and its images.

    Args:
        question: What is asked.
        pictures: Of each image RGB, or None where there is a description alone.
    """

    question: Question
    pictures: list[Image.Image | None]
