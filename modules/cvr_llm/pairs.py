"""Two descriptions of the same images, to be compared."""

from typing import NamedTuple


class Pair(NamedTuple):
    """What is compared.

    Args:
        id: Unique.
        set: Of the question that it belongs to.
        group: What is not independent of each other.
        task: The question with its options.
        caption: What a captioner says by itself.
        description: What it says when it is asked.
    """

    id: str
    set: str
    group: str
    task: str
    caption: str
    description: str
