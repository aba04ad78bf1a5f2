"""Facts of which a caption tells one: made records that test control, with real digits as images.

    section   anna has lantern . boris has compass . carla has drum . dina has rope .
    image     a handwritten seven (scikit-learn's digits)
    caption   the seven : carla has drum

Which fact a caption tells is chosen at random, so that no model can know it without a highlight;
which digit, only the image tells. The words are as good as any others: the records are synthetic.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from .examples import SPLITS, CaptionExample, Examples, Split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = (
    *("anna", "boris", "carla", "dina", "emil", "fatima", "goran", "hilde", "igor", "jana"),
    *("kofi", "lena", "milan", "nora", "oskar", "petra", "quinn", "rosa", "sven", "tara"),
)
THINGS = (
    *("lantern", "compass", "drum", "rope", "kettle", "ladder", "mirror", "anchor"),
    *("basket", "candle", "feather", "globe", "hammer", "ink", "jacket", "kite"),
    *("lamp", "map", "needle", "oar", "paddle", "quilt", "ring", "saddle"),
    *("tent", "umbrella", "violin", "wheel", "yarn", "zither", "apron", "bell"),
    *("clock", "drill", "easel", "flute", "glove", "hat", "iron", "jug"),
)
NUM_TRAIN_DIGITS = 1400  # of 1,797, which are ordered by writers


class FactExamples(Examples):
    """Made records, drawn when they are needed.

    Args:
        num_train: Training records; they come again in the next epoch.
        num_val: Validation records.
        num_test: Test records; each has a highlight for each of its facts, its own first.
        num_facts: Facts in a section: chance is one in so many.
        image: Whether the digit is in the image; else it is in the text, and the image is black.
        seed: Of the records, 0 or more.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        num_train: int = 38400,
        num_val: int = 256,
        num_test: int = 300,
        num_facts: int = 4,
        image: bool = True,
        seed: int = 0,
    ) -> None:
        numbers = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if not 2 <= num_facts <= len(NAMES):
            raise ValueError(f"num_facts must be from 2 to {len(NAMES)}, got {num_facts}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test
        self.num_facts = num_facts
        self.has_image, self.seed = image, seed

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "digits"}

    @property
    def identity(self) -> dict[str, Any]:
        """See `Examples`."""
        return {"examples": "facts", **self.__getstate__()}

    @cached_property
    def digits(self) -> tuple[Any, Any]:
        """Pictures (1797, 8, 8) uint8 and what they are (1797,) int64."""
        from sklearn.datasets import load_digits

        found = load_digits()
        return np.rint(found.images * 255 / 16).astype(np.uint8), found.target

    @property
    def num_images(self) -> int:
        """See `Examples`."""
        return len(self.digits[0]) + 1  # the last is black

    def image(self, number: int) -> Image.Image:
        """See `Examples`."""
        pictures, _ = self.digits
        if number == len(pictures):
            return Image.new("L", (8, 8))
        return Image.fromarray(pictures[number])

    def split(self, name: Split) -> Sequence[CaptionExample]:
        """See `Examples`."""
        number = {"train": self.num_train, "val": self.num_val, "test": self.num_test}[name]
        return FactSplit(self, name, number)


class FactSplit(Sequence[CaptionExample]):
    """Records of a split, each a function of seed, split and index.

    Args:
        examples: Settings and digits.
        name: Of the split.
        number: Of records.
    """

    def __init__(self, examples: FactExamples, name: Split, number: int) -> None:
        self.examples, self.name, self.number = examples, name, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.number:
            raise IndexError(index)
        made, number = self.examples, self.examples.num_facts
        sequence = np.random.SeedSequence(made.seed, spawn_key=(SPLITS.index(self.name), index))
        rng = np.random.Generator(np.random.Philox(sequence))
        names = rng.permutation(len(NAMES))[:number]
        things = rng.permutation(len(THINGS))[:number]
        facts = [(NAMES[n], THINGS[t]) for n, t in zip(names, things, strict=True)]
        told = int(rng.integers(number))
        pictures, kinds = made.digits
        is_train = self.name == "train"
        first, last = (0, NUM_TRAIN_DIGITS) if is_train else (NUM_TRAIN_DIGITS, len(kinds))
        picture = int(rng.integers(first, last))
        digit = DIGITS[kinds[picture]]
        text = " ".join(f"{name} has {thing} ." for name, thing in facts)
        order = [told, *(fact for fact in range(number) if fact != told)]
        captions = tuple(f"the {digit} : {facts[k][0]} has {facts[k][1]}" for k in order)
        return CaptionExample(
            id=f"{self.name}-{index}",
            caption=captions[0],
            image=picture if made.has_image else len(pictures),
            page_title="notes",
            section_title="who has what",
            section_text=text if made.has_image else f"the {digit} . {text}",
            group=f"{self.name}-{index}",
            highlights=() if is_train else tuple(facts[k] for k in order),
            references=() if is_train else captions,
            depicted=() if is_train or not made.has_image else (digit,),
        )
