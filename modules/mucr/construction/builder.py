"""From core captions to a benchmark in MuCR's format, stage by stage.

    core captions -> descriptions -> pictures -> cues and explanations

Answers and pictures are on disk when they arrive; nothing else is kept. So a build that was killed
goes on where it was, to the same files, and no request is made twice.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...chat import ChatBackend, ChatRequest
from ...files import atomic_write, write_json
from ...visual_reasoning.asking import ask_all, fill, keep_answers, template_hash
from ...visual_reasoning.parsing import FAILED, Parsed
from .images import ImageBackend, ImageRequest
from .prompts import PROMPTS, Cue, Version, read_cue, read_reasons, read_versions

log = logging.getLogger(__name__)

T = TypeVar("T")
ANSWERS, IMAGES, MANIFEST = "answers", "images", "benchmark.json"
ANNOTATIONS, DESCRIPTIONS = "annotations.jsonl", "descriptions.jsonl"


class CoreCaption(NamedTuple):
    """A causal statement.

    Attributes:
        cause: Caption of the cause.
        effect: Caption of the effect.
        category: Of the subject: "person", "animal", "character", "mixture" or "plant".
    """

    cause: str
    effect: str
    category: str


class BuiltPair(NamedTuple):
    """A pair before it is painted and annotated.

    Attributes:
        id: Unique in the benchmark.
        siblings: Ids of the others of its group.
        core: Its statement.
        version: How it is shown.
        style: "photograph" or "comic".
    """

    id: str
    siblings: tuple[str, ...]
    core: CoreCaption
    version: Version
    style: str


class BenchmarkBuilder:
    """Builds a benchmark in MuCR's format (2024) in a folder.

    The folder gets `annotations.jsonl`, `images/`, `descriptions.jsonl` (which the benchmark does
    not publish), `benchmark.json` with all settings, and `answers/` with what the writer said.

    What models write and paint is a draft: read it before calling it a benchmark.

    Args:
        writer: Writes descriptions, cues and explanations, as JSON.
        image_backend: Paints.
        captions: The statements, each with `cause`, `effect` and `category`; or a file of JSON
            lines with these keys.
        num_siblings: Pairs of a group.
        comic_share: Share of pairs drawn as comics, the others being photographs; MuCR has 0.14.
        image_size: Side of the pictures in pixels.
        max_attempts: How often the writer is asked for what it does not get right.
        temperature: Of the writer. 0 repeats itself, so that asking again is of no use.
        max_new_tokens: Length at which what it writes is cut.
        prompts: Templates that replace those of `construction.prompts`, by name.
        strict: Whether a statement that the writer does not get right is an error; else it is left
            out with a warning.
        seed: Of styles, pictures and the writer's sampling.

    Raises:
        ValueError: A number or a caption is no good.
    """

    def __init__(
        self,
        writer: ChatBackend,
        image_backend: ImageBackend,
        captions: list[dict[str, str]] | str,
        num_siblings: int = 4,
        comic_share: float = 0.14,
        image_size: int = 512,
        max_attempts: int = 3,
        temperature: float = 0.7,
        max_new_tokens: int = 1024,
        prompts: dict[str, str] | None = None,
        strict: bool = True,
        seed: int = 0,
    ) -> None:
        if num_siblings < 2 or image_size < 8 or max_attempts < 1:
            raise ValueError(
                f"num_siblings {num_siblings}, image_size {image_size}, max_attempts "
                f"{max_attempts}: expected 2, 8 and 1 or more"
            )
        if not 0 <= comic_share <= 1:
            raise ValueError(f"comic_share must be in [0, 1], got {comic_share}")
        if unknown := set(prompts or {}) - set(PROMPTS):
            raise ValueError(f"prompts: {sorted(unknown)} are none of {', '.join(PROMPTS)}")
        self.writer, self.image_backend = writer, image_backend
        self.captions = read_captions(captions)
        self.num_siblings, self.comic_share = num_siblings, comic_share
        self.image_size, self.max_attempts = image_size, max_attempts
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.prompts = {**PROMPTS, **(prompts or {})}
        self.strict, self.seed = strict, seed

    def build(self, folder: str | Path, say: Callable[[str], None] = log.info) -> Path:
        """Builds everything that is not there.

        Args:
            folder: Where to.
            say: Told what each stage has done.

        Returns:
            The file of annotations.

        Raises:
            ValueError: The folder has a benchmark of other settings; with `strict` the writer does
                not get a statement right; a picture could not be painted.
        """
        folder = Path(folder)
        self._claim(folder)
        pairs = self.expand(folder)
        say(f"{len(pairs)} pairs of {len(self.captions)} statements")
        painted = self.render(folder, pairs)
        say(f"{painted} pictures painted, {2 * len(pairs) - painted} were there")
        rows = self.annotate(folder, pairs)
        say(f"{len(rows)} pairs annotated")
        return write_lines(folder / ANNOTATIONS, rows)

    # The stages

    def expand(self, folder: Path) -> list[BuiltPair]:
        """Asks for versions of each statement; writes `descriptions.jsonl`."""
        requests = [
            self._request(
                "expand",
                {"cause_caption": core.cause, "effect_caption": core.effect}
                | {"category": core.category, "n": self.num_siblings},
            )
            for core in self.captions
        ]
        names = [f"{core.cause!r} -> {core.effect!r}" for core in self.captions]
        number = self.num_siblings
        found = self._ask(folder, requests, lambda text: read_versions(text, number), names)
        pairs = []
        for place, versions in found.items():
            ids = [f"{place:04d}{chr(ord('a') + k)}" for k in range(number)]
            for own, version in zip(ids, versions, strict=True):
                siblings = tuple(other for other in ids if other != own)
                style = "comic" if self._chance(own) < self.comic_share else "photograph"
                pairs.append(BuiltPair(own, siblings, self.captions[place], version, style))
        rows = [
            {
                "id": pair.id,
                "description_0": pair.version.cause_description,
                "description_1": pair.version.effect_description,
                "subject": pair.version.subject,
                "visual_cues": list(pair.version.visual_cues),
            }
            for pair in pairs
        ]
        write_lines(folder / DESCRIPTIONS, rows)
        return pairs

    def render(self, folder: Path, pairs: Sequence[BuiltPair]) -> int:
        """Paints the pictures that are not there; returns how many."""
        wanted: list[tuple[Path, ImageRequest]] = []
        for pair in pairs:
            texts = (pair.version.cause_description, pair.version.effect_description)
            for moment, description in enumerate(texts):
                path = folder / IMAGES / picture_name(pair.id, moment)
                if not path.exists():
                    prompt = fill(self.prompts[pair.style], description=description.rstrip(". "))
                    seed = int(self._chance(pair.id) * 2**31)
                    wanted.append((path, ImageRequest(prompt, self.image_size, seed)))
        for place, image in self.image_backend.paint([request for _, request in wanted]):
            buffer = io.BytesIO()
            image.save(buffer, format="png")  # without what an original file may have told
            with atomic_write(wanted[place][0]) as file:
                file.write(buffer.getvalue())
        return len(wanted)

    def annotate(self, folder: Path, pairs: Sequence[BuiltPair]) -> list[dict[str, Any]]:
        """Asks for cues, one for a group, and explanations; returns the rows of the benchmark."""
        cores = list(dict.fromkeys(pair.core for pair in pairs))
        requests = [
            self._request("cue", {"cause_caption": core.cause, "effect_caption": core.effect})
            for core in cores
        ]
        names = [f"the cue of {core.cause!r} -> {core.effect!r}" for core in cores]
        cues = self._ask(folder, requests, read_cue, names)
        cue_of: dict[CoreCaption, Cue] = {cores[place]: cue for place, cue in cues.items()}
        pairs = [pair for pair in pairs if pair.core in cue_of]
        requests = [
            self._request(
                "explain",
                {
                    "cause_caption": pair.core.cause,
                    "effect_caption": pair.core.effect,
                    "cause_description": pair.version.cause_description,
                    "effect_description": pair.version.effect_description,
                    "cue": cue_of[pair.core].cue,
                },
            )
            for pair in pairs
        ]
        names = [f"the explanation of {pair.id}" for pair in pairs]
        reasons = self._ask(folder, requests, read_reasons, names)
        left = {pairs[place].id for place in reasons}
        return [
            _row(pairs[place], cue_of[pairs[place].core], texts, left)
            for place, texts in reasons.items()
        ]

    # How

    def _request(self, name: str, values: Mapping[str, Any]) -> ChatRequest:
        text = fill(
            self.prompts[name],
            input=json.dumps(values, indent=1, ensure_ascii=False),
            n=str(values.get("n", "")),
        )
        return ChatRequest(
            text,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            id=name,
        )

    def _ask(
        self,
        folder: Path,
        requests: Sequence[ChatRequest],
        read: Callable[[str], T],
        names: Sequence[str],
    ) -> dict[int, T]:
        """Returns by place what was read in the answers; asks again where it will not do.

        Raises:
            ValueError: With `strict`, an answer will not do after all attempts.
        """

        def reader(text: str) -> Parsed:
            try:
                read(text)
            except ValueError:
                return FAILED
            return Parsed()

        writer = keep_answers(self.writer, folder / ANSWERS)
        replies = ask_all(writer, requests, reader, self.max_attempts)
        found: dict[int, T] = {}
        problems = []
        for place, (reply, name) in enumerate(zip(replies, names, strict=True)):
            try:
                if reply.error:
                    raise ValueError(reply.error)
                found[place] = read(reply.text)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            count = f"{len(problems)} of {len(requests)}"
            what = f"{count} answers will not do, the first to {problems[0]}"
            if self.strict:
                raise ValueError(
                    f"{what}. Raise max_attempts (only these are asked again), or leave them out "
                    "(strict: false)"
                )
            log.warning("left out: %s", what)
        return found

    def _chance(self, name: str) -> float:
        """Returns a number in [0, 1) that depends on seed and name alone."""
        digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def _claim(self, folder: Path) -> None:
        """Notes the settings, or compares them with those of what is there.

        Raises:
            ValueError: They differ.
        """
        settings = {
            "format": "MuCR 2024",
            "note": "self-generated; scores on it are no scores of MuCR",
            "writer": self.writer.identity,
            "image_backend": self.image_backend.identity,
            "captions": [core._asdict() for core in self.captions],
            "prompts": template_hash(self.prompts),
            "num_siblings": self.num_siblings,
            "comic_share": self.comic_share,
            "image_size": self.image_size,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        path = folder / MANIFEST
        if not path.exists():
            if folder.exists() and any(folder.iterdir()):
                raise ValueError(f"{folder} is not empty and has no {MANIFEST}: choose another")
            write_json(path, settings)
            return
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if there.get(name) != value]
        if changed:
            raise ValueError(
                f"{folder} has a benchmark of other settings ({', '.join(changed)}): choose "
                "another folder, or delete this one"
            )


def read_captions(captions: Sequence[Mapping[str, str]] | str) -> list[CoreCaption]:
    """Reads statements.

    Args:
        captions: Mappings, or a file of JSON lines, with `cause`, `effect` and `category`.

    Raises:
        ValueError: The file cannot be read; a statement lacks a key; two are the same; none.
    """
    rows: list[tuple[str, Any]] = []
    if isinstance(captions, str):
        try:
            lines = Path(captions).expanduser().read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append((f"{captions}:{number}", json.loads(line)))
        except (OSError, ValueError) as error:
            raise ValueError(f"captions {captions} cannot be read: {error}") from error
    else:
        rows = [(f"captions[{number}]", row) for number, row in enumerate(captions)]
    found: list[CoreCaption] = []
    for where, row in rows:
        texts = [row.get(key) for key in CoreCaption._fields] if isinstance(row, Mapping) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{where}: expected texts cause, effect and category, got {row!r}")
        core = CoreCaption(*(str(text).strip() for text in texts))
        if core in found:
            raise ValueError(f"{where}: the same statement as captions[{found.index(core)}]")
        found.append(core)
    if not found:
        raise ValueError("captions: not one statement")
    return found


def picture_name(pair_id: str, moment: int) -> str:
    """Returns the file of a picture: 0 the cause, 1 the effect."""
    return f"{pair_id}_{moment}.png"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes JSON lines, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def _row(pair: BuiltPair, cue: Cue, reasons: Sequence[str], left: set[str]) -> dict[str, Any]:
    """Returns a row with the keys of 2024."""
    siblings = [sibling for sibling in pair.siblings if sibling in left]
    return {
        "id": pair.id,
        "caption_0": pair.core.cause,
        "caption_1": pair.core.effect,
        "link_id": f"[{','.join(siblings)}]",
        "cue": cue.cue,
        "false_cue": list(cue.false_cues),
        "style": pair.style,
        "label": pair.core.category,
        "causal_reason": list(reasons),
        "image_0": picture_name(pair.id, 0),
        "image_1": picture_name(pair.id, 1),
    }
