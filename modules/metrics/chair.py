"""CHAIR (Rohrbach et al. 2018): which objects a caption names that are not in the image.

Objects are found by a list of synonyms, which the user has: `synonyms.txt` of the authors' code, a
line for each class, its words separated by commas, the class first.

Plural words are the one thing that is done in a way of its own. The authors' programs lemmatise
every word by a dictionary (pattern, in later versions nltk's WordNet with a tagger). Here a word
becomes singular only if the singular, by English spelling, is a word of the list; no dictionary is
needed. Differences are to be expected where those programs change a word that is no plural noun
("skiing", "parked") or miss one, as taggers do.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .questions import QuestionMetric

ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "animal", "cub"),
)
# Pairs that are not what their words are: the young of animals are no persons.
PAIRS = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    **{"bow tie": "tie", "toilet seat": "toilet", "home plate": "", "train track": ""},
}
IRREGULAR = {
    **{"people": "person", "children": "child", "mice": "mouse", "geese": "goose"},
    **{"feet": "foot", "teeth": "tooth", "oxen": "ox", "dice": "die"},
}
# Endings of plural words, and what may stand in their place.
ENDINGS = (
    *(("men", "man"), ("ies", "y"), ("ies", "ie"), ("ves", "fe"), ("ves", "f")),
    *(("es", ""), ("s", "")),
)
WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]")  # marks part pairs


class ObjectVocabulary:
    """Finds the objects that a text names.

    Args:
        path: `synonyms.txt`: a line for each class, words separated by commas, the class first.

    Raises:
        ValueError: The file cannot be read, has no class, or a word of two.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"synonyms {path} cannot be read: {error} (a line for each class, words separated "
                "by commas, the class first)"
            ) from error
        self.classes: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            words = [" ".join(word.lower().split()) for word in line.split(",") if word.strip()]
            for word in words:
                known = self.classes.setdefault(word, words[0])
                if known != words[0]:
                    raise ValueError(
                        f"{self.path}:{number}: {word!r} is a word of {known!r} and of {words[0]!r}"
                    )
        if not self.classes:
            raise ValueError(f"{self.path}: no synonyms")

    @cached_property
    def _words(self) -> frozenset[str]:
        """All words that matter, of those of two words each."""
        known = (*self.classes, *PAIRS)
        return frozenset(word for name in known for word in name.split())

    def mentions(self, text: str) -> list[str]:
        """Returns the class of each object that is named, in order, once for each time.

        Two words that the list or a rule knows as a pair are one object: a "hot dog" is no dog, a
        "baby elephant" no person. Where there is talk of a toilet, its "seat" is no chair.
        """
        words = [self.singular(word) for word in WORD.findall(text.lower().replace("'s", " "))]
        found: list[str] = []
        place = 0
        while place < len(words):
            pair = " ".join(words[place : place + 2])
            is_pair = " " in pair and (pair in self.classes or pair in PAIRS)
            found.append(PAIRS.get(pair, pair) if is_pair else words[place])
            place += 2 if is_pair else 1
        if "toilet" in found:
            found = [word for word in found if word != "seat"]
        return [self.classes[word] for word in found if word in self.classes]

    def singular(self, word: str) -> str:
        """Returns the singular of a plural of the list's words, and all else as it is."""
        if word in self._words:
            return word
        candidates = [IRREGULAR[word]] if word in IRREGULAR else []
        candidates += [word.removesuffix(e) + s for e, s in ENDINGS if word.endswith(e)]
        return next((found for found in candidates if found in self._words), word)


class ChairMetric(QuestionMetric):
    """How much captions hallucinate, and how much of what is there they name.

    `compute` returns float64 shares in [0, 1]: `chair_s`, captions with a hallucinated object;
    `chair_i`, hallucinated among all mentions of objects; `recall`, objects that are there and
    named, among all that are there, over all images together. A share of nothing is 0. What is
    there are the annotated objects and those that the reference captions name.

    Args:
        synonyms: The authors' `synonyms.txt`; see `ObjectVocabulary`.

    Raises:
        ValueError: The synonyms cannot be read.
    """

    def __init__(self, synonyms: str) -> None:
        super().__init__(num_values=5)
        self.vocabulary = ObjectVocabulary(synonyms)

    def update(
        self,
        image_ids: Sequence[str | int],
        captions: Sequence[str],
        objects: Sequence[Iterable[str]],
        references: Sequence[Iterable[str]],
    ) -> None:
        """Adds captions.

        Args:
            image_ids: Unique.
            captions: What the model said.
            objects: Classes of the annotated objects of each image.
            references: Captions of each image by people.

        Raises:
            ValueError: A class that the synonyms do not know.
        """
        rows = []
        for caption, present, others in zip(captions, objects, references, strict=True):
            there = {self._class_of(name) for name in present}
            there |= {name for other in others for name in self.vocabulary.mentions(other)}
            named = self.vocabulary.mentions(caption)
            wrong = sum(name not in there for name in named)
            rows.append((wrong > 0, wrong, len(named), len(there.intersection(named)), len(there)))
        self.add([""] * len(rows), image_ids, torch.tensor(rows))

    def _class_of(self, name: str) -> str:
        found = self.vocabulary.classes.get(name.lower())
        if found is None:
            raise ValueError(f"objects: {name!r} is not in {self.vocabulary.path}")
        return found

    def compute(self) -> dict[str, Tensor]:
        """Returns the shares."""
        rows = self.rows().get("", torch.empty(0, 5, dtype=torch.float64))
        hallucinates, wrong, named, found, there = rows.sum(0)
        return {
            "chair_s": hallucinates / max(len(rows), 1),
            "chair_i": wrong / named.clamp(min=1),
            "recall": found / there.clamp(min=1),
        }
