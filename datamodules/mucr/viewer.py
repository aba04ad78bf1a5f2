"""A simulated model that looks at sprites with flaws that are known: how much does asking help?

It takes part in a benchmark as any chat model does: it gets pictures and texts and answers with
text. What it notices of a picture is chance, with probabilities that are its arguments; what it
makes of that is right. So the whole way from question to score runs on any machine, and what
forms and strategies should do is known before they are measured.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...modules.chat.backend import ChatBackend, Keep
from ...modules.chat.messages import ChatRequest, ChatResponse
from ...modules.mucr.composite import GAP
from ..scenes.cause_effect import CATEGORIES, NAMES, Statement
from .sprites import understand
from .synthetic import SyntheticMuCRDataModule

THUMB = 16  # pixels per side by which a picture is known again
ATTRIBUTES = ("body", "accent", "background")
# A prompt that asks for these is about cues; see `modules.mucr.prompts`.
ASKS_FOR_CUES = ("subject", "clothing", "where")
ASKS_ABOUT_ONE = ("visual cues of this picture", "describe this picture")
LABEL = re.compile(r"(Picture \d|Option [A-Z])(?:, cues)?: (.*)")
PHRASE = re.compile(r"^([A-D])\. (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Noticed:
    """What was noticed of a picture.

    Args:
        colours: By attribute, those that were.
        statement: What happens, if that was.
        moment: 0 before, 1 after.
        category: Of the subject.
    """

    colours: Mapping[str, str]
    statement: Statement | None
    moment: int
    category: str

    def words(self) -> str:
        """Says it, so that `read_words` understands it."""
        colours = ", ".join(f"{name} {colour}" for name, colour in self.colours.items())
        happens = "" if self.statement is None else f", it shows {self.said()}"
        return f"a {NAMES[self.category]}: {colours or 'no colours'}{happens}"

    def said(self) -> str:
        """Returns the caption of what happens."""
        assert self.statement is not None
        text = self.statement.effect if self.moment else self.statement.cause
        return text.format(NAMES[self.category])


class SpriteViewer(ChatBackend):
    """Answers questions about the pictures of `SyntheticMuCRDataModule`, with known flaws.

    Each colour of a picture, and what happens in it, is noticed with a probability; by chance that
    depends on the picture, the attribute and the seed alone. Options are compared by what was
    noticed of both pictures; what is equal after that is guessed.

    Args:
        recall: Probability of noticing something.
        recall_asked: Where the prompt asks for the cues of each picture.
        recall_small: What both are multiplied by for a picture of a composite image.
        siblings: As in the data.
        image_size: As in the data.
        scene_seed: As in the data.
        num_test: Groups whose pictures it knows; as in the data or more.
        bias: A letter that it always answers with, whatever it sees.
        seed: Of what is noticed and guessed.

    Raises:
        ValueError: A probability out of range; from `answer`, a picture that is none of its own.
    """

    supports_images = True

    def __init__(
        self,
        recall: float = 0.6,
        recall_asked: float = 0.95,
        recall_small: float = 0.8,
        siblings: Literal["looks", "statement", "nothing"] = "looks",
        image_size: int = 32,
        scene_seed: int = 0,
        num_test: int = 200,
        bias: str | None = None,
        seed: int = 0,
    ) -> None:
        shares = {"recall": recall, "recall_asked": recall_asked, "recall_small": recall_small}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        self.recall, self.recall_asked, self.recall_small = recall, recall_asked, recall_small
        self.siblings: Literal["looks", "statement", "nothing"] = siblings
        self.image_size, self.scene_seed, self.num_test = image_size, scene_seed, num_test
        self.bias, self.seed = bias, seed

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return {"backend": "sprite viewer", **self.__getstate__()}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        """See `ChatBackend`."""
        for place, request in enumerate(requests):
            text = self._answer(request)
            tokens = [sum(len(part.split()) for part in turn.parts if isinstance(part, str))
                      for turn in request.turns]  # fmt: skip
            yield (
                place,
                ChatResponse(
                    text,
                    prompt_tokens=sum(tokens)
                    + 64 * sum(len(turn.images) for turn in request.turns),
                    completion_tokens=len(text.split()),
                    model="sprite viewer",
                ),
            )

    def _answer(self, request: ChatRequest) -> str:
        turn = request.turns[-1]
        prompt = "".join(part for part in turn.parts if isinstance(part, str))
        if any(phrase in prompt.lower() for phrase in ASKS_ABOUT_ONE):
            asked = ASKS_ABOUT_ONE[0] in prompt.lower()
            return self._look(turn.images[0], asked, 1.0, request.id).words()
        seen = self._seen(prompt, turn.images)
        if self.bias is not None:
            return f"Answer: {self.bias}"
        options = {label[-1]: seen[label] for label in seen if label.startswith("Option")}
        thoughts = "" if "Reason" not in prompt and "stages" not in prompt else _aloud(seen)
        if options:
            return f"{thoughts}Answer: {self._match(seen['Picture 1'], options, prompt)}"
        happened = next((n.statement for n in seen.values() if n.statement is not None), None)
        phrases = dict(PHRASE.findall(prompt))
        if phrases:
            right = [
                letter for letter, text in phrases.items() if happened and text == happened.cue
            ]
            return f"{thoughts}Answer: {right[0] if right else self._guess(prompt, phrases)}"
        return f"{thoughts}Answer: {_explain(list(seen.values()), happened)}"

    def _seen(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Noticed]:
        """Returns what is noticed of each picture, by its label."""
        told = [(label, _read_words(text)) for label, text in LABEL.findall(prompt)]
        if told and not (images and any(noticed is None for _, noticed in told)):
            return {label: noticed for label, noticed in told if noticed is not None}
        scale = 1.0
        labels = re.findall(r"^(Picture \d|Option [A-Z]):$", prompt, re.MULTILINE)
        pictures = list(images)
        if len(pictures) == 1 and not labels:
            pictures, scale = _tiles(pictures[0]), self.recall_small
            labels = ["Picture 1", "Picture 2"] if len(pictures) == 2 else ["Picture 1"]
            labels += [f"Option {chr(ord('A') + k)}" for k in range(len(pictures) - len(labels))]
        asked = all(word in prompt for word in ASKS_FOR_CUES)
        return {
            label: self._look(picture, asked, scale, str(place))
            for place, (label, picture) in enumerate(zip(labels, pictures, strict=True))
        }

    def _look(self, picture: Image.Image, asked: bool, scale: float, name: str) -> Noticed:
        """Returns what is noticed of a picture."""
        thumbs, known = self._memory()
        distances = np.abs(thumbs - _thumb(picture)).mean(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] > 0.1:
            raise ValueError(
                f"picture {name} is none that SpriteViewer knows: give it the siblings, "
                "image_size, scene_seed and num_test of the data"
            )
        found: Noticed = known[nearest]
        recall = (self.recall_asked if asked else self.recall) * scale
        colours = {
            attribute: colour
            for attribute, colour in found.colours.items()
            if self._chance(nearest, attribute) < recall
        }
        happens = found.statement if self._chance(nearest, "action") < recall else None
        return Noticed(colours, happens, found.moment, found.category)

    def _match(self, given: Noticed, options: Mapping[str, Noticed], prompt: str) -> str:
        """Returns the letter of the option that agrees most and disagrees least."""

        def agreement(option: Noticed) -> int:
            both = given.colours.keys() & option.colours.keys()
            equal = sum(given.colours[name] == option.colours[name] for name in both)
            follows = given.statement is not None and given.statement == option.statement
            return equal - 3 * (len(both) - equal) + follows

        scores = {letter: agreement(option) for letter, option in options.items()}
        best = [letter for letter, score in scores.items() if score == max(scores.values())]
        return self._guess(prompt + given.words() + str(scores), best)

    def _guess(self, prompt: str, letters: Any) -> str:
        chosen = sorted(letters)
        return str(chosen[int(self._chance(prompt, "guess") * len(chosen))])

    def _chance(self, *key: Any) -> float:
        text = json.dumps([self.seed, *map(str, key)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48

    def _memory(self) -> Any:
        """Thumbnails of the pictures, (N, 768), and what each shows."""
        if "_known" not in vars(self):
            data = SyntheticMuCRDataModule(
                siblings=self.siblings,
                num_test=self.num_test,
                image_size=self.image_size,
                scene_seed=self.scene_seed,
            )
            groups = data.dataset("test")
            assert groups is not None
            thumbs, known = [], []
            for number in range(len(groups)):
                for pair in groups[number].pairs:
                    for picture, description in zip(pair.images, pair.descriptions, strict=True):
                        thumbs.append(_thumb(picture))
                        known.append(_everything(description))
            self._known = (np.stack(thumbs), known)
        return self._known


def _everything(description: str) -> Noticed:
    said = understand(description)
    looks = {} if said.looks is None else {name: getattr(said.looks, name) for name in ATTRIBUTES}
    return Noticed(looks, said.statement, said.moment, said.category)


def _read_words(text: str) -> Noticed | None:
    """Understands a description or what `Noticed.words` said; None if it is neither."""
    found = re.match(rf"a ({'|'.join(map(re.escape, NAMES.values()))}): ([^;]*)$", text.strip())
    if found is None:
        try:
            return _everything(text)
        except ValueError:
            return None
    category = next(kind for kind in CATEGORIES if NAMES[kind] == found[1])
    colours, _, happens = found[2].partition(", it shows ")
    pairs = re.findall(rf"({'|'.join(ATTRIBUTES)}) (\w+)", colours)
    said = understand(happens) if happens else None
    return Noticed(
        dict(pairs),
        said.statement if said else None,
        said.moment if said else 0,
        category,
    )


def _thumb(picture: Image.Image) -> Any:
    small = picture.convert("RGB").resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1) / 255


def _tiles(whole: Image.Image) -> list[Image.Image]:
    """Cuts a composite image into its pictures, see `CompositeImage`: two columns."""
    tile = (whole.width - 3 * GAP) // 2
    step = tile + GAP
    rows = (whole.height - GAP) // step
    corners = [(GAP + column * step, GAP + row * step) for row in range(rows) for column in (0, 1)]
    if rows > 1:
        corners = [(GAP + step // 2, GAP), *corners[2:]]
    return [whole.crop((x, y, x + tile, y + tile)) for x, y in corners]


def _aloud(seen: Mapping[str, Noticed]) -> str:
    return "".join(f"{label}: {noticed.words()}\n" for label, noticed in seen.items())


def _explain(seen: Sequence[Noticed], happened: Statement | None) -> str:
    name = NAMES[seen[0].category]
    if happened is None:
        return f"Both images show a {name}."
    before, after = (text.format(name) for text in (happened.cause, happened.effect))
    return (
        f"The first image shows that {before}. The second shows the same {name}: {after}. "
        f"The link is that {happened.link}."
    )
