"""Which pairs are siblings: read from their links, or found by what they say.

The release of 2024 names the siblings of each pair, that of 2025 does not.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ...modules.mucr.pair import shuffled

log = logging.getLogger(__name__)

GROUP_SIZE = 4
GroupPolicy = Literal["auto", "link_id", "caption", "sampled"]


class Described(NamedTuple):
    """What groups are found by.

    Attributes:
        id: Of the pair.
        links: Ids of its siblings, as the file has them; empty where it has none.
        captions: Of cause and effect.
        cue: The right phrase.
        category: Of the subject.
    """

    id: str
    links: tuple[str, ...]
    captions: tuple[str, str]
    cue: str
    category: str


class Members(NamedTuple):
    """A group before its pictures are read.

    Attributes:
        id: Of the group.
        places: Of its pairs in their list.
        asked: Whether each is asked about.
        source: See `PairGroup`.
    """

    id: str
    places: tuple[int, ...]
    asked: tuple[bool, ...]
    source: str


def parse_links(text: str) -> tuple[str, ...]:
    """Reads `link_id`, a text such as "[12,13,14]", with or without quotes."""
    return tuple(re.findall(r"[\w-]+", text))


def find_groups(rows: Sequence[Described], policy: GroupPolicy, seed: int) -> list[Members]:
    """Divides pairs into groups of four whose effects are each other's wrong answers.

    A pair that is in no closed group of four gets one of its own, in which it alone is asked about:
    with the siblings that it names, or with others drawn from its category.

    Args:
        rows: All pairs.
        policy: "link_id": as the file says. "caption": pairs with the same captions, else those
            with the same category and cue. "sampled": drawn. "auto": by links where there are any,
            else by captions.
        seed: Of the draws.

    Raises:
        ValueError: There are fewer than four pairs, or no links for `link_id`.
    """
    if len(rows) < GROUP_SIZE:
        raise ValueError(f"{len(rows)} pairs: a question needs {GROUP_SIZE} at least")
    linked = any(row.links for row in rows)
    if policy == "link_id" and not linked:
        raise ValueError("group_policy: link_id, but no pair has links: take auto or caption")
    found: list[Members] = []
    left = set(range(len(rows)))
    if policy == "link_id" or (policy == "auto" and linked):
        found = _linked_groups(rows)
        left -= {place for group in found for place in group.places}
    if policy == "caption" or (policy == "auto" and not linked):
        keys: list[tuple[str, Callable[[Described], object]]] = [
            ("caption", lambda row: tuple(map(_normal, row.captions))),
            ("cue", lambda row: (row.category, _normal(row.cue))),
        ]
        for source, key in keys:
            found += _equal_groups(rows, sorted(left), key, source)
            left -= {place for group in found for place in group.places}
    found += [_own_group(rows, place, seed) for place in sorted(left)]
    return sorted(found, key=lambda group: min(_asked_places(group)))


def _linked_groups(rows: Sequence[Described]) -> list[Members]:
    """Groups of four pairs that all name each other."""
    places = {row.id: place for place, row in enumerate(rows)}
    known = [{places[link] for link in row.links if link in places} for row in rows]
    one_sided = [
        f"{rows[place].id} names {rows[other].id}"
        for place, links in enumerate(known)
        for other in sorted(links)
        if place not in known[other]
    ]
    if one_sided:
        log.warning(
            "link_id: %d links are not returned, the first: %s", len(one_sided), one_sided[0]
        )
    found, seen = [], set()
    for place, links in enumerate(known):
        members = tuple(sorted({place, *links}))
        closed = all({other, *known[other]} == set(members) for other in members)
        if len(members) == GROUP_SIZE and closed and members not in seen:
            seen.add(members)
            found.append(_closed(rows, members, "link_id"))
    return found


def _equal_groups(
    rows: Sequence[Described],
    places: Sequence[int],
    key: Callable[[Described], object],
    source: str,
) -> list[Members]:
    """Groups of four pairs that have the same key, and no fifth has."""
    by_key: dict[object, list[int]] = {}
    for place in places:
        by_key.setdefault(key(rows[place]), []).append(place)
    fours = [tuple(members) for members in by_key.values() if len(members) == GROUP_SIZE]
    return [_closed(rows, members, source) for members in fours]


def _closed(rows: Sequence[Described], members: tuple[int, ...], source: str) -> Members:
    return Members(rows[members[0]].id, members, (True,) * GROUP_SIZE, source)


def _own_group(rows: Sequence[Described], place: int, seed: int) -> Members:
    """A pair with three others: those that it names, then of its category, then any."""
    row = rows[place]
    order = shuffled(len(rows), seed, row.id)
    ranks = {other: rank for rank, other in enumerate(order)}

    def nearness(other: int) -> tuple[bool, bool, int]:
        there = rows[other]
        return there.id not in row.links, there.category != row.category, ranks[other]

    # Pairs of the same statement would be right answers by their words, and are kept: by their
    # pictures they are not.
    others = sorted((other for other in range(len(rows)) if other != place), key=nearness)
    members = (place, *others[: GROUP_SIZE - 1])
    asked = (True,) + (False,) * (GROUP_SIZE - 1)
    return Members(row.id, members, asked, "sampled")


def _asked_places(group: Members) -> list[int]:
    return [place for place, asked in zip(group.places, group.asked, strict=True) if asked]


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
