"""What a benchmark of cause and effect consists of: pairs of pictures in groups of siblings."""

import hashlib
from typing import NamedTuple

from PIL import Image

CAUSE, EFFECT = 0, 1


class CausalPair(NamedTuple):
    """A picture of a cause, one of its effect, and what is said about them.

    A named tuple and no dataclass, so that Lightning can carry it in a batch.

    Attributes:
        id: Unique in its data set.
        images: Of cause and effect, RGB.
        captions: Of cause and effect: the statement, the same for all siblings.
        descriptions: Of cause and effect, with what tells siblings apart; empty if not known.
        cue: The phrase that names the link.
        false_cues: Phrases that do not.
        references: Explanations of the link, at least one.
        category: What the subject is: "person", "animal", "character", "mixture" or "plant".
        style: "photograph" or "comic".
    """

    id: str
    images: tuple[Image.Image, Image.Image]
    captions: tuple[str, str]
    descriptions: tuple[str, str]
    cue: str
    false_cues: tuple[str, ...]
    references: tuple[str, ...]
    category: str
    style: str


class PairGroup(NamedTuple):
    """Pairs whose effects are each other's wrong answers.

    Attributes:
        id: Unique in the data set.
        pairs: Siblings.
        asked: For each pair whether questions are asked about it; the others only lend their
            effects. In a closed group all are asked.
        source: How the siblings were found: "link_id", "caption", "cue" or "sampled".
    """

    id: str
    pairs: tuple[CausalPair, ...]
    asked: tuple[bool, ...]
    source: str


def shuffled(number: int, *key: str | int) -> list[int]:
    """Returns a permutation of `number` places that is a function of the key alone.

    It neither depends on the order of ids nor on who asks: hashes of (key, place) are sorted.
    """
    name = "\0".join(map(str, key))

    def rank(place: int) -> bytes:
        return hashlib.sha256(f"{name}\0{place}".encode()).digest()

    return sorted(range(number), key=rank)
